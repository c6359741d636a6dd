//! Plays `scripts/*.script`: one conversation each, with what goes to Envoy and what is reported written below each step.
//!
//! A new case is a new file. `UPDATE=1 cargo test --test xds` writes what happens now into the files, to be reviewed.
//!
//! ```text
//! stream delta                          a new stream (or: sotw); the published set stays
//! set +CDS a@1 +LDS web@1 needs=CDS/a   publish: changes to the set, all at once; `held` for bytes only Envoy has;
//!                                       `one-of=a,b` for secrets of which it needs one; `port=80` of a listener
//! open CDS *                            a first request; `initial=a@1,b@1` (delta) or `version=..` (sotw)
//! subscribe EDS a b                     delta; also `unsubscribe`
//! names EDS a b                         sotw, answering the latest response
//! ack CDS                               the oldest response open, or `ack CDS 3`
//! nack CDS message…                     likewise, or `nack CDS 3 message…`
//! wait 2s                               in steps of the deadlines that the stream asks for
//! refused CDS                           shows what counts as refused on this stream
//!   -> ...                              expected: a response      (kind, nonce, +resource@version, -removed)
//!   !! ...                              expected: a report
//! ```

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use portreeve::envoy::{Resource, ResourceKind, ResourceRef, ResourceSet};
use portreeve::xds::{Actions, Asked, Limits, Report, Request, StreamState, Variant};

#[test]
fn scripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/xds/scripts");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    let mut failures = String::new();
    for file in files {
        assert!(
            file.extension().is_some_and(|extension| extension == "script"),
            "{file:?} is no script"
        );
        let text = std::fs::read_to_string(&file).unwrap();
        let played = play(&text);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, played).unwrap();
        } else if played != text {
            let at = played
                .lines()
                .zip(text.lines())
                .position(|(got, expected)| got != expected);
            let at = at.unwrap_or_else(|| played.lines().count().min(text.lines().count()));
            let (got, expected) = (played.lines().nth(at), text.lines().nth(at));
            writeln!(
                failures,
                "{}:{}\n  expected {expected:?}\n  got      {got:?}",
                file.display(),
                at + 1
            )
            .unwrap();
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

struct Stage {
    set: ResourceSet,
    is_published: bool,
    state: StreamState,
    open: HashMap<ResourceKind, VecDeque<u64>>,
    latest: HashMap<ResourceKind, (u64, String)>,
    names: HashMap<ResourceKind, Vec<String>>,
    now: Duration,
    shown: String,
}

fn play(text: &str) -> String {
    let mut stage = Stage {
        set: ResourceSet::default(),
        is_published: false,
        state: StreamState::new(Variant::Delta, &Limits::default()),
        open: HashMap::new(),
        latest: HashMap::new(),
        names: HashMap::new(),
        now: Duration::ZERO,
        shown: String::new(),
    };
    for line in text.lines().filter(|line| !line.starts_with("  ")) {
        writeln!(stage.shown, "{line}").unwrap();
        if !line.is_empty() && !line.starts_with('#') {
            stage.step(line);
        }
    }
    stage.shown
}

impl Stage {
    fn step(&mut self, line: &str) {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words: Vec<&str> = rest.split_whitespace().collect();
        match command {
            "stream" => {
                let variant = if words[0] == "sotw" {
                    Variant::StateOfTheWorld
                } else {
                    Variant::Delta
                };
                self.state = StreamState::new(variant, &Limits::default());
                self.open.clear();
                self.latest.clear();
                self.names.clear();
                self.now = Duration::ZERO;
                if self.is_published {
                    let actions = self.state.on_set(&self.set, self.now);
                    self.show(actions);
                }
            }
            "set" => {
                self.change_set(&words);
                self.is_published = true;
                let actions = self.state.on_set(&self.set, self.now);
                self.show(actions);
            }
            "open" | "subscribe" | "unsubscribe" | "names" => self.ask(command, &words),
            "ack" | "nack" => {
                let kind = kind(words[0]);
                let number = words.get(1).and_then(|word| word.parse().ok());
                let open = self.open.entry(kind).or_default();
                let Some(nonce) = number.or(open.front().copied()) else {
                    writeln!(self.shown, "  nothing is open").unwrap();
                    return;
                };
                open.retain(|other| *other != nonce);
                let said = &words[1 + usize::from(number.is_some())..];
                let error = (command == "nack").then(|| said.join(" ").replace("\\n", "\n"));
                self.request(kind, Some(nonce), error, self.same_names(kind));
            }
            "wait" => {
                let length = match rest.strip_suffix("ms") {
                    Some(milliseconds) => Duration::from_millis(milliseconds.parse().unwrap()),
                    None => Duration::from_secs(rest.strip_suffix('s').unwrap().parse().unwrap()),
                };
                let end = self.now + length;
                while let Some(at) = self.state.deadline(self.now).filter(|at| *at <= end) {
                    assert!(at > self.now, "a deadline in the past would spin");
                    self.now = at;
                    let actions = self.state.on_deadline(at);
                    self.show(actions);
                }
                self.now = end;
            }
            "refused" => {
                let refused = self.state.refused(kind(words[0]));
                let refused = refused.map(|(name, refusal)| format!(" {name}@{}", refusal.version));
                writeln!(self.shown, "  refused:{}", refused.collect::<String>()).unwrap();
            }
            _ => panic!("unknown step: {line}"),
        }
    }

    fn change_set(&mut self, words: &[&str]) {
        let mut at = 0;
        while at < words.len() {
            let (sign, kind) = (&words[at][..1], kind(&words[at][1..]));
            at += 1;
            if sign == "-" {
                assert!(
                    self.set.remove(kind, words[at]),
                    "{} is not in the set",
                    words[at]
                );
                at += 1;
                continue;
            }
            let (name, version) = words[at].split_once('@').unwrap();
            at += 1;
            let mut needs: Vec<ResourceRef> = Vec::new();
            let mut one_of: Vec<Arc<str>> = Vec::new();
            let mut port: Option<&str> = None;
            let mut is_held = false;
            while let Some(extra) = words.get(at).filter(|word| !word.starts_with(['+', '-'])) {
                match extra.split_once('=') {
                    Some(("needs", list)) => needs.extend(list.split(',').map(reference)),
                    Some(("one-of", list)) => one_of.extend(list.split(',').map(Arc::from)),
                    Some(("port", number)) => port = Some(number),
                    None if *extra == "held" => is_held = true,
                    _ => panic!("{extra}"),
                }
                at += 1;
            }
            let resource = if is_held {
                Resource::held_by_envoy(kind, name.into(), version.into())
            } else {
                Resource::with_version(kind, name.into(), version.into(), version.as_bytes())
            };
            let mut resource = resource.needing(needs.into()).needing_one_of(one_of.into());
            resource.binds = port.map(Arc::from);
            self.set.insert(Arc::new(resource));
        }
    }

    fn ask(&mut self, command: &str, words: &[&str]) {
        let kind = kind(words[0]);
        let (options, names): (Vec<&str>, Vec<&str>) = words[1..].iter().partition(|word| word.contains('='));
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let option = |key: &str| options.iter().find_map(|option| option.strip_prefix(key));
        let asked = match self.state.variant() {
            Variant::Delta => {
                let initial = option("initial=").into_iter().flat_map(|list| list.split(','));
                let initial = initial.map(|item| item.split_once('@').unwrap());
                let initial = initial
                    .map(|(name, version)| (name.to_owned(), version.to_owned()))
                    .collect();
                match command {
                    "unsubscribe" => Asked::Delta {
                        subscribe: Vec::new(),
                        unsubscribe: names,
                        initial,
                    },
                    _ => Asked::Delta {
                        subscribe: names,
                        unsubscribe: Vec::new(),
                        initial,
                    },
                }
            }
            Variant::StateOfTheWorld => {
                self.names.insert(kind, names.clone());
                let latest = self.latest.get(&kind).map(|(_, version)| version.clone());
                let version = option("version=").map(|version| match version {
                    // What this stream was last told, as an Envoy would bring it back.
                    "same" => LAST.with_borrow(|last| last.get(&kind).cloned().unwrap_or_default()),
                    version => version.to_owned(),
                });
                Asked::StateOfTheWorld {
                    names,
                    version: version.or(latest).unwrap_or_default(),
                }
            }
        };
        let nonce = self
            .latest
            .get(&kind)
            .map(|(nonce, _)| *nonce)
            .filter(|_| command == "names");
        self.request(kind, nonce, None, asked);
    }

    /// What an answer says beside yes or no.
    fn same_names(&self, kind: ResourceKind) -> Asked {
        match self.state.variant() {
            Variant::Delta => Asked::Delta {
                subscribe: Vec::new(),
                unsubscribe: Vec::new(),
                initial: HashMap::new(),
            },
            Variant::StateOfTheWorld => {
                let names = self.names.get(&kind).cloned().unwrap_or_default();
                let version = self
                    .latest
                    .get(&kind)
                    .map(|(_, version)| version.clone())
                    .unwrap_or_default();
                Asked::StateOfTheWorld { names, version }
            }
        }
    }

    fn request(&mut self, kind: ResourceKind, nonce: Option<u64>, error: Option<String>, asked: Asked) {
        match self.state.on_request(
            Request {
                kind,
                nonce,
                error,
                asked,
            },
            self.now,
        ) {
            Ok(actions) => self.show(actions),
            Err(violation) => writeln!(self.shown, "  ended: {violation}").unwrap(),
        }
    }

    fn show(&mut self, actions: Actions) {
        for report in actions.reports {
            match report {
                Report::Acked {
                    kind,
                    resources,
                    removed,
                } => {
                    writeln!(
                        self.shown,
                        "  !! acked {}{}",
                        short(kind),
                        list(&resources, &removed)
                    )
                }
                Report::Nacked {
                    kind,
                    candidates,
                    blamed,
                    proven,
                    ..
                } => {
                    let verdict = if proven { "proven" } else { "suspected" };
                    let candidates = list(&candidates, &[]);
                    writeln!(
                        self.shown,
                        "  !! nacked {} of{candidates}, {verdict}: {}",
                        short(kind),
                        blamed.join(" ")
                    )
                }
                Report::Wanted { kind, name, lacks } => {
                    let more = if lacks { " (has none)" } else { "" };
                    writeln!(self.shown, "  !! wanted {} {name}{more}", short(kind))
                }
            }
            .unwrap();
        }
        for response in actions.responses {
            let (kind, nonce) = (response.kind, response.nonce);
            let time = if self.now.is_zero() {
                String::new()
            } else {
                format!(" ({} ms)", self.now.as_millis())
            };
            let listed = list(&response.resources, &response.removed);
            writeln!(self.shown, "  -> {} {nonce}{listed}{time}", short(kind)).unwrap();
            assert!(
                response
                    .resources
                    .iter()
                    .all(|resource| !resource.is_held_by_envoy()),
                "sent without bytes"
            );
            self.open.entry(kind).or_default().push_back(nonce);
            LAST.with_borrow_mut(|last| last.insert(kind, response.version.clone()));
            self.latest.insert(kind, (nonce, response.version));
        }
    }
}

thread_local! {
    /// State-of-the-world versions outlive the stream that gave them, as they do in Envoy.
    static LAST: std::cell::RefCell<HashMap<ResourceKind, String>> = std::cell::RefCell::default();
}

const SHORT: [(&str, ResourceKind); 7] = [
    ("CDS", ResourceKind::Cluster),
    ("EDS", ResourceKind::Endpoint),
    ("SDS", ResourceKind::Secret),
    ("RTDS", ResourceKind::Runtime),
    ("LDS", ResourceKind::Listener),
    ("SRDS", ResourceKind::ScopedRoute),
    ("RDS", ResourceKind::Route),
];

fn kind(short: &str) -> ResourceKind {
    SHORT
        .iter()
        .find(|(name, _)| *name == short)
        .unwrap_or_else(|| panic!("no kind {short}"))
        .1
}

fn short(kind: ResourceKind) -> &'static str {
    SHORT.iter().find(|(_, other)| *other == kind).unwrap().0
}

fn reference(text: &str) -> ResourceRef {
    let (short, name) = text.split_once('/').unwrap();
    ResourceRef {
        kind: kind(short),
        name: name.into(),
    }
}

fn list(resources: &[Arc<Resource>], removed: &[Arc<str>]) -> String {
    let set = resources
        .iter()
        .map(|resource| format!(" +{}@{}", resource.name, resource.version));
    set.chain(removed.iter().map(|name| format!(" -{name}")))
        .collect()
}

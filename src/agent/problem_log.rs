//! Writes into the log what the status says: each diagnostic once when it appears and once when it is over.
//!
//! The log reads the same values as the API, the CLI and the status keys, so that nothing is told in one place only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::diagnostics::{Code, Diagnostic, ObjectRef, Severity};
use crate::model::DocumentId;
use crate::pipeline::View;
use crate::status;
use crate::xds::Streams;

/// A change is looked at this much later: what mends itself meanwhile is not worth a line.
const SETTLE: Duration = Duration::from_millis(250);

/// All objects are walked for it, so not more often than this, whatever changes.
const PACE: Duration = Duration::from_secs(1);

/// Certificates come near their end without anything changing.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// What has not arrived yet mostly does: it is trouble only after this.
const PATIENCE: Duration = Duration::from_secs(10);

/// Of one kind at one time; when Consul is away, each of thousands of services says so, and the first few speak for all.
const SHOWN: usize = 10;

/// Runs until cancelled, or until nobody makes views any more.
pub(super) async fn follow(mut view: watch::Receiver<Arc<View>>, streams: Streams, stop: CancellationToken) {
    let mut log = ProblemLog::default();
    loop {
        let waiting = match log.has_unripe() {
            true => PATIENCE,
            false => LOOK_AGAIN,
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = view.changed() => if changed.is_err() { return },
            () = sleep(waiting) => {}
        }
        sleep(SETTLE).await;
        let current = view.borrow_and_update().clone();
        // A big tree takes a while, and streams wait on the same threads.
        let streams = streams.snapshot();
        let all =
            tokio::task::spawn_blocking(move || status::diagnostics(&current, &streams, SystemTime::now()));
        if let Ok(all) = all.await {
            for line in log.step(all, Instant::now()) {
                line.write();
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(PACE) => {}
        }
    }
}

/// What makes two diagnostics the same trouble: its lines may move and its reasons may be told better meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Trouble {
    code: Code,
    document: Option<DocumentId>,
    object: Option<ObjectRef>,
    message: String,
}

#[derive(Debug)]
struct Known {
    diagnostic: Diagnostic,
    since: Instant,
    is_told: bool,
    /// In a line of its own; the others were counted.
    is_shown: bool,
}

#[derive(Debug, Default)]
struct ProblemLog {
    known: BTreeMap<Trouble, Known>,
}

#[derive(Debug)]
enum Line {
    Begins(Diagnostic),
    MoreBegin(Code, usize),
    Ends(Diagnostic),
    MoreEnd(Code, usize),
}

impl ProblemLog {
    fn has_unripe(&self) -> bool {
        self.known.values().any(|known| !known.is_told)
    }

    fn step(&mut self, all: Vec<Diagnostic>, now: Instant) -> Vec<Line> {
        let mut present: BTreeMap<Trouble, Diagnostic> = BTreeMap::new();
        for diagnostic in all {
            present.entry(trouble(&diagnostic)).or_insert(diagnostic);
        }
        let mut lines = Vec::new();
        self.end(&present, &mut lines);
        self.begin(present, now, &mut lines);
        lines
    }

    fn end(&mut self, present: &BTreeMap<Trouble, Diagnostic>, lines: &mut Vec<Line>) {
        let mut uncounted: BTreeMap<Code, usize> = BTreeMap::new();
        self.known.retain(|key, known| {
            let stays = present.contains_key(key);
            if !stays && known.is_shown {
                lines.push(Line::Ends(known.diagnostic.clone()));
            } else if !stays && known.is_told {
                *uncounted.entry(key.code).or_default() += 1;
            }
            stays
        });
        lines.extend(
            uncounted
                .into_iter()
                .map(|(code, count)| Line::MoreEnd(code, count)),
        );
    }

    fn begin(&mut self, present: BTreeMap<Trouble, Diagnostic>, now: Instant, lines: &mut Vec<Line>) {
        let mut begun: BTreeMap<Code, usize> = BTreeMap::new();
        for (key, diagnostic) in present {
            let code = key.code;
            let known = self.known.entry(key).or_insert_with(|| Known {
                diagnostic: diagnostic.clone(),
                since: now,
                is_told: false,
                is_shown: false,
            });
            known.diagnostic = diagnostic;
            let ripe = code != Code::NotYetKnown || now.duration_since(known.since) >= PATIENCE;
            if known.is_told || !ripe {
                continue;
            }
            known.is_told = true;
            let count = begun.entry(code).or_default();
            *count += 1;
            if *count <= SHOWN {
                known.is_shown = true;
                lines.push(Line::Begins(known.diagnostic.clone()));
            }
        }
        let more = begun.into_iter().filter(|(_, count)| *count > SHOWN);
        lines.extend(more.map(|(code, count)| Line::MoreBegin(code, count - SHOWN)));
    }
}

fn trouble(diagnostic: &Diagnostic) -> Trouble {
    Trouble {
        code: diagnostic.code,
        document: diagnostic.origin.as_ref().map(|origin| origin.document.clone()),
        object: diagnostic.object.clone(),
        message: diagnostic.message.clone(),
    }
}

impl Line {
    fn write(&self) {
        match self {
            Self::Begins(diagnostic) => {
                let (code, fix) = (diagnostic.code.as_str(), diagnostic.fix.as_deref());
                let (document, line) = place(diagnostic);
                let text = Diagnostic {
                    fix: None,
                    ..diagnostic.clone()
                };
                match diagnostic.severity {
                    Severity::Error => tracing::error!(code, document, line, fix, "{text}"),
                    Severity::Warning => tracing::warn!(code, document, line, fix, "{text}"),
                }
            }
            Self::MoreBegin(code, count) => tracing::warn!(
                code = code.as_str(),
                count,
                "more of the same kind, see `portreeve status`"
            ),
            Self::Ends(diagnostic) => {
                let (document, line) = place(diagnostic);
                tracing::info!(
                    code = diagnostic.code.as_str(),
                    document,
                    line,
                    "in order again: {}",
                    diagnostic.message
                );
            }
            Self::MoreEnd(code, count) => {
                tracing::info!(
                    code = code.as_str(),
                    count,
                    "more of the same kind are in order again"
                );
            }
        }
    }
}

fn place(diagnostic: &Diagnostic) -> (Option<&str>, Option<u32>) {
    let origin = diagnostic.origin.as_ref();
    (
        origin.map(|origin| origin.document.as_str()),
        origin.map(|origin| origin.line),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Origin, Span};

    fn said(message: &str, line: u32) -> Diagnostic {
        Diagnostic::error(Code::UnknownReference, message).at(Origin {
            document: DocumentId::Kv("shop".into()),
            span: Span::default(),
            line,
            column: 1,
        })
    }

    fn shown(lines: &[Line]) -> Vec<String> {
        lines
            .iter()
            .map(|line| match line {
                Line::Begins(diagnostic) => format!("+ {}", diagnostic.message),
                Line::MoreBegin(code, count) => format!("+ {count} {}", code.as_str()),
                Line::Ends(diagnostic) => format!("- {}", diagnostic.message),
                Line::MoreEnd(code, count) => format!("- {count} {}", code.as_str()),
            })
            .collect()
    }

    #[test]
    fn each_is_told_once_and_its_end_once() {
        let (mut log, now) = (ProblemLog::default(), Instant::now());
        assert_eq!(shown(&log.step(vec![said("a", 1)], now)), ["+ a"]);
        assert!(
            log.step(vec![said("a", 9).because("else")], now).is_empty(),
            "its line moved"
        );
        assert_eq!(shown(&log.step(vec![said("b", 1)], now)), ["- a", "+ b"]);
        assert_eq!(shown(&log.step(Vec::new(), now)), ["- b"]);
        assert_eq!(shown(&log.step(vec![said("a", 1)], now)), ["+ a"], "it is back");
    }

    #[test]
    fn a_flood_is_summarised() {
        let (mut log, now) = (ProblemLog::default(), Instant::now());
        let flood: Vec<Diagnostic> = (0..1000).map(|n| said(&format!("{n:04}"), n)).collect();
        let lines = shown(&log.step(flood.clone(), now));
        assert_eq!(lines.len(), SHOWN + 1);
        assert_eq!(lines[SHOWN], "+ 990 unknown-reference");
        assert!(log.step(flood, now).is_empty());
        let lines = shown(&log.step(Vec::new(), now));
        assert_eq!(lines.len(), SHOWN + 1);
        assert_eq!(lines[SHOWN], "- 990 unknown-reference");
    }

    #[test]
    fn what_arrives_soon_is_not_told() {
        let (mut log, now) = (ProblemLog::default(), Instant::now());
        let waiting = || vec![Diagnostic::warning(Code::NotYetKnown, "not here yet")];
        assert!(log.step(waiting(), now).is_empty());
        assert!(log.has_unripe());
        assert!(log.step(Vec::new(), now).is_empty(), "nor is its end");
        assert!(log.step(waiting(), now).is_empty());
        assert_eq!(shown(&log.step(waiting(), now + PATIENCE)), ["+ not here yet"]);
    }
}

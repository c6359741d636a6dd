//! A certificate that is on its way takes nothing away that serves.

use std::collections::BTreeSet;
use std::sync::Arc;

use portreeve::config::Permissions;
use portreeve::diagnostics::{Code, Diagnostic};
use portreeve::envoy::{ResourceKind, render_resource};
use portreeve::model::{
    CertificateMaterial, CertificateQuery, CertificateUpdate, DocumentId, DocumentsUpdate, Observation,
    Problem, ProblemKind,
};
use portreeve::snapshot::{Changes, Snapshot};
use portreeve::translate::Compiler;

use super::world;

pub(super) struct Edge {
    pub(super) snapshot: Snapshot,
    pub(super) compiler: Compiler,
}

fn gateway(certificates: &str) -> String {
    format!(
        "gateway \"edge\" {{\n  listener \"web\" {{\n    port     = 443\n    protocol = \"https\"\n    \
         tls {{ certificates = [{certificates}] }}\n  }}\n}}\n"
    )
}

pub(super) fn certificate(name: &str, file: &str) -> String {
    format!(
        "certificate \"{name}\" {{\n  file {{\n    certificate = \"/{file}.pem\"\n    private_key = \"/{file}.key\"\n  }}\n}}\n"
    )
}

fn query(file: &str) -> CertificateQuery {
    CertificateQuery::File {
        certificate: format!("/{file}.pem").into(),
        private_key: format!("/{file}.key").into(),
    }
}

impl Edge {
    /// Serves the certificate `site` from the file `a`.
    pub(super) fn serving() -> Self {
        let mut snapshot = world::empty();
        world::put(
            &mut snapshot,
            [
                world::file("gateway.hcl", &gateway("\"site\"")),
                world::file("site.hcl", &certificate("site", "a")),
            ],
        );
        let compiler = Compiler::compile("edge", world::settings(), &snapshot);
        let mut edge = Self { snapshot, compiler };
        edge.arrives("a", &["www.example.com"]);
        assert_eq!(edge.shown(), ["certificate/site: a"]);
        edge
    }

    pub(super) fn take_up(&mut self, changes: &Changes) {
        self.compiler.update(&self.snapshot, changes);
        let fresh = Compiler::compile("edge", world::settings(), &self.snapshot);
        assert_eq!(self.compiler.certificates(), fresh.certificates());
        let said = |compiler: &Compiler| -> Vec<_> {
            let all = compiler.diagnostics();
            all.map(|(unit, said)| (unit.clone(), said.clone())).collect()
        };
        assert_eq!(said(&self.compiler), said(&fresh));
        for kind in [ResourceKind::Listener, ResourceKind::Secret] {
            let versions = |compiler: &Compiler| -> Vec<_> {
                let all = compiler.resources().of_kind(kind).values();
                all.map(|resource| (resource.name.clone(), resource.version.clone()))
                    .collect()
            };
            assert_eq!(versions(&self.compiler), versions(&fresh));
        }
    }

    pub(super) fn put(&mut self, documents: &[(&str, String)]) {
        let documents = documents.iter().map(|(path, text)| world::file(path, text));
        let changes = world::put(&mut self.snapshot, documents);
        self.take_up(&changes);
    }

    fn arrives(&mut self, file: &str, names: &[&str]) {
        let query = query(file);
        let material = CertificateMaterial {
            names: names.iter().map(|name| Arc::from(*name)).collect(),
            serial: file.into(),
            ..world::material(&query)
        };
        self.says(query, Ok(Arc::new(material)));
    }

    pub(super) fn says(
        &mut self,
        query: CertificateQuery,
        result: Result<Arc<CertificateMaterial>, Problem>,
    ) {
        let changes = self
            .snapshot
            .apply(Observation::Certificate(CertificateUpdate { query, result }));
        self.take_up(&changes);
    }

    /// The secrets of the listener's chains, with what they hold.
    fn shown(&self) -> Vec<String> {
        let set = self.compiler.resources();
        let Some(listener) = set.get(ResourceKind::Listener, "web") else {
            return Vec::new();
        };
        let text = render_resource(listener).to_string();
        let shown = listener.needs.iter().map(|need| {
            assert!(text.contains(&*need.name));
            let certificate = need.name.strip_prefix("certificate/").unwrap();
            assert!(
                set.get(ResourceKind::Secret, &need.name).is_some(),
                "{} is not there",
                need.name
            );
            let known = self.snapshot.serving(certificate).unwrap();
            format!("{}: {}", need.name, known.value.as_ref().unwrap().serial)
        });
        shown.collect()
    }

    pub(super) fn fetched(&self) -> BTreeSet<CertificateQuery> {
        self.compiler.certificate_queries()
    }

    pub(super) fn said(&self) -> Vec<(Code, String)> {
        let all = self.compiler.diagnostics().flat_map(|(_, said)| said.iter());
        all.map(|one| (one.code, one.reason.clone().unwrap_or_default().to_string()))
            .collect()
    }
}

#[test]
fn what_was_fetched_before_serves_until_the_new_parameters_bring_something() {
    let mut edge = Edge::serving();
    edge.put(&[("site.hcl", certificate("site", "b"))]);
    assert_eq!(edge.shown(), ["certificate/site: a"]);
    // Renewed all the while.
    assert_eq!(edge.fetched(), BTreeSet::from([query("a"), query("b")]));
    let said = edge.said();
    assert_eq!(said[0].0, Code::NotYetKnown);
    assert!(said[0].1.contains("stays in service"), "{said:?}");
    edge.says(
        query("b"),
        Err(Problem::new(ProblemKind::Refused, "no such file")),
    );
    assert_eq!(edge.shown(), ["certificate/site: a"]);
    // A second edit before the first brought anything.
    edge.put(&[("site.hcl", certificate("site", "c"))]);
    assert_eq!(edge.shown(), ["certificate/site: a"]);
    assert_eq!(edge.fetched(), BTreeSet::from([query("a"), query("c")]));
    edge.arrives("c", &["www.example.com"]);
    assert_eq!(edge.shown(), ["certificate/site: c"]);
    assert_eq!(edge.fetched(), BTreeSet::from([query("c")]));
    assert_eq!(edge.said(), []);
}

#[test]
fn an_edit_that_is_taken_back_leaves_nothing_behind() {
    let mut edge = Edge::serving();
    edge.put(&[("site.hcl", certificate("site", "b"))]);
    edge.put(&[("site.hcl", certificate("site", "a"))]);
    assert_eq!(edge.shown(), ["certificate/site: a"]);
    assert_eq!(edge.fetched(), BTreeSet::from([query("a")]));
    assert_eq!(edge.said(), []);
}

#[test]
fn a_listener_shows_what_it_named_before_until_the_new_one_is_there() {
    let mut edge = Edge::serving();
    // In one transaction: the new one is declared and named, the old one's document goes.
    let changes = edge.snapshot.apply(Observation::Documents(DocumentsUpdate {
        changed: vec![
            world::file("gateway.hcl", &gateway("\"new\"")),
            world::file("new.hcl", &certificate("new", "b")),
        ],
        removed: vec![portreeve::model::DocumentId::File("site.hcl".into())],
        ..Default::default()
    }));
    edge.take_up(&changes);
    assert_eq!(edge.shown(), ["certificate/site: a"]);
    let said = edge.said();
    assert!(said[0].1.contains("goes on with \"site\""), "{said:?}");
    edge.arrives("b", &["www.example.com"]);
    assert_eq!(edge.shown(), ["certificate/new: b"]);
    assert_eq!(edge.fetched(), BTreeSet::from([query("b")]));
    assert_eq!(edge.said(), []);
}

#[test]
fn a_certificate_that_is_declared_later_than_named_breaks_nothing() {
    let mut edge = Edge::serving();
    edge.put(&[("gateway.hcl", gateway("\"new\""))]);
    assert_eq!(edge.shown(), ["certificate/site: a"]);
    assert_eq!(edge.said()[0].0, Code::UnknownReference);
    edge.put(&[("new.hcl", certificate("new", "b"))]);
    // The old one changes meanwhile, and is never fetched in its new form for nobody names it.
    edge.put(&[("site.hcl", certificate("site", "c"))]);
    assert_eq!(edge.shown(), ["certificate/site: a"]);
    edge.arrives("b", &["www.example.com"]);
    assert_eq!(edge.shown(), ["certificate/new: b"]);
    assert_eq!(edge.fetched(), BTreeSet::from([query("b")]));
}

#[test]
fn one_that_is_struck_off_the_list_is_gone() {
    let mut edge = Edge::serving();
    let both = [
        ("gateway.hcl", gateway("\"site\", \"other\"")),
        ("other.hcl", certificate("other", "b")),
    ];
    edge.put(&both);
    edge.arrives("b", &["other.example.com"]);
    edge.put(&[("gateway.hcl", gateway("\"other\""))]);
    assert_eq!(edge.shown(), ["certificate/other: b"]);
    assert_eq!(edge.fetched(), BTreeSet::from([query("b")]));
}

/// The careful way to replace one: named beside it first, then alone.
#[test]
fn a_listener_keeps_what_it_has_rather_than_nothing() {
    let mut edge = Edge::serving();
    edge.put(&[
        ("gateway.hcl", gateway("\"site\", \"other\"")),
        ("other.hcl", certificate("other", "b")),
    ]);
    edge.put(&[("gateway.hcl", gateway("\"other\""))]);
    assert_eq!(edge.shown(), ["certificate/site: a"]);
    edge.arrives("b", &["www.example.com"]);
    assert_eq!(edge.shown(), ["certificate/other: b"]);
}

/// What has been missing for long is not waited for when another one is replaced.
#[test]
fn only_the_successor_is_waited_for() {
    let mut edge = Edge::serving();
    edge.put(&[
        ("gateway.hcl", gateway("\"site\", \"lost\"")),
        ("lost.hcl", certificate("lost", "z")),
    ]);
    edge.put(&[
        ("gateway.hcl", gateway("\"new\", \"lost\"")),
        ("new.hcl", certificate("new", "b")),
    ]);
    assert_eq!(edge.shown(), ["certificate/site: a"]);
    edge.arrives("b", &["www.example.com"]);
    assert_eq!(edge.shown(), ["certificate/new: b"]);
    assert_eq!(edge.fetched(), BTreeSet::from([query("b"), query("z")]));
}

#[test]
fn one_that_cannot_be_shown_takes_no_place() {
    let mut edge = Edge::serving();
    edge.put(&[("site.hcl", certificate("site", "b"))]);
    edge.arrives("b", &["10.0.0.1"]);
    assert_eq!(edge.shown(), ["certificate/site: a"]);
    let said = edge.said();
    assert_eq!(said[0].0, Code::CertificateProblem);
    // The public half of one from an earlier life: its key is asked for, and what serves goes on.
    let known = query("b");
    let keyless = CertificateMaterial {
        names: vec!["www.example.com".into()],
        serial: "b".into(),
        private_key: None,
        ..world::material(&known)
    };
    edge.says(known.clone(), Ok(Arc::new(keyless)));
    assert_eq!(edge.shown(), ["certificate/site: a"]);
    assert_eq!(edge.snapshot.keys_to_fetch(), [known]);
    edge.arrives("b", &["www.example.com"]);
    assert_eq!(edge.shown(), ["certificate/site: b"]);
}

/// After a restart: Envoy has it by the name that it was shown by.
#[test]
fn a_key_that_envoy_alone_has_goes_by_no_other_name() {
    let mut edge = Edge::serving();
    let keyless = || CertificateMaterial {
        names: vec!["www.example.com".into()],
        serial: "a".into(),
        private_key: None,
        ..world::material(&query("a"))
    };
    edge.says(query("a"), Ok(Arc::new(keyless())));
    for name in ["new", "newer"] {
        let named = gateway(&format!("{name:?}"));
        edge.put(&[("gateway.hcl", named), ("site.hcl", certificate(name, "a"))]);
        assert_eq!(edge.shown(), ["certificate/site: a"], "{name}");
        assert_eq!(edge.snapshot.keys_to_fetch(), [query("a")]);
    }
    // Back to the name that Envoy has it by.
    edge.put(&[
        ("gateway.hcl", gateway("\"site\"")),
        ("site.hcl", certificate("site", "a")),
    ]);
    assert_eq!(edge.shown(), ["certificate/site: a"]);
    assert_eq!(edge.snapshot.keys_to_fetch(), []);
    edge.put(&[
        ("gateway.hcl", gateway("\"new\"")),
        ("site.hcl", certificate("new", "a")),
    ]);
    edge.arrives("a", &["www.example.com"]);
    assert_eq!(edge.shown(), ["certificate/new: a"]);
    assert_eq!(edge.said(), []);
}

/// A text that has brought nothing yet is not what Envoy runs with.
#[test]
fn what_stands_in_does_not_confirm_the_text_that_asks_for_more() {
    let mut edge = Edge::serving();
    edge.put(&[("site.hcl", certificate("site", "b"))]);
    let expecting: Vec<_> = edge
        .compiler
        .expecting()
        .map(|id| id.as_str().to_owned())
        .collect();
    assert_eq!(expecting, ["site.hcl"]);
    edge.arrives("b", &["www.example.com"]);
    assert_eq!(edge.compiler.expecting().count(), 0);
    edge.put(&[("gateway.hcl", gateway("\"new\""))]);
    let expecting: Vec<_> = edge
        .compiler
        .expecting()
        .map(|id| id.as_str().to_owned())
        .collect();
    assert_eq!(expecting, ["gateway.hcl"]);
}

/// Another gateway's listener, of which nothing is fetched here, keeps nothing.
#[test]
fn gateways_that_are_served_elsewhere_have_no_part_in_it() {
    let mut edge = Edge::serving();
    edge.snapshot = edge
        .snapshot
        .clone()
        .serving_gateways(BTreeSet::from(["edge".into()]));
    edge.put(&[("inner.hcl", gateway("\"site\"").replace("\"edge\"", "\"inner\""))]);
    edge.put(&[("inner.hcl", gateway("\"new\"").replace("\"edge\"", "\"inner\""))]);
    assert!(edge.snapshot.outgoing("inner", "web").is_empty());
}

#[test]
fn what_is_no_longer_allowed_does_not_stay_for_the_sake_of_what_comes() {
    let mut edge = Edge::serving();
    let allow = |files: &[&str]| Permissions {
        files: files.iter().map(|file| Arc::from(*file)).collect(),
        ..Permissions::default()
    };
    edge.snapshot.permit(allow(&["/"]));
    let removed = vec![DocumentId::File("site.hcl".into())];
    let changes = edge
        .snapshot
        .apply(Observation::Documents(portreeve::model::DocumentsUpdate {
            changed: vec![world::kv("site", 1, &certificate("site", "a"))],
            removed,
            ..Default::default()
        }));
    edge.take_up(&changes);
    let changes = world::put(
        &mut edge.snapshot,
        [world::kv("site", 1, &certificate("site", "b"))],
    );
    edge.take_up(&changes);
    assert_eq!(edge.shown(), ["certificate/site: a"]);
    let changes = edge.snapshot.permit(allow(&["/b.pem", "/b.key"]));
    edge.take_up(&changes);
    assert_eq!(edge.shown(), Vec::<String>::new());
    assert_eq!(edge.fetched(), BTreeSet::from([query("b")]));
}

/// An agent that knows its gateways takes away what is no longer allowed, and nothing that stands beside it.
#[test]
fn a_certificate_that_may_not_be_used_is_not_asked_for_and_not_shown() {
    let mut edge = Edge::serving();
    edge.snapshot = edge
        .snapshot
        .clone()
        .serving_gateways(BTreeSet::from(["edge".into()]));
    let permit = |edge: &mut Edge, files: &[&str]| {
        let permissions = Permissions {
            files: files.iter().map(|file| Arc::from(*file)).collect(),
            ..Permissions::default()
        };
        let changes = edge.snapshot.permit(permissions);
        edge.take_up(&changes);
    };
    permit(&mut edge, &["/a.pem", "/a.key"]);
    // One document from KV in the place of the two files.
    let removed = ["gateway.hcl", "site.hcl"].map(|path| DocumentId::File(path.into()));
    let text = |file: &str| gateway("\"site\"") + &certificate("site", file);
    let changes = edge.snapshot.apply(Observation::Documents(DocumentsUpdate {
        changed: vec![world::kv("edge", 1, &text("a"))],
        removed: removed.into(),
        ..Default::default()
    }));
    edge.take_up(&changes);
    assert_eq!(edge.shown(), ["certificate/site: a"]);
    // An edit that asks for another one is not taken, line for line as it stands.
    for edit in [text("b"), format!("\n{}", text("b"))] {
        let changes = world::put(&mut edge.snapshot, [world::kv("edge", 1, &edit)]);
        edge.take_up(&changes);
        assert_eq!(edge.shown(), ["certificate/site: a"]);
        assert_eq!(edge.fetched(), BTreeSet::from([query("a")]));
    }
    let changes = world::put(&mut edge.snapshot, [world::kv("edge", 1, &text("a"))]);
    edge.take_up(&changes);
    // Bounds that allow neither: the gateway stays, and what it says is where the document asks for it.
    permit(&mut edge, &[]);
    assert_eq!((edge.shown(), edge.fetched()), (Vec::new(), BTreeSet::new()));
    assert!(edge.snapshot.config.gateway("edge").is_some());
    let said: Vec<Diagnostic> = edge
        .compiler
        .diagnostics()
        .flat_map(|(_, said)| said.iter().cloned().collect::<Vec<_>>())
        .collect();
    let codes: Vec<Code> = said.iter().map(|said| said.code).collect();
    assert_eq!(
        codes,
        [Code::NotAllowed, Code::NotAllowed, Code::ListenerWithheld]
    );
    assert_eq!(said[0].origin.as_ref().unwrap().document.as_str(), "edge");
    // The same in another line: it is told where it stands now.
    let changes = world::put(
        &mut edge.snapshot,
        [world::kv("edge", 1, &format!("\n{}", text("a")))],
    );
    edge.take_up(&changes);
    permit(&mut edge, &["/a.pem", "/a.key"]);
    assert_eq!(edge.fetched(), BTreeSet::from([query("a")]));
    edge.arrives("a", &["www.example.com"]);
    assert_eq!(edge.shown(), ["certificate/site: a"]);
}

/// Whoever declares a certificate that is gone under its name, and may not use what it asks for, keeps nothing in use.
#[test]
fn nothing_goes_on_in_the_name_of_a_certificate_that_may_not_be_used() {
    let mut edge = Edge::serving();
    edge.snapshot = edge
        .snapshot
        .clone()
        .serving_gateways(BTreeSet::from(["edge".into()]));
    let permissions = Permissions {
        files: Vec::new(),
        ..Permissions::default()
    };
    let changes = edge.snapshot.permit(permissions);
    edge.take_up(&changes);
    let others =
        certificate("site", "b") + "upstream \"other\" {\n  static { addresses = [\"10.0.0.1:80\"] }\n}\n";
    let changes = world::put(&mut edge.snapshot, [world::kv("others", 9, &others)]);
    edge.take_up(&changes);
    assert_eq!(edge.shown(), ["certificate/site: a"]);
    let changes = edge.snapshot.apply(Observation::Documents(DocumentsUpdate {
        removed: vec![DocumentId::File("site.hcl".into())],
        ..Default::default()
    }));
    edge.take_up(&changes);
    assert_eq!((edge.shown(), edge.fetched()), (Vec::new(), BTreeSet::new()));
    assert!(edge.snapshot.config.upstream("other").is_some());
}

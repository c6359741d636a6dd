//! A certificate that is on its way takes nothing away that serves.

use std::collections::BTreeSet;
use std::sync::Arc;

use portreeve::config::Permissions;
use portreeve::diagnostics::Code;
use portreeve::envoy::{ResourceKind, render_resource};
use portreeve::model::{
    CertificateMaterial, CertificateQuery, CertificateUpdate, Observation, Problem, ProblemKind,
};
use portreeve::snapshot::{Changes, Snapshot};
use portreeve::translate::Compiler;

use super::world;

struct Edge {
    snapshot: Snapshot,
    compiler: Compiler,
}

fn gateway(certificates: &str) -> String {
    format!(
        "gateway \"edge\" {{\n  listener \"web\" {{\n    port     = 443\n    protocol = \"https\"\n    \
         tls {{ certificates = [{certificates}] }}\n  }}\n}}\n"
    )
}

fn certificate(name: &str, file: &str) -> String {
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
    fn serving() -> Self {
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

    fn take_up(&mut self, changes: &Changes) {
        self.compiler.update(&self.snapshot, changes);
        let fresh = Compiler::compile("edge", world::settings(), &self.snapshot);
        assert_eq!(self.compiler.certificates(), fresh.certificates());
        for kind in [ResourceKind::Listener, ResourceKind::Secret] {
            let versions = |compiler: &Compiler| -> Vec<_> {
                let all = compiler.resources().of_kind(kind).values();
                all.map(|resource| (resource.name.clone(), resource.version.clone()))
                    .collect()
            };
            assert_eq!(versions(&self.compiler), versions(&fresh));
        }
    }

    fn put(&mut self, documents: &[(&str, String)]) {
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

    fn says(&mut self, query: CertificateQuery, result: Result<Arc<CertificateMaterial>, Problem>) {
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

    fn fetched(&self) -> BTreeSet<CertificateQuery> {
        self.compiler.certificate_queries()
    }

    fn said(&self) -> Vec<(Code, String)> {
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
    let changes = edge
        .snapshot
        .apply(Observation::Documents(portreeve::model::DocumentsUpdate {
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
    edge.put(&[
        ("gateway.hcl", gateway("\"site\", \"other\"")),
        ("other.hcl", certificate("other", "b")),
    ]);
    edge.says(
        query("b"),
        Err(Problem::new(ProblemKind::Refused, "no such file")),
    );
    assert_eq!(edge.shown(), ["certificate/site: a"]);
    // Nothing new is named, so that nothing is waited for.
    edge.put(&[("gateway.hcl", gateway("\"other\""))]);
    assert_eq!(edge.shown(), Vec::<String>::new());
    assert_eq!(edge.fetched(), BTreeSet::from([query("b")]));
}

#[test]
fn what_is_no_longer_allowed_does_not_stay_for_the_sake_of_what_comes() {
    let mut edge = Edge::serving();
    let allow = |files: &[&str]| Permissions {
        files: files.iter().map(|file| Arc::from(*file)).collect(),
        ..Permissions::default()
    };
    edge.snapshot.permit(allow(&["/"]));
    let removed = vec![portreeve::model::DocumentId::File("site.hcl".into())];
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

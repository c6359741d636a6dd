//! One kind of bad input, played in a small world that worked before.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use portreeve::config::{Config, Permissions, Quarantine, text_hash};
use portreeve::diagnostics::{Code, Diagnostic, render};
use portreeve::envoy::{ResourceKind, ResourceSet, render_resource};
use portreeve::hcl::Limits;
use portreeve::model::{Document, DocumentId, Origin, ServiceQuery, Span};
use portreeve::pipeline::{GatewayView, View};
use portreeve::snapshot::Snapshot;
use portreeve::status::diagnostics;
use portreeve::translate::Compiler;
use serde_json::Value;

use super::world;

pub const GATEWAY: &str = r#"gateway "edge" {
  listener "web" {
    port = 8080
  }

  listener "tls" {
    port     = 8443
    protocol = "https"

    tls { certificates = ["www"] }
  }
}

certificate "www" {
  vault_pki {
    mount       = "pki"
    role        = "edge"
    common_name = "shop.example.com"
  }
}
"#;

pub const SHOP: &str = r#"http_route "shop" {
  gateways  = ["edge"]
  hostnames = ["shop.example.com"]

  rule "api" {
    match { path_prefix = "/api" }

    backend "consul" "orders" {}
  }

  rule "pages" {
    backend "consul" "pages" {}
  }
}
"#;

const NEIGHBOUR: &str = r#"http_route "neighbour" {
  gateways  = ["edge"]
  listeners = ["web"]
  hostnames = ["neighbour.example.com"]

  rule "all" {
    backend "consul" "neighbour" {}
  }
}
"#;

/// What stays in service. Each is checked, not only said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stays {
    /// The whole document's last good version.
    LastGood,
    /// The whole document's last good version; of one that was never good, all but the certificate in question.
    LastGoodOrWithoutIt,
    /// All, as it is written: it is a warning.
    Everything,
    /// The rule `api` answers 503 with this reason; the document's other rules serve.
    ApiAnswers503(&'static str),
    /// The rule `api` serves, without the backend in question.
    ApiWithoutIt,
    /// The older document's; the younger one says that it lost.
    Older,
    /// Nothing of the route at the place that does not exist.
    NotAttached,
    /// The listener, without the certificate in question.
    ListenerWithoutIt,
    /// Every other listener; the one without a certificate is not opened.
    OtherListeners,
    /// Every other listener; the one of plain TCP is not opened.
    TcpClosed,
    /// The listener of plain TCP too, by the route that fits it.
    TcpOpen,
    /// The rule `api` has its backend, and Envoy no address of it.
    ApiWithoutAddress,
    /// What Envoy accepted last.
    LastAccepted,
    /// Nothing of the document: it says so.
    Nothing,
}

impl Stays {
    pub fn words(self) -> String {
        match self {
            Self::LastGood => {
                "the document's last good version; one that was never good: nothing of it".into()
            }
            Self::LastGoodOrWithoutIt => {
                "the document's last good version; one that was never good: all of it but the certificate"
                    .into()
            }
            Self::Everything => "everything, as written".into(),
            Self::ApiAnswers503(reason) => {
                format!("the rule answers 503 with `x-portreeve-reason: {reason}`; the other rules serve")
            }
            Self::ApiWithoutIt => "the rule, with its other backends".into(),
            Self::Older => "the older document's".into(),
            Self::ApiWithoutAddress => {
                "the rule answers 503 with `x-portreeve-reason: no-healthy-instance`; the other rules serve"
                    .into()
            }
            Self::NotAttached => "the route, where its gateway and listener exist".into(),
            Self::ListenerWithoutIt => "the listener, with its other certificates".into(),
            Self::OtherListeners => "every other listener; this one is not opened".into(),
            Self::TcpClosed => "every other listener; the port of this one is closed".into(),
            Self::TcpOpen => "the tcp listener, with the older or the fitting route".into(),
            Self::LastAccepted => "what Envoy last accepted of the document".into(),
            Self::Nothing => "nothing of it: its objects are gone, as after a delete".into(),
        }
    }
}

pub struct Case {
    /// The row's first column, and the snapshot's name.
    pub what: &'static str,
    /// `gateway`, `shop`, or a document beside them.
    pub document: &'static str,
    pub text: String,
    pub from_kv: bool,
    /// Watches that the text begins bring nothing.
    pub unanswered: bool,
    /// What else happens after the text was put.
    pub then: fn(&mut Snapshot),
    pub codes: &'static [Code],
    pub stays: Stays,
}

impl Case {
    pub fn new(what: &'static str, text: impl Into<String>, codes: &'static [Code], stays: Stays) -> Self {
        Self {
            what,
            document: "shop",
            text: text.into(),
            from_kv: false,
            unanswered: false,
            then: |_| {},
            codes,
            stays,
        }
    }

    pub fn in_document(mut self, document: &'static str) -> Self {
        self.document = document;
        self
    }

    pub fn put_in_kv(mut self) -> Self {
        self.from_kv = true;
        self
    }

    pub fn unanswered(mut self) -> Self {
        self.unanswered = true;
        self
    }

    pub fn then(mut self, then: fn(&mut Snapshot)) -> Self {
        self.then = then;
        self
    }

    fn bad_document(&self) -> Document {
        if self.from_kv {
            world::kv(&format!("portreeve/config/{}", self.document), 9, &self.text)
        } else {
            world::file(&format!("{}.hcl", self.document), &self.text)
        }
    }

    /// Plays the case and checks codes and outcome; returns what the operator reads.
    pub fn play(&self) -> String {
        let (before, snapshot) = self.world();
        let said = everything_said(&snapshot);
        let mut codes: Vec<Code> = said.iter().map(|diagnostic| diagnostic.code).collect();
        let mut expected = self.codes.to_vec();
        codes.sort();
        expected.sort();
        let shown = self.shown(&said);
        assert_eq!(codes, expected, "{}:\n{shown}", self.what);
        self.check(&before, &serving(&snapshot), &shown);
        match self.stays {
            Stays::LastGood => self.check_never_good(),
            Stays::LastGoodOrWithoutIt => self.check_without_certificate(),
            _ => {}
        }
        shown
    }

    pub fn said(&self) -> Vec<Diagnostic> {
        everything_said(&self.world().1)
    }

    /// What was served before, and the world after.
    fn world(&self) -> (Serving, Snapshot) {
        let mut snapshot = good_world();
        let before = serving(&snapshot);
        if self.from_kv {
            // The same document, so far good, in KV.
            let good = Document {
                text: if self.document == "gateway" { GATEWAY } else { SHOP }.into(),
                ..self.bad_document()
            };
            if matches!(self.document, "gateway" | "shop") {
                let removed = vec![DocumentId::File(format!("{}.hcl", self.document).into())];
                snapshot.apply(portreeve::model::Observation::Documents(
                    portreeve::model::DocumentsUpdate {
                        removed,
                        ..Default::default()
                    },
                ));
                world::put(&mut snapshot, [good]);
            }
        }
        world::put(&mut snapshot, [self.bad_document()]);
        (self.then)(&mut snapshot);
        if !self.unanswered {
            world::answer_all(&mut snapshot, "edge");
        }
        (before, snapshot)
    }

    fn shown(&self, said: &[Diagnostic]) -> String {
        let mut texts: BTreeMap<String, String> = BTreeMap::from([
            ("gateway.hcl".into(), GATEWAY.into()),
            ("shop.hcl".into(), SHOP.into()),
            ("neighbour.hcl".into(), NEIGHBOUR.into()),
        ]);
        let bad = self.bad_document();
        texts.insert(bad.id.to_string(), self.text.clone());
        said.iter()
            .map(|diagnostic| {
                let text = diagnostic
                    .origin
                    .as_ref()
                    .and_then(|origin| texts.get(origin.document.as_str()));
                render(diagnostic, text.map(String::as_str), false) + "\n"
            })
            .collect()
    }

    fn check(&self, before: &Serving, after: &Serving, shown: &str) {
        let what = self.what;
        assert_eq!(
            before.route("neighbour/all"),
            after.route("neighbour/all"),
            "{what}: harms its neighbour"
        );
        let same_api = before.route("shop/api") == after.route("shop/api");
        let same_pages = before.route("shop/pages") == after.route("shop/pages");
        match self.stays {
            Stays::LastGood | Stays::LastGoodOrWithoutIt => {
                assert_eq!(before, after, "{what}");
                assert!(
                    shown.contains("last good version stays"),
                    "{what} does not say what stays:\n{shown}"
                );
            }
            Stays::Everything | Stays::Older => assert!(same_api && same_pages, "{what}: {after:#?}"),
            Stays::LastAccepted => assert_eq!(before, after, "{what}"),
            Stays::ApiAnswers503(reason) => {
                assert!(same_pages, "{what}: harms the rule beside it: {after:#?}");
                let api = after.route("shop/api").unwrap();
                assert_eq!(api["direct_response"]["status"], 503, "{what}: {api:#}");
                let headers = api["response_headers_to_add"].to_string();
                assert!(headers.contains(reason), "{what}: {headers}");
            }
            Stays::ApiWithoutIt => {
                assert!(same_pages, "{what}: harms the rule beside it");
                let api = after.route("shop/api").unwrap();
                assert!(api["route"].is_object(), "{what}: {api:#}");
            }
            Stays::ApiWithoutAddress => {
                assert!(same_pages, "{what}: harms the rule beside it");
                let api = after.route("shop/api").unwrap();
                let cluster = api["route"]["cluster"].as_str().unwrap();
                assert!(
                    after.clusters.iter().any(|known| known == cluster),
                    "{what}: {after:#?}"
                );
                assert!(
                    after.addressless.iter().any(|known| known == cluster),
                    "{what}: {after:#?}"
                );
            }
            Stays::NotAttached => {}
            Stays::ListenerWithoutIt => assert_eq!(after.listeners, ["tls", "web"], "{what}"),
            Stays::OtherListeners => assert_eq!(after.listeners, ["web"], "{what}"),
            Stays::TcpClosed => {
                assert!(same_api && same_pages, "{what}");
                assert_eq!(after.listeners, ["tls", "web"], "{what}");
            }
            Stays::TcpOpen => {
                assert!(same_api && same_pages, "{what}");
                assert_eq!(after.listeners, ["lines", "tls", "web"], "{what}");
            }
            Stays::Nothing => assert_eq!(after.route("shop/api"), None, "{what}"),
        }
    }

    /// A document that was never good: the rest serves as if it were not there.
    fn check_never_good(&self) {
        let without = |bad: Option<Document>| serving(&self.never_good(bad));
        assert_eq!(without(None), without(Some(self.bad_document())), "{}", self.what);
    }

    /// Of the gateway's document: its other listener serves, with everything that is routed to it.
    fn check_without_certificate(&self) {
        let (before, _) = self.world();
        let snapshot = self.never_good(Some(self.bad_document()));
        let after = serving(&snapshot);
        assert_eq!(after.listeners, ["web"], "{}", self.what);
        for route in ["neighbour/all", "shop/api", "shop/pages"] {
            assert_eq!(before.route(route), after.route(route), "{}", self.what);
        }
        let said = everything_said(&snapshot);
        let shown = self.shown(&said);
        for code in self.codes {
            assert!(
                said.iter().any(|said| said.code == *code),
                "{}:\n{shown}",
                self.what
            );
        }
    }

    fn never_good(&self, bad: Option<Document>) -> Snapshot {
        let mut snapshot = strict_world();
        let rest = documents().into_iter().filter(|(name, _)| *name != self.document);
        world::put(&mut snapshot, rest.map(|(name, text)| file(name, text)));
        world::put(&mut snapshot, bad);
        world::answer_all(&mut snapshot, "edge");
        snapshot
    }
}

fn documents() -> Vec<(&'static str, &'static str)> {
    vec![("gateway", GATEWAY), ("shop", SHOP), ("neighbour", NEIGHBOUR)]
}

fn file(name: &str, text: &str) -> Document {
    world::file(&format!("{name}.hcl"), text)
}

/// What KV documents may reach is bounded, as a careful operator would.
fn strict_world() -> Snapshot {
    let mut permissions = Permissions {
        vault_paths: vec!["pki/sign/edge".into(), "secret/edge/".into()],
        nomad_variables: vec!["nomad/jobs/portreeve".into()],
        ..Permissions::default()
    };
    permissions.addresses.own = vec!["10.0.0.5:7482".parse().unwrap()];
    permissions.addresses.servers = vec!["127.0.0.1:8500".parse().unwrap()];
    Snapshot::new(Config::new(permissions, Limits::default()), Default::default())
        .serving_gateways(["edge".into()].into())
}

pub fn good_world() -> Snapshot {
    let mut snapshot = strict_world();
    world::put(
        &mut snapshot,
        documents().into_iter().map(|(name, text)| file(name, text)),
    );
    world::answer_all(&mut snapshot, "edge");
    assert_eq!(everything_said(&snapshot), [], "the good world is not good");
    for (name, _) in documents() {
        snapshot
            .config
            .confirm(&DocumentId::File(format!("{name}.hcl").into()));
    }
    snapshot
}

fn everything_said(snapshot: &Snapshot) -> Vec<Diagnostic> {
    said_by(snapshot, &["edge"], NOW)
}

/// What the CLI, the API, the log and the status keys say, of an agent that serves these gateways.
pub fn said_by(snapshot: &Snapshot, gateways: &[&str], now: u64) -> Vec<Diagnostic> {
    let gateways = gateways.iter().map(|name| GatewayView {
        name: (*name).into(),
        compiler: Compiler::compile(name, world::settings(), snapshot),
        published_at: None,
        waiting_for: Vec::new(),
        withheld: Vec::new(),
    });
    let view = View {
        gateways: gateways.collect(),
        snapshot: snapshot.clone(),
        revision: 0,
        stale: false,
    };
    diagnostics(&view, &[], UNIX_EPOCH + Duration::from_secs(now))
}

/// In the first half of every certificate's life.
pub const NOW: u64 = 1_000_000_000;

/// What Envoy is told, as far as the cases look at it.
#[derive(Debug, PartialEq)]
pub struct Serving {
    routes: BTreeMap<String, Value>,
    listeners: Vec<String>,
    clusters: Vec<String>,
    /// Clusters of discovered services, none of whose instances Envoy is told.
    addressless: Vec<String>,
}

impl Serving {
    fn route(&self, name: &str) -> Option<&Value> {
        self.routes.get(name)
    }
}

/// Of a host, or of the lists of its branches.
fn add_routes(shown: &Value, routes: &mut BTreeMap<String, Value>) {
    match shown {
        Value::Array(values) => values.iter().for_each(|value| add_routes(value, routes)),
        Value::Object(fields) => {
            for route in fields
                .get("routes")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                routes.insert(route["name"].as_str().unwrap().to_owned(), route.clone());
            }
            fields.values().for_each(|value| add_routes(value, routes));
        }
        _ => {}
    }
}

fn serving(snapshot: &Snapshot) -> Serving {
    let compiler = Compiler::compile("edge", world::settings(), snapshot);
    let set: &ResourceSet = compiler.resources();
    let mut routes = BTreeMap::new();
    for resource in set.of_kind(ResourceKind::ScopedRoute).values() {
        add_routes(&render_resource(resource), &mut routes);
    }
    let names = |kind| {
        set.of_kind(kind)
            .keys()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    Serving {
        routes,
        listeners: names(ResourceKind::Listener),
        clusters: names(ResourceKind::Cluster),
        addressless: set
            .of_kind(ResourceKind::Endpoint)
            .values()
            .filter(|resource| render_resource(resource)["endpoints"].is_null())
            .map(|resource| resource.name.to_string())
            .collect(),
    }
}

/// Envoy says no to the shop as it stands.
pub fn envoy_refuses(snapshot: &mut Snapshot) {
    let id = DocumentId::File("shop.hcl".into());
    let text = snapshot.config.document(&id).unwrap().document.text.clone();
    let said = Diagnostic::error(
        Code::EnvoyRejected,
        "Envoy refused the route \"shop/api\": no such thing",
    )
    .at(Origin {
        document: id.clone(),
        span: Span::default(),
        line: 1,
        column: 1,
    })
    .because("what Envoy last accepted of this document is back in service")
    .fix("change the document: it is tried again as soon as its text differs");
    let _ = snapshot.quarantine(Quarantine {
        document: id,
        text_hash: text_hash(&text),
        diagnostic: said,
        names: Default::default(),
        on_trial: false,
    });
}

pub fn service(name: &str) -> ServiceQuery {
    ServiceQuery::named(name)
}

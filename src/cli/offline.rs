//! The agent's own pure steps over given documents, with nobody to ask.
//!
//! What only a running system knows is taken as fine: services exist and have no instances yet, certificates are there
//! and valid for whatever their document says, gateways that no given document declares are assumed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::failure::Failure;
use crate::config::{Config, Gateway, Object, ObjectKind, Permissions, Protocol, RouteRef};
use crate::diagnostics::{Code, Diagnostic, Severity};
use crate::hcl::Limits;
use crate::model::mesh::{Chain, ChainQuery, Interest, MeshLeaf, MeshRoots};
use crate::model::{
    CertificateMaterial, CertificateQuery, CertificateUpdate, ChainUpdate, Document, DocumentId,
    DocumentsUpdate, MeshUpdate, Observation, ServiceUpdate,
};
use crate::pipeline::{GatewayView, View};
use crate::snapshot::Snapshot;
use crate::translate::{Compiler, Settings};

/// The document that declares what is assumed.
const ASSUMED: &str = "<assumed>";
const SOURCE: &str = "offline";

/// Given documents, taken as far as an agent without a network would take them.
pub struct Offline {
    pub view: View,
    unattached: Vec<Diagnostic>,
}

impl Offline {
    pub fn new(documents: Vec<Document>, permissions: Permissions) -> Self {
        // Which certificates a gateway may use that others serve is theirs to say.
        let elsewhere = Permissions {
            files: vec!["/".into()],
            vault_paths: vec!["*".into()],
            nomad_variables: vec!["*".into()],
            ..permissions.clone()
        };
        let elsewhere = permissions
            .gateways
            .is_some()
            .then(|| world(documents.clone(), elsewhere).0);
        let (snapshot, unattached) = world(documents, permissions);
        let judges = |gateway: &Gateway| snapshot.config.permissions().judges(&gateway.name);
        let gateways = snapshot
            .config
            .gateways()
            .map(|gateway| match &elsewhere {
                Some(elsewhere) if !judges(gateway) => view_of(elsewhere, gateway),
                _ => view_of(&snapshot, gateway),
            })
            .collect();
        let view = View {
            gateways,
            snapshot,
            revision: 0,
            stale: false,
        };
        Self { view, unattached }
    }

    /// What is wrong with the documents, whatever the services and certificates turn out to be.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let of_the_world = |diagnostic: &Diagnostic| {
            matches!(
                diagnostic.code,
                Code::UnknownService | Code::NoHealthyInstance | Code::NotYetKnown | Code::CertificateExpiry
            )
        };
        let mut all = self.view.diagnostics();
        // Whether a route hangs in the air was looked at before gateways were assumed.
        all.retain(|diagnostic| !of_the_world(diagnostic) && diagnostic.code != Code::NotAttached);
        all.extend(self.unattached.iter().cloned());
        all
    }

    /// The gateways that documents declare; where they declare none, those that routes name.
    pub fn gateways(&self) -> Vec<&Arc<Gateway>> {
        let all: Vec<_> = self.view.snapshot.config.gateways().collect();
        let declared: Vec<_> = all
            .iter()
            .copied()
            .filter(|gateway| !is_assumed(gateway))
            .collect();
        if declared.is_empty() { all } else { declared }
    }

    /// The one asked for, or the only one.
    pub fn gateway(&self, name: Option<&str>) -> anyhow::Result<&GatewayView> {
        let gateways = self.gateways();
        let known = gateways
            .iter()
            .map(|gateway| &*gateway.name)
            .collect::<Vec<_>>()
            .join(", ");
        let name = match (name, gateways.as_slice()) {
            (Some(name), _) => name,
            (None, [only]) => &only.name,
            (None, []) => return Err(Failure::new("no document declares or names a gateway").into()),
            (None, _) => {
                return Err(Failure::new("the documents have several gateways")
                    .fix(format!("say which with -gateway: {known}"))
                    .into());
            }
        };
        let mut views = self.view.gateways.iter();
        views.find(|gateway| *gateway.name == *name).ok_or_else(|| {
            Failure::new(format!("no document declares the gateway {name:?}"))
                .fix(format!("declared are: {known}"))
                .into()
        })
    }
}

/// What the documents make with nobody to ask, and the routes of theirs that hang in the air.
fn world(documents: Vec<Document>, permissions: Permissions) -> (Snapshot, Vec<Diagnostic>) {
    let mut snapshot = Snapshot::new(
        Config::new(permissions, Limits::default()),
        BTreeSet::from([SOURCE.into()]),
    );
    take(&mut snapshot, documents);
    // What only follows from a document's errors goes with them.
    let (mut unattached, _) = snapshot.config.unattached();
    if snapshot.config.gateways().next().is_none() {
        // A part of a tree: its gateways are declared elsewhere.
        for diagnostic in &mut unattached {
            diagnostic.severity = Severity::Warning;
        }
    }
    let assumed = assumed_gateways(&snapshot.config);
    take(&mut snapshot, assumed);
    answer_watches(&mut snapshot);
    (snapshot, unattached)
}

fn is_assumed(gateway: &Gateway) -> bool {
    gateway.origin.document.as_str() == ASSUMED
}

fn take(snapshot: &mut Snapshot, documents: Vec<Document>) {
    let mut update = DocumentsUpdate::from_source(SOURCE);
    update.changed = documents;
    update.complete = true;
    snapshot.apply(Observation::Documents(update));
}

fn view_of(snapshot: &Snapshot, gateway: &Gateway) -> GatewayView {
    GatewayView {
        name: gateway.name.clone(),
        compiler: compile(snapshot, gateway),
        published_at: None,
        waiting_for: Vec::new(),
        withheld: Vec::new(),
    }
}

fn compile(snapshot: &Snapshot, gateway: &Gateway) -> Compiler {
    let settings = Settings {
        bind_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        hold_pending: false,
        same_node: Default::default(),
    };
    Compiler::compile(&gateway.name, settings, snapshot)
}

/// One document with the gateways that routes name and nobody declares, so that their routes are looked at too.
fn assumed_gateways(config: &Config) -> Vec<Document> {
    let mut missing: BTreeMap<&str, BTreeMap<&str, Protocol>> = BTreeMap::new();
    let http = config.of_kind(ObjectKind::HttpRoute);
    let routes = http.chain(config.of_kind(ObjectKind::TcpRoute));
    for route in routes.filter_map(Object::route) {
        let protocol = match route {
            RouteRef::Http(_) => Protocol::Http,
            RouteRef::Tcp(_) => Protocol::Tcp,
        };
        let named = route
            .gateways()
            .iter()
            .filter(|(name, _)| config.gateway(name).is_none());
        for (name, _) in named {
            let listeners = missing.entry(name).or_default();
            let wanted = route.listeners().iter();
            for (listener, _) in wanted {
                listeners.entry(listener).or_insert(protocol);
            }
        }
    }
    let mut text = String::new();
    for (name, listeners) in &mut missing {
        // For http_routes that name no listener.
        if listeners.values().all(|protocol| *protocol != Protocol::Http) {
            let free = ["any", "any-http", "any-other"].into_iter();
            let free = free.filter(|name| !listeners.contains_key(name)).take(1);
            listeners.extend(free.map(|name| (name, Protocol::Http)).collect::<Vec<_>>());
        }
        let _ = writeln!(text, "gateway \"{name}\" {{");
        for (index, (listener, protocol)) in listeners.iter().enumerate() {
            let _ = writeln!(
                text,
                "  listener \"{listener}\" {{\n    port = {}\n    protocol = \"{}\"\n  }}",
                index + 1,
                protocol.as_str()
            );
        }
        text.push_str("}\n");
    }
    if text.is_empty() {
        return Vec::new();
    }
    vec![Document {
        id: DocumentId::File(ASSUMED.into()),
        text: text.into(),
        order: u64::MAX,
        version: 0,
    }]
}

fn answer_watches(snapshot: &mut Snapshot) {
    let gateways: Vec<Arc<Gateway>> = snapshot.config.gateways().cloned().collect();
    for gateway in gateways {
        let compiler = compile(snapshot, &gateway);
        // A chain's answer asks for more: the instances of its targets.
        for _ in 0..2 {
            for interest in compile(snapshot, &gateway).interests() {
                answer_watch(snapshot, interest);
            }
        }
        for query in &compiler.certificate_queries() {
            let material = placeholder(&snapshot.config, query);
            snapshot.apply(Observation::Certificate(CertificateUpdate {
                query: query.clone(),
                result: Ok(Arc::new(material)),
            }));
        }
    }
}

/// As if nobody were registered, and as if Consul's config entries said nothing of any service.
fn answer_watch(snapshot: &mut Snapshot, interest: Interest) {
    let all = match interest {
        Interest::Service(query) => vec![Observation::Service(ServiceUpdate {
            query,
            result: Ok(Arc::new([])),
        })],
        Interest::Chain(query) => vec![Observation::Chain(ChainUpdate {
            result: Ok(Arc::new(Chain::plain(&query))),
            query: ChainQuery::clone(&query),
        })],
        Interest::Mesh => {
            let leaf = MeshLeaf {
                service: "".into(),
                uri: "".into(),
                material: without_bytes(Vec::new()),
            };
            let roots = MeshRoots {
                trust_domain: "example.consul".into(),
                pem: "".into(),
                count: 0,
            };
            vec![
                Observation::Mesh(MeshUpdate::Roots(Ok(Arc::new(roots)))),
                Observation::Mesh(MeshUpdate::Leaf(Ok(Arc::new(leaf)))),
            ]
        }
        Interest::Intention(_) => Vec::new(),
    };
    for observation in all {
        snapshot.apply(observation);
    }
}

/// A certificate without bytes, for the names it will have, as far as a document says them.
fn placeholder(config: &Config, query: &CertificateQuery) -> CertificateMaterial {
    let mut names: Vec<Arc<str>> = match query {
        CertificateQuery::VaultPki {
            common_name,
            alt_names,
            ..
        } => std::iter::once(common_name).chain(alt_names).cloned().collect(),
        CertificateQuery::ClientCa(_) => Vec::new(),
        CertificateQuery::VaultKv { .. }
        | CertificateQuery::NomadVariable { .. }
        | CertificateQuery::File { .. } => {
            let routes = config
                .of_kind(ObjectKind::HttpRoute)
                .filter_map(|object| match object {
                    Object::HttpRoute(route) => Some(&route.hostnames),
                    _ => None,
                });
            routes.flatten().filter(|host| ***host != *"*").cloned().collect()
        }
    };
    names.sort();
    names.dedup();
    if names.is_empty() {
        names.push("certificate.invalid".into());
    }
    without_bytes(names)
}

fn without_bytes(names: Vec<Arc<str>>) -> CertificateMaterial {
    CertificateMaterial {
        chain: "".into(),
        private_key: None,
        serial: "".into(),
        names,
        not_before: 0,
        not_after: i64::MAX,
        crl: None,
    }
}

//! From what was read to what Envoy is told: resolved, compiled and rendered, over a small world that answers all it asks for.

use std::sync::{Arc, LazyLock};

use super::documents::with_text;
use super::{Target, world};
use crate::admin::{ExplainQuery, explain};
use crate::config::{Config, Exposure, Permissions};
use crate::envoy::{Resource, ResourceKind, render, render_resource};
use crate::hcl::Limits;
use crate::model::mesh::{Chain, ChainQuery, Intention, IntentionQuery, IntentionRule};
use crate::model::{ExposedUpdate, Instance, IntentionUpdate, Observation, OptIn, ServiceQuery};
use crate::snapshot::Snapshot;
use crate::translate::Compiler;

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "configuration",
        input: "documents, resolved and compiled into Envoy's configuration",
        run: |input| with_text(input, configuration),
    },
    Target {
        name: "explain_requests",
        input: "requests that are asked about, by API and command line",
        run: explained,
    },
    Target {
        name: "envoy_messages",
        input: "Envoy's messages, shown by the descriptors",
        run: messages,
    },
];

const EDGE: &str = r#"
gateway "edge" {
  listener "web" {
    port = 8080
  }
}
"#;

const MESHED: &str = r#"
gateway "edge" {
  listener "web" {
    port = 8080
  }
}

upstream "pets" {
  connect {}
}

http_route "pets" {
  gateways  = ["edge"]
  hostnames = ["pets.example.com"]

  rule "all" {
    backend "upstream" "pets" {}
  }
}
"#;

fn configuration(text: &str) {
    for document in [world::file("t.hcl", text), world::kv("config/t", 1, text)] {
        let mut snapshot = world::empty();
        world::put(&mut snapshot, [document]);
        let gateways: Vec<Arc<str>> = snapshot
            .config
            .gateways()
            .map(|gateway| gateway.name.clone())
            .collect();
        for gateway in gateways.iter().take(3) {
            world::answer_all(&mut snapshot, gateway);
            compile(&snapshot, gateway);
        }
    }
}

fn compile(snapshot: &Snapshot, gateway: &str) {
    let compiler = Compiler::compile(gateway, world::settings(), snapshot);
    render(compiler.resources());
    for problem in compiler.diagnostics().flat_map(|(_, problems)| problems.iter()) {
        assert!(!problem.message.is_empty());
    }
}

/// What the catalog says of a service that asks to be exposed.
pub(crate) fn exposed(instances: Vec<Instance>) {
    let exposure = Exposure {
        opt_in: OptIn {
            prefix: "portreeve".into(),
            metadata_of: vec!["orders".into()],
        },
        gateways: vec!["edge".into()],
        listeners: Vec::new(),
        default_host: Some("{service}.apps.example.com".into()),
        hostnames: vec!["*.apps.example.com".into(), "shop.example.com".into()],
        services: vec!["*".into()],
        required_tags: Vec::new(),
        policies: Vec::new(),
    };
    let permissions = Permissions {
        exposure: Some(Arc::new(exposure)),
        ..Permissions::default()
    };
    let mut snapshot = Snapshot::new(Config::new(permissions, Limits::default()), Default::default());
    world::put(&mut snapshot, [world::file("edge.hcl", EDGE)]);
    snapshot.apply(Observation::Exposed(ExposedUpdate {
        added: vec!["orders".into()],
        ..ExposedUpdate::default()
    }));
    world::answer_service(&mut snapshot, &ServiceQuery::named("orders"), instances);
    for host in snapshot
        .config
        .documents()
        .filter(|state| state.document.id.service().is_some())
        .flat_map(|state| state.in_service.iter())
        .flat_map(|parsed| parsed.objects.iter())
        .filter_map(|object| match object {
            crate::config::Object::HttpRoute(route) => Some(&route.hostnames),
            _ => None,
        })
        .flatten()
    {
        let below = host
            .strip_suffix(".apps.example.com")
            .is_some_and(|rest| !rest.is_empty());
        assert!(below || &**host == "shop.example.com", "{host:?} is not allowed");
    }
    compile(&snapshot, "edge");
}

/// A route to a service of the mesh, whose chain is this one.
pub(crate) fn through_chain(chain: Chain) {
    let mut snapshot = meshed();
    world::answer_chain(&mut snapshot, &chain_query(), chain);
    world::answer_all(&mut snapshot, "edge");
    compile(&snapshot, "edge");
    let gateway = snapshot.config.gateway("edge").expect("declared above");
    ask(&snapshot, gateway, "GET", "http://pets.example.com/a?b=c");
}

/// The same, where this rule says who may come in.
pub(crate) fn with_intention(by: Arc<str>, rule: IntentionRule) {
    let mut snapshot = meshed();
    world::answer_chain(&mut snapshot, &chain_query(), Chain::plain(&chain_query()));
    world::answer_all(&mut snapshot, "edge");
    let query = IntentionQuery {
        destination: "pets".into(),
        namespace: None,
        partition: None,
    };
    let intention = Intention {
        source: "edge-gw".into(),
        destination: query.destination.clone(),
        rule,
        by: Some(by),
    };
    snapshot.apply(Observation::Intention(IntentionUpdate {
        query,
        result: Ok(intention.into()),
    }));
    compile(&snapshot, "edge");
    let gateway = snapshot.config.gateway("edge").expect("declared above");
    for url in ["http://pets.example.com/api/x", "http://pets.example.com/"] {
        ask(&snapshot, gateway, "GET", url);
    }
}

fn meshed() -> Snapshot {
    let mut snapshot = world::empty();
    world::put(&mut snapshot, [world::file("pets.hcl", MESHED)]);
    snapshot
}

fn chain_query() -> ChainQuery {
    ChainQuery {
        service: "pets".into(),
        datacenter: None,
        namespace: None,
        partition: None,
    }
}

fn ask(snapshot: &Snapshot, gateway: &Arc<crate::config::Gateway>, method: &str, url: &str) {
    let query = ExplainQuery {
        method: method.into(),
        url: url.into(),
        headers: vec![("x-a".into(), "1".into())],
        gateway: None,
    };
    // An explanation, or what is wrong with the question.
    let _ = explain(snapshot, &[gateway], &query);
}

/// The whole of what documents can say of requests.
static ROUTES: LazyLock<Snapshot> = LazyLock::new(|| {
    let mut snapshot = world::empty();
    let text = include_str!("../../hcl-examples/features/matching.hcl");
    world::put(&mut snapshot, [world::file("t.hcl", text)]);
    world::answer_all(&mut snapshot, "edge");
    snapshot
});

fn explained(input: &[u8]) {
    let Ok(query) = serde_json::from_slice::<ExplainQuery>(input) else {
        return;
    };
    let gateways: Vec<_> = ROUTES.config.gateways().collect();
    if let Ok(explanations) = explain(&ROUTES, &gateways, &query) {
        serde_json::to_value(&explanations).expect("it can be written");
    }
}

/// Its first byte says as what.
fn messages(input: &[u8]) {
    let Some((kind, message)) = input.split_first() else {
        return;
    };
    let kind = ResourceKind::ALL[usize::from(*kind) % ResourceKind::ALL.len()];
    render_resource(&Resource::new(kind, "a".into(), message));
}

//! Which gateways of one agent a service that exposes itself is on: those it names, among those that the settings name.

use serde_json::json;

use crate::connect::until_said;
use crate::stack::{GATEWAY, Options, Stack, id, until};
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::consul::service;

/// One agent, one Envoy for each of its two gateways: `edge` at the stack's http port, `inner` at its https port.
struct Two {
    stack: Stack,
    edge: Client,
    inner: Client,
    backend: Backend,
}

impl Two {
    async fn start(catalog: &str) -> Two {
        let stack = Stack::start(Options {
            arguments: vec!["-gateway=edge", "-gateway=inner"],
            more: format!("\ncatalog {{\n  default_host = \"{{service}}.apps.example.com\"\n{catalog}}}\n"),
            ..Options::default()
        })
        .await;
        let inner = GATEWAY.replace("edge", "inner").replace("$HTTP", "$HTTPS");
        stack.put("gateways", &(GATEWAY.to_owned() + &inner)).await;
        Two {
            edge: Client::http(stack.http),
            inner: Client::http(stack.https),
            stack,
            backend: Backend::start("one").await,
        }
    }

    async fn register(&self, name: &str, tags: &[&str]) {
        let mut definition = service(name, &id(name, &self.backend), self.backend.port);
        definition["Tags"] = json!(tags);
        self.stack.consul.register(&definition).await;
    }
}

fn to(service: &str) -> Request {
    Request::get(&format!("{service}.apps.example.com"), "/")
}

async fn served(gateway: &Client, service: &str) {
    let what = format!("{service} to be there");
    until(gateway, &to(service), &what, |reply| {
        reply.backend() == Some("one")
    })
    .await;
}

/// To be asked once something later is there: then it is not merely late.
async fn absent(gateway: &Client, service: &str) {
    let reply = gateway.send(&to(service)).await.unwrap();
    assert_eq!(reply.status, 404, "{service}: {}", reply.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_on_the_gateways_that_it_names_and_on_no_other() {
    let two = Two::start("").await;
    two.register("orders", &["portreeve", "portreeve.gateways=inner"])
        .await;
    served(&two.inner, "orders").await;
    two.register("basket", &["portreeve", "portreeve.gateways=edge"])
        .await;
    served(&two.edge, "basket").await;
    two.register("pets", &["portreeve"]).await;
    two.register("bills", &["portreeve", "portreeve.gateways=inner,edge"])
        .await;
    for everywhere in ["pets", "bills"] {
        served(&two.edge, everywhere).await;
        served(&two.inner, everywhere).await;
    }
    absent(&two.edge, "orders").await;
    absent(&two.inner, "basket").await;

    // It moves when its tag does.
    two.register("orders", &["portreeve", "portreeve.gateways=edge"])
        .await;
    served(&two.edge, "orders").await;
    until(&two.inner, &to("orders"), "orders to be gone", |reply| {
        reply.status == 404
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_settings_say_which_gateways_services_may_choose() {
    let two = Two::start("  gateways     = [\"edge\"]\n").await;
    two.register("pets", &["portreeve"]).await;
    served(&two.edge, "pets").await;
    two.register("thief", &["portreeve", "portreeve.gateways=inner"])
        .await;
    until_said(&two.stack, r#"services may not choose the gateway \"inner\""#).await;
    two.register("orders", &["portreeve", "portreeve.gateways=edge"])
        .await;
    served(&two.edge, "orders").await;

    // A gateway that services may not choose serves documents alone.
    let document = "http_route \"own\" {\n  gateways  = [\"inner\"]\n  hostnames = [\"own.apps.example.com\"]\n\n  rule \"all\" {\n    backend \"consul\" \"pets\" {}\n  }\n}\n";
    two.stack.put("own", document).await;
    served(&two.inner, "own").await;
    for service in ["pets", "thief", "orders"] {
        absent(&two.inner, service).await;
    }
    absent(&two.edge, "thief").await;
    absent(&two.edge, "own").await;
}

//! Services that expose themselves by their tags, through the real Consul and Envoy.

use std::time::Duration;

use serde_json::{Value, json};

use crate::answering::AnsweringServer;
use crate::connect::until_said;
use crate::stack::{GATEWAY, Options, Stack, id, route, until};
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::consul::service;
use crate::support::load::Load;

const CATALOG: &str = r#"
catalog {
  default_host = "{service}.apps.example.com"
  hostnames    = ["*.apps.example.com", "shop.example.com"]
  metadata_of  = ["meta-*"]
}
"#;

pub fn options() -> Options {
    Options {
        more: CATALOG.to_owned(),
        ..Options::default()
    }
}

pub fn tagged(name: &str, backend: &Backend, tags: &[&str]) -> Value {
    let mut definition = service(name, &id(name, backend), backend.port);
    definition["Tags"] = json!(tags);
    definition
}

pub async fn backend_of(stack: &Stack, host: &str, name: &str) {
    let what = format!("{name} at {host}");
    stack
        .until(&Request::get(host, "/"), &what, |reply| {
            reply.backend() == Some(name)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_is_enough_and_its_end_is_the_end() {
    let stack = Stack::start(options()).await;
    stack.put("gateway", GATEWAY).await;
    let one = Backend::start("one").await;
    stack
        .consul
        .register(&tagged("orders", &one, &["portreeve.enable=true"]))
        .await;
    backend_of(&stack, "orders.apps.example.com", "one").await;

    let named = [
        "portreeve",
        "portreeve.host=shop.example.com",
        "portreeve.path=/api",
        "portreeve.strip_path=true",
    ];
    stack.consul.register(&tagged("orders", &one, &named)).await;
    let request = Request::get("shop.example.com", "/api/x");
    let reply = stack
        .until(&request, "the named host", |reply| reply.status == 200)
        .await;
    assert!(
        reply.text().contains("\"/x\""),
        "the prefix is stripped: {}",
        reply.text()
    );
    stack
        .until(
            &Request::get("orders.apps.example.com", "/"),
            "the default host to end",
            |reply| reply.status == 404,
        )
        .await;

    let mut by_meta = service("meta-orders", &id("meta-orders", &one), one.port);
    by_meta["Meta"] = json!({ "portreeve-enable": "true", "portreeve-host": "m.apps.example.com" });
    stack.consul.register(&by_meta).await;
    backend_of(&stack, "m.apps.example.com", "one").await;

    stack.deregister("orders", &one).await;
    stack
        .until(&request, "the route to go with its service", |reply| {
            reply.status == 404
        })
        .await;
}

/// The index that a request waits to change; None: it is answered at once.
fn waits_for(asked: &str) -> Option<u64> {
    let pairs = asked.split_once('?')?.1.split('&');
    let value = |name: &str| pairs.clone().find_map(|pair| pair.strip_prefix(name));
    let minutes = value("wait=")
        .and_then(|wait| wait.strip_suffix("ms"))
        .is_some_and(|wait| wait.parse::<u64>().unwrap() >= 60_000);
    assert_eq!(minutes, value("index=").is_some(), "{asked}");
    value("index=").map(|index| index.parse().unwrap())
}

/// How soon a service is reachable is in the benchmarks. Here is why: the question is there before the registration, and
/// Consul answers it because of that, not because some time is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_registration_is_told_by_the_queries_that_wait_for_it() {
    let asked_through = AnsweringServer::start_before_another().await;
    let stack = Stack::start(Options {
        consul_block: Some(format!("address = {:?}", asked_through.address)),
        ..options()
    })
    .await;
    asked_through.stand_before(stack.consul.address());
    stack.put("gateway", GATEWAY).await;
    let backend = Backend::start("one").await;
    for name in ["orders", "pets", "bills"] {
        stack
            .consul
            .register(&tagged(name, &backend, &["portreeve.enable=true"]))
            .await;
        backend_of(&stack, &format!("{name}.apps.example.com"), "one").await;
    }
    for (path, most) in [
        // A registration moves the index by its service and by its check.
        ("/v1/catalog/services", 1 + 2 * 3),
        ("/v1/health/service/pets", 1 + 2),
    ] {
        let asked = asked_through.asked(path);
        let indexes: Vec<Option<u64>> = asked.iter().map(|asked| waits_for(asked)).collect();
        assert_eq!(indexes[0], None, "{asked:#?}");
        assert!(indexes.is_sorted_by(|one, next| one < next), "{asked:#?}");
        assert!(indexes.len() <= 1 + most, "{asked:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_deploy_that_changes_tags_loses_nothing() {
    let stack = Stack::start(options()).await;
    stack.put("gateway", GATEWAY).await;
    let (old, new) = (Backend::start("old").await, Backend::start("new").await);
    let host = "portreeve.host=shop.example.com";
    stack
        .consul
        .register(&tagged("orders", &old, &["portreeve", host, "v1"]))
        .await;
    backend_of(&stack, "shop.example.com", "old").await;
    let load = Load::start(200, stack.client(), Request::get("shop.example.com", "/"));
    let other = [
        "portreeve",
        "portreeve.host=shop.example.com,next.apps.example.com",
        "v2",
    ];
    stack.consul.register(&tagged("orders", &new, &other)).await;
    backend_of(&stack, "next.apps.example.com", "new").await;
    backend_of(&stack, "shop.example.com", "old").await;
    stack.deregister("orders", &old).await;
    stack
        .until(
            &Request::get("shop.example.com", "/"),
            "the new one alone",
            |reply| reply.backend() == Some("new"),
        )
        .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    load.finish().await.assert_none_lost();
    backend_of(&stack, "next.apps.example.com", "new").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_holds_a_hostname_whatever_its_health_and_a_document_before_it() {
    let mut stack = Stack::start(options()).await;
    stack.put("gateway", GATEWAY).await;
    let (one, two, three) = (
        Backend::start("one").await,
        Backend::start("two").await,
        Backend::start("three").await,
    );
    let tags = ["portreeve", "portreeve.host=shop.example.com"];
    // By name the second comes first: only the order of registration decides.
    stack.consul.register(&tagged("zebra", &one, &tags)).await;
    backend_of(&stack, "shop.example.com", "one").await;
    stack.consul.register(&tagged("ant", &two, &tags)).await;
    let diagnostics = crate::support::wait_for("the clash to be reported", crate::stack::SOON, async || {
        let answer = stack.agent.api(hyper::Method::GET, "/v1/diagnostics", "").await?;
        let text = answer.text();
        anyhow::ensure!(text.contains("shadowed-rule"), "{text}");
        Ok(text)
    })
    .await;
    assert!(
        diagnostics.contains("catalog service ant") && diagnostics.contains("catalog service zebra"),
        "{diagnostics}"
    );
    let request = Request::get("shop.example.com", "/");
    for _ in 0..20 {
        let reply = stack.client().send(&request).await.unwrap();
        assert_eq!(reply.backend(), Some("one"));
    }
    stack
        .consul
        .set_check(&format!("service:{}", id("zebra", &one)), "critical")
        .await;
    stack
        .until(&request, "no healthy instance", |reply| reply.status == 503)
        .await;
    stack.register("three", &three).await;
    stack
        .put("shop", &route("shop", "shop.example.com", "three"))
        .await;
    backend_of(&stack, "shop.example.com", "three").await;
    stack.delete("shop").await;
    stack
        .until(&request, "the oldest again", |reply| reply.status == 503)
        .await;
    stack.deregister("zebra", &one).await;
    backend_of(&stack, "shop.example.com", "two").await;

    let mine = ["portreeve", "portreeve.host=admin.example.com"];
    stack.consul.register(&tagged("thief", &two, &mine)).await;
    let line = stack.agent.wait_for_log("services may not claim the host").await;
    assert!(
        line.contains("catalog service thief:2:1") && line.contains("hostnames"),
        "{line}"
    );
}

/// Whoever may register services is held to what the agent's settings say.
#[tokio::test(flavor = "multi_thread")]
async fn the_settings_bound_who_is_exposed_and_how() {
    let stack = Stack::start(Options {
        more: r#"
catalog {
  default_host  = "{service}.apps.example.com"
  services      = ["web-*"]
  required_tags = ["public"]
  policies      = ["standard"]
  listeners     = ["web"]
  tag_prefix    = "edge"
}
"#
        .to_owned(),
        ..Options::default()
    })
    .await;
    let one = Backend::start("one").await;
    let second = "  listener \"inner\" {\n    port = $HTTPS\n  }\n}\n";
    let gateway = format!("{}{second}", GATEWAY.trim_end().strip_suffix('}').unwrap());
    stack.put("gateway", &gateway).await;
    stack
        .put(
            "bundle",
            "policy \"standard\" {\n  response_headers {\n    set = { \"x-standard\" = \"yes\" }\n  }\n}\n",
        )
        .await;
    for (name, tags) in [
        ("billing", &["edge", "public"][..]),
        ("web-inside", &["edge"]),
        ("web-foreign", &["portreeve", "public"]),
        ("web-shop", &["edge", "public"]),
    ] {
        stack.consul.register(&tagged(name, &one, tags)).await;
    }
    let shop = Request::get("web-shop.apps.example.com", "/");
    stack
        .until(&shop, "the service that may, with the bundle", |reply| {
            reply.backend() == Some("one") && reply.header("x-standard") == Some("yes")
        })
        .await;
    until_said(&stack, r#"the service \"billing\" may not be exposed"#).await;
    until_said(
        &stack,
        r#"an instance of \"web-inside\" has not the tag \"public\""#,
    )
    .await;
    for name in ["billing", "web-inside", "web-foreign"] {
        let host = format!("{name}.apps.example.com");
        let reply = stack.client().send(&Request::get(&host, "/")).await.unwrap();
        assert_eq!(reply.status, 404, "{name}: {}", reply.text());
    }
    let elsewhere = Client::http(stack.https);
    until(
        &elsewhere,
        &shop,
        "the other listener has nothing of it",
        |reply| reply.status == 404,
    )
    .await;

    // What was lacking comes: only that was in the way.
    stack
        .consul
        .register(&tagged("web-inside", &one, &["edge", "public"]))
        .await;
    backend_of(&stack, "web-inside.apps.example.com", "one").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_protocol_that_a_service_names_is_spoken_to_it() {
    let stack = Stack::start(options()).await;
    stack.put("gateway", GATEWAY).await;
    let one = Backend::start("one").await;
    for (name, protocol, version) in [
        ("plain", "http", "HTTP/1.1"),
        ("second", "http2", "HTTP/2.0"),
        ("remote", "grpc", "HTTP/2.0"),
    ] {
        let protocol = format!("portreeve.protocol={protocol}");
        stack
            .consul
            .register(&tagged(name, &one, &["portreeve", &protocol]))
            .await;
        // The client speaks HTTP/1.1 whatever the service does.
        let request = Request::get(&format!("{name}.apps.example.com"), "/");
        let reply = stack
            .until(&request, name, |reply| reply.backend() == Some("one"))
            .await;
        assert_eq!(reply.json()["version"], version, "{name}");
    }
}

/// Another replica, or one that lost its disk, meets both at once: what it met first decides nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_a_past_finds_the_same_oldest() {
    let mut stack = Stack::start(options()).await;
    stack.put("gateway", GATEWAY).await;
    let (older, younger) = (Backend::start("older").await, Backend::start("younger").await);
    let host = "portreeve.host=shop.example.com";
    // By name the younger comes first. What it claims beside the clash tells that it was taken.
    let tags = ["portreeve", host];
    stack.consul.register(&tagged("zebra", &older, &tags)).await;
    backend_of(&stack, "shop.example.com", "older").await;
    let more = "portreeve.host=shop.example.com,ant.apps.example.com";
    stack
        .consul
        .register(&tagged("ant", &younger, &["portreeve", more]))
        .await;
    backend_of(&stack, "ant.apps.example.com", "younger").await;

    stack.agent.terminate();
    std::fs::remove_dir_all(&stack.data).unwrap();
    stack.agent.restart().await;
    backend_of(&stack, "ant.apps.example.com", "younger").await;
    backend_of(&stack, "shop.example.com", "older").await;
    until_said(&stack, "shadowed-rule").await;
    let request = Request::get("shop.example.com", "/");
    for _ in 0..20 {
        let reply = stack.client().send(&request).await.unwrap();
        assert_eq!(reply.backend(), Some("older"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_by_name_hold_and_unknown_ones_close_the_route() {
    let stack = Stack::start(options()).await;
    let one = Backend::start("one").await;
    stack.put("gateway", GATEWAY).await;
    stack
        .put(
            "bundle",
            "policy \"standard\" {\n  response_headers {\n    set = { \"x-standard\" = \"yes\" }\n  }\n}\n",
        )
        .await;
    let with = |policies: &str| {
        let policies = format!("portreeve.policies={policies}");
        tagged("orders", &one, &["portreeve", &policies])
    };
    let request = Request::get("orders.apps.example.com", "/");
    stack.consul.register(&with("standard")).await;
    stack
        .until(&request, "the bundle to hold", |reply| {
            reply.backend() == Some("one") && reply.header("x-standard") == Some("yes")
        })
        .await;
    // Whatever the bundle would have kept out is kept out.
    stack.consul.register(&with("standard,office-only")).await;
    stack
        .until(&request, "the route to close", |reply| reply.status == 503)
        .await;
    until_said(&stack, "office-only").await;
    stack
        .put(
            "office",
            "policy \"office-only\" {\n  client_ip {\n    allow = [\"127.0.0.1\"]\n  }\n}\n",
        )
        .await;
    stack
        .until(&request, "both bundles to hold", |reply| {
            reply.backend() == Some("one") && reply.header("x-standard") == Some("yes")
        })
        .await;
}

/// Whoever registers a service chooses its name, and Consul takes any.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_service_names_get_no_host_and_harm_nobody() {
    let stack = Stack::start(options()).await;
    stack.put("gateway", GATEWAY).await;
    let one = Backend::start("one").await;
    let long = "x".repeat(200);
    let names = [
        "a/b",
        "../../etc",
        "a b",
        "a?index=1&b",
        "ümlaut",
        "new\nline",
        "*",
        "%2e%2e",
        "a:80",
        "..",
        &*long,
    ];
    for (number, name) in names.iter().enumerate() {
        let mut definition = tagged(name, &one, &["portreeve"]);
        definition["ID"] = json!(format!("hostile-{number}"));
        stack.consul.register(&definition).await;
    }
    stack
        .consul
        .register(&tagged("orders", &one, &["portreeve"]))
        .await;
    backend_of(&stack, "orders.apps.example.com", "one").await;
    until_said(
        &stack,
        "and 10 others like it asks to be exposed, and that is no name here",
    )
    .await;
    let host = format!("{long}.apps.example.com");
    for host in ["a.apps.example.com", "new.apps.example.com", &host] {
        let reply = stack.client().send(&Request::get(host, "/")).await.unwrap();
        assert_eq!(reply.status, 404, "{host}");
    }

    // Nor when they go: what comes after them is seen.
    for number in 0..names.len() {
        stack.consul.deregister(&format!("hostile-{number}")).await;
    }
    stack
        .consul
        .register(&tagged("basket", &one, &["portreeve"]))
        .await;
    backend_of(&stack, "basket.apps.example.com", "one").await;
}

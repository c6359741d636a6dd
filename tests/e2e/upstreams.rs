//! What an `upstream` says of its instances: which serve, on which port, and how many requests at once.

use std::time::Duration;

use hyper::Method;
use serde_json::json;
use tokio::task::JoinSet;

use crate::answering::{Answer, AnsweringServer};
use crate::stack::{GATEWAY, Options, SOON, Stack, id, until};
use crate::support::agent::Agent;
use crate::support::backend::Backend;
use crate::support::client::{Client, Reply, Request};
use crate::support::consul::service;
use crate::support::ports::free_port;
use crate::support::{program, wait_for};

/// A host for each upstream.
fn upstream(name: &str, body: &str) -> String {
    format!(
        r#"
upstream "{name}" {{
{body}
}}

http_route "{name}" {{
  gateways  = ["edge"]
  hostnames = ["{name}.example.com"]

  rule "all" {{
    backend "upstream" "{name}" {{}}
  }}
}}
"#
    )
}

fn host(name: &str) -> Request {
    Request::get(&format!("{name}.example.com"), "/")
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_instances_that_an_upstream_takes_serve() {
    let stack = Stack::start(Options::default()).await;
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    for (backend, version, tags, health) in [
        (&one, "v1", ["stable", "web"], "passing"),
        (&two, "v2", ["canary", "web"], "warning"),
    ] {
        let mut definition = service("app", &id("app", backend), backend.port);
        definition["Meta"] = json!({ "version": version });
        definition["Tags"] = json!(tags);
        definition["Check"]["Status"] = health.into();
        stack.consul.register(&definition).await;
    }
    stack.put("gateway", GATEWAY).await;
    let consul = |more: &str| format!("  consul {{\n    service = \"app\"\n    {more}\n  }}");
    for (name, more) in [
        ("all", ""),
        ("passing", "only_passing = true"),
        ("filtered", r#"filter = "Service.Meta.version == v2""#),
        (
            "both",
            "only_passing = true\n    filter = \"Service.Meta.version == v2\"",
        ),
        ("nobody", r#"filter = "Service.Meta.version == v3""#),
        ("canary", r#"filter = "canary in Service.Tags""#),
        ("stable", r#"filter = "canary not in Service.Tags""#),
        (
            "narrow",
            r#"filter = "\"web\" in Service.Tags and Service.Meta.version == \"v1\"""#,
        ),
        ("untagged", r#"filter = "beta in Service.Tags""#),
    ] {
        stack.put(name, &upstream(name, &consul(more))).await;
    }
    let serves = async |name: &str, expected: &[&str]| {
        let first = |reply: &Reply| reply.status == 200;
        stack.until(&host(name), name, first).await;
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..30 {
            let reply = stack.client().send(&host(name)).await.unwrap();
            seen.insert(reply.backend().unwrap_or_default().to_owned());
        }
        assert!(seen.iter().eq(expected), "{name}: {seen:?}");
    };
    serves("all", &["one", "two"]).await;
    serves("passing", &["one"]).await;
    serves("filtered", &["two"]).await;
    serves("canary", &["two"]).await;
    serves("stable", &["one"]).await;
    serves("narrow", &["one"]).await;
    for name in ["both", "nobody", "untagged"] {
        let reply = stack.until(&host(name), name, |reply| reply.status == 503).await;
        assert_eq!(
            reply.header("x-portreeve-reason"),
            Some("no-healthy-instance"),
            "{name}"
        );
    }

    // A change of health or of what the filter looks at is followed.
    stack
        .consul
        .set_check(&format!("service:{}", id("app", &two)), "passing")
        .await;
    let is_two = |reply: &Reply| reply.backend() == Some("two");
    stack.until(&host("both"), "a passing check", is_two).await;
    stack.until(&host("passing"), "the other instance", is_two).await;
    let mut definition = service("app", &id("app", &one), one.port);
    definition["Meta"] = json!({ "version": "v3" });
    stack.consul.register(&definition).await;
    stack
        .until(&host("nobody"), "new metadata", |reply| {
            reply.backend() == Some("one")
        })
        .await;
}

/// Sends requests that the backend keeps for itself, until it has them all.
async fn occupy(stack: &Stack, backend: &Backend, name: &str, count: u64) -> JoinSet<()> {
    let (mut held, before) = (JoinSet::new(), backend.requests());
    for _ in 0..count {
        let (client, request) = (stack.client(), host(name).header("x-test-delay", "600000"));
        held.spawn(async move {
            client.send(&request).await.ok();
        });
    }
    wait_for("requests under way", SOON, async || {
        let arrived = backend.requests() - before;
        anyhow::ensure!(arrived == count, "{arrived} of {count}");
        Ok(())
    })
    .await;
    held
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_a_circuit_breakers_bounds_answers_503_at_once() {
    let stack = Stack::start(Options::default()).await;
    let backend = Backend::start("app").await;
    stack.register("app", &backend).await;
    stack.put("gateway", GATEWAY).await;
    let breaker = |bounds: &str| {
        format!("  circuit_breaker {{\n    {bounds}\n  }}\n  consul {{\n    service = \"app\"\n  }}")
    };
    let retrying = |name: &str, bounds: &str| {
        let retry = "  retry {\n    attempts = 2\n    on       = [\"5xx\"]\n  }\n\n  rule";
        upstream(name, &breaker(bounds)).replace("  rule", retry)
    };
    stack
        .put("requests", &upstream("requests", &breaker("max_requests = 2")))
        .await;
    let one_connection = "max_connections      = 1\n    max_pending_requests = 1";
    stack
        .put("pending", &upstream("pending", &breaker(one_connection)))
        .await;
    stack
        .put("retries", &retrying("retries", "max_retries = 10"))
        .await;
    stack
        .put("no-retries", &retrying("no-retries", "max_retries = 0"))
        .await;
    for name in ["requests", "pending", "retries", "no-retries"] {
        stack.until(&host(name), name, |reply| reply.status == 200).await;
    }
    let refused = |reply: Reply| {
        assert_eq!(
            (reply.status, reply.header("x-portreeve-reason")),
            (503, Some("circuit-breaker-open"))
        );
    };

    let before = backend.requests();
    let held = occupy(&stack, &backend, "requests", 2).await;
    refused(stack.client().send(&host("requests")).await.unwrap());
    assert_eq!(backend.requests(), before + 2, "it never left Envoy");
    // The bounds are one upstream's own, not its service's.
    let other = stack.client().send(&host("retries")).await.unwrap();
    assert_eq!(other.status, 200);
    drop(held);
    stack
        .until(&host("requests"), "room again", |reply| reply.status == 200)
        .await;

    // One on the connection, one that waits for it, one too many.
    let held = occupy(&stack, &backend, "pending", 1).await;
    let (client, request) = (stack.client(), host("pending"));
    let waiting = tokio::spawn(async move { client.send(&request).await });
    wait_for("a request that waits", SOON, async || {
        let waiting = stack
            .envoy()
            .stats(r"^cluster\.(.*pending.*)\.upstream_rq_pending_active$")
            .await;
        anyhow::ensure!(waiting.values().sum::<u64>() == 1, "{waiting:?}");
        Ok(())
    })
    .await;
    refused(stack.client().send(&host("pending")).await.unwrap());
    drop(held);
    let reply = waiting.await.unwrap().unwrap();
    assert_eq!(reply.status, 200, "the one that waited is served");

    for (name, tries) in [("retries", 3), ("no-retries", 1)] {
        let before = backend.requests();
        let request = host(name).header("x-test-status", "500");
        stack.client().send(&request).await.unwrap();
        assert_eq!(backend.requests(), before + tries, "{name}");
    }
}

/// Consul has them since 1.22: a backend plays that Consul, with the answer that its documentation shows.
#[tokio::test(flavor = "multi_thread")]
async fn a_named_port_is_where_requests_go() {
    let (http, admin) = (Backend::start("http").await, Backend::start("admin").await);
    let consul = AnsweringServer::start().await;
    // Its second instance is of a Consul without `Ports`.
    let instances = Answer::kept("health-service-multi-port")
        .with("10.0.0.1", "127.0.0.1")
        .with("\"port\":9000", &format!("\"port\":{}", admin.port))
        .with("\"port\":8080", &format!("\"port\":{}", http.port))
        .with("10.0.0.2", "127.0.0.1")
        .with("\"Port\":8081", &format!("\"Port\":{}", http.port));
    consul.put("/v1/health/service/web", instances);
    let port = free_port();
    let named = |name: &str| format!("  consul {{\n    service = \"web\"\n    port    = \"{name}\"\n  }}");
    let documents = GATEWAY.replace("$HTTP", &port.to_string())
        + &upstream("default", "  consul {\n    service = \"web\"\n  }")
        + &upstream("admin", &named("admin"))
        + &upstream("http", &named("http"))
        + &upstream("absent", &named("absent"));
    let launch = Agent::prepare();
    let file = launch.file("documents/all.hcl", &documents);
    let data = launch.directory().join("data");
    let tools = program("envoy").parent().unwrap().to_owned();
    let agent = launch
        .api_socket(data.join("api.sock"))
        .args(["agent", "-dev", "-dev-consul", "-config"])
        .arg(file.parent().unwrap())
        .arg(format!("-data-dir={}", data.display()))
        .env("CONSUL_HTTP_ADDR", &consul.address)
        .env("PATH", tools)
        .start();
    let client = Client::http(port);
    for (name, expected) in [("default", "http"), ("http", "http"), ("admin", "admin")] {
        until(&client, &host(name), name, |reply| {
            reply.backend() == Some(expected)
        })
        .await;
    }
    let reply = client.send(&host("absent")).await.unwrap();
    assert_eq!(
        (reply.status, reply.header("x-portreeve-reason")),
        (503, Some("no-healthy-instance"))
    );
    let status = agent.api(Method::GET, "/v1/status", "").await.unwrap().text();
    assert!(status.contains("absent"), "it says which port: {status}");
}

/// An instance closes what is idle, and a request may be on its way there then.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_closed_before_the_instance_closes_it() {
    let stack = Stack::start(Options::default()).await;
    let (brief, long) = (Backend::start("brief").await, Backend::start("long").await);
    stack.put("gateway", GATEWAY).await;
    for (backend, more) in [(&brief, "  idle_timeout = \"200ms\"\n"), (&long, "")] {
        let name = &backend.name;
        stack.register(name, backend).await;
        stack
            .put(name, &upstream(name, &format!("  consul {{}}\n{more}")))
            .await;
        let request = host(name);
        stack.until(&request, name, |reply| reply.status == 200).await;
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(stack.client().send(&request).await.unwrap().status, 200);
        }
    }
    assert!(brief.connections() >= 4, "{}", brief.connections());
    let workers = std::thread::available_parallelism().unwrap().get() as u64;
    assert!(long.connections() <= workers, "{}", long.connections());
}

/// `localhost` has an address of either family, and the instance listens on one: each is an instance to Envoy.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_name_with_both_families_one_is_used() {
    let stack = Stack::start(Options {
        kv_documents: Some("addresses = [\"localhost\"]\n  allow_loopback = true".to_owned()),
        ..Options::default()
    })
    .await;
    let backend = Backend::start("app").await;
    stack.put("gateway", GATEWAY).await;
    let dns = |more: &str| {
        format!(
            "  dns {{\n    address       = \"localhost:{}\"\n{more}  }}",
            backend.port
        )
    };
    let once = |name: &str, more: &str| {
        upstream(name, &dns(more)).replace("    backend", "    retry { attempts = 0 }\n    backend")
    };
    stack
        .put("both", &once("both", "    lookup_family = \"all\"\n"))
        .await;
    stack.put("plain", &once("plain", "")).await;
    stack
        .until(&host("plain"), "an instance", |reply| reply.status == 200)
        .await;
    let client = stack.client();
    for request in 0..40 {
        let reply = client.send(&host("plain")).await.unwrap();
        assert_eq!(reply.status, 200, "request {request}: {reply:?}");
    }
    stack
        .until(&host("both"), "the address where nobody listens", |reply| {
            reply.status == 503
        })
        .await;
}

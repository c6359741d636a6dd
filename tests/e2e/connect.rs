//! The gateway as a member of the mesh: Consul with ACLs that deny by default, its own proxy as the sidecar.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use crate::stack::{GATEWAY, Options, SOON, Stack, until};
use crate::support::backend::Backend;
use crate::support::client::{Reply, Request};
use crate::support::load::Load;
use crate::support::ports::free_port;
use crate::support::process::Process;
use crate::support::wait_for;

pub fn shipped(path: &str) -> String {
    std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Consul denies by default, and the gateway is a member of its mesh with exactly the policies that are shipped.
pub fn mesh_options() -> Options {
    Options {
        consul_policy: Some(shipped("docs/deploy/consul-acl-policy.hcl")),
        mesh_policy: Some(shipped("docs/deploy/consul-mesh-policy.hcl")),
        ..Options::default()
    }
}

pub async fn mesh_stack(gateway: &str) -> Stack {
    let stack = Stack::start(mesh_options()).await;
    stack.put("gateway", gateway).await;
    stack
}

/// An instance of a service and its sidecar.
pub struct Meshed {
    pub id: String,
    pub backend: Backend,
    /// Running while this lives.
    _sidecar: Process,
}

impl Meshed {
    pub async fn start(stack: &Stack, service: &str, name: &str, more: Value) -> Meshed {
        let backend = Backend::start(name).await;
        let id = format!("{service}-{name}");
        stack
            .consul
            .register_meshed(service, &id, backend.port, free_port(), more)
            .await;
        let sidecar = stack.consul.start_sidecar(&id);
        stack.consul.sidecar_passes(service, &id).await;
        Meshed {
            id,
            backend,
            _sidecar: sidecar,
        }
    }
}

pub async fn protocol(stack: &Stack, service: &str, protocol: &str) {
    let entry = json!({ "Kind": "service-defaults", "Name": service, "Protocol": protocol });
    stack.consul.config_entry(&entry).await;
}

pub fn document(host: &str, upstream: &str, more: &str) -> String {
    format!(
        r#"
upstream "{upstream}" {{
  connect {{}}
  {more}
}}

http_route "{upstream}" {{
  gateways  = ["edge"]
  hostnames = ["{host}"]

  rule "all" {{
    backend "upstream" "{upstream}" {{}}
  }}
}}
"#
    )
}

pub fn from(name: &str) -> impl Fn(&Reply) -> bool + '_ {
    move |reply| reply.status == 200 && reply.backend() == Some(name)
}

async fn problems(stack: &Stack) -> anyhow::Result<String> {
    let answer = stack.agent.api(Method::GET, "/v1/status", "").await?;
    Ok(answer.ok()?.json().to_string())
}

pub async fn until_said(stack: &Stack, text: &str) {
    wait_for(
        &format!("status to say {text:?}"),
        Duration::from_secs(60),
        async || {
            let said = problems(stack).await?;
            anyhow::ensure!(said.contains(text), "{said}");
            Ok(())
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_enters_the_mesh_and_intentions_are_known_beforehand() {
    let mut stack = mesh_stack(GATEWAY).await;
    protocol(&stack, "pets", "http").await;
    let pets = Meshed::start(&stack, "pets", "one", json!({})).await;
    let request = Request::get("pets.example.com", "/");
    stack.put("pets", &document("pets.example.com", "pets", "")).await;

    // Nobody allowed it yet, and the default is deny: said before anybody asks.
    until_said(&stack, "\"pets\\\" does not let").await;
    let id = stack.consul.intention("edge-gw", "pets", "allow").await;
    stack.until(&request, "the mesh to let us in", from("one")).await;
    wait_for(
        "status to say nothing more",
        Duration::from_secs(20),
        async || {
            let said = problems(&stack).await?;
            anyhow::ensure!(!said.contains("intention-denied"), "{said}");
            Ok(())
        },
    )
    .await;

    stack.consul.intention("edge-gw", "pets", "deny").await;
    let denied = format!("denied by intention edge-gw => pets (deny, precedence 9, id {id})");
    until_said(&stack, &denied).await;
    let line = stack.agent.wait_for_log(&denied).await;
    assert!(
        line.contains("intention-denied") && line.contains("-replace -allow edge-gw pets"),
        "{line}"
    );
    // New connections are refused by the sidecar.
    until(&stack.client(), &request, "the sidecar to refuse", |reply| {
        reply.status == 503
    })
    .await;
    let explained = stack
        .agent
        .api(
            Method::GET,
            "/v1/explain?gateway=edge&url=http://pets.example.com/",
            "",
        )
        .await
        .unwrap()
        .text();
    assert!(
        explained.contains("denied by intention edge-gw => pets"),
        "{explained}"
    );
    stack.consul.intention("edge-gw", "pets", "allow").await;
    stack
        .until(&request, "the mesh to let us in again", from("one"))
        .await;
    let line = stack
        .agent
        .wait_for_log(&format!(
            "in order again: \"pets\" does not let \"edge-gw\" in: {denied}"
        ))
        .await;
    assert!(line.contains("intention-denied"), "{line}");
    drop(pets);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_token_without_its_right_says_so() {
    let stack = Stack::start(Options {
        consul_policy: Some(shipped("docs/deploy/consul-acl-policy.hcl")),
        mesh_policy: Some("service \"other\" { policy = \"write\" }".to_owned()),
        ..Options::default()
    })
    .await;
    stack.put("gateway", GATEWAY).await;
    protocol(&stack, "pets", "http").await;
    stack.put("pets", &document("pets.example.com", "pets", "")).await;
    let request = Request::get("pets.example.com", "/");
    let reply = stack
        .until(&request, "an answer of the gateway's own", |reply| {
            reply.status == 503
        })
        .await;
    assert_eq!(reply.header("x-portreeve-reason"), Some("mesh-unavailable"));
    until_said(&stack, "service \\\"edge-gw\\\" { policy = \\\"write\\\" }").await;

    // The right comes, and with it the mesh.
    let one = Meshed::start(&stack, "pets", "one", json!({})).await;
    stack.consul.intention("edge-gw", "pets", "allow").await;
    stack
        .consul
        .change_policy("mesh", &shipped("docs/deploy/consul-mesh-policy.hcl"))
        .await;
    wait_for("the mesh", Duration::from_secs(90), async || {
        let reply = stack
            .client()
            .send(&request)
            .await
            .map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        anyhow::ensure!(from("one")(&reply), "{} {}", reply.status, reply.text());
        Ok(())
    })
    .await;
    drop(one);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_speaks_tcp_is_no_backend_of_http() {
    let stack = mesh_stack(GATEWAY).await;
    let pets = Meshed::start(&stack, "pets", "one", json!({})).await;
    stack.consul.intention("edge-gw", "pets", "allow").await;
    let (_plain, other) = stack.shop().await;
    stack.put("pets", &document("pets.example.com", "pets", "")).await;
    let request = Request::get("pets.example.com", "/");
    let reply = stack.until(&request, "503", |reply| reply.status == 503).await;
    assert_eq!(reply.header("x-portreeve-reason"), Some("protocol-mismatch"));
    until_said(&stack, "protocol-mismatch").await;
    // Nobody else's requests are the worse for it, nor are changes of theirs.
    let reply = stack.client().timeout(SOON).send(&other).await.unwrap();
    assert!(from("one")(&reply), "{} {}", reply.status, reply.text());
    stack
        .put(
            "later",
            &crate::stack::route("later", "later.example.com", "orders"),
        )
        .await;
    let later = Request::get("later.example.com", "/");
    stack.until(&later, "a route that came later", from("one")).await;
    // Said by whoever knows better than Consul.
    stack
        .put(
            "pets",
            &document("pets.example.com", "pets", "protocol = \"http\""),
        )
        .await;
    stack.until(&request, "the service", from("one")).await;
    drop(pets);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_ca_loses_nothing() {
    let stack = mesh_stack(GATEWAY).await;
    protocol(&stack, "pets", "http").await;
    let pets = Meshed::start(&stack, "pets", "one", json!({})).await;
    stack.consul.intention("edge-gw", "pets", "allow").await;
    stack.put("pets", &document("pets.example.com", "pets", "")).await;
    let request = Request::get("pets.example.com", "/");
    stack.until(&request, "the mesh", from("one")).await;

    let secret = async || -> anyhow::Result<String> {
        let dump = stack
            .envoy()
            .get("/config_dump?resource=dynamic_active_secrets")
            .await?;
        Ok(dump.ok()?.json().to_string())
    };
    let before = secret().await.unwrap();
    let load = Load::start(100, stack.client(), request.clone());
    stack.consul.rotate_ca().await;
    // Consul renews leafs within 30 s, so that not all ask at once.
    wait_for(
        "Envoy to hold another leaf and both roots",
        Duration::from_secs(60),
        async || {
            let now = secret().await?;
            let version = |text: &str, name: &str| {
                let at = text.find(&format!("\"name\":\"{name}\"")).unwrap_or(0);
                text[at..].chars().take(200).collect::<String>()
            };
            for name in ["mesh/leaf", "mesh/roots"] {
                anyhow::ensure!(
                    version(&now, name) != version(&before, name),
                    "{name} is as it was"
                );
            }
            Ok(())
        },
    )
    .await;
    // New connections with what came: to an instance whose certificate is of the new authority alone.
    let two = Meshed::start(&stack, "pets", "two", json!({})).await;
    stack
        .until(&request, "the instance that came later", from("two"))
        .await;
    let report = load.finish().await;
    println!("ca rotated: {report}");
    report.assert_none_lost();
    let log = stack.agent.process.log();
    assert!(!log.contains("PRIVATE KEY"), "a key in the log");
    drop((pets, two));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_chain_is_followed_under_load() {
    let stack = mesh_stack(GATEWAY).await;
    for service in ["pets", "admin"] {
        protocol(&stack, service, "http").await;
        stack.consul.intention("edge-gw", service, "allow").await;
    }
    let v1 = Meshed::start(
        &stack,
        "pets",
        "v1",
        json!({ "Meta": { "version": "v1" }, "Weights": { "Passing": 3, "Warning": 1 } }),
    )
    .await;
    let v2 = Meshed::start(&stack, "pets", "v2", json!({ "Meta": { "version": "v2" } })).await;
    let admin = Meshed::start(&stack, "admin", "admin", json!({})).await;
    stack.put("pets", &document("pets.example.com", "pets", "")).await;
    let request = Request::get("pets.example.com", "/");
    stack.until(&request, "v1", from("v1")).await;
    stack.until(&request, "v2", from("v2")).await;
    let load = Load::start(100, stack.client(), request.clone());

    // Subsets, then a split, then a router in front of it.
    stack
        .consul
        .config_entry(&json!({
            "Kind": "service-resolver", "Name": "pets", "DefaultSubset": "v1",
            "Subsets": { "v1": { "Filter": "Service.Meta.version == v1" }, "v2": { "Filter": "Service.Meta.version == v2" } },
        }))
        .await;
    settled_on(&stack, &request, &["v1"]).await;
    stack
        .consul
        .config_entry(&json!({
            "Kind": "service-splitter", "Name": "pets",
            "Splits": [{ "Weight": 50, "ServiceSubset": "v1" }, { "Weight": 50, "ServiceSubset": "v2" }],
        }))
        .await;
    settled_on(&stack, &request, &["v1", "v2"]).await;
    stack
        .consul
        .config_entry(&json!({
            "Kind": "service-router", "Name": "pets",
            "Routes": [
                { "Match": { "HTTP": { "PathPrefix": "/admin" } }, "Destination": { "Service": "admin", "PrefixRewrite": "/" } },
                { "Match": { "HTTP": { "Header": [{ "Name": "x-version", "Exact": "2" }] } }, "Destination": { "ServiceSubset": "v2" } },
            ],
        }))
        .await;
    let to_admin = Request::get("pets.example.com", "/admin/users?x=1");
    stack
        .until(&to_admin, "the router's first route", from("admin"))
        .await;
    only_normal_paths_arrive(&stack).await;
    let to_v2 = Request::get("pets.example.com", "/").header("x-version", "2");
    settled_on(&stack, &to_v2, &["v2"]).await;
    settled_on(&stack, &request, &["v1", "v2"]).await;
    // A redirect, and back to nothing.
    for kind in ["service-router", "service-splitter"] {
        stack
            .consul
            .expect(Method::DELETE, &format!("/v1/config/{kind}/pets"), "")
            .await;
    }
    stack
        .consul
        .config_entry(
            &json!({ "Kind": "service-resolver", "Name": "pets", "Redirect": { "Service": "admin" } }),
        )
        .await;
    settled_on(&stack, &request, &["admin"]).await;
    stack
        .consul
        .expect(Method::DELETE, "/v1/config/service-resolver/pets", "")
        .await;
    settled_on(&stack, &request, &["v1", "v2"]).await;
    let report = load.finish().await;
    println!("chain edited: {report}");
    report.assert_none_lost();
    drop((v1, v2, admin));
}

/// Of `/admin` the router makes `/`, as text: nothing that the destination's intentions would take for another path.
async fn only_normal_paths_arrive(stack: &Stack) {
    for (sent, name, arrived) in [
        ("/x/../a//b", None, "/a/b"),
        ("/x/%2e%2e/a/./b", None, "/a/b"),
        ("/admin/users", Some("admin"), "/users"),
        ("/a/../admin//users", Some("admin"), "/users"),
        ("/admin", Some("admin"), "/"),
        ("/administer", Some("admin"), "/ister"),
        ("/admin../users", Some("admin"), "/users"),
        ("/admin%2e./users", Some("admin"), "/users"),
    ] {
        let request = Request::get("pets.example.com", sent);
        let reply = stack.client().timeout(SOON).send(&request).await.unwrap();
        assert_eq!(reply.status, 200, "{sent} {}", reply.text());
        assert_eq!(reply.json()["path"], arrived, "{sent}");
        assert!(name.is_none_or(|name| reply.backend() == Some(name)), "{sent}");
    }
}

/// Exactly these answer, each of them at least once, in a row of requests.
async fn settled_on(stack: &Stack, request: &Request, names: &[&str]) {
    wait_for(&format!("answers of {names:?} alone"), SOON * 2, async || {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let reply = stack
                .client()
                .send(request)
                .await
                .map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
            anyhow::ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
            seen.extend(reply.backend().map(str::to_owned));
        }
        anyhow::ensure!(
            seen.iter().map(String::as_str).eq(names.iter().copied()),
            "{seen:?}"
        );
        Ok(())
    })
    .await;
    // For the load meanwhile.
    tokio::time::sleep(Duration::from_millis(700)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_falls_over_under_load() {
    let stack = mesh_stack(GATEWAY).await;
    for service in ["pets", "backup"] {
        protocol(&stack, service, "http").await;
        stack.consul.intention("edge-gw", service, "allow").await;
    }
    let pets = Meshed::start(&stack, "pets", "first", json!({})).await;
    let backup = Meshed::start(&stack, "backup", "second", json!({})).await;
    stack
        .consul
        .config_entry(&json!({ "Kind": "service-resolver", "Name": "pets", "Failover": { "*": { "Service": "backup" } } }))
        .await;
    stack.put("pets", &document("pets.example.com", "pets", "")).await;
    let request = Request::get("pets.example.com", "/");
    settled_on(&stack, &request, &["first"]).await;
    let load = Load::start(100, stack.client(), request.clone());
    // The instance's own check, not its sidecar's.
    stack
        .consul
        .set_check(&format!("service:{}", pets.id), "critical")
        .await;
    settled_on(&stack, &request, &["second"]).await;
    stack
        .consul
        .set_check(&format!("service:{}", pets.id), "passing")
        .await;
    settled_on(&stack, &request, &["first"]).await;
    let report = load.finish().await;
    println!("failed over and back: {report}");
    report.assert_none_lost();
    drop(backup);
}

#[tokio::test(flavor = "multi_thread")]
async fn backends_in_the_mesh_and_outside_share_a_rule() {
    let stack = mesh_stack(GATEWAY).await;
    protocol(&stack, "pets", "http").await;
    stack.consul.intention("edge-gw", "pets", "allow").await;
    let inside = Meshed::start(&stack, "pets", "inside", json!({})).await;
    let outside = Backend::start("outside").await;
    stack.register("plain", &outside).await;
    stack
        .put(
            "pets",
            r#"
upstream "pets" {
  connect {}
}

http_route "pets" {
  gateways  = ["edge"]
  hostnames = ["pets.example.com"]

  rule "all" {
    match { path_prefix = "/shop" }
    rewrite { path_prefix = "/" }

    backend "upstream" "pets" { weight = 1 }
    backend "consul" "plain" { weight = 1 }
  }
}
"#,
        )
        .await;
    let request = Request::get("pets.example.com", "/shop/x");
    settled_on(&stack, &request, &["inside", "outside"]).await;
    let reply = stack.client().send(&request).await.unwrap();
    assert_eq!(reply.json()["path"], "/x");
    drop(inside);
}

/// The registration of the gateway's own sidecar, which dials `pets` for whoever comes to this port.
pub fn own_sidecar(port: u16, upstreams: Value) -> Value {
    json!({ "Connect": { "SidecarService": { "Port": port, "Proxy": { "Upstreams": upstreams } } } })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_s_own_sidecar_dials_where_the_gateway_does_not() {
    let stack = mesh_stack(GATEWAY).await;
    protocol(&stack, "pets", "http").await;
    let pets = Meshed::start(&stack, "pets", "one", json!({})).await;
    stack.consul.intention("edge-gw", "pets", "allow").await;
    let through_it =
        document("pets.example.com", "pets", "").replace("connect {}", "connect { sidecar = true }");
    stack.put("pets", &through_it).await;
    let request = Request::get("pets.example.com", "/");

    // Nobody registered the sidecar.
    until_said(
        &stack,
        "register the gateway's sidecar \\\"edge-gw-sidecar-proxy\\\"",
    )
    .await;
    stack.until(&request, "503", |reply| reply.status == 503).await;

    let (inbound, local) = (free_port(), free_port());
    let dials = json!([{ "DestinationName": "pets", "LocalBindPort": local }]);
    stack
        .consul
        .register_meshed(
            "edge-gw",
            "edge-gw",
            free_port(),
            inbound,
            own_sidecar(inbound, dials),
        )
        .await;
    let sidecar = stack.consul.start_sidecar("edge-gw");
    // The registration is looked at every 5 s.
    let reached = async || {
        let reply = stack.client().send(&request).await;
        let reply = reply.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        anyhow::ensure!(from("one")(&reply), "{} {}", reply.status, reply.text());
        Ok(())
    };
    wait_for("the service, by the sidecar", Duration::from_secs(30), reached).await;
    let explained = stack
        .agent
        .api(
            Method::GET,
            "/v1/explain?gateway=edge&url=http://pets.example.com/",
            "",
        )
        .await
        .unwrap()
        .text();
    assert!(explained.contains(&format!("127.0.0.1:{local}")), "{explained}");

    // Another destination in its place: what is not dialed any more is told, not sent elsewhere.
    let elsewhere = json!([{ "DestinationName": "other", "LocalBindPort": local }]);
    stack
        .consul
        .register_meshed(
            "edge-gw",
            "edge-gw",
            free_port(),
            inbound,
            own_sidecar(inbound, elsewhere),
        )
        .await;
    until_said(&stack, "sidecar has no upstream for \\\"pets\\\"").await;
    stack.until(&request, "503", |reply| reply.status == 503).await;
    drop((pets, sidecar));
}

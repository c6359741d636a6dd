//! Connections passed on as they are: to the catalog, by weight, out of TLS, into the mesh.

use std::collections::BTreeSet;
use std::time::Duration;

use hyper::Method;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::connect::{mesh_stack, own_sidecar, until_said};
use crate::stack::{Options, SOON, Stack};
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::consul::service;
use crate::support::ports::free_port;
use crate::support::wait_for;

const GATEWAY: &str = r#"
gateway "edge" {
  listener "lines" {
    port     = $HTTP
    protocol = "tcp"
  }
}
"#;

/// A server that says its name, and then every line that it gets.
struct Lines {
    port: u16,
    tasks: JoinSet<()>,
}

impl Lines {
    async fn start(name: &'static str) -> Lines {
        Lines::on(0, name).await
    }

    async fn on(port: u16, name: &'static str) -> Lines {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let _ = stream.write_all(format!("{name}\n").as_bytes()).await;
                    let mut line = String::new();
                    while stream.read_line(&mut line).await.is_ok_and(|length| length > 0) {
                        if stream.write_all(line.as_bytes()).await.is_err() {
                            break;
                        }
                        line.clear();
                    }
                });
            }
        });
        Lines { port, tasks }
    }

    async fn register(&self, stack: &Stack, name: &str) {
        let id = format!("{name}-{}", self.port);
        stack.consul.register(&service(name, &id, self.port)).await;
        stack.consul.set_check(&format!("service:{id}"), "passing").await;
    }

    async fn health(&self, stack: &Stack, name: &str, health: &str) {
        let check = format!("service:{name}-{}", self.port);
        stack.consul.set_check(&check, health).await;
    }
}

/// A connection, and who is at its other end.
struct Open {
    stream: BufReader<TcpStream>,
    name: String,
}

impl Open {
    async fn to(port: u16) -> anyhow::Result<Open> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let mut stream = BufReader::new(stream);
        let mut name = String::new();
        tokio::time::timeout(Duration::from_secs(5), stream.read_line(&mut name)).await??;
        anyhow::ensure!(name.ends_with('\n'), "closed at once");
        Ok(Open {
            stream,
            name: name.trim().to_owned(),
        })
    }

    async fn says_back(&mut self, text: &str) -> anyhow::Result<()> {
        self.stream.write_all(format!("{text}\n").as_bytes()).await?;
        let mut line = String::new();
        tokio::time::timeout(Duration::from_secs(5), self.stream.read_line(&mut line)).await??;
        anyhow::ensure!(line.trim() == text, "{line:?} and not {text:?}");
        Ok(())
    }
}

impl Open {
    /// Waits until the other side ends it.
    async fn ends(&mut self) {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(SOON, self.stream.read_to_end(&mut rest)).await;
        // A reset is an end as well.
        let _ = ended.expect("the connection goes on");
        assert!(rest.is_empty(), "{rest:?}");
    }
}

async fn until_open(stack: &Stack, name: &str) -> Open {
    wait_for(&format!("a connection to {name}"), SOON, async || {
        let mut open = Open::to(stack.http).await?;
        anyhow::ensure!(open.name == name, "it is {}", open.name);
        open.says_back("ready").await?;
        Ok(open)
    })
    .await
}

async fn until_refused(stack: &Stack, what: &str) {
    wait_for(what, SOON, async || {
        match TcpStream::connect(("127.0.0.1", stack.http)).await {
            Ok(_) => anyhow::bail!("the port is open"),
            Err(_) => Ok(()),
        }
    })
    .await;
}

async fn explained(stack: &Stack) -> serde_json::Value {
    let url = format!("/v1/explain?url=tcp://127.0.0.1:{}", stack.http);
    let answer = stack.agent.api(Method::GET, &url, "").await.unwrap();
    answer.ok().unwrap().json()[0].clone()
}

async fn until_explained(stack: &Stack, verdict: &str) {
    wait_for(&format!("explain to say {verdict:?}"), SOON, async || {
        let said = explained(stack).await;
        anyhow::ensure!(said["intentions"].to_string().contains(verdict), "{said}");
        Ok(())
    })
    .await;
}

fn route(backends: &str) -> String {
    format!(
        "tcp_route \"lines\" {{\n  gateways  = [\"edge\"]\n  listeners = [\"lines\"]\n\n  {backends}\n}}\n"
    )
}

/// To the service `lines` of the mesh.
fn meshed() -> String {
    let to_upstream = route("backend \"upstream\" \"lines\" {}");
    format!("upstream \"lines\" {{\n  connect {{}}\n}}\n\n{to_upstream}")
}

async fn follows_catalog_and_documents(options: Options) {
    let stack = Stack::start(options).await;
    stack.put("gateway", GATEWAY).await;
    until_said(&stack, "no tcp_route names the listener \\\"lines\\\"").await;
    until_refused(&stack, "a listener without a route is not opened").await;

    let (one, two) = (Lines::start("one").await, Lines::start("two").await);
    one.register(&stack, "one").await;
    two.register(&stack, "two").await;
    stack.put("route", &route("backend \"consul\" \"one\" {}")).await;
    let mut kept = until_open(&stack, "one").await;
    let said = explained(&stack).await;
    assert_eq!(said["route"], "lines", "{said}");
    assert_eq!(
        said["endpoints"],
        json!([["consul/one", [format!("127.0.0.1:{}", one.port)]]]),
        "{said}"
    );

    // Another backend: connections from before go on where they are, also when the old cluster has gone.
    stack.put("route", &route("backend \"consul\" \"two\" {}")).await;
    until_open(&stack, "two").await;
    wait_for("the old cluster to go", SOON, async || {
        let clusters = stack.envoy().clusters().await.to_string();
        anyhow::ensure!(!clusters.contains("consul/one"), "{clusters}");
        Ok(())
    })
    .await;
    kept.says_back("still here").await.unwrap();

    // Nobody healthy: the port stays, and each connection is closed.
    let mut kept = until_open(&stack, "two").await;
    two.health(&stack, "two", "critical").await;
    wait_for("connections to be closed", SOON, async || {
        match Open::to(stack.http).await {
            Ok(open) => anyhow::bail!("{} took it", open.name),
            Err(_) => Ok(TcpStream::connect(("127.0.0.1", stack.http)).await?),
        }
    })
    .await;
    kept.says_back("not cut").await.unwrap();
    two.health(&stack, "two", "passing").await;
    until_open(&stack, "two").await;

    // A route that leads nowhere: said, and the port is closed.
    stack
        .put("route", &route("backend \"upstream\" \"tow\" {}"))
        .await;
    until_said(&stack, "no document declares the upstream \\\"tow\\\"").await;
    until_said(&stack, "has no usable backend and is not opened").await;
    until_refused(&stack, "the port to close").await;
    stack.put("route", &route("backend \"consul\" \"two\" {}")).await;
    until_open(&stack, "two").await;
    stack.delete("route").await;
    until_refused(&stack, "the port of a deleted route to close").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_follow_catalog_and_documents_delta() {
    follows_catalog_and_documents(Options::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_follow_catalog_and_documents_state_of_the_world() {
    follows_catalog_and_documents(Options {
        state_of_the_world: true,
        ..Options::default()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_share_connections_and_a_dead_instance_costs_none() {
    let stack = Stack::start(Options::default()).await;
    let (one, two) = (Lines::start("one").await, Lines::start("two").await);
    one.register(&stack, "one").await;
    two.register(&stack, "two").await;
    stack.put("gateway", GATEWAY).await;
    let backends = "connect_attempts = 10\n\n  backend \"consul\" \"one\" { weight = 75 }\n\n  \
                    backend \"consul\" \"two\" { weight = 25 }";
    stack.put("route", &route(backends)).await;
    wait_for("both", SOON, async || {
        let mut seen = BTreeSet::new();
        for _ in 0..40 {
            seen.insert(Open::to(stack.http).await?.name);
        }
        anyhow::ensure!(seen.len() == 2, "{seen:?}");
        Ok(())
    })
    .await;
    let mut of_two = 0;
    for _ in 0..400 {
        of_two += u32::from(Open::to(stack.http).await.unwrap().name == "two");
    }
    // Five standard deviations around 100.
    assert!((57..=143).contains(&of_two), "{of_two} of 400");

    // It takes no connection, and nobody has told the catalog: each try is dealt anew. The others have connections, so
    // that whoever balances by their number would rather take the dead one, and it is left out.
    let dead = Lines {
        port: free_port(),
        tasks: JoinSet::new(),
    };
    dead.register(&stack, "one").await;
    let address = format!("127.0.0.1:{}", dead.port);
    wait_for("the dead instance", SOON, async || {
        let said = explained(&stack).await;
        anyhow::ensure!(said["endpoints"].to_string().contains(&address), "{said}");
        anyhow::ensure!(
            stack
                .envoy()
                .clusters()
                .await
                .to_string()
                .contains(&dead.port.to_string())
        );
        Ok(())
    })
    .await;
    let mut open = Vec::new();
    let mut was_left_out = false;
    for _ in 0..100 {
        open.push(Open::to(stack.http).await.unwrap());
        was_left_out |= left_out(&stack, dead.port).await;
    }
    assert!(was_left_out);

    // An http_route beside it would have slow answers count as well.
    assert!(watched(&stack, "consul/one").await);
    let http = crate::stack::route("web", "shop.example.com", "one");
    let beside = GATEWAY.replace("  listener", "  listener \"web\" { port = $HTTPS }\n  listener");
    stack.put("gateway", &beside).await;
    stack.put("web", &http).await;
    wait_for("the shared cluster", SOON, async || {
        anyhow::ensure!(!watched(&stack, "consul/one").await && watched(&stack, "consul/two").await);
        Ok(())
    })
    .await;
    // The cluster is another one now.
    for connection in &mut open {
        connection.says_back("still here").await.unwrap();
    }
    drop((one.tasks, two.tasks));
}

/// A gateway whose port leads to the service `one`, and its instance.
async fn serving_one() -> (Stack, Lines) {
    let stack = Stack::start(Options::default()).await;
    let one = Lines::start("one").await;
    one.register(&stack, "one").await;
    stack.put("gateway", GATEWAY).await;
    stack.put("route", &route("backend \"consul\" \"one\" {}")).await;
    until_open(&stack, "one").await;
    (stack, one)
}

/// Envoy looks for instances of this cluster that refuse connections.
async fn watched(stack: &Stack, name: &str) -> bool {
    let dump = stack.envoy().config_dump().await;
    let configs = dump["configs"].as_array().unwrap().iter();
    let clusters =
        configs.flat_map(|config| config["dynamic_active_clusters"].as_array().into_iter().flatten());
    let mut named = clusters.filter(|known| known["cluster"]["name"] == name);
    named.next().expect(name)["cluster"]
        .get("outlier_detection")
        .is_some()
}

/// Envoy gives this instance no connections for the time being.
async fn left_out(stack: &Stack, port: u16) -> bool {
    let clusters = stack.envoy().clusters().await;
    let clusters = clusters["cluster_statuses"].as_array().unwrap().iter();
    let mut hosts = clusters.flat_map(|cluster| cluster["host_statuses"].as_array().into_iter().flatten());
    hosts.any(|host| {
        host["address"]["socket_address"]["port_value"] == port
            && host["health_status"]["failed_outlier_check"] == true
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_instance_is_never_left_out() {
    let (stack, mut one) = serving_one().await;
    assert!(watched(&stack, "consul/one").await);
    // It starts anew, and nobody has told the catalog.
    one.tasks.shutdown().await;
    for _ in 0..5 {
        assert!(Open::to(stack.http).await.is_err());
    }
    assert!(!left_out(&stack, one.port).await);
    let again = Lines::on(one.port, "again").await;
    assert_eq!(Open::to(stack.http).await.unwrap().name, "again");

    drop(again.tasks);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_left_out_serves_when_nobody_else_is_left() {
    let (stack, mut one) = serving_one().await;
    let other = Lines::start("other").await;
    other.register(&stack, "one").await;
    // Each time it is left out for longer, so that even a slow machine finds it so.
    for _ in 0..6 {
        other.health(&stack, "one", "passing").await;
        until_open(&stack, "other").await;
        one.tasks.shutdown().await;
        wait_for("the instance to be left out", SOON, async || {
            let _ = Open::to(stack.http).await;
            anyhow::ensure!(left_out(&stack, one.port).await);
            Ok(())
        })
        .await;
        one = Lines::on(one.port, "one").await;
        other.health(&stack, "one", "critical").await;
        wait_for("the other to go", SOON, async || {
            let clusters = stack.envoy().clusters().await.to_string();
            anyhow::ensure!(!clusters.contains(&other.port.to_string()));
            Ok(())
        })
        .await;
        let opened = Open::to(stack.http).await.map(|open| open.name);
        if left_out(&stack, one.port).await {
            assert_eq!(opened.unwrap(), "one");
            return;
        }
    }
    panic!("it never was left out for long enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_routes_of_one_listener_and_routes_of_another_protocol_are_told() {
    let (stack, _one) = serving_one().await;
    let two = Lines::start("two").await;
    two.register(&stack, "two").await;
    let second = route("backend \"consul\" \"two\" {}").replace("\"lines\" {", "\"second\" {");
    stack.put("a-second", &second).await;
    until_said(&stack, "the listener \\\"lines\\\" has a tcp_route already").await;
    until_open(&stack, "one").await;
    // It takes over when the other goes.
    stack.delete("route").await;
    until_open(&stack, "two").await;

    let http = crate::stack::route("web", "shop.example.com", "one")
        .replace("hostnames", "listeners = [\"lines\"]\n  hostnames");
    stack.put("web", &http).await;
    until_said(&stack, "speaks tcp, which is not for http_route").await;
    until_open(&stack, "two").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_ends_at_the_gateway_where_a_tcp_listener_has_certificates() {
    let stack = Stack::start(Options {
        vault: true,
        ..Options::default()
    })
    .await;
    // What it speaks inside of TLS does not matter; this one answers HTTP, so that a client of HTTPS is at home.
    let backend = Backend::start("one").await;
    stack.register("orders", &backend).await;
    let document = r#"
gateway "edge" {
  listener "lines" {
    port     = $HTTPS
    protocol = "tcp"
    tls { certificates = ["www"] }
  }
}

certificate "www" {
  vault_pki {
    mount       = "pki_int"
    role        = "edge"
    common_name = "www.example.com"
  }
}
"#;
    stack.put("gateway", document).await;
    stack
        .put("route", &route("backend \"consul\" \"orders\" {}"))
        .await;
    let client = stack.https_client().await;
    let request = Request::get("www.example.com", "/");
    crate::stack::until(&client, &request, "the backend", |reply| {
        reply.status == 200 && reply.backend() == Some("one")
    })
    .await;
    // Another name has no certificate here.
    let other = Request::get("other.example.com", "/");
    assert!(client.send(&other).await.is_err());
    let clear = Client::http(stack.https);
    assert!(clear.send(&request).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_service_of_the_mesh_is_reached_and_its_intentions_are_known() {
    let stack = mesh_stack(GATEWAY).await;
    let lines = Lines::start("one").await;
    let sidecar_port = free_port();
    stack
        .consul
        .register_meshed("lines", "lines-one", lines.port, sidecar_port, json!({}))
        .await;
    let _sidecar = stack.consul.start_sidecar("lines-one");
    stack.consul.sidecar_passes("lines", "lines-one").await;
    stack.put("route", &meshed()).await;
    until_said(&stack, "\"lines\\\" does not let").await;
    stack.consul.intention("edge-gw", "lines", "allow").await;
    let mut kept = until_open(&stack, "one").await;
    until_explained(&stack, "allowed").await;

    // The authority changes: connections go on, and new ones are let in.
    stack.consul.rotate_ca().await;
    for _ in 0..20 {
        until_open(&stack, "one").await;
        kept.says_back("through the rotation").await.unwrap();
    }
    stack.consul.intention("edge-gw", "lines", "deny").await;
    wait_for("the sidecar to refuse", SOON, async || {
        match Open::to(stack.http).await {
            Ok(open) => anyhow::bail!("{} took it", open.name),
            Err(_) => Ok(()),
        }
    })
    .await;
    until_explained(&stack, "denied by intention edge-gw => lines").await;
    // The denial holds for whoever was in, too.
    kept.ends().await;
    until_said(&stack, "has no usable backend and is not opened").await;
    stack.consul.intention("edge-gw", "lines", "allow").await;
    until_open(&stack, "one").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_router_is_not_followed_by_connections() {
    let stack = mesh_stack(GATEWAY).await;
    crate::connect::protocol(&stack, "lines", "http").await;
    let router = json!({ "Kind": "service-router", "Name": "lines", "Routes": [
        { "Match": { "HTTP": { "PathPrefix": "/admin" } }, "Destination": { "Service": "admin" } },
    ] });
    crate::connect::protocol(&stack, "admin", "http").await;
    stack.consul.config_entry(&router).await;
    stack.put("route", &meshed()).await;
    until_said(&stack, "a service router chooses by HTTP request").await;
    until_refused(&stack, "the port stays closed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_service_is_reached_through_the_gateway_s_own_sidecar() {
    let stack = mesh_stack(GATEWAY).await;
    let lines = Lines::start("one").await;
    stack
        .consul
        .register_meshed("lines", "lines-one", lines.port, free_port(), json!({}))
        .await;
    let _behind = stack.consul.start_sidecar("lines-one");
    stack.consul.sidecar_passes("lines", "lines-one").await;
    stack.consul.intention("edge-gw", "lines", "allow").await;
    let through_it = meshed().replace("connect {}", "connect { sidecar = true }");
    stack.put("route", &through_it).await;
    until_said(
        &stack,
        "register the gateway's sidecar \\\"edge-gw-sidecar-proxy\\\"",
    )
    .await;
    assert!(
        Open::to(stack.http).await.is_err(),
        "there is nobody to connect to"
    );

    let (inbound, local) = (free_port(), free_port());
    let dials = json!([{ "DestinationName": "lines", "LocalBindPort": local }]);
    let registration = own_sidecar(inbound, dials);
    stack
        .consul
        .register_meshed("edge-gw", "edge-gw", free_port(), inbound, registration)
        .await;
    let _own = stack.consul.start_sidecar("edge-gw");
    // Consul's agent is asked every 5 s who the sidecar dials.
    let mut kept = wait_for(
        "the service, by the sidecar",
        Duration::from_secs(60),
        async || {
            let mut open = Open::to(stack.http).await?;
            anyhow::ensure!(open.name == "one", "it is {}", open.name);
            open.says_back("ready").await?;
            Ok(open)
        },
    )
    .await;
    let said = explained(&stack).await;
    assert!(said.to_string().contains(&format!("127.0.0.1:{local}")), "{said}");
    kept.says_back("still here").await.unwrap();
}

//! Ports come and go with documents; of two gateways that want one, the older has it.

use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::Value;

use crate::stack::{GATEWAY, Options, SOON, Stack, route, until};
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::load::Load;
use crate::support::ports::free_port;
use crate::support::wait_for;

fn answers(gateway: &str) -> String {
    format!(
        "{}\nhttp_route \"{gateway}\" {{\n  gateways  = [\"{gateway}\"]\n  hostnames = [\"{gateway}.example.com\"]\n\n  rule \"all\" {{\n    direct_response {{\n      status = 200\n      body   = \"{gateway}\"\n    }}\n  }}\n}}\n",
        GATEWAY.replace("\"edge\"", &format!("{gateway:?}"))
    )
}

/// What is said of the clash. An Envoy may serve before the agent's API does.
async fn clash(stack: &Stack) -> anyhow::Result<Vec<Value>> {
    let status = stack.agent.api(Method::GET, "/v1/status", "").await?;
    let status: Value = status.ok()?.json();
    let all = status["diagnostics"].as_array().into_iter().flatten();
    Ok(all.filter(|said| said["code"] == "port-clash").cloned().collect())
}

async fn loser(stack: &Stack, expected: &str) {
    wait_for("a clash", SOON, async || {
        let said = clash(stack).await?;
        let [said] = &said[..] else {
            anyhow::bail!("{said:?}")
        };
        anyhow::ensure!(said["object"]["name"] == expected, "{said}");
        Ok(())
    })
    .await;
}

/// Every connection goes to the one that holds the port: with two Envoys on it the kernel would deal them out.
async fn only(stack: &Stack, holder: &str, other: &str) {
    let (ours, theirs) = (
        Request::get(&format!("{holder}.example.com"), "/"),
        Request::get(&format!("{other}.example.com"), "/"),
    );
    stack.until(&ours, holder, |reply| reply.text() == holder).await;
    stack.until(&theirs, other, |reply| reply.status == 404).await;
    for _ in 0..50 {
        assert_eq!(stack.client().send(&ours).await.unwrap().text(), holder);
        assert_eq!(stack.client().send(&theirs).await.unwrap().status, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_of_two_gateways_holds_a_port_and_the_other_is_told() {
    let mut stack = Stack::start(Options {
        arguments: vec!["-gateway=edge", "-gateway=inner"],
        ..Options::default()
    })
    .await;
    stack.put("zz-edge", &answers("edge")).await;
    stack
        .until(&Request::get("edge.example.com", "/"), "edge alone", |reply| {
            reply.text() == "edge"
        })
        .await;
    stack.put("inner", &answers("inner")).await;
    loser(&stack, "inner").await;
    let line = stack.agent.wait_for_log("both want port").await;
    println!("{}", line.trim());
    only(&stack, "edge", "inner").await;
    // The process of the other may still be starting.
    let status = wait_for("the agent to be ready: the other is open", SOON, async || {
        let status = stack.agent.api(Method::GET, "/v1/status", "").await?;
        let status: Value = status.ok()?.json();
        anyhow::ensure!(status["readiness"]["ready"] == true, "{status:#}");
        Ok(status)
    })
    .await;
    let mut listeners = status["listeners"].as_array().unwrap().iter();
    let closed = listeners.find(|listener| listener["gateway"] == "inner").unwrap();
    assert_eq!(closed["phase"], "withheld", "{closed}");
    let degraded = status["readiness"]["degraded"].to_string();
    assert!(degraded.contains("both want port"), "{degraded}");
    let path = "/v1/explain?gateway=inner&url=http%3A%2F%2Finner.example.com%2F";
    let explained = stack.agent.api(Method::GET, path, "").await.unwrap().text();
    assert!(
        explained.contains("the rule matches, but the listener"),
        "{explained}"
    );

    // The port goes to the other as soon as it is free, and is not given back.
    stack.delete("zz-edge").await;
    only(&stack, "inner", "edge").await;
    assert!(clash(&stack).await.unwrap().is_empty());
    stack.put("zz-edge", &answers("edge")).await;
    loser(&stack, "edge").await;
    only(&stack, "inner", "edge").await;
}

/// The gateway with a second listener.
fn with_more() -> String {
    GATEWAY.replace(
        "  }\n}\n",
        "  }\n\n  listener \"more\" {\n    port = $HTTPS\n  }\n}\n",
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_opens_and_closes_by_a_document_while_others_serve() {
    let stack = Stack::start(Options::default()).await;
    let (_backend, request) = stack.shop().await;
    let load = Load::start(100, stack.client(), request.clone());
    let more = with_more();
    let opened = Client::http(stack.https);
    for _ in 0..2 {
        stack.put("gateway", &more).await;
        until(&opened, &request, "the new port", |reply| reply.status == 200).await;
        stack.put("gateway", GATEWAY).await;
        until_closed(&opened, &request).await;
    }
    load.finish().await.assert_none_lost();
}

/// Whoever finds a new port open finds its hosts.
async fn opens_whole(state_of_the_world: bool) {
    let stack = Stack::start(Options {
        state_of_the_world,
        ..Options::default()
    })
    .await;
    let (_backend, request) = stack.shop().await;
    // Many of them: Envoy takes its time.
    let many: Vec<String> = (0..400)
        .map(|number| route(&format!("r{number}"), &format!("h{number}.example.com"), "orders"))
        .collect();
    stack.put("many", &many.concat()).await;
    let last = Request::get("h399.example.com", "/");
    stack
        .until(&last, "the last host", |reply| reply.status == 200)
        .await;
    let load = Load::start(100, stack.client(), request.clone());
    let more = with_more();
    let opened = Client::http(stack.https);
    for _ in 0..5 {
        stack.put("gateway", &more).await;
        let started = Instant::now();
        let first = loop {
            match opened.send(&last).await {
                Ok(reply) => break reply,
                Err(failure) if failure.kind() == "refused" => {}
                Err(failure) => panic!("{failure:?}"),
            }
            assert!(started.elapsed() < SOON, "it never opened");
        };
        assert_eq!(first.status, 200, "{first:?}");
        stack.put("gateway", GATEWAY).await;
        wait_for("the port to close", SOON, async || {
            let answer = opened.send(&last).await;
            anyhow::ensure!(answer.is_err(), "{answer:?}");
            Ok(())
        })
        .await;
    }
    load.finish().await.assert_none_lost();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_opens_with_all_its_hosts() {
    opens_whole(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_opens_with_all_its_hosts_in_the_state_of_the_world() {
    opens_whole(true).await;
}

/// The same where nobody has asked Consul yet for the service that a host leads to: the host waits for the answer, and so does
/// the port. A gateway that goes takes its watches with it, so that its ports open in the same way again.
async fn opens_with_hosts_of_new_services(state_of_the_world: bool) {
    let stack = Stack::start(Options {
        state_of_the_world,
        ..Options::default()
    })
    .await;
    let (_backend, shop) = stack.shop().await;
    let backend = Backend::start("late").await;
    stack.register("late", &backend).await;
    let late =
        route("late", "late.example.com", "late").replace("hostnames", "listeners = [\"more\"]\n  hostnames");
    stack.put("late", &late).await;
    let more = with_more();
    let (web, opened) = (stack.client(), Client::http(stack.https));
    let request = Request::get("late.example.com", "/");
    let load = Load::start(100, web.clone(), shop.clone());
    for _ in 0..8 {
        stack.put("gateway", &more).await;
        first_answer(&opened, &request, 200).await;
        stack.put("gateway", GATEWAY).await;
        until_closed(&opened, &request).await;
    }
    load.finish().await.assert_none_lost();
    for _ in 0..8 {
        stack.delete("gateway").await;
        until_closed(&web, &shop).await;
        until_closed(&opened, &request).await;
        stack.put("gateway", &more).await;
        tokio::join!(
            first_answer(&web, &shop, 200),
            first_answer(&opened, &request, 200)
        );
    }
}

/// A service that nobody answers for keeps no port closed.
#[tokio::test(flavor = "multi_thread")]
async fn a_port_opens_without_a_service_that_never_answers() {
    let stack = Stack::start(Options::default()).await;
    let (_backend, shop) = stack.shop().await;
    let elsewhere = route("away", "away.example.com", "away")
        .replace("hostnames", "listeners = [\"more\"]\n  hostnames")
        .replace("backend \"consul\"", "backend \"upstream\"")
        + "upstream \"away\" {\n  consul {\n    service    = \"away\"\n    datacenter = \"dc9\"\n  }\n}\n";
    stack.put("away", &elsewhere).await;
    stack.put("gateway", &with_more()).await;
    let opened = Client::http(stack.https);
    first_answer(&opened, &Request::get("away.example.com", "/"), 503).await;
    first_answer(&opened, &shop, 200).await;
}

/// Of the first connection that is taken, and of those right after it.
async fn first_answer(client: &Client, request: &Request, status: u16) {
    let (started, mut answered) = (Instant::now(), 0);
    while answered < 50 {
        match client.send(request).await {
            Ok(reply) => {
                assert_eq!(reply.status, status, "{answered} were answered before: {reply:?}");
                answered += 1;
            }
            Err(failure) if answered == 0 && failure.kind() == "refused" => {}
            Err(failure) => panic!("{failure:?}"),
        }
        assert!(started.elapsed() < SOON, "it never opened");
    }
}

async fn until_closed(client: &Client, request: &Request) {
    wait_for("the port to close", SOON, async || {
        let answer = client.send(request).await;
        anyhow::ensure!(
            answer.as_ref().is_err_and(|failure| failure.kind() == "refused"),
            "{answer:?}"
        );
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_opens_with_its_hosts_of_services_that_nobody_watched() {
    opens_with_hosts_of_new_services(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_opens_with_its_hosts_of_services_that_nobody_watched_in_the_state_of_the_world() {
    opens_with_hosts_of_new_services(true).await;
}

/// The listener in Envoy that new connections find.
async fn until_named(stack: &Stack, name: &str) {
    wait_for(&format!("the listener {name}"), SOON, async || {
        let listeners = stack.envoy().listeners().await.to_string();
        anyhow::ensure!(listeners.contains(&format!("\"{name}\"")), "{listeners}");
        Ok(())
    })
    .await;
}

/// The port goes from one listener to another and nothing else changes. Connections from before find what they found: nothing
/// of theirs is drained meanwhile.
async fn renamed(state_of_the_world: bool) {
    let mut stack = Stack::start(Options {
        state_of_the_world,
        drain_time: Some("10m"),
        ..Options::default()
    })
    .await;
    let (_backend, request) = stack.shop().await;
    let loads = [stack.client(), Client::http(stack.http).keep_alive()]
        .map(|client| Load::start(100, client, request.clone()));
    for name in ["public", "web", "other", "web"] {
        let gateway = GATEWAY.replace("\"web\"", &format!("{name:?}"));
        stack.put("gateway", &gateway).await;
        until_named(&stack, name).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // The same while nobody is there to tell Envoy. Of what it has, an Envoy that speaks the state of the world says no more
    // than a number: what it is told first replaces all of a kind.
    if !state_of_the_world {
        stack.agent.kill();
        stack
            .put("gateway", &GATEWAY.replace("\"web\"", "\"last\""))
            .await;
        stack.agent.process.start_again();
        until_named(&stack, "last").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    for load in loads {
        let report = load.finish().await;
        println!("{report}");
        report.assert_none_lost();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_by_another_name_loses_no_request() {
    renamed(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_by_another_name_loses_no_request_in_the_state_of_the_world() {
    renamed(true).await;
}

/// Each listener takes over from the one before, and brings a cluster that Envoy does not have yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_goes_to_a_listener_with_a_new_cluster_refuses_nobody() {
    let stack = Stack::start(Options {
        drain_time: Some("10m"),
        ..Options::default()
    })
    .await;
    let backend = Backend::start("one").await;
    let passes_on = |number: usize| {
        format!(
            "gateway \"edge\" {{\n  listener \"lines{number}\" {{\n    port     = $HTTP\n    protocol = \"tcp\"\n  }}\n}}\n\n\
             tcp_route \"lines\" {{\n  gateways  = [\"edge\"]\n  listeners = [\"lines{number}\"]\n\n  backend \"upstream\" \"fixed{number}\" {{}}\n}}\n\n\
             upstream \"fixed{number}\" {{\n  static {{ addresses = [\"{}\"] }}\n}}\n",
            backend.address()
        )
    };
    stack.put("gateway", &passes_on(0)).await;
    let request = Request::get("any.example.com", "/");
    stack
        .until(&request, "the first", |reply| reply.status == 200)
        .await;
    let loads = [stack.client(), Client::http(stack.http).keep_alive()]
        .map(|client| Load::start(400, client, request.clone()));
    for number in 1..=10 {
        stack.put("gateway", &passes_on(number)).await;
        until_named(&stack, &format!("lines{number}")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for load in loads {
        load.finish().await.assert_none_lost();
    }
}

/// Its filter chain is another one then: who is connected to the one before has the drain time.
#[tokio::test(flavor = "multi_thread")]
async fn an_edit_of_a_listener_leaves_running_requests_the_drain_time() {
    let stack = Stack::start(Options {
        drain_time: Some("4s"),
        ..Options::default()
    })
    .await;
    let (_backend, shop) = stack.shop().await;
    let lasting = |millis: u64| {
        let (client, request) = (stack.client().timeout(SOON * 2), shop.clone());
        let request = request.header("x-test-delay", &millis.to_string());
        tokio::spawn(async move { client.send(&request).await.map(|reply| reply.status) })
    };
    let load = Load::start(100, stack.client(), shop.clone());
    let (brief, long) = (lasting(2_500), lasting(15_000));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let edited = GATEWAY.replace("port = $HTTP", "port         = $HTTP\n    idle_timeout = \"30m\"");
    assert_ne!(edited, GATEWAY);
    stack.put("gateway", &edited).await;
    assert_eq!(brief.await.unwrap().unwrap(), 200, "within the drain time");
    assert!(long.await.unwrap().is_err(), "longer than that");
    load.finish().await.assert_none_lost();
}

/// Three ports, and what the listeners there are like.
struct Board {
    stack: Stack,
    ports: [u16; 3],
    hostname: &'static str,
    /// The authority of their certificate, where they have one.
    root: Option<String>,
}

/// The name of a listener, and what its only host answers.
type Place = Option<(&'static str, &'static str)>;

impl Board {
    async fn start(hostname: &'static str, state_of_the_world: bool, vault: bool) -> Self {
        let stack = Stack::start(Options {
            state_of_the_world,
            vault,
            ..Options::default()
        })
        .await;
        let root = match &stack.vault {
            Some(vault) => {
                let root = vault.read("pki_int/cert/ca").await;
                Some(root["data"]["certificate"].as_str().expect("a root").to_owned())
            }
            None => None,
        };
        Self {
            ports: [stack.http, stack.https, free_port()],
            stack,
            hostname,
            root,
        }
    }

    fn text(&self, places: [Place; 3]) -> String {
        let secure = match self.root {
            Some(_) => "\n    protocol = \"https\"\n    tls { certificates = [\"www\"] }",
            None => "",
        };
        let (mut listeners, mut routes) = (String::new(), String::new());
        let present = self.ports.iter().zip(places);
        for (port, (name, body)) in present.filter_map(|(port, place)| Some((port, place?))) {
            listeners += &format!("  listener {name:?} {{\n    port = {port}{secure}\n  }}\n");
            let rule = format!("direct_response {{\n      status = 200\n      body   = {body:?}\n    }}");
            routes += &format!(
                "\nhttp_route {body:?} {{\n  gateways  = [\"edge\"]\n  listeners = [{name:?}]\n  hostnames = [{:?}]\n\n  \
                 rule \"all\" {{\n    {rule}\n  }}\n}}\n",
                self.hostname
            );
        }
        format!("gateway \"edge\" {{\n{listeners}}}\n{routes}")
    }

    fn client(&self, port: u16) -> Client {
        match &self.root {
            Some(root) => Client::https(port, root),
            None => Client::http(port),
        }
    }

    async fn becomes(&self, places: [Place; 3]) {
        let request = Request::get("www.example.com", "/");
        self.stack.put("gateway", &self.text(places)).await;
        for (port, place) in self.ports.iter().zip(places) {
            let client = self.client(*port);
            let Some((name, body)) = place else {
                until_closed(&client, &request).await;
                continue;
            };
            let what = format!("{name} to answer {body}");
            until(&client, &request, &what, |reply| reply.text() == body).await;
        }
        let told = self.stack.agent.api(Method::GET, "/v1/diagnostics", "").await;
        let told = told.unwrap().text();
        assert!(!told.contains("envoy-rejected"), "{places:?}: {told}");
    }
}

/// Listeners that take each other's ports in one change, whatever their names.
async fn exchanged(board: Board) {
    if board.root.is_some() {
        let certificate = "certificate \"www\" {\n  vault_pki {\n    mount       = \"pki_int\"\n    role        = \"edge\"\n    \
                           common_name = \"www.example.com\"\n  }\n}\n";
        board.stack.put("certificate", certificate).await;
    }
    let [a, b, c] = ["a", "b", "c"].map(|name| Some((name, name)));
    // One after the other: the port between them is open all the time.
    board.becomes([a, b, None]).await;
    let load = Load::start(
        100,
        board.client(board.ports[1]),
        Request::get("www.example.com", "/"),
    );
    for places in [[None, a, b], [a, b, None], [None, a, c], [a, c, None]] {
        board.becomes(places).await;
    }
    load.finish().await.assert_none_lost();
    // In a circle.
    for places in [[a, b, c], [b, a, c], [a, b, c], [c, a, b], [a, b, c], [b, c, a]] {
        board.becomes(places).await;
    }
    // They exchange their names, and their routes go with them.
    board
        .becomes([Some(("a", "b")), Some(("b", "c")), Some(("c", "a"))])
        .await;
    board.becomes([Some(("c", "b")), Some(("a", "c")), None]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_take_each_other_s_ports() {
    exchanged(Board::start("www.example.com", false, false).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_take_each_other_s_ports_in_the_state_of_the_world() {
    exchanged(Board::start("www.example.com", true, false).await).await;
}

/// Envoy waits for their table before they open.
#[tokio::test(flavor = "multi_thread")]
async fn listeners_with_tables_take_each_other_s_ports() {
    exchanged(Board::start("*.example.com", false, false).await).await;
}

/// And for their certificate.
#[tokio::test(flavor = "multi_thread")]
async fn listeners_with_certificates_take_each_other_s_ports() {
    exchanged(Board::start("www.example.com", false, true).await).await;
}

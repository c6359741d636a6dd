//! What a return brings and does not bring, and who may not ask.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use portreeve::envoy::ResourceKind;

use crate::stack::{Options, SOON, Stack, route, secure, until};
use crate::support::backend::Backend;
use crate::support::client::Request;
use crate::support::load::Load;
use crate::support::wait_for;

/// Everything Envoy counts when it takes up configuration, of whatever kind.
async fn updates(stack: &Stack) -> BTreeMap<String, u64> {
    let counters = stack
        .envoy()
        .stats(r"(update_success|update_rejected|config_reload|load_success|listener_(added|modified|in_place_updated)|cluster_(added|modified|updated)|ssl_context_update_by_sds)$")
        .await;
    // The static cluster that carries xDS is none of it.
    counters
        .into_iter()
        .filter(|(name, _)| !name.contains("portreeve_xds"))
        .collect()
}

async fn a_return_sends_nothing_again(options: Options) {
    let mut stack = Stack::start(Options {
        vault: true,
        ..options
    })
    .await;
    let backend = Backend::start("one").await;
    stack.register("orders", &backend).await;
    // One resource of each kind.
    let bounded = secure("backend \"consul\" \"orders\" {}").replace(
        "port = $HTTP\n",
        "port            = $HTTP\n    max_connections = 1000\n",
    );
    stack.put("www", &bounded).await;
    let client = stack.https_client().await;
    let request = Request::get("www.example.com", "/");
    until(&client, &request, "https", |reply| reply.status == 200).await;
    stack.until(&request, "http", |reply| reply.status == 200).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = updates(&stack).await;
    assert!(before.values().sum::<u64>() >= 6, "{before:#?}");

    for _ in 0..2 {
        stack.agent.kill();
        let start = stack.agent.process.log_length();
        stack.agent.process.start_again();
        stack
            .agent
            .process
            .wait_for_log_after(start, "Envoy connected", SOON)
            .await;
        // All that it has to say it has said by now: the watches have answered, and Envoy acknowledged.
        wait_for("the agent to be settled", SOON, async || {
            let status = stack
                .agent
                .api(hyper::Method::GET, "/v1/status", "")
                .await?
                .ok()?
                .json();
            let programmed = &status["gateways"][0]["programmed"];
            anyhow::ensure!(
                programmed["acknowledged"] == 1 && status["readiness"]["ready"] == true,
                "{status:#}"
            );
            Ok(())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(
            updates(&stack).await,
            before,
            "something unchanged was sent again"
        );
    }

    // The counters do move.
    stack
        .put("shop", &route("shop", "shop.example.com", "orders"))
        .await;
    let shop = Request::get("shop.example.com", "/");
    stack.until(&shop, "a change", |reply| reply.status == 200).await;
    assert_ne!(updates(&stack).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_returns_sends_nothing_again_delta() {
    a_return_sends_nothing_again(Options::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_returns_sends_nothing_again_state_of_the_world() {
    a_return_sends_nothing_again(Options {
        state_of_the_world: true,
        ..Options::default()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_told_to_leave_its_envoy_leaves_it_and_the_next_takes_it_over() {
    let mut stack = Stack::start(Options {
        leave_envoy: true,
        ..Options::default()
    })
    .await;
    let (_backend, shop) = stack.shop().await;
    let envoy = stack.envoy_pid();
    let load = Load::start(100, stack.client(), shop.clone());
    stack.agent.terminate();
    let log = stack.agent.process.log();
    assert!(log.contains("leaving Envoy running"), "{log}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = stack.agent.process.log_length();
    stack.agent.process.start_again();
    stack
        .agent
        .process
        .wait_for_log_after(start, "Envoy connected", SOON)
        .await;
    let two = Backend::start("two").await;
    stack.register("orders", &two).await;
    stack
        .until(&shop, "changes to flow", |reply| reply.backend() == Some("two"))
        .await;
    assert_eq!(stack.envoy_pid(), envoy, "adopted, not doubled");
    let report = load.finish().await;
    println!("agent ended and back: {report}");
    report.assert_none_lost();
}

/// Asks the xDS socket for clusters as this uid, and returns all that comes back, heads included; or what curl says.
fn ask_as(uid: &str, socket: &Path, request: &Path) -> Result<String, String> {
    let output = Command::new("setpriv")
        .args([
            &format!("--reuid={uid}"),
            &format!("--regid={uid}"),
            "--clear-groups",
        ])
        .args([
            "curl",
            "-sS",
            "-m",
            "3",
            "-i",
            "--http2-prior-knowledge",
            "--unix-socket",
        ])
        .arg(socket)
        .args([
            "-H",
            "content-type: application/grpc",
            "-H",
            "te: trailers",
            "--data-binary",
        ])
        .arg(format!("@{}", request.display()))
        .arg("http://agent/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources")
        .output()
        .expect("setpriv and curl");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if said.is_empty() {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    } else {
        Ok(said)
    }
}

/// One message as gRPC frames it.
fn first_request() -> Vec<u8> {
    let request = DeltaDiscoveryRequest {
        node: Some(Node {
            id: "curl".to_owned(),
            cluster: "edge".to_owned(),
            ..Node::default()
        }),
        type_url: ResourceKind::Cluster.type_url().to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    let message = prost::Message::encode_to_vec(&request);
    let length = (message.len() as u32).to_be_bytes();
    [&[0][..], &length, &message].concat()
}

/// The socket's mode keeps others out; behind it the peer's uid is looked at, which no mode can undo.
#[tokio::test(flavor = "multi_thread")]
async fn another_uid_is_refused_even_where_the_socket_is_open_to_it() {
    if !rustix::process::geteuid().is_root() {
        println!("only root can become another user: not checked");
        return;
    }
    let mut stack = Stack::start(Options {
        no_envoy: true,
        ..Options::default()
    })
    .await;
    stack.agent.wait_for_log("xDS").await;
    let socket = stack.data.join("xds.sock");
    wait_for("the socket", SOON, async || {
        anyhow::ensure!(socket.exists());
        Ok(())
    })
    .await;
    assert_eq!(
        std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let request = stack.data.join("request");
    std::fs::write(&request, first_request()).unwrap();
    // Opened to everybody, as a careless operator might; first all but the socket.
    let open = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for path in socket
        .ancestors()
        .skip(1)
        .take_while(|path| *path != Path::new("/tmp"))
    {
        open(path, 0o755);
    }
    open(&request, 0o644);
    let refused = ask_as("65534", &socket, &request).unwrap_err();
    assert!(refused.contains("connect"), "{refused}");

    open(&socket, 0o666);
    let told = ask_as("0", &socket, &request).unwrap();
    assert!(told.contains("grpc-status: 0"), "root is let in: {told}");
    // The refusal may overtake the request: curl then shows a reset stream and no answer.
    let told = wait_for("the refusal", SOON, async || {
        ask_as("65534", &socket, &request).map_err(|said| anyhow::anyhow!(said))
    })
    .await;
    println!("as nobody: {told}");
    assert!(
        told.contains("grpc-status: 16") && told.contains("may%20not%20use%20this%20socket"),
        "{told}"
    );
    let line = stack.agent.wait_for_log("uid 65534").await;
    println!("{}", line.trim());
    assert!(line.contains("may not use this socket"), "{line}");
}

//! Other users of the machine at the xDS socket: those that the settings list, and those that they do not.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use portreeve::envoy::ResourceKind;

use crate::stack::{Options, SOON, Stack};
use crate::support::process::Launch;
use crate::support::{program, scratch_directory, wait_for};

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
fn first_request(gateway: &str) -> Vec<u8> {
    let request = DeltaDiscoveryRequest {
        node: Some(Node {
            id: "curl".to_owned(),
            cluster: gateway.to_owned(),
            ..Node::default()
        }),
        type_url: ResourceKind::Cluster.type_url().to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    let message = prost::Message::encode_to_vec(&request);
    let length = (message.len() as u32).to_be_bytes();
    [&[0][..], &length, &message].concat()
}

/// Not a byte comes back. That it got as far as the socket, the agent's log tells.
fn unanswered(uid: &str, socket: &Path, request: &Path) {
    let said = ask_as(uid, socket, request).unwrap_err();
    println!("as {uid}: {}", said.trim());
}

fn open(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
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
    assert_eq!(mode(&socket), 0o600);
    let request = stack.data.join("request");
    std::fs::write(&request, first_request("edge")).unwrap();
    // Opened to everybody, as a careless operator might; first all but the socket.
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

    let log = stack.agent.process.log();
    assert!(!log.contains("uid 65534"), "the mode alone keeps it out: {log}");

    open(&socket, 0o666);
    let told = ask_as("0", &socket, &request).unwrap();
    assert!(told.contains("grpc-status: 0"), "root is let in: {told}");
    unanswered("65534", &socket, &request);
    let line = stack.agent.wait_for_log("uid 65534").await;
    println!("{}", line.trim());
    assert!(line.contains("may not use this socket"), "{line}");
}

/// The real thing: an Envoy that runs as a user of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_listed_user_s_envoy_serves_and_no_other_user_is_answered() {
    if !rustix::process::geteuid().is_root() {
        println!("only root can become another user: not checked");
        return;
    }
    let directory = scratch_directory("others");
    let socket = directory.path().join("xds.sock");
    open(directory.path(), 0o711);
    let mut stack = Stack::start(Options {
        no_envoy: true,
        arguments: vec!["-gateway=edge", "-gateway=inner", "-gateway=secret"],
        more: format!(
            r#"
xds {{
  socket = {socket:?}

  client {{
    uid      = 65534
    gateways = ["edge"]
  }}

  client {{
    uid      = 65534
    gateways = ["inner"]
  }}
}}
"#
        ),
        ..Options::default()
    })
    .await;
    let runtime = directory.path().join("envoy");
    std::fs::create_dir(&runtime).unwrap();
    let nobody = (rustix::fs::Uid::from_raw(65534), rustix::fs::Gid::from_raw(65534));
    rustix::fs::chown(&runtime, Some(nobody.0), Some(nobody.1)).unwrap();
    let launch = Launch::new("envoy", "setpriv", directory.path())
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(env!("CARGO_BIN_EXE_portreeve"))
        .args(["envoy", "run", "-gateway=edge", "-node=nobody"])
        .arg(format!("-xds-socket={}", socket.display()))
        .arg(format!("-runtime-dir={}", runtime.display()))
        .arg(format!("-envoy={}", program("envoy").display()));
    let _envoy = launch.start();
    stack.shop().await;
    assert_eq!(mode(&socket), 0o666);
    let log = stack.agent.process.log();
    assert!(!log.contains("cannot reach the socket"), "{log}");

    // What the two blocks allow, together and no more; another user nothing.
    let request = directory.path().join("request");
    for (gateway, status) in [("inner", 0), ("secret", 7)] {
        std::fs::write(&request, first_request(gateway)).unwrap();
        open(&request, 0o644);
        let told = ask_as("65534", &socket, &request).unwrap();
        assert!(
            told.contains(&format!("grpc-status: {status}")),
            "{gateway}: {told}"
        );
    }
    unanswered("65533", &socket, &request);
    let line = stack
        .agent
        .wait_for_log("uid 65533 may not use this socket")
        .await;
    println!("{}", line.trim());
}

/// In the data directory, which lets in nobody else, the settings alone are not enough.
#[tokio::test(flavor = "multi_thread")]
async fn a_listed_user_that_cannot_reach_the_socket_is_told() {
    let mut stack = Stack::start(Options {
        no_envoy: true,
        more: "xds {\n  uids = [65533]\n}\n".to_owned(),
        ..Options::default()
    })
    .await;
    let line = stack.agent.wait_for_log("cannot reach the socket").await;
    assert!(
        line.contains("65533") && line.contains("xds { socket }") && line.contains("0700"),
        "{line}"
    );
}

//! Envoy leaves.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use portreeve::envoy_process::{
    Error, Handle, RestartError, RestartMethod, Settings, Status, StopMode, start_or_adopt,
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::gateway::{Gateway, get, is_served, signal, wait_for, wait_until_running};
use crate::planned_restart::other_envoy;
use crate::ports::free_port;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_serves_newcomers_and_finishes_what_runs() {
    let gateway = Gateway::new();
    let handle = gateway.start().await;
    wait_until_running(&handle).await;
    let port = gateway.port;
    // Begun before the drain, ends when its 2 s are over and the ports are closed.
    let slow = tokio::spawn(get_slowly(port, 3000));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let stopping = tokio::spawn({
        let handle = handle.clone();
        async move { handle.stop(StopMode::Drain).await }
    });
    wait_for(&handle, "stopping", |status| {
        matches!(status, Status::Stopping { .. }).then_some(())
    })
    .await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1500) {
        assert!(is_served(&gateway.get("/").await), "after {:?}", start.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(is_served(&slow.await.unwrap()));
    stopping.await.unwrap();
    println!("drained and ended in {:?}", start.elapsed());
    assert!(gateway.envoys().is_empty());
    assert_eq!(*handle.status().borrow(), Status::Stopped);
    assert!(gateway.get("/").await.is_err());
    handle.stop(StopMode::Drain).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_stop_cuts_the_drain_short() {
    let gateway = Gateway::new();
    let mut settings = gateway.settings();
    settings.drain_time = Duration::from_secs(60);
    let handle = portreeve::envoy_process::start_or_adopt(settings).await.unwrap();
    wait_until_running(&handle).await;
    let first = tokio::spawn({
        let handle = handle.clone();
        async move { handle.stop(StopMode::Drain).await }
    });
    wait_for(&handle, "stopping", |status| {
        matches!(status, Status::Stopping { .. }).then_some(())
    })
    .await;
    let start = Instant::now();
    handle.stop(StopMode::Now).await;
    assert!(gateway.envoys().is_empty());
    first.await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

/// As a tcp route's: it is over when its client says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_waits_for_connections_without_http() {
    let gateway = Gateway::new();
    let mut settings = gateway.settings();
    settings.finish_time = Duration::from_secs(20);
    let port = free_port();
    settings.bootstrap.static_listeners.push(json!({
        "name": "echo",
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } },
        "filter_chains": [{ "filters": [{
            "name": "echo",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo" },
        }] }],
    }));
    let handle = start_or_adopt(settings.clone()).await.unwrap();
    wait_until_running(&handle).await;
    // One that waits for its next request is not waited for.
    let mut kept = TcpStream::connect(("127.0.0.1", gateway.port)).await.unwrap();
    kept.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    assert!(kept.read(&mut [0; 1024]).await.unwrap() > 0);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let draining = begin_drain(&handle);
    tokio::time::sleep(settings.drain_time + Duration::from_secs(2)).await;
    assert!(
        TcpStream::connect(("127.0.0.1", port)).await.is_err(),
        "the port is closed"
    );
    stream.write_all(b"a").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'a');
    drop(stream);
    let start = Instant::now();
    draining.await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

/// The newcomer has nothing to serve yet, and the one that serves can be asked to leave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_in_an_overlap_drains_the_one_that_serves() {
    // While the old one still answers at the usual admin socket, and when the newcomer does.
    for pause in [Duration::ZERO, Duration::from_millis(1500)] {
        let gateway = Gateway::new();
        let handle = gateway.start().await;
        wait_until_running(&handle).await;
        let mut next = gateway.settings();
        next.binary = Some(other_envoy(&gateway));
        // It waits for an xDS server that does not exist.
        next.bootstrap.initial_fetch_timeout = Duration::ZERO;
        let restarting = begin_restart(&handle, next).await;
        tokio::time::sleep(pause).await;
        drain_under_way(&gateway, &handle, 3000).await;
        let error = restarting.await.unwrap().unwrap_err();
        assert!(matches!(error, RestartError::Start(Error::Ended)), "{error}");
    }
}

/// The old one can only leave when the newcomer serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_in_a_hot_restart_waits_until_the_newcomer_serves() {
    let gateway = Gateway::new();
    let handle = gateway.start().await;
    wait_until_running(&handle).await;
    let mut next = gateway.settings();
    // So long it waits for clusters, and again for listeners.
    next.bootstrap.initial_fetch_timeout = Duration::from_millis(300);
    let restarting = begin_restart(&handle, next).await;
    drain_under_way(&gateway, &handle, 2000).await;
    assert_eq!(restarting.await.unwrap().unwrap(), RestartMethod::HotRestart);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_that_never_serves_is_waited_for_five_seconds_unless_a_second_stop_comes() {
    for in_a_hurry in [false, true] {
        let gateway = Gateway::new();
        let handle = gateway.start().await;
        wait_until_running(&handle).await;
        let mut next = gateway.settings();
        next.bootstrap.initial_fetch_timeout = Duration::ZERO;
        let restarting = begin_restart(&handle, next).await;
        let start = Instant::now();
        let draining = begin_drain(&handle);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(is_served(&gateway.get("/").await), "the old one serves on");
        if in_a_hurry {
            handle.stop(StopMode::Now).await;
        }
        draining.await.unwrap();
        let took = start.elapsed();
        assert_eq!(took < Duration::from_secs(5), in_a_hurry, "{took:?}");
        assert!(took < Duration::from_secs(15), "{took:?}");
        assert!(gateway.envoys().is_empty());
        let error = restarting.await.unwrap().unwrap_err();
        assert!(matches!(error, RestartError::Start(Error::Ended)), "{error}");
    }
}

/// Returns in its middle: there are two Envoys, and the new one does not serve yet.
async fn begin_restart(handle: &Handle, next: Settings) -> JoinHandle<Result<RestartMethod, RestartError>> {
    let restarting = tokio::spawn({
        let handle = handle.clone();
        async move { handle.restart(Some(next)).await }
    });
    wait_for(handle, "restart", |status| {
        matches!(status, Status::Replacing { .. }).then_some(())
    })
    .await;
    restarting
}

fn begin_drain(handle: &Handle) -> JoinHandle<()> {
    let handle = handle.clone();
    tokio::spawn(async move { handle.stop(StopMode::Drain).await })
}

/// Drains while a request runs that takes so long. It is answered, and so is who comes meanwhile.
async fn drain_under_way(gateway: &Gateway, handle: &Handle, milliseconds: u32) {
    let slow = tokio::spawn(get_slowly(gateway.port, milliseconds));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let start = Instant::now();
    let draining = begin_drain(handle);
    while start.elapsed() < Duration::from_millis(1500) {
        assert!(is_served(&gateway.get("/").await), "after {:?}", start.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(is_served(&slow.await.unwrap()), "cut");
    draining.await.unwrap();
    println!("drained and ended in {:?}", start.elapsed());
    assert!(gateway.envoys().is_empty());
    assert_eq!(*handle.status().borrow(), Status::Stopped);
}

/// `portreeve envoy drain`, for an Envoy that systemd or Nomad keeps and will end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_drain_command_lets_clients_leave_and_envoy_live() {
    let gateway = Gateway::new();
    let handle = gateway.start().await;
    wait_until_running(&handle).await;
    let port = gateway.port;
    let envoys = gateway.envoys();

    // As a Nomad task that leads its group: nothing happens until it is told to end.
    let mut command = drain_command(&gateway, &["-when-stopped", "-drain-time=2s"]);
    let command = command.spawn().unwrap();
    let pid = command.id();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!is_asked_to_leave(port).await, "too early");
    let slow = tokio::spawn(get_slowly(port, 3000));
    tokio::time::sleep(Duration::from_millis(200)).await;
    signal(pid, "TERM");
    let start = Instant::now();
    let mut asked = false;
    while start.elapsed() < Duration::from_millis(1500) {
        asked |= is_asked_to_leave(port).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(asked, "nobody was asked to leave");
    assert!(is_served(&slow.await.unwrap()), "a running request finishes");
    let output = tokio::task::spawn_blocking(move || command.wait_with_output().unwrap());
    let output = output.await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("Envoy of gateway edge drained"), "{said}");
    assert!(gateway.get("/").await.is_err(), "the ports are closed");
    assert_eq!(gateway.envoys(), envoys, "ending Envoy is somebody else's job");
    handle.stop(StopMode::Now).await;

    // Nobody to drain.
    let output = drain_command(&gateway, &[]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["cannot drain the Envoy of gateway edge", "admin.sock", "fix:"] {
        assert!(said.contains(part), "{said}");
    }
}

fn drain_command(gateway: &Gateway, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portreeve"));
    command
        // Here a supervisor has started it.
        .args(["envoy", "drain", "-supervised", "-gateway=edge", "-runtime-dir"])
        .arg(gateway.directory.path().join("run"))
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Whether a client that would keep its connection is told to close it.
async fn is_asked_to_leave(port: u16) -> bool {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    while !seen.ends_with("served") {
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "closed after {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    seen.to_lowercase().contains("connection: close")
}

pub async fn get_slowly(port: u16, milliseconds: u32) -> std::io::Result<String> {
    get(
        port,
        "/",
        &format!("x-envoy-fault-delay-request: {milliseconds}\r\n"),
    )
    .await
}

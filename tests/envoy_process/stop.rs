//! Envoy leaves.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use portreeve::envoy_process::{Status, StopMode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::gateway::{Gateway, get, is_served, signal, wait_for, wait_until_running};

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
        .args(["envoy", "drain", "-gateway=edge", "-runtime-dir"])
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

async fn get_slowly(port: u16, milliseconds: u32) -> std::io::Result<String> {
    get(
        port,
        "/",
        &format!("x-envoy-fault-delay-request: {milliseconds}\r\n"),
    )
    .await
}

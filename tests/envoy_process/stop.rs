//! Envoy leaves.

use std::time::{Duration, Instant};

use portreeve::envoy_process::{Status, StopMode};

use crate::gateway::{Gateway, get, is_served, wait_for, wait_until_running};

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

async fn get_slowly(port: u16, milliseconds: u32) -> std::io::Result<String> {
    get(
        port,
        "/",
        &format!("x-envoy-fault-delay-request: {milliseconds}\r\n"),
    )
    .await
}

//! The Envoy before serves on where its successor does not last.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use portreeve::envoy_process::{Handle, RestartMethod, Status, StopMode, start_or_adopt};

use super::gateway::{Gateway, eventually, is_served, signal, wait_for, wait_until_running};
use super::planned_restart::other_envoy;
use super::stop::get_slowly;

struct Former {
    gateway: Gateway,
    handle: Handle,
    /// Alone.
    pid: u32,
    /// Of the successor, which served for a moment, ended, and cannot be started any more.
    program: PathBuf,
    script: String,
}

impl Former {
    async fn alone() -> Self {
        let gateway = Gateway::new();
        let handle = gateway.start().await;
        let pid = wait_until_running(&handle).await.pid;
        let mut settings = gateway.settings();
        let program = other_envoy(&gateway);
        settings.binary = Some(program.clone());
        let method = handle.restart(Some(settings)).await.unwrap();
        assert!(matches!(method, RestartMethod::Overlap { .. }), "{method}");
        let next = wait_until_running(&handle).await.pid;
        let script = std::fs::read_to_string(&program).unwrap();
        let former = Self {
            gateway,
            handle,
            pid,
            program,
            script,
        };
        former.write(&former.script.replacen('\n', "\n[ \"$1\" = -c ] && exit 1\n", 1));
        signal(next, "KILL");
        eventually("the old one alone", Duration::from_secs(5), || {
            former.gateway.envoys() == [pid]
        })
        .await;
        // The kernel closes its sockets a moment after its name is gone.
        tokio::time::sleep(Duration::from_millis(200)).await;
        former
    }

    /// By a rename: a file that runs cannot be written.
    fn write(&self, text: &str) {
        let new = self.program.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&new, &self.program).unwrap();
    }

    async fn is_followed_by(&self, after: u32) {
        eventually("only the new one", Duration::from_secs(30), || {
            self.gateway.envoys() == [after]
        })
        .await;
        assert!(is_served(&self.gateway.get("/").await));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_one_keeps_its_ports_until_its_successor_serves_again() {
    let former = Former::alone().await;
    // Longer than all that its leaving takes.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(6) {
        let response = former.gateway.get("/").await;
        assert!(is_served(&response), "after {:?}: {response:?}", start.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    former.write(&former.script);
    let after = wait_until_running(&former.handle).await.pid;
    // It may die again: once it served, and that was nothing.
    signal(after, "KILL");
    eventually("its end", Duration::from_secs(5), || {
        !former.gateway.envoys().contains(&after)
    })
    .await;
    assert!(former.gateway.envoys().contains(&former.pid));
    let last = wait_for(&former.handle, "another", |status| match status {
        Status::Running(running) if running.pid != after => Some(running.pid),
        _ => None,
    })
    .await;
    former.is_followed_by(last).await;
    former.handle.stop(StopMode::Now).await;
}

/// Until its agent leaves, or dies, it waits for a successor; the next agent knows that it turns clients away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_following_agent_replaces_an_envoy_that_waits_to_leave() {
    let former = Former::alone().await;
    former.handle.stop(StopMode::LeaveRunning).await;
    former.write(&former.script);
    let mut settings = former.gateway.settings();
    settings.binary = Some(former.program.clone());
    let handle = start_or_adopt(settings).await.unwrap();
    let next = wait_until_running(&handle).await.pid;
    assert_ne!(next, former.pid);
    former.is_followed_by(next).await;
    handle.stop(StopMode::Now).await;
}

/// It is the one whose requests are finished.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_drains_the_one_that_serves_though_another_is_to_follow() {
    let former = Former::alone().await;
    let slow = tokio::spawn(get_slowly(former.gateway.port, 2000));
    tokio::time::sleep(Duration::from_millis(200)).await;
    former.handle.stop(StopMode::Drain).await;
    assert!(is_served(&slow.await.unwrap()), "cut");
    assert!(former.gateway.envoys().is_empty());
}

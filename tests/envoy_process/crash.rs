//! Envoy dies.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use portreeve::envoy_process::{Error, Status, StopMode, start_or_adopt};

use crate::gateway::{
    DIRECTORY, Gateway, PORT, alone, eventually, is_served, not_checked, settings, signal, wait_for,
    wait_until_running,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_starts_serves_and_answers_its_owner_only() {
    let gateway = Gateway::new();
    let handle = gateway.start().await;
    let running = wait_until_running(&handle).await;
    assert!(is_served(&gateway.get("/").await));
    assert_eq!(gateway.envoys(), [running.pid]);
    assert!(
        !running.adopted && running.epoch == 0 && running.outdated.is_none(),
        "{running:?}"
    );

    let admin = handle.admin();
    assert!(admin.ready().await.unwrap());
    assert!(
        admin
            .server_info()
            .await
            .unwrap()
            .version
            .contains(&running.version.unwrap().to_string())
    );
    let stats = admin.stats(r"^http\.web\.downstream_rq_total$").await.unwrap();
    assert_eq!(stats["http.web.downstream_rq_total"], 1);
    assert!(admin.stats(r"^http\.admin\.").await.unwrap().is_empty());
    assert!(admin.config_dump().await.unwrap()["configs"].is_array());
    assert!(!admin.prometheus().await.unwrap().is_empty());

    let run = gateway.directory.path().join("run");
    assert_eq!(
        std::fs::metadata(&run).unwrap().permissions().mode() & 0o777,
        0o700
    );
    for entry in std::fs::read_dir(&run).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.path());
    }
    // Nothing of our environment but what is allowed: a Lua filter could read it.
    let environment = std::fs::read(format!("/proc/{}/environ", running.pid)).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("CARGO"));
    handle.stop(StopMode::Now).await;
    assert!(gateway.envoys().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_envoy_is_replaced_after_pauses_that_double() {
    let _alone = alone().await;
    let gateway = Gateway::new();
    let handle = gateway.start().await;
    let first = wait_until_running(&handle).await;
    for round in 0..3 {
        let pid = wait_until_running(&handle).await.pid;
        signal(pid, "KILL");
        let (reason, retry_in) = wait_for(&handle, "backoff", |status| match status {
            Status::Backoff { reason, retry_in, .. } => Some((reason.clone(), *retry_in)),
            _ => None,
        })
        .await;
        assert!(reason.contains("signal 9"), "{reason}");
        // Hardly a pause at first, then pauses that double.
        assert_eq!(retry_in, Duration::from_millis(100) * (1 << round));
        let next = wait_until_running(&handle).await;
        assert_ne!(next.pid, pid);
        assert!(is_served(&gateway.get("/").await));
        assert_eq!(gateway.envoys(), [next.pid]);
    }
    assert_ne!(first.pid, wait_until_running(&handle).await.pid);
    handle.stop(StopMode::Now).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envoy_that_cannot_start_says_why_and_is_tried_again() {
    let gateway = Gateway::new();
    let mut settings = gateway.settings();
    settings.bootstrap.static_listeners[0]["filter_chains"] = serde_json::json!([]);
    let handle = start_or_adopt(settings).await.unwrap();
    let mut delays = Vec::new();
    wait_for(&handle, "third try", |status| match status {
        Status::Backoff {
            reason,
            attempt,
            retry_in,
        } => {
            assert!(
                reason.contains("exit code 1") && reason.contains("filter chain"),
                "{reason}"
            );
            delays.push(retry_in.as_millis());
            (*attempt == 3).then_some(())
        }
        _ => None,
    })
    .await;
    println!("tried again after {delays:?} ms");
    handle.stop(StopMode::Drain).await;
    assert!(gateway.envoys().is_empty());
}

/// As in an image from scratch: this test's program, in a view of the machine where `/bin` is empty, starts Envoy.
#[test]
fn a_missing_shell_is_named_and_not_envoy() {
    let can_unshare = Command::new("unshare").args(["--mount", "true"]).output();
    if !can_unshare.is_ok_and(|output| output.status.success()) {
        return not_checked("no mounts of its own: that takes root with CAP_SYS_ADMIN");
    }
    let gateway = Gateway::new();
    let within = r#"
        mount -t tmpfs none /bin || exit 77
        exec "$0" --ignored --exact crash::an_agent_without_a_shell --nocapture
    "#;
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", within])
        .arg(std::env::current_exe().unwrap())
        .env(DIRECTORY, gateway.directory.path())
        .env(PORT, gateway.port.to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    println!("{text}");
    if output.status.code() == Some(77) {
        return not_checked("this machine lets nobody mount");
    }
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[tokio::test]
#[ignore = "what the test above runs where there is no /bin/sh"]
async fn an_agent_without_a_shell() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else {
        return;
    };
    let settings = settings(&directory, std::env::var(PORT).unwrap().parse().unwrap());
    let error = start_or_adopt(settings).await.unwrap_err();
    let Error::Shell { source } = &error else {
        panic!("{error}")
    };
    assert_eq!(source.kind(), ErrorKind::NotFound);
    let text = error.to_string();
    assert!(
        text.contains("/bin/sh") && text.contains("an image from scratch needs it"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shared_memory_of_a_dead_envoy_is_removed() {
    let gateway = Gateway::new();
    let handle = gateway.start().await;
    let pid = wait_until_running(&handle).await.pid;
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let arguments: Vec<String> = cmdline
        .split(|byte| *byte == 0)
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .collect();
    let at = arguments
        .iter()
        .position(|argument| argument == "--base-id")
        .unwrap();
    let base_id: u64 = arguments[at + 1].parse().unwrap();
    let memory = std::path::PathBuf::from(format!("/dev/shm/envoy_shared_memory_{}", base_id * 10));
    assert!(memory.exists());
    signal(pid, "KILL");
    eventually("the shared memory is gone", Duration::from_secs(5), || {
        !memory.exists()
    })
    .await;
    handle.stop(StopMode::Now).await;
}

//! The agent dies, Envoy does not.
//!
//! The agent is this test executable itself, run again with `agent_process` as its only test.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use portreeve::envoy_process::{
    Error, ExecOptions, Handle, RestartError, RestartMethod, Status, StopMode, exec_envoy, start_or_adopt,
};

use portreeve::agent::log_format::{self, LogFormat};

use crate::gateway::{
    DIRECTORY, Gateway, PORT, alone, envoys, eventually, is_served, settings, signal, wait_for,
    wait_until_running,
};
use crate::planned_restart::migrates;

const MODE: &str = "PORTREEVE_TEST_AGENT_MODE";

fn spawn_agent(gateway: &Gateway, mode: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "takeover::agent_process"])
        .env(DIRECTORY, gateway.directory.path())
        .env(PORT, gateway.port.to_string())
        .env(MODE, mode)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
#[ignore = "the agent that the other tests kill"]
async fn agent_process() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else {
        return;
    };
    let mut settings = settings(&directory, std::env::var(PORT).unwrap().parse().unwrap());
    let log = std::fs::File::create(directory.join("agent.log")).unwrap();
    let (subscriber, _level) = log_format::subscriber(LogFormat::Text, "debug".parse().unwrap(), log);
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let mode = std::env::var(MODE).unwrap();
    if mode == "exec" {
        let options = ExecOptions {
            wait_for_xds: Some(Duration::from_millis(200)),
        };
        panic!(
            "{}",
            exec_envoy(settings, options, &mut |_| {}).await.unwrap_err()
        );
    }
    if mode == "drain" {
        settings.drain_time = Duration::from_secs(60);
    }
    let handle = start_or_adopt(settings.clone()).await.unwrap();
    wait_until_running(&handle).await;
    if mode == "drain" {
        handle.stop(StopMode::Drain).await;
    } else if mode == "restart" {
        // The next Envoy waits for an xDS server that never answers.
        settings.bootstrap.initial_fetch_timeout = Duration::ZERO;
        let _ = handle.restart(Some(settings)).await;
    }
    std::future::pending::<()>().await;
}

fn kill_agent(mut agent: Child) {
    agent.kill().unwrap();
    agent.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_outlives_a_killed_agent_and_the_next_takes_it_over() {
    let _alone = alone().await;
    let gateway = Gateway::new();
    let agent = spawn_agent(&gateway, "");
    let run = gateway.directory.path().join("run");
    eventually("a record", Duration::from_secs(20), || {
        run.join("envoy-state.json").exists()
    })
    .await;
    let start = Instant::now();
    while !is_served(&gateway.get("/").await) {
        assert!(start.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let before = gateway.envoys();
    assert_eq!(before.len(), 1);

    let error = start_or_adopt(gateway.settings()).await.unwrap_err();
    assert!(
        matches!(&error, Error::Locked { holder, .. } if *holder == agent.id().to_string()),
        "{error}"
    );
    kill_agent(agent);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let response = gateway.get("/").await;
    if !is_served(&response) {
        println!(
            "{}",
            std::fs::read_to_string(gateway.directory.path().join("agent.log")).unwrap()
        );
        println!("{}", std::fs::read_to_string(run.join("envoy.log")).unwrap());
    }
    assert!(is_served(&response), "without an agent: {response:?}");

    let handle = gateway.start().await;
    let running = wait_until_running(&handle).await;
    assert!(running.adopted && running.outdated.is_none(), "{running:?}");
    assert_eq!(vec![running.pid], before);
    assert_eq!(gateway.envoys(), before);

    // It is watched like a child.
    signal(running.pid, "KILL");
    let reason = wait_for(&handle, "backoff", |status| match status {
        Status::Backoff { reason, .. } => Some(reason.clone()),
        _ => None,
    })
    .await;
    assert!(reason.contains("signal 9"), "{reason}");
    let next = wait_until_running(&handle).await;
    assert!(!next.adopted);
    assert!(is_served(&gateway.get("/").await));
    handle.stop(StopMode::Now).await;
    assert!(gateway.envoys().is_empty());
}

/// A child that the former agent was just starting has the lock a moment longer than that agent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_is_about_to_be_free_is_waited_for() {
    let gateway = Gateway::new();
    gateway.start().await.stop(StopMode::Now).await;
    let path = gateway.directory.path().join("run/envoy.lock");
    let held = std::fs::File::open(path).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let freed = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(held);
    });
    let handle = gateway.start().await;
    assert!(freed.is_finished(), "it was locked until then");
    wait_until_running(&handle).await;
    handle.stop(StopMode::Now).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unrecorded_envoy_is_found_too() {
    let gateway = Gateway::new();
    let agent = spawn_agent(&gateway, "");
    eventually("an Envoy", Duration::from_secs(20), || {
        gateway.envoys().len() == 1
    })
    .await;
    kill_agent(agent);
    let _ = std::fs::remove_file(gateway.directory.path().join("run/envoy-state.json"));
    let before = gateway.envoys();
    let handle = gateway.start().await;
    let running = wait_until_running(&handle).await;
    assert_eq!(vec![running.pid], before);
    assert!(running.outdated.is_none(), "{running:?}");
    handle.detach().await;
    assert_eq!(
        *handle.status().borrow(),
        Status::LeftRunning { pid: running.pid }
    );

    // Again, by a handle that is only dropped.
    for _ in 0..2 {
        let handle = gateway.start().await;
        assert_eq!(wait_until_running(&handle).await.pid, running.pid);
        let mut status = handle.status();
        drop(handle);
        status
            .wait_for(|status| matches!(status, Status::LeftRunning { .. }))
            .await
            .unwrap();
        while status.changed().await.is_ok() {}
    }
    assert_eq!(gateway.envoys(), before);
    let mut changed = gateway.settings();
    changed.bootstrap.max_downstream_connections = 1234;
    let handle = start_or_adopt(changed).await.unwrap();
    let running = wait_until_running(&handle).await;
    assert!(
        running
            .outdated
            .is_some_and(|reason| reason.contains("bootstrap"))
    );
    handle.stop(StopMode::Now).await;
}

/// They stand on Envoy's command line, and an agent that only took it over would say that all is as the settings are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arguments_that_changed_while_the_agent_was_away_are_told_until_envoy_is_replaced() {
    let gateway = Gateway::new();
    let handle = gateway.start().await;
    let before = wait_until_running(&handle).await;
    handle.detach().await;
    let mut settings = gateway.settings();
    settings.concurrency = Some(3);
    settings.drain_time = Duration::from_secs(3);
    settings.log_level = "warning".to_owned();
    let handle = start_or_adopt(settings.clone()).await.unwrap();
    let running = wait_until_running(&handle).await;
    assert!(running.adopted && running.pid == before.pid, "{running:?}");
    assert_eq!(
        running.outdated.as_deref(),
        Some("it was started with another drain_time, another concurrency, another log_level")
    );
    // Envoy hands over to one with other values of all three.
    let method = handle.restart(None).await.unwrap();
    assert_eq!(method, RestartMethod::HotRestart);
    let after = wait_until_running(&handle).await;
    assert_eq!(after.outdated, None);
    assert!(is_served(&gateway.get("/").await));
    eventually("only the new one", Duration::from_secs(20), || {
        gateway.envoys() == [after.pid]
    })
    .await;
    // None of them any more is a change as well.
    handle.detach().await;
    settings.concurrency = None;
    let handle = start_or_adopt(settings).await.unwrap();
    let running = wait_until_running(&handle).await;
    assert_eq!(
        running.outdated.as_deref(),
        Some("it was started with another concurrency")
    );
    handle.stop(StopMode::Now).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_in_the_middle_of_a_restart_leaves_two_and_the_next_makes_one_of_them() {
    let gateway = Gateway::new();
    let agent = spawn_agent(&gateway, "restart");
    eventually("two Envoys", Duration::from_secs(20), || {
        gateway.envoys().len() == 2
    })
    .await;
    // The second one has reached the point where it waits.
    tokio::time::sleep(Duration::from_secs(1)).await;
    kill_agent(agent);
    let mut settings = gateway.settings();
    settings.takeover_deadline = Duration::from_secs(2);
    let handle = start_or_adopt(settings).await.unwrap();
    assert_eq!(gateway.envoys().len(), 2, "no third");
    assert!(is_served(&gateway.get("/").await));
    let running = wait_until_running(&handle).await;
    assert_eq!(gateway.envoys(), [running.pid], "the one that serves");
    assert!(is_served(&gateway.get("/").await));
    println!("due: {:?}", running.outdated);
    let method = handle.restart(None).await.unwrap();
    assert!(matches!(method, RestartMethod::Overlap { .. }), "{method}");
    // It cannot hand its sockets over. Where the kernel does not either, what waits as the old one closes them is reset.
    let mut response = gateway.get("/").await;
    let is_reset = matches!(&response, Err(error) if error.kind() == ErrorKind::ConnectionReset);
    if is_reset && !migrates() {
        eventually("one Envoy", Duration::from_secs(20), || {
            gateway.envoys().len() == 1
        })
        .await;
        response = gateway.get("/").await;
    }
    assert!(is_served(&response), "{response:?}");
    handle.stop(StopMode::Now).await;
    assert!(gateway.envoys().is_empty());
}

/// The old one has given its admin API to the new one, and nobody is there to see that end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_ends_after_its_agent_leaves_an_envoy_that_serves() {
    let gateway = Gateway::new();
    let agent = spawn_agent(&gateway, "restart");
    let record = gateway.directory.path().join("run/envoy-state.json");
    let is_recorded = || std::fs::read_to_string(&record).is_ok_and(|text| text.contains("\"epoch\": 1"));
    eventually("two Envoys", Duration::from_secs(20), || {
        gateway.envoys().len() == 2 && is_recorded()
    })
    .await;
    // The second one has reached the point where it waits.
    tokio::time::sleep(Duration::from_secs(1)).await;
    kill_agent(agent);
    let recorded: serde_json::Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    let successor = recorded["pid"].as_u64().unwrap();
    signal(u32::try_from(successor).unwrap(), "KILL");
    eventually("one Envoy", Duration::from_secs(5), || {
        gateway.envoys().len() == 1
    })
    .await;
    let before = gateway.envoys();
    let handle = gateway.start().await;
    let running = wait_until_running(&handle).await;
    assert_eq!(vec![running.pid], before);
    let outdated = running.outdated.unwrap_or_default();
    assert!(outdated.contains("admin API"), "{outdated:?}");
    assert!(is_served(&gateway.get("/").await));
    handle.stop(StopMode::Now).await;
}

/// It asks clients to leave, and ends when another serves: the first of those dies before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envoy_left_in_the_middle_of_its_drain_never_becomes_the_one_that_serves() {
    let gateway = Gateway::new();
    let agent = spawn_agent(&gateway, "drain");
    let record = gateway.directory.path().join("run/envoy-state.json");
    let is_told = || std::fs::read_to_string(&record).is_ok_and(|text| text.contains("\"leaving\": true"));
    eventually("a drain", Duration::from_secs(20), is_told).await;
    let [draining] = gateway.envoys()[..] else {
        panic!("{:?}", gateway.envoys())
    };
    kill_agent(agent);

    let mut settings = gateway.settings();
    // Time to die in.
    settings.bootstrap.initial_fetch_timeout = Duration::from_secs(1);
    let handle = start_or_adopt(settings).await.unwrap();
    let first = wait_for(&handle, "the next one", |status| match status {
        Status::Starting { pid, .. } => Some(*pid),
        _ => None,
    })
    .await;
    signal(first, "KILL");
    let running = wait_until_running(&handle).await;
    assert!(![draining, first].contains(&running.pid), "{running:?}");
    eventually("only the new one", Duration::from_secs(20), || {
        gateway.envoys() == [running.pid]
    })
    .await;
    assert!(is_served(&gateway.get("/").await));
    handle.stop(StopMode::Now).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_becomes_envoy() {
    let gateway = Gateway::new();
    let mut child = spawn_agent(&gateway, "exec");
    let start = Instant::now();
    while !is_served(&gateway.get("/").await) {
        assert!(start.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(envoys(gateway.directory.path()), [child.id()]);
    signal(child.id(), "TERM");
    assert!(child.wait().unwrap().success());
}

/// Its unit was forgotten when the settings came to say `supervise`. Nobody may end it but that unit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_starts_no_envoy_beside_one_that_runs_by_itself() {
    let gateway = Gateway::new();
    let mut child = spawn_agent(&gateway, "exec");
    let pid = child.id();
    let is_up = || envoys(gateway.directory.path()) == [pid];
    eventually("Envoy", Duration::from_secs(20), is_up).await;
    let handle = start_in_vain(&gateway, pid).await;
    handle.stop(StopMode::Drain).await;
    assert_eq!(gateway.envoys(), [pid], "not the agent's to end");
    assert!(is_served(&gateway.get("/").await));

    let handle = start_in_vain(&gateway, pid).await;
    signal(pid, "TERM");
    child.wait().unwrap();
    let next = wait_until_running(&handle).await;
    assert_eq!(gateway.envoys(), [next.pid]);
    assert!(is_served(&gateway.get("/").await));
    handle.stop(StopMode::Now).await;
}

/// That one took no lock. It lives until its unit is started again, whatever was upgraded beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envoy_that_an_older_version_ran_has_its_directory_too() {
    let gateway = Gateway::new();
    let mut child = spawn_agent(&gateway, "exec");
    let pid = child.id();
    let is_up = || envoys(gateway.directory.path()) == [pid];
    eventually("Envoy", Duration::from_secs(20), is_up).await;
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    signal(pid, "TERM");
    child.wait().unwrap();
    let mut words = line.trim_end_matches('\0').split('\0');
    let mut older = Command::new(words.next().unwrap())
        .args(words)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = older.id();
    let is_up = || envoys(gateway.directory.path()) == [pid];
    eventually("Envoy", Duration::from_secs(20), is_up).await;

    let handle = start_in_vain(&gateway, pid).await;
    let said = run_in_vain(&gateway).await;
    assert!(
        said.contains(&format!("`portreeve envoy run` (pid {pid})")),
        "{said}"
    );
    assert_eq!(gateway.envoys(), [pid]);
    signal(pid, "TERM");
    older.wait().unwrap();
    let next = wait_until_running(&handle).await;
    assert_eq!(gateway.envoys(), [next.pid]);
    handle.stop(StopMode::Now).await;
}

/// An agent that waits for the end of the Envoy with this process id.
async fn start_in_vain(gateway: &Gateway, pid: u32) -> Handle {
    let handle = gateway.start().await;
    let reason = wait_for(&handle, "a wait", |status| match status {
        Status::Waiting { reason } => Some(reason.clone()),
        _ => None,
    })
    .await;
    for part in [&format!("(pid {pid})"), "envoy run", "systemctl disable"] {
        assert!(reason.contains(part), "{reason}");
    }
    let error = handle.restart(None).await.unwrap_err();
    assert!(matches!(error, RestartError::NotRunning), "{error}");
    handle
}

/// The unit of the other way to run Envoy is started too early.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_run_starts_none_beside_a_supervised_one() {
    let gateway = Gateway::new();
    let handle = gateway.start().await;
    let pid = wait_until_running(&handle).await.pid;
    let said = run_in_vain(&gateway).await;
    let agent = format!("an agent (pid {})", std::process::id());
    assert!(said.contains(&agent), "{said}");
    handle.detach().await;
    let said = run_in_vain(&gateway).await;
    for part in [
        "that an agent supervised",
        "envoy drain -gateway edge -runtime-dir",
        &format!("`kill {pid}`"),
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(gateway.envoys(), [pid]);
    let handle = gateway.start().await;
    wait_until_running(&handle).await;
    handle.stop(StopMode::Now).await;
}

/// What `portreeve envoy run` says, and that it ends by itself.
async fn run_in_vain(gateway: &Gateway) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portreeve"));
    let directory = gateway.directory.path();
    command
        .args(["envoy", "run", "-gateway=edge", "-wait=0s", "-runtime-dir"])
        .arg(directory.join("run"))
        .arg("-xds-socket")
        .arg(directory.join("no-xds.sock"))
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    eventually("its end", Duration::from_secs(20), || {
        child.try_wait().unwrap().is_some()
    })
    .await;
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

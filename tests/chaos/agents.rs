//! The agent goes away and comes back; Envoy serves on.

use std::path::PathBuf;

use crate::course::{Course, PATIENCE, PLAIN_RULE};
use crate::support::stack::Options;

#[tokio::test(flavor = "multi_thread")]
async fn agent_killed() {
    let mut course = Course::begin("agent_killed").await;
    let envoy = course.stack.envoy_pid();
    for _ in 0..course.rounds(1) {
        course.stack.agent.kill();
        course.change(PLAIN_RULE).await;
        course.lasts(700).await;
        course.agent_returns().await;
        course.recovers().await;
    }
    assert_eq!(course.stack.envoy_pid(), envoy, "adopted, not doubled");
    course.end().await;
}

/// As a service manager does it, where Envoy is told to outlive the agent.
#[tokio::test(flavor = "multi_thread")]
async fn agent_restarted() {
    let options = Options {
        leave_envoy: true,
        ..Options::default()
    };
    let mut course = Course::begin_with("agent_restarted", options).await;
    let envoy = course.stack.envoy_pid();
    for _ in 0..course.rounds(1) {
        course.stack.agent.terminate();
        course.change(PLAIN_RULE).await;
        course.lasts(300).await;
        course.agent_returns().await;
        course.recovers().await;
    }
    assert_eq!(course.stack.envoy_pid(), envoy, "adopted, not doubled");
    course.end().await;
}

/// The next version is put in place and started while the old one runs; then the old one ends. `PORTREEVE_NEXT` names it, beside
/// an old one in `PORTREEVE`. Otherwise it is the same program under another name: what is played then is the way to upgrade, not
/// what differs between two versions.
#[tokio::test(flavor = "multi_thread")]
async fn agent_upgraded() {
    let options = Options {
        leave_envoy: true,
        ..Options::default()
    };
    let mut course = Course::begin_with("agent_upgraded", options).await;
    let envoy = course.stack.envoy_pid();
    let mut next = course.stack.agent.process.launch_mut().clone();
    let program = next.directory.join("portreeve-next");
    // By another process: a child that is being started meanwhile would hold a file that was open for writing here, and it
    // could not be run.
    let copied = std::process::Command::new("cp")
        .args([
            &std::env::var_os("PORTREEVE_NEXT").map_or(next.program, PathBuf::from),
            &program,
        ])
        .status();
    assert!(copied.unwrap().success());
    next.program = program;
    next.name = "portreeve-next".to_owned();
    let mut beside = next.clone().start();
    // Two cannot keep one Envoy: the second says so, and harms nothing.
    beside.wait_for_log("another agent uses it", PATIENCE).await;
    course.change(PLAIN_RULE).await;
    course.is_served().await;
    assert_eq!(course.stack.envoy_pid(), envoy);
    beside.end();
    course.stack.agent.terminate();
    let process = std::mem::replace(&mut course.stack.agent.process, next.start());
    course.agent_is_back().await;
    drop(process);
    course.change(PLAIN_RULE).await;
    course.recovers().await;
    assert_eq!(course.stack.envoy_pid(), envoy, "adopted, not doubled");
    course.end().await;
}

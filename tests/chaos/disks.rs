//! The agent's disk is full, and then read-only: a small tmpfs, in a mount namespace of the agent's own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::course::{Course, PATIENCE, PLAIN_RULE};
use crate::support::agent::SmallDisk;
use crate::support::client::Request;
use crate::support::stack::{Options, route};

/// In KiB: the agent's state fits, and little beside.
const SIZE: u32 = 16 * 1024;

const NOT_SAVED: &str = "cannot save the agent's state";

#[tokio::test(flavor = "multi_thread")]
async fn disk_full() {
    let Some(mut course) = on_small_disk("disk_full", false).await else {
        return;
    };
    let filler = fill(&course);
    for round in 0..course.rounds(5) {
        // Changes flow although they cannot be kept. Long texts: the state's file has some room of its own. Of a few
        // documents: all of them have to fit when there is room again.
        let name = format!("large{}", round % 5);
        let remark = format!("# {round} {}\n", "x".repeat(1000)).repeat(300);
        let large = format!(
            "{remark}{}",
            route(&name, &format!("{name}.example.com"), "orders")
        );
        course.stack.put(&name, &large).await;
        course.change(PLAIN_RULE).await;
        course.recovers().await;
        course.lasts(100).await;
    }
    course.log_says(NOT_SAVED).await;
    std::fs::remove_file(&filler).unwrap();
    course.change(PLAIN_RULE).await;
    course.log_says("the agent's state is saved again").await;
    course.recovers().await;
    // Back to where it began: what is still held then is held of nothing.
    course.stack.consul.delete_tree("portreeve/config/large").await;
    let last = Request::get("large0.example.com", "/");
    course
        .stack
        .until(&last, "the large documents' end", |reply| reply.status == 404)
        .await;
    course.end().await;
}

/// Nothing fits on the agent's disk any more, and everything that runs there begins anew: Envoy is killed, makes way for another, and the
/// agent is killed. What a start needs is there, so nothing has to be written for it.
#[tokio::test(flavor = "multi_thread")]
async fn disk_full_restarts() {
    let Some(mut course) = on_small_disk("disk_full_restarts", false).await else {
        return;
    };
    for round in 0..course.rounds(1) {
        fill(&course);
        course.change(PLAIN_RULE).await;
        course.recovers().await;
        course.kill_envoy().await;
        course.restart_envoy().await;
        let envoy = course.envoy_told().await.expect("an Envoy");
        course.stack.agent.kill();
        stay_in_namespace_of(envoy, &mut course);
        course.change(PLAIN_RULE).await;
        // What the agent before said is not this one's word.
        let start = course.log_length();
        course.agent_returns().await;
        course.recovers().await;
        let told = course.envoy_told().await.expect("an Envoy");
        assert_eq!(told, envoy, "adopted, not doubled");
        // Once: the state's file keeps the room that it made then, and has more of its own than the disk in the next round.
        if round == 0 {
            grow(&course, start).await;
        }
        std::fs::remove_file(course.stack.data.join("filler")).unwrap();
        if round == 0 {
            let start = course.log_length();
            course.change(PLAIN_RULE).await;
            course
                .is_told_since(start, &["the agent's state is saved again"])
                .await;
        }
        course.change(PLAIN_RULE).await;
        course.recovers().await;
        course.stack.consul.delete_tree("portreeve/config/large").await;
    }
    course.end().await;
}

/// A disk can be made read-only only while nobody has a file open for writing, as Envoy its log: that one is elsewhere. The agent dies, finds the disk so, says so
/// and ends; Envoy serves on, until the disk is mended and the agent is back.
#[tokio::test(flavor = "multi_thread")]
async fn disk_read_only() {
    let Some(mut course) = on_small_disk("disk_read_only", true).await else {
        return;
    };
    let envoy = course.stack.envoy_pid();
    course.stack.agent.kill();
    let data = course.stack.data_directory().to_owned();
    let namespace = stay_in_namespace_of(envoy, &mut course);
    remount(&namespace, &data, "ro");
    course.change(PLAIN_RULE).await;
    course.stack.agent.process.start_again();
    course.log_says("data_dir must be writable").await;
    course.log_says("Read-only file system").await;
    let end = course.stack.agent.process.wait_exit(PATIENCE).expect("its end");
    assert!(!end.success());
    course.lasts(300).await;
    remount(&namespace, &data, "rw");
    course.agent_returns().await;
    course.recovers().await;
    assert_eq!(course.stack.envoy_pid(), envoy, "adopted, not doubled");
    course.end().await;
}

/// Documents, until there is no room for one: the state's file has some of its own.
async fn grow(course: &Course, start: usize) {
    // Of few lines: a build that is not optimised reads twenty thousand of them for seconds.
    let text = format!("# {}\n", "much to keep ".repeat(80)).repeat(300);
    let refused = || {
        let log = course.stack.agent.process.log();
        log.get(start..).is_some_and(|since| since.contains(NOT_SAVED))
    };
    for count in 0..30 {
        if refused() {
            return;
        }
        course.stack.put(&format!("large-{count}"), &text).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    course.is_told_since(start, &[NOT_SAVED]).await;
}

/// Until nothing fits any more. What is open stays on the disk, so it is closed again.
fn fill(course: &Course) -> PathBuf {
    let filler = course.stack.data.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    let mut block = vec![0; 64 * 1024];
    while !block.is_empty() {
        if std::io::Write::write_all(&mut file, &block).is_err() {
            block.truncate(block.len() / 2);
        }
    }
    filler
}

/// The next agent enters it in place of making its own.
fn stay_in_namespace_of(envoy: i32, course: &mut Course) -> String {
    let namespace = envoy.to_string();
    // What is seen of the namespace from here was seen by the agent's pid.
    let data = course.stack.data_directory().to_owned();
    let seen = format!("/proc/{namespace}/root{}", data.display());
    course.stack.data = seen.into();
    let launch = course.stack.agent.process.launch_mut();
    // In place of: --mount bash -c SCRIPT; or of what this put there before.
    let former = if launch.program.as_os_str() == "nsenter" {
        3
    } else {
        4
    };
    launch.program = "nsenter".into();
    let enter = ["--target", &namespace, "--mount"].map(std::ffi::OsString::from);
    launch.args.splice(0..former, enter);
    namespace
}

/// None: this machine does not let us mount. Where CI runs that is a failure.
async fn on_small_disk(fault: &'static str, without_envoy: bool) -> Option<Course> {
    let can = Command::new("unshare").args(["--mount", "true"]).output();
    if !can.is_ok_and(|output| output.status.success()) {
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        println!("{fault}: not played: a mount namespace takes root with CAP_SYS_ADMIN");
        assert!(!ci, "CI must play this");
        return None;
    }
    let options = Options {
        small_disk: Some(SmallDisk {
            kib: SIZE,
            without_envoy,
        }),
        ..Options::default()
    };
    Some(Course::begin_with(fault, options).await)
}

fn remount(pid: &str, data: &Path, how: &str) {
    let output = Command::new("nsenter")
        .args(["--target", pid, "--mount", "mount", "-o"])
        .arg(format!("remount,{how}"))
        .arg(data)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

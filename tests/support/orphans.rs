//! No program outlives its test: not when it was killed and had children, and not when the tests themselves are killed.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use rustix::process::{Pid, Signal};

/// The environment variable that marks everything a [`super::process::Process`] started, its children's children too.
pub const MARK: &str = "PORTREEVE_TEST_PROCESS";

/// Starts, once, a shell that sees this test process end, however it ends, and then kills all that it started.
pub fn guard() {
    static GUARD: OnceLock<Child> = OnceLock::new();
    GUARD.get_or_init(|| {
        let script = r#"
            cat >/dev/null
            for process in /proc/[0-9]*; do
                grep -qsaF "$0" "$process/environ" && kill -9 "${process#/proc/}"
            done
        "#;
        let mut shell = Command::new("/bin/sh");
        shell
            .arg("-c")
            .arg(script)
            .arg(format!("{MARK}={}-", std::process::id()))
            .process_group(0);
        shell
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        shell.spawn().expect("a shell that watches over the tests")
    });
}

/// Kills the processes that carry this mark.
pub fn kill_marked(mark: &str) {
    for pid in marked(mark) {
        rustix::process::kill_process(pid, Signal::KILL).ok();
    }
}

/// Kills the processes whose command line names this directory: an Envoy, whose environment its agent has cleared.
pub fn kill_named(directory: &Path) {
    let own = std::process::id();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let wanted = directory.as_os_str().as_encoded_bytes();
    for pid in pids.filter(|pid| *pid != own) {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.windows(wanted.len()).any(|part| part == wanted) {
            Pid::from_raw(pid as i32).map(|pid| rustix::process::kill_process(pid, Signal::KILL));
        }
    }
}

/// The processes that carry this mark: a child of a killed child is found even in a process group of its own.
fn marked(mark: &str) -> Vec<Pid> {
    let wanted = format!("{MARK}={mark}");
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let carries = |pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == wanted.as_bytes())
    };
    pids.filter(carries).filter_map(Pid::from_raw).collect()
}

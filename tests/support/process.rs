//! One child process: its log, its signals, its end.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use rustix::process::{Pid, Signal};

use super::orphans::{MARK, guard, kill_marked};
use super::wait_for;

/// What a child inherits. The rest (`CONSUL_HTTP_TOKEN`, `VAULT_ADDR`, proxies) would change what is tested.
const INHERITED: [&str; 7] = [
    "PATH",
    "TMPDIR",
    "LANG",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "LLVM_PROFILE_FILE",
    "LD_LIBRARY_PATH",
];

/// What to run, and how to run it again after it was killed.
#[derive(Clone, Debug)]
pub struct Launch {
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub env: Vec<(OsString, OsString)>,
    /// Where the log goes, and HOME.
    pub directory: PathBuf,
}

impl Launch {
    pub fn new(name: &str, program: impl Into<PathBuf>, directory: &Path) -> Launch {
        let (name, program, directory) = (name.to_owned(), program.into(), directory.to_owned());
        Launch {
            name,
            program,
            args: Vec::new(),
            env: Vec::new(),
            directory,
        }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Launch {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Launch {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Launch {
        self.env
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    pub fn start(self) -> Process {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let serial = COUNT.fetch_add(1, Ordering::Relaxed);
        let log = self.directory.join(format!("{}.log", self.name));
        let mark = format!("{}-{serial}", std::process::id());
        let mut process = Process {
            launch: self,
            log,
            mark,
            child: None,
        };
        process.start_again();
        process
    }
}

/// A running child. Dropping it ends the child and all that the child started.
pub struct Process {
    launch: Launch,
    log: PathBuf,
    mark: String,
    child: Option<Child>,
}

impl Process {
    /// Starts the same program with the same arguments; kills the old one if it still runs. The log goes on.
    pub fn start_again(&mut self) {
        self.kill();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("a log file");
        let mut command = Command::new(&self.launch.program);
        command
            .args(&self.launch.args)
            .current_dir(&self.launch.directory)
            .env_clear();
        command.envs(
            INHERITED
                .iter()
                .filter_map(|name| Some((name, std::env::var_os(name)?))),
        );
        command
            .env("HOME", &self.launch.directory)
            .env(MARK, &self.mark)
            .envs(self.launch.env.iter().cloned());
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log);
        // Its own group: a Ctrl-C at the terminal reaches the tests alone, and the guard ends what they leave.
        guard();
        let started = command.process_group(0).spawn();
        let child =
            started.unwrap_or_else(|error| panic!("cannot start {}: {error}", self.launch.program.display()));
        self.child = Some(child);
    }

    pub fn name(&self) -> &str {
        &self.launch.name
    }

    /// The launch it starts with the next time, for a restart with other arguments.
    pub fn launch_mut(&mut self) -> &mut Launch {
        &mut self.launch
    }

    pub fn pid(&self) -> u32 {
        self.child
            .as_ref()
            .map(Child::id)
            .unwrap_or_else(|| panic!("{} does not run", self.launch.name))
    }

    pub fn is_running(&mut self) -> bool {
        self.exit_status().is_none() && self.child.is_some()
    }

    /// How it ended by itself or by a signal, if it has.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child
            .as_mut()
            .and_then(|child| child.try_wait().expect("a child's state"))
    }

    /// Sends a signal to the child alone, not to what it started.
    pub fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            let pid = Pid::from_raw(self.pid() as i32).expect("a process id");
            rustix::process::kill_process(pid, signal)
                .unwrap_or_else(|error| panic!("{}: {error}", self.launch.name));
        }
    }

    /// SIGSTOP: it is there, it holds its sockets, it answers nothing.
    pub fn stop(&mut self) {
        self.signal(Signal::STOP);
    }

    pub fn cont(&mut self) {
        self.signal(Signal::CONT);
    }

    pub fn hang_up(&mut self) {
        self.signal(Signal::HUP);
    }

    /// SIGKILL, to the child alone: what it started lives on until this value is dropped.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        if let Some(mut child) = self.child.take() {
            child.wait().expect("the end of a killed child");
        }
    }

    /// SIGTERM; panics if it has not ended within `limit`.
    pub fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        self.cont();
        self.wait_exit(limit)
            .unwrap_or_else(|| panic!("{} did not end within {limit:?} of SIGTERM", self.launch.name))
    }

    /// SIGTERM, and SIGKILL after 5 s.
    pub fn end(&mut self) {
        self.signal(Signal::TERM);
        self.cont();
        if self.child.is_some() && self.wait_exit(Duration::from_secs(5)).is_none() {
            self.kill();
        }
    }

    /// Waits for it to end by itself. Blocks the thread: not for use where the same thread serves the child.
    pub fn wait_exit(&mut self, limit: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        while started.elapsed() < limit {
            if let Some(status) = self.exit_status() {
                self.child = None;
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    /// All that it has written to stdout and stderr, over all its starts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The log's length now, for [`Process::wait_for_log_after`].
    pub fn log_length(&self) -> usize {
        self.log().len()
    }

    /// Waits for a line that contains `text`, and returns it.
    pub async fn wait_for_log(&mut self, text: &str, limit: Duration) -> String {
        self.wait_for_log_after(0, text, limit).await
    }

    /// The same, in what was logged after `start`.
    pub async fn wait_for_log_after(&mut self, start: usize, text: &str, limit: Duration) -> String {
        let what = format!("{:?} in the log of {}", text, self.launch.name);
        wait_for(&what, limit, async || {
            let log = self.log();
            let line = log
                .get(start..)
                .unwrap_or_default()
                .lines()
                .find(|line| line.contains(text))
                .map(str::to_owned);
            line.ok_or_else(|| anyhow!("it ends with {:?}", log.lines().last().unwrap_or_default()))
        })
        .await
    }

    /// For the polls of a start: an early end is worth no more waiting.
    pub fn check_running(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.exit_status() {
            panic!(
                "{} ended early with {status}; its log:\n{}",
                self.launch.name,
                last_lines(&self.log(), 40)
            );
        }
        if self.child.is_none() {
            bail!("{} was not started", self.launch.name);
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
        kill_marked(&self.mark);
        if std::thread::panicking() {
            eprintln!("---- log of {} ({}) ----", self.launch.name, self.log.display());
            eprintln!("{}", last_lines(&self.log(), 60));
        }
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Resident memory of a process now; 0 when it does not run.
pub fn memory_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or(0)
}

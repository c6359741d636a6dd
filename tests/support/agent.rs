//! The program under test, as an operator runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::Result;
use hyper::Method;
use tempfile::TempDir;

use super::http::{Answer, over_socket};
use super::orphans::kill_named;
use super::process::{Launch, Process};
use super::{START_LIMIT, scratch_directory, wait_for};

/// What cargo built, or another build: `PORTREEVE` names it.
pub fn program_under_test() -> PathBuf {
    let named = std::env::var_os("PORTREEVE").map(PathBuf::from);
    named.unwrap_or_else(|| env!("CARGO_BIN_EXE_portreeve").into())
}

/// What the agent's API answers 2xx on once it serves.
pub const READY_PATH: &str = "/v1/ready";

pub struct Agent {
    pub process: Process,
    pub api: PathBuf,
    _directory: TempDir,
}

/// An agent that is yet to be started.
pub struct AgentLaunch {
    launch: Launch,
    api: PathBuf,
    directory: TempDir,
}

#[derive(Clone, Copy)]
pub struct SmallDisk {
    pub kib: u32,
    /// What Envoy writes is on another one.
    pub without_envoy: bool,
}

impl Agent {
    /// An agent with a scratch directory of its own, where its API's socket is expected as `api.sock`.
    pub fn prepare() -> AgentLaunch {
        let directory = scratch_directory("agent");
        let launch = Launch::new("portreeve", program_under_test(), directory.path());
        AgentLaunch {
            launch,
            api: directory.path().join("api.sock"),
            directory,
        }
    }

    /// One request to its API; every status is an answer.
    pub async fn api(&self, method: Method, path: &str, body: &str) -> Result<Answer> {
        over_socket(&self.api, method, path, body.to_owned()).await
    }

    pub async fn wait_ready(&mut self) {
        wait_for("portreeve to be ready", START_LIMIT, async || {
            self.process.check_running()?;
            over_socket(&self.api, Method::GET, READY_PATH, "").await?.ok()
        })
        .await;
    }

    pub async fn wait_for_log(&mut self, text: &str) -> String {
        self.process.wait_for_log(text, START_LIMIT).await
    }

    /// SIGHUP: reload.
    pub fn reload(&mut self) {
        self.process.hang_up();
    }

    /// SIGTERM; panics if it takes more than 30 s.
    pub fn terminate(&mut self) {
        self.process.terminate(Duration::from_secs(30));
    }

    /// SIGKILL, to the agent alone: an Envoy that it supervises goes on.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    pub async fn restart(&mut self) {
        self.process.start_again();
        self.wait_ready().await;
    }
}

impl Drop for Agent {
    /// Its Envoy may be one that outlives it, as it should.
    fn drop(&mut self) {
        self.process.end();
        kill_named(self._directory.path());
    }
}

impl AgentLaunch {
    /// The agent's scratch directory, for its settings, documents and state.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Writes a file there, directories included, and returns its path.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory().join(name);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory for a file");
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// Where its settings say its API's socket is.
    pub fn api_socket(mut self, path: impl Into<PathBuf>) -> AgentLaunch {
        self.api = path.into();
        self
    }

    pub fn api(&self) -> &Path {
        &self.api
    }

    pub fn arg(mut self, arg: impl AsRef<std::ffi::OsStr>) -> AgentLaunch {
        self.launch = self.launch.arg(arg);
        self
    }

    pub fn args<A: AsRef<std::ffi::OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> AgentLaunch {
        self.launch = self.launch.args(args);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> AgentLaunch {
        self.launch = self.launch.env(name, value);
        self
    }

    /// No file that it writes may grow beyond this: the nearest to a full disk that needs no rights. The log counts too.
    pub fn file_size_limit(mut self, kib: u32) -> AgentLaunch {
        let program = std::mem::replace(&mut self.launch.program, "bash".into());
        let script = format!("trap '' XFSZ; ulimit -S -f {kib}; exec \"$0\" \"$@\"");
        self.launch
            .args
            .splice(0..0, ["-c".into(), script.into(), program.into_os_string()]);
        self
    }

    /// How many files it may have open, and how many it may ask for.
    pub fn open_files(mut self, soft: u32, hard: u32) -> AgentLaunch {
        let program = std::mem::replace(&mut self.launch.program, "bash".into());
        let script = format!("ulimit -S -n {soft}; ulimit -H -n {hard}; exec \"$0\" \"$@\"");
        self.launch
            .args
            .splice(0..0, ["-c".into(), script.into(), program.into_os_string()]);
        self
    }

    /// Where its standard output goes, as a shell writes it.
    pub fn output_to(mut self, place: &str) -> AgentLaunch {
        let program = std::mem::replace(&mut self.launch.program, "bash".into());
        let script = format!("exec \"$0\" \"$@\" > {place}");
        self.launch
            .args
            .splice(0..0, ["-c".into(), script.into(), program.into_os_string()]);
        self
    }

    /// This directory is a tmpfs, which the agent and its children alone see.
    pub fn on_disk(mut self, directory: &Path, disk: SmallDisk) -> AgentLaunch {
        std::fs::create_dir_all(directory).expect("a directory to mount on");
        let program = std::mem::replace(&mut self.launch.program, "unshare".into());
        let mut script = format!(
            "set -e; mount -t tmpfs -o size={}k,mode=0700 tmpfs {}; ",
            disk.kib,
            directory.display()
        );
        if disk.without_envoy {
            let envoy = directory.join("envoy");
            script.push_str(&format!(
                "mkdir -m 0700 {0}; mount -t tmpfs -o mode=0700 tmpfs {0}; ",
                envoy.display()
            ));
        }
        script.push_str("exec \"$0\" \"$@\"");
        let within = ["--mount", "bash", "-c", &script].map(std::ffi::OsString::from);
        let within = within.into_iter().chain([program.into_os_string()]);
        self.launch.args.splice(0..0, within);
        self
    }

    /// Starts it without waiting.
    pub fn start(self) -> Agent {
        Agent {
            process: self.launch.start(),
            api: self.api,
            _directory: self.directory,
        }
    }

    pub async fn start_ready(self) -> Agent {
        let mut agent = self.start();
        agent.wait_ready().await;
        agent
    }
}

/// Runs a portreeve command to its end, with an environment free of Consul's and Vault's variables.
pub fn run(directory: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(program_under_test());
    command
        .args(args)
        .current_dir(directory)
        .env_clear()
        .env("HOME", directory)
        .stdin(Stdio::null());
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.output().expect("portreeve runs")
}

//! This program once more, or a peer's, as a server that is told what to do line by line.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout, Command};

pub struct Child {
    process: tokio::process::Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Child {
    pub fn this_program() -> PathBuf {
        std::env::current_exe().expect("this program")
    }

    /// Returns once it says that it is ready.
    pub async fn start(arguments: &[&str]) -> Child {
        Child::start_program(&Child::this_program(), arguments).await
    }

    pub async fn start_program(program: &Path, arguments: &[&str]) -> Child {
        let mut process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a child");
        let input = process.stdin.take().expect("a pipe");
        let output = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        let mut child = Child {
            process,
            input,
            output,
        };
        child.line().await;
        child
    }

    pub fn pid(&self) -> u32 {
        self.process.id().expect("it runs")
    }

    /// One command; it answers one line of nanoseconds.
    pub async fn ask(&mut self, command: &str) -> Duration {
        self.input
            .write_all(format!("{command}\n").as_bytes())
            .await
            .expect("a child that listens");
        Duration::from_nanos(self.line().await.parse().expect("nanoseconds"))
    }

    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(Duration::from_secs(120), self.output.next_line()).await;
        line.expect("an answer in time")
            .expect("a pipe")
            .expect("an answer")
    }

    pub async fn end(mut self) {
        // It may be gone already.
        let _ = self.process.kill().await;
    }
}

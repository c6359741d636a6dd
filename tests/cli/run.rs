//! Runs the program and shows all of what came back.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Exit code, standard output and standard error.
pub struct Outcome {
    pub code: i32,
    pub out: String,
    pub error: String,
}

impl Outcome {
    /// As one text, for snapshots. What differs from run to run is named.
    pub fn shown(&self, replace: &[(&str, &str)]) -> String {
        let mut text = format!("exit {}\n", self.code);
        if !self.out.is_empty() {
            text.push_str(&format!("--- stdout\n{}", self.out));
        }
        if !self.error.is_empty() {
            text.push_str(&format!("--- stderr\n{}", self.error));
        }
        for (from, to) in replace {
            text = text.replace(from, to);
        }
        text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    }
}

pub fn portreeve(directory: &Path, arguments: &[&str]) -> Outcome {
    with_input(directory, arguments, "")
}

/// The environment is empty but for PATH: what a user has set must not decide a test.
pub fn with_input(directory: &Path, arguments: &[&str], input: &str) -> Outcome {
    let mut child = Command::new(env!("CARGO_BIN_EXE_portreeve"))
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that reads nothing may have closed its end.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Outcome {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        error: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Writes `path: text` files below a directory.
pub fn write(directory: &Path, files: &[(&str, &str)]) {
    for (path, text) in files {
        let path = directory.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
}

//! The demos, in directories and on ports of their own: what they show is right, and what goes wrong is named.

use std::io::{BufRead, BufReader, Read, Seek};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use regex::Regex;

use super::{PORTREEVE, root};

#[test]
fn the_demo_answers_right() {
    run_demo("demo.sh", "target/demo-test", ["7000", "5000", "6000", "9000"]);
}

#[test]
fn the_mesh_demo_answers_right() {
    run_demo(
        "demo-mesh.sh",
        "target/demo-mesh-test",
        ["4000", "8000", "3000", "2000"],
    );
}

/// Nomad is not packaged where CI runs.
#[test]
fn the_nomad_demo_answers_right() {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|directory| directory.join("nomad").is_file()) {
        println!("no nomad here: not checked");
        return;
    }
    run_demo(
        "demo-nomad.sh",
        "target/demo-nomad-test",
        ["62000", "63000", "61000", "64000"],
    );
}

#[test]
fn without_a_nomad_its_demo_says_where_to_get_one() {
    let directory = tempfile::tempdir().unwrap();
    for program in ["bash", "dirname", "cat"] {
        let found = ["/bin", "/usr/bin"].map(|place| Path::new(place).join(program));
        let found = found.iter().find(|path| path.exists()).unwrap();
        std::os::unix::fs::symlink(found, directory.path().join(program)).unwrap();
    }
    let output = Command::new(root().join("tests/demo-nomad.sh"))
        .env_clear()
        .env("PATH", directory.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("nomad is not on PATH") && said.contains("https://") && said.contains("1.11.3"),
        "{said}"
    );
}

/// A program of its own that ends while it is waited for.
#[test]
fn a_demo_whose_program_ends_says_which_and_how() {
    let output = on_free_ports(["3000", "2000", "8000", "1100"], |base| {
        demo("demo.sh", "target/demo-ends-test", base)
            .env("DEMO_PORTREEVE", "/bin/false")
            .output()
            .unwrap()
    });
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let how = "agent ended with exit status 1; its log is target/demo-ends-test/agent.log";
    assert_told(&said, how);
}

/// And one that is killed when everything is up and nobody asks any more.
#[test]
fn a_demo_whose_program_is_killed_says_which_and_how() {
    let pid = Regex::new(r"^ +portreeve +settings: .* pid (\d+)$").unwrap();
    let output = on_free_ports(["1100", "9000", "6000", "5000"], |base| {
        let mut errors = tempfile::tempfile().unwrap();
        let mut running = demo("demo.sh", "target/demo-killed-test", base)
            .env_remove("CI")
            .stdout(Stdio::piped())
            .stderr(errors.try_clone().unwrap())
            .spawn()
            .unwrap();
        let (mut stdout, mut agent) = (String::new(), None);
        for line in BufReader::new(running.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            agent = pid.captures(&line).map(|found| found[1].to_owned()).or(agent);
            if line.starts_with("The gateway stays up until Ctrl-C") {
                match &agent {
                    Some(pid) => kill(pid),
                    None => running.kill().unwrap(),
                }
            }
            stdout += &format!("{line}\n");
        }
        let status = running.wait().unwrap();
        let mut stderr = Vec::new();
        errors.rewind().unwrap();
        errors.read_to_end(&mut stderr).unwrap();
        Output {
            status,
            stdout: stdout.into_bytes(),
            stderr,
        }
    });
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let how = "agent was ended by SIGKILL; its log is target/demo-killed-test/agent.log";
    assert_told(&said, how);
    assert!(said.contains("stopping Envoy, which the agent left"), "{said}");
}

fn kill(pid: &str) {
    let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// As the reason, and once more at the end, below the last lines of all logs.
fn assert_told(said: &str, how: &str) {
    assert_eq!(said.matches(how).count(), 2, "{said}");
    let log = how.rsplit(' ').next().unwrap();
    assert!(root().join(log).is_file(), "{said}");
}

fn run_demo(script: &str, directory: &str, bases: [&str; 4]) {
    let output = on_free_ports(bases, |base| {
        demo(script, directory, base).env("CI", "true").output().unwrap()
    });
    assert!(output.status.success(), "{}", said(&output));
}

fn demo(script: &str, directory: &str, base: &str) -> Command {
    let mut command = Command::new(root().join("tests").join(script));
    command
        .env("DEMO_DIR", directory)
        .env("DEMO_PORTREEVE", PORTREEVE)
        .env("DEMO_PORT_BASE", base)
        .stdin(Stdio::null());
    command
}

/// The first run that found its ports free.
fn on_free_ports(bases: [&str; 4], run: impl Fn(&str) -> Output) -> Output {
    for base in bases {
        let output = run(base);
        let said = said(&output);
        if !said.contains("taken on 127.0.0.1") {
            return output;
        }
        println!("{said}");
    }
    panic!("no free ports for the demo");
}

fn said(output: &Output) -> String {
    let [out, error] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{out}{error}")
}

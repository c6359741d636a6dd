//! A guide, done as it is written: every file saved, every command run, what it shows compared.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::ports::free_port;
use super::{PORTREEVE, blocks, follows, root};

const MARK: &str = "=-=-= step";

/// Ports that the pages use. Other programs of this machine may have them too.
const USUAL: [&str; 9] = [
    "8080", "8443", "8500", "8200", "9000", "9001", "9090", "5432", "21001",
];

/// One page, and what it takes for granted.
pub struct Guide {
    pub page: &'static str,
    /// Done first, in the same shell: what stands under "Before", or a guide before this one.
    pub before: &'static str,
    /// Done last: the request that the page leaves to its reader.
    pub after: &'static str,
    /// How many steps, and how many of their outputs, are there at the least.
    pub steps: usize,
    pub shown: usize,
}

impl Guide {
    pub fn play(&self) {
        let ports = Ports::new();
        let page = root().join("docs/guides").join(self.page);
        let text = std::fs::read_to_string(&page).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let directory = tempfile::tempdir().unwrap();
        let programs = programs(directory.path());
        let work = directory.path().join("work");
        std::fs::create_dir(&work).unwrap();
        std::os::unix::fs::symlink(root().join("vault-policies"), work.join("vault-policies")).unwrap();
        std::fs::write(work.join("ports.hcl"), ports.of_consul()).unwrap();

        let mut script =
            String::from("set -euo pipefail\ntrap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT\n");
        script.push_str(&ports.elsewhere(self.before));
        let mut expected: Vec<(usize, Vec<String>)> = Vec::new();
        let mut steps = 0;
        for block in blocks(&page) {
            if let Some(name) = file_before(&lines, block.line - 1) {
                let mut text = ports.elsewhere(&block.text);
                if name == "consul.hcl" {
                    // All its other ports too. This Consul is the test's own.
                    text.push_str(&ports.of_consul());
                }
                let file = work.join(name);
                std::fs::create_dir_all(file.parent().unwrap()).unwrap();
                std::fs::write(file, text).unwrap();
            } else if block.kind == "sh run" {
                steps += 1;
                write!(script, "echo '{MARK} {steps}'\n{}", ports.elsewhere(&block.text)).unwrap();
            } else if block.kind == "text" {
                let lines = ports.elsewhere(&block.text).lines().map(str::to_owned).collect();
                expected.push((steps, lines));
            }
        }
        write!(script, "echo '{MARK} after'\n{}", ports.elsewhere(self.after)).unwrap();
        assert!(
            steps >= self.steps && expected.len() >= self.shown,
            "{}: its steps were not found",
            self.page
        );
        let said = run(&script, &work, &programs);
        for (step, lines) in expected {
            let begin = said.find(&format!("{MARK} {step}\n")).unwrap();
            let shown = said[begin..]
                .lines()
                .skip(1)
                .take_while(|line| !line.starts_with(MARK));
            let shown: Vec<&str> = shown.collect();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            assert!(
                follows(&lines, &shown),
                "{}, step {step}: expected\n{}\ngot\n{}",
                self.page,
                lines.join("\n"),
                shown.join("\n")
            );
        }
    }
}

/// The name in a line that ends in "save as `edge.hcl`:" before a block.
fn file_before(lines: &[&str], fence: usize) -> Option<String> {
    let said = lines[..fence].iter().rev().find(|line| !line.trim().is_empty())?;
    let (_, name) = said.split_once("ave as `")?;
    Some(name.strip_suffix("`:")?.to_owned())
}

/// A free one in place of each that the pages use.
struct Ports {
    free: BTreeMap<&'static str, u16>,
    others: [u16; 2],
}

impl Ports {
    fn new() -> Self {
        let free = USUAL.iter().map(|usual| match *usual {
            // Vault takes the port after its own, too.
            "8200" => (*usual, first_of_two()),
            _ => (*usual, free_port()),
        });
        Self {
            free: free.collect(),
            others: [free_port(), free_port()],
        }
    }

    fn elsewhere(&self, text: &str) -> String {
        // All in one go: a free port may hold the digits of another's usual one.
        let usual = regex::Regex::new(&format!(r"\b({})\b", USUAL.join("|"))).unwrap();
        let free = |found: &regex::Captures<'_>| self.free[&found[0]].to_string();
        // What a reader has elsewhere, too.
        let text = text
            .replace("https://vault.service.consul:8200", "http://127.0.0.1:8200")
            .replace("/etc/portreeve.d/", "");
        usual.replace_all(&text, free).into_owned()
    }

    fn of_consul(&self) -> String {
        let (http, [server, serf]) = (self.free["8500"], self.others);
        format!(
            "ports {{ http = {http} server = {server} serf_lan = {serf} serf_wan = -1 dns = -1 grpc = -1 }}\n\
             disable_update_check = true\n"
        )
    }
}

/// Guides that are played at the same time draw from the same ports.
fn first_of_two() -> u16 {
    let mut first = free_port();
    loop {
        let second = free_port();
        if second == first + 1 {
            return first;
        }
        first = second;
    }
}

/// What it wrote, if it went well.
fn run(script: &str, work: &Path, programs: &Path) -> String {
    let path = std::env::join_paths(std::iter::once(programs.to_owned()).chain(search_path())).unwrap();
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=40", "240", "bash", "-c", script])
        .current_dir(work)
        .env("PATH", path)
        .stdin(Stdio::null())
        .process_group(0);
    for name in [
        "CONSUL_HTTP_TOKEN",
        "VAULT_TOKEN",
        "BAO_ADDR",
        "BAO_TOKEN",
        "http_proxy",
        "https_proxy",
    ] {
        command.env_remove(name);
    }
    // A directory of its own, so that no token of whoever runs the tests is used or replaced.
    command.env("HOME", work);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let log = |name: &str| std::fs::read_to_string(work.join(name)).unwrap_or_default();
        panic!(
            "{said}\n{}\n-- agent\n{}\n-- vault\n{}\n-- sidecar\n{}\n-- consul\n{}",
            String::from_utf8_lossy(&output.stderr),
            log("agent.log"),
            log("vault.log"),
            log("sidecar.log"),
            log("consul.log")
        );
    }
    said
}

/// Where programs are looked for: what `make setup` fetched first.
fn search_path() -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let fetched = root().join("target/tools/bin");
    let others: Vec<_> = std::env::split_paths(&path).collect();
    std::iter::once(fetched).chain(others)
}

/// The program under test, and OpenBao under the name that the guide uses.
fn programs(directory: &Path) -> PathBuf {
    let programs = directory.join("bin");
    std::fs::create_dir(&programs).unwrap();
    std::os::unix::fs::symlink(PORTREEVE, programs.join("portreeve")).unwrap();
    let bao = search_path()
        .map(|directory| directory.join("bao"))
        .find(|program| program.is_file())
        .expect("bao is not there: `make setup`");
    std::os::unix::fs::symlink(bao, programs.join("vault")).unwrap();
    programs
}

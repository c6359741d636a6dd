//! The mesh guide, done as it is written: every file saved, every command run, what it shows compared.

use std::fmt::Write as _;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::ports::free_port;
use super::{PORTREEVE, blocks, follows, root};

const MARK: &str = "=-=-= step";

/// The name in a line such as "Save as `edge.hcl`:" before a block.
fn file_before(lines: &[&str], fence: usize) -> Option<String> {
    let said = lines[..fence].iter().rev().find(|line| !line.trim().is_empty())?;
    let (_, name) = said.split_once("Save as `")?;
    Some(name.split_once("`:")?.0.to_owned())
}

#[test]
fn the_mesh_guide_works_as_it_is_written() {
    // Vault takes the port after its own, too.
    let [https, consul, vault, _, pets, sidecar, server, serf] = std::array::from_fn(|_| free_port());
    // The page has the default ports, and other programs of this machine may have them too.
    let elsewhere = |text: &str| {
        // All in one go: a free port may hold the digits of another's usual one.
        let usual = regex::Regex::new(r"8443|8500|8200|21001|9001").unwrap();
        let free = |found: &regex::Captures<'_>| match &found[0] {
            "8443" => https.to_string(),
            "8500" => consul.to_string(),
            "8200" => vault.to_string(),
            "21001" => sidecar.to_string(),
            _ => pets.to_string(),
        };
        usual.replace_all(text, free).into_owned()
    };
    let page = root().join("docs/guides/mesh-ingress.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let directory = tempfile::tempdir().unwrap();
    let programs = programs(directory.path());
    let work = directory.path().join("work");
    std::fs::create_dir(&work).unwrap();

    let mut script =
        String::from("set -euo pipefail\ntrap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT\n");
    let mut expected: Vec<(usize, Vec<String>)> = Vec::new();
    let mut steps = 0;
    for block in blocks(&page) {
        if let Some(name) = file_before(&lines, block.line - 1) {
            let mut text = elsewhere(&block.text);
            if name == "consul.hcl" {
                // All its other ports too. This Consul is the test's own.
                let ports = format!(
                    "ports {{ http = {consul} server = {server} serf_lan = {serf} serf_wan = -1 dns = -1 grpc = -1 }}"
                );
                writeln!(text, "{ports}").unwrap();
            }
            std::fs::write(work.join(name), text).unwrap();
        } else if block.kind == "sh run" {
            steps += 1;
            write!(script, "echo '{MARK} {steps}'\n{}", elsewhere(&block.text)).unwrap();
        } else if block.kind == "text" {
            expected.push((steps, elsewhere(&block.text).lines().map(str::to_owned).collect()));
        }
    }
    assert!(
        steps >= 14 && expected.len() >= 7,
        "the guide's steps were not found"
    );

    let path = std::env::join_paths(std::iter::once(programs).chain(search_path())).unwrap();
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=20", "240", "bash", "-c", &script])
        .current_dir(&work)
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
    command.env("HOME", &work);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let log = |name: &str| std::fs::read_to_string(work.join(name)).unwrap_or_default();
    let everything = || {
        format!(
            "{said}\n{}\n-- agent\n{}\n-- sidecar\n{}\n-- consul\n{}",
            String::from_utf8_lossy(&output.stderr),
            log("agent.log"),
            log("sidecar.log"),
            log("consul.log")
        )
    };
    assert!(output.status.success(), "{}", everything());
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
            "step {step}: expected\n{}\ngot\n{}",
            lines.join("\n"),
            shown.join("\n")
        );
    }
}

/// Where programs are looked for: what `make setup` fetched first.
fn search_path() -> impl Iterator<Item = std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let fetched = root().join("target/tools/bin");
    let others: Vec<_> = std::env::split_paths(&path).collect();
    std::iter::once(fetched).chain(others)
}

/// The program under test, and OpenBao under the name that the guide uses.
fn programs(directory: &Path) -> std::path::PathBuf {
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

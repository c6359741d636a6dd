//! What the deployment files tell machines to run, our program understands.

use std::path::{Path, PathBuf};
use std::process::Command;

use portreeve::agent::settings::{Flags, Settings};
use regex::Regex;

use super::{PORTREEVE, root};

fn units() -> Vec<PathBuf> {
    let directory = std::fs::read_dir(root().join("docs/deploy")).unwrap();
    let mut units: Vec<PathBuf> = directory
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "service"))
        .collect();
    units.sort();
    assert_eq!(units.len(), 3, "{units:?}");
    units
}

/// Every flag is read and has its value before help is shown.
fn assert_understood(place: &str, arguments: &[&str]) {
    let output = Command::new(PORTREEVE)
        .args(arguments)
        .arg("-help")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{place}: {arguments:?}: {said}");
}

#[test]
fn commands_of_the_systemd_units_are_ours() {
    let command = Regex::new(r"(?m)^Exec\w+=[-@:+!]*/usr/local/bin/portreeve (.*)$").unwrap();
    let mut checked = 0;
    for unit in units() {
        let text = std::fs::read_to_string(&unit).unwrap();
        for found in command.captures_iter(&text) {
            let arguments: Vec<&str> = found[1].split_whitespace().collect();
            assert_understood(&unit.display().to_string(), &arguments);
            checked += 1;
        }
        assert!(
            text.contains("\nStartLimitIntervalSec=0\n"),
            "{}: systemd would give it up",
            unit.display()
        );
        assert!(
            !text.contains("curl"),
            "{}: needs another program",
            unit.display()
        );
    }
    assert_eq!(
        checked, 4,
        "agent, Envoy and its drain, and that of a supervised one"
    );
}

/// Of all its ends, that is the one which the next start would have as well.
#[test]
fn the_unit_of_envoy_is_not_started_again_where_the_agent_supervises() {
    let unit = std::fs::read_to_string(root().join("docs/deploy/portreeve-envoy.service")).unwrap();
    let codes: Vec<&str> = unit
        .lines()
        .filter_map(|line| line.strip_prefix("RestartPreventExitStatus="))
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let settings = directory.path().join("portreeve.hcl");
    std::fs::write(
        &settings,
        "gateways = [\"edge\"]\nenvoy {\n  supervise = true\n}\n",
    )
    .unwrap();
    let ended = |gateway: &[&str]| {
        let mut command = Command::new(PORTREEVE);
        command
            .args(["envoy", "run", "-config"])
            .arg(&settings)
            .args(gateway);
        command.output().unwrap().status.code().unwrap()
    };
    assert_eq!(codes, [ended(&[]).to_string()]);
    std::fs::write(&settings, "gateway = []\n").unwrap();
    assert_eq!(
        ended(&["-gateway=edge"]),
        1,
        "a slip is mended, and it shall start then"
    );
}

#[test]
fn commands_of_the_nomad_job_are_ours() {
    let job = root().join("nomad/portreeve.nomad.hcl");
    let docker = std::fs::read_to_string(root().join("nomad/portreeve-docker.nomad.hcl")).unwrap();
    let text = std::fs::read_to_string(&job).unwrap() + &docker;
    let task =
        Regex::new(r#"(?s)(?:command = var\.portreeve|network_mode = "host")\s+args\s+= \[(.*?)\]"#).unwrap();
    let word = Regex::new(r#""([^"]*)""#).unwrap();
    let mut checked = 0;
    for found in task.captures_iter(&text) {
        let list = &found[1];
        let arguments: Vec<&str> = word
            .captures_iter(list)
            .map(|word| word.get(1).unwrap().as_str())
            .collect();
        assert_understood(&job.display().to_string(), &arguments);
        checked += 1;
    }
    assert_eq!(checked, 4, "agent, Envoy and its drain, and the container");
    assert!(
        !text.contains("curl") && !text.contains("/bin/sh"),
        "needs another program"
    );
}

fn default_of<'a>(job: &'a str, variable: &str) -> &'a str {
    let declared = job.split(&format!("variable \"{variable}\" {{\n")).nth(1);
    let block = declared.unwrap().split("\n}\n").next().unwrap();
    let default = block.lines().find(|line| line.trim().starts_with("default"));
    default.unwrap().split_once("= ").unwrap().1
}

/// What the agent's tokens may do is more than what a gateway needs: whoever runs the jobs says what documents may use of it.
#[test]
fn the_nomad_jobs_bound_what_documents_may_use() {
    let bounds = Regex::new(r"(?s)kv_documents \{\n.*?\n +\}\n").unwrap();
    let of_the_job = r#" : replace\(path, "\{job\}", var\.job\)\]"#;
    let variable = Regex::new(&format!(
        r"\$\{{jsonencode\((?:\[for path in )?var\.(\w+)(?:{of_the_job})?\)\}}"
    ))
    .unwrap();
    let directory = tempfile::tempdir().unwrap();
    for job in ["portreeve.nomad.hcl", "portreeve-docker.nomad.hcl"] {
        let text = std::fs::read_to_string(root().join("nomad").join(job)).unwrap();
        let with_defaults = variable.replace_all(
            bounds.find(&text).unwrap().as_str(),
            |found: &regex::Captures<'_>| {
                default_of(&text, &found[1]).replace("{job}", default_of(&text, "job").trim_matches('"'))
            },
        );
        let path = directory.path().join("portreeve.hcl");
        std::fs::write(&path, &*with_defaults).unwrap();
        let flags = Flags {
            config: vec![path],
            gateways: vec!["edge".to_owned()],
            ..Flags::default()
        };
        let permissions = Settings::load(&flags, "node").unwrap().permissions;
        assert!(permissions.files.is_empty(), "{job}");
        assert_eq!(
            permissions.vault_paths,
            ["pki_int/sign/edge".into(), "secret/portreeve/".into()],
            "{job}"
        );
        assert_eq!(
            permissions.nomad_variables,
            ["nomad/jobs/portreeve".into()],
            "{job}"
        );
    }
}

/// The Nomad Pack is the job, its variables' defaults being the pack's.
#[test]
fn the_pack_is_the_job() {
    let job = std::fs::read_to_string(root().join("nomad/portreeve.nomad.hcl")).unwrap();
    assert!(
        !job.contains("[[") && !job.contains("]]"),
        "what packs are written with"
    );
    let mut variables = String::new();
    let mut template = String::new();
    let mut name: Option<String> = None;
    let mut begun = false;
    for line in job.lines() {
        // The head says how to run the job file.
        begun |= !line.starts_with('#');
        if !begun || (template.is_empty() && line.is_empty()) {
            continue;
        }
        if let Some(rest) = line.strip_prefix("variable \"") {
            name = Some(rest.split('"').next().unwrap().to_owned());
        }
        let mut made = line.to_owned();
        if let Some(name) = &name {
            variables.push_str(line);
            variables.push('\n');
            if let Some((key, _)) = line.split_once('=').filter(|(key, _)| key.trim() == "default") {
                // A text is a text, whatever of it would be a template of the job's.
                let verbatim = r#"toJson | replace "${" "$${" | replace "%{" "%%{""#;
                made = format!("{key}= [[ var \"{name}\" . | {verbatim} ]]");
            }
        }
        if line == "}" && name.take().is_some() {
            variables.push('\n');
        }
        template.push_str(&made);
        template.push('\n');
    }
    for (path, text) in [
        ("nomad/pack/variables.hcl", format!("{}\n", variables.trim_end())),
        ("nomad/pack/templates/portreeve.nomad.tpl", template.clone()),
    ] {
        let path = root().join(path);
        if std::env::var_os("UPDATE_REFERENCE").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == text,
            "{} is out of date: run this test with UPDATE_REFERENCE=1",
            path.display()
        );
    }
    // Each variable of the job is one of the pack, and every default of it is taken from there.
    let declared = variables.matches("variable \"").count();
    let with_default = variables
        .lines()
        .filter(|line| line.trim_start().starts_with("default"))
        .count();
    assert_eq!(template.matches("[[ var \"").count(), with_default);
    assert_eq!(declared, with_default, "a pack runs without a question");
    let metadata = std::fs::read_to_string(root().join("nomad/pack/metadata.hcl")).unwrap();
    assert!(
        metadata.contains(&format!("\"{}\"", env!("CARGO_PKG_VERSION"))),
        "{metadata}"
    );
}

#[test]
fn commands_of_the_container_are_ours() {
    let file = root().join("docs/deploy/Dockerfile");
    let text = std::fs::read_to_string(&file).unwrap();
    let word = Regex::new(r#""([^"]*)""#).unwrap();
    let words = |instruction: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.starts_with(instruction));
        word.captures_iter(line.unwrap_or_default())
            .map(|word| word[1].to_owned())
            .collect()
    };
    let all = [words("ENTRYPOINT"), words("CMD")].concat();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    assert!(
        all.first().is_some_and(|program| program.ends_with("portreeve")),
        "{all:?}"
    );
    assert_understood("Dockerfile", &all[1..]);

    // A container that is told to stop is killed after 10 s unless its run said otherwise, while Envoy still drains.
    let unit = std::fs::read_to_string(root().join("docs/deploy/portreeve.service")).unwrap();
    let granted = |text: &str, before: &str| {
        let seconds = text.split_once(before).map(|(_, after)| after);
        let digits = seconds
            .unwrap_or_default()
            .chars()
            .take_while(char::is_ascii_digit);
        digits.collect::<String>()
    };
    let (seconds, by_systemd) = (
        granted(&text, "docker run --network host --stop-timeout "),
        granted(&unit, "\nTimeoutStopSec="),
    );
    assert!(
        !seconds.is_empty() && seconds == by_systemd,
        "{seconds:?}, {by_systemd:?}"
    );

    // `COPY . .` is of the source.
    let left_out = std::fs::read_to_string(root().join(".dockerignore")).unwrap();
    assert!(left_out.lines().any(|line| line == "/target"), "{left_out}");
}

/// systemd's own check, where it is installed: in CI it is.
#[test]
fn systemd_takes_the_units() {
    let installed = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|directory| directory.join("systemd-analyze").is_file());
    if !installed {
        assert_ne!(
            std::env::var("CI").as_deref(),
            Ok("true"),
            "no systemd-analyze here"
        );
        println!("no systemd-analyze here: not checked");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let copies: Vec<PathBuf> = units()
        .iter()
        .map(|unit| {
            // It looks for the programs, and for the units that they come after.
            let text = std::fs::read_to_string(unit).unwrap();
            let text = text.replace("/usr/local/bin/portreeve", PORTREEVE);
            let copy = directory.path().join(unit.file_name().unwrap());
            std::fs::write(&copy, text).unwrap();
            copy
        })
        .collect();
    let said = verify(&copies);
    assert!(said.is_empty(), "{said}");

    // It does look.
    let broken = directory.path().join("portreeve.service");
    let text = std::fs::read_to_string(&broken).unwrap();
    std::fs::write(&broken, text.replace("KillMode=process", "KillMode=perhaps")).unwrap();
    assert!(verify(&copies).contains("kill mode"), "a broken unit is told");
}

fn verify(units: &[impl AsRef<Path>]) -> String {
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .args(units.iter().map(AsRef::as_ref))
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter(|line| line.contains("portreeve"))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// Each rule of the policies that are shipped, and no other, has its row on the page about security.
#[test]
fn every_permission_is_explained() {
    let text = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let rule =
        Regex::new(r#"(?m)^(\w+) "([^"]*)" \{\n  (?:policy|capabilities) = \[?"(\w+)"\]?\n\}$"#).unwrap();
    let mut rules = Vec::new();
    let mut files: Vec<String> = ["consul-acl-policy", "consul-mesh-policy"]
        .map(|name| format!("docs/deploy/{name}.hcl"))
        .into();
    for entry in std::fs::read_dir(root().join("vault-policies")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".hcl") {
            files.push(format!("vault-policies/{name}"));
        }
    }
    for file in files {
        let policy = text(&file);
        let before = rules.len();
        for found in rule.captures_iter(&policy) {
            let [kind, name, right] = [&found[1], &found[2], &found[3]];
            rules.push(match kind {
                "path" => format!("| `{name}` {right} |"),
                _ => format!("| `{kind} \"{name}\"` {right} |"),
            });
        }
        let opened = policy.lines().filter(|line| line.ends_with('{')).count();
        assert_eq!(rules.len() - before, opened, "{file}: a rule that was not read");
    }
    rules.sort();
    rules.dedup();
    let page = text("docs/security.md");
    let section = page.split("## Each permission, and why\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    // Nomad's are made, not shipped: `portreeve setup nomad` holds them against their table itself.
    let section = section.split("\nNomad, made by ").next().unwrap();
    for rule in &rules {
        let explained = section.lines().any(|line| line.starts_with(rule.as_str()));
        assert!(explained, "docs/security.md has no row {rule:?}");
    }
    let row = Regex::new("(?m)^\\| `[^`]+` (?:read|write|update) \\|").unwrap();
    assert_eq!(
        row.find_iter(section).count(),
        rules.len(),
        "a row without its rule"
    );
}

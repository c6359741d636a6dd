//! The shape of the sources, held as `docs/architecture.md` describes it: who may import whom, what pure modules may
//! not touch, how long a file is, and that every feature has its example, its golden and its page.
#![allow(clippy::unwrap_used)]

mod paths;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use portreeve::features::FEATURES;
use syn::visit::Visit;

use paths::{Paths, sources, visited};

/// Module, and what it may import. In the order of the data flow: a module that is not listed fails the test.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("diagnostics", &["model"]),
    ("hcl", &["model", "diagnostics"]),
    ("envoy", &["model"]),
    ("ir", &["model", "diagnostics"]),
    ("features", &["model", "diagnostics", "hcl", "envoy", "ir"]),
    ("config", &["model", "diagnostics", "hcl", "features"]),
    ("snapshot", &["model", "diagnostics", "config"]),
    (
        "resolve",
        &["model", "diagnostics", "config", "snapshot", "ir", "features"],
    ),
    (
        "translate",
        &[
            "model",
            "diagnostics",
            "envoy",
            "ir",
            "features",
            "config",
            "snapshot",
            "resolve",
        ],
    ),
    ("sources", &["model", "diagnostics"]),
    ("xds", &["model", "envoy"]),
    // The Envoy beside us: a process, not what it is told.
    ("envoy_process", &["model", "envoy"]),
    (
        "pipeline",
        &[
            "model",
            "diagnostics",
            "hcl",
            "envoy",
            "ir",
            "features",
            "config",
            "snapshot",
            "resolve",
            "translate",
            "sources",
            "xds",
        ],
    ),
    (
        "status",
        &[
            "model",
            "diagnostics",
            "hcl",
            "envoy",
            "ir",
            "features",
            "config",
            "snapshot",
            "resolve",
            "translate",
            "sources",
            "xds",
            "pipeline",
        ],
    ),
    (
        "admin",
        &[
            "model",
            "diagnostics",
            "hcl",
            "envoy",
            "ir",
            "features",
            "config",
            "snapshot",
            "resolve",
            "translate",
            "sources",
            "envoy_process",
            "xds",
            "status",
            "pipeline",
        ],
    ),
    (
        "agent",
        &[
            "model",
            "diagnostics",
            "hcl",
            "envoy",
            "ir",
            "features",
            "config",
            "snapshot",
            "resolve",
            "translate",
            "sources",
            "envoy_process",
            "xds",
            "status",
            "pipeline",
            "admin",
        ],
    ),
    (
        "cli",
        &[
            "model",
            "diagnostics",
            "hcl",
            "envoy",
            "ir",
            "features",
            "config",
            "snapshot",
            "resolve",
            "translate",
            "sources",
            "envoy_process",
            "xds",
            "status",
            "pipeline",
            "admin",
            "agent",
        ],
    ),
];

/// Modules that turn values into values.
const PURE: &[&str] = &[
    "model",
    "diagnostics",
    "hcl",
    "envoy",
    "ir",
    "features",
    "config",
    "snapshot",
    "resolve",
    "translate",
];

/// What pure modules may not name: async, clock, environment, files, sockets, threads, output.
const IMPURE: &[&str] = &[
    "tokio",
    "futures",
    "reqwest",
    "hyper",
    "tonic",
    "std::fs",
    "std::env",
    "std::io",
    "std::process",
    "std::thread",
    "std::os",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::net::ToSocketAddrs",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "tracing",
    "rand",
];

/// Nor any of these, whatever path leads to them: a clock, a socket or a lock comes under many names.
const IMPURE_NAMES: &[&str] = &[
    "Instant",
    "SystemTime",
    "UNIX_EPOCH",
    "TcpStream",
    "TcpListener",
    "UnixStream",
    "UdpSocket",
    "Mutex",
    "RwLock",
    "Condvar",
    "println",
    "print",
    "eprintln",
    "eprint",
    "dbg",
];

/// Nor call these on a value, wherever they have it from.
const IMPURE_METHODS: &[&str] = &[
    "elapsed",
    "duration_since",
    "checked_duration_since",
    "spawn",
    "spawn_blocking",
    "block_on",
    "await",
    "lock",
    "try_lock",
    "connect",
    "metadata",
    "exists",
    "read_dir",
    "read_to_string",
    "write_all",
    "flush",
];

/// Names that say nothing.
const EMPTY_NAMES: &[&str] = &["util", "utils", "common", "helper", "helpers", "manager", "misc"];

const LONGEST_FILE: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// The top-level module a source file belongs to.
fn module_of(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

#[test]
fn imports_point_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    let modules: BTreeSet<String> = rust_files("src").iter().map(|path| module_of(path)).collect();
    let mut wrong = Vec::new();
    for (path, named) in sources() {
        let module = module_of(&path);
        if matches!(module.as_str(), "lib" | "main") {
            continue;
        }
        let Some(allowed) = allowed.get(module.as_str()) else {
            wrong.push(format!(
                "{}: the module {module:?} is not in the table",
                shown(&path)
            ));
            continue;
        };
        for name in named {
            let mut parts = name.split("::");
            let other = match (parts.next(), parts.next()) {
                (Some("crate"), Some(other)) => other,
                _ => continue,
            };
            if other != module && modules.contains(other) && !allowed.contains(&other) {
                wrong.push(format!("{} imports {other}: {name}", shown(&path)));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "against the dependency table:\n{}",
        wrong.join("\n")
    );
}

/// Two features that know each other are one feature.
#[test]
fn features_do_not_know_each_other() {
    let names: BTreeSet<&str> = FEATURES.iter().map(|feature| feature.name()).collect();
    for (path, named) in sources() {
        let inside = path.strip_prefix(root().join("src/features"));
        let Some(own) = inside.ok().and_then(|inside| inside.iter().next()?.to_str()) else {
            continue;
        };
        if own == "mod.rs" {
            continue;
        }
        for name in named {
            let parts: Vec<&str> = name.split("::").collect();
            let other = parts.iter().find(|part| names.contains(*part) && **part != own);
            let through_features = matches!(parts[0], "super" | "crate");
            assert!(
                !(through_features && other.is_some()),
                "{} knows another feature: {name}",
                shown(&path)
            );
        }
    }
}

#[test]
fn pure_modules_stay_pure() {
    let mut wrong = Vec::new();
    for (path, named) in visited() {
        if !PURE.contains(&module_of(&path).as_str()) {
            continue;
        }
        let called = named
            .methods
            .iter()
            .filter(|name| IMPURE_METHODS.contains(&name.as_str()));
        wrong.extend(called.map(|name| format!("{}: .{name}()", shown(&path))));
        for name in named.found {
            let hit = IMPURE
                .iter()
                .find(|impure| name == **impure || name.starts_with(&format!("{impure}::")));
            let has_impure_part = name.split("::").any(|part| IMPURE_NAMES.contains(&part));
            if hit.is_some() || has_impure_part {
                wrong.push(format!("{}: {name}", shown(&path)));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "pure modules name what has effects:\n{}",
        wrong.join("\n")
    );
}

/// The test above can say no.
#[test]
fn the_visitor_sees_what_it_must() {
    let text = "use std::{fs, time::{Duration, Instant as Now}};\n\
        fn a() { let _ = std::env::var(\"A\"); println!(\"{}\", std::thread::current().id()); }\n\
        #[cfg(test)] mod tests { use tokio::spawn; }\n";
    let mut paths = Paths::default();
    paths.visit_file(&syn::parse_file(text).unwrap());
    for name in [
        "std::fs",
        "std::time::Instant",
        "std::env::var",
        "std::thread::current",
    ] {
        assert!(paths.found.contains(name), "{name} is not in {:?}", paths.found);
    }
    assert!(!paths.found.iter().any(|name| name.starts_with("tokio")));
    let text = "fn a(at: std::time::Instant) -> u64 { dbg!(at.elapsed().as_secs()) }\n\
        async fn b(c: C) { c.d().await; }\n\
        #[cfg(test)] mod tests { fn e(f: F) { f.lock(); } }\n";
    let mut paths = Paths::default();
    paths.visit_file(&syn::parse_file(text).unwrap());
    assert!(paths.found.contains("std::time::Instant") && paths.found.contains("dbg"));
    assert!(paths.methods.contains("elapsed") && paths.methods.contains("await"));
    assert!(!paths.methods.contains("lock"), "tests may");
}

#[test]
fn files_are_short_and_well_named() {
    for path in rust_files("src").into_iter().chain(rust_files("tests")) {
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(
            lines <= LONGEST_FILE,
            "{} has {lines} lines: split it",
            shown(&path)
        );
        for part in Path::new(&shown(&path)) {
            let name = part.to_str().unwrap().trim_end_matches(".rs");
            assert!(
                !EMPTY_NAMES.contains(&name),
                "{}: {name:?} says nothing",
                shown(&path)
            );
        }
    }
}

#[test]
fn every_feature_has_an_example_a_golden_and_a_page() {
    let goldens = root().join("tests/golden/snapshots");
    for feature in FEATURES {
        let name = feature.name();
        for path in [
            root().join(format!("src/features/{name}/mod.rs")),
            root().join(format!("hcl-examples/features/{name}.hcl")),
            root().join(format!("docs/policies/{name}.md")),
            goldens.join(format!(
                "golden__examples__become_envoy_configuration@features__{name}.hcl.snap"
            )),
        ] {
            assert!(path.is_file(), "the feature {name:?} lacks {}", shown(&path));
        }
        let page = std::fs::read_to_string(root().join(format!("docs/policies/{name}.md"))).unwrap();
        for part in [
            "## What it does",
            "## Block",
            "## Example",
            "## Defaults",
            "## Traps",
        ] {
            assert!(page.contains(part), "docs/policies/{name}.md has no {part:?}");
        }
    }
}

/// A code that nothing says would promise what is not there.
#[test]
fn every_code_is_said_somewhere() {
    let texts: Vec<String> = rust_files("src")
        .iter()
        .filter(|path| !path.ends_with("diagnostics/code.rs"))
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    for code in portreeve::diagnostics::Code::ALL {
        let name = format!("Code::{code:?}");
        assert!(
            texts.iter().any(|text| text.contains(&name)),
            "nothing says {name}"
        );
    }
}

/// A golden whose example is gone, and an example whose golden was never taken.
#[test]
fn goldens_and_examples_go_together() {
    // What no document can say: a discovery chain.
    let of_chains = "golden__chains__an_elaborate_chain_becomes_envoy_configuration.snap";
    let mut expected = BTreeSet::from([of_chains.to_owned()]);
    let examples = root().join("hcl-examples");
    let mut folders = vec![examples.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "hcl") {
                let name = path
                    .strip_prefix(&examples)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .replace('/', "__");
                expected.insert(format!(
                    "golden__examples__become_envoy_configuration@{name}.snap"
                ));
            }
        }
    }
    let found: BTreeSet<String> = std::fs::read_dir(root().join("tests/golden/snapshots"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(found, expected);
}

/// `autotests` is off: what Cargo.toml does not list is never run.
#[test]
fn no_test_file_is_forgotten() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for entry in std::fs::read_dir(root().join("tests")).unwrap() {
        let path = entry.unwrap().path();
        let target = if path.is_dir() { path.join("main.rs") } else { path };
        if target.is_file() && target.extension().is_some_and(|extension| extension == "rs") {
            let line = format!("path = \"{}\"", shown(&target));
            assert!(
                manifest.contains(&line),
                "Cargo.toml does not list {}",
                shown(&target)
            );
        }
    }
    // And within a folder, what no `mod` names.
    for folder in std::fs::read_dir(root().join("tests")).unwrap() {
        let folder = folder.unwrap().path();
        let main = folder.join("main.rs");
        let Ok(text) = std::fs::read_to_string(&main) else {
            continue;
        };
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let Some(name) = path
                .file_name()
                .and_then(|name| name.to_str()?.strip_suffix(".rs"))
            else {
                continue;
            };
            let named = text.contains(&format!("mod {name};")) || name == "main";
            assert!(named, "{} has no `mod {name};`", shown(&main));
        }
    }
}

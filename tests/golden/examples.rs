use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use portreeve::config::{Permissions, parse_document};
use portreeve::diagnostics::render;
use portreeve::envoy::ResourceSet;
use portreeve::hcl::{Limits, format};
use portreeve::model::Document;
use portreeve::translate::Compiler;
use serde_json::Value;

use super::world;

/// Every example, by its path below `hcl-examples/`.
pub fn all() -> Vec<(String, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("hcl-examples");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "hcl") {
                let name = path.strip_prefix(&root).unwrap().display().to_string();
                found.push((name, path));
            }
        }
    }
    found.sort();
    assert!(found.len() >= 10, "only {} examples found", found.len());
    found
}

/// The documents of an example: a folder of its own is one configuration, elsewhere each file is.
fn documents(path: &Path) -> Vec<Document> {
    let folder = path.parent().unwrap();
    let alone = folder.ends_with("hcl-examples") || folder.ends_with("features");
    let paths = match alone {
        true => vec![path.to_owned()],
        false => std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect(),
    };
    let file = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        world::file(path.file_name().unwrap().to_str().unwrap(), &text)
    };
    paths.into_iter().map(file).collect()
}

/// Every gateway that the example declares, in a world that answers everything it asks.
pub fn compile(path: &Path) -> BTreeMap<String, ResourceSet> {
    let mut snapshot = world::empty();
    world::put(&mut snapshot, documents(path));
    let declared = snapshot.config.gateways().map(|gateway| gateway.name.to_string());
    let gateways: Vec<String> = declared.collect();
    assert!(!gateways.is_empty(), "{}: no gateway", path.display());
    for gateway in &gateways {
        world::answer_all(&mut snapshot, gateway);
    }
    let of_documents = snapshot.config.diagnostics();
    let mut said: Vec<String> = of_documents.iter().map(ToString::to_string).collect();
    let mut sets = BTreeMap::new();
    for gateway in gateways {
        let compiler = Compiler::compile(&gateway, world::settings(), &snapshot);
        let all = compiler
            .diagnostics()
            .flat_map(|(_, diagnostics)| diagnostics.iter());
        said.extend(all.map(ToString::to_string));
        sets.insert(gateway, compiler.resources().clone());
    }
    assert!(said.is_empty(), "{}: {said:#?}", path.display());
    sets
}

#[test]
fn parse_without_a_word() {
    for (name, path) in all() {
        let text = std::fs::read_to_string(path).unwrap();
        let document = world::file(&name, &text);
        if let Err(problems) = parse_document(&document, &Permissions::default(), &Limits::default()) {
            let shown: String = problems
                .iter()
                .map(|problem| render(problem, Some(&text), false))
                .collect();
            panic!("{name}:\n{shown}");
        }
    }
}

#[test]
fn are_formatted() {
    for (name, path) in all() {
        let text = std::fs::read_to_string(path).unwrap();
        pretty_equal(&name, &text, &format(&text).unwrap());
    }
}

fn pretty_equal(name: &str, text: &str, formatted: &str) {
    for (index, (found, expected)) in text.lines().zip(formatted.lines()).enumerate() {
        assert_eq!(found, expected, "{name}:{}: run portreeve fmt", index + 1);
    }
    assert_eq!(text, formatted, "{name}: run portreeve fmt");
}

#[test]
fn become_envoy_configuration() {
    insta::glob!("../../hcl-examples", "**/*.hcl", |path| {
        let sets = compile(path);
        let rendered = sets
            .iter()
            .map(|(gateway, set)| (gateway.clone(), portreeve::envoy::render(set)));
        let mut all: serde_json::Map<String, Value> = rendered.collect();
        // Most have one, which needs no name.
        let shown = match all.len() {
            1 => all.remove("edge").unwrap(),
            _ => Value::Object(all),
        };
        assert_shown_in_full(&shown);
        insta::assert_snapshot!(serde_json::to_string_pretty(&shown).unwrap());
    });
}

/// No `Any` unopened, no field unknown: the descriptors know everything that we send.
fn assert_shown_in_full(value: &Value) {
    match value {
        Value::Object(fields) => {
            let hidden = fields.contains_key("unknown_fields")
                || (fields.contains_key("@type") && fields.contains_key("error"));
            assert!(!hidden, "{value:#}");
            fields.values().for_each(assert_shown_in_full);
        }
        Value::Array(items) => items.iter().for_each(assert_shown_in_full),
        _ => {}
    }
}

#[test]
fn never_show_a_private_key() {
    let mut seen = 0;
    let secret: String = world::KEY
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .collect();
    for (name, path) in all() {
        for set in compile(&path).into_values() {
            let shown = format!("{}\n{set:?}", portreeve::envoy::render(&set));
            seen += shown.matches("[redacted]").count();
            for part in ["PRIVATE KEY", &secret[..40]] {
                assert!(!shown.contains(part), "{name} shows the key");
            }
        }
    }
    assert!(seen >= 4, "the examples hold no secret any more: {seen}");
}

/// Two compilations share nothing but the input.
#[test]
fn are_the_same_every_time() {
    for (name, path) in all() {
        let (one, other) = (compile(&path), compile(&path));
        for (gateway, set) in &one {
            for kind in portreeve::envoy::ResourceKind::ALL {
                assert_eq!(set.changes_since(&other[gateway], kind).count(), 0, "{name}");
            }
        }
    }
}

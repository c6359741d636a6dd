//! Nothing that anybody can write makes us panic: parsing, checking, rendering problems, formatting, compiling.

use std::path::Path;
use std::sync::LazyLock;

use portreeve::config::{Permissions, parse_document};
use portreeve::diagnostics::render;
use portreeve::envoy::render as render_resources;
use portreeve::hcl::{Limits, format, parse_duration, parse_hostname};
use portreeve::resolve::{Request, explain};
use portreeve::translate::Compiler;
use proptest::prelude::*;

use super::generate::document;
use super::world;

static SEEDS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("hcl-examples");
    let mut seeds = Vec::new();
    for folder in [root.join("features"), root] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                seeds.push(std::fs::read_to_string(path).unwrap());
            }
        }
    }
    seeds
});

const TOKENS: [&str; 34] = [
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    "\"",
    "=",
    ",",
    "\n",
    "<<EOT\n",
    "<<-EOT\n",
    "\nEOT\n",
    "${",
    "%{",
    "$${",
    "*/",
    "/*",
    "#",
    "//",
    "\\",
    "\\u00",
    "\u{feff}",
    "ä",
    "\u{1f600}",
    "\0",
    "\r",
    "null",
    "true",
    "-1",
    "1e999",
    "9223372036854775808",
    "for",
    "? :",
];

#[derive(Clone, Debug)]
enum Mutation {
    Delete(prop::sample::Index, usize),
    Insert(prop::sample::Index, usize),
    Copy(prop::sample::Index, prop::sample::Index, usize),
    Text(prop::sample::Index, String),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let place = any::<prop::sample::Index>;
    prop_oneof![
        (place(), 1..40usize).prop_map(|(at, length)| Mutation::Delete(at, length)),
        (place(), 0..TOKENS.len()).prop_map(|(at, token)| Mutation::Insert(at, token)),
        (place(), place(), 1..60usize).prop_map(|(from, to, length)| Mutation::Copy(from, to, length)),
        (place(), ".{0,12}").prop_map(|(at, text)| Mutation::Text(at, text)),
    ]
}

fn mutate(text: &str, mutations: &[Mutation]) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    for mutation in mutations {
        let length = characters.len() + 1;
        match mutation {
            Mutation::Delete(at, count) => {
                let at = at.index(length);
                let end = (at + count).min(characters.len());
                characters.drain(at..end);
            }
            Mutation::Insert(at, token) => {
                let at = at.index(length);
                characters.splice(at..at, TOKENS[*token].chars());
            }
            Mutation::Copy(from, to, count) => {
                let from = from.index(length);
                let copied: Vec<char> = characters[from..(from + count).min(characters.len())].to_vec();
                let to = to.index(length);
                characters.splice(to..to, copied);
            }
            Mutation::Text(at, text) => {
                let at = at.index(length);
                characters.splice(at..at, text.chars());
            }
        }
    }
    characters.into_iter().collect()
}

/// Everything that reads a document, over this text.
fn read(text: &str) -> Result<(), TestCaseError> {
    for document in [world::file("t.hcl", text), world::kv("config/t", 1, text)] {
        let parsed = parse_document(&document, &Permissions::default(), &Limits::default());
        for problem in parsed.err().iter().flatten() {
            let shown = render(problem, Some(text), false);
            prop_assert!(
                shown.contains(&problem.message.lines().next().unwrap_or_default().to_owned())
                    || !shown.is_empty()
            );
            let place = problem.origin.as_ref();
            prop_assert!(place.is_some(), "a problem without a place: {}", problem);
            let span = place.unwrap().span;
            prop_assert!(
                text.get(span.start..span.end).is_some(),
                "a place outside the text: {:?}",
                span
            );
        }
        let mut snapshot = world::empty();
        world::put(&mut snapshot, [document]);
        world::answer_all(&mut snapshot, "edge");
        let compiler = Compiler::compile("edge", world::settings(), &snapshot);
        render_resources(compiler.resources());
    }
    if let Ok(formatted) = format(text) {
        let again = format(&formatted);
        prop_assert_eq!(again.as_deref().ok(), Some(&*formatted), "fmt is not stable");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fuzz_arbitrary_text(text in ".{0,200}") {
        read(&text)?;
        read(&format!("{{{text}"))?;
    }

    #[test]
    fn fuzz_arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        read(&String::from_utf8_lossy(&bytes))?;
    }

    #[test]
    fn fuzz_tokens(tokens in proptest::collection::vec(proptest::sample::select(&TOKENS[..]), 0..60)) {
        read(&tokens.concat())?;
    }

    #[test]
    fn fuzz_mutated_examples(seed in any::<prop::sample::Index>(), mutations in proptest::collection::vec(mutation(), 1..6)) {
        read(&mutate(&SEEDS[seed.index(SEEDS.len())], &mutations))?;
    }

    #[test]
    fn fuzz_mutated_json(body in document(), mutations in proptest::collection::vec(mutation(), 0..4)) {
        read(&mutate(&serde_json::to_string_pretty(&body.to_json()).unwrap(), &mutations))?;
    }

    #[test]
    fn fuzz_values(text in ".{0,40}") {
        let _ = parse_duration(&text);
        if let Ok(host) = parse_hostname(&text) {
            prop_assert_eq!(parse_hostname(&host), Ok(host.clone()), "not stable");
        }
    }

    #[test]
    fn fuzz_requests(body in document(), method in ".{0,8}", host in ".{0,20}", target in ".{0,40}", value in ".{0,10}") {
        let mut snapshot = world::empty();
        world::put(&mut snapshot, [world::file("t.hcl", &body.to_hcl())]);
        world::answer_all(&mut snapshot, "edge");
        let Some(gateway) = snapshot.config.gateway("edge") else { return Ok(()) };
        let headers = [("X-A".to_owned(), value)];
        let request = Request::new(&method, &host, &target, &headers);
        // Normalised once, normalised for ever.
        prop_assert_eq!(&Request::new(&method, &request.host, &request.path, &headers).path, &request.path);
        for scheme in ["http", "https"] {
            explain(&snapshot, gateway, scheme, None, &request);
        }
    }
}

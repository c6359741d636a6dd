//! Broken texts that are nearly right: an example with a few pieces cut, doubled, moved or replaced.

use std::path::Path;

use proptest::prelude::*;

/// Every example that the repository ships.
pub fn examples() -> Vec<String> {
    let mut texts = Vec::new();
    collect(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("hcl-examples"),
        &mut texts,
    );
    assert!(!texts.is_empty(), "no examples");
    texts
}

fn collect(directory: &Path, texts: &mut Vec<String>) {
    let mut paths: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect(&path, texts);
        } else if path.extension().is_some_and(|extension| extension == "hcl") {
            texts.push(std::fs::read_to_string(path).unwrap());
        }
    }
}

#[derive(Clone, Debug)]
pub enum Edit {
    Cut(f64, usize),
    Double(f64, usize),
    Insert(f64, &'static str),
    Replace(f64, &'static str),
    Flip(f64, u8),
}

/// What the grammars give a meaning to, and numbers at their edges.
const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    "\"",
    "=",
    "${",
    "%{",
    "}}",
    "<<EOT\n",
    "<<-A\n",
    "EOT\n",
    "\n",
    "\r\n",
    "#",
    "//",
    "/*",
    "*/",
    "\\",
    "\\u0000",
    "\\uD800",
    ":",
    ",",
    "null",
    "true",
    "-1",
    "0",
    "1e309",
    "18446744073709551616",
    "9223372036854775807",
    "0x",
    "\"\"",
    "\"*\"",
    "\"*.*.a\"",
    "\"/%2F\"",
    "\"(a+)+$\"",
    "\"[\"",
    "\"10h\"",
    "\"-1s\"",
    "\"99999999999999999h\"",
    "ünï",
    "\u{0}",
    "\u{feff}",
    "\u{202e}",
    "gateway",
    "http_route \"x\" {",
    "listener",
    "rule",
    "match {",
    "retry {",
    "tls {",
    "backend \"consul\" \"a\" {}",
    "for x in y : x",
    "...",
    "? 1 : 2",
    "a.b[0].*.c",
];

fn edit() -> impl Strategy<Value = Edit> {
    let word = || prop::sample::select(WORDS);
    prop_oneof![
        (0.0..1.0, 1..60usize).prop_map(|(at, length)| Edit::Cut(at, length)),
        (0.0..1.0, 1..200usize).prop_map(|(at, length)| Edit::Double(at, length)),
        (0.0..1.0, word()).prop_map(|(at, word)| Edit::Insert(at, word)),
        (0.0..1.0, word()).prop_map(|(at, word)| Edit::Replace(at, word)),
        (0.0..1.0, any::<u8>()).prop_map(|(at, byte)| Edit::Flip(at, byte)),
    ]
}

/// One of these texts with up to six edits.
pub fn mutated(texts: Vec<String>) -> impl Strategy<Value = String> {
    (prop::sample::select(texts), prop::collection::vec(edit(), 0..6)).prop_map(|(text, edits)| {
        let mut bytes = text.into_bytes();
        for edit in &edits {
            apply(&mut bytes, edit);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn apply(bytes: &mut Vec<u8>, edit: &Edit) {
    let place = |at: f64| ((bytes.len() as f64 * at) as usize).min(bytes.len());
    match *edit {
        Edit::Cut(at, length) => {
            let from = place(at);
            bytes.drain(from..(from + length).min(bytes.len()));
        }
        Edit::Double(at, length) => {
            let from = place(at);
            let piece = bytes[from..(from + length).min(bytes.len())].to_vec();
            bytes.splice(from..from, piece);
        }
        Edit::Insert(at, word) => {
            let at = place(at);
            bytes.splice(at..at, word.bytes());
        }
        Edit::Replace(at, word) => {
            let from = place(at);
            let to = (from + word.len()).min(bytes.len());
            bytes.splice(from..to, word.bytes());
        }
        Edit::Flip(at, byte) => {
            let at = place(at);
            if let Some(there) = bytes.get_mut(at) {
                *there = byte;
            }
        }
    }
}

//! The documentation does what it says: commands run, documents are valid, links lead somewhere, the demo answers.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod demo;
mod deploy;
mod guide;
mod guides;
#[path = "../support/ports.rs"]
mod ports;
mod proofs;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const PORTREEVE: &str = env!("CARGO_BIN_EXE_portreeve");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Markdown file that readers see.
fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    let mut open = vec![
        root().join("docs"),
        root().join("nomad"),
        root().join("vault-policies"),
    ];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.extend(["README.md", "CHANGELOG.md"].map(|name| root().join(name)));
    pages.sort();
    pages
}

struct Block {
    /// What stands behind the opening fence.
    kind: String,
    line: usize,
    text: String,
}

fn blocks(page: &Path) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (index, line) in std::fs::read_to_string(page).unwrap().lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(kind)) => {
                open = Some(Block {
                    kind: kind.to_owned(),
                    line: index + 1,
                    text: String::new(),
                });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{}: a block is not closed", page.display());
    blocks
}

fn shell(command: &str) -> Output {
    let directory = Path::new(PORTREEVE).parent().unwrap();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all = vec![directory.to_owned()];
    all.extend(std::env::split_paths(&path));
    Command::new("bash")
        .args(["-o", "pipefail", "-c", command])
        .current_dir(root())
        .env("PATH", std::env::join_paths(all).unwrap())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// `...` stands for any number of lines, or for the rest of one.
fn follows(expected: &[&str], actual: &[&str]) -> bool {
    let Some((first, rest)) = expected.split_first() else {
        return actual.is_empty();
    };
    if *first == "..." {
        return (0..=actual.len()).any(|skipped| follows(rest, &actual[skipped..]));
    }
    let Some((line, after)) = actual.split_first() else {
        return false;
    };
    let same = match first.strip_suffix("...") {
        Some(start) => line.starts_with(start.trim_end()),
        None => first.trim_end() == line.trim_end(),
    };
    same && follows(rest, after)
}

#[test]
fn console_blocks_show_what_happens() {
    let mut run = 0;
    for page in pages() {
        for block in blocks(&page) {
            let Some(options) = block.kind.strip_prefix("console") else {
                continue;
            };
            let code: i32 = options
                .trim()
                .strip_prefix("exit=")
                .map_or(0, |code| code.parse().unwrap());
            let (command, expected) = block.text.split_once('\n').unwrap();
            let command = command.strip_prefix("$ ").expect("a command first");
            let output = shell(command);
            let said = format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            let place = format!("{}:{}: {command}", page.display(), block.line);
            assert_eq!(output.status.code(), Some(code), "{place}\n{said}");
            let expected: Vec<&str> = expected.lines().collect();
            let actual: Vec<&str> = said.lines().collect();
            assert!(
                follows(&expected, &actual),
                "{place}: expected\n{}\ngot\n{said}",
                expected.join("\n")
            );
            run += 1;
        }
    }
    assert!(run >= 4, "the quickstart's commands were not found");
}

#[test]
fn documents_on_pages_are_valid() {
    let directory = tempfile::tempdir().unwrap();
    let mut checked = 0;
    for page in pages() {
        for block in blocks(&page).into_iter().filter(|block| block.kind == "hcl") {
            let file = directory.path().join("page.hcl");
            std::fs::write(&file, &block.text).unwrap();
            for arguments in [
                ["validate", file.to_str().unwrap()].as_slice(),
                &["fmt", "-check", file.to_str().unwrap()],
            ] {
                let output = Command::new(PORTREEVE).args(arguments).output().unwrap();
                assert!(
                    output.status.success(),
                    "{}:{}: {}\n{}{}",
                    page.display(),
                    block.line,
                    arguments[0],
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            checked += 1;
        }
    }
    assert!(checked >= 10, "the guides' documents were not found");
}

/// The headings of a page as links name them.
fn anchors(page: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(page).unwrap();
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| -> String {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        words
            .chars()
            .filter(|c| c.is_alphanumeric() || "-_ ".contains(*c))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn links_lead_somewhere() {
    let link = regex::Regex::new(r"\]\(([^)#\s]*)(?:#([^)]*))?\)").unwrap();
    let mut broken = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for found in link.captures_iter(&text) {
            let target = &found[1];
            if target.contains("://") {
                continue;
            }
            let file = match target {
                "" => page.clone(),
                target => page.parent().unwrap().join(target),
            };
            let there = file.exists()
                && found
                    .get(2)
                    .is_none_or(|anchor| anchors(&file).iter().any(|one| one == anchor.as_str()));
            if !there {
                broken.push(format!("{}: {}", page.display(), &found[0]));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

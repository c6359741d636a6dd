//! Pages say which test shows what they promise. Such a test exists, and so does whatever else is named as a proof.

use std::collections::BTreeSet;
use std::path::PathBuf;

use regex::Regex;

use super::root;

/// Pages with tables whose last column names proofs, and the least number of them that is there.
const PAGES: &[(&str, &str, usize)] = &[
    ("docs/answers.md", "shown by", 80),
    ("docs/bad-input.md", "Shown by", 60),
    ("docs/failure-modes.md", "proven by", 80),
];

fn rust_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![root().join("src"), root().join("tests")];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// The names of all test functions, of unit tests too.
fn tests() -> BTreeSet<String> {
    let test =
        Regex::new(r"(?m)^\s*#\[(?:tokio::)?test\b[^\n]*\n(?:\s*(?:#\[|//)[^\n]*\n)*\s*(?:async )?fn (\w+)")
            .unwrap();
    let called = Regex::new(r"(?m)^\w+!\(\s*((?:\w+,\s*)+)\);").unwrap();
    let mut names = BTreeSet::new();
    for file in rust_files() {
        let text = std::fs::read_to_string(file).unwrap();
        names.extend(test.captures_iter(&text).map(|found| found[1].to_owned()));
        // A macro of the file makes a test of each name that it is given.
        if text.contains("fn $test()") {
            let given = called
                .captures_iter(&text)
                .map(|found| found[1].to_owned())
                .collect::<String>();
            names.extend(
                given
                    .split(',')
                    .map(|name| name.trim().to_owned())
                    .filter(|name| !name.is_empty()),
            );
        }
    }
    assert!(names.len() > 600, "{} tests were found", names.len());
    names
}

/// The last cells of the rows of each table whose last column is called so.
fn cells<'a>(text: &'a str, column: &str) -> Vec<(usize, &'a str)> {
    let mut cells = Vec::new();
    let mut in_table = false;
    for (index, line) in text.lines().enumerate() {
        let Some(row) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            in_table = false;
            continue;
        };
        let last = row.rsplit('|').next().unwrap().trim();
        if last == column {
            in_table = true;
        } else if in_table && !last.starts_with("---") {
            cells.push((index + 1, last));
        }
    }
    cells
}

/// Why it proves nothing.
fn fault(proof: &str, tests: &BTreeSet<String>, makefile: &str) -> Option<String> {
    let is_name = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    if let Some(target) = proof.strip_prefix("make ") {
        let there = makefile
            .lines()
            .any(|line| line.starts_with(&format!("{target}:")));
        return (!there).then(|| format!("the Makefile has no target {target:?}"));
    }
    if proof.contains('/') {
        return (!root().join(proof).exists()).then(|| format!("there is no {proof:?}"));
    }
    let beginning = proof.strip_suffix("...").or_else(|| proof.strip_suffix('*'));
    let there = match beginning {
        Some(beginning) if is_name(beginning) => tests
            .range(beginning.to_owned()..)
            .next()
            .is_some_and(|name| name.starts_with(beginning)),
        None if is_name(proof) => tests.contains(proof),
        _ => return Some(format!("{proof:?} is neither a test, a path nor a target")),
    };
    (!there).then(|| format!("there is no test {proof:?}"))
}

#[test]
fn tests_that_pages_name_are_there() {
    let tests = tests();
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    let quoted = Regex::new("`([^`]+)`").unwrap();
    let mut wrong = Vec::new();
    for (page, column, least) in PAGES {
        let text = std::fs::read_to_string(root().join(page)).unwrap();
        let mut proofs = 0;
        for (line, cell) in cells(&text, column) {
            for found in quoted.captures_iter(cell) {
                proofs += 1;
                if let Some(fault) = fault(&found[1], &tests, &makefile) {
                    wrong.push(format!("{page}:{line}: {fault}"));
                }
            }
        }
        assert!(proofs >= *least, "{page}: {proofs} proofs were found");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The test above can say no.
#[test]
fn a_proof_that_is_not_there_is_noticed() {
    let tests = BTreeSet::from(["a_b".to_owned(), "c_d_delta".to_owned()]);
    let text = "| x | proven by |\n|---|---|\n| 1 | `a_b` |\n\n| y | z |\n|---|---|\n| 2 | `no` |\n";
    assert_eq!(cells(text, "proven by"), [(3, "`a_b`")]);
    for good in ["a_b", "c_d_*", "c_d...", "make test", "tests/docs"] {
        assert_eq!(fault(good, &tests, "test: x\n"), None, "{good}");
    }
    for bad in ["a_c", "a_b_*", "c_d", "make all", "tests/nowhere", "a b", "*!"] {
        assert!(fault(bad, &tests, "test: x\n").is_some(), "{bad}");
    }
}

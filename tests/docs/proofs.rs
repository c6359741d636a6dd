//! Pages say which test shows what they promise. Such a test exists, and so does whatever else is named as a proof. A row
//! that no test shows says so, and why.

use std::collections::BTreeSet;
use std::path::PathBuf;

use regex::Regex;

use super::root;

/// Pages with tables whose last column names proofs, and the least number of them that is there.
const PAGES: &[(&str, &str, usize)] = &[
    ("docs/answers.md", "shown by", 90),
    ("docs/bad-input.md", "Shown by", 100),
    ("docs/failure-modes.md", "proven by", 200),
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

/// A cell that begins so goes on with the reason.
const NO_TEST: &str = "no test:";

/// The last cells of the rows of each table whose last column is called so. "The same" is what the row above has.
fn cells<'a>(text: &'a str, column: &str) -> Vec<(usize, &'a str)> {
    let mut cells = Vec::new();
    let mut in_table = false;
    let mut above = None;
    for (index, line) in text.lines().enumerate() {
        let Some(row) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            in_table = false;
            continue;
        };
        let last = row.rsplit('|').next().unwrap().trim();
        if last == column {
            (in_table, above) = (true, None);
        } else if in_table && !last.starts_with("---") {
            let cell = above.filter(|_| last == "the same").unwrap_or(last);
            above = Some(cell);
            cells.push((index + 1, cell));
        }
    }
    cells
}

/// What a cell puts between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Whether it is the name of a test, or how the names of some begin.
fn is_test(proof: &str, tests: &BTreeSet<String>) -> bool {
    match proof.strip_suffix("...").or_else(|| proof.strip_suffix('*')) {
        // The beginning of all is none.
        None | Some("") => tests.contains(proof),
        Some(beginning) => tests
            .range(beginning.to_owned()..)
            .next()
            .is_some_and(|name| name.starts_with(beginning)),
    }
}

/// Why it proves nothing.
fn fault(proof: &str, tests: &BTreeSet<String>, makefile: &str) -> Option<String> {
    if let Some(target) = proof.strip_prefix("make ") {
        let there = makefile
            .lines()
            .any(|line| line.starts_with(&format!("{target}:")));
        return (!there).then(|| format!("the Makefile has no target {target:?}"));
    }
    if proof.contains('/') {
        // A folder is there whatever becomes of its tests.
        return (!root().join(proof).is_file()).then(|| format!("there is no file {proof:?}"));
    }
    (!is_test(proof, tests)).then(|| format!("{proof:?} is neither a test, a file nor a target"))
}

/// Why its row has no proof. Files and targets stand beside a test, not in place of one.
fn faults(cell: &str, tests: &BTreeSet<String>, makefile: &str) -> Vec<String> {
    let mut faults: Vec<String> = quoted(cell)
        .filter_map(|proof| fault(proof, tests, makefile))
        .collect();
    match cell.strip_prefix(NO_TEST) {
        Some(why) if why.trim().is_empty() => faults.push("it does not say why there is no test".to_owned()),
        Some(_) => {}
        None if quoted(cell).any(|proof| is_test(proof, tests)) => {}
        None => faults.push(format!(
            "{cell:?} names no test; where there is none: {NO_TEST} why"
        )),
    }
    faults
}

/// Those of the names that no row has as a proof.
fn without_row<'a>(names: &[&'a str], text: &str, column: &str) -> Vec<&'a str> {
    let cells = cells(text, column);
    let proofs: BTreeSet<&str> = cells.iter().flat_map(|(_, cell)| quoted(cell)).collect();
    names
        .iter()
        .copied()
        .filter(|name| !proofs.contains(name))
        .collect()
}

#[test]
fn tests_that_pages_name_are_there() {
    let tests = tests();
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    let mut wrong = Vec::new();
    for (page, column, least) in PAGES {
        let text = std::fs::read_to_string(root().join(page)).unwrap();
        let mut proofs = BTreeSet::new();
        for (line, cell) in cells(&text, column) {
            proofs.extend(quoted(cell));
            let faults = faults(cell, &tests, &makefile);
            wrong.extend(faults.iter().map(|fault| format!("{page}:{line}: {fault}")));
        }
        assert!(
            proofs.len() >= *least,
            "{page}: {} proofs were found",
            proofs.len()
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What `make chaos` plays, by the list that the suite itself is held to.
#[test]
fn every_fault_of_the_suite_has_a_row() {
    let list = std::fs::read_to_string(root().join("tests/chaos/record.rs")).unwrap();
    let declared = Regex::new(r"(?s)const FAULTS: \[&str; (\d+)\] = \[(.*?)\];").unwrap();
    let declared = declared.captures(&list).expect("the list of faults");
    let name = Regex::new(r#""(\w+)""#).unwrap();
    let names: Vec<&str> = name
        .captures_iter(declared.get(2).unwrap().as_str())
        .map(|found| found.get(1).unwrap().as_str())
        .collect();
    assert_eq!(names.len(), declared[1].parse::<usize>().unwrap());
    let page = std::fs::read_to_string(root().join("docs/failure-modes.md")).unwrap();
    assert_eq!(without_row(&names, &page, "proven by"), [""; 0]);
}

/// The tests above can say no.
#[test]
fn a_proof_that_is_not_there_is_noticed() {
    let tests = BTreeSet::from(["a_b".to_owned(), "c_d_delta".to_owned()]);
    let text = "| x | proven by |\n|---|---|\n| 1 | `a_b` |\n\n| y | z |\n|---|---|\n| 2 | `no` |\n";
    assert_eq!(cells(text, "proven by"), [(3, "`a_b`")]);
    for good in ["a_b", "c_d_*", "c_d...", "make test", "tests/docs/proofs.rs"] {
        assert_eq!(fault(good, &tests, "test: x\n"), None, "{good}");
    }
    for bad in [
        "a_c",
        "a_b_*",
        "c_d",
        "make all",
        "tests/nowhere",
        "tests/docs",
        "tests/docs/",
        "a b",
        "*",
        "*!",
    ] {
        assert!(fault(bad, &tests, "test: x\n").is_some(), "{bad}");
    }
}

#[test]
fn a_row_without_a_proof_is_noticed() {
    let tests = BTreeSet::from(["a_b".to_owned(), "c_d_delta".to_owned()]);
    for good in [
        "`a_b`",
        "`c_d_*`, in words",
        "`a_b`, `make test`",
        "no test: nobody can tell",
        "no test: nobody can tell. Beside it: `a_b`",
    ] {
        assert_eq!(faults(good, &tests, "test: x\n"), [""; 0], "{good}");
    }
    for bad in [
        "",
        "golden tests",
        "the same",
        "[ADR 2](adr/0002-scoped-routes.md)",
        "`make test`",
        "`tests/docs/proofs.rs`",
        "`a_b`, `a_c`",
        "no test",
        "no test:",
        "no test: nobody can tell. Beside it: `a_c`",
    ] {
        assert!(!faults(bad, &tests, "test: x\n").is_empty(), "{bad}");
    }

    // What it is the same as stands in its own table.
    let rows =
        "| 1 | the same |\n| 2 | `a_b` |\n| 3 | the same |\n| 4 | the same |\n| 5 | |\n| 6 | the same |\n";
    let table = format!("| x | proven by |\n|---|---|\n{rows}\n");
    let found = cells(&table, "proven by");
    let found: Vec<&str> = found.iter().map(|(_, cell)| *cell).collect();
    assert_eq!(found, ["the same", "`a_b`", "`a_b`", "`a_b`", "", ""]);
    let twice = table.repeat(2);
    assert_eq!(cells(&twice, "proven by")[6], (12, "the same"));
    assert_eq!(without_row(&["a_b", "c_d"], &table, "proven by"), ["c_d"]);
}

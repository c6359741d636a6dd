//! The table of `docs/contributing/fuzzing.md`, from the targets and what `tests/fuzz/run.sh` wrote down of their runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::targets;

/// Of all runs together, but for the last two: those are of the newest.
#[derive(Default)]
struct Runs {
    seconds: u64,
    executions: u64,
    findings: u64,
    edges: u64,
    inputs: u64,
}

#[test]
fn fuzz_page_shows_what_was_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let record = std::fs::read_to_string(root.join("tests/fuzz/record.tsv")).unwrap();
    let path = root.join("docs/contributing/fuzzing.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, _) = page.split_once(MADE).expect("the mark stands in the page");
    let expected = format!("{before}{MADE}\n\n{}", table(&record));
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(&path, &expected).unwrap();
    } else {
        assert!(page == expected, "run with UPDATE_REFERENCE=1");
    }
}

fn table(record: &str) -> String {
    let runs: BTreeMap<&str, Runs> = record.lines().skip(1).map(run).collect();
    let mut text = "| target | input | hours | executions | findings | edges | inputs |\n|---|---|--:|--:|--:|--:|--:|\n".to_owned();
    let mut all = Runs::default();
    for target in targets() {
        let none = Runs::default();
        let runs = runs.get(target.name).unwrap_or(&none);
        all.seconds += runs.seconds;
        all.executions += runs.executions;
        all.findings += runs.findings;
        all.inputs += runs.inputs;
        row(&mut text, target.name, target.input, runs);
    }
    row(&mut text, "all", "", &all);
    for name in runs.keys() {
        assert!(
            targets().any(|target| target.name == *name),
            "{name} is no target: take it out of the record"
        );
    }
    text
}

fn row(text: &mut String, name: &str, input: &str, runs: &Runs) {
    let Runs {
        seconds,
        executions,
        findings,
        edges,
        inputs,
    } = runs;
    // Edges of different targets are the same edges in part.
    let edges = Some(edges).filter(|edges| **edges > 0);
    let edges = edges.map(u64::to_string).unwrap_or_default();
    writeln!(
        text,
        "| `{name}` | {input} | {:.2} | {executions} | {findings} | {edges} | {inputs} |",
        *seconds as f64 / 3600.0
    )
    .unwrap();
}

fn run(line: &str) -> (&str, Runs) {
    let mut fields = line.split('\t');
    let name = fields.next().unwrap();
    let numbers: Vec<u64> = fields.map(|field| field.parse().unwrap()).collect();
    let [seconds, executions, findings, edges, inputs] = numbers[..] else {
        panic!("{line:?} is no line of the record");
    };
    let runs = Runs {
        seconds,
        executions,
        findings,
        edges,
        inputs,
    };
    (name, runs)
}

const MADE: &str =
    "<!-- Made from the record: UPDATE_REFERENCE=1 cargo test --lib fuzz_page (make fuzz does it) -->";

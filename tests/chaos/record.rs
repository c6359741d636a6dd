//! The runs that the documentation shows: `docs/contributing/endurance.json` keeps their figures, `RECORD=1` adds a run (or
//! `RECORD=<commit>`, of the build that `PORTREEVE` names), and the page beside is drawn from it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use crate::summary::directory;

/// Every fault that the suite plays.
pub const FAULTS: [&str; 42] = [
    "agent_killed",
    "agent_restarted",
    "agent_upgraded",
    "clock_jumps",
    "consul_agent_restarted",
    "consul_answers_403",
    "consul_answers_429",
    "consul_answers_500",
    "consul_index_goes_back",
    "consul_index_goes_back_https",
    "consul_leader_lost",
    "consul_partitioned",
    "consul_partitioned_https",
    "consul_polls_cut",
    "consul_polls_cut_https",
    "consul_restarted",
    "consul_restarted_https",
    "consul_silent",
    "consul_silent_https",
    "consul_slow",
    "consul_slow_https",
    "disk_full",
    "disk_full_restarts",
    "disk_read_only",
    "a_refusal_among_good_changes",
    "a_thousand_documents_in_one_second",
    "gateway_replaced_by_apply",
    "half_of_the_documents_broken",
    "deployments_replaced",
    "endpoints_rolled",
    "envoy_killed",
    "envoy_restarted",
    "listeners_added_and_removed",
    "routes_edited",
    "everything_at_once",
    "several_at_once",
    "certificates_rotated",
    "vault_down",
    "vault_role_deleted",
    "vault_sealed",
    "vault_token_expired",
    "soak",
];

const LEAST_OF_A_SUITE: u64 = 100_000;
const LEAST_OF_A_FAULT: u64 = 5_000;

/// What keeps these results from being those of a whole suite.
fn shortcomings(faults: &Map<String, Value>) -> Vec<String> {
    let sent = |fault: &str| faults.get(fault).map(|row| row["sent"].as_u64().unwrap_or(0));
    let mut short = Vec::new();
    // The soak has results of its own.
    for fault in FAULTS.iter().filter(|fault| **fault != "soak") {
        match sent(fault) {
            None => short.push(format!("{fault} was not played")),
            Some(sent) if sent < LEAST_OF_A_FAULT => short.push(format!("{fault}: {sent} requests")),
            Some(_) => {}
        }
    }
    let all: u64 = faults.keys().filter_map(|fault| sent(fault)).sum();
    if all < LEAST_OF_A_SUITE {
        short.push(format!("{all} requests in all"));
    }
    short
}

/// After a suite, by `make chaos`: looks whether it was whole, and records it if that is asked for.
#[test]
fn the_suite_is_whole() {
    let row = |sent: u64| json!({ "sent": sent });
    let whole: Map<String, Value> = FAULTS
        .iter()
        .map(|fault| ((*fault).to_owned(), row(5_000)))
        .collect();
    assert_eq!(shortcomings(&whole), [""; 0]);
    let mut short = whole.clone();
    short.insert("disk_full".to_owned(), row(4_999));
    short.remove("vault_down");
    assert_eq!(
        shortcomings(&short),
        ["disk_full: 4999 requests", "vault_down was not played"]
    );

    if std::env::var_os("CHAOS_PLAYED").is_none() {
        return;
    }
    let text = std::fs::read_to_string(directory().join("details.json")).expect("the results of a suite");
    let played: Map<String, Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(shortcomings(&played), [""; 0]);
    let kept = [
        "sent",
        "failed",
        "excused",
        "stale_connections",
        "kinds",
        "worst_ms",
        "converge_ms",
        "stale_ms",
        "figures",
        "agent_cpu_share_busiest_5s",
        "consul_busiest_second",
        "vault_busiest_second",
        "agent_kib_before",
        "agent_kib_after",
    ];
    let faults: Map<String, Value> = played
        .iter()
        .map(|(fault, row)| {
            let figures = kept.iter().map(|name| ((*name).to_owned(), rounded(&row[*name])));
            let mut figures: Map<String, Value> = figures.collect();
            figures.insert("told".to_owned(), told(&row["told"]));
            (fault.clone(), Value::Object(figures))
        })
        .collect();
    let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    add("suites", &date, json!({ "faults": faults }));
}

/// Records a soak, if that is asked for.
pub fn soak(date: &str, figures: &Value) {
    let figures = figures.as_object().expect("figures").iter();
    let rounded = figures.map(|(name, value)| (name.clone(), rounded(value)));
    add("soaks", date, Value::Object(rounded.collect()));
}

/// Three digits are more than a run repeats.
fn rounded(value: &Value) -> Value {
    match value.as_f64() {
        Some(number) if value.is_f64() => json!((number * 1e3).round() / 1e3),
        _ => match value.as_array() {
            Some(list) => list.iter().map(rounded).collect(),
            None => match value.as_object() {
                Some(map) => {
                    let rounded = map.iter().map(|(name, value)| (name.clone(), rounded(value)));
                    Value::Object(rounded.collect())
                }
                None => value.clone(),
            },
        },
    }
}

fn add(kind: &str, date: &str, mut run: Value) {
    let Ok(record) = std::env::var("RECORD") else {
        return;
    };
    run["date"] = json!(date);
    run["note"] = json!(std::env::var("RECORD_NOTE").unwrap_or_default());
    // Of another build than this tree's it is told which.
    run["commit"] = json!(if record == "1" { commit() } else { record });
    run["cores"] = json!(std::thread::available_parallelism().map_or(0, usize::from));
    let mut all = recorded();
    all[kind].as_array_mut().expect("a list of runs").push(run);
    let text = serde_json::to_string_pretty(&all).unwrap() + "\n";
    std::fs::write(docs().with_extension("json"), text).unwrap();
    std::fs::write(docs(), page(&all)).unwrap();
}

fn commit() -> String {
    let output = Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/contributing/endurance.md")
}

pub fn recorded() -> Value {
    let text = std::fs::read_to_string(docs().with_extension("json")).expect("the recorded runs");
    serde_json::from_str(&text).expect("runs in JSON")
}

#[test]
fn the_page_of_runs_is_drawn_from_their_figures() {
    let page = page(&recorded());
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(docs(), &page).unwrap();
    }
    let written = std::fs::read_to_string(docs()).unwrap_or_default();
    assert!(
        written == page,
        "docs/contributing/endurance.md is out of date: UPDATE_REFERENCE=1 cargo test --test chaos record"
    );
}

fn page(all: &Value) -> String {
    let runs = |kind: &str| all[kind].as_array().cloned().unwrap_or_default();
    let mut text = include_str!("endurance.md").to_owned();
    text.push_str(&soaks(&runs("soaks")));
    let suites = runs("suites");
    text.push_str(&format!(
        "\n## Suites\n\nRuns so far: {}. `make chaos`; with `RECORD=1` it adds one here. Every request that failed, other than \
         those excused, would have failed the suite. Excused are requests in flight on an Envoy that the fault killed, and those while \
         there was none. Slowest: of slow requests, what they took beyond their backend. Converged: from the moment the dependency answers again until a change is served. Stale: from the write of \
         a change until it is served, the longest, the fault's own duration with it. Busiest: of one core, and requests of Consul.\n",
        suites.len()
    ));
    for (at, run) in suites.iter().enumerate() {
        text.push_str(&suite(at + 1, run));
    }
    text.push_str(&log_of_the_last(&suites));
    text
}

/// Of the last run that kept it: what the operator saw.
fn log_of_the_last(suites: &[Value]) -> String {
    let has_log = |run: &&Value| run["faults"].to_string().contains("\"told\":[\"");
    let Some(run) = suites.iter().rev().find(has_log) else {
        return String::new();
    };
    let mut text = format!(
        "\n## What the log said\n\nWarnings and errors of the run of {}, the first {TOLD} kinds of each fault. `#` stands for numbers \
         that differ from run to run.\n\n",
        run["date"].as_str().unwrap_or_default()
    );
    for (fault, row) in run["faults"].as_object().into_iter().flatten() {
        let lines = row["told"].as_array().into_iter().flatten();
        let lines: Vec<String> = lines
            .filter_map(|line| Some(format!("  - `{}`\n", line.as_str()?.replace('`', "'"))))
            .collect();
        if !lines.is_empty() {
            text.push_str(&format!("- `{fault}`\n{}", lines.concat()));
        }
    }
    text
}

/// Lines of the log that are kept of each fault, and the length of each.
const TOLD: usize = 5;
const TOLD_CHARS: usize = 160;

fn told(lines: &Value) -> Value {
    let lines = lines.as_array().into_iter().flatten().filter_map(Value::as_str);
    lines
        .take(TOLD)
        .map(|line| masked(line).chars().take(TOLD_CHARS).collect::<String>())
        .collect()
}

/// Without what differs from run to run: ports, process ids, scratch directories.
fn masked(line: &str) -> String {
    let words = line.split(' ').map(|word| {
        let (Some(from), Some(scratch)) = (word.find('/'), word.find("/pr-")) else {
            return word.to_owned();
        };
        let below = &word[scratch + 1..];
        let below = below.find('/').map_or("", |at| &below[at..]);
        format!("{}...{below}", &word[..from])
    });
    let text = words.collect::<Vec<_>>().join(" ");
    let (mut masked, mut digits) = (String::new(), String::new());
    // A character more, after which nothing waits.
    for next in text.chars().map(Some).chain([None]) {
        if let Some(digit) = next.filter(char::is_ascii_digit) {
            digits.push(digit);
            continue;
        }
        masked.push_str(if digits.len() < 4 { &digits } else { "#" });
        digits.clear();
        masked.extend(next);
    }
    masked
}

#[test]
fn what_was_told_is_kept_without_what_differs() {
    let line = "[WARN]  a: Consul at http://127.0.0.1:21345 answered with 500: pid=4321 file=/tmp/x/pr-agent-Ab12/data/state 12345";
    assert_eq!(
        masked(line),
        "[WARN]  a: Consul at http://127.0.0.1:# answered with 500: pid=# file=.../data/state #"
    );
    assert_eq!(masked("in /tmp/pr-agent-Ab12"), "in ...");
    let lines: Vec<String> = (0..9)
        .map(|number| format!("{number}{}", "x".repeat(200)))
        .collect();
    let kept = told(&json!(lines));
    assert_eq!(kept.as_array().map(Vec::len), Some(TOLD));
    assert_eq!(kept[4].as_str().map(str::len), Some(TOLD_CHARS));
    let suites =
        [json!({ "date": "today", "faults": { "a": { "told": ["one `x`"] }, "b": { "told": [] } } })];
    assert!(log_of_the_last(&suites).ends_with("\n\n- `a`\n  - `one 'x'`\n"));
    assert_eq!(log_of_the_last(&[json!({ "faults": { "a": {} } })]), "");
}

fn soaks(runs: &[Value]) -> String {
    let mut text = String::from(
        "| date | commit | minutes | sent | failed | slowest | p99 | longest stale | changes | agent's memory | growth per hour | \
         agent's files | Envoy's memory | agent, of one core | Consul, requests a second |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for run in runs {
        let number = |name: &str| run[name].as_f64().unwrap_or_default();
        let pair = |name: &str, by: f64| {
            let of = |at: usize| run[name][at].as_f64().unwrap_or_default() / by;
            format!("{:.1} to {:.1}", of(0), of(1))
        };
        let changes: Map<String, Value> = run["changes"].as_object().cloned().unwrap_or_default();
        let changes: Vec<String> = changes
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        text.push_str(&format!(
            "| {} | {} | {:.0} | {} | {} | {:.0} ms | {:.1} ms | {:.0} ms | {} | {} MiB | {:+.0} KiB | {} | {} MiB | {:.1} % | {:.1} |\n",
            run["date"].as_str().unwrap_or_default(),
            run["commit"].as_str().unwrap_or_default(),
            number("minutes"),
            number("sent"),
            number("failed"),
            number("worst_ms"),
            number("p99_ms"),
            number("stale_ms"),
            changes.join(", "),
            pair("agent_kib", 1024.0),
            number("agent_kib_per_hour"),
            pair("agent_files", 1.0),
            pair("envoy_kib", 1024.0),
            number("agent_cpu_share") * 100.0,
            number("consul_per_second"),
        ));
    }
    for run in runs {
        if let (Some(date), Some(note)) = (
            run["date"].as_str(),
            run["note"].as_str().filter(|note| !note.is_empty()),
        ) {
            text.push_str(&format!("\n{date}: {note}\n"));
        }
    }
    text
}

fn suite(at: usize, run: &Value) -> String {
    let faults = run["faults"].as_object().cloned().unwrap_or_default();
    let sum = |name: &str| faults.values().filter_map(|row| row[name].as_u64()).sum::<u64>();
    let mut text = format!(
        "\n### Run {at}: {}, commit {}, {} cores\n\n{} faults, {} requests, {} failed, {} excused. {}\n\n\
         | fault | sent | failed | excused | slowest | converged after | stale for | agent, busiest 5 s | Consul, busiest second | agent's \
         memory |\n|---|---|---|---|---|---|---|---|---|---|\n",
        run["date"].as_str().unwrap_or_default(),
        run["commit"].as_str().unwrap_or_default(),
        run["cores"],
        faults.len(),
        sum("sent"),
        sum("failed"),
        sum("excused"),
        run["note"].as_str().unwrap_or_default(),
    );
    for (fault, row) in &faults {
        let number = |name: &str| row[name].as_f64().unwrap_or_default();
        let ms = |name: &str| {
            row[name]
                .as_f64()
                .map_or(String::new(), |ms| format!("{ms:.0} ms"))
        };
        text.push_str(&format!(
            "| `{fault}` | {} | {} | {} | {} | {} | {} | {:.0} % | {} | {:.1} to {:.1} MiB |\n",
            row["sent"],
            row["failed"],
            row["excused"],
            ms("worst_ms"),
            ms("converge_ms"),
            ms("stale_ms"),
            number("agent_cpu_share_busiest_5s") * 100.0,
            row["consul_busiest_second"],
            number("agent_kib_before") / 1024.0,
            number("agent_kib_after") / 1024.0,
        ));
    }
    text.push_str(&figures(&faults));
    text
}

/// What single faults were measured by beside.
fn figures(faults: &Map<String, Value>) -> String {
    let mut text = String::new();
    for (fault, row) in faults {
        for (name, took) in row["figures"].as_object().into_iter().flatten() {
            let (name, took) = (name.trim_end_matches("_ms"), took.as_f64().unwrap_or_default());
            text.push_str(&format!(
                "- `{fault}`, {}: {took:.0} ms\n",
                name.replace('_', " ")
            ));
        }
    }
    match text.is_empty() {
        true => text,
        false => format!("\n{text}"),
    }
}

//! `portreeve explain`: which rule takes a request, and why not another.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::api_client::{ApiArguments, ApiClient};
use super::documents;
use super::failure::Failure;
use super::offline::Offline;
use super::report::Report;
use super::runtime::block_on;
use super::terminal::{Color, Terminal};
use crate::admin::{ExplainQuery, StatusReport, explain};
use crate::config::Permissions;
use crate::diagnostics::Severity;
use crate::model::Origin;
use crate::status::{DocumentPhase, Status};

/// Characters of a body that are shown.
const BODY_SHOWN: usize = 60;
/// Bad documents that are named.
const BAD_SHOWN: usize = 5;
/// Rules shown that did not match; -all shows the rest.
const SHOWN: usize = 10;

/// Show which listener, host, rule, policies and endpoints a request takes
///
/// Asks a running agent, or with -config reads documents offline. Exit code 0 when a rule takes the request, or a route the
/// connection, 1 when none does or the listener is not open.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Of a connection to a tcp listener: any word, such as CONNECT.
    #[arg(value_name = "METHOD")]
    method: String,
    /// Such as https://shop.example.com/api?x=1, or tcp://db.example.com:5432.
    #[arg(value_name = "URL")]
    url: String,
    /// A request header, name:value; may be given several times.
    #[arg(long, value_name = "HEADER")]
    header: Vec<String>,
    /// Only this gateway.
    #[arg(long, value_name = "NAME")]
    gateway: Option<String>,
    /// Documents to read instead of asking an agent; may be given several times.
    #[arg(long, value_name = "PATH")]
    config: Vec<PathBuf>,
    /// Show every rule that did not match.
    #[arg(long)]
    all: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArguments,
}

/// What `resolve::Explanation` looks like to whoever reads it.
#[derive(Debug, Deserialize)]
struct Explained {
    gateway: String,
    listener: Option<String>,
    #[serde(default)]
    closed: Option<String>,
    #[serde(default)]
    certificate: Option<String>,
    #[serde(default)]
    clients: Option<String>,
    host: Option<String>,
    route: Option<String>,
    origin: Option<Origin>,
    action: Option<Value>,
    policies: Map<String, Value>,
    endpoints: Vec<(String, Vec<String>)>,
    #[serde(default)]
    intentions: Vec<(String, String)>,
    considered: Vec<Considered>,
    #[serde(default)]
    later: Vec<Considered>,
    #[serde(default)]
    elsewhere: Vec<Elsewhere>,
    answer: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Considered {
    route: String,
    why_not: String,
}

#[derive(Debug, Deserialize)]
struct Elsewhere {
    what: String,
    why_not: String,
}

pub fn run(arguments: &Arguments, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
    let query = ExplainQuery {
        method: arguments.method.clone(),
        url: arguments.url.clone(),
        headers: arguments
            .header
            .iter()
            .map(|header| parse_header(header))
            .collect::<Result<_, _>>()?,
        gateway: arguments.gateway.clone(),
    };
    let is_offline = !arguments.config.is_empty();
    let answer: Value = if is_offline {
        let given = documents::read_some(&arguments.config)?;
        let mut report = Report {
            texts: given.texts(),
            diagnostics: given.problems,
        };
        let offline = Offline::new(given.documents, Permissions::default());
        report.diagnostics.extend(offline.diagnostics());
        report.diagnostics.retain(|said| said.severity == Severity::Error);
        report.sort();
        // A document that is left out may be why the answer is not the expected one.
        report.write_to_error(terminal)?;
        serde_json::to_value(explain(&offline.view.snapshot, &offline.gateways(), &query)?)?
    } else {
        let client = ApiClient::new(&arguments.api)?;
        let answer = block_on(client.post("/v1/explain", &[], Some(serde_json::to_value(&query)?)))?;
        let limit = BAD_SHOWN.to_string();
        // The answer is there, whatever becomes of this.
        let report: anyhow::Result<StatusReport> = block_on(client.get("/v1/status", &[("limit", &limit)]));
        if let Ok(report) = report {
            say_what_is_bad(&report.status, terminal)?;
        }
        answer
    };
    let explained: Vec<Explained> = serde_json::from_value(answer.clone())?;
    if arguments.json {
        terminal.json(&answer)?;
    } else {
        // Gateways without a listener for the request are of interest only when there is nothing else.
        let of_interest = |explained: &&Explained| explained.listener.is_some();
        let count = explained.iter().filter(of_interest).count();
        for explained in explained.iter().take(count.max(1)) {
            write(explained, arguments, is_offline, terminal)?;
        }
    }
    // A connection has no 503: where its route leads nowhere it is refused. And nothing connects to a closed listener.
    let is_refused = |explained: &Explained| {
        explained.answer.is_some() && (is_connection(arguments) || explained.closed.is_some())
    };
    let is_taken = explained
        .iter()
        .any(|explained| explained.route.is_some() && !is_refused(explained));
    Ok(ExitCode::from(u8::from(!is_taken)))
}

/// What the agent explains is what is in service. A text that is not may be why the answer is not the expected one.
fn say_what_is_bad(status: &Status, terminal: &mut Terminal) -> std::io::Result<()> {
    let total = status.counts.documents.troubled;
    let bad = status
        .documents
        .iter()
        .filter_map(|document| match document.phase {
            DocumentPhase::InService => None,
            DocumentPhase::LastGood => Some(format!("{} (its last good version is)", document.document)),
            DocumentPhase::OutOfService => Some(document.document.clone()),
        });
    let mut named: Vec<String> = bad.take(BAD_SHOWN).collect();
    if named.is_empty() {
        return Ok(());
    }
    if total > named.len() {
        named.push(format!("and {} more", total - named.len()));
    }
    terminal.write_error(&format!(
        "Not in service as written: {}. `portreeve status` says why.\n\n",
        named.join(", ")
    ))
}

/// Of a tcp listener: it has no requests, and so no host or rule.
fn is_connection(arguments: &Arguments) -> bool {
    arguments.url.to_ascii_lowercase().starts_with("tcp://")
}

fn parse_header(text: &str) -> anyhow::Result<(String, String)> {
    let (name, value) = text
        .split_once(':')
        .ok_or_else(|| Failure::new(format!("{text:?} is no header")).fix("write -header name:value"))?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn write(
    explained: &Explained,
    arguments: &Arguments,
    is_offline: bool,
    terminal: &mut Terminal,
) -> anyhow::Result<()> {
    let none = || "none".to_owned();
    terminal.line(format!("gateway    {}", explained.gateway))?;
    terminal.line(format!(
        "listener   {}",
        explained.listener.clone().unwrap_or_else(none)
    ))?;
    if let Some(closed) = &explained.closed {
        terminal.line(format!("{:<10} {}", "", terminal.paint(Color::Red, closed)))?;
    }
    if let Some(certificate) = &explained.certificate {
        terminal.line(format!("certificate {certificate}"))?;
    }
    if let Some(clients) = &explained.clients {
        terminal.line(format!("clients    {clients}"))?;
    }
    let is_connection = is_connection(arguments);
    if !is_connection {
        terminal.line(format!(
            "host       {}",
            explained.host.clone().unwrap_or_else(none)
        ))?;
    }
    let rule = explained.route.as_deref().unwrap_or("none");
    let color = if explained.route.is_some() {
        Color::Green
    } else {
        Color::Red
    };
    let place = explained
        .origin
        .as_ref()
        .map(|origin| format!("  ({origin})"))
        .unwrap_or_default();
    let head = if is_connection { "route" } else { "rule" };
    terminal.line(format!("{head:<10} {}{place}", terminal.paint(color, rule)))?;
    if let Some(action) = &explained.action {
        write_action(action, &explained.endpoints, is_offline, terminal)?;
    }
    for (index, (cluster, verdict)) in explained.intentions.iter().enumerate() {
        let head = if index == 0 { "intention" } else { "" };
        let color = if verdict.starts_with("allowed") {
            Color::Green
        } else {
            Color::Red
        };
        terminal.line(format!(
            "{head:<10} {cluster}: {}",
            terminal.paint(color, verdict)
        ))?;
    }
    if let Some(answer) = &explained.answer {
        terminal.line(format!("answer     {answer}"))?;
    }
    for (index, (name, value)) in explained.policies.iter().enumerate() {
        let head = if index == 0 { "policies" } else { "" };
        terminal.line(format!("{head:<10} {name} {}", readable(value)))?;
    }
    let line = |what: &str, why_not: &str| format!("{what}: {why_not}");
    let rules = |rules: &[Considered]| -> Vec<String> {
        rules
            .iter()
            .map(|rule| line(&rule.route, &rule.why_not))
            .collect()
    };
    let elsewhere: Vec<String> = explained
        .elsewhere
        .iter()
        .map(|other| line(&other.what, &other.why_not))
        .collect();
    for (title, lines) in [
        (
            "Tried before, and why they did not match:",
            rules(&explained.considered),
        ),
        (
            "Rules after it, and why they do not take it:",
            rules(&explained.later),
        ),
        ("Elsewhere:", elsewhere),
    ] {
        write_list(title, &lines, arguments.all, terminal)?;
    }
    Ok(())
}

fn write_list(title: &str, lines: &[String], all: bool, terminal: &mut Terminal) -> std::io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    terminal.line("")?;
    terminal.line(title)?;
    let limit = if all { usize::MAX } else { SHOWN };
    for line in lines.iter().take(limit) {
        terminal.line(format!("  {line}"))?;
    }
    match lines.len().saturating_sub(limit) {
        0 => Ok(()),
        more => terminal.line(format!("  ... and {more} more (-all shows them)")),
    }
}

/// A policy's value on one line: durations as people write them, nothing that is not set.
fn readable(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            if let (2, Some(seconds), Some(nanos)) = (
                fields.len(),
                fields.get("secs").and_then(Value::as_u64),
                fields.get("nanos").and_then(Value::as_u64),
            ) {
                let nanos = u32::try_from(nanos).unwrap_or_default();
                return humantime::format_duration(Duration::new(seconds, nanos)).to_string();
            }
            let is_empty = |value: &Value| match value {
                Value::Null => true,
                Value::Array(items) => items.is_empty(),
                _ => false,
            };
            let set = fields.iter().filter(|(_, value)| !is_empty(value));
            set.map(|(name, value)| format!("{name}={}", readable(value)))
                .collect::<Vec<_>>()
                .join(" ")
        }
        Value::Array(items) => items.iter().map(readable).collect::<Vec<_>>().join(","),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What is answered without a backend. Fields that this version does not know are shown as they are.
fn in_words(action: &Value) -> String {
    if let Some(redirect) = action.get("redirect") {
        return format!("redirect   {}", redirect_in_words(redirect));
    }
    if let Some(response) = action.get("respond") {
        let body = match response["body"].as_str() {
            None | Some("") => "an empty body".to_owned(),
            Some(body) => {
                let start: String = body.chars().take(BODY_SHOWN).collect();
                let more = if start.len() < body.len() { "..." } else { "" };
                format!("the body {start:?}{more}")
            }
        };
        return format!("answer     {} with {body}", response["status"]);
    }
    match action.get("unavailable").and_then(Value::as_str) {
        Some(reason) => format!("answer     503 with x-portreeve-reason: {reason}"),
        None => format!("action     {action}"),
    }
}

fn redirect_in_words(redirect: &Value) -> String {
    let text = |name: &str| redirect[name].as_str();
    let mut to: Vec<String> = Vec::new();
    let mut kept: Vec<&str> = Vec::new();
    match text("scheme") {
        Some(scheme) => to.push(scheme.to_owned()),
        None => kept.push("scheme"),
    }
    match text("hostname") {
        Some(host) => to.push(format!("host {host}")),
        None => kept.push("host"),
    }
    match redirect["port"].as_u64() {
        Some(port) => to.push(format!("port {port}")),
        None => to.push("the scheme's own port".to_owned()),
    }
    let path = &redirect["path"];
    match (path["full"].as_str(), path["prefix"].as_str()) {
        (Some(path), _) => to.push(format!("path {path}")),
        (_, Some(prefix)) => to.push(format!("the matched prefix of the path becoming {prefix}")),
        _ => kept.push("path"),
    }
    kept.push("query");
    format!(
        "{} to {}; as asked: {}",
        redirect["status"],
        to.join(", "),
        kept.join(", ")
    )
}

fn write_action(
    action: &Value,
    endpoints: &[(String, Vec<String>)],
    is_offline: bool,
    terminal: &mut Terminal,
) -> anyhow::Result<()> {
    let Some(clusters) = action.get("forward").and_then(Value::as_array) else {
        return Ok(terminal.line(in_words(action))?);
    };
    for (index, cluster) in clusters.iter().enumerate() {
        let name = cluster["cluster"].as_str().unwrap_or_default();
        let weight = match clusters.len() {
            1 => String::new(),
            _ => format!(" (weight {})", cluster["weight"]),
        };
        let known = endpoints
            .iter()
            .find(|(cluster, _)| cluster == name)
            .map(|(_, addresses)| addresses.as_slice());
        let addresses = match known {
            Some([_, ..]) => known.unwrap_or_default().join(", "),
            _ if is_offline => "endpoints are not known offline".to_owned(),
            _ => "no endpoint: 503".to_owned(),
        };
        let head = if index == 0 { "forward to" } else { "" };
        terminal.line(format!("{head:<10} {name}{weight}: {addresses}"))?;
    }
    Ok(())
}

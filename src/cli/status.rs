//! `portreeve status`: what is in effect, in tables.

use std::collections::BTreeSet;
use std::process::ExitCode;

use super::api_client::{ApiArguments, ApiClient};
use super::documents::Texts;
use super::report::{Report, counted};
use super::runtime::block_on;
use super::table::Table;
use super::terminal::{Color, Terminal};
use crate::admin::{DocumentText, StatusReport};
use crate::diagnostics::Diagnostic;
use crate::model::DocumentId;
use crate::sources::certificates::timestamp;
use crate::status::{
    CertificateStatus, Condition, Count, DocumentPhase, ListenerPhase, SourceReading, Status,
};

/// Show what a running agent has in effect
///
/// Gateways, listeners, documents, objects, services, certificates, Envoys and problems. Accepted: the present text is in service.
/// Resolved: everything that the object names was found. Programmed: how many of the connected Envoys run with it. Exit code 0
/// when the agent is ready.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// At most this many rows of each table but Gateways; one that is cut has those in trouble first. 100 if not given, with --json all.
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Every row of each table.
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    #[command(flatten)]
    api: ApiArguments,
}

const ENVOYS: &str = "Envoys";

/// Closed listeners that are named at the top; the table has them all.
const DEGRADED: usize = 5;

/// Rows of a table that people read.
const ROWS: u32 = 100;

impl Arguments {
    /// None: all.
    fn rows(&self) -> Option<u32> {
        match self.limit {
            None if self.all || self.json => None,
            given => Some(given.unwrap_or(ROWS)),
        }
    }
}

pub fn run(arguments: &Arguments, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
    let client = ApiClient::new(&arguments.api)?;
    let rows = arguments.rows().map(|rows| rows.to_string());
    let query: Vec<(&str, &str)> = rows.iter().map(|rows| ("limit", rows.as_str())).collect();
    let report: StatusReport = block_on(client.get("/v1/status", &query))?;
    if arguments.json {
        terminal.json(&report)?;
    } else {
        write(&report, terminal)?;
        let texts = block_on(texts(&client, &report.status.diagnostics))?;
        write_problems(&report.status, &texts, terminal)?;
    }
    Ok(ExitCode::from(u8::from(!report.readiness.ready)))
}

fn write(report: &StatusReport, terminal: &mut Terminal) -> std::io::Result<()> {
    let status = &report.status;
    let readiness = &report.readiness;
    let ready = match (readiness.ready, readiness.degraded.is_empty()) {
        (true, true) => terminal.paint(Color::Green, "ready"),
        (true, false) => terminal.paint(Color::Yellow, "ready, but degraded"),
        (false, _) => terminal.paint(Color::Red, "not ready"),
    };
    terminal.line(format!(
        "Agent {} v{}, {ready}, started {}, {}",
        report.agent.node,
        report.agent.version,
        report.agent.started_at,
        counted(
            usize::try_from(status.revision).unwrap_or(usize::MAX),
            "publication"
        ),
    ))?;
    for missing in &readiness.missing {
        terminal.line(format!("  waits for {missing}"))?;
    }
    for degraded in readiness.degraded.iter().take(DEGRADED) {
        terminal.line(format!("  {degraded}"))?;
    }
    if let more @ 1.. = readiness.degraded.len().saturating_sub(DEGRADED) {
        terminal.line(format!("  and {more} more listeners that are not open"))?;
    }
    if status.stale {
        let text = "  serving what the disk held: the document source has not answered";
        terminal.line(terminal.paint(Color::Yellow, text))?;
    }
    let counts = &status.counts;
    let envoys = super::proxy::envoys(&status.envoys);
    section("Gateways", &gateways(report), terminal)?;
    for (title, table, count) in [
        ("Listeners", listeners(report), counts.listeners),
        ("Documents", documents(report), counts.documents),
        ("Objects", objects(report), counts.objects),
        ("Services", services(report), counts.services),
        ("Certificates", certificates(report), counts.certificates),
        (ENVOYS, envoys, counts.envoys),
        ("Sources", sources(report), counts.sources),
    ] {
        section(title, &table, terminal)?;
        say_rest(count.without(table.rows()), "in trouble", terminal)?;
        if title == ENVOYS {
            say_refused(report, terminal)?;
        }
    }
    Ok(())
}

/// An Envoy that is missing in the table may be one that was refused.
fn say_refused(report: &StatusReport, terminal: &mut Terminal) -> std::io::Result<()> {
    let refused = &report.agent.refused_clients;
    let Some(last) = &refused.last else {
        return Ok(());
    };
    let node = last.node.as_ref().map(|node| format!(", node {node:?}"));
    terminal.line("")?;
    let text = format!(
        "Refused xDS clients: {} since the start, the last at {}: {}{}: {} ({})",
        refused.total(),
        last.at,
        last.peer,
        node.unwrap_or_default(),
        last.message,
        last.reason,
    );
    terminal.line(terminal.paint(Color::Yellow, &text))
}

/// What a table has no room for.
fn say_rest(rest: Count, trouble: &str, terminal: &mut Terminal) -> std::io::Result<()> {
    let Count { total, troubled } = rest;
    match (total, troubled) {
        (0, _) => Ok(()),
        (_, 0) => terminal.line(format!("... and {total} more: -all shows them")),
        _ => terminal.line(format!(
            "... and {total} more, {troubled} of them {trouble}: -all shows them"
        )),
    }
}

/// The texts that the first problems are about, to show their lines.
async fn texts(client: &ApiClient, diagnostics: &[Diagnostic]) -> anyhow::Result<Vec<DocumentText>> {
    let ids = diagnostics
        .iter()
        .filter_map(|diagnostic| diagnostic.origin.as_ref());
    let ids: BTreeSet<&str> = ids.map(|origin| origin.document.as_str()).take(TEXTS).collect();
    let mut texts = Vec::new();
    for id in ids {
        // Gone since the status was taken: its problems are shown without their lines.
        let found: anyhow::Result<Vec<DocumentText>> = client.get("/v1/documents", &[("document", id)]).await;
        texts.extend(found.unwrap_or_default());
    }
    Ok(texts)
}

fn write_problems(status: &Status, texts: &[DocumentText], terminal: &mut Terminal) -> std::io::Result<()> {
    if status.diagnostics.is_empty() {
        return Ok(());
    }
    terminal.line("")?;
    terminal.line(terminal.paint(Color::Bold, "Problems"))?;
    // A bad text's own problems are about the text as it stands; all others about what is in service.
    let own: BTreeSet<&Diagnostic> = texts.iter().flat_map(|document| &document.problems).collect();
    let (of_present, of_service): (Vec<Diagnostic>, Vec<Diagnostic>) = status
        .diagnostics
        .iter()
        .cloned()
        .partition(|diagnostic| own.contains(diagnostic));
    for (diagnostics, in_service) in [(of_present, false), (of_service, true)] {
        Report {
            diagnostics,
            texts: by_id(texts, in_service),
        }
        .write(terminal)?;
    }
    say_rest(
        status.counts.diagnostics.without(status.diagnostics.len()),
        "errors",
        terminal,
    )
}

fn by_id(texts: &[DocumentText], in_service: bool) -> Texts {
    let by_id = texts.iter().map(|document| {
        let name = document.document.as_str().into();
        let id = match document.source.as_str() {
            "kv" => DocumentId::Kv(name),
            "catalog" => DocumentId::Catalog(name),
            _ => DocumentId::File(name),
        };
        let text = match (in_service, &document.text_in_service) {
            (true, Some(text)) => text,
            _ => &document.text,
        };
        (id, text.as_str().into())
    });
    by_id.collect()
}

/// Documents whose lines are shown: an operator mends a few at a time.
const TEXTS: usize = 50;

pub fn section(title: &str, table: &Table, terminal: &mut Terminal) -> std::io::Result<()> {
    if table.is_empty() {
        return Ok(());
    }
    terminal.line("")?;
    terminal.line(terminal.paint(Color::Bold, title))?;
    terminal.write(&table.render())
}

fn gateways(report: &StatusReport) -> Table {
    let mut table = Table::new(&["Name", "Resources", "Programmed", "Published", "Envoy process"]);
    for gateway in &report.status.gateways {
        let process = report
            .agent
            .envoys
            .iter()
            .find(|process| process.gateway == gateway.name);
        let published = match &gateway.published_at {
            Some(at) => at.clone(),
            None => format!("waits for {}", gateway.waiting_for.join(", ")),
        };
        table.row([
            gateway.name.clone() + if gateway.declared { "" } else { " (not declared)" },
            gateway.kinds.values().sum::<usize>().to_string(),
            gateway.programmed.to_string(),
            published,
            process.map_or_else(|| "not supervised".to_owned(), |process| process.summary()),
        ]);
    }
    table
}

fn listeners(report: &StatusReport) -> Table {
    let mut table = Table::new(&["Gateway", "Listener", "Port", "State", "Open on", "Note"]);
    for listener in &report.status.listeners {
        table.row([
            listener.gateway.clone(),
            listener.name.clone(),
            format!("{} {}", listener.port, listener.protocol),
            in_words(listener.phase).to_owned(),
            listener.open.to_string(),
            listener.reasons.join("; "),
        ]);
    }
    table
}

fn in_words(phase: ListenerPhase) -> &'static str {
    match phase {
        ListenerPhase::Open => "open",
        ListenerPhase::Partly => "open on some",
        ListenerPhase::Waiting => "waiting",
        ListenerPhase::Withheld => "not opened",
        ListenerPhase::Refused => "refused by Envoy",
    }
}

fn documents(report: &StatusReport) -> Table {
    let mut table = Table::new(&["Document", "Version", "State", "Objects", "Programmed"]);
    for document in &report.status.documents {
        let state = match document.phase {
            DocumentPhase::InService => "in service",
            DocumentPhase::LastGood => "bad; last good version in service",
            DocumentPhase::OutOfService => "bad; not in service",
        };
        table.row([
            document.document.clone(),
            document.version.to_string(),
            state.to_owned(),
            document.objects.to_string(),
            document.programmed.to_string(),
        ]);
    }
    table
}

fn objects(report: &StatusReport) -> Table {
    let mut table = Table::new(&["Kind", "Name", "Accepted", "Resolved", "Programmed", "Document"]);
    for object in &report.status.objects {
        table.row([
            object.kind.as_str().to_owned(),
            object.name.clone(),
            condition(&object.accepted),
            condition(&object.resolved),
            object.programmed.to_string(),
            format!("{}:{}", object.document, object.line),
        ]);
    }
    table
}

fn condition(condition: &Condition) -> String {
    if condition.status { "yes" } else { "no" }.to_owned()
}

fn services(report: &StatusReport) -> Table {
    let mut table = Table::new(&[
        "Service",
        "Instances",
        "Passing",
        "Warning",
        "Critical",
        "Maintenance",
        "Note",
    ]);
    for service in &report.status.services {
        let note = match (&service.problem, service.answered, service.stale) {
            (Some(problem), _, _) => problem.clone(),
            (None, false, _) => "not answered yet".to_owned(),
            (None, true, true) => "from disk".to_owned(),
            (None, true, false) => String::new(),
        };
        table.row([
            service.service.clone(),
            service.instances.to_string(),
            service.passing.to_string(),
            service.warning.to_string(),
            service.critical.to_string(),
            service.maintenance.to_string(),
            note,
        ]);
    }
    table
}

fn certificates(report: &StatusReport) -> Table {
    let mut table = Table::new(&[
        "Certificate",
        "State",
        "Expires",
        "Serial",
        "Names",
        "Source",
        "Note",
    ]);
    for certificate in &report.status.certificates {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        table.row([
            certificate.name.clone(),
            certificate.phase.as_str().to_owned(),
            or_dash(&certificate.not_after),
            or_dash(&certificate.serial),
            certificate.names.join(","),
            certificate.source.clone(),
            certificate_note(certificate),
        ]);
    }
    table
}

fn certificate_note(certificate: &CertificateStatus) -> String {
    let problem = certificate.problem.clone().unwrap_or_default();
    match &certificate.serves_former {
        Some(former) if problem.is_empty() => format!("serving the former one, from {former}"),
        Some(former) => format!("{problem}; serving the former one, from {former}"),
        None => problem,
    }
}

fn sources(report: &StatusReport) -> Table {
    let mut table = Table::new(&[
        "Source",
        "State",
        "Last good answer",
        "Requests",
        "Errors",
        "Note",
    ]);
    for source in &report.status.sources {
        table.row([
            source.name.clone(),
            if source.ok { "ok" } else { "failing" }.to_owned(),
            last_good_answer(source),
            source.requests_total.to_string(),
            source.errors_total.to_string(),
            source.problem.clone().unwrap_or_else(|| credentials(source)),
        ]);
    }
    table
}

fn last_good_answer(source: &SourceReading) -> String {
    match (source.freshness_seconds, source.ok) {
        (Some(age), _) => format!("{age:.1} s ago"),
        // Well, and nothing that is asked again and again.
        (None, true) => "-".to_owned(),
        (None, false) => "never".to_owned(),
    }
}

fn credentials(source: &SourceReading) -> String {
    let ends: Vec<String> = source
        .credentials
        .iter()
        .map(|(name, end)| format!("{name} ends {}", timestamp(*end)))
        .collect();
    ends.join(", ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn only_a_source_that_failed_from_the_start_never_answered() {
        let reading = |ok, seconds: Option<u64>| {
            last_good_answer(&SourceReading::new(
                "settings",
                ok,
                seconds.map(Duration::from_secs),
            ))
        };
        assert_eq!(reading(true, None), "-");
        assert_eq!(reading(false, None), "never");
        assert_eq!(reading(false, Some(2)), "2.0 s ago");
    }

    #[test]
    fn people_get_a_page_and_programs_everything() {
        let rows = |more: &[&str]| Line::parse_from([&["status"], more].concat()).arguments.rows();
        assert_eq!(rows(&[]), Some(100));
        assert_eq!(rows(&["--limit=3"]), Some(3));
        assert_eq!(rows(&["--all"]), None);
        assert_eq!(rows(&["--json"]), None);
        assert_eq!(rows(&["--json", "--limit=3"]), Some(3));
    }
}

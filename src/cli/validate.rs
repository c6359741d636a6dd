//! `portreeve validate`: everything that can be said about documents without asking anybody.

use std::path::PathBuf;
use std::process::ExitCode;

use super::documents;
use super::offline::Offline;
use super::report::Report;
use super::terminal::Terminal;
use crate::config::Permissions;

/// Check documents without Consul, Vault or Envoy
///
/// Syntax, schema, and what documents say about each other: names declared twice, references to nothing, rules that
/// never match. Services, certificates and gateways that the given documents do not show are taken to exist. Exit code
/// 0: valid, 1: not.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Files and directories of documents; - is standard input.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Warnings fail too.
    #[arg(long)]
    strict: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
    let given = documents::read_some(&arguments.paths)?;
    let count = given.documents.len() + given.settings.len();
    let texts = given.texts();
    let mut diagnostics = given.problems;
    diagnostics.extend(given.problems_of_settings);
    let offline = Offline::new(given.documents, Permissions::default());
    diagnostics.extend(offline.diagnostics());
    let mut report = Report { diagnostics, texts };
    report.sort();
    if arguments.json {
        report.write_json(count, terminal)?;
    } else {
        report.write(terminal)?;
        report.write_summary(count, terminal)?;
    }
    Ok(report.exit_code(arguments.strict))
}

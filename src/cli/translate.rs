//! `portreeve translate`: documents to Envoy's configuration, offline.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::Value;

use super::documents;
use super::failure::Failure;
use super::offline::Offline;
use super::report::Report;
use super::terminal::Terminal;
use crate::admin::{ResourceFilter, resources};
use crate::config::Permissions;

/// Print the Envoy configuration that documents make, as protojson
///
/// Offline: discovered services have no endpoints, and certificates stand for whatever their document says.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Files and directories of documents; - is standard input.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The gateway; needed where the documents have several.
    #[arg(long, value_name = "NAME")]
    gateway: Option<String>,
    /// cluster, endpoint, secret, listener, scoped_route, route or runtime.
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// Only the resource of this name.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

pub fn run(arguments: &Arguments, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
    let filter =
        ResourceFilter::new(arguments.kind.as_deref(), arguments.name.as_deref()).map_err(Failure::new)?;
    let given = documents::read_some(&arguments.paths)?;
    let texts = given.texts();
    let offline = Offline::new(given.documents, Permissions::default());
    let gateway = offline.gateway(arguments.gateway.as_deref())?;
    let shown = resources(gateway.compiler.resources(), &filter);
    if let Some(name) = &arguments.name {
        find(&shown, name, arguments.kind.as_deref())?;
    }
    terminal.json(&shown)?;
    let mut report = Report {
        diagnostics: given.problems,
        texts,
    };
    report.diagnostics.extend(offline.diagnostics());
    report.sort();
    if report.errors() > 0 {
        report.write_to_error(terminal)?;
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Nothing of that name is a slip, which a script must notice.
pub fn find(shown: &Value, name: &str, kind: Option<&str>) -> anyhow::Result<()> {
    let mut kinds = shown.as_object().into_iter().flat_map(|kinds| kinds.values());
    if kinds.any(|resources| resources.as_array().is_some_and(|list| !list.is_empty())) {
        return Ok(());
    }
    let what = kind.unwrap_or("resource");
    Err(Failure::new(format!("there is no {what} {name:?}"))
        .fix("leave -name out to see which there are; names are whole, as in \"consul/orders\"")
        .into())
}

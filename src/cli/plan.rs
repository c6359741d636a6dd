//! `portreeve plan`: what `apply` would do.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::slice;

use serde_json::json;

use super::api_client::{ApiArguments, ApiClient};
use super::bounds::{Bounds, BoundsArguments};
use super::change_set::{self, ChangeSet};
use super::documents;
use super::failure::Failure;
use super::kv::{self, KvArguments};
use super::report::counted;
use super::runtime::block_on;
use super::terminal::Terminal;
use crate::admin::DocumentText;
use crate::model::{Document, DocumentId};

/// Show what would change if documents were applied
///
/// Compares a directory with Consul KV, or with a running agent (-agent), document by document and object by object.
/// Documents that do not validate are an error. Exit code 0: no change, 1: changes, 255: error.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A directory of documents, or one document.
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Compare with what a running agent has, and check what it lets documents reach.
    #[arg(long)]
    agent: bool,
    /// Plan to delete documents that no file has.
    #[arg(long)]
    prune: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    bounds: BoundsArguments,
    #[command(flatten)]
    kv: KvArguments,
    #[command(flatten)]
    api: ApiArguments,
}

/// No change, changes: as Nomad's plan answers. Errors are 255.
const CHANGES: u8 = 1;

pub fn run(arguments: &Arguments, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
    let given = documents::read_some(slice::from_ref(&arguments.path))?;
    refuse_unusable(&given)?;
    if arguments.prune {
        refuse_to_prune(&arguments.path, &given)?;
    }
    let names = kv::named(&arguments.path, &given)?;
    let (current, wanted, bounds) = if arguments.agent {
        let current = kv::Current::new(of_agent(&arguments.api)?);
        let prefix = arguments.kv.documents_prefix();
        let reads_kv = current
            .documents
            .values()
            .any(|document| !document.id.is_trusted());
        let (wanted, bounds) = match reads_kv {
            true => {
                let bounds = arguments.bounds.bounds(Some(&arguments.api))?;
                (change_set::below(&prefix, names), bounds)
            }
            false => (change_set::matched(&current.documents, names), Bounds::None),
        };
        (current, wanted, bounds)
    } else {
        let prefix = arguments.kv.documents_prefix();
        let client = arguments.kv.client()?;
        let current = block_on(kv::read(&client, &prefix, terminal))?;
        let bounds = arguments.bounds.bounds(None)?;
        (current, change_set::below(&prefix, names), bounds)
    };
    let set = ChangeSet::between(&current, &wanted, arguments.prune);
    let report = change_set::check(&current.documents, &wanted, &set, &bounds);
    if arguments.json {
        terminal.json(&json!({
            "changes": set.changes,
            "unchanged": set.unchanged,
            "unmanaged": set.unmanaged,
            "diagnostics": report.diagnostics,
        }))?;
    } else {
        set.write(terminal)?;
        report.write(terminal)?;
    }
    bounds.note(&change_set::as_documents(&wanted), terminal)?;
    if report.errors() > 0 {
        return Err(invalid(report.errors()));
    }
    Ok(ExitCode::from(if set.changes.is_empty() { 0 } else { CHANGES }))
}

/// Files that cannot be read, and a tree without documents.
pub fn refuse_unusable(given: &documents::Given) -> anyhow::Result<()> {
    match given.problems.iter().chain(&given.problems_of_settings).next() {
        Some(problem) => Err(Failure::new(problem.to_string()).into()),
        // Were it taken for a wish, -prune would delete everything.
        None if given.documents.is_empty() => {
            Err(Failure::new("there are settings of the agent, and no document")
                .fix("name the directory that holds the documents")
                .into())
        }
        None => Ok(()),
    }
}

/// What the tree merely cannot show is not gone: a mount, a symlink's target, a submodule.
pub fn refuse_to_prune(path: &Path, given: &documents::Given) -> anyhow::Result<()> {
    if !path.is_dir() {
        return Err(Failure::new(format!(
            "-prune deletes all documents that are not in {}, which is no directory",
            path.display()
        ))
        .fix("name the directory that holds all documents, or leave -prune out")
        .into());
    }
    match given.absent.first() {
        None => Ok(()),
        Some((path, reason)) => Err(Failure::new(format!(
            "whether documents below {path} are gone cannot be told: {reason}"
        ))
        .because("-prune would delete them")
        .fix("bring it back (a mount, a submodule, what a symlink leads to), or remove it")
        .into()),
    }
}

pub fn invalid(errors: usize) -> anyhow::Error {
    Failure::new(format!(
        "the documents do not validate: {}",
        counted(errors, "error")
    ))
    .fix("mend what is shown above; `portreeve validate` checks without Consul")
    .into()
}

fn of_agent(arguments: &ApiArguments) -> anyhow::Result<Vec<Document>> {
    let texts: Vec<DocumentText> = block_on(ApiClient::new(arguments)?.get("/v1/documents", &[]))?;
    // What services say of themselves stays as it is, whatever documents are put.
    let texts = texts.into_iter().filter(|text| text.source != "catalog");
    let documents = texts.enumerate().map(|(index, text)| Document {
        id: match text.source.as_str() {
            "kv" => DocumentId::Kv(text.document.into()),
            _ => DocumentId::File(text.document.into()),
        },
        text: text.text.into(),
        // They come in the order in which they win.
        order: index as u64,
        version: text.version,
    });
    Ok(documents.collect())
}

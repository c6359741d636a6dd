//! `portreeve apply`: a directory into Consul KV, all or nothing.

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::slice;

use super::api_client::ApiArguments;
use super::bounds::BoundsArguments;
use super::change_set::{self, Action, Change, ChangeSet};
use super::documents;
use super::failure::Failure;
use super::kv::{self, KvArguments, NotWritten};
use super::plan;
use super::report::counted;
use super::runtime::block_on;
use super::terminal::{Color, Terminal};
use crate::sources::consul::TxnWrite;

/// Write documents into Consul KV
///
/// Every write names the version it replaces, so that nobody's change is lost. All are one transaction of Consul's, of
/// up to 64 documents and some 380 KiB of text (512 KiB of JSON): agents take it whole or not at all. Documents that do not
/// validate are refused.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A directory of documents, or one document.
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Do not ask.
    #[arg(long, short = 'y')]
    auto_approve: bool,
    /// Delete documents that no file has. With -auto-approve not a gateway, nor more than half of all.
    #[arg(long)]
    prune: bool,
    /// The same, however many they are.
    #[arg(long)]
    prune_all: bool,
    /// Use several transactions when one cannot hold it: agents see them one after the other.
    #[arg(long)]
    batched: bool,
    /// Check what the agent on this machine lets documents reach.
    #[arg(long)]
    agent: bool,
    #[command(flatten)]
    bounds: BoundsArguments,
    #[command(flatten)]
    kv: KvArguments,
    #[command(flatten)]
    api: ApiArguments,
}

/// Consul's bounds for one transaction: operations, and bytes of its JSON.
const OPERATIONS: usize = 64;
const BYTES: usize = 512 * 1024;
/// What JSON adds to a key and a value, at most.
const OPERATION_BYTES: usize = 160;

pub fn run(arguments: &Arguments, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
    let given = documents::read_some(slice::from_ref(&arguments.path))?;
    plan::refuse_unusable(&given)?;
    let prune = arguments.prune || arguments.prune_all;
    if prune {
        plan::refuse_to_prune(&arguments.path, &given)?;
    }
    let prefix = arguments.kv.documents_prefix();
    let wanted = change_set::below(&prefix, kv::named(&arguments.path, &given)?);
    let bounds = arguments
        .bounds
        .bounds(arguments.agent.then_some(&arguments.api))?;
    let client = arguments.kv.client()?;
    let current = block_on(kv::read(&client, &prefix, terminal))?;
    let set = ChangeSet::between(&current, &wanted, prune);
    let report = change_set::check(&current.documents, &wanted, &set, &bounds);
    set.write(terminal)?;
    report.write(terminal)?;
    bounds.note(&change_set::as_documents(&wanted), terminal)?;
    if report.errors() > 0 {
        return Err(plan::invalid(report.errors()));
    }
    if set.changes.is_empty() {
        terminal.line("Nothing to do.")?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.auto_approve && !arguments.prune_all {
        refuse_to_lose_much(arguments, &set, current.documents.len())?;
    }
    let batches = batches(&set.changes)?;
    if batches.len() > 1 && !arguments.batched {
        return Err(Failure::new(format!(
            "{} do not fit one transaction of Consul's ({OPERATIONS} operations, {} KiB of JSON, in which a text takes a third more)",
            counted(set.changes.len(), "change"),
            BYTES / 1024
        ))
        .fix(format!(
            "-batched writes {} transactions: agents see them one after the other",
            batches.len()
        ))
        .into());
    }
    if !arguments.auto_approve && !is_approved(terminal)? {
        terminal.line("Not applied.")?;
        return Ok(ExitCode::FAILURE);
    }
    let mut written = 0;
    for batch in batches {
        let writes: Vec<TxnWrite> = batch.iter().map(operation).collect();
        let index = block_on(async { Ok(kv::write(&client, &writes).await) })?
            .map_err(|failure| after(failure, written, batch.len(), set.changes.len()))?;
        for change in batch {
            let done = terminal.paint(Color::Green, change.action.done());
            terminal.line(format!("{} {done}", change.document))?;
        }
        // Consul tells none for deletions alone.
        let at = match index {
            0 => String::new(),
            index => format!(" at index {index}"),
        };
        terminal.line(format!(
            "Transaction of {} written{at}.",
            counted(batch.len(), "document")
        ))?;
        terminal.flush()?;
        written += batch.len();
    }
    Ok(ExitCode::SUCCESS)
}

/// A part of a tree looks like a tree from which the rest was deleted, and where nobody is asked nobody would notice.
fn refuse_to_lose_much(arguments: &Arguments, set: &ChangeSet, stored: usize) -> anyhow::Result<()> {
    let losses = set.losses();
    let gateways: Vec<String> = losses
        .iter()
        .flat_map(|change| &change.objects)
        .filter(|object| object.kind == "gateway")
        .map(|object| format!("the gateway {:?}", object.name))
        .collect();
    if gateways.is_empty() && losses.len() * 2 <= stored {
        return Ok(());
    }
    let names: Vec<&str> = losses.iter().map(|change| change.document.as_str()).collect();
    let more = match names.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let among = match gateways.is_empty() {
        true => String::new(),
        false => format!(", with {}", gateways.join(", ")),
    };
    Err(Failure::new(format!(
        "-prune would delete {} of {}{among}: {}{more}",
        names.len(),
        counted(stored, "stored document"),
        names[..names.len().min(SHOWN)].join(", "),
    ))
    .because(format!(
        "no file in {} has them, which is so as well if it is a part of the tree, or another one",
        arguments.path.display()
    ))
    .fix("name the directory that holds all documents; if they are to go, apply with -prune-all, or without -auto-approve and answer")
    .into())
}

/// Of what would be deleted, a screenful.
const SHOWN: usize = 8;

/// A failure is told with what stands: `written` changes, before a transaction of `open`.
fn after(failure: NotWritten, written: usize, open: usize, all: usize) -> anyhow::Error {
    match failure {
        NotWritten::Refused(error) if written == 0 => error,
        NotWritten::Refused(error) => {
            error.context(format!("{written} of {all} changes are written, the rest is not"))
        }
        NotWritten::Unknown(error) if open == all => error.context(
            "it is not known whether the transaction is written: it is whole, or not at all; `portreeve plan` tells",
        ),
        NotWritten::Unknown(error) => {
            let rest = match all - written - open {
                0 => String::new(),
                rest => format!("; the last {rest} are not written"),
            };
            error.context(format!(
                "{written} of {all} changes are written; of the next {open}, one transaction, it is not known: they are \
                 written whole, or not at all{rest}; `portreeve plan` tells"
            ))
        }
    }
}

fn operation(change: &Change) -> TxnWrite {
    let key = change.document.clone();
    match change.action {
        Action::Create | Action::Update => TxnWrite::Cas {
            key,
            value: change.new.as_bytes().to_vec().into(),
            index: change.index,
        },
        Action::Delete => TxnWrite::DeleteCas {
            key,
            index: change.index,
        },
    }
}

/// As few transactions as fit, in order.
fn batches(changes: &[Change]) -> anyhow::Result<Vec<&[Change]>> {
    let mut batches = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, change) in changes.iter().enumerate() {
        let size = OPERATION_BYTES + change.document.len() + change.new.len().div_ceil(3) * 4;
        if size > BYTES {
            return Err(Failure::new(format!(
                "{} is too large for a transaction of Consul's: {} KiB of text, and one holds {} KiB",
                change.document,
                change.new.len() / 1024,
                (BYTES - OPERATION_BYTES - change.document.len()) / 4 * 3 / 1024
            ))
            .fix(
                "split it: a configuration may be any number of documents; `consul kv put` takes up to 512 KiB, unchecked",
            )
            .into());
        }
        if index - start == OPERATIONS || bytes + size > BYTES {
            batches.push(&changes[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += size;
    }
    batches.push(&changes[start..]);
    Ok(batches)
}

fn is_approved(terminal: &mut Terminal) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new("nobody is there to ask")
            .fix("-auto-approve (or -y) applies without asking")
            .into());
    }
    terminal.write("\nApply this? Only \"yes\" does it: ")?;
    terminal.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(bytes: usize) -> Change {
        Change {
            action: Action::Create,
            document: "portreeve/config/a".to_owned(),
            file: None,
            index: 0,
            objects: Vec::new(),
            old: "".into(),
            new: "x".repeat(bytes).into(),
        }
    }

    fn sizes(changes: &[Change]) -> Vec<usize> {
        batches(changes)
            .unwrap()
            .iter()
            .map(|batch| batch.len())
            .collect()
    }

    #[test]
    fn batches_keep_both_bounds() {
        assert_eq!(sizes(&vec![change(10); 64]), [64]);
        assert_eq!(sizes(&vec![change(10); 65]), [64, 1]);
        assert_eq!(sizes(&vec![change(150_000); 4]), [2, 2]);
        let refused = batches(&[change(400_000)]).unwrap_err().to_string();
        assert!(
            refused.contains("390 KiB of text, and one holds 383 KiB"),
            "{refused}"
        );
        // An agent would take it.
        assert!(change(400_000).new.len() < crate::hcl::Limits::default().document_bytes);
    }
}

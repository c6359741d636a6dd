//! Documents in Consul KV, and which file is which key.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::documents::Given;
use super::failure::Failure;
use super::terminal::Terminal;
use crate::agent::log_format::escaped;
use crate::model::{Document, DocumentId, extension_of_key};
use crate::sources::consul::{
    ConsulClient, ConsulError, ConsulSettings, TransportFailure, TxnWrite, list_documents,
};

/// Where documents stand in Consul.
#[derive(Clone, Debug, clap::Args)]
pub struct KvArguments {
    /// Documents are the keys below <PREFIX>/config/.
    #[arg(long, value_name = "PREFIX", default_value = "portreeve")]
    pub prefix: String,
    /// Consul's address; the rest is read from CONSUL_HTTP_TOKEN and its kin.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "CONSUL_HTTP_ADDR",
        hide_env_values = true
    )]
    consul_address: Option<String>,
    /// A file with the token to use.
    #[arg(
        long,
        value_name = "FILE",
        env = "CONSUL_HTTP_TOKEN_FILE",
        hide_env_values = true
    )]
    consul_token_file: Option<PathBuf>,
}

impl KvArguments {
    /// The prefix of all documents, without a slash at its end.
    pub fn documents_prefix(&self) -> String {
        format!("{}/config", self.prefix.trim_matches('/'))
    }

    pub fn client(&self) -> anyhow::Result<ConsulClient> {
        let lookup = |name: &str| match name {
            "CONSUL_HTTP_ADDR" => self.consul_address.clone(),
            "CONSUL_HTTP_TOKEN_FILE" => self
                .consul_token_file
                .as_ref()
                .map(|path| path.to_string_lossy().into_owned()),
            name => std::env::var(name).ok(),
        };
        let settings = ConsulSettings::from_env(lookup)
            .map_err(|error| Failure::new("cannot reach Consul with these settings").because(error))?;
        let client = ConsulClient::new(&settings)
            .map_err(|error| Failure::new("cannot reach Consul with these settings").because(error))?;
        Ok(client)
    }
}

/// What is there, by key.
#[derive(Debug, Default)]
pub struct Current {
    pub documents: BTreeMap<String, Document>,
    /// The version of each key whose value is no document.
    pub illegible: BTreeMap<String, u64>,
}

impl Current {
    pub fn new(documents: Vec<Document>) -> Self {
        Self {
            documents: documents
                .into_iter()
                .map(|document| (document.id.as_str().to_owned(), document))
                .collect(),
            illegible: BTreeMap::new(),
        }
    }
}

/// The documents as they are now. Keys that are none are named; only a file of their name takes their place.
pub async fn read(client: &ConsulClient, prefix: &str, terminal: &mut Terminal) -> anyhow::Result<Current> {
    let listing = list_documents(client, prefix).await.map_err(consul_failure)?;
    let mut current = Current::new(listing.documents);
    for rejected in listing.rejected {
        current
            .illegible
            .insert(rejected.key.to_string(), rejected.version);
        terminal.error_line(format!(
            "note: {} is no document: {}",
            escaped(&rejected.key),
            rejected.reason
        ))?;
    }
    Ok(current)
}

/// How a transaction ended that did not succeed.
#[derive(Debug)]
pub enum NotWritten {
    /// Nothing of it is written.
    Refused(anyhow::Error),
    /// The answer is lost, and what it would have said with it: the whole may be written, or nothing.
    Unknown(anyhow::Error),
}

/// Of what a transaction failed for, a screenful.
const SHOWN: usize = 16;

/// All or nothing. Returns the index under which Consul took it.
pub async fn write(client: &ConsulClient, writes: &[TxnWrite]) -> Result<u64, NotWritten> {
    client.txn(writes).await.map_err(|error| match error {
        ConsulError::TxnFailed { failures } => {
            let lost: Vec<String> = failures
                .iter()
                .map(|failure| {
                    let key = writes.get(failure.operation).map_or("?", TxnWrite::key);
                    if failure.what.contains("index is stale") {
                        format!("{key} has changed since it was read")
                    } else {
                        format!("{key}: {}", failure.what)
                    }
                })
                .collect();
            let more = match lost.len().saturating_sub(SHOWN) {
                0 => String::new(),
                more => format!("; and {more} more"),
            };
            let failure = Failure::new(format!(
                "Consul refused the transaction, nothing of it is written: {}{more}",
                lost[..lost.len().min(SHOWN)].join("; ")
            ));
            let any = |words: &str| failures.iter().any(|failure| failure.what.contains(words));
            NotWritten::Refused(if any("index is stale") {
                failure
                    .fix("look at what changed with `portreeve plan`, then apply again")
                    .into()
            } else if any("Permission denied") {
                failure
                    .fix("give the token the right to write these keys: key_prefix \"<their prefix>\" { policy = \"write\" }")
                    .into()
            } else {
                failure.into()
            })
        }
        error => match is_lost(&error) {
            true => NotWritten::Unknown(consul_failure(error)),
            false => NotWritten::Refused(consul_failure(error)),
        },
    })
}

/// The request was sent, and nobody says what became of it.
fn is_lost(error: &ConsulError) -> bool {
    match error {
        ConsulError::Transport { failure, .. } => {
            matches!(failure, TransportFailure::TimedOut | TransportFailure::Cut)
        }
        // Of a leader that lost its place in the middle, or of a proxy that lost Consul.
        ConsulError::Status { status, body, .. } => {
            matches!(status, 500 | 502 | 504) && !body.contains("No cluster leader")
        }
        _ => false,
    }
}

fn consul_failure(error: ConsulError) -> anyhow::Error {
    let problem = error.problem();
    let failure = Failure::new(problem.message.to_string());
    match problem.fix {
        Some(fix) => failure.fix(fix.to_string()).into(),
        None => failure.into(),
    }
}

/// A document as files want it.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub file: Arc<str>,
    pub text: Arc<str>,
}

/// By name: the path below `root` without its extension, `/` between its parts.
pub fn named(root: &Path, given: &Given) -> anyhow::Result<BTreeMap<String, Wanted>> {
    let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
    for document in &given.documents {
        let name = name_of(root, document.id.as_str())?;
        let file: Arc<str> = document.id.as_str().into();
        if let Some(other) = wanted.get(&name) {
            let text = format!("{} and {file} would both be the document {name:?}", other.file);
            return Err(Failure::new(text).fix("rename one of them").into());
        }
        wanted.insert(
            name,
            Wanted {
                file,
                text: document.text.clone(),
            },
        );
    }
    Ok(wanted)
}

fn name_of(root: &Path, file: &str) -> anyhow::Result<String> {
    let path = Path::new(file);
    let below = match path.strip_prefix(root) {
        Ok(below) if !below.as_os_str().is_empty() => below,
        // The root is the file itself.
        _ => Path::new(path.file_name().unwrap_or_default()),
    };
    let name = below
        .with_extension("")
        .to_string_lossy()
        .replace(std::path::MAIN_SEPARATOR, "/");
    let fits = |c: char| c.is_ascii_alphanumeric() || "_./-".contains(c);
    if name.is_empty()
        || !name.chars().all(fits)
        || name.split('/').any(|part| part.is_empty() || part.contains(".."))
    {
        return Err(Failure::new(format!("{file} cannot be a KV key: {name:?}"))
            .fix("use letters, digits, _, . and - in its path")
            .into());
    }
    if let Some(extension) = extension_of_key(&name) {
        return Err(Failure::new(format!(
            "{file} cannot be a KV key: {name:?} ends in {extension:?}"
        ))
        .because("a document's key has no file extension")
        .fix("rename the file: one extension, not two")
        .into());
    }
    Ok(name)
}

pub fn kv_id(key: &str) -> DocumentId {
    DocumentId::Kv(key.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::agent_api::{Product, Server};

    #[test]
    fn an_answer_is_lost_where_the_request_may_have_been_carried_out() {
        let answered = |status: u16, body: &str| ConsulError::Status {
            server: Server {
                product: Product::Consul,
                address: "http://c".into(),
            },
            asked: "PUT /v1/txn".to_owned(),
            status,
            body: body.into(),
            index: None,
            retry_after: None,
            anonymous: false,
            fix: None,
        };
        for (status, body, lost) in [
            (
                500,
                "rpc error making call: leadership lost while committing log",
                true,
            ),
            (502, "", true),
            (504, "", true),
            (500, "No cluster leader", false),
            (503, "", false),
            (429, "", false),
            (403, "Permission denied", false),
        ] {
            assert_eq!(is_lost(&answered(status, body)), lost, "{status} {body}");
        }
    }

    #[test]
    fn names_of_files() {
        let name = |root: &str, file: &str| name_of(Path::new(root), file).map_err(|error| error.to_string());
        assert_eq!(name("conf", "conf/shop.hcl"), Ok("shop".to_owned()));
        assert_eq!(
            name("conf/", "conf/teams/a/web.json"),
            Ok("teams/a/web".to_owned())
        );
        assert_eq!(name("conf/shop.hcl", "conf/shop.hcl"), Ok("shop".to_owned()));
        assert_eq!(name(".", "./a.b.hcl"), Ok("a.b".to_owned()));
        for bad in ["conf/sh op.hcl", "conf/ü.hcl", "conf/a..b.hcl", "conf/a.json.hcl"] {
            assert!(name("conf", bad).is_err(), "{bad}");
        }
    }
}

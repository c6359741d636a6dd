//! Documents in KV: one blocking query on `<prefix>/config/`, each answer one update, each disappearance doubted.
//!
//! While there are few documents the query brings them all. From [`SHARDED_FROM`] on it brings their names, and what changed
//! is read in parts (see `shards`); whatever is out of the ordinary is still decided by a reading of the whole.
//!
//! A listing lies when rights are lost: Consul leaves out what the token may not read and answers 200, or 404 as if the
//! prefix were empty. So a vanished key is read singly (403: rights were lost, keep; 404: deleted), and the first
//! answer counts as complete only if the token may read the prefix itself.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ConsulError;
use super::blocking_query::{Closed, Context, Verdict, WatchTiming, Watched, watch};
use super::budget::Pass;
use super::call::Call;
use super::client::{Answer, ConsulClient};
use super::document_ledger::{DocumentLedger, Listing, Rejected};
use super::kv::read_call;
use super::shards::{self, Part, Span};
use crate::model::{Document, DocumentId, DocumentsUpdate, Observation, Problem, ProblemKind};
use crate::sources::SourceHealth;

/// Watches one prefix and keeps the rest of the agent told.
#[derive(Debug)]
pub struct DocumentsWatch {
    watched: Documents,
    timing: WatchTiming,
    health: SourceHealth,
}

impl DocumentsWatch {
    /// `prefix` ends in a slash: a KV prefix is raw text, and `a` would take `ab/x` in too.
    pub fn new(client: ConsulClient, prefix: &str, observations: mpsc::Sender<Observation>) -> Self {
        let prefix: Arc<str> = format!("{}/", prefix.trim_end_matches('/')).into();
        let timing = WatchTiming::towards(&client.settings().address);
        let watched = Documents {
            client,
            prefix,
            observations,
            ledger: DocumentLedger::default(),
            complete: false,
            told_complete: false,
            told: None,
            believed_index: 0,
            read_whole: None,
            crowded: 0,
            wiped: false,
            unlisted_reads: 0,
        };
        Self {
            watched,
            timing,
            health: SourceHealth::default(),
        }
    }

    pub fn with_timing(mut self, timing: WatchTiming) -> Self {
        self.timing = timing;
        self
    }

    /// Documents from before a restart. One that is not listed any more is doubted like any other, and then removed.
    pub fn with_known(mut self, documents: &[Document]) -> Self {
        let ours = |document: &&Document| self.owns(&document.id);
        let known: Vec<Document> = documents.iter().filter(ours).cloned().collect();
        self.watched.ledger.apply(&known, &[]);
        // Consul's index was at least that of its newest key: a lower one, with no key left, is another Consul's past.
        let newest = known.iter().map(|document| document.version).max();
        self.watched.believed_index = newest.unwrap_or(0);
        self
    }

    /// The document is or was one of this prefix.
    pub fn owns(&self, id: &DocumentId) -> bool {
        matches!(id, DocumentId::Kv(key) if key.starts_with(&*self.watched.prefix))
    }

    /// The name under which its updates go.
    pub fn source(&self) -> Arc<str> {
        self.watched.prefix.clone()
    }

    pub fn health(&self) -> SourceHealth {
        self.health.clone()
    }

    /// Ends when cancelled, or when nobody takes observations any more.
    pub async fn run(mut self, cancel: CancellationToken) {
        let client = self.watched.client.clone();
        watch(&client, &mut self.watched, &self.timing, &self.health, &cancel).await;
    }
}

/// What one look at a prefix found.
#[derive(Debug, Default)]
pub struct KvListing {
    pub documents: Vec<Document>,
    /// Keys that are no documents.
    pub rejected: Vec<Rejected>,
}

/// All documents as they are now, for one look (`plan`, `apply`).
///
/// The same care as the watch: an empty or partial listing with a token that may not read the prefix is an error.
pub async fn list_documents(client: &ConsulClient, prefix: &str) -> Result<KvListing, ConsulError> {
    let prefix = format!("{}/", prefix.trim_end_matches('/'));
    let answer = client.call(list_call(&prefix).timeout(LISTING_TIME)).await?;
    client
        .probe(read_call(&prefix).needs(prefix_rule(&prefix)))
        .await?;
    let listing = DocumentLedger::default()
        .compare(&answer.body, true)
        .map_err(|error| answer.unreadable(error))?;
    Ok(KvListing {
        documents: listing.changed,
        rejected: listing.rejected,
    })
}

#[derive(Debug)]
struct Documents {
    client: ConsulClient,
    prefix: Arc<str>,
    observations: mpsc::Sender<Observation>,
    ledger: DocumentLedger,
    /// One trustworthy answer came. Never taken back: what was known stays known.
    complete: bool,
    told_complete: bool,
    /// The problem that the receiver believes in.
    told: Option<Problem>,
    /// Of the last answer that was believed: all that is known is of it. Also tells an emptied prefix from an emptied
    /// Consul.
    believed_index: u64,
    /// When the whole prefix was last read and believed.
    read_whole: Option<Instant>,
    /// So many polls bring everything, because parts did not show the change: mostly somebody writes faster than they can be
    /// read.
    crowded: u8,
    /// Consul came back without its state. It stays so until a document is seen: our own writes (status, the lock) soon
    /// lift the new index over the old one.
    wiped: bool,
    /// Answers in a row that lacked a key which could be read.
    unlisted_reads: u32,
}

/// What single reads said about vanished keys.
enum Disappearance {
    Deleted,
    RightsLost(Problem),
    /// Consul has less past than it had, and no documents.
    StateLost(Problem),
    /// The key can be read: the listing was partial or out of date.
    NotGone(Arc<str>),
}

impl Watched for Documents {
    fn call(&self) -> Call {
        if self.may_read_shards() {
            names_call(&self.prefix)
        } else {
            list_call(&self.prefix)
        }
    }

    async fn admit(&mut self, _first: bool) -> Pass {
        Pass::granted()
    }

    async fn take(&mut self, mut answer: Answer, mut context: Context) -> Result<Verdict, ConsulError> {
        let mut in_shards = None;
        self.crowded = self.crowded.saturating_sub(1);
        if holds_names(&answer.body) {
            in_shards = self.read_shards(&answer, context).await;
            if in_shards.is_none() {
                answer = self.list_again().await?;
                context.waited = false;
            }
        }
        let is_whole = in_shards.is_none();
        let mut listing = match in_shards {
            Some(listing) => listing,
            None => self.compare(&answer, context)?,
        };
        if context.waited && (!self.complete || !listing.vanished.is_empty()) {
            // The probes below show the rights of now, a poll those of its beginning: look again before comparing them.
            answer = self.list_again().await?;
            listing = self.compare(&answer, context)?;
        }
        if listing.present > DOCUMENTS {
            let message = format!(
                "Consul at {} holds {} keys under {}, more than the {DOCUMENTS} that are taken; nothing is taken",
                self.client.address(),
                listing.present,
                self.prefix
            );
            let fix = "delete what is no document, or put documents that belong together into one key: the bound is fixed";
            return Ok(Verdict::Doubted(
                Problem::new(ProblemKind::Limit, message).with_fix(fix),
            ));
        }
        let mut doubt = self.doubt_completeness().await?;
        let mut removed = Vec::new();
        if doubt.is_none() && !listing.vanished.is_empty() {
            match self.ask_about(&listing, answer.index).await? {
                Disappearance::Deleted => {
                    self.unlisted_reads = 0;
                    removed = listing
                        .vanished
                        .iter()
                        .map(|key| DocumentId::Kv(key.clone()))
                        .collect();
                }
                Disappearance::RightsLost(problem) => doubt = Some(problem),
                Disappearance::StateLost(problem) => {
                    self.wiped = true;
                    doubt = Some(problem);
                }
                Disappearance::NotGone(key) => {
                    self.unlisted_reads += 1;
                    tracing::warn!(%key, times = self.unlisted_reads, "a list of keys lacks one that exists; the list is not believed");
                    doubt = Some(self.not_gone(&key));
                }
            }
        }
        if doubt.is_none() {
            self.complete = true;
            self.believed_index = answer.index.unwrap_or(0);
            self.wiped = false;
            if is_whole {
                self.read_whole = Some(Instant::now());
            }
        }
        let rejected = doubt
            .is_none()
            .then(|| self.rejection(&listing.rejected))
            .flatten();
        let news = !(listing.changed.is_empty() && removed.is_empty());
        // What can be seen is true even while something else is hidden.
        match self
            .publish(listing.changed, removed, doubt.clone().or(rejected))
            .await
        {
            Err(Closed) => Ok(Verdict::Closed),
            Ok(()) => Ok(doubt.map_or(Verdict::Taken { news }, Verdict::Doubted)),
        }
    }

    async fn tell(&mut self, problem: Problem) -> Result<(), Closed> {
        self.publish(Vec::new(), Vec::new(), Some(problem)).await
    }
}

impl Documents {
    /// Everything, in place of what a poll brought: not older than that, whoever leads by now.
    async fn list_again(&self) -> Result<Answer, ConsulError> {
        self.client
            .call(list_call(&self.prefix).flag("consistent").timeout(LISTING_TIME))
            .await
    }

    /// Many documents, and nothing is wrong.
    fn may_read_shards(&self) -> bool {
        self.complete
            && !self.wiped
            && self.told.is_none()
            && self.crowded == 0
            && self.ledger.len() >= SHARDED_FROM
    }

    /// What the shards that changed say; None where only the whole prefix can tell.
    async fn read_shards(&mut self, names: &Answer, context: Context) -> Option<Listing> {
        let at = names.index?;
        // Now and then the whole is read whatever the indexes say: nothing here may rest on them for ever.
        let is_due = self.read_whole.is_none_or(|read| read.elapsed() >= WHOLE_EVERY);
        if !self.may_read_shards() || context.compare_whole || at < self.believed_index || is_due {
            return None;
        }
        let known = self.ledger.names(&names.body).ok()??;
        if at == self.believed_index {
            return known.are_known().then(|| Listing {
                present: self.ledger.len(),
                ..Listing::default()
            });
        }
        let needs = prefix_rule(&self.prefix);
        let (keys, new) = (known.keys(), known.new_keys());
        let span = Span {
            since: self.believed_index,
            at,
            ledger: &self.ledger,
            new: &new,
        };
        let listing = match shards::read_changes(&self.client, &needs, &keys, span).await {
            Ok(parts) => parts.and_then(|parts| {
                let body = |part: &Part<'_>| (part.answer.body.clone(), part.shard.keys().len());
                self.ledger
                    .compare_some(parts.iter().map(body), &known, at)
                    .ok()?
            }),
            Err(error) => {
                tracing::debug!(%error, "a part of the documents could not be read: all of them are");
                None
            }
        };
        if listing.is_none() {
            self.crowded = CROWDED;
        }
        listing
    }

    fn compare(&self, answer: &Answer, context: Context) -> Result<Listing, ConsulError> {
        self.ledger
            .compare(&answer.body, context.compare_whole)
            .map_err(|error| answer.unreadable(error))
    }

    /// Until the first answer is believed: may the token read the prefix at all? A token that sees a part of it would
    /// otherwise make that part the whole configuration.
    async fn doubt_completeness(&self) -> Result<Option<Problem>, ConsulError> {
        if self.complete {
            return Ok(None);
        }
        match self
            .client
            .probe(read_call(&self.prefix).needs(prefix_rule(&self.prefix)))
            .await
        {
            Ok(_) => Ok(None),
            Err(error) if error.is_lack_of_rights() => Ok(Some(error.problem())),
            Err(error) => Err(error),
        }
    }

    async fn ask_about(&self, listing: &Listing, index: Option<u64>) -> Result<Disappearance, ConsulError> {
        let asked = sample(&listing.vanished);
        let reads = stream::iter(asked.iter().cloned().map(|key| {
            let client = self.client.clone();
            async move {
                let read = client
                    .probe(
                        read_call(&key)
                            .flag("consistent")
                            .needs(prefix_rule(&self.prefix)),
                    )
                    .await;
                (key, read)
            }
        }));
        // In order, so that the same trouble is told in the same words each time.
        let mut reads = reads.buffered(READS_IN_FLIGHT);
        let mut not_gone = None;
        while let Some((key, read)) = reads.next().await {
            match read {
                Ok(answer) if answer.found => not_gone = Some(key),
                Ok(_) => {}
                Err(error) if error.is_lack_of_rights() => {
                    return Ok(Disappearance::RightsLost(lost_rights(
                        &error,
                        listing.vanished.len(),
                    )));
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(key) = not_gone {
            return Ok(Disappearance::NotGone(key));
        }
        let index = index.unwrap_or(0);
        if listing.present == 0 && (self.wiped || index < self.believed_index) {
            // Deleting the last key moves the index on; only a Consul that lost its state has less past and no keys.
            let message = format!(
                "Consul at {} holds none of {} documents under {} any more and its index fell below {}: \
                 it seems to have lost its state; the documents are kept",
                self.client.address(),
                self.ledger.len(),
                self.prefix,
                self.believed_index
            );
            let fix = format!(
                "restore Consul, or write the documents again; one key under {} is enough",
                self.prefix
            );
            return Ok(Disappearance::StateLost(
                Problem::new(ProblemKind::Invalid, message).with_fix(fix),
            ));
        }
        Ok(Disappearance::Deleted)
    }

    fn not_gone(&self, key: &str) -> Problem {
        let message = format!(
            "Consul at {} left {key} out of its list of {}, though the key exists: the list is not believed, and the documents last known stay",
            self.client.address(),
            self.prefix
        );
        Problem::new(ProblemKind::Unavailable, message)
            .with_fix("mostly over at the next read; if it stays, check that all Consul servers agree (`consul operator raft list-peers`)")
    }

    fn rejection(&self, rejected: &[Rejected]) -> Option<Problem> {
        let first = rejected.first()?;
        let shown: Vec<String> = rejected.iter().take(SHOWN).map(ToString::to_string).collect();
        let more = rejected.len().saturating_sub(SHOWN);
        let tail = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        let message = format!("not taken from Consul KV: {}{tail}", shown.join("; "));
        let fix = format!(
            "write the document again (consul kv put {} @file), or delete the key",
            first.key
        );
        Some(Problem::new(ProblemKind::Invalid, message).with_fix(fix))
    }

    /// Sends what the receiver does not know yet; nothing if that is nothing.
    async fn publish(
        &mut self,
        changed: Vec<Document>,
        removed: Vec<DocumentId>,
        problem: Option<Problem>,
    ) -> Result<(), Closed> {
        let newly_complete = self.complete && !self.told_complete;
        if changed.is_empty() && removed.is_empty() && problem == self.told && !newly_complete {
            return Ok(());
        }
        self.ledger.apply(&changed, &removed);
        self.told = problem.clone();
        self.told_complete = self.complete;
        let update = DocumentsUpdate {
            source: self.prefix.clone(),
            changed,
            removed,
            complete: self.complete,
            problem,
        };
        self.observations
            .send(Observation::Documents(update))
            .await
            .map_err(|_| Closed)
    }
}

fn list_call(prefix: &str) -> Call {
    Call::get("kv")
        .key(prefix)
        .flag("recurse")
        .not_found_is_answer()
        .max_body(LISTING_BYTES)
        .needs(prefix_rule(prefix))
}

fn names_call(prefix: &str) -> Call {
    Call::get("kv")
        .key(prefix)
        .flag("keys")
        .not_found_is_answer()
        .max_body(LISTING_BYTES)
        .needs(prefix_rule(prefix))
}

/// A listing of names has texts where one of documents has objects.
fn holds_names(body: &[u8]) -> bool {
    let mut signs = body.iter().filter(|byte| !byte.is_ascii_whitespace());
    signs.next() == Some(&b'[') && signs.next() == Some(&b'"')
}

fn prefix_rule(prefix: &str) -> String {
    format!("key_prefix {prefix:?} {{ policy = \"read\" }} (\"list\" where acl.enable_key_list_policy is on)")
}

fn lost_rights(error: &ConsulError, vanished: usize) -> Problem {
    let problem = error.problem();
    let message = format!(
        "{vanished} documents vanished because the token may no longer read them; they are kept. {problem}"
    );
    Problem {
        message: message.into(),
        ..problem
    }
}

/// Which vanished keys to read: all of them while they are few, beyond that the first ones and one of each folder.
/// Rights are granted by prefix, so one key of a folder mostly speaks for it; reading all covers rules on single keys.
fn sample(vanished: &[Arc<str>]) -> Vec<Arc<str>> {
    let mut folders = BTreeSet::new();
    let folder_of = |key: &Arc<str>| key.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
    let chosen = vanished
        .iter()
        .enumerate()
        .filter(|(position, key)| folders.insert(folder_of(key)) || *position < READ_ALL);
    chosen.map(|(_, key)| key.clone()).collect()
}

/// 90 documents of the largest size, or 25,000 of 2 KiB, with base64 around them; a bound on memory.
const LISTING_BYTES: usize = 64 * 1024 * 1024;

/// As a poll of it may take.
const LISTING_TIME: Duration = Duration::from_secs(60);

/// Below it, one read of everything costs no more than finding out what changed.
const SHARDED_FROM: usize = 2_000;

/// Polls that bring everything after an attempt that failed.
const CROWDED: u8 = 4;

/// Less than a poll takes when nothing changes: each that runs out is followed by a reading of the whole.
const WHOLE_EVERY: Duration = Duration::from_secs(240);

/// Far above any known installation; below it every step is bounded.
const DOCUMENTS: usize = 100_000;

/// A mass deletion of this many is checked key by key (some 100 ms).
const READ_ALL: usize = 256;

const READS_IN_FLIGHT: usize = 8;

/// Keys named in one message.
const SHOWN: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_is_asked_about() {
        let mut keys: Vec<Arc<str>> = (0..1000).map(|n| format!("p/a/{n:04}").into()).collect();
        keys.push("p/b/x".into());
        keys.push("p/b/y".into());
        let asked = sample(&keys);
        assert_eq!(asked.len(), READ_ALL + 1);
        assert!(asked.contains(&"p/b/x".into()));
        assert_eq!(sample(&keys[..10]).len(), 10);
    }
}

//! What the disk remembers of certificates that are read, and of the authorities of clients: written behind the backs of
//! their watches, so that a slow or full disk delays no certificate.
//!
//! A record lives as long as the interest in it. One that outlived it would bring back what was in force long ago, when
//! somebody names it again while its source is away: authorities that were shut out since would let in their clients.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::clock::WallClock;
use super::memory::Memory;
use super::store::{CertificateStore, StoredCertificate, cause, on_disk};
use crate::model::{CertificateMaterial, CertificateQuery, Needed};

/// How often what could not be written is tried again when nothing else is to be written.
const RETRY: Duration = Duration::from_secs(5);

/// Between two looks for what has ended.
pub(super) const PRUNE_INTERVAL: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone)]
pub(super) struct Records(Arc<Shared>);

struct Shared {
    store: Arc<dyn CertificateStore>,
    clock: WallClock,
    content: Mutex<Content>,
    news: Notify,
}

#[derive(Default)]
struct Content {
    /// Which watch of a query may write: the last one that began, until it ends.
    watched: BTreeMap<CertificateQuery, u64>,
    began: u64,
    /// The newest of each query that is not on disk yet. None: its record goes.
    waiting: BTreeMap<CertificateQuery, Option<StoredCertificate>>,
}

impl Records {
    pub(super) fn new(store: Arc<dyn CertificateStore>, clock: WallClock) -> Self {
        Self(Arc::new(Shared {
            store,
            clock,
            content: Mutex::default(),
            news: Notify::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        // Whole after each statement, whatever a panicking holder was about to do.
        self.0.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a watch that begins. `recalls`: what it finds is from before a restart. None: issued certificates keep a record
    /// of their own, with the time of the last request.
    pub(super) fn begin(&self, query: &CertificateQuery, recalls: bool) -> Option<Memory> {
        if !is_remembered(query) {
            return None;
        }
        let mut content = self.lock();
        content.began += 1;
        let number = content.began;
        content.watched.insert(query.clone(), number);
        Some(Memory::new(self.clone(), query.clone(), number, recalls))
    }

    /// Nobody wants it any more. What its watch says from now on is not written.
    pub(super) fn end(&self, query: &CertificateQuery) {
        if !is_remembered(query) {
            return;
        }
        let mut content = self.lock();
        content.watched.remove(query);
        content.waiting.insert(query.clone(), None);
        drop(content);
        self.0.news.notify_one();
    }

    /// Written soon, if this is the watch that may.
    pub(super) fn keep(&self, query: &CertificateQuery, watch: u64, material: &CertificateMaterial) {
        let mut content = self.lock();
        if content.watched.get(query) != Some(&watch) {
            return;
        }
        content
            .waiting
            .insert(query.clone(), Some(StoredCertificate::read(material)));
        drop(content);
        self.0.news.notify_one();
    }

    pub(super) async fn load(&self, query: &CertificateQuery) -> Option<StoredCertificate> {
        let (store, asked) = (self.0.store.clone(), query.clone());
        on_disk(move || store.load(&asked)).await.unwrap_or_else(|error| {
            tracing::error!(certificate = %query, error = %cause(&error), "certificate store not read");
            None
        })
    }

    /// Writes until `stop`, and then what is left. `first` is what was wanted before a restart: records of anything else
    /// are of an interest that ended while nobody was here.
    pub(super) async fn write_all(
        self,
        first: Needed<CertificateQuery>,
        prune_interval: Duration,
        stop: CancellationToken,
    ) {
        self.prune(move |query| first.contains_key(query)).await;
        let mut next_prune = Instant::now() + prune_interval;
        let mut is_failing = false;
        loop {
            let retry = async {
                match is_failing {
                    true => tokio::time::sleep(RETRY).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.0.news.notified() => is_failing = !self.write(is_failing).await,
                () = retry => is_failing = !self.write(is_failing).await,
                () = tokio::time::sleep_until(next_prune) => {
                    let records = self.clone();
                    self.prune(move |query| records.lock().watched.contains_key(query)).await;
                    next_prune = Instant::now() + prune_interval;
                }
            }
        }
        self.write(is_failing).await;
    }

    /// False: it waits still. One transaction for all that has come meanwhile.
    async fn write(&self, was_failing: bool) -> bool {
        let batch: Arc<[_]> = std::mem::take(&mut self.lock().waiting).into_iter().collect();
        if batch.is_empty() {
            return true;
        }
        let (store, written) = (self.0.store.clone(), batch.clone());
        match on_disk(move || store.write(&written)).await {
            Ok(()) => {
                if was_failing {
                    tracing::info!("what is public of certificates is kept on disk again");
                }
                true
            }
            Err(error) => {
                if !was_failing {
                    tracing::error!(
                        error = %cause(&error),
                        fix = "make room on the disk of the agent's data_dir, and let the agent write there",
                        "certificate store not written: a restart while their source is away would not know certificates"
                    );
                }
                let mut content = self.lock();
                for (query, record) in batch.iter() {
                    content
                        .waiting
                        .entry(query.clone())
                        .or_insert_with(|| record.clone());
                }
                false
            }
        }
    }

    /// Drops what has ended: issued certificates by their dates, the others with the interest in them.
    async fn prune(&self, is_wanted: impl Fn(&CertificateQuery) -> bool + Send + 'static) {
        let (store, now) = (self.0.store.clone(), self.0.clock.now());
        let pruned = on_disk(move || {
            store.prune(&|query, record| match is_remembered(query) {
                true => is_wanted(query),
                false => record.matters_until().is_some_and(|end| end > now),
            })
        });
        match pruned.await {
            Ok(0) => {}
            Ok(dropped) => tracing::info!(dropped, "records of certificates that are over"),
            Err(error) => tracing::error!(error = %cause(&error), "certificate store not tidied"),
        }
    }
}

/// Issued certificates keep their record themselves.
fn is_remembered(query: &CertificateQuery) -> bool {
    !matches!(query, CertificateQuery::VaultPki { .. })
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;

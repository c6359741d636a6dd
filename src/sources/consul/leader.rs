//! Leader election on a KV lock, for the few things that one agent does for all (aggregated status, shared issuance).
//!
//! Serving needs no leader. The lock is advisory, so what a leader writes is fenced: [`Leadership::write`] puts a
//! `check-session` before the operations, and Consul refuses them all if the lock moved on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::ConsulError;
use super::client::ConsulClient;
use super::kv::TxnWrite;
use super::session::{DENIED_RETRY, SessionBehavior, SessionKeeper, SessionSettings, say_once};
use crate::sources::retry::jittered;

#[derive(Clone, Debug)]
pub struct LeaderSettings {
    /// The KV key that is the lock.
    pub key: String,
    /// Who leads, as written into the key for people to read.
    pub owner: String,
    pub session: SessionSettings,
}

impl LeaderSettings {
    /// TTL and lock delay of 15 s: Consul's own defaults for locks.
    pub fn new(key: impl Into<String>, owner: impl Into<String>) -> Self {
        let owner = owner.into();
        let session = SessionSettings::new(format!("portreeve leader {owner}"), SessionBehavior::Release);
        Self {
            key: key.into(),
            owner,
            session,
        }
    }
}

/// Stands for election; to be run by whoever owns the agent's tasks.
#[derive(Debug)]
pub struct LeaderElection {
    client: ConsulClient,
    settings: LeaderSettings,
    leads: watch::Sender<Option<Arc<str>>>,
}

/// Whether this process leads, and the only way to write as leader.
#[derive(Clone, Debug)]
pub struct Leadership {
    client: ConsulClient,
    key: Arc<str>,
    leads: watch::Receiver<Option<Arc<str>>>,
}

#[derive(Debug, Error)]
pub enum FencedWriteError {
    /// Before anything was sent.
    #[error("this agent does not lead")]
    NotLeader,
    /// Consul refused: the lock, a compare-and-set, or a right.
    #[error(transparent)]
    Consul(#[from] ConsulError),
}

impl LeaderElection {
    pub fn new(client: ConsulClient, settings: LeaderSettings) -> (Self, Leadership) {
        let (leads, receiver) = watch::channel(None);
        let leadership = Leadership {
            client: client.clone(),
            key: settings.key.as_str().into(),
            leads: receiver,
        };
        (
            Self {
                client,
                settings,
                leads,
            },
            leadership,
        )
    }

    /// Until cancelled; then the lock is released, so that another may take it without waiting for the lock delay
    /// (which Consul imposes when a session goes, however it goes), and the session is destroyed.
    pub async fn run(self, cancel: CancellationToken) {
        let keeper = SessionKeeper::new(self.client.clone(), self.settings.session.clone());
        let session = keeper.session();
        let keep = CancellationToken::new();
        tokio::join!(keeper.run(keep.clone()), async {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = self.stand(session) => {}
            }
            if let Some(session) = self.leads.send_replace(None)
                && let Err(error) = self
                    .client
                    .put_release(&self.settings.key, Bytes::new(), &session)
                    .await
            {
                tracing::debug!(%error, key = self.settings.key, "lock not released, it will expire");
            }
            keep.cancel();
        });
    }

    async fn stand(&self, mut session: watch::Receiver<Option<Arc<str>>>) {
        loop {
            let current = session.borrow_and_update().clone();
            match current {
                None => {
                    if session.changed().await.is_err() {
                        return;
                    }
                }
                // A lost session ends leadership before anything else is awaited.
                Some(current) => tokio::select! {
                    biased;
                    changed = session.changed() => {
                        self.step_down();
                        if changed.is_err() {
                            return;
                        }
                    }
                    () = self.with_session(&current) => self.step_down(),
                },
            }
        }
    }

    /// Tries to take the lock and watches it; returns only by being dropped with its session.
    async fn with_session(&self, session: &Arc<str>) {
        let mut told = false;
        loop {
            let owner = Bytes::from(self.settings.owner.clone());
            let held = match self.client.put_acquire(&self.settings.key, owner, session).await {
                Ok(held) => held,
                Err(error) => {
                    say_once(&mut told, &error, &self.settings.key, "lock not tried");
                    let denied = error.kind().is_refusal();
                    tokio::time::sleep(jittered(if denied { DENIED_RETRY } else { RETRY })).await;
                    continue;
                }
            };
            told = false;
            if held {
                tracing::info!(key = self.settings.key, "leading");
                self.leads.send_replace(Some(session.clone()));
                self.watch_own_lock(session).await;
                self.step_down();
            } else {
                self.wait_until_free().await;
            }
        }
    }

    /// Returns when the lock is seen in other hands. A failure to look is no reason: the session decides.
    async fn watch_own_lock(&self, session: &str) {
        let mut index = 0;
        loop {
            match self.client.wait_for_key(&self.settings.key, index, WAIT).await {
                Ok((entry, next)) => {
                    index = next;
                    if entry.and_then(|entry| entry.session).as_deref() != Some(session) {
                        return;
                    }
                    // An index that fell asks again at once; do not spin on one that always does.
                    tokio::time::sleep(PACE).await;
                }
                Err(_) => tokio::time::sleep(jittered(RETRY)).await,
            }
        }
    }

    /// Returns when nobody holds the lock, after a pause: not all who wait try at once, and after a lost session
    /// Consul refuses everyone for the lock delay.
    async fn wait_until_free(&self) {
        // From a fresh look each time: during the lock delay the key is free and nothing will move it.
        let mut index = 0;
        loop {
            match self.client.wait_for_key(&self.settings.key, index, WAIT).await {
                Ok((entry, next)) => {
                    index = next;
                    if entry.is_none_or(|entry| entry.session.is_none()) {
                        return tokio::time::sleep(jittered(RETRY)).await;
                    }
                    tokio::time::sleep(PACE).await;
                }
                Err(_) => tokio::time::sleep(jittered(RETRY)).await,
            }
        }
    }

    fn step_down(&self) {
        if self.leads.send_replace(None).is_some() {
            tracing::info!(key = self.settings.key, "no longer leading");
        }
    }
}

impl Leadership {
    pub fn is_leader(&self) -> bool {
        self.leads.borrow().is_some()
    }

    /// Waits for the next change, and says whether this process leads then; none if the election ended.
    pub async fn changed(&mut self) -> Option<bool> {
        self.leads.changed().await.ok()?;
        Some(self.is_leader())
    }

    /// Writes all or nothing, and only while this process holds the lock in Consul's own eyes.
    pub async fn write(&self, writes: &[TxnWrite]) -> Result<u64, FencedWriteError> {
        let session = self.leads.borrow().clone().ok_or(FencedWriteError::NotLeader)?;
        let fence = TxnWrite::CheckSession {
            key: self.key.to_string(),
            session: session.to_string(),
        };
        let operations: Vec<TxnWrite> = std::iter::once(fence).chain(writes.iter().cloned()).collect();
        Ok(self.client.txn(&operations).await?)
    }
}

/// Between tries while the lock delay runs, and after failures.
const RETRY: Duration = Duration::from_secs(2);

/// One minute: a lock is one key, and a dead connection is noticed this soon.
const WAIT: Duration = Duration::from_secs(60);

const PACE: Duration = Duration::from_millis(100);

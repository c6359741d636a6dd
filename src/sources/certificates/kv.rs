//! Watches one KV secret that holds a chain and a key.
//!
//! There is no blocking read in Vault: v2 polls the metadata, which costs no decryption and moves no key, and reads
//! the data when the version changed; v1 reads each time.

use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::pem;
use super::publisher::{Closed, Publisher};
use crate::model::{CertificateMaterial, KvVersion, Problem, ProblemKind};
use crate::sources::vault::{KvStamp, Pauses, VaultClient, VaultFault, jitter, spread};

/// Polls of many certificates drift apart.
const POLL_SPREAD: f64 = 0.1;

/// After so many polls of a secret whose metadata may not be read, it is asked for again: rights come back unsaid.
const ASK_FOR_METADATA_AGAIN: u8 = 10;

pub(super) struct KvQuery<'a> {
    pub(super) mount: &'a str,
    pub(super) path: &'a str,
    pub(super) version: KvVersion,
    pub(super) certificate_field: &'a str,
    pub(super) private_key_field: &'a str,
}

/// Returns only when nobody listens any more.
pub(super) async fn watch(
    query: KvQuery<'_>,
    vault: &VaultClient,
    poll: Duration,
    refresh: &Notify,
    publisher: &mut Publisher,
) -> Closed {
    let mut watch = KvWatch {
        query,
        vault,
        version: None,
        seen: None,
        polls_without_metadata: 0,
    };
    let mut pauses = Pauses::default();
    loop {
        let (asked, token) = (Instant::now(), vault.generation());
        let (sent, wait) = match watch.poll(publisher.now()).await {
            Ok(Polled::Unchanged) => {
                pauses.reset();
                (publisher.unchanged().await, Wait::Poll)
            }
            Ok(Polled::Changed(material)) => {
                pauses.reset();
                (publisher.material(*material).await, Wait::Poll)
            }
            Err(problem) => {
                watch.forget();
                let wait = match problem.kind {
                    ProblemKind::Unavailable => Wait::UntilReachable,
                    kind if kind.is_refusal() => Wait::PollOrToken,
                    _ => Wait::Poll,
                };
                (publisher.problem(problem).await, wait)
            }
        };
        if let Err(closed) = sent {
            return closed;
        }
        let pause = async {
            match wait {
                Wait::Poll => tokio::time::sleep(spread(poll, POLL_SPREAD, jitter())).await,
                Wait::PollOrToken => tokio::select! {
                    () = tokio::time::sleep(spread(poll, POLL_SPREAD, jitter())) => {}
                    () = vault.token_replaced(token) => {}
                },
                Wait::UntilReachable => {
                    tokio::time::sleep(pauses.unavailable.next()).await;
                    vault.wait_until_reachable(asked).await;
                }
            }
        };
        tokio::select! {
            () = pause => {}
            () = refresh.notified() => {}
        }
    }
}

enum Wait {
    Poll,
    /// Nobody let the agent in, or the token was turned away: the next may not be.
    PollOrToken,
    UntilReachable,
}

enum Polled {
    Unchanged,
    Changed(Box<CertificateMaterial>),
}

struct KvWatch<'a> {
    query: KvQuery<'a>,
    vault: &'a VaultClient,
    /// What the mount turned out to be.
    version: Option<KvVersion>,
    /// The state whose content was good.
    seen: Option<KvStamp>,
    /// Not 0: the policy has no right on `metadata/`, and for so many more polls the data itself is read.
    polls_without_metadata: u8,
}

impl Drop for KvWatch<'_> {
    fn drop(&mut self) {
        self.vault
            .no_longer_watches_kv2(self.query.mount, self.query.path);
    }
}

impl KvWatch<'_> {
    async fn poll(&mut self, now: i64) -> Result<Polled, Problem> {
        let version = self.version().await?;
        let stamp = if version == KvVersion::V2 {
            self.stamp().await?
        } else {
            None
        };
        if stamp.is_some() && stamp == self.seen {
            return Ok(Polled::Unchanged);
        }
        let KvQuery { mount, path, .. } = self.query;
        let secret = self.vault.read_kv(version, mount, path).await?;
        let place = format!("vault_kv {mount}/{path}");
        let field = |name: &str| {
            secret.text(name).map_err(|what| {
                Problem::new(ProblemKind::Invalid, format!("{place}: {what}"))
                    .with_fix("Store the PEM text under that field, or name the field in the document.")
            })
        };
        let chain = field(self.query.certificate_field)?;
        let key = field(self.query.private_key_field)?;
        let material =
            pem::parse_served(chain.expose(), key.expose(), now).map_err(|fault| fault.problem(&place))?;
        // A version that ends by itself is read each time: its content goes without a new version.
        self.seen = stamp.filter(|stamp| !stamp.ends && !stamp.destroyed);
        Ok(Polled::Changed(Box::new(material)))
    }

    async fn version(&mut self) -> Result<KvVersion, VaultFault> {
        if self.query.version != KvVersion::Detect {
            return Ok(self.query.version);
        }
        if let Some(version) = self.version {
            return Ok(version);
        }
        let version = self.vault.detect_kv(self.query.mount, self.query.path).await?;
        tracing::info!(mount = self.query.mount, ?version, "kv version detected");
        self.version = Some(version);
        Ok(version)
    }

    async fn stamp(&mut self) -> Result<Option<KvStamp>, VaultFault> {
        if self.polls_without_metadata > 0 {
            self.polls_without_metadata -= 1;
            return Ok(None);
        }
        let KvQuery { mount, path, .. } = self.query;
        match self.vault.kv2_stamp(mount, path).await {
            Ok(stamp) => Ok(Some(stamp)),
            Err(fault) if fault.kind().is_refusal() => {
                self.polls_without_metadata = ASK_FOR_METADATA_AGAIN;
                Ok(None)
            }
            // The read of the data says more (a wrong version, a deleted one).
            Err(fault) if matches!(fault.kind(), ProblemKind::NotFound | ProblemKind::WrongMount) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// After a failure everything is asked anew: the mount may have been replaced, the policy changed.
    fn forget(&mut self) {
        self.version = None;
        self.seen = None;
        self.polls_without_metadata = 0;
    }
}

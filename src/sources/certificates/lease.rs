//! Tells when a certificate ends before its dates: an operator revokes it, whose key may have leaked; and Vault revokes a leased
//! one with its lease, and the lease with the token that it was made for.
//!
//! The lease itself is not renewed, as no lease of a certificate is renewable. It is replaced: at two thirds of its
//! duration, when the agent has another token, and when the mount says that it was revoked. A restart is another token
//! where the agent logs in. One that it was given (`token`, `token_file`, a proxy's) goes on: whether it is the one that
//! asked for the certificate, only the mount can say.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::budget::renewal_time;
use super::issued::IssuedWatch;
use crate::model::CertificateMaterial;
use crate::sources::vault::{Lease, VaultClient, jitter, spread};

/// The session counts from here.
const FIRST_TOKEN: u64 = 1;

/// Looks of many certificates drift apart.
const POLL_SPREAD: f64 = 0.1;

pub(super) struct LeaseWatch {
    /// The token it ends with, counted from the start of the process. None: it has no lease.
    token: Option<u64>,
    /// When it is to be replaced even if all goes well, in Unix seconds.
    renews_at: i64,
    /// It is gone, or will be with its token.
    is_lost: bool,
    next_look: Instant,
}

impl LeaseWatch {
    pub(super) fn of(lease: Lease, serial: &str, now: i64) -> Self {
        let duration = i64::try_from(lease.duration).unwrap_or(i64::MAX);
        Self {
            token: Some(lease.token),
            renews_at: renewal_time(now, now.saturating_add(duration), serial),
            is_lost: false,
            next_look: Instant::now(),
        }
    }

    /// `is_over`: the token was that process's own. When the lease ends is not known any more, only the certificate's dates
    /// are.
    pub(super) fn of_an_earlier_process(is_over: bool) -> Self {
        Self {
            token: Some(FIRST_TOKEN),
            renews_at: i64::MAX,
            is_lost: is_over,
            next_look: Instant::now(),
        }
    }

    /// Without a lease it ends by its dates, unless somebody revokes it.
    pub(super) fn without(poll: Duration) -> Self {
        Self {
            token: None,
            renews_at: i64::MAX,
            is_lost: false,
            next_look: Instant::now() + spread(poll, POLL_SPREAD, jitter()),
        }
    }

    /// When another certificate is needed for its sake.
    pub(super) fn due(&self, now: i64) -> i64 {
        if self.is_lost { now } else { self.renews_at }
    }

    /// Returns when something is new. Dropped in between, it goes on where it was.
    pub(super) async fn look(
        &mut self,
        watch: &IssuedWatch<'_>,
        material: Option<&Arc<CertificateMaterial>>,
    ) {
        let (false, Some(material)) = (self.is_lost, material) else {
            return std::future::pending().await;
        };
        let token = self.token;
        let replaced = async || match token {
            Some(token) => watch.vault.token_replaced(token).await,
            None => std::future::pending().await,
        };
        loop {
            tokio::select! {
                () = replaced() => {
                    tracing::info!(certificate = %watch.query, "its lease ends with the token before this one");
                    self.is_lost = true;
                }
                revoked = self.was_revoked(watch.vault, watch.mount, &material.serial, watch.poll) => {
                    if !revoked {
                        continue;
                    }
                    tracing::warn!(certificate = %watch.query, serial = %material.serial, "vault revoked the certificate; another one is asked for");
                    self.is_lost = true;
                }
            }
            return;
        }
    }

    async fn was_revoked(&mut self, vault: &VaultClient, mount: &str, serial: &str, poll: Duration) -> bool {
        tokio::time::sleep_until(self.next_look).await;
        self.next_look = Instant::now() + spread(poll, POLL_SPREAD, jitter());
        match vault.is_revoked(mount, serial).await {
            Ok(revoked) => revoked,
            Err(fault) => {
                tracing::debug!(%fault, "lease not looked at");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_at_two_thirds_of_the_lease_or_at_once_when_it_is_lost() {
        let lease = Lease {
            token: 1,
            duration: 900,
        };
        let mut watch = LeaseWatch::of(lease, "ab", 1000);
        assert!((1570..=1630).contains(&watch.due(1000)), "{}", watch.due(1000));
        assert_eq!(watch.due(1000), watch.due(1200));
        watch.is_lost = true;
        assert_eq!(watch.due(1200), 1200);
        assert_eq!(LeaseWatch::without(Duration::ZERO).due(7), i64::MAX);
        assert_eq!(LeaseWatch::of_an_earlier_process(true).due(7), 7);
        assert_eq!(LeaseWatch::of_an_earlier_process(false).due(7), i64::MAX);
    }
}

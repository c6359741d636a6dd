//! Keeps an agent with a bad credential from locking its role for everybody. Vault counts refused logins by role (by user),
//! whoever sends them; after five of them it refuses all of the role for 15 minutes, and it forgets them only after 15 minutes
//! without one. Other methods than these are never locked. While it is locked nothing is counted.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::client::Shared;
use super::credential::{self, Stamp};
use super::fault::{Reason, VaultFault};
use super::settings::VaultAuth;
use super::wrapped::SecretIds;

/// The one soon try: a standby that lags, a role that is just being made again.
const SOON: Duration = Duration::from_secs(10);

/// Vault's defaults for AppRole, userpass and LDAP.
const THRESHOLD: u32 = 5;
const FORGOTTEN: Duration = Duration::from_secs(15 * 60);

/// Beyond twice `FORGOTTEN`: of two agents with the same bad credential, one may have begun as the other was nearly forgotten,
/// and still both are counted from the beginning.
const LATER: Duration = Duration::from_secs(35 * 60);
const LATEST: Duration = Duration::from_secs(60 * 60);

/// What Vault refused since the last login that it took (with which it forgets them too).
pub(super) struct Refusals {
    /// None: logins of this method lock nothing.
    locked_by: Option<&'static str>,
    credential: Option<blake3::Hash>,
    of_this_credential: u32,
    /// That Vault still counts.
    counted: u32,
    last: Option<Instant>,
}

impl Refusals {
    pub(super) fn of(auth: &VaultAuth) -> Self {
        let locked_by = match auth {
            VaultAuth::AppRole { .. } => Some("role id"),
            VaultAuth::Userpass { .. } => Some("user name"),
            _ => None,
        };
        Self {
            locked_by,
            credential: None,
            of_this_credential: 0,
            counted: 0,
            last: None,
        }
    }

    /// What is about to be tried. A file that was only touched is no other credential.
    pub(super) async fn about_to_try(&mut self, shared: &Shared, file: Option<&Path>) {
        if self.locked_by.is_none() {
            return;
        }
        let now = fingerprint(shared, file).await;
        if now != self.credential {
            self.of_this_credential = 0;
            self.credential = now;
        }
    }

    /// Notes what Vault said of it. With how long to wait until the same credential is tried again, where it matters.
    pub(super) fn note(&mut self, fault: VaultFault) -> (VaultFault, Option<Duration>) {
        let (Some(by), Reason::LoginRefused { status, errors }) = (self.locked_by, &fault.reason) else {
            return (fault, None);
        };
        let reason = match status {
            // A proxy's page, or another server's, is no word of Vault: nothing was counted.
            400 | 401 if !errors.is_empty() && !is_of_the_network(errors) => Reason::CredentialRefused {
                status: *status,
                errors: errors.clone(),
            },
            403 if errors == "permission denied" => Reason::LoginLocked {
                by,
                refused_before: self.counted > 0,
            },
            _ => return (fault, None),
        };
        let wait = match &reason {
            Reason::CredentialRefused { .. } => Some(self.refused(Instant::now())),
            // Its turn is not lost by somebody else's lock.
            _ => Some(self.pause()).filter(|_| self.of_this_credential > 0),
        };
        (VaultFault { reason, ..fault }, wait)
    }

    fn refused(&mut self, now: Instant) -> Duration {
        let forgotten = self.last.is_none_or(|last| now.duration_since(last) > FORGOTTEN);
        self.counted = if forgotten { 1 } else { self.counted + 1 };
        self.last = Some(now);
        self.of_this_credential += 1;
        self.pause()
    }

    fn pause(&self) -> Duration {
        // Another credential, tried at once, still has room below the threshold.
        if self.of_this_credential == 1 && self.counted + 1 < THRESHOLD {
            return SOON;
        }
        let doublings = self.of_this_credential.saturating_sub(2).min(8);
        (LATER * (1 << doublings)).min(LATEST)
    }

    /// Returns once another secret id was unwrapped: the file's wrapping token is the same, before and after.
    pub(super) async fn unwrapped(&self, shared: &Shared) {
        let mut ids = shared.secret_ids.subscribe();
        let tried = ids.borrow_and_update().secret_id();
        let is_another = |ids: &SecretIds| match (&tried, ids.secret_id()) {
            (Some(tried), Some(now)) => !Arc::ptr_eq(tried, &now),
            (None, now) => now.is_some(),
            (Some(_), None) => false,
        };
        if ids.wait_for(is_another).await.is_err() {
            std::future::pending().await
        }
    }

    /// Returns once the file holds another credential than the one that was tried. An empty or missing one is none.
    pub(super) async fn another(&self, shared: &Shared, file: Option<&Path>, mut stamp: Stamp) {
        loop {
            stamp.wait_for_change().await;
            stamp = Stamp::of(file).await;
            let found = fingerprint(shared, file).await;
            if found.is_some() && found != self.credential {
                tracing::info!("vault credential file changed");
                return;
            }
        }
    }
}

/// Vault does not count who comes from a wrong network.
fn is_of_the_network(errors: &str) -> bool {
    errors.contains("CIDR")
}

async fn fingerprint(shared: &Shared, file: Option<&Path>) -> Option<blake3::Hash> {
    let text = credential::read(shared, "credential", file?).await.ok()?;
    Some(blake3::hash(text.expose().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of one credential, Vault counts; the time of each try, and what it counted then.
    fn tries(refusals: &mut Refusals, mut now: Instant, number: usize) -> Vec<(Instant, u32)> {
        let mut tries = Vec::new();
        for _ in 0..number {
            let pause = refusals.refused(now);
            tries.push((now, refusals.counted));
            now += pause;
        }
        tries
    }

    fn app_role() -> Refusals {
        Refusals {
            locked_by: Some("role id"),
            credential: None,
            of_this_credential: 0,
            counted: 0,
            last: None,
        }
    }

    #[test]
    fn a_bad_credential_stays_far_below_the_threshold_forever() {
        let start = Instant::now();
        let tries = tries(&mut app_role(), start, 50);
        assert_eq!(tries[1].0, start + SOON);
        assert!(tries.iter().all(|(_, counted)| *counted <= 2), "{tries:?}");
        let last = tries[49].0 - tries[48].0;
        assert!(last <= LATEST && last > FORGOTTEN, "{last:?}");
    }

    /// By Vault's own count, with each try of all.
    #[test]
    fn two_agents_with_the_same_bad_credential_do_not_lock_it_together() {
        let start = Instant::now();
        for apart in (0..7200).step_by(30) {
            let other = start + Duration::from_secs(apart);
            let mut all: Vec<Instant> = [start, other]
                .into_iter()
                .flat_map(|start| tries(&mut app_role(), start, 50))
                .map(|(time, _)| time)
                .collect();
            all.sort();
            let mut counted = 0;
            let mut last = None;
            for time in all {
                let forgotten = last.is_none_or(|last| time.duration_since(last) > FORGOTTEN);
                counted = if forgotten { 1 } else { counted + 1 };
                last = Some(time);
                assert!(counted < THRESHOLD, "{apart} s apart");
            }
        }
    }

    #[test]
    fn another_credential_has_a_soon_try_while_there_is_room() {
        let mut refusals = app_role();
        let now = Instant::now();
        assert_eq!(refusals.refused(now), SOON);
        assert_eq!(refusals.refused(now), LATER);
        refusals.of_this_credential = 0;
        assert_eq!(refusals.refused(now), SOON);
        refusals.of_this_credential = 0;
        assert!(refusals.refused(now) > FORGOTTEN, "the fourth of five");
    }
}

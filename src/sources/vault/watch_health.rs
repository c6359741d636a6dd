//! Looks at Vault now and then, so that status tells of an outage before a request meets it: an agent whose certificates
//! are fresh may ask for nothing for days. The ends of what it shows are looked at on the way.

use std::convert::Infallible;
use std::time::Duration;

use super::client::Shared;
use super::ends::Ends;
use super::fault::{Reason, VaultFault};
use crate::sources::retry::jittered;

/// `sys/health` costs Vault next to nothing, needs no token and counts against no quota.
const LOOK_EVERY: Duration = Duration::from_secs(5);

pub(super) async fn watch_health(shared: &Shared, mut ends: Ends) -> Infallible {
    let mut told: Option<VaultFault> = None;
    let mut missed = false;
    loop {
        ends.note(shared).await;
        tokio::time::sleep(jittered(LOOK_EVERY)).await;
        let mut outage = shared.outage().await;
        // One probe may be lost on a busy machine. What Vault itself says is not doubted.
        let is_silent = outage.as_ref().is_some_and(is_silence);
        if is_silent && !missed && told.is_none() {
            outage = None;
        }
        missed = is_silent;
        if told.as_ref().map(|fault| &fault.reason) != outage.as_ref().map(|fault| &fault.reason) {
            match &outage {
                Some(fault) => tracing::warn!(%fault, "vault does not serve; what it gave stays in use"),
                None => tracing::info!("vault serves again"),
            }
            shared
                .freshness
                .update(|status| status.outage = outage.as_ref().map(VaultFault::problem));
            told = outage;
        }
    }
}

fn is_silence(fault: &VaultFault) -> bool {
    matches!(fault.reason, Reason::Unreachable(_) | Reason::NoAnswer(_))
}

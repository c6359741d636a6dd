//! Unwraps a new secret id ahead of the login that will need it: a wrapping token works for minutes, and the next login may
//! be hours away.

use std::convert::Infallible;
use std::path::PathBuf;

use tokio::time::Instant;

use super::backoff::Pause;
use super::client::Shared;
use super::credential::Stamp;
use super::fault::{Reason, VaultFault};
use super::settings::{SecretId, VaultAuth};
use super::wrapped::{self, SecretIds};
use crate::model::ProblemKind;

/// None: the secret id does not come wrapped.
pub(super) struct Ahead(Option<Wrapped>);

struct Wrapped {
    mount: String,
    file: PathBuf,
}

impl Ahead {
    pub(super) fn of(auth: &VaultAuth) -> Self {
        Self(match auth {
            VaultAuth::AppRole {
                mount,
                secret_id: SecretId::Wrapped(file),
                ..
            } => Some(Wrapped {
                mount: mount.clone(),
                file: file.clone(),
            }),
            _ => None,
        })
    }

    pub(super) async fn keep(self, shared: &Shared) -> Infallible {
        let mut secret_ids = shared.secret_ids.subscribe();
        // The first is the first login's own.
        let first = secret_ids.wait_for(SecretIds::is_any).await.is_ok();
        match self.0 {
            Some(wrapped) if first => wrapped.keep(shared).await,
            _ => std::future::pending().await,
        }
    }
}

impl Wrapped {
    async fn keep(&self, shared: &Shared) -> Infallible {
        let mut pause = Pause::while_unavailable();
        let mut told: Option<VaultFault> = None;
        loop {
            let stamp = Stamp::of(Some(&self.file)).await;
            match wrapped::unwrap(shared, &self.mount, &self.file).await {
                Ok(_) => tell(shared, &mut told, None),
                // Taken away after use, or half written. What Vault was last said to be, it may be no more.
                Err(fault) if matches!(fault.reason, Reason::Credential { .. }) => {
                    if told
                        .as_ref()
                        .is_some_and(|told| told.kind() == ProblemKind::Unavailable)
                    {
                        tell(shared, &mut told, None);
                    }
                }
                Err(fault) => {
                    let is_away = fault.kind() == ProblemKind::Unavailable;
                    tell(shared, &mut told, Some(fault));
                    if is_away {
                        let failed = Instant::now();
                        tokio::time::sleep(pause.next()).await;
                        shared.wait_until_reachable(failed).await;
                        continue;
                    }
                }
            }
            pause.reset();
            stamp.wait_for_change().await;
        }
    }
}

fn tell(shared: &Shared, told: &mut Option<VaultFault>, fault: Option<VaultFault>) {
    if *told == fault {
        return;
    }
    match &fault {
        Some(fault) => {
            tracing::warn!(%fault, "the new vault secret id could not be unwrapped; the former one stays in use")
        }
        None => tracing::info!("the problem with the vault secret id is over"),
    }
    shared
        .freshness
        .update(|status| status.wrapping = fault.as_ref().map(VaultFault::problem));
    *told = fault;
}

//! Watches the authorities whose clients a listener lets in, and what they revoked. Vault is polled: it has no watch, and
//! a list of revocations changes without anything else.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::authorities::{self, Authorities, AuthorityFault, MAX_AUTHORITIES_BYTES, MAX_CRL_BYTES};
use super::file::{self, FileChanges, Settling};
use super::publisher::{Closed, Publisher};
use crate::model::{CertificateQuery, ClientCaQuery, KvVersion, Problem, ProblemKind};
use crate::sources::vault::{Pauses, VaultClient, VaultFault, jitter, spread};

/// Polls of many watches drift apart.
const POLL_SPREAD: f64 = 0.1;

pub(super) struct ClientCaWatch<'a> {
    pub(super) query: &'a CertificateQuery,
    pub(super) source: &'a ClientCaQuery,
    pub(super) vault: Option<&'a VaultClient>,
    pub(super) poll: Duration,
    /// What the KV mount turned out to be, where the document does not say.
    pub(super) kv_version: Mutex<Option<KvVersion>>,
}

impl ClientCaWatch<'_> {
    /// Returns only when nobody listens any more.
    pub(super) async fn run(self, refresh: &Notify, publisher: &mut Publisher) -> Closed {
        let mut pauses = Pauses::default();
        let mut files = match self.source {
            ClientCaQuery::File { certificate, crl } => {
                let paths = std::iter::once(certificate).chain(crl);
                let paths: Vec<&Path> = paths.map(|path| Path::new(&**path)).collect();
                Some(FileChanges::of(&paths))
            }
            ClientCaQuery::VaultPki { .. } | ClientCaQuery::VaultKv { .. } => None,
        };
        loop {
            let asked = Instant::now();
            let token = self.vault.map_or(0, VaultClient::generation);
            if let Some(files) = &mut files {
                files.observe();
            }
            let result = self.settled(files.is_some(), publisher.now()).await;
            if result.is_err() {
                // The mount may have become another one.
                *self.detected() = None;
            }
            let failed = result.as_ref().err().map(|problem| problem.kind);
            let unavailable = failed == Some(ProblemKind::Unavailable);
            // Nobody let the agent in, or the token was turned away: the next may not be.
            let letting_in = self.vault.filter(|_| failed.is_some_and(ProblemKind::is_refusal));
            let sent = match result {
                Ok(Authorities { material, shut_out }) => {
                    let problem = shut_out.map(|fault| self.problem(&fault));
                    publisher.material_with(material, problem).await
                }
                Err(problem) => publisher.problem(problem).await,
            };
            if let Err(closed) = sent {
                return closed;
            }
            let pause = async {
                match (&files, self.vault.filter(|_| unavailable)) {
                    (Some(files), _) => files.next().await,
                    (None, Some(vault)) => {
                        tokio::time::sleep(pauses.unavailable.next()).await;
                        vault.wait_until_reachable(asked).await;
                    }
                    (None, None) => {
                        pauses.reset();
                        tokio::time::sleep(spread(self.poll, POLL_SPREAD, jitter())).await;
                    }
                }
            };
            tokio::select! {
                () = pause => {}
                () = async {
                    match letting_in {
                        Some(vault) => vault.token_replaced(token).await,
                        None => std::future::pending().await,
                    }
                } => {}
                () = refresh.notified() => {}
            }
        }
    }

    fn detected(&self) -> MutexGuard<'_, Option<KvVersion>> {
        self.kv_version.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Authorities and lists in files are two that do not change at the same instant.
    async fn settled(&self, are_files: bool, now: i64) -> Result<Authorities, Problem> {
        let settling = Settling::begin();
        loop {
            let result = self.read(now).await;
            // An authority that has ended is not about to change.
            let fits = |fault: &AuthorityFault| matches!(fault, AuthorityFault::OneExpired(..));
            let is_whole =
                matches!(&result, Ok(authorities) if authorities.shut_out.as_ref().is_none_or(fits));
            if is_whole || !are_files || !settling.goes_on().await {
                return result;
            }
        }
    }

    fn problem(&self, fault: &AuthorityFault) -> Problem {
        fault.problem(self.source, &self.query.to_string())
    }

    async fn read(&self, now: i64) -> Result<Authorities, Problem> {
        let (authorities, lists) = match (self.source, self.vault) {
            (ClientCaQuery::File { certificate, crl }, _) => {
                let authorities = file::read(Path::new(&**certificate), MAX_AUTHORITIES_BYTES)
                    .await?
                    .to_string();
                let lists = match crl {
                    Some(path) => Some(file::read(Path::new(&**path), MAX_CRL_BYTES).await?.to_string()),
                    None => None,
                };
                (authorities, lists)
            }
            (ClientCaQuery::VaultPki { mount, issuer, crl }, Some(vault)) => vault
                .client_authorities(mount, issuer.as_deref(), *crl)
                .await
                .map_err(|fault| fault.problem())?,
            (
                ClientCaQuery::VaultKv {
                    mount,
                    path,
                    version,
                    certificate_field,
                    crl_field,
                },
                Some(vault),
            ) => {
                self.kv_texts(
                    vault,
                    (mount, path, *version),
                    certificate_field,
                    crl_field.as_deref(),
                )
                .await?
            }
            (_, None) => {
                let problem = format!("{}: no Vault is configured", self.query);
                return Err(Problem::new(ProblemKind::Refused, problem)
                    .with_fix("Add a vault block to the agent's settings."));
            }
        };
        authorities::parse(&authorities, lists.as_deref(), now).map_err(|fault| self.problem(&fault))
    }

    async fn kv_texts(
        &self,
        vault: &VaultClient,
        (mount, path, version): (&str, &str, KvVersion),
        certificate_field: &str,
        crl_field: Option<&str>,
    ) -> Result<(String, Option<String>), Problem> {
        let said = |fault: VaultFault| fault.problem();
        let version = match version {
            KvVersion::Detect => {
                let known = *self.detected();
                let version = match known {
                    Some(version) => version,
                    None => vault.detect_kv(mount, path).await.map_err(said)?,
                };
                *self.detected() = Some(version);
                version
            }
            known => known,
        };
        let secret = vault.read_kv(version, mount, path).await.map_err(said)?;
        let field = |name: &str| {
            let text = secret.text(name).map_err(|what| {
                Problem::new(ProblemKind::Invalid, format!("{}: {what}", self.query))
                    .with_fix("Store the PEM text under that field, or name the field in the document.")
            })?;
            Ok::<String, Problem>(text.expose().clone())
        };
        let lists = crl_field.map(field).transpose()?;
        Ok((field(certificate_field)?, lists))
    }
}

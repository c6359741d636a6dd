//! Watches one certificate that Vault's PKI signs: renews it at 2/3 of its life, with a new key each time, and asks for
//! no more than needed.
//!
//! An issue is not free (storage, a CRL that grows), so three rules hold over restarts and crash loops: at most one
//! request per interval (a minute), written down *before* it is sent; none while a certificate from before the restart
//! is good and Envoy holds its key; none that repeats one of which the answer was lost. Where the request cannot be
//! written down (a full disk), the first one waits until the watch has lived for an interval: a crash loop that is
//! faster issues nothing, and a gateway still gets its certificates.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::budget::{Budget, renewal_time};
use super::lease::LeaseWatch;
use super::pem;
use super::publisher::{Closed, Publisher};
use super::request::{self, Names, Request};
use super::store::{CertificateStore, PublicCertificate, StoreError, StoredCertificate, cause, on_disk};
use crate::model::{CertificateMaterial, CertificateQuery, KeyType, Problem, ProblemKind};
use crate::sources::vault::{Pauses, SignRequest, Signed, VaultClient, VaultFault, timestamp};

/// The longest sleep: wall time may jump (a suspended machine, a clock that was set).
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// How often another key is offered where the role refuses one: another kind, then a larger one.
const KEY_TURNS: u32 = 2;

/// What wakes the watch of an issued certificate.
#[derive(Default)]
pub(super) struct Wishes {
    /// Try again now what failed.
    pub(super) refresh: Notify,
    /// An Envoy connected that does not hold the key.
    pub(super) key: Notify,
    /// Whoever had forgotten it wants it again.
    pub(super) again: Notify,
}

pub(super) struct IssuedWatch<'a> {
    pub(super) query: &'a CertificateQuery,
    pub(super) mount: &'a str,
    pub(super) role: &'a str,
    pub(super) issuer: Option<&'a str>,
    pub(super) names: Names,
    pub(super) ttl: Option<u64>,
    pub(super) key_type: Option<KeyType>,
    pub(super) vault: &'a VaultClient,
    pub(super) store: Arc<dyn CertificateStore>,
    pub(super) budget: Budget,
    /// How often a lease is looked at.
    pub(super) poll: Duration,
}

/// Why the last request brought nothing, and when another may.
#[derive(Default)]
struct Setback {
    problem: Option<Problem>,
    wait: Hope,
}

#[derive(Default)]
enum Hope {
    #[default]
    Now,
    /// Vault was not there at that time.
    WhenReachable(Instant),
    /// It was refused: waits longer and longer.
    At(Instant),
    /// The same of a login, or of this token: the next may do.
    AtOrToken(Instant, u64),
}

/// More than Vault dates a certificate back, and clocks by NTP differ.
const CLOCKS_APART: i64 = 30;

/// By a clock that is far ahead a certificate may be due when it comes, and so would be each after it: then its life begins
/// with its receipt.
fn due_by_dates(material: &CertificateMaterial, received: Option<i64>) -> i64 {
    let due = |from| renewal_time(from, material.not_after, &material.serial);
    let by_dates = due(material.not_before);
    match received {
        Some(received) if by_dates <= received && received < material.not_after => due(received),
        _ => by_dates,
    }
}

/// What makes another certificate due before two thirds of this one's life.
struct Haste {
    /// An Envoy lacks the key, and so do we.
    key_wanted: bool,
    /// Vault may revoke it at any time.
    lease: LeaseWatch,
}

enum Woken {
    ToIssue,
    /// What is in use ended while its successor is waited for.
    CertificateEnded,
}

impl IssuedWatch<'_> {
    /// Returns only when nobody listens any more.
    pub(super) async fn run(self, wishes: &Wishes, publisher: &mut Publisher) -> Closed {
        let started = publisher.now();
        let mut record = self.load(publisher).await;
        if let Err(closed) = self.publish_stored(&record, publisher).await {
            return closed;
        }
        if let Some(problem) = self.not_yet(&record, publisher)
            && let Err(closed) = publisher.problem(problem).await
        {
            return closed;
        }
        let mut pauses = Pauses::default();
        let mut setback = Setback::default();
        let mut unused = None;
        let mut haste = Haste {
            key_wanted: false,
            lease: match record.leased {
                true => LeaseWatch::of_an_earlier_process(self.vault.logs_in()),
                false => LeaseWatch::without(self.poll),
            },
        };
        loop {
            let woken = self
                .wait(&record, &setback, &mut haste, wishes, &mut pauses, publisher)
                .await;
            if let Woken::CertificateEnded = woken {
                let told = match &setback.problem {
                    Some(problem) => {
                        publisher
                            .problem(self.without_certificate(problem, publisher))
                            .await
                    }
                    None => publisher.unchanged().await,
                };
                match told {
                    Ok(()) => continue,
                    Err(closed) => return closed,
                }
            }
            let token = self.vault.generation();
            match self.issue(&mut record, &mut unused, started, publisher).await {
                Ok((material, lease)) => {
                    setback = Setback::default();
                    haste = Haste {
                        key_wanted: false,
                        lease,
                    };
                    pauses.reset();
                    if let Err(closed) = publisher.material(material).await {
                        return closed;
                    }
                }
                Err(problem) => {
                    let wait = match problem.kind {
                        ProblemKind::Unavailable => Hope::WhenReachable(Instant::now()),
                        kind if kind.is_refusal() => {
                            Hope::AtOrToken(Instant::now() + pauses.refused.next(), token)
                        }
                        _ => Hope::At(Instant::now() + pauses.refused.next()),
                    };
                    setback = Setback {
                        problem: Some(problem.clone()),
                        wait,
                    };
                    let ended = publisher
                        .good()
                        .is_some_and(|good| good.not_after <= publisher.now());
                    let problem = if ended {
                        self.without_certificate(&problem, publisher)
                    } else {
                        problem
                    };
                    if let Err(closed) = publisher.problem(problem).await {
                        return closed;
                    }
                }
            }
        }
    }

    /// Sleeps until a certificate is needed, may be asked for, and there is hope to get it.
    async fn wait(
        &self,
        record: &StoredCertificate,
        setback: &Setback,
        haste: &mut Haste,
        wishes: &Wishes,
        pauses: &mut Pauses,
        publisher: &Publisher,
    ) -> Woken {
        let alive_at_first = publisher
            .good()
            .is_some_and(|good| good.not_after > publisher.now());
        loop {
            let now = publisher.now();
            let ends = publisher.good().map_or(i64::MAX, |good| good.not_after);
            if alive_at_first && ends <= now {
                return Woken::CertificateEnded;
            }
            let needed = match (publisher.good(), &record.certificate) {
                (Some(material), _) if material.private_key.is_none() && haste.key_wanted => now,
                (Some(material), _) => due_by_dates(material, record.received).min(haste.lease.due(now)),
                (None, _) => now,
            };
            let allowed = self.budget.next(record.last_attempt, now);
            let due = needed.max(allowed);
            publisher.note(|freshness| freshness.renews_at = Some(due));
            let until = |time: i64| {
                Duration::from_secs(u64::try_from(time.saturating_sub(now)).unwrap_or(0)).min(LONGEST_SLEEP)
            };
            tokio::select! {
                () = tokio::time::sleep(until(due)), if due > now => {}
                () = tokio::time::sleep(until(ends)), if alive_at_first => {}
                () = self.overcome(setback, pauses), if due <= now => return Woken::ToIssue,
                () = wishes.key.notified() => haste.key_wanted = true,
                () = haste.lease.look(self, publisher.good()) => {}
                // Only what failed is tried again; a good certificate is not issued anew for a refresh.
                () = wishes.refresh.notified(), if setback.problem.is_some() => {
                    if due <= now {
                        return Woken::ToIssue;
                    }
                }
            }
        }
    }

    async fn overcome(&self, setback: &Setback, pauses: &mut Pauses) {
        match setback.wait {
            Hope::Now => {}
            Hope::At(time) => tokio::time::sleep_until(time).await,
            Hope::AtOrToken(time, token) => tokio::select! {
                () = tokio::time::sleep_until(time) => {}
                () = self.vault.token_replaced(token) => {}
            },
            Hope::WhenReachable(failed) => {
                tokio::time::sleep(pauses.unavailable.next()).await;
                self.vault.wait_until_reachable(failed).await;
            }
        }
    }

    async fn issue(
        &self,
        record: &mut StoredCertificate,
        unused: &mut Option<(KeyType, Request)>,
        started: i64,
        publisher: &Publisher,
    ) -> Result<(CertificateMaterial, LeaseWatch), Problem> {
        let before = record.last_attempt;
        record.last_attempt = Some(publisher.now());
        if let Err(error) = self.save(record).await {
            let allowed = self.budget.next(Some(started), publisher.now());
            if publisher.now() < allowed {
                record.last_attempt = Some(started);
                return Err(self.not_written_down(&error, allowed));
            }
        }
        let mut key_type = self.key_type.unwrap_or(KeyType::Ec256);
        let mut turns = 0;
        let (request, signed) = loop {
            turns += 1;
            let request = match unused.take().filter(|(made_for, _)| *made_for == key_type) {
                Some((_, request)) => request,
                None => self.request(key_type).await?,
            };
            match self.sign(&request).await {
                Ok(signed) => break (request, signed),
                Err(fault) => {
                    if let (None, Some(demanded), ..=KEY_TURNS) =
                        (self.key_type, fault.key_demanded(key_type), turns)
                    {
                        // Refused, so nothing was issued.
                        tracing::info!(certificate = %self.query, %demanded, "the role asks for another key");
                        key_type = demanded;
                        continue;
                    }
                    if !fault.may_have_happened() {
                        // Nothing was issued: the next request need not wait out the interval, nor for another key.
                        *unused = Some((key_type, request));
                        record.last_attempt = before;
                        let _ = self.save(record).await;
                    }
                    return Err(self.explain(&fault, key_type));
                }
            }
        };
        publisher.note(|freshness| freshness.issues += 1);
        for warning in &signed.warnings {
            tracing::warn!(certificate = %self.query, %warning, "vault warns");
        }
        if signed.lease.is_some() {
            tracing::warn!(
                certificate = %self.query,
                "the PKI role makes leases: Vault revokes the certificate when the agent's token ends, so that each new \
                 token needs another; set generate_lease=false on the role"
            );
        }
        let now = publisher.now();
        let material = pem::parse_signed_now(&signed.chain, request.private_key.expose(), now)
            .map_err(|fault| fault.problem(&self.query.to_string()))?;
        self.compare_clocks(&material, now);
        record.certificate = Some(PublicCertificate::of(&material));
        record.received = Some(now);
        record.leased = signed.lease.is_some();
        let _ = self.save(record).await;
        let lease = match signed.lease {
            Some(lease) => LeaseWatch::of(lease, &material.serial, publisher.now()),
            None => LeaseWatch::without(self.poll),
        };
        Ok((material, lease))
    }

    /// A certificate begins when it was signed, or half a minute before.
    fn compare_clocks(&self, material: &CertificateMaterial, now: i64) {
        let certificate = self.query;
        let ahead = material.not_before.saturating_sub(now);
        if ahead > CLOCKS_APART {
            tracing::warn!(%certificate, seconds = ahead, "Vault's clock is ahead of this machine's; set both by NTP");
        } else if due_by_dates(material, None) <= now {
            tracing::warn!(
                %certificate, seconds = -ahead,
                "a certificate that was signed just now looks old: this machine's clock is ahead of Vault's; set both by NTP"
            );
        }
    }

    async fn request(&self, key_type: KeyType) -> Result<Request, Problem> {
        let names = self.names.clone();
        let made = tokio::task::spawn_blocking(move || request::make(key_type, &names)).await;
        let why = match made {
            Ok(Ok(request)) => return Ok(request),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        Err(
            Problem::new(ProblemKind::Invalid, format!("{}: {why}", self.query))
                .with_fix("Write the names as they stand in DNS: in ASCII (xn--...)."),
        )
    }

    async fn sign(&self, request: &Request) -> Result<Signed, VaultFault> {
        let sign = SignRequest {
            mount: self.mount,
            role: self.role,
            issuer: self.issuer,
            csr: &request.csr,
            common_name: &self.names.common_name,
            alt_names: &self.names.alt_names,
            ip_sans: &self.names.ip_sans,
            ttl: self.ttl,
        };
        self.vault.sign(&sign).await
    }

    fn explain(&self, fault: &VaultFault, sent: KeyType) -> Problem {
        match fault.key_demanded(sent) {
            Some(demanded) => fault.problem().with_fix(format!(
                "Set key_type = {:?} and key_bits = {} in the document, or leave both out.",
                demanded.kind(),
                demanded.bits()
            )),
            None => fault.problem(),
        }
    }

    async fn publish_stored(
        &self,
        record: &StoredCertificate,
        publisher: &mut Publisher,
    ) -> Result<(), Closed> {
        let Some(stored) = &record.certificate else {
            return Ok(());
        };
        match pem::parse_held(&stored.chain) {
            Ok(material) => publisher.material(material).await,
            Err(fault) => {
                tracing::info!(certificate = %self.query, %fault, "stored certificate not used");
                Ok(())
            }
        }
    }

    async fn load(&self, publisher: &Publisher) -> StoredCertificate {
        let (store, query) = (self.store.clone(), self.query.clone());
        match on_disk(move || store.load(&query)).await {
            Ok(record) => record.unwrap_or_default(),
            Err(error) => {
                tracing::error!(certificate = %self.query, error = %cause(&error), "certificate store not read");
                // What was asked for before is not known: as if it was just now, so that a crash loop stays bounded.
                StoredCertificate {
                    certificate: None,
                    last_attempt: Some(publisher.now()),
                    received: None,
                    leased: false,
                }
            }
        }
    }

    async fn save(&self, record: &StoredCertificate) -> Result<(), StoreError> {
        let (store, query, record) = (self.store.clone(), self.query.clone(), record.clone());
        on_disk(move || store.save(&query, &record))
            .await
            .inspect_err(|error| {
                tracing::error!(certificate = %self.query, error = %cause(error), "certificate store not written");
            })
    }

    /// It was asked for shortly before, by a former agent that saw no answer or could not keep it. Whoever starts waits for a
    /// first word.
    fn not_yet(&self, record: &StoredCertificate, publisher: &Publisher) -> Option<Problem> {
        let now = publisher.now();
        let allowed = self.budget.next(record.last_attempt, now);
        let is_alive = publisher.good().is_some_and(|good| good.not_after > now);
        (!is_alive && allowed > now).then(|| {
            Problem::new(
                ProblemKind::Limit,
                format!(
                    "{}: not asked for before {}: it was asked for shortly before this agent started, and nothing usable of that is here",
                    self.query,
                    timestamp(allowed)
                ),
            )
        })
    }

    fn not_written_down(&self, error: &StoreError, allowed: i64) -> Problem {
        Problem::new(
            ProblemKind::Limit,
            format!(
                "{}: not issued before {}: the request could not be written down ({})",
                self.query,
                timestamp(allowed),
                cause(error)
            ),
        )
        .with_fix("Make room on the disk of the agent's data_dir, and let the agent write there.")
    }

    fn without_certificate(&self, problem: &Problem, publisher: &Publisher) -> Problem {
        let Some(material) = publisher.good() else {
            return problem.clone();
        };
        let ended = timestamp(material.not_after);
        let message = format!("{problem}; the certificate in use expired at {ended}");
        Problem {
            message: message.into(),
            ..problem.clone()
        }
    }
}

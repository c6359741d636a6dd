//! What the watches hold: sends requests with the shared token, and finds out what a 403 means.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::answer::Answer;
use super::backoff::Pause;
use super::fault::{Reason, VaultFault};
use super::freshness::{VaultFreshness, VaultStatus, unix_now};
use super::login;
use super::session::{Doubt, TokenState, VaultSession};
use super::settings::{SettingsError, VaultAuth, VaultSettings};
use super::transport::{Call, Transport};
use super::wrapped::SecretIds;

/// How long a request waits for the first token or for one that replaces a rejected one: a login is one request.
const TOKEN_WAIT: Duration = Duration::from_secs(15);

/// The health probe of an unreachable Vault. Short, so that a probe lost in a partition does not hide its end.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection to one Vault, shared by all watches. Cheap to clone.
#[derive(Clone)]
pub struct VaultClient {
    pub(super) shared: Arc<Shared>,
    state: watch::Receiver<TokenState>,
    doubts: mpsc::Sender<Doubt>,
    logs_in: bool,
}

pub(super) struct Shared {
    pub(super) transport: Transport,
    pub(super) freshness: VaultFreshness,
    /// Set once something was handed out that ends with the token: then the token is not revoked on the way out.
    pub(super) token_carries_leases: std::sync::atomic::AtomicBool,
    /// What wrapped secret ids turned out to be.
    pub(super) secret_ids: watch::Sender<SecretIds>,
    /// Somebody wants a login that waits for its next try to be tried now.
    pub(super) asked_again: Notify,
    /// One probe at a time, whoever waits: a hundred certificates must not knock a hundred times.
    probe: tokio::sync::Mutex<Option<Instant>>,
}

impl VaultClient {
    /// The client, and the session that must run for it to have a token.
    pub fn new(settings: VaultSettings) -> Result<(Self, VaultSession), SettingsError> {
        let shared = Arc::new(Shared {
            transport: Transport::new(&settings)?,
            freshness: VaultFreshness::default(),
            token_carries_leases: false.into(),
            secret_ids: watch::Sender::default(),
            asked_again: Notify::new(),
            probe: tokio::sync::Mutex::default(),
        });
        let credential = match &settings.auth {
            VaultAuth::Certificate { .. } if settings.client_cert.is_none() => {
                return Err(SettingsError::NoClientCertificate);
            }
            VaultAuth::Certificate { .. } => settings.client_cert.clone(),
            auth => login::credential_file(auth).map(std::path::Path::to_owned),
        };
        let (publish, state) = watch::channel(TokenState::default());
        // One waiting doubt per watch is typical; a full queue only makes a request wait.
        let (doubts, questions) = mpsc::channel(64);
        let logs_in = login::can_log_in(&settings.auth);
        let session = VaultSession::new(shared.clone(), settings.auth, credential, publish, questions);
        Ok((
            Self {
                shared,
                state,
                doubts,
                logs_in,
            },
            session,
        ))
    }

    /// The token is this process's own, and nobody renews it after it. One that was given to the agent is renewed by its
    /// giver, or by the next process.
    pub(crate) fn logs_in(&self) -> bool {
        self.logs_in
    }

    /// Returns once there is a token after this one. The one before it ends some time later, and with it what was leased.
    pub(crate) async fn token_replaced(&self, generation: u64) {
        let mut state = self.state.clone();
        let newer = state.wait_for(|state| state.ready && state.generation > generation);
        if newer.await.is_err() {
            // The session has ended, and with it the agent.
            std::future::pending::<()>().await;
        }
    }

    /// Of the token of now; 0 before the first.
    pub(crate) fn generation(&self) -> u64 {
        self.state.borrow().generation
    }

    /// A login that was refused, or not answered, is tried again without waiting for its time.
    pub fn log_in_now(&self) {
        self.shared.asked_again.notify_waiters();
    }

    pub fn status(&self) -> VaultStatus {
        VaultStatus {
            client_certificate_expires: self.shared.transport.identity().map(|(_, life)| life.end),
            ..self.shared.freshness.status()
        }
    }

    /// Returns once Vault serves requests, after one that failed at `failed`.
    pub(crate) async fn wait_until_reachable(&self, failed: Instant) {
        self.shared.wait_until_reachable(failed).await;
    }

    /// Sends with the shared token. A 403 is looked into: a token that is no longer known is replaced and the request
    /// sent once more; else the policy lacks something. 404 is an answer.
    pub(super) async fn call(&self, call: &Call) -> Result<Answer, VaultFault> {
        let (answer, _) = self.call_by(call).await?;
        Ok(answer)
    }

    /// The same, with which of the agent's tokens was taken, counted from its start.
    pub(super) async fn call_by(&self, call: &Call) -> Result<(Answer, u64), VaultFault> {
        let state = self.token(call).await.map_err(VaultFault::before_sending)?;
        let answer = self.shared.send(call, &state).await?;
        if answer.status != 403 {
            return Ok((self.shared.accept(call, answer)?, state.generation));
        }
        let state = self
            .look_into(call, state, &answer)
            .await
            .map_err(VaultFault::before_sending)?;
        let answer = self.shared.send(call, &state).await?;
        let accepted = self.shared.accept(call, answer);
        let accepted = accepted.map_err(|fault| VaultFault {
            told_apart: state.from_login,
            ..fault
        })?;
        Ok((accepted, state.generation))
    }

    async fn token(&self, call: &Call) -> Result<TokenState, VaultFault> {
        let mut state = self.state.clone();
        let ready = state.wait_for(|state| state.ready || state.fault.is_some());
        let state = match tokio::time::timeout(TOKEN_WAIT, ready).await {
            Ok(Ok(state)) => state.clone(),
            Ok(Err(_)) => return Err(self.no_token(call, "the session with Vault has ended")),
            Err(_) => return Err(self.no_token(call, "no login has been answered yet")),
        };
        match state.fault {
            Some(fault) if !state.ready => Err(fault),
            _ => Ok(state),
        }
    }

    /// The token to try again with, or why it would not help.
    async fn look_into(
        &self,
        call: &Call,
        used: TokenState,
        answer: &Answer,
    ) -> Result<TokenState, VaultFault> {
        let current = self.state.borrow().clone();
        if current.ready && current.generation != used.generation {
            return Ok(current);
        }
        let forbidden = || {
            self.shared
                .transport
                .fault(call, Reason::Forbidden(answer.errors()))
        };
        if used.token.is_none() {
            return Err(forbidden());
        }
        match login::inspect(&self.shared, &used).await {
            Ok(_) => return Err(forbidden().told_apart()),
            Err(fault) if !matches!(fault.reason, Reason::TokenInvalid(_)) => return Err(fault),
            // A token that may not look itself up tells nothing by failing to. Fresh from a login it is good.
            Err(_) if !used.looked_up && used.is_fresh() => {
                return Err(VaultFault {
                    told_apart: used.from_login,
                    ..forbidden()
                });
            }
            Err(_) => {}
        }
        let (reply, replaced) = oneshot::channel();
        let doubt = Doubt {
            generation: used.generation,
            reply,
        };
        let asked = self.doubts.send(doubt).await;
        match (asked, tokio::time::timeout(TOKEN_WAIT, replaced).await) {
            (Ok(()), Ok(Ok(Ok(())))) => Ok(self.state.borrow().clone()),
            (Ok(()), Ok(Ok(Err(fault)))) => Err(fault),
            _ => {
                let reason = Reason::TokenInvalid(answer.errors());
                Err(VaultFault {
                    told_apart: used.looked_up,
                    ..self.shared.transport.fault(call, reason)
                })
            }
        }
    }

    fn no_token(&self, call: &Call, why: &str) -> VaultFault {
        self.shared
            .transport
            .fault(call, Reason::NoAnswer(why.to_owned()))
    }
}

impl Shared {
    pub(super) async fn send(&self, call: &Call, state: &TokenState) -> Result<Answer, VaultFault> {
        let result = self.transport.send(call, state.token.as_deref()).await;
        let answered = matches!(&result, Ok(answer) if answer.status < 400 || answer.status == 404);
        self.freshness.update(|status| {
            status.requests += 1;
            if answered {
                status.last_success = Some(unix_now());
            } else {
                status.errors += 1;
            }
        });
        result
    }

    /// A rule is missing that something can be done without: said once, and shown until it is there.
    pub(super) fn lacks(&self, fault: &VaultFault, consequence: &str) {
        let problem = fault.lacking_rule(consequence);
        let mut is_news = false;
        self.freshness.update(|status| {
            is_news = status
                .lacking
                .insert(fault.path.clone(), problem.clone())
                .is_none();
        });
        if is_news {
            tracing::warn!(%problem, "the vault policy lacks a rule");
        }
    }

    pub(super) fn lacks_no_more(&self, path: &str) {
        let mut was_lacking = false;
        self.freshness
            .update(|status| was_lacking = status.lacking.remove(path).is_some());
        if was_lacking {
            tracing::info!(path, "the vault policy has the rule now");
        }
    }

    /// Lets 2xx and 404 through.
    pub(super) fn accept(&self, call: &Call, answer: Answer) -> Result<Answer, VaultFault> {
        let reason = match answer.status {
            200..=299 | 404 => return Ok(answer),
            403 => Reason::Forbidden(answer.errors()),
            status => Reason::Refused {
                status,
                errors: answer.errors(),
            },
        };
        Err(self.transport.fault(call, reason))
    }

    /// Probes `sys/health`, which needs no token and counts against no quota, until Vault serves requests.
    pub(super) async fn wait_until_reachable(&self, failed: Instant) {
        let mut last_seen = self.probe.lock().await;
        if last_seen.is_some_and(|seen| seen > failed) {
            return;
        }
        let mut pause = Pause::while_unavailable();
        while !self.serves().await {
            tokio::time::sleep(pause.next()).await;
        }
        *last_seen = Some(Instant::now());
    }

    async fn serves(&self) -> bool {
        self.outage().await.is_none()
    }

    /// Why Vault does not serve requests now.
    pub(super) async fn outage(&self) -> Option<VaultFault> {
        let call = Call::get_of_server("sys/health").ok()?;
        let answer = match self.transport.ask(&call.clone().within(PROBE_TIMEOUT)).await {
            Ok(answer) => answer,
            Err(fault) => return Some(fault),
        };
        let reason = match answer.status {
            472 => Reason::Standby("it is a recovery replica".to_owned()),
            501 => Reason::Uninitialised,
            503 if says_sealed(&answer) => Reason::Sealed(String::new()),
            // A gateway without a server.
            status @ 500..=599 => Reason::ServerError {
                status,
                errors: answer.errors(),
            },
            // Standbys: they forward or redirect, as long as there is somebody to.
            429 | 473 if self.is_without_leader().await => Reason::NoActiveServer,
            _ => return None,
        };
        // Behind the same address there may be one that serves.
        self.transport.connect_anew();
        Some(self.transport.fault(&call, reason))
    }

    /// What a standby says of its cluster. Needs no token either; one that does not say it may have a leader.
    async fn is_without_leader(&self) -> bool {
        #[derive(Deserialize)]
        struct Leader {
            ha_enabled: bool,
            leader_address: String,
        }
        let Ok(call) = Call::get_of_server("sys/leader") else {
            return false;
        };
        let answer = self.transport.ask(&call.within(PROBE_TIMEOUT)).await;
        let said = answer
            .ok()
            .and_then(|answer| serde_json::from_slice::<Leader>(&answer.body).ok());
        said.is_some_and(|said| said.ha_enabled && said.leader_address.is_empty())
    }
}

fn says_sealed(health: &Answer) -> bool {
    #[derive(Deserialize)]
    struct Health {
        sealed: bool,
    }
    serde_json::from_slice::<Health>(&health.body).is_ok_and(|health| health.sealed)
}

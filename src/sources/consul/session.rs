//! Sessions: a lease at Consul that this process keeps alive, and keys that stand and fall with it.
//!
//! The server ends a session somewhere between TTL and twice the TTL after the last renewal. The holder stops trusting
//! it earlier, at two thirds of the TTL after the *start* of the last renewal that succeeded, so that nobody else can
//! hold what we still believe to hold.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ConsulError;
use super::call::Call;
use super::client::ConsulClient;
use super::kv::KvEntry;
use crate::sources::SourceHealth;
use crate::sources::retry::{Intervals, jittered};

#[derive(Clone, Debug)]
pub struct SessionSettings {
    /// Shown by `consul` and its UI.
    pub name: String,
    /// 10 s to 24 h; Consul answers 500 to less.
    pub ttl: Duration,
    /// How long Consul keeps a lock from others after its session was lost.
    pub lock_delay: Duration,
    pub behavior: SessionBehavior,
}

/// What becomes of the session's keys when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionBehavior {
    Release,
    Delete,
}

impl SessionSettings {
    pub fn new(name: impl Into<String>, behavior: SessionBehavior) -> Self {
        Self {
            name: name.into(),
            ttl: Duration::from_secs(15),
            lock_delay: Duration::from_secs(15),
            behavior,
        }
    }
}

/// Creates a session, renews it at a third of its TTL, and makes a new one when it is lost.
#[derive(Debug)]
pub struct SessionKeeper {
    client: ConsulClient,
    settings: SessionSettings,
    current: watch::Sender<Option<Arc<str>>>,
    health: SourceHealth,
}

impl SessionKeeper {
    pub fn new(client: ConsulClient, settings: SessionSettings) -> Self {
        Self {
            client,
            settings,
            current: watch::Sender::new(None),
            health: SourceHealth::default(),
        }
    }

    /// The session that may be trusted now; none while there is none.
    pub fn session(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.current.subscribe()
    }

    pub fn health(&self) -> SourceHealth {
        self.health.clone()
    }

    /// Writes a key that lives as long as the session does.
    pub fn key(&self) -> SessionKey {
        SessionKey {
            client: self.client.clone(),
            session: self.session(),
        }
    }

    /// Until cancelled; then the session is destroyed, which frees its keys, after the lock delay.
    pub async fn run(self, cancel: CancellationToken) {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = self.keep() => {}
        }
        if let Some(session) = self.current.send_replace(None) {
            self.destroy(&session).await;
        }
    }

    async fn destroy(&self, session: &str) {
        if let Err(error) = self.client.destroy_session(session).await {
            tracing::debug!(%error, session, "session not destroyed, it will expire");
        }
    }

    async fn keep(&self) {
        let longest = self.client.settings().address.longest_retry();
        let mut retries = Intervals::new(Duration::from_millis(500), longest);
        let mut told = false;
        let mut given_up: Option<Arc<str>> = None;
        loop {
            self.health.requested();
            let asked_at = Instant::now();
            match self.client.create_session(&self.settings).await {
                Ok(session) => {
                    self.health.succeeded(true);
                    retries.reset();
                    told = false;
                    let session: Arc<str> = session.into();
                    tracing::info!(%session, name = self.settings.name, "session created");
                    // Consul answers again: what the former one holds is freed now, and not when Consul ends it by itself.
                    if let Some(former) = given_up.replace(session.clone()) {
                        self.destroy(&former).await;
                    }
                    if asked_at.elapsed() < self.settings.ttl * 2 / 3 {
                        self.current.send_replace(Some(session.clone()));
                        self.renew_until_lost(&session, asked_at).await;
                        self.current.send_replace(None);
                    }
                    tracing::warn!(%session, name = self.settings.name, "session lost");
                }
                Err(error) => {
                    self.health.failed();
                    let denied = error.kind().is_refusal();
                    say_once(&mut told, &error, &self.settings.name, "session not created");
                    let pause = if denied {
                        jittered(DENIED_RETRY)
                    } else {
                        retries.next_interval()
                    };
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn renew_until_lost(&self, session: &str, created_at: Instant) {
        // Consul may grant more than was asked; trusting it for the shorter time is always safe.
        let ttl = self.settings.ttl;
        let mut trusted_until = created_at + ttl * 2 / 3;
        // Counted from when the last one was asked for: a slow answer takes none of the time that is left for the next.
        let mut next = created_at + jittered(ttl / 3).min(ttl / 3);
        while next < trusted_until {
            tokio::time::sleep_until(next).await;
            let started = Instant::now();
            self.health.requested();
            match tokio::time::timeout_at(trusted_until, self.client.renew_session(session)).await {
                Ok(Ok(true)) => {
                    self.health.succeeded(false);
                    trusted_until = started + ttl * 2 / 3;
                    next = started + jittered(ttl / 3).min(ttl / 3);
                }
                Ok(Ok(false)) => return,
                Ok(Err(error)) => {
                    self.health.failed();
                    tracing::debug!(%error, session, "session not renewed");
                    next = Instant::now() + ttl / 20;
                }
                // Not answered for as long as it was trusted.
                Err(_elapsed) => {
                    self.health.failed();
                    return;
                }
            }
        }
        tokio::time::sleep_until(trusted_until).await;
    }
}

/// Writes keys bound to one keeper's session.
#[derive(Clone, Debug)]
pub struct SessionKey {
    client: ConsulClient,
    session: watch::Receiver<Option<Arc<str>>>,
}

impl SessionKey {
    /// False: there is no session now, or another session holds the key. How often to write is the caller's business.
    pub async fn write_session_key(&self, key: &str, value: impl Into<Bytes>) -> Result<bool, ConsulError> {
        let session = self.session.borrow().clone();
        match session {
            Some(session) => self.client.put_acquire(key, value.into(), &session).await,
            None => Ok(false),
        }
    }
}

impl ConsulClient {
    pub(super) async fn create_session(&self, settings: &SessionSettings) -> Result<String, ConsulError> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Request<'a> {
            name: &'a str,
            #[serde(rename = "TTL")]
            ttl: String,
            lock_delay: String,
            behavior: SessionBehavior,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Created {
            #[serde(rename = "ID")]
            id: String,
        }
        let request = Request {
            name: &settings.name,
            ttl: format!("{}s", settings.ttl.as_secs()),
            lock_delay: format!("{}s", settings.lock_delay.as_secs()),
            behavior: settings.behavior,
        };
        let call = Call::put("session/create").needs(SESSION_RULE);
        let body = serde_json::to_vec(&request).map_err(|error| ConsulError::NotSent {
            asked: call.to_string(),
            reason: error.to_string(),
        })?;
        Ok(self.call(call.body(body)).await?.json::<Created>()?.id)
    }

    /// False: Consul does not know the session any more.
    pub(super) async fn renew_session(&self, session: &str) -> Result<bool, ConsulError> {
        let call = Call::put("session/renew")
            .segment(session)
            .not_found_is_answer()
            .needs(SESSION_RULE);
        Ok(self.call(call).await?.found)
    }

    pub(super) async fn destroy_session(&self, session: &str) -> Result<(), ConsulError> {
        self.call(
            Call::put("session/destroy")
                .segment(session)
                .timeout(PARTING)
                .needs(SESSION_RULE),
        )
        .await
        .map(|_| ())
    }

    /// Waits until the key's entry moves on from `index`; with the index to wait from next.
    pub(super) async fn wait_for_key(
        &self,
        key: &str,
        index: u64,
        wait: Duration,
    ) -> Result<(Option<KvEntry>, u64), ConsulError> {
        let blocking = (index > 0).then_some(super::call::Blocking { index, wait });
        let answer = self.call(super::kv::read_call(key).blocking(blocking)).await?;
        let next = answer.index.filter(|next| *next >= index).unwrap_or(0);
        Ok((super::kv::entry_of(&answer)?, next))
    }
}

/// One WARN per trouble, with what to do about it; the retries after it are nobody's news.
pub(super) fn say_once(told: &mut bool, error: &ConsulError, name: &str, what: &str) {
    if std::mem::replace(told, true) {
        tracing::debug!(%error, name, "{what}");
    } else {
        let problem = error.problem();
        tracing::warn!(%problem, fix = problem.fix.as_deref(), name, "{what}; trying on");
    }
}

/// Rights come when an operator grants them.
pub(super) const DENIED_RETRY: Duration = Duration::from_secs(60);

/// For what is only polite when leaving: a process that ends does not wait for a Consul that is away.
pub(super) const PARTING: Duration = Duration::from_secs(2);

const SESSION_RULE: &str = "session_prefix \"\" { policy = \"write\" }";

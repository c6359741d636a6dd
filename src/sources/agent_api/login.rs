//! A token by logging in: Consul gives one for an identity that somebody else signed (`/v1/acl/login`), such as Nomad's
//! of a task or Kubernetes' of a pod.
//!
//! It is asked for before the first request, again when two thirds of its life are over, and when Consul no longer knows
//! it. Whoever has a token goes on with it meanwhile. A token is given back once a newer one has taken its place, and at
//! the end, so that none piles up; one that a killed agent left in its file is taken up by the next.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as PlainMutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::call::{Call, Credential};
use super::client::{Answer, ApiClient, Token};
use super::error::ApiError;
use super::lifetimes::unix_now;
use super::token_sink::{self, TokenSink};
use crate::model::{Problem, ProblemKind, Redacted};
use crate::sources::bounded_file::{self, TOKEN_BYTES};
use crate::sources::life::unix_seconds;
use crate::sources::retry::Intervals;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginSettings {
    /// The auth method's name.
    pub method: String,
    /// Holds what the method verifies. Read at every login, because its issuer renews it.
    pub bearer_token_file: PathBuf,
    /// Keeps the token for the next start. None: what a killed agent had lives until its end.
    pub token_sink_file: Option<PathBuf>,
}

/// How it stands, for operators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoginStatus {
    /// In Unix seconds. None: no token yet, or one without an end.
    pub expires: Option<i64>,
    /// Why the last login failed.
    pub problem: Option<Problem>,
    pub logins: u64,
    pub failures: u64,
}

#[derive(Debug)]
pub(super) struct Login {
    settings: LoginSettings,
    sink: Option<TokenSink>,
    /// Held by whoever logs in.
    gate: Mutex<()>,
    // A plain mutex: never held across an await.
    state: PlainMutex<State>,
}

#[derive(Debug)]
struct State {
    /// None: no token, or one without an end.
    renew_at: Option<Instant>,
    refused: bool,
    /// Since when there is this token.
    got_at: Option<Instant>,
    /// When its own datacenter was last seen to know it.
    seen_at: Option<Instant>,
    /// What its file held at the start was a token of somebody else's.
    sink_is_others: bool,
    not_before: Option<Instant>,
    waits: Intervals,
    status: LoginStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Granted {
    #[serde(rename = "SecretID")]
    secret: String,
    expiration_time: Option<String>,
}

/// What Consul says of a token to the one who has it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Kept {
    auth_method: Option<String>,
    expiration_time: Option<String>,
}

impl Login {
    pub(super) fn new(settings: LoginSettings) -> Self {
        Self {
            sink: settings.token_sink_file.clone().map(TokenSink::at),
            settings,
            gate: Mutex::new(()),
            state: PlainMutex::new(State {
                renew_at: None,
                refused: false,
                got_at: None,
                seen_at: None,
                sink_is_others: false,
                not_before: None,
                waits: Intervals::new(FIRST_RETRY, LONGEST_RETRY),
                status: LoginStatus::default(),
            }),
        }
    }

    /// Consul does not know the token. One that it gave just now it will know: servers that have not heard of it yet remember
    /// for a while that there is none, and each login would put a newer one in its place. So these are far apart, too.
    pub(super) fn refused(&self, now: Instant) {
        let mut state = self.state();
        let is_new = state.got_at.is_some_and(|at| now < at + NEW);
        state.refused |= !is_new;
    }

    fn was_seen(&self, now: Instant) -> bool {
        let state = self.state();
        [state.got_at, state.seen_at]
            .iter()
            .flatten()
            .any(|at| now < *at + NEW)
    }

    pub(super) fn method(&self) -> &str {
        &self.settings.method
    }

    /// The file with what the auth method verifies.
    pub(super) fn identity(&self) -> &Path {
        &self.settings.bearer_token_file
    }

    /// None: the token is not kept for the next start.
    fn sink(&self) -> Option<&TokenSink> {
        self.sink.as_ref().filter(|_| !self.state().sink_is_others)
    }

    /// Whoever the file belongs to finds it as it was.
    fn leave_sink(&self, why: &str) {
        self.state().sink_is_others = true;
        tracing::warn!(
            method = self.settings.method,
            file = %self.sink.as_ref().map(TokenSink::path).unwrap_or(std::path::Path::new("")).display(),
            fix = "remove the file if nobody needs it, or name another as `token_sink_file`",
            "the login's token_sink_file {why}: the file is left as it is, and this agent's own token is not kept for its \
             next start"
        );
    }

    fn is_due(&self, now: Instant) -> bool {
        let state = self.state();
        state.refused || state.renew_at.is_some_and(|at| at <= now)
    }

    /// After a failure: why not now.
    fn resting(&self, now: Instant) -> Option<Problem> {
        let state = self.state();
        let rests = state.not_before.is_some_and(|at| at > now);
        state.status.problem.clone().filter(|_| rests)
    }

    fn succeeded_until(&self, end: Option<&str>) {
        let expires = end.and_then(unix_seconds);
        let life = expires.and_then(|end| u64::try_from(end - unix_now()).ok());
        self.succeeded(Instant::now(), life.map(Duration::from_secs), expires);
    }

    fn succeeded(&self, now: Instant, life: Option<Duration>, expires: Option<i64>) {
        let mut state = self.state();
        state.renew_at = life.map(|life| now + life * 2 / 3);
        state.refused = false;
        state.got_at = Some(now);
        state.not_before = None;
        state.waits.reset();
        state.status.expires = expires;
        state.status.problem = None;
        state.status.logins += 1;
    }

    fn failed(&self, now: Instant, problem: Problem) {
        let mut state = self.state();
        state.not_before = Some(now + state.waits.next_interval());
        if state.status.problem.as_ref() != Some(&problem) {
            let fix = problem.fix.as_deref();
            tracing::warn!(method = self.settings.method, %problem, fix, "login failed");
        }
        state.status.problem = Some(problem);
        state.status.failures += 1;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ApiClient {
    /// None: the token comes from elsewhere.
    pub fn login_status(&self) -> Option<LoginStatus> {
        self.login().map(|login| login.state().status.clone())
    }

    /// Sees to it that there is a token, and the newest there is.
    pub(super) async fn credential(&self, asked: &str) -> Result<(), ApiError> {
        let Some(login) = self.login() else {
            self.token().refresh(false).await;
            return Ok(());
        };
        let holds_one = || self.token().current().is_some();
        if holds_one() && !login.is_due(Instant::now()) {
            return Ok(());
        }
        let _gate = match login.gate.try_lock() {
            Ok(gate) => gate,
            Err(_) if holds_one() => return Ok(()),
            Err(_) => login.gate.lock().await,
        };
        // Somebody else may have logged in, or failed to, while this one waited.
        if holds_one() && !login.is_due(Instant::now()) {
            return Ok(());
        }
        let outcome = match login.resting(Instant::now()) {
            Some(problem) => Err(problem),
            None => self.log_in(login).await.inspect_err(|problem| {
                login.failed(Instant::now(), problem.clone());
            }),
        };
        match outcome {
            Err(problem) if !holds_one() => Err(ApiError::NoToken {
                asked: asked.to_owned(),
                problem: Box::new(problem),
            }),
            _ => Ok(()),
        }
    }

    /// Whether a token that another datacenter does not know is good in this one. Many ask at once; one looks.
    pub(super) async fn is_known_here(&self, login: &Login, token: &Token) -> bool {
        if login.was_seen(Instant::now()) {
            return true;
        }
        let _gate = login.gate.lock().await;
        // Somebody else may have looked, or logged in, while this one waited.
        let Some(token) = token.clone().filter(|_| !login.was_seen(Instant::now())) else {
            return true;
        };
        let call = Call::get("acl/token/self").with(Credential::This(token));
        match self.call(call).await {
            Err(error) if is_forgotten(&error) => return false,
            Ok(_) => login.state().seen_at = Some(Instant::now()),
            // Whoever asks here finds that out, too.
            Err(_) => {}
        }
        true
    }

    async fn log_in(&self, login: &Login) -> Result<(), Problem> {
        if self.token().current().is_none()
            && let Some(sink) = login.sink()
            && self.take_up(login, sink).await?
        {
            return Ok(());
        }
        let file = &login.settings.bearer_token_file;
        let path = file.clone();
        let read = tokio::task::spawn_blocking(move || bounded_file::read_text(&path, TOKEN_BYTES));
        let bearer = read
            .await
            .map_err(std::io::Error::other)
            .and_then(std::convert::identity)
            .map(Redacted::new)
            .map_err(|error| {
                Problem::new(
                    ProblemKind::Invalid,
                    format!("cannot log in: {}: {error}", file.display()),
                )
                .with_fix(
                    "`bearer_token_file` of the login block must name the file with the signed identity",
                )
            })?;
        let body = json!({ "AuthMethod": login.settings.method, "BearerToken": bearer.expose().trim() });
        let call = Call::new(Method::POST, "acl/login")
            .body(body.to_string())
            .with(Credential::None);
        let granted = self
            .call(call)
            .await
            .and_then(|answer: Answer| answer.json::<Granted>());
        let granted = granted.map_err(|error| {
            let problem = error.problem();
            Problem {
                message: format!(
                    "cannot log in with the auth method {:?} and the identity in {}. {problem}",
                    login.settings.method,
                    file.display()
                )
                .into(),
                fix: match problem.kind {
                    // Nobody has looked at the identity yet.
                    ProblemKind::Blocked | ProblemKind::Unavailable => problem.fix,
                    _ => Some(
                        "check that the auth method exists, verifies this identity, and has a binding rule that takes it"
                            .into(),
                    ),
                },
                ..problem
            }
        })?;
        let token = Arc::new(Redacted::new(granted.secret));
        // Before it is used: from here on a killed agent leaves nothing behind that the next one does not find.
        if let Some(sink) = login.sink() {
            sink.write(&token).await;
        }
        login.succeeded_until(granted.expiration_time.as_deref());
        let old = self.token().replace(Some(token));
        tracing::info!(method = login.settings.method, "logged in to {}", self.address());
        if let Some(old) = old {
            // By itself: whoever waits for an answer with the old token is told of the new one and drops what it does, this
            // login among it.
            tokio::spawn(self.give_back(old));
        }
        Ok(())
    }

    /// Whether the token that a killed agent left behind is still good. If it cannot be asked about, another login would add
    /// one to it.
    async fn take_up(&self, login: &Login, sink: &TokenSink) -> Result<bool, Problem> {
        let token = match sink.read().await {
            token_sink::Kept::Token(token) => token,
            token_sink::Kept::Nothing => return Ok(false),
            token_sink::Kept::Other => {
                login.leave_sink("holds no token");
                return Ok(false);
            }
        };
        let call = Call::get("acl/token/self").with(Credential::This(token.clone()));
        let kept = match self.call(call).await {
            Err(error) if is_forgotten(&error) => return Ok(false),
            answer => answer
                .and_then(|answer| answer.json::<Kept>())
                .map_err(|error| error.problem())?,
        };
        if kept.auth_method.as_deref() != Some(&*login.settings.method) {
            login.leave_sink("holds a token that is not of this auth method");
            return Ok(false);
        }
        login.succeeded_until(kept.expiration_time.as_deref());
        self.token().replace(Some(token));
        tracing::info!(
            method = login.settings.method,
            "goes on with the token of the last start at {}",
            self.address()
        );
        Ok(true)
    }

    /// Gives the token back, if it was got by a login.
    pub async fn log_out(&self) {
        if let Some(login) = self.login()
            && let Some(token) = self.token().replace(None)
        {
            self.give_back(token).await;
            if let Some(sink) = login.sink() {
                sink.remove().await;
            }
        }
    }

    /// Consul may have forgotten it already, and will in any case at its end.
    /// Boxed by its type: a call may log in, and a login gives back.
    fn give_back(&self, token: Arc<Redacted<String>>) -> BoxFuture<'static, ()> {
        let client = self.clone();
        Box::pin(async move {
            let call = Call::new(Method::POST, "acl/logout")
                .timeout(LOGOUT)
                .with(Credential::This(token));
            if let Err(error) = client.call(call).await {
                tracing::debug!(%error, "token not given back");
            }
        })
    }
}

/// Of a token, to whoever shows it: as newer and as older servers say it.
fn is_forgotten(error: &ApiError) -> bool {
    matches!(error.status(), Some(403 | 404))
}

/// So long a token is not replaced because it is refused: longer than servers remember that there is none of that name.
const NEW: Duration = Duration::from_secs(30);

/// While there is no token nothing else works, so soon.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(15);

/// Not worth holding up a stop for.
const LOGOUT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_thirds_of_a_life_then_another_and_failures_rest() {
        let login = Login::new(LoginSettings {
            method: "m".to_owned(),
            bearer_token_file: "/nowhere".into(),
            token_sink_file: None,
        });
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        login.succeeded(start, Some(Duration::from_secs(90)), None);
        assert!(!login.is_due(after(59)) && login.is_due(after(61)));
        login.failed(after(61), Problem::new(ProblemKind::Forbidden, "no"));
        assert!(login.resting(after(61)).is_some() && login.resting(after(90)).is_none());
        login.succeeded(after(90), None, None);
        assert!(!login.is_due(after(1_000_000)), "it has no end");
        login.refused(after(119));
        assert!(!login.is_due(after(119)), "it was given just now");
        login.refused(after(120));
        assert!(login.is_due(after(120)));
    }
}

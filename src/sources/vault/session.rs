//! The life of the one token: got, renewed, replaced before it ends or when Vault no longer knows it, and given
//! back on the way out. Watches see the newest through a `watch` channel.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ahead::Ahead;
use super::backoff::{Pause, Pauses, jitter};
use super::client::Shared;
use super::credential::{self, Stamp};
use super::ends::Ends;
use super::fault::{Reason, VaultFault};
use super::freshness::{timestamp, unix_now};
use super::lockout::Refusals;
use super::login::{self, Received};
use super::schedule::{Step, TokenLife, after_renewal, first_step};
use super::settings::VaultAuth;
use super::watch_health::watch_health;
use crate::model::{Problem, ProblemKind, Redacted};

/// How long a token that cannot look itself up is taken as good after it was received, and how often it is asked
/// about. Keeps a 403 of a policy from becoming a login per request.
const FRESH: Duration = Duration::from_secs(60);

/// What the watches know of the token.
#[derive(Clone, Default)]
pub(super) struct TokenState {
    /// None while there is none, and where a proxy adds it.
    pub(super) token: Option<Arc<Redacted<String>>>,
    pub(super) ready: bool,
    /// Grows with every token received.
    pub(super) generation: u64,
    pub(super) received: Option<Instant>,
    pub(super) may_look_up: bool,
    /// It could once: Vault knew it.
    pub(super) looked_up: bool,
    /// Vault made it, at the agent's last login.
    pub(super) from_login: bool,
    /// Why there is no token, or no better one.
    pub(super) fault: Option<VaultFault>,
}

impl TokenState {
    pub(super) fn is_fresh(&self) -> bool {
        self.received.is_some_and(|received| received.elapsed() < FRESH)
    }
}

/// "Vault does not know this token": answered when another is there, or cannot be had.
pub(super) struct Doubt {
    pub(super) generation: u64,
    pub(super) reply: oneshot::Sender<Result<(), VaultFault>>,
}

/// Runs for as long as the client is used. Never gives up.
pub struct VaultSession {
    shared: Arc<Shared>,
    auth: VaultAuth,
    /// The file whose change means that asking again may now help.
    credential: Option<PathBuf>,
    state: watch::Sender<TokenState>,
    doubts: mpsc::Receiver<Doubt>,
}

enum End {
    Cancelled,
    Replace(Option<Doubt>),
}

impl VaultSession {
    pub(super) fn new(
        shared: Arc<Shared>,
        auth: VaultAuth,
        credential: Option<PathBuf>,
        state: watch::Sender<TokenState>,
        doubts: mpsc::Receiver<Doubt>,
    ) -> Self {
        Self {
            shared,
            auth,
            credential,
            state,
            doubts,
        }
    }

    /// Returns when cancelled, after giving back a token that it logged in for.
    pub async fn run(self, cancel: CancellationToken) {
        let shared = self.shared.clone();
        let ends = Ends::of(&self.auth);
        let ahead = Ahead::of(&self.auth);
        // Beside the token's life: what hangs here holds up neither a renewal nor the way out.
        tokio::select! {
            () = self.keep(cancel) => {}
            never = watch_health(&shared, ends) => match never {},
            never = ahead.keep(&shared) => match never {},
        }
    }

    async fn keep(mut self, cancel: CancellationToken) {
        let mut waiting = None;
        while let Some((life, changed)) = self.acquire(waiting.take(), &cancel).await {
            match self.live(life, changed, &cancel).await {
                End::Cancelled => break,
                End::Replace(doubt) => waiting = doubt,
            }
        }
        let state = self.state.borrow().clone();
        if login::can_log_in(&self.auth) && state.token.is_some() {
            login::revoke(&self.shared, &state).await;
        }
    }

    /// Gets a token, for as long as it takes. None: cancelled.
    async fn acquire(
        &mut self,
        mut waiting: Option<Doubt>,
        cancel: &CancellationToken,
    ) -> Option<(Option<TokenLife>, Stamp)> {
        let mut pauses = Pauses::default();
        let mut refusals = Refusals::of(&self.auth);
        loop {
            let stamp = Stamp::of(self.credential.as_deref()).await;
            refusals
                .about_to_try(&self.shared, self.credential.as_deref())
                .await;
            // What is asked for while Vault takes its time is not lost.
            let shared = self.shared.clone();
            let asked_again = shared.asked_again.notified();
            tokio::pin!(asked_again);
            asked_again.as_mut().enable();
            let result = tokio::select! {
                () = cancel.cancelled() => return None,
                result = self.obtain() => result,
            };
            let fault = match result {
                Ok((received, may_look_up)) => {
                    let life = received.life;
                    self.publish(received, may_look_up);
                    if let Some(doubt) = waiting {
                        let _ = doubt.reply.send(Ok(()));
                    }
                    return Some((life, stamp));
                }
                Err(fault) => fault,
            };
            let (fault, lockout) = refusals.note(fault);
            self.report(Some(&fault));
            if let Some(doubt) = waiting.take() {
                // Vault does not know the token: until there is another, requests need not be sent.
                self.state.send_modify(|state| state.ready = false);
                let _ = doubt.reply.send(Err(fault.clone()));
            }
            let file = self.credential.clone();
            let retry = async {
                match lockout {
                    None => retry_time(&shared, &fault, &stamp, &mut pauses).await,
                    Some(pause) => tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = refusals.another(&shared, file.as_deref(), stamp) => {}
                        () = refusals.unwrapped(&shared) => {}
                    },
                }
            };
            tokio::pin!(retry);
            loop {
                tokio::select! {
                    () = cancel.cancelled() => return None,
                    () = &mut retry => break,
                    () = &mut asked_again => break,
                    // Not tried again at once: as many doubts come as there are watches.
                    Some(doubt) = self.doubts.recv() => {
                        let _ = doubt.reply.send(Err(fault.clone()));
                    }
                }
            }
        }
    }

    /// A token and what Vault says about it.
    async fn obtain(&self) -> Result<(Received, bool), VaultFault> {
        let mut received = login::obtain(&self.shared, &self.auth).await?;
        if received.token.is_none() {
            return Ok((received, true));
        }
        let candidate = TokenState {
            token: received.token.clone(),
            ..TokenState::default()
        };
        match login::inspect(&self.shared, &candidate).await {
            Ok(life) => {
                received.life = Some(life);
                Ok((received, true))
            }
            // Fresh from a login it is good, and its policies only lack lookup-self.
            Err(fault) if received.life.is_some() => {
                if matches!(fault.reason, Reason::TokenInvalid(_)) {
                    let consequence = "whether a refusal means a lost token is found out by logging in again";
                    self.shared.lacks(&fault, consequence);
                }
                Ok((received, false))
            }
            // Given to us, it may be good all the same (no default policy): requests will tell.
            Err(fault) if matches!(fault.reason, Reason::TokenInvalid(_)) => {
                let known = self.state.borrow();
                let looked_up = known.looked_up && known.token == received.token;
                drop(known);
                self.report(Some(&VaultFault {
                    told_apart: looked_up,
                    ..fault
                }));
                Ok((received, false))
            }
            Err(fault) => Err(fault),
        }
    }

    async fn live(&mut self, life: Option<TokenLife>, mut stamp: Stamp, cancel: &CancellationToken) -> End {
        let replaceable = login::can_log_in(&self.auth);
        let mut life = life.unwrap_or_default();
        let known = self.state.borrow().may_look_up || replaceable;
        // A given token is looked at where its last third begins: before that there is nothing to say.
        let spread = if replaceable { jitter() } else { jitter().abs() };
        let mut timer = Timer::start(first_step(life, spread), replaceable, known);
        let mut pause = Pause::while_refused();
        let mut since = Instant::now();
        self.note_expiry(life);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return End::Cancelled,
                Some(doubt) = self.doubts.recv() => {
                    if doubt.generation != self.state.borrow().generation {
                        let _ = doubt.reply.send(Ok(()));
                    } else if replaceable || stamp.changed().await {
                        return End::Replace(Some(doubt));
                    } else {
                        // The same token again would be doubted again.
                        let fault = self.invalid();
                        self.report(Some(&fault));
                        let _ = doubt.reply.send(Err(fault));
                        if !matches!(timer.action, Action::Inspect) {
                            timer = Timer { at: Some(Instant::now() + FRESH), action: Action::Inspect };
                        }
                    }
                }
                () = timer.due() => match timer.action {
                    Action::Replace | Action::Inspect => return End::Replace(None),
                    Action::Renew => match self.renew_unless(life, cancel).await {
                        None => return End::Cancelled,
                        Some(Ok((granted, renewable))) => {
                            pause.reset();
                            timer = Timer::start(
                                after_renewal(life, granted, renewable, jitter()), replaceable, true,
                            );
                            life = TokenLife { ttl: granted, renewable, ..life };
                            since = Instant::now();
                            self.note_expiry(life);
                            self.report(None);
                        }
                        Some(Err(fault)) if replaceable && is_for_good(&fault, life, since.elapsed()) => {
                            if matches!(fault.reason, Reason::Forbidden(_)) {
                                self.shared.lacks(&fault, "the agent logs in again where it would renew its token");
                            }
                            return End::Replace(None);
                        }
                        Some(Err(fault)) => {
                            self.report(Some(&fault));
                            timer.at = Some(Instant::now() + pause.next());
                        }
                    },
                },
                () = stamp.wait_for_change(), if self.replaced_by_a_file() => {
                    let seen = Stamp::of(self.credential.as_deref()).await;
                    if let Err(fault) = self.credential_is_there().await {
                        // The token of before is good as long as it is renewed.
                        self.report(Some(&fault));
                        stamp = seen;
                        continue;
                    }
                    tracing::info!("vault credential file changed");
                    self.shared.transport.reread_files();
                    return End::Replace(None);
                }
            }
        }
    }

    /// A new token in the file is the token; a new client certificate is another identity, and a token holds to the one
    /// that it was got with.
    fn replaced_by_a_file(&self) -> bool {
        matches!(self.auth, VaultAuth::TokenFile(_) | VaultAuth::Certificate { .. })
    }

    async fn credential_is_there(&self) -> Result<(), VaultFault> {
        match &self.auth {
            VaultAuth::TokenFile(path) => credential::read(&self.shared, "token", path).await.map(drop),
            _ => Ok(()),
        }
    }

    /// None: cancelled. A server that does not answer holds up no stop.
    async fn renew_unless(
        &self,
        life: TokenLife,
        cancel: &CancellationToken,
    ) -> Option<Result<(u64, bool), VaultFault>> {
        let state = self.state.borrow().clone();
        tokio::select! {
            () = cancel.cancelled() => None,
            renewed = login::renew(&self.shared, &state, life) => Some(renewed),
        }
    }

    fn publish(&self, received: Received, may_look_up: bool) {
        let old = self.state.borrow().clone();
        // A file touched without a new token in it is not a new token.
        let same = old.ready && old.token == received.token;
        let looked_up = may_look_up || (old.looked_up && old.token == received.token);
        if may_look_up || login::can_log_in(&self.auth) {
            self.report(None);
        }
        self.state.send_modify(|state| {
            state.token = received.token;
            state.ready = true;
            state.generation += u64::from(!same);
            state.received = if same {
                state.received
            } else {
                Some(Instant::now())
            };
            state.may_look_up = may_look_up;
            state.looked_up = looked_up;
            state.from_login = login::can_log_in(&self.auth);
        });
    }

    fn report(&self, fault: Option<&VaultFault>) {
        let changed = self.state.borrow().fault.as_ref() != fault;
        if !changed {
            return;
        }
        self.shared
            .freshness
            .update(|status| status.problem = fault.map(VaultFault::problem));
        // Whoever reads this finds it in the status.
        match fault {
            Some(fault) => tracing::warn!(%fault, "vault token trouble"),
            None => tracing::info!("vault token in order"),
        }
        self.state.send_modify(|state| state.fault = fault.cloned());
    }

    fn note_expiry(&self, life: TokenLife) {
        let expires = end_of(life, unix_now());
        let ending = expires.filter(|_| self.nobody_renews(life));
        let warning = ending.map(|end| self.ending(end));
        let mut before = None;
        self.shared.freshness.update(|status| {
            status.token_expires = expires;
            before = std::mem::replace(&mut status.warning, warning.clone());
        });
        // Whoever reads this finds it in the status.
        if let Some(warning) = &warning
            && before.is_none()
        {
            let fix = warning.fix.as_deref();
            tracing::warn!(problem = %warning, fix, "a credential ends soon");
        }
    }

    /// A given token in the last third of its life that cannot be prolonged.
    fn nobody_renews(&self, life: TokenLife) -> bool {
        let stuck = matches!(first_step(life, 0.0), Step::Replace(_)) && !login::can_log_in(&self.auth);
        stuck && life.ttl.saturating_mul(3) <= life.full
    }

    fn ending(&self, end: i64) -> Problem {
        let end = timestamp(end);
        let fix = match &self.credential {
            Some(path) => format!(
                "Put another token into {}; it is taken up by itself.",
                path.display()
            ),
            None => {
                "Give the agent another token, or an auth method with which it can get one itself.".to_owned()
            }
        };
        Problem::new(
            ProblemKind::Forbidden,
            format!("the Vault token ends at {end} and cannot be renewed"),
        )
        .with_fix(fix)
    }

    fn invalid(&self) -> VaultFault {
        let state = self.state.borrow();
        let asked = match &state.fault {
            Some(fault) if matches!(fault.reason, Reason::TokenInvalid(_)) => return fault.clone(),
            _ => "auth/token/lookup-self",
        };
        VaultFault {
            asked: asked.into(),
            path: asked.into(),
            capability: "read",
            reason: Reason::TokenInvalid(String::new()),
            not_sent: true,
            told_apart: state.looked_up,
        }
    }
}

/// The token will not be renewed: a login has to bring another. That the role has other policies now, or is gone, Vault
/// answers as a failure of its own, or with nothing, and so may a proxy: after such an answer the last sixth of the life is a
/// login's.
fn is_for_good(fault: &VaultFault, life: TokenLife, since: Duration) -> bool {
    match &fault.reason {
        Reason::Refused { errors, .. } if !errors.is_empty() => true,
        Reason::ServerError { status: 500, errors } if errors.is_empty() => false,
        Reason::Refused { .. } | Reason::Unusable(_) | Reason::ServerError { status: 500, .. } => {
            life.ttl > 0 && since.as_secs() >= life.ttl.saturating_sub(life.ttl / 6)
        }
        _ => fault.kind().is_refusal(),
    }
}

/// In Unix seconds. None: it does not end, or not in any time that can be counted.
pub(super) fn end_of(life: TokenLife, now: i64) -> Option<i64> {
    let left = Some(life.ttl).filter(|ttl| *ttl > 0)?;
    now.checked_add(i64::try_from(left).ok()?)
}

/// Waits until asking again may help.
async fn retry_time(shared: &Shared, fault: &VaultFault, stamp: &Stamp, pauses: &mut Pauses) {
    if fault.kind() == ProblemKind::Unavailable {
        let failed = Instant::now();
        tokio::time::sleep(pauses.unavailable.next()).await;
        return shared.wait_until_reachable(failed).await;
    }
    tokio::select! {
        () = tokio::time::sleep(pauses.refused.next()) => {}
        () = stamp.wait_for_change() => {}
    }
}

struct Timer {
    at: Option<Instant>,
    action: Action,
}

#[derive(Clone, Copy)]
enum Action {
    Renew,
    Replace,
    /// Take the same token and ask Vault about it again.
    Inspect,
}

impl Timer {
    /// `known`: the life of the token is known. `replaceable`: another can be had by logging in.
    fn start(step: Step, replaceable: bool, known: bool) -> Self {
        let (after, action) = match step {
            Step::Rest if !known => (Some(FRESH), Action::Inspect),
            Step::Rest => (None, Action::Renew),
            Step::Renew(after) => (Some(after), Action::Renew),
            Step::Replace(after) if replaceable => (Some(after), Action::Replace),
            // It ends, and only whoever gave it can give another: look at it now and then, so that status says so.
            Step::Replace(after) => (Some(after.min(FRESH)), Action::Inspect),
        };
        Self {
            at: after.map(|after| Instant::now() + after),
            action,
        }
    }

    async fn due(&self) {
        match self.at {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_cannot_be_counted_is_none() {
        let of = |ttl| {
            let life = TokenLife {
                ttl,
                ..TokenLife::default()
            };
            end_of(life, 1_000)
        };
        assert_eq!(of(0), None);
        assert_eq!(of(60), Some(1_060));
        for ttl in [u64::MAX, i64::MAX.unsigned_abs()] {
            assert_eq!(of(ttl), None, "{ttl}");
        }
    }
}

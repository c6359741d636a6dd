//! When the token, the identity of a login and the client certificate end, so that operators hear of it before anything is
//! refused.
//!
//! A login's token is [`super::login`]'s own business: it is replaced in time. One that was given is not, and neither are a
//! certificate and the identity that the login shows: whoever gave them has to.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::call::{Call, Credential};
use super::client::ApiClient;
use crate::model::{Problem, ProblemKind, Redacted};
use crate::sources::bounded_file;
use crate::sources::certificates::MAX_CHAIN_BYTES;
use crate::sources::identity::{self, IdentityFile, RENEWED};
use crate::sources::life::{GIVEN, Life, unix_seconds};
use crate::sources::stamp::{Stamp, stamp_of};

/// A cheap handle: clones share what was found.
#[derive(Clone, Debug)]
pub struct Lifetimes {
    client: ApiClient,
    // A plain mutex: never held across an await.
    reading: Arc<Mutex<LifetimesReading>>,
}

/// What the last look found: the end of a credential does not change because one look fails.
#[derive(Debug, Default)]
struct Known {
    token: Option<(Arc<Redacted<String>>, Life)>,
    certificate: Option<Life>,
    /// None: the agent does not log in.
    identity: Option<IdentityFile>,
}

/// In Unix seconds. None: there is none, or it has no end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LifetimesReading {
    pub token: Option<i64>,
    pub client_certificate: Option<i64>,
    /// What the agent logs in with.
    pub login_identity: Option<i64>,
    /// Of each that is near its end, or has ended, and of a token's file.
    pub warnings: Vec<Problem>,
    /// It has no token, or cannot be read: what was read before is in use, and the agent would not start again.
    pub is_token_file_bad: bool,
}

impl Lifetimes {
    pub fn new(client: &ApiClient) -> Self {
        Self {
            client: client.clone(),
            reading: Arc::default(),
        }
    }

    pub fn reading(&self) -> LifetimesReading {
        let mut reading = self.lock().clone();
        if let Some(problem) = self.client.token().problem() {
            reading.warnings.push(problem);
            reading.is_token_file_bad = true;
        }
        reading
    }

    /// Looks now, whenever one of them is replaced, when one nears its end, and when it ends.
    pub async fn follow(self, stop: CancellationToken) {
        let mut changes = self.client.token().changes();
        let mut known = Known {
            identity: self.identity().map(|file| IdentityFile::at(file.to_owned())),
            ..Known::default()
        };
        loop {
            changes.mark_unchanged();
            // Before they are read: what is put there meanwhile is read once more, not missed.
            let files = self.stamps().await;
            let pause = self.look(&mut known).await;
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
                () = sleep(pause) => {}
                () = self.file_replaced(files) => {}
            }
        }
    }

    /// Looks at the token's file meanwhile, too. It is looked at before each request, but while every watch waits in a long
    /// poll there is none.
    async fn file_replaced(&self, known: [Option<Stamp>; 2]) {
        loop {
            sleep(FRESH).await;
            self.client.token().refresh(false).await;
            if self.stamps().await != known {
                return;
            }
        }
    }

    fn identity(&self) -> Option<&Path> {
        Some(self.client.login()?.identity())
    }

    /// Of the certificate and of the identity. None also while a file is away.
    async fn stamps(&self) -> [Option<Stamp>; 2] {
        let stamp = async |file: Option<&Path>| {
            let metadata = tokio::fs::metadata(file?).await;
            Some(stamp_of(&metadata.ok()?))
        };
        [
            stamp(self.client.client_certificate()).await,
            stamp(self.identity()).await,
        ]
    }

    /// Returns when to look again.
    async fn look(&self, known: &mut Known) -> Duration {
        let token = self.token_life(known.token.take()).await;
        let certificate = match self.client.client_certificate() {
            Some(path) => certificate_life(path, known.certificate).await,
            None => None,
        };
        let identity = match &mut known.identity {
            Some(file) => file.look().await,
            None => None,
        };
        known.certificate = certificate;
        known.token = token;
        let token = known.token.as_ref().map(|(_, life)| *life);
        let now = unix_now();
        let is_ending = |life: &Life| life.last(GIVEN) <= now;
        let identity_ends = |life: Life| {
            let product = self.client.product().to_string();
            let problem = known.identity.as_ref()?.ending(life, &product, now)?;
            Some((life, problem))
        };
        let ending: Vec<(Life, Problem)> = [
            token
                .filter(is_ending)
                .map(|life| (life, self.token_ends(life, now))),
            certificate
                .filter(is_ending)
                .map(|life| (life, self.certificate_ends(life, now))),
            identity.and_then(identity_ends),
        ]
        .into_iter()
        .flatten()
        .collect();
        let mut reading = self.lock();
        for (life, problem) in &ending {
            life.log(problem, &reading.warnings, now);
        }
        *reading = LifetimesReading {
            token: token.map(|life| life.end),
            client_certificate: certificate.map(|life| life.end),
            login_identity: identity.map(|life| life.end),
            warnings: ending.into_iter().map(|(_, problem)| problem).collect(),
            is_token_file_bad: false,
        };
        drop(reading);
        let moments = [(token, GIVEN), (certificate, GIVEN), (identity, RENEWED)];
        let moments = moments.into_iter().filter_map(|(life, part)| {
            let life = life?;
            Some([life.last(part), life.end])
        });
        next_look(moments.flatten(), now)
    }

    async fn token_life(
        &self,
        known: Option<(Arc<Redacted<String>>, Life)>,
    ) -> Option<(Arc<Redacted<String>>, Life)> {
        if self.client.login_status().is_some() {
            return None;
        }
        // A file that was replaced meanwhile counts, whoever asks next.
        self.client.token().refresh(false).await;
        let token = self.client.token().current()?;
        if let Some(life) = identity::life_of(token.expose()) {
            return Some((token, life));
        }
        // This one's, whatever the settings give by the time of the answer.
        let call = Call::get("acl/token/self")
            .max_body(ANSWER_BYTES)
            .with(Credential::This(token.clone()));
        let answer = self.client.call(call).await;
        match answer.and_then(|answer| answer.json().map(life_of_token)) {
            Ok(life) => life.map(|life| (token, life)),
            // No ACLs, no rights, or not reachable: whoever needs the token says so. Nobody knows one that has ended.
            Err(error) => {
                tracing::debug!(%error, "the token's end was not found out");
                known.filter(|(of, _)| *of == token)
            }
        }
    }

    fn token_ends(&self, life: Life, now: i64) -> Problem {
        let product = self.client.product();
        let message = format!("the {product} token {}", life.ending(now));
        let fix = match self.client.token().file() {
            Some(file) => format!(
                "put another token into {}; it is taken up by itself",
                file.display()
            ),
            None => "give the agent another token, best in a `token_file`, which is read again".to_owned(),
        };
        Problem::new(ProblemKind::Forbidden, message).with_fix(fix)
    }

    fn certificate_ends(&self, life: Life, now: i64) -> Problem {
        let product = self.client.product();
        let file = self
            .client
            .client_certificate()
            .unwrap_or(Path::new(""))
            .display();
        let message = format!("the client certificate for {product} {}", life.ending(now));
        let fix =
            format!("put its successor into {file}, and the key beside it; both are taken up by themselves");
        Problem::new(ProblemKind::Forbidden, message).with_fix(fix)
    }

    fn lock(&self) -> MutexGuard<'_, LifetimesReading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is past is known: a life in its last third is no reason to ask every few seconds for the rest of it.
pub(super) fn next_look(moments: impl Iterator<Item = i64>, now: i64) -> Duration {
    let to_come = moments.filter_map(|moment| u64::try_from(moment - now).ok().filter(|left| *left > 0));
    let soonest = to_come.min().map_or(LONGEST_PAUSE, Duration::from_secs);
    soonest.clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// As Consul and Nomad answer about a token; the secret in it is not read.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct TokenAnswer {
    create_time: String,
    expiration_time: Option<String>,
}

pub(super) fn life_of_token(answer: TokenAnswer) -> Option<Life> {
    Some(Life {
        start: unix_seconds(&answer.create_time)?,
        end: unix_seconds(answer.expiration_time.as_deref()?)?,
    })
}

/// A file that cannot be read, or holds no certificate, is a rotation half done: connections go on with the former one.
async fn certificate_life(path: &Path, known: Option<Life>) -> Option<Life> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || bounded_file::read_text(&path, MAX_CHAIN_BYTES as u64));
    let Ok(Ok(text)) = read.await else { return known };
    Life::of_certificate(&text, unix_now()).or(known)
}

pub(super) fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// A token that is prolonged in place fires no change.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
const SHORTEST_PAUSE: Duration = Duration::from_secs(5);

/// How soon a token or a certificate in a file is taken up though nothing is asked.
const FRESH: Duration = Duration::from_secs(10);

/// A token with a hundred policies is some 20 KiB.
const ANSWER_BYTES: usize = 1024 * 1024;

#[cfg(test)]
#[path = "lifetimes_tests.rs"]
mod tests;

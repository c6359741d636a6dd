//! When the token and the client certificate end, so that operators hear of it before anything is refused.
//!
//! A login's token is [`super::login`]'s own business: it is replaced in time. One that was given is not, and neither is a
//! certificate: whoever gave them has to.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::call::{Call, Credential};
use super::client::ApiClient;
use crate::model::{Problem, ProblemKind, Redacted};
use crate::sources::bounded_file;
use crate::sources::certificates::{self, MAX_CHAIN_BYTES, PemFault, timestamp};
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
}

/// In Unix seconds. None: there is none, or it has no end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LifetimesReading {
    pub token: Option<i64>,
    pub client_certificate: Option<i64>,
    /// Of each that is in the last third of its life, or has ended.
    pub warnings: Vec<Problem>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Life {
    start: i64,
    end: i64,
}

impl Life {
    fn last_third(self) -> i64 {
        self.end - (self.end - self.start) / 3
    }

    fn has_ended(self, now: i64) -> bool {
        self.end <= now
    }

    fn ending(self, now: i64) -> String {
        let verb = if self.has_ended(now) { "ended" } else { "ends" };
        format!("{verb} at {} and nobody has replaced it", timestamp(self.end))
    }
}

impl Lifetimes {
    pub fn new(client: &ApiClient) -> Self {
        Self {
            client: client.clone(),
            reading: Arc::default(),
        }
    }

    pub fn reading(&self) -> LifetimesReading {
        self.lock().clone()
    }

    /// Looks now, whenever token or certificate are replaced, when one enters the last third of its life, and when it ends.
    pub async fn follow(self, stop: CancellationToken) {
        let mut changes = self.client.token().changes();
        let mut known = Known::default();
        loop {
            changes.mark_unchanged();
            // Before it is read: what is put there meanwhile is read once more, not missed.
            let certificate = self.certificate_stamp().await;
            let pause = self.look(&mut known).await;
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
                () = sleep(pause) => {}
                () = self.certificate_replaced(certificate) => {}
            }
        }
    }

    /// Looks at both files meanwhile. The token's is looked at before each request, too; while every watch waits in a long
    /// poll there is none.
    async fn certificate_replaced(&self, known: Option<Stamp>) {
        loop {
            sleep(FRESH).await;
            self.client.token().refresh(false).await;
            if self.certificate_stamp().await != known {
                return;
            }
        }
    }

    /// None also while the file is away.
    async fn certificate_stamp(&self) -> Option<Stamp> {
        let metadata = tokio::fs::metadata(self.client.client_certificate()?).await;
        Some(stamp_of(&metadata.ok()?))
    }

    /// Returns when to look again.
    async fn look(&self, known: &mut Known) -> Duration {
        let token = self.token_life(known.token.take()).await;
        let certificate = match self.client.client_certificate() {
            Some(path) => certificate_life(path, known.certificate).await,
            None => None,
        };
        known.certificate = certificate;
        known.token = token;
        let token = known.token.as_ref().map(|(_, life)| *life);
        let now = unix_now();
        let is_ending = |life: &Life| life.last_third() <= now;
        let ending: Vec<(Life, Problem)> = [
            token
                .filter(is_ending)
                .map(|life| (life, self.token_ends(life, now))),
            certificate
                .filter(is_ending)
                .map(|life| (life, self.certificate_ends(life, now))),
        ]
        .into_iter()
        .flatten()
        .collect();
        let mut reading = self.lock();
        for (life, problem) in &ending {
            if reading.warnings.contains(problem) {
                continue;
            }
            let fix = problem.fix.as_deref().unwrap_or_default();
            match life.has_ended(now) {
                false => tracing::warn!(%problem, fix, "a credential ends soon"),
                true => tracing::warn!(%problem, fix, "a credential has ended"),
            }
        }
        *reading = LifetimesReading {
            token: token.map(|life| life.end),
            client_certificate: certificate.map(|life| life.end),
            warnings: ending.into_iter().map(|(_, problem)| problem).collect(),
        };
        drop(reading);
        next_look([token, certificate].into_iter().flatten(), now)
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
        if let Some(life) = life_of_identity(&token) {
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
fn next_look(lives: impl Iterator<Item = Life>, now: i64) -> Duration {
    let moments = lives.flat_map(|life| [life.last_third(), life.end]);
    let to_come = moments.filter_map(|moment| u64::try_from(moment - now).ok().filter(|left| *left > 0));
    let soonest = to_come.min().map_or(LONGEST_PAUSE, Duration::from_secs);
    soonest.clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// A workload identity says it itself. Its signature is for those to check who take it.
fn life_of_identity(token: &Redacted<String>) -> Option<Life> {
    #[derive(Deserialize)]
    struct Claims {
        iat: i64,
        exp: i64,
    }
    let mut parts = token.expose().split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    let claims = Redacted::new(BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?);
    let claims: Claims = serde_json::from_slice(claims.expose()).ok()?;
    Some(Life {
        start: claims.iat,
        end: claims.exp,
    })
}

/// As Consul and Nomad answer about a token; the secret in it is not read.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TokenAnswer {
    create_time: String,
    expiration_time: Option<String>,
}

fn life_of_token(answer: TokenAnswer) -> Option<Life> {
    Some(Life {
        start: unix_seconds(&answer.create_time)?,
        end: unix_seconds(answer.expiration_time.as_deref()?)?,
    })
}

/// As both products write times: RFC 3339, in the zone of the server's machine.
pub(super) fn unix_seconds(text: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    Some(time.unix_timestamp())
}

/// A file that cannot be read, or holds no certificate, is a rotation half done: connections go on with the former one.
async fn certificate_life(path: &Path, known: Option<Life>) -> Option<Life> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || bounded_file::read_text(&path, MAX_CHAIN_BYTES as u64));
    let Ok(Ok(text)) = read.await else { return known };
    match certificates::parse_public(&text, unix_now()) {
        Ok(material) => Some(Life {
            start: material.not_before,
            end: material.not_after,
        }),
        // When it began does not matter any more.
        Err(PemFault::Expired(end)) => Some(Life { start: end, end }),
        Err(_) => known,
    }
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

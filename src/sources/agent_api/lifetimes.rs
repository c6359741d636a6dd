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

use super::call::Call;
use super::client::ApiClient;
use super::stamp::{Stamp, stamp_of};
use crate::model::{Problem, ProblemKind, Redacted};
use crate::sources::bounded_file;
use crate::sources::certificates::{self, MAX_CHAIN_BYTES, timestamp};

/// A cheap handle: clones share what was found.
#[derive(Clone, Debug)]
pub struct Lifetimes {
    client: ApiClient,
    // A plain mutex: never held across an await.
    reading: Arc<Mutex<LifetimesReading>>,
}

/// In Unix seconds. None: there is none, or it has no end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LifetimesReading {
    pub token: Option<i64>,
    pub client_certificate: Option<i64>,
    /// One of them is in the last third of its life.
    pub warning: Option<Problem>,
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
        loop {
            changes.mark_unchanged();
            // Before it is read: what is put there meanwhile is read once more, not missed.
            let certificate = self.certificate_stamp().await;
            let pause = self.look().await;
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
    async fn look(&self) -> Duration {
        let token = self.token_life().await;
        let certificate = match self.client.client_certificate() {
            Some(path) => certificate_life(path).await,
            None => None,
        };
        let now = unix_now();
        let is_ending = |life: &Option<Life>| life.is_some_and(|life| life.last_third() <= now);
        let warning = match (token, certificate) {
            (Some(life), _) if is_ending(&token) => Some(self.token_ends(life)),
            (_, Some(life)) if is_ending(&certificate) => Some(self.certificate_ends(life)),
            _ => None,
        };
        let mut reading = self.lock();
        if let Some(problem) = &warning
            && reading.warning.is_none()
        {
            let fix = problem.fix.as_deref().unwrap_or_default();
            tracing::warn!(%problem, fix, "a credential ends soon");
        }
        *reading = LifetimesReading {
            token: token.map(|life| life.end),
            client_certificate: certificate.map(|life| life.end),
            warning,
        };
        drop(reading);
        next_look([token, certificate].into_iter().flatten(), now)
    }

    async fn token_life(&self) -> Option<Life> {
        if self.client.login_status().is_some() {
            return None;
        }
        // A file that was replaced meanwhile counts, whoever asks next.
        self.client.token().refresh(false).await;
        let token = self.client.token().current()?;
        if let Some(life) = life_of_identity(&token) {
            return Some(life);
        }
        let call = Call::get("acl/token/self").max_body(ANSWER_BYTES);
        match self.client.call(call).await {
            Ok(answer) => life_of_token(answer.json().ok()?),
            // No ACLs, no rights, or not reachable: whoever needs the token says so.
            Err(error) => {
                tracing::debug!(%error, "the token's end is not known");
                None
            }
        }
    }

    fn token_ends(&self, life: Life) -> Problem {
        let product = self.client.product();
        let message = format!(
            "the {product} token ends at {} and nobody has replaced it",
            timestamp(life.end)
        );
        let fix = match self.client.token().file() {
            Some(file) => format!(
                "put another token into {}; it is taken up by itself",
                file.display()
            ),
            None => "give the agent another token, best in a `token_file`, which is read again".to_owned(),
        };
        Problem::new(ProblemKind::Forbidden, message).with_fix(fix)
    }

    fn certificate_ends(&self, life: Life) -> Problem {
        let product = self.client.product();
        let file = self
            .client
            .client_certificate()
            .unwrap_or(Path::new(""))
            .display();
        let message = format!(
            "the client certificate for {product} ends at {} and nobody has replaced it",
            timestamp(life.end)
        );
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

async fn certificate_life(path: &Path) -> Option<Life> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || bounded_file::read_text(&path, MAX_CHAIN_BYTES as u64));
    let text = read.await.ok()?.ok()?;
    let material = certificates::parse_public(&text, unix_now()).ok()?;
    Some(Life {
        start: material.not_before,
        end: material.not_after,
    })
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
mod tests {
    use super::*;

    #[test]
    fn an_identity_tells_its_own_life() {
        let identity = |claims: &str| {
            let claims = BASE64_URL_SAFE_NO_PAD.encode(claims);
            life_of_identity(&Redacted::new(format!("e30.{claims}.c2ln")))
        };
        let life = identity(r#"{"iat":1000,"exp":4000,"sub":"x"}"#).unwrap();
        assert_eq!((life.start, life.end, life.last_third()), (1000, 4000, 3000));
        assert_eq!(identity(r#"{"sub":"x"}"#), None);
        let plain = Redacted::new("b1a2c3d4-0000-4000-8000-00000000feed".to_owned());
        assert_eq!(life_of_identity(&plain), None);
    }

    #[test]
    fn a_life_is_looked_at_when_its_last_third_begins_when_it_ends_and_seldom_otherwise() {
        let life = Life { start: 0, end: 900 };
        let pause = |now| next_look([life].into_iter(), now).as_secs();
        assert_eq!(pause(0), 300, "far off");
        assert_eq!(pause(590), 10, "until the last third");
        assert_eq!(pause(599), 5, "never more often");
        assert_eq!(pause(600), 300, "in it, until the end");
        assert_eq!(pause(880), 20, "until the end");
        assert_eq!(pause(900), 300, "ended");
        assert_eq!(pause(100_000), 300);
        let other = Life { start: 0, end: 750 };
        assert_eq!(next_look([life, other].into_iter(), 610).as_secs(), 140);
        assert_eq!(next_look(std::iter::empty(), 0), LONGEST_PAUSE);
    }

    #[test]
    fn times_as_consul_writes_them() {
        assert_eq!(
            unix_seconds("2026-11-26T02:03:04.123456789Z"),
            Some(1_795_658_584)
        );
        assert_eq!(
            unix_seconds("2026-11-26T03:03:04.123456789+01:00"),
            Some(1_795_658_584)
        );
        assert_eq!(unix_seconds("soon"), None);
    }

    #[test]
    fn a_token_s_answer_tells_its_life() {
        let answer = |end: Option<&str>| {
            let (create_time, expiration_time) = ("2026-11-26T02:00:00Z".to_owned(), end.map(str::to_owned));
            life_of_token(TokenAnswer {
                create_time,
                expiration_time,
            })
        };
        assert_eq!(answer(None), None);
        let life = answer(Some("2026-11-26T03:00:00.5Z")).unwrap();
        assert_eq!(life.end - life.start, 3600);
    }
}

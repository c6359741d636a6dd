//! The signed identities (JWT) that the agent logs in with: Nomad's of a task, Kubernetes' of a pod. Their issuer renews
//! them in their file. If it stops, the next login fails: long after the cause, because the token of the last login goes on
//! for a while.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::bounded_file::{self, TOKEN_BYTES};
use super::life::Life;
use super::stamp::{Stamp, stamp_of};
use crate::model::{Problem, ProblemKind, Redacted};

/// A file whose owner renews what is in it.
#[derive(Debug)]
pub(in crate::sources) struct IdentityFile {
    path: PathBuf,
    /// Of the content whose life is known.
    seen: Option<Stamp>,
    life: Option<Life>,
}

impl IdentityFile {
    pub(in crate::sources) fn at(path: PathBuf) -> Self {
        Self {
            path,
            seen: None,
            life: None,
        }
    }

    /// Reads it if it was replaced. None: it is no JWT, or one without an end. A file that is away or empty is a rotation half
    /// done: what was known of it stands.
    pub(in crate::sources) async fn look(&mut self) -> Option<Life> {
        let (path, seen) = (self.path.clone(), self.seen);
        let read = tokio::task::spawn_blocking(move || read_if_changed(&path, seen)).await;
        if let Ok(Ok(Some((stamp, text)))) = read
            && !text.expose().trim().is_empty()
        {
            self.life = life_of(text.expose().trim());
            self.seen = Some(stamp).filter(|_| self.life.is_some());
        }
        self.life
    }

    /// That it ends soon, or has. None: there is time.
    pub(in crate::sources) fn ending(&self, life: Life, product: &str, now: i64) -> Option<Problem> {
        if now < life.last(RENEWED) {
            return None;
        }
        let file = self.path.display();
        let message = format!(
            "the identity in {file}, with which the agent logs in to {product}, {}",
            life.ending(now)
        );
        let fix = format!(
            "see why its issuer does not renew it, and put its successor into {file}; it is taken up by itself"
        );
        Some(Problem::new(ProblemKind::Forbidden, message).with_fix(fix))
    }
}

fn read_if_changed(path: &Path, known: Option<Stamp>) -> std::io::Result<Option<(Stamp, Redacted<String>)>> {
    let stamp = stamp_of(&std::fs::metadata(path)?);
    if known == Some(stamp) {
        return Ok(None);
    }
    let text = bounded_file::read_text(path, TOKEN_BYTES)?;
    Ok(Some((stamp, Redacted::new(text))))
}

/// It says it itself. Its signature is for those to check who take it.
pub(in crate::sources) fn life_of(token: &str) -> Option<Life> {
    #[derive(Deserialize)]
    struct Claims {
        iat: Option<Seconds>,
        nbf: Option<Seconds>,
        exp: Seconds,
    }
    let mut parts = token.split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    let claims = Redacted::new(BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?);
    let claims: Claims = serde_json::from_slice(claims.expose()).ok()?;
    let end = claims.exp.whole()?;
    // One that does not say when it began is told when it has ended.
    let start = claims.iat.or(claims.nbf).and_then(Seconds::whole).unwrap_or(end);
    Some(Life { start, end })
}

/// A date in a JWT: seconds, with a fraction if its issuer likes.
#[derive(Clone, Copy, Deserialize)]
#[serde(transparent)]
struct Seconds(f64);

impl Seconds {
    fn whole(self) -> Option<i64> {
        // To the end of the year 9999: beyond that nobody means a date.
        (0.0..253_402_300_800.0)
            .contains(&self.0)
            .then_some(self.0 as i64)
    }
}

/// Nomad renews an identity at half of its life, Kubernetes at four fifths, and its volumes lag by a minute: who has one in the
/// last tenth is not getting another.
pub(in crate::sources) const RENEWED: i64 = 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sources::damage::damaged_json;

    fn jwt(claims: &str) -> String {
        let claims = BASE64_URL_SAFE_NO_PAD.encode(claims);
        format!("e30.{claims}.c2ln")
    }

    #[test]
    fn an_identity_tells_its_own_life() {
        let life = |claims: &str| life_of(&jwt(claims)).map(|life| (life.start, life.end));
        assert_eq!(life(r#"{"iat":1000,"exp":4000,"sub":"x"}"#), Some((1000, 4000)));
        assert_eq!(life(r#"{"nbf":900,"exp":4000.75}"#), Some((900, 4000)));
        assert_eq!(life(r#"{"exp":4000}"#), Some((4000, 4000)));
        for none in [
            r#"{"sub":"x"}"#,
            r#"{"exp":"soon"}"#,
            r#"{"exp":-1}"#,
            r#"{"exp":1e300}"#,
            "[]",
        ] {
            assert_eq!(life(none), None, "{none}");
        }
        for none in ["b1a2c3d4-0000-4000-8000-00000000feed", "a.b.c", ".."] {
            assert_eq!(life_of(none), None, "{none}");
        }
    }

    #[tokio::test]
    async fn a_file_is_read_again_when_it_was_replaced_and_half_of_one_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity.jwt");
        let write = |text: &str| {
            let next = directory.path().join("next");
            std::fs::write(&next, text).unwrap();
            std::fs::rename(&next, &path).unwrap();
        };
        let mut file = IdentityFile::at(path.clone());
        assert_eq!(file.look().await, None, "not there yet");
        write(&jwt(r#"{"iat":1000,"exp":2000}"#));
        let first = file.look().await.unwrap();
        assert_eq!((first.start, first.end), (1000, 2000));
        assert_eq!(file.ending(first, "Consul", 1899), None);
        for (now, verb) in [(1900, "ends"), (2000, "ended")] {
            let said = file.ending(first, "Consul", now).unwrap();
            assert!(said.message.contains("logs in to Consul"), "{said}");
            assert!(
                said.message
                    .contains(&format!(", {verb} at 1970-01-01T00:33:20Z")),
                "{said}"
            );
            assert!(said.fix.unwrap().contains("identity.jwt"));
        }
        write(" \n");
        assert_eq!(file.look().await, Some(first), "half written");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.look().await, Some(first), "about to be renamed into place");
        write(&format!("{}\n", jwt(r#"{"iat":2000,"exp":3000}"#)));
        assert_eq!(file.look().await.unwrap().end, 3000);
        // Another program's secret: nothing is known of it, and it is looked at again.
        write("no jwt");
        assert_eq!(file.look().await, None);
        std::fs::write(&path, jwt(r#"{"iat":3000,"exp":4000}"#)).unwrap();
        assert_eq!(file.look().await.unwrap().end, 4000);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Anybody's text: none, or a date that somebody means.
        #[test]
        fn fuzz_identities(claims in damaged_json(r#"{"iat":1000,"nbf":900,"exp":4000.75,"sub":"x"}"#), bytes in "\\PC{0,40}") {
            let token = format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims));
            for life in [life_of(&token), life_of(&bytes)].into_iter().flatten() {
                prop_assert!((0..253_402_300_800).contains(&life.start) && (0..253_402_300_800).contains(&life.end));
            }
        }
    }
}

//! Tells of the ends of what the agent shows to Vault and does not replace itself: the client certificate, the identity of a
//! login, a secret id. Whoever gave it has to give its successor, too.

use std::path::{Path, PathBuf};

use super::client::Shared;
use super::freshness::unix_now;
use super::settings::{SecretId, VaultAuth};
use crate::model::{Problem, ProblemKind};
use crate::sources::identity::IdentityFile;
use crate::sources::life::{GIVEN, Life};

pub(super) struct Ends {
    /// A JWT.
    identity: Option<IdentityFile>,
    /// The file of the wrapping token, where the secret id came wrapped. Of one that was given as it is, nobody knows the end
    /// who may only log in.
    secret_id: Option<PathBuf>,
}

impl Ends {
    pub(super) fn of(auth: &VaultAuth) -> Self {
        let identity = match auth {
            VaultAuth::Jwt { jwt_file, .. } | VaultAuth::Kubernetes { jwt_file, .. } => {
                Some(IdentityFile::at(jwt_file.clone()))
            }
            _ => None,
        };
        let secret_id = match auth {
            VaultAuth::AppRole {
                secret_id: SecretId::Wrapped(file),
                ..
            } => Some(file.clone()),
            _ => None,
        };
        Self { identity, secret_id }
    }

    /// Looks at them now; says what is new in the log.
    pub(super) async fn note(&mut self, shared: &Shared) {
        let identity = match &mut self.identity {
            Some(file) => file.look().await,
            None => None,
        };
        let now = unix_now();
        let mut ending: Vec<(Life, Problem)> = Vec::new();
        if let Some((file, life)) = shared.transport.identity() {
            ending.extend(certificate_ends(file, life, now));
        }
        if let (Some(file), Some(life)) = (&self.identity, identity) {
            ending.extend(file.ending(life, "Vault", now).map(|problem| (life, problem)));
        }
        let mut secret_id = None;
        if let Some(file) = &self.secret_id {
            // While one is being unwrapped, the end of the one before stands.
            secret_id = shared.secret_ids.borrow().life();
            ending.extend(secret_id.and_then(|life| secret_id_ends(file, life, now)));
        }
        let said = shared.freshness.status().ending;
        for (life, problem) in &ending {
            life.log(problem, &said, now);
        }
        let problems: Vec<Problem> = ending.into_iter().map(|(_, problem)| problem).collect();
        shared.freshness.update(|status| {
            status.login_identity_expires = identity.map(|life| life.end);
            status.secret_id_expires = secret_id.map(|life| life.end);
            status.ending = problems;
        });
    }
}

fn certificate_ends(file: &Path, life: Life, now: i64) -> Option<(Life, Problem)> {
    if now < life.last(GIVEN) {
        return None;
    }
    let message = format!("the client certificate for Vault {}", life.ending(now));
    let fix = format!(
        "Put its successor into {}, and the key beside it; both are taken up by themselves.",
        file.display()
    );
    Some((life, Problem::new(ProblemKind::Forbidden, message).with_fix(fix)))
}

fn secret_id_ends(file: &Path, life: Life, now: i64) -> Option<(Life, Problem)> {
    if now < life.last(GIVEN) {
        return None;
    }
    let file = file.display();
    let message = format!(
        "the secret id that came wrapped in {file}, with which the agent logs in to Vault, {}",
        life.ending(now)
    );
    let fix = format!(
        "Deliver a new one into {file} (`vault write -wrap-ttl=... -f auth/<mount>/role/<role>/secret-id`); it is unwrapped \
         at once."
    );
    Some((life, Problem::new(ProblemKind::Forbidden, message).with_fix(fix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_third_and_the_end_are_told() {
        let life = Life {
            start: 1_000,
            end: 4_000,
        };
        for (ending, what) in [
            (
                certificate_ends as fn(&Path, Life, i64) -> Option<(Life, Problem)>,
                "the client certificate for Vault",
            ),
            (
                secret_id_ends,
                "the secret id that came wrapped in /c.pem, with which the agent logs in to Vault,",
            ),
        ] {
            let said = |now: i64| {
                let (_, problem) = ending(Path::new("/c.pem"), life, now)?;
                assert!(problem.fix?.contains("/c.pem"));
                Some(problem.message.to_string())
            };
            assert_eq!(said(2_999), None);
            let ends = format!("{what} ends at 1970-01-01T01:06:40Z and nobody has replaced it");
            assert_eq!(said(3_000).as_ref(), Some(&ends));
            assert_eq!(said(3_999).as_ref(), Some(&ends));
            let ended = format!("{what} ended at 1970-01-01T01:06:40Z and nobody has replaced it");
            assert_eq!(said(4_000), Some(ended));
        }
    }
}

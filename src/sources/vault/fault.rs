//! Why Vault did not do what was asked, in words an operator can act on: what was asked, where, what came back,
//! and what to change.

use std::sync::Arc;

use crate::model::{Problem, ProblemKind};
use crate::sources::agent_api::error::NO_TLS;

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{asked}: {reason}")]
pub struct VaultFault {
    /// Method, address and path.
    pub asked: Arc<str>,
    /// The path below `/v1/`, as a policy names it, and the capability it needs.
    pub(super) path: Arc<str>,
    pub(super) capability: &'static str,
    pub reason: Reason,
    /// It never came to the request itself: there was no token to send it with, or Vault turned the token away.
    pub(super) not_sent: bool,
    /// Vault knew the token before, or knows it still: it is clear whether the token or a right is what is missing.
    pub(super) told_apart: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("Vault cannot be reached ({0})")]
    Unreachable(String),
    #[error("no answer ({0})")]
    NoAnswer(String),
    #[error("Vault is sealed or in maintenance{}", said(if .0 == "Vault is sealed" { "" } else { .0 }))]
    Sealed(String),
    #[error("Vault is not initialised")]
    Uninitialised,
    #[error("this Vault is a standby and its redirect was not followed: {0}")]
    Standby(String),
    #[error("this Vault is a standby, and no server of its cluster is active")]
    NoActiveServer,
    #[error("Vault asks for fewer requests (429)")]
    Overloaded,
    #[error("Vault answered {status}{}", said(.errors))]
    ServerError { status: u16, errors: String },
    #[error("the token is invalid or has expired{}", said(.0))]
    TokenInvalid(String),
    #[error("permission denied{}", said_more(.0))]
    Forbidden(String),
    #[error("there is nothing at this path{}", said(.0))]
    NotFound(String),
    #[error("no secrets engine is mounted at this path")]
    NoMount,
    /// Vault does not tell these two apart to this token.
    #[error("Vault shows no mount here: there is none, or the token may do nothing below it")]
    NoMountSeen,
    #[error("no secrets engine of type pki is mounted at this path (it would answer this to everybody)")]
    NoPki,
    #[error("version {version} of the secret is {how}")]
    Deleted { version: u64, how: &'static str },
    #[error("Vault refused ({status}){}", said(.errors))]
    Refused { status: u16, errors: String },
    #[error("Vault refused the login ({status}){}", said(.errors))]
    LoginRefused { status: u16, errors: String },
    /// The same, of what counts towards a lock of the role.
    #[error("Vault refused the login ({status}){}", said(.errors))]
    CredentialRefused { status: u16, errors: String },
    /// A lock, or one of the other things of which Vault says no more than these two words.
    #[error("Vault refused the login (403): permission denied")]
    LoginLocked { by: &'static str, refused_before: bool },
    #[error("{0}")]
    Unusable(String),
    #[error("the answer is larger than {} KiB", super::answer::MAX_BODY_BYTES / 1024)]
    TooLarge,
    #[error("the path {0:?} is not one that Vault can hold")]
    BadPath(String),
    #[error("the credential from {path} cannot be used ({reason})")]
    Credential { path: String, reason: String },
    #[error("the wrapping token in {path} cannot be used: {what}")]
    Wrapping { path: String, what: String },
    #[error("the mount is KV version {found}, and the document says version {configured}")]
    KvVersion { found: u8, configured: u8 },
    #[error("the mount is of type {0:?}, not kv")]
    NotKv(String),
}

impl VaultFault {
    pub fn kind(&self) -> ProblemKind {
        match &self.reason {
            Reason::Unreachable(_)
            | Reason::NoAnswer(_)
            | Reason::Sealed(_)
            | Reason::Uninitialised
            | Reason::Standby(_)
            | Reason::NoActiveServer
            | Reason::Overloaded
            | Reason::ServerError { .. } => ProblemKind::Unavailable,
            Reason::TokenInvalid(_) if self.told_apart => ProblemKind::TokenNotAccepted,
            Reason::Forbidden(_) if self.told_apart => ProblemKind::MissingPermission,
            Reason::TokenInvalid(_)
            | Reason::Forbidden(_)
            | Reason::NoMountSeen
            | Reason::LoginRefused { .. }
            | Reason::CredentialRefused { .. }
            | Reason::LoginLocked { .. }
            | Reason::Wrapping { .. }
            | Reason::Credential { .. } => ProblemKind::Forbidden,
            Reason::NotFound(_) => ProblemKind::NotFound,
            Reason::NoMount | Reason::NoPki | Reason::NotKv(_) => ProblemKind::WrongMount,
            Reason::KvVersion { .. } => ProblemKind::WrongKvVersion,
            Reason::Deleted { .. } => ProblemKind::Deleted,
            Reason::Refused { .. } | Reason::BadPath(_) => ProblemKind::Refused,
            Reason::Unusable(_) => ProblemKind::Invalid,
            Reason::TooLarge => ProblemKind::Limit,
        }
    }

    /// Whether the server may have carried the request out all the same.
    pub fn may_have_happened(&self) -> bool {
        match self.reason {
            // A consistency miss: turned away before anything was done.
            Reason::ServerError { status: 412, .. } => false,
            Reason::NoAnswer(_) | Reason::ServerError { .. } | Reason::Unusable(_) | Reason::TooLarge => {
                !self.not_sent
            }
            _ => false,
        }
    }

    pub(super) fn before_sending(mut self) -> Self {
        self.not_sent = true;
        self
    }

    pub(super) fn told_apart(mut self) -> Self {
        self.told_apart = true;
        self
    }

    pub fn problem(&self) -> Problem {
        Problem::new(self.kind(), self.to_string()).with_fix(self.fix())
    }

    /// Of a request that was refused and that is done without.
    pub(super) fn lacking_rule(&self, consequence: &str) -> Problem {
        let message = format!(
            "the policy of the agent's Vault token lacks {}: {consequence}",
            self.rule()
        );
        Problem::new(ProblemKind::MissingPermission, message).with_fix("Add the rule to the policy.")
    }

    fn rule(&self) -> String {
        format!(
            "path \"{}\" {{ capabilities = [\"{}\"] }}",
            self.path, self.capability
        )
    }

    fn fix(&self) -> String {
        let path = &self.path;
        match &self.reason {
            Reason::Unreachable(why) if why.contains("peer certificate") => {
                "Set ca_file (or ca_path) to the authority of Vault's certificate, or tls_server_name to a name in it."
                    .to_owned()
            }
            Reason::Unreachable(why) | Reason::NoAnswer(why) if why == NO_TLS => {
                "Write http:// in Vault's address, or name the port where it speaks TLS.".to_owned()
            }
            Reason::Unreachable(_) | Reason::NoAnswer(_) => {
                "Check the address, the network and that Vault runs; it is tried again by itself.".to_owned()
            }
            Reason::Sealed(_) => "Unseal Vault; it is tried again by itself.".to_owned(),
            Reason::Uninitialised => "Initialise Vault (`vault operator init`), or correct the address.".to_owned(),
            Reason::Standby(_) => {
                "Set api_addr of every Vault server to an address that this machine reaches over the same scheme."
                    .to_owned()
            }
            Reason::NoActiveServer => {
                "An election takes seconds; if this lasts, see `vault operator raft list-peers` and the servers' own logs. It \
                 is tried again by itself."
                    .to_owned()
            }
            Reason::Overloaded => "Raise the rate limit quota, or lengthen the poll interval.".to_owned(),
            Reason::ServerError {
                status: 502..=504,
                errors,
            } if errors.is_empty() => {
                "That is a proxy's answer rather than Vault's: look whether Vault runs behind it. It is tried again by itself."
                    .to_owned()
            }
            Reason::ServerError { .. } => "See Vault's own log; it is tried again by itself.".to_owned(),
            // Vault says the same of a token that it does not know, and of one that may not ask about itself.
            Reason::TokenInvalid(_) if path.starts_with("auth/token/") => format!(
                "Give the agent a new token, or an auth method with which it can get one itself. If this one is good, add to \
                 its policy: {}",
                self.rule()
            ),
            Reason::TokenInvalid(_) => {
                "Give the agent a new token, or an auth method with which it can get one itself.".to_owned()
            }
            Reason::Forbidden(_) if path.starts_with("auth/") || path.starts_with("sys/") => {
                format!("Add to the policy of the agent's token: {}", self.rule())
            }
            // To a token that may do nothing below it, Vault says the same of a mount that it does not have.
            Reason::Forbidden(_) => format!(
                "If the mount is right (`vault secrets list`), add to the policy of the agent's token: {}",
                self.rule()
            ),
            Reason::NotFound(_) => format!(
                "Check the mount and the path: `vault read {path}` with the agent's token must show the secret."
            ),
            Reason::NoMount | Reason::NoPki => {
                "Compare the mount's name with `vault secrets list` (in the agent's namespace, if there is one), and correct \
                 the document or mount the engine."
                    .to_owned()
            }
            Reason::NoMountSeen => format!(
                "Compare the mount's name with `vault secrets list`; if it is there, add to the policy of the agent's token: \
                 {} (of KV version 1: without \"data/\")",
                self.rule()
            ),
            Reason::Deleted { .. } => {
                "Write a new version, or undelete this one (`vault kv undelete`).".to_owned()
            }
            Reason::Refused { .. } => {
                format!("Change the document, or what Vault allows at {path}, by what Vault says.")
            }
            // Vault's whole answer to a login at a mount that it does not have.
            Reason::LoginRefused { status: 403, errors } if errors == "permission denied" => format!(
                "Check that an auth method is mounted there (`vault auth list`: {path:?} is what was asked), then the role \
                 and the credential."
            ),
            Reason::LoginRefused { .. } => {
                "Check the role, its bound claims and the credential (a secret_id may be used up or expired)."
                    .to_owned()
            }
            Reason::CredentialRefused { .. } => {
                "Check the role and the credential (a secret_id may be used up or expired). Another credential is tried as soon \
                 as it is there; this one seldom, because Vault locks the role for everybody after 5 failed logins. `portreeve \
                 refresh` tries it at once."
                    .to_owned()
            }
            Reason::LoginLocked { by, refused_before: true } => format!("{} It is tried again by itself.", lock(by)),
            Reason::LoginLocked { by, .. } => format!(
                "Check that an auth method is mounted there (`vault auth list`: {path:?} is what was asked). If it is: {} It is \
                 tried again by itself.",
                lock(by)
            ),
            Reason::Unusable(_) => "Check that the address is Vault's, and not a web page's.".to_owned(),
            Reason::TooLarge => "Store one certificate and one key per secret.".to_owned(),
            Reason::BadPath(_) => {
                "Name mount and path without empty parts, \"..\" and control characters.".to_owned()
            }
            Reason::Credential { .. } => {
                "Put it there, readable for the agent's user, or correct the path in the settings: it is looked at again by itself."
                    .to_owned()
            }
            Reason::Wrapping { .. } => {
                "Deliver a new one (`vault write -wrap-ttl=... -f auth/<mount>/role/<role>/secret-id`). If nobody of yours \
                 used it, the secret id is known to somebody else: destroy it by its accessor."
                    .to_owned()
            }
            Reason::KvVersion { found, .. } => format!("Set kv_version = {found} in the document, or leave it out."),
            Reason::NotKv(_) => "Name the mount of a kv secrets engine.".to_owned(),
        }
    }
}

impl From<VaultFault> for Problem {
    fn from(fault: VaultFault) -> Self {
        fault.problem()
    }
}

fn lock(by: &str) -> String {
    format!(
        "Vault may have locked this {what} for 15 minutes after failed logins (user lockout): `vault read sys/locked-users` shows \
         it, `vault write -f sys/locked-users/<mount accessor>/unlock/<{by}>` ends it.",
        what = if by == "role id" { "role" } else { "user" },
    )
}

/// Vault's own text for a 403 is mostly these two words again.
fn said_more(errors: &str) -> String {
    if errors.ends_with("permission denied") {
        String::new()
    } else {
        said(errors)
    }
}

fn said(errors: &str) -> String {
    if errors.is_empty() {
        String::new()
    } else {
        format!(": {errors}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(reason: Reason) -> VaultFault {
        VaultFault {
            asked: "GET https://vault:8200/v1/secret/data/www".into(),
            path: "secret/data/www".into(),
            capability: "read",
            reason,
            not_sent: false,
            told_apart: false,
        }
    }

    #[test]
    fn an_unknown_token_is_told_from_a_missing_right_where_vault_tells() {
        let reasons = [
            (Reason::TokenInvalid(String::new()), ProblemKind::TokenNotAccepted),
            (
                Reason::Forbidden("permission denied".to_owned()),
                ProblemKind::MissingPermission,
            ),
        ];
        for (reason, told) in reasons {
            assert_eq!(fault(reason.clone()).kind(), ProblemKind::Forbidden);
            assert_eq!(fault(reason).told_apart().kind(), told);
        }
        let login = Reason::LoginRefused {
            status: 403,
            errors: String::new(),
        };
        assert_eq!(fault(login).told_apart().kind(), ProblemKind::Forbidden);
    }

    #[test]
    fn a_refusal_says_what_the_policy_lacks() {
        let problem = fault(Reason::Forbidden("permission denied".to_owned())).problem();
        assert_eq!(problem.kind, ProblemKind::Forbidden);
        assert_eq!(
            problem.message.as_ref(),
            "GET https://vault:8200/v1/secret/data/www: permission denied"
        );
        assert_eq!(
            problem.fix.as_deref(),
            Some(
                "If the mount is right (`vault secrets list`), add to the policy of the agent's token: path \
                 \"secret/data/www\" { capabilities = [\"read\"] }"
            )
        );
    }

    #[test]
    fn a_sealed_vault_says_so_once() {
        let said = |errors: &str| Reason::Sealed(errors.to_owned()).to_string();
        for errors in ["", "Vault is sealed"] {
            assert_eq!(said(errors), "Vault is sealed or in maintenance");
        }
        assert_eq!(said("moving"), "Vault is sealed or in maintenance: moving");
    }

    #[test]
    fn only_an_answerless_or_failed_request_may_have_happened() {
        assert!(fault(Reason::NoAnswer("timeout".to_owned())).may_have_happened());
        assert!(
            fault(Reason::ServerError {
                status: 500,
                errors: String::new()
            })
            .may_have_happened()
        );
        assert!(
            !fault(Reason::NoAnswer("no login yet".to_owned()))
                .before_sending()
                .may_have_happened()
        );
        for reason in [
            Reason::Unreachable("refused".to_owned()),
            Reason::Sealed(String::new()),
            Reason::NoActiveServer,
            Reason::Overloaded,
            Reason::Forbidden(String::new()),
            Reason::Refused {
                status: 400,
                errors: String::new(),
            },
            Reason::ServerError {
                status: 412,
                errors: String::new(),
            },
        ] {
            assert!(!fault(reason).may_have_happened());
        }
    }
}

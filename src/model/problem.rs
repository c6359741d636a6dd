use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a source could not deliver, in words that every source shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// Not reachable, sealed, standby, without a leader, overloaded: waiting helps.
    Unavailable,
    /// Turned away, for another reason than the four below or without a word of which it is: a refused login, a file that may
    /// not be read, a server that says the same of a token that it does not know and of a right that is missing.
    Forbidden,
    /// The server does not know the token: never one, deleted, revoked, or past its end.
    TokenNotAccepted,
    /// The server knows the token, and it may not do this.
    MissingPermission,
    /// The server was asked without a token, and does not let everybody do this.
    NoToken,
    /// The server's own settings keep the request out, whatever the token.
    Blocked,
    /// Answered, and it is not there.
    NotFound,
    /// There, and deleted (a KV v2 version).
    Deleted,
    /// Answered, and unusable: wrong shape, a field that is not there, not valid yet.
    Invalid,
    /// A certificate, its key, an authority or a revocation list that is none, or not in a form that can be used.
    Malformed,
    /// A private key that belongs to another certificate.
    KeyMismatch,
    /// A certificate, an authority or a revocation list whose time is over.
    Expired,
    /// Nothing is mounted there, or another engine.
    WrongMount,
    /// The mount is of another version of KV than the document says.
    WrongKvVersion,
    /// The request itself was refused (bad role, name not allowed): the document or the server's set-up must change.
    Refused,
    /// A bound of ours or of the server was reached.
    Limit,
}

impl ProblemKind {
    /// Asking again changes nothing until somebody grants something, or brings another token.
    pub fn is_refusal(self) -> bool {
        matches!(
            self,
            Self::Forbidden
                | Self::TokenNotAccepted
                | Self::MissingPermission
                | Self::NoToken
                | Self::Blocked
        )
    }
}

/// One problem of one watch. It is a value: it travels beside the last good data, it never replaces it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Problem {
    pub kind: ProblemKind,
    /// What happened, with the address and path asked.
    pub message: Arc<str>,
    /// What to do about it.
    pub fix: Option<Arc<str>>,
}

impl Problem {
    pub fn new(kind: ProblemKind, message: impl Into<Arc<str>>) -> Self {
        Self {
            kind,
            message: message.into(),
            fix: None,
        }
    }

    /// What to do: the source's own advice, or what its kind of trouble asks for.
    pub fn advice(&self) -> &str {
        self.fix.as_deref().unwrap_or(match self.kind {
            ProblemKind::Unavailable => {
                "check that the server runs and can be reached from here; the agent asks again by itself"
            }
            ProblemKind::TokenNotAccepted => "give the agent a token that the server knows",
            ProblemKind::Forbidden | ProblemKind::MissingPermission => {
                "give the agent's token the right to read it"
            }
            ProblemKind::NoToken => "give the agent a token that has the right to read it",
            ProblemKind::Blocked => "let the request in where the server's settings keep it out",
            ProblemKind::NotFound => "create it, or name another one",
            ProblemKind::Deleted => "write it again, or name another one",
            ProblemKind::Invalid => "correct what is named above",
            ProblemKind::Malformed => "store it again as it was issued, in PEM",
            ProblemKind::KeyMismatch => "store the key and the certificate that were issued together",
            ProblemKind::Expired => "store one that is in date",
            ProblemKind::WrongMount => "name the mount of the right secrets engine, or mount it",
            ProblemKind::WrongKvVersion => "name the mount's version in the document, or none",
            ProblemKind::Refused => "change what the document asks for, or what the server allows",
            ProblemKind::Limit => "stay below the bound",
        })
    }

    pub fn with_fix(mut self, fix: impl Into<Arc<str>>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

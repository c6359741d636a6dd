//! What can go wrong when Consul or Nomad is asked, and what an operator is told about it.
//!
//! Each message says what was asked, of whom, and what came back; the fix says what to do. Bodies of error answers are
//! plain text to both and are cut at 1 KiB, but those that list what failed of a transaction.

use std::error::Error as _;
use std::time::Duration;

use thiserror::Error;

use super::product::{Product, Server};
use crate::model::{Problem, ProblemKind};

#[derive(Debug, Error)]
pub enum ApiError {
    #[error("{server} did not answer {asked}: {reason}")]
    Transport {
        server: Server,
        asked: String,
        failure: TransportFailure,
        reason: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{server} answered {asked}{} with {status}: {body}", without_token(*anonymous))]
    Status {
        server: Server,
        asked: String,
        status: u16,
        /// At most what the call keeps of it.
        body: Box<str>,
        index: Option<u64>,
        retry_after: Option<Duration>,
        /// Refused with 403 to an agent that has no token to show.
        anonymous: bool,
        fix: Option<Box<str>>,
    },
    #[error("{server} answered {asked} with more than {limit} bytes")]
    TooLarge {
        server: Server,
        asked: String,
        limit: usize,
    },
    #[error("{server} answered {asked} with something that cannot be read: {reason}")]
    Unreadable {
        server: Server,
        asked: String,
        reason: String,
    },
    /// Never sent, because there is no token to send it with.
    #[error("{asked} was not sent: {}", problem.message)]
    NoToken { asked: String, problem: Box<Problem> },
    /// Never sent.
    #[error("{asked} was not sent: {reason}")]
    NotSent { asked: String, reason: String },
    #[error("Consul refused the transaction: {}", failures.iter().map(|f| f.what.as_str()).collect::<Vec<_>>().join("; "))]
    TxnFailed { failures: Vec<TxnFailure> },
    #[error(
        "a transaction of {operations} operations and {bytes} bytes exceeds Consul's limit of {max_operations} operations and {max_bytes} bytes"
    )]
    TxnTooLarge {
        operations: usize,
        bytes: usize,
        max_operations: usize,
        max_bytes: usize,
    },
}

/// Why one operation made a whole transaction fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnFailure {
    /// Position among the operations sent.
    pub operation: usize,
    pub what: String,
}

/// How a request ended without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportFailure {
    /// No connection came about: refused, unreachable, no such name.
    Connect,
    /// Its certificate is not one to believe.
    Untrusted,
    /// It wants a client certificate, and has none of ours or refuses it.
    Unwelcome,
    TimedOut,
    /// It answers, and not in TLS.
    PlainText,
    /// The connection was there and ended before the answer did.
    Cut,
}

impl ApiError {
    pub fn kind(&self) -> ProblemKind {
        match self {
            Self::Transport { .. } => ProblemKind::Unavailable,
            Self::Status {
                server,
                status,
                body,
                anonymous,
                ..
            } => match status {
                403 if Block::of(server.product, body).is_some() => ProblemKind::Blocked,
                401 | 403 | 500 if is_unknown_token(body) => ProblemKind::TokenNotAccepted,
                403 if *anonymous => ProblemKind::NoToken,
                // Nomad says the same of a token that it does not know.
                403 if server.product == Product::Consul => ProblemKind::MissingPermission,
                401 | 403 => ProblemKind::Forbidden,
                404 => ProblemKind::NotFound,
                413 => ProblemKind::Limit,
                429 => ProblemKind::Unavailable,
                // 1.8.7 answers 500 where newer versions answer 400 to a filter they cannot evaluate.
                500 if is_bad_filter(body) => ProblemKind::Refused,
                500.. => ProblemKind::Unavailable,
                _ => ProblemKind::Refused,
            },
            Self::TooLarge { .. } | Self::TxnTooLarge { .. } => ProblemKind::Limit,
            Self::Unreadable { .. } => ProblemKind::Invalid,
            // What was refused is a login: there is no token yet that could be unknown or lack a right.
            Self::NoToken { problem, .. }
                if problem.kind.is_refusal() && problem.kind != ProblemKind::Blocked =>
            {
                ProblemKind::Forbidden
            }
            Self::NoToken { problem, .. } => problem.kind,
            Self::NotSent { .. } | Self::TxnFailed { .. } => ProblemKind::Refused,
        }
    }

    /// It says something about what the agent may do, not about what everybody may.
    pub(in crate::sources) fn is_lack_of_rights(&self) -> bool {
        self.status() == Some(403) && self.kind() != ProblemKind::Blocked
    }

    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    pub fn problem(&self) -> Problem {
        let problem = Problem::new(self.kind(), self.to_string());
        match self.fix() {
            Some(fix) => problem.with_fix(fix),
            None => problem,
        }
    }

    fn fix(&self) -> Option<String> {
        match self {
            Self::Status { fix: Some(fix), .. } => Some(fix.to_string()),
            Self::Status {
                status: 429 | 503,
                server,
                ..
            } if server.product == Product::Consul => {
                Some("Consul limits its callers; see request_limits and http_max_conns_per_client".to_owned())
            }
            Self::Status {
                status: 500, body, ..
            } if is_bad_filter(body) => Some("correct the filter expression of this service".to_owned()),
            Self::Status {
                status: 300..=399,
                server,
                ..
            } => Some(format!(
                "{} must name {} itself, or a proxy that passes paths through",
                server.product.address_variable(),
                server.product
            )),
            Self::Transport {
                failure: TransportFailure::Connect,
                server,
                ..
            } => Some(match server.product {
                // Asked by `portreeve setup` alone, which has no settings.
                Product::Vault => "check that Vault runs there, or name another address in VAULT_ADDR".to_owned(),
                product => format!(
                    "check that the {product} agent runs there, or name another address: in the settings (address), on the command line, or in {}",
                    product.address_variable()
                ),
            }),
            Self::Transport {
                failure: TransportFailure::Untrusted,
                server,
                ..
            } => Some(format!(
                "set ca_file ({}) to the authority that signed its certificate, and tls_server_name to the name in it, if the address has another",
                server.product.ca_variable()
            )),
            Self::Transport {
                failure: TransportFailure::Unwelcome,
                server,
                ..
            } => Some(format!(
                "{} asks for a client certificate: set client_cert and client_key to one that it trusts and that has not expired",
                server.product
            )),
            Self::Transport {
                failure: TransportFailure::PlainText,
                server,
                ..
            } => Some(format!(
                "write http:// in its address ({}), or name the port where {} speaks TLS",
                server.product.address_variable(),
                server.product
            )),
            Self::Transport {
                failure: TransportFailure::Cut,
                server,
                ..
            } => Some(match server.product {
                // HTTP/2, where one connection carries many polls.
                Product::Consul => {
                    "if this repeats, raise limits.http_max_conns_per_client of the Consul agent or use its HTTPS port".to_owned()
                }
                Product::Nomad => {
                    "if this repeats, raise limits.http_max_conns_per_client of the Nomad agent".to_owned()
                }
                Product::Vault => "try again; if this repeats, look into Vault's own log, and that of a proxy before it".to_owned(),
            }),
            Self::NoToken { problem, .. } => problem.fix.as_ref().map(ToString::to_string),
            Self::TxnTooLarge { .. } => Some("write fewer or smaller documents at a time".to_owned()),
            _ => None,
        }
    }
}

impl TransportFailure {
    pub(in crate::sources) fn of(error: &reqwest::Error) -> Self {
        // Connect first: a connect that timed out is no sign of a long poll gone wrong.
        if let Some(rustls::Error::InvalidCertificate(_)) = tls_error(error) {
            Self::Untrusted
        } else if let Some(failure) = Self::of_words(&innermost_reason(error)) {
            failure
        } else if error.is_connect() {
            Self::Connect
        } else if error.is_timeout() {
            Self::TimedOut
        } else {
            Self::Cut
        }
    }

    /// Of a connection that did not come about.
    pub(super) fn of_connecting(error: &std::io::Error) -> Self {
        match tls_error(error) {
            Some(rustls::Error::InvalidCertificate(_)) => Self::Untrusted,
            _ => Self::of_words(&error.to_string()).unwrap_or(Self::Connect),
        }
    }

    /// What the words alone tell.
    pub(super) fn of_words(reason: &str) -> Option<Self> {
        if is_about_our_certificate(reason) {
            Some(Self::Unwelcome)
        } else {
            (without_jargon(reason) == NO_TLS).then_some(Self::PlainText)
        }
    }
}

/// What is said where TLS meets a server that does not speak it.
pub(in crate::sources) const NO_TLS: &str = "the server there answers without TLS";

/// What rustls calls the first bytes of such an answer says nothing to whoever wrote `https`.
pub(in crate::sources) fn without_jargon(reason: &str) -> &str {
    match reason.contains("InvalidContentType") {
        true => NO_TLS,
        false => reason,
    }
}

/// With TLS 1.3 a server says so after the handshake, and HTTP/2 hands on no more than the words.
fn is_about_our_certificate(reason: &str) -> bool {
    let alert = reason.strip_prefix("received fatal alert: ");
    alert.is_some_and(|alert| OUR_CERTIFICATE.contains(&alert))
}

const OUR_CERTIFICATE: [&str; 7] = [
    "CertificateRequired",
    "BadCertificate",
    "UnsupportedCertificate",
    "CertificateRevoked",
    "CertificateExpired",
    "CertificateUnknown",
    "UnknownCA",
];

/// What TLS says, wherever it is among the causes: an `io::Error` keeps what it holds from them.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(found) = error.downcast_ref() {
        return Some(found);
    }
    let held = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref);
    match held {
        Some(held) => tls_error(held),
        None => tls_error(error.source()?),
    }
}

/// The innermost cause: reqwest's own words repeat the URL, which differs from poll to poll.
pub(in crate::sources) fn innermost_reason(error: &reqwest::Error) -> String {
    if error.is_timeout() && !error.is_connect() {
        return "no answer in time".to_owned();
    }
    let mut reason: &dyn std::error::Error = match error.source() {
        Some(source) => source,
        None => return "request failed".to_owned(),
    };
    while let Some(source) = reason.source() {
        reason = source;
    }
    without_jargon(&reason.to_string()).to_owned()
}

fn without_token(anonymous: bool) -> &'static str {
    if anonymous { " without a token" } else { "" }
}

/// What in the settings of an agent of Consul refuses a request before anybody looks at the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    Endpoint,
    Writer,
}

impl Block {
    /// By the agent's words: a refusal of the ACLs has others.
    pub(super) fn of(product: Product, body: &str) -> Option<Self> {
        match body {
            _ if product != Product::Consul => None,
            "Endpoint is blocked by agent configuration" => Some(Self::Endpoint),
            "Access is restricted" => Some(Self::Writer),
            _ => None,
        }
    }

    pub(super) fn fix(self) -> String {
        let address = Product::Consul.address_variable();
        match self {
            Self::Endpoint => format!(
                "take it out of http_config.block_endpoints of that Consul agent, or name another agent ({address}); no \
                 right of a token mends it"
            ),
            Self::Writer => format!(
                "add the address that this agent asks from to http_config.allow_write_http_from of that Consul agent, or \
                 name another agent ({address}); no right of a token mends it"
            ),
        }
    }
}

/// In the words of Consul (deleted, ended or never one; also from a server behind the agent) and of Nomad, which answers 500 to
/// a token that has ended.
pub(super) fn is_unknown_token(body: &str) -> bool {
    ["ACL not found", "ACL token not found", "ACL token expired"]
        .iter()
        .any(|words| body.contains(words))
}

pub(super) fn is_bad_filter(body: &str) -> bool {
    ["filter", "Selector", "selector"]
        .iter()
        .any(|word| body.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, body: &str) -> ApiError {
        status_of(Product::Consul, status, body)
    }

    fn status_of(product: Product, status: u16, body: &str) -> ApiError {
        refusal(product, status, body, false)
    }

    fn refusal(product: Product, status: u16, body: &str, anonymous: bool) -> ApiError {
        ApiError::Status {
            server: Server {
                product,
                address: "http://c".into(),
            },
            asked: "GET /v1/x".to_owned(),
            status,
            body: body.into(),
            index: None,
            retry_after: None,
            anonymous,
            fix: None,
        }
    }

    #[test]
    fn kinds_by_status() {
        for (code, body, kind) in [
            (400, "Invalid", ProblemKind::Refused),
            (401, "ACL support disabled", ProblemKind::Forbidden),
            (403, "Permission denied", ProblemKind::MissingPermission),
            (403, "ACL not found", ProblemKind::TokenNotAccepted),
            (
                403,
                "rpc error making call: ACL not found",
                ProblemKind::TokenNotAccepted,
            ),
            (404, "", ProblemKind::NotFound),
            (413, "", ProblemKind::Limit),
            (429, "", ProblemKind::Unavailable),
            (500, "No cluster leader", ProblemKind::Unavailable),
            (
                500,
                "Failed to create filter: Selector \"X\" is not valid",
                ProblemKind::Refused,
            ),
            (503, "", ProblemKind::Unavailable),
            (301, "", ProblemKind::Refused),
        ] {
            assert_eq!(status(code, body).kind(), kind, "{code} {body}");
        }
    }

    #[test]
    fn a_refusal_without_a_token_and_one_by_the_settings_lack_no_right() {
        for product in [Product::Consul, Product::Nomad] {
            let error = refusal(product, 403, "Permission denied", true);
            assert_eq!(error.kind(), ProblemKind::NoToken);
            let said = format!(
                "{product} at http://c answered GET /v1/x without a token with 403: Permission denied"
            );
            assert_eq!(error.to_string(), said);
            assert!(error.is_lack_of_rights());
        }
        for (body, named) in [
            ("Endpoint is blocked by agent configuration", "block_endpoints"),
            ("Access is restricted", "allow_write_http_from"),
        ] {
            for anonymous in [true, false] {
                let error = refusal(Product::Consul, 403, body, anonymous);
                assert_eq!(error.kind(), ProblemKind::Blocked, "{body}");
                assert!(!error.is_lack_of_rights());
                let block = Block::of(Product::Consul, body).unwrap();
                assert!(block.fix().contains(named), "{}", block.fix());
            }
            assert_eq!(
                status_of(Product::Nomad, 403, body).kind(),
                ProblemKind::Forbidden
            );
        }
        let login = ApiError::NoToken {
            asked: "GET /v1/x".to_owned(),
            problem: Box::new(status(403, "Access is restricted").problem()),
        };
        assert_eq!(login.kind(), ProblemKind::Blocked);
    }

    #[test]
    fn nomad_tells_a_token_that_has_ended_and_no_other_from_a_missing_right() {
        for (code, body, kind) in [
            (403, "Permission denied", ProblemKind::Forbidden),
            (403, "ACL token not found", ProblemKind::TokenNotAccepted),
            (500, "ACL token expired", ProblemKind::TokenNotAccepted),
            (500, "No cluster leader", ProblemKind::Unavailable),
        ] {
            assert_eq!(
                status_of(Product::Nomad, code, body).kind(),
                kind,
                "{code} {body}"
            );
        }
    }

    #[test]
    fn a_refused_login_is_neither_an_unknown_token_nor_a_missing_right() {
        for refused in ["Permission denied", "ACL not found"] {
            let error = ApiError::NoToken {
                asked: "GET /v1/x".to_owned(),
                problem: Box::new(status(403, refused).problem()),
            };
            assert_eq!(error.kind(), ProblemKind::Forbidden, "{refused}");
        }
    }

    #[test]
    fn the_message_says_what_was_asked_and_what_came_back() {
        let problem = status(403, "Permission denied").problem();
        assert_eq!(
            &*problem.message,
            "Consul at http://c answered GET /v1/x with 403: Permission denied"
        );
    }

    #[test]
    fn what_tls_says_of_certificates_is_told_apart() {
        use rustls::{AlertDescription as Alert, CertificateError, Error};
        for alert in [
            Alert::CertificateRequired,
            Alert::BadCertificate,
            Alert::UnsupportedCertificate,
            Alert::CertificateRevoked,
            Alert::CertificateExpired,
            Alert::CertificateUnknown,
            Alert::UnknownCA,
        ] {
            let said = Error::AlertReceived(alert).to_string();
            assert!(is_about_our_certificate(&said), "{said}");
        }
        let other = Error::AlertReceived(Alert::InternalError).to_string();
        assert!(!is_about_our_certificate(&other), "{other}");
        let unbelieved = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = std::io::Error::other(std::io::Error::other(unbelieved.clone()));
        assert_eq!(tls_error(&wrapped), Some(&unbelieved));
    }
}

//! What can go wrong when Consul or Nomad is asked, and what an operator is told about it.
//!
//! Each message says what was asked, of whom, and what came back; the fix says what to do. Bodies of error answers are
//! plain text to both and are cut at 1 KiB.

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
        source: reqwest::Error,
    },
    #[error("{server} answered {asked} with {status}: {body}")]
    Status {
        server: Server,
        asked: String,
        status: u16,
        /// At most 1 KiB.
        body: Box<str>,
        index: Option<u64>,
        retry_after: Option<Duration>,
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
    /// No connection came about: refused, unreachable, no such name, TLS refused.
    Connect,
    TimedOut,
    /// The connection was there and ended before the answer did.
    Cut,
}

impl ApiError {
    pub fn kind(&self) -> ProblemKind {
        match self {
            Self::Transport { .. } => ProblemKind::Unavailable,
            Self::Status { status, body, .. } => match status {
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
            Self::NoToken { problem, .. } => problem.kind,
            Self::NotSent { .. } | Self::TxnFailed { .. } => ProblemKind::Refused,
        }
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
            } => Some(format!(
                "check that the {} agent runs there; {} names another address",
                server.product,
                server.product.address_variable()
            )),
            Self::Transport {
                failure: TransportFailure::Cut,
                server,
                ..
            } => Some(format!(
                "if this repeats, raise limits.http_max_conns_per_client of the {} agent or use its HTTPS port",
                server.product
            )),
            Self::NoToken { problem, .. } => problem.fix.as_ref().map(ToString::to_string),
            Self::TxnTooLarge { .. } => Some("write fewer or smaller documents at a time".to_owned()),
            _ => None,
        }
    }
}

impl TransportFailure {
    pub(in crate::sources) fn of(error: &reqwest::Error) -> Self {
        // Connect first: a connect that timed out is no sign of a long poll gone wrong.
        if error.is_connect() {
            Self::Connect
        } else if error.is_timeout() {
            Self::TimedOut
        } else {
            Self::Cut
        }
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
    reason.to_string()
}

fn is_bad_filter(body: &str) -> bool {
    ["filter", "Selector", "selector"]
        .iter()
        .any(|word| body.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, body: &str) -> ApiError {
        ApiError::Status {
            server: Server {
                product: Product::Consul,
                address: "http://c".into(),
            },
            asked: "GET /v1/x".to_owned(),
            status,
            body: body.into(),
            index: None,
            retry_after: None,
            fix: None,
        }
    }

    #[test]
    fn kinds_by_status() {
        for (code, body, kind) in [
            (400, "Invalid", ProblemKind::Refused),
            (401, "ACL support disabled", ProblemKind::Forbidden),
            (403, "Permission denied", ProblemKind::Forbidden),
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
    fn the_message_says_what_was_asked_and_what_came_back() {
        let problem = status(403, "Permission denied").problem();
        assert_eq!(
            &*problem.message,
            "Consul at http://c answered GET /v1/x with 403: Permission denied"
        );
    }
}

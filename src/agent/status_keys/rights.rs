use std::time::Duration;

use crate::model::ProblemKind;
use crate::sources::consul::ConsulError;
use crate::sources::retry::jittered;

/// Says a trouble once, until it is over, and how long to leave Consul alone with it.
#[derive(Debug)]
pub(super) struct Trouble {
    what: &'static str,
    /// What it costs meanwhile.
    cost: &'static str,
    told: bool,
}

/// Rights come when an operator grants them.
const DENIED: Duration = Duration::from_secs(120);
/// Another token comes by itself where the agent logs in, or from its file.
const TOKEN_NOT_ACCEPTED: Duration = Duration::from_secs(30);

impl Trouble {
    pub fn with(what: &'static str) -> Self {
        Self::costing(what, "serving is not affected")
    }

    pub fn costing(what: &'static str, cost: &'static str) -> Self {
        Self {
            what,
            cost,
            told: false,
        }
    }

    pub fn over(&mut self) {
        if std::mem::take(&mut self.told) {
            tracing::info!("{}: works again", self.what);
        }
    }

    /// The pause that this failure asks for, on top of the usual one.
    pub fn failed(&mut self, error: &ConsulError, rule: &str) -> Duration {
        let (what, cost) = (self.what, self.cost);
        if std::mem::replace(&mut self.told, true) {
            tracing::debug!(%error, "{what}");
        } else if let Some(fix) = fix_of(error, rule) {
            tracing::warn!(%error, fix, "{what}; {cost}");
        } else {
            tracing::warn!(%error, "{what}; {cost}");
        }
        match error.kind() {
            ProblemKind::TokenNotAccepted => jittered(TOKEN_NOT_ACCEPTED),
            _ if is_denied(error) => jittered(DENIED),
            _ => Duration::ZERO,
        }
    }
}

/// No right mends a token that Consul does not know, nor a request that its settings keep out.
fn fix_of(error: &ConsulError, rule: &str) -> Option<String> {
    let problem = error.problem();
    match problem.kind {
        ProblemKind::TokenNotAccepted | ProblemKind::NoToken | ProblemKind::Blocked => {
            Some(problem.advice().to_owned())
        }
        _ => is_denied(error).then(|| format!("add to the token's policy: {rule}")),
    }
}

/// Transactions say it inside of an answer.
fn is_denied(error: &ConsulError) -> bool {
    error.kind().is_refusal()
        || matches!(error, ConsulError::TxnFailed { failures } if failures
            .iter()
            .any(|failure| failure.what.to_ascii_lowercase().contains("permission denied")))
}

#[cfg(test)]
mod tests {
    use crate::sources::agent_api::{Product, Server};

    use super::*;

    const RULE: &str = "session_prefix \"\" { policy = \"write\" }";

    fn refused(words: &str) -> ConsulError {
        ConsulError::Status {
            server: Server {
                product: Product::Consul,
                address: "http://c".into(),
            },
            asked: "PUT /v1/session/create".to_owned(),
            status: 403,
            body: words.into(),
            index: None,
            retry_after: None,
            anonymous: false,
            fix: None,
        }
    }

    #[test]
    fn a_right_is_asked_for_where_one_is_missing() {
        let mut trouble = Trouble::with("x");
        let denied = refused("Permission denied");
        assert!(fix_of(&denied, RULE).unwrap().ends_with(RULE));
        let pause = trouble.failed(&denied, RULE);
        assert!(pause >= DENIED / 2, "{pause:?}");
    }

    #[test]
    fn a_token_that_is_being_replaced_lacks_no_right_and_is_soon_asked_with_again() {
        let mut trouble = Trouble::with("x");
        let forgotten = refused("ACL not found");
        let fix = fix_of(&forgotten, RULE).unwrap();
        assert!(fix.contains("token that the server knows"), "{fix}");
        let pause = trouble.failed(&forgotten, RULE);
        assert!(
            pause <= TOKEN_NOT_ACCEPTED * 3 / 2 && !pause.is_zero(),
            "{pause:?}"
        );
    }
}

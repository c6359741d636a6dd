use std::time::Duration;

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
        let denied = is_denied(error);
        let (what, cost) = (self.what, self.cost);
        if std::mem::replace(&mut self.told, true) {
            tracing::debug!(%error, "{what}");
        } else if denied {
            tracing::warn!(%error, fix = format!("add to the token's policy: {rule}"), "{what}; {cost}");
        } else {
            tracing::warn!(%error, "{what}; {cost}");
        }
        if denied { jittered(DENIED) } else { Duration::ZERO }
    }
}

/// Transactions say it inside of an answer.
fn is_denied(error: &ConsulError) -> bool {
    error.kind().is_refusal()
        || matches!(error, ConsulError::TxnFailed { failures } if failures
            .iter()
            .any(|failure| failure.what.to_ascii_lowercase().contains("permission denied")))
}

//! How the connection to Vault is doing, for status and metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::model::Problem;

/// Counts and times of one Vault connection. Shared; reading it never waits for a request.
#[derive(Debug, Default)]
pub struct VaultFreshness {
    status: Mutex<VaultStatus>,
}

/// A copy of the state at one moment. Times are Unix seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VaultStatus {
    /// Why no token is at hand or Vault does not answer; none: all is well.
    pub problem: Option<Problem>,
    /// Why Vault serves nobody, as its health tells. Part of `problem` in every copy that is handed out.
    pub outage: Option<Problem>,
    /// Why the wrapping token that came last gives no secret id: logins are done with the one of before. The token and the
    /// logins are told of in `problem`.
    pub wrapping: Option<Problem>,
    /// When Vault last answered a request of ours as asked.
    pub last_success: Option<i64>,
    /// None: there is no token, it does not end, or nobody may look it up.
    pub token_expires: Option<i64>,
    /// None: there is no client certificate.
    pub client_certificate_expires: Option<i64>,
    /// None: the agent does not log in with a JWT, or it has no end.
    pub login_identity_expires: Option<i64>,
    /// None: there is none, it has no end, or it came as it is: its end is then known to those alone who may look it up.
    pub secret_id_expires: Option<i64>,
    /// A token that works now and ends soon, and nobody but its giver can renew it.
    pub warning: Option<Problem>,
    /// The same of what the agent shows and somebody else has to replace: each may have ended, too.
    pub ending: Vec<Problem>,
    /// Rules that the token's policy lacks and that something is done without, by their path.
    pub lacking: BTreeMap<Arc<str>, Problem>,
    pub requests: u64,
    /// Requests without an answer, or with one of 400 and above other than 404.
    pub errors: u64,
    pub logins: u64,
    pub renewals: u64,
}

impl VaultStatus {
    pub fn is_ok(&self) -> bool {
        self.problem.is_none() && self.last_success.is_some()
    }

    /// All that there is to say, the worst first.
    pub fn notes(&self) -> impl Iterator<Item = &Problem> {
        let ending = self.warning.iter().chain(&self.ending);
        self.problem
            .iter()
            .chain(&self.wrapping)
            .chain(ending)
            .chain(self.lacking.values())
    }
}

impl VaultFreshness {
    pub fn status(&self) -> VaultStatus {
        let mut status = self.read(|status| status.clone());
        status.problem = status.problem.take().or_else(|| status.outage.clone());
        status
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut VaultStatus)) {
        self.read(change);
    }

    fn read<T>(&self, access: impl FnOnce(&mut VaultStatus) -> T) -> T {
        // Plain counters: a panic elsewhere while they were held leaves nothing half done.
        access(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Seconds since the epoch, by this machine's clock.
pub(crate) fn unix_now() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX))
}

/// Unix seconds as RFC 3339.
pub fn timestamp(seconds: i64) -> String {
    match u64::try_from(seconds) {
        // Beyond the year 9999 there is no RFC 3339 text.
        Ok(seconds) if seconds < 253_402_300_800 => {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            humantime::format_rfc3339_seconds(time).to_string()
        }
        _ => format!("second {seconds} of the Unix epoch"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ProblemKind;

    #[test]
    fn no_note_hides_another() {
        let problem = |said: &str| Problem::new(ProblemKind::Forbidden, said);
        let mut status = VaultStatus::default();
        assert_eq!(status.notes().count(), 0);
        status.wrapping = Some(problem("no secret id"));
        status.warning = Some(problem("the token ends"));
        status.ending = vec![problem("the certificate ends"), problem("the identity ends")];
        for path in ["a", "b"] {
            let lacks = problem(&format!("the policy lacks {path}"));
            status.lacking.insert(path.into(), lacks);
        }
        status.problem = Some(problem("no token"));
        let said: Vec<&str> = status.notes().map(|note| &*note.message).collect();
        assert_eq!(
            said,
            [
                "no token",
                "no secret id",
                "the token ends",
                "the certificate ends",
                "the identity ends",
                "the policy lacks a",
                "the policy lacks b"
            ]
        );
    }
}

//! How long a credential of the agent's own lasts, and what is said when its end nears and nobody has replaced it.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::model::Problem;
use crate::sources::certificates::{PemFault, parse_public, timestamp};

/// In Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) start: i64,
    pub(crate) end: i64,
}

impl Life {
    /// None for what is no certificate.
    pub(crate) fn of_certificate(chain: &str, now: i64) -> Option<Self> {
        match parse_public(chain, now) {
            Ok(material) => Some(Self {
                start: material.not_before,
                end: material.not_after,
            }),
            // When it began does not matter any more.
            Err(PemFault::Expired(end)) => Some(Self { start: end, end }),
            Err(_) => None,
        }
    }

    /// When the last third of it begins (`part` is 3), or the last tenth.
    pub(crate) fn last(self, part: i64) -> i64 {
        self.end - (self.end - self.start) / part
    }

    pub(crate) fn has_ended(self, now: i64) -> bool {
        self.end <= now
    }

    pub(crate) fn ending(self, now: i64) -> String {
        let verb = if self.has_ended(now) { "ended" } else { "ends" };
        format!("{verb} at {} and nobody has replaced it", timestamp(self.end))
    }

    /// Once for each thing that is said: `said` is what was said before.
    pub(crate) fn log(self, problem: &Problem, said: &[Problem], now: i64) {
        if said.contains(problem) {
            return;
        }
        let fix = problem.fix.as_deref();
        match self.has_ended(now) {
            false => tracing::warn!(%problem, fix, "a credential ends soon"),
            true => tracing::warn!(%problem, fix, "a credential has ended"),
        }
    }
}

/// As Consul, Nomad and Vault write times: RFC 3339, in the zone of the server's machine.
pub(crate) fn unix_seconds(text: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    Some(time.unix_timestamp())
}

/// Whoever gives a token or a certificate by hand has the last third of its life to give another.
pub(crate) const GIVEN: i64 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_is_over_is_told_as_such() {
        let life = Life { start: 0, end: 900 };
        assert_eq!((life.last(3), life.last(10)), (600, 810));
        assert!(life.ending(899).starts_with("ends at 1970-01-01T00:15:00Z"));
        assert!(life.ending(900).starts_with("ended at 1970-01-01T00:15:00Z"));
        assert!(!life.has_ended(899) && life.has_ended(900));
    }
    #[test]
    fn times_as_servers_write_them() {
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
}

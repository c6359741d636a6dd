//! Tells of the client certificate's end: from the last third of its life until its successor is there. Whoever gave it
//! has to give that, too.

use std::ops::Range;
use std::path::Path;

use super::client::Shared;
use super::freshness::{timestamp, unix_now};
use crate::model::{Problem, ProblemKind};

impl Shared {
    /// Looks at it now; says what is new in the log.
    pub(super) fn note_identity(&self) {
        let now = unix_now();
        let identity = self.transport.identity();
        let warning = identity.as_ref().and_then(|(file, life)| ending(file, life, now));
        let mut is_news = false;
        self.freshness.update(|status| {
            is_news = status.certificate_warning != warning;
            status.certificate_warning.clone_from(&warning);
        });
        let Some((problem, true)) = warning.map(|problem| (problem, is_news)) else {
            return;
        };
        let fix = problem.fix.as_deref().unwrap_or_default();
        match identity.is_some_and(|(_, life)| life.end <= now) {
            false => tracing::warn!(%problem, fix, "a credential ends soon"),
            true => tracing::warn!(%problem, fix, "a credential has ended"),
        }
    }
}

fn ending(file: &Path, life: &Range<i64>, now: i64) -> Option<Problem> {
    let last_third = life.end - (life.end - life.start) / 3;
    if now < last_third {
        return None;
    }
    let verb = if life.end <= now { "ended" } else { "ends" };
    let message = format!(
        "the client certificate for Vault {verb} at {} and nobody has replaced it",
        timestamp(life.end)
    );
    let fix = format!(
        "Put its successor into {}, and the key beside it; both are taken up by themselves.",
        file.display()
    );
    Some(Problem::new(ProblemKind::Forbidden, message).with_fix(fix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_third_and_the_end_are_told() {
        let said = |now: i64| {
            let problem = ending(Path::new("/c.pem"), &(1_000..4_000), now)?;
            assert!(problem.fix?.contains("/c.pem"));
            Some(problem.message)
        };
        assert_eq!(said(2_999), None);
        let ends = "the client certificate for Vault ends at 1970-01-01T01:06:40Z and nobody has replaced it";
        assert_eq!(said(3_000).as_deref(), Some(ends));
        assert_eq!(said(3_999).as_deref(), Some(ends));
        let ended =
            "the client certificate for Vault ended at 1970-01-01T01:06:40Z and nobody has replaced it";
        assert_eq!(said(4_000).as_deref(), Some(ended));
    }
}

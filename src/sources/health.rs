//! How fresh a watch is and what it cost: read by metrics, the status board and `/ready`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// The shared pulse of one watch. Clones read and write the same figures.
#[derive(Clone, Debug, Default)]
pub struct SourceHealth {
    // A plain mutex: every write stands beside a network round trip, and is never held across an await.
    reading: Arc<Mutex<HealthReading>>,
}

/// The figures of one watch at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthReading {
    /// The last thing that ended was a success. A watch that has not answered yet is not ok.
    pub ok: bool,
    /// When the source last proved what it says. None: never yet.
    pub last_success: Option<Instant>,
    pub requests_total: u64,
    pub errors_total: u64,
    /// Answers that came because something moved, not because a poll ran out.
    pub wakeups_total: u64,
}

impl SourceHealth {
    pub fn reading(&self) -> HealthReading {
        self.lock().clone()
    }

    pub(crate) fn requested(&self) {
        self.lock().requests_total += 1;
    }

    pub(crate) fn succeeded(&self, woken: bool) {
        let mut reading = self.lock();
        reading.ok = true;
        reading.last_success = Some(Instant::now());
        reading.wakeups_total += u64::from(woken);
    }

    pub(crate) fn failed(&self) {
        let mut reading = self.lock();
        reading.ok = false;
        reading.errors_total += 1;
    }

    fn lock(&self) -> MutexGuard<'_, HealthReading> {
        // Counters stay meaningful whatever the panicking holder was about to write.
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::SourceHealth;

    #[test]
    fn counts_and_remembers_the_last_success() {
        let health = SourceHealth::default();
        assert!(!health.reading().ok);
        health.requested();
        health.succeeded(true);
        let after_success = health.reading();
        assert!(after_success.ok && after_success.last_success.is_some());
        health.requested();
        health.failed();
        let after_failure = health.reading();
        assert!(!after_failure.ok);
        assert_eq!(after_failure.last_success, after_success.last_success);
        assert_eq!(
            (
                after_failure.requests_total,
                after_failure.errors_total,
                after_failure.wakeups_total
            ),
            (2, 1, 1)
        );
    }
}

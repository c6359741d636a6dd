//! Waiting between attempts: crate `backoff`'s exponential intervals, with full jitter.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(1);

/// An interval that grows with each failure. Never gives up: a source retries for as long as it is wanted.
pub(crate) struct Pause {
    intervals: ExponentialBackoff,
    longest: Duration,
    /// The first failure of those in a row.
    began: Option<Instant>,
}

impl Pause {
    /// For what waiting heals (down, sealed, standby). At most 1 s, so that with a probe of 1 s the agent is back
    /// within 2 s of Vault's first answer.
    pub(crate) fn while_unavailable() -> Self {
        Self::full_jitter(Duration::from_millis(250), Duration::from_secs(1))
    }

    /// For what a person must heal (policy, role, data). As `hashistack` tools do: 1 s to 60 s. What is healed soon is noticed
    /// soon: above 1 s it is no longer than a quarter of the time that the refusals have lasted.
    pub(crate) fn while_refused() -> Self {
        Self::full_jitter(Duration::from_secs(1), Duration::from_secs(60))
    }

    pub(crate) fn next(&mut self) -> Duration {
        let lasted = self.began.get_or_insert_with(Instant::now).elapsed();
        self.after(lasted)
    }

    fn after(&mut self, lasted: Duration) -> Duration {
        let interval = self.intervals.next_backoff().unwrap_or(self.longest);
        interval.min(self.longest).min((lasted / 4).max(SOON))
    }

    pub(crate) fn reset(&mut self) {
        self.began = None;
        self.intervals.reset();
    }

    /// The crate draws from interval * (1 ± factor); factor 1 on half the interval is "full jitter", 0 to interval.
    fn full_jitter(first: Duration, longest: Duration) -> Self {
        let intervals = ExponentialBackoffBuilder::new()
            .with_initial_interval(first / 2)
            .with_max_interval(longest / 2)
            .with_multiplier(2.0)
            .with_randomization_factor(1.0)
            .with_max_elapsed_time(None)
            .build();
        Self {
            intervals,
            longest,
            began: None,
        }
    }
}

/// Both kinds, side by side for one watch.
pub(crate) struct Pauses {
    pub(crate) unavailable: Pause,
    pub(crate) refused: Pause,
}

impl Default for Pauses {
    fn default() -> Self {
        Self {
            unavailable: Pause::while_unavailable(),
            refused: Pause::while_refused(),
        }
    }
}

impl Pauses {
    pub(crate) fn reset(&mut self) {
        self.unavailable.reset();
        self.refused.reset();
    }
}

/// A number between -1 and 1, different on every call. Spreads load; nothing secret hangs on it.
pub(crate) fn jitter() -> f64 {
    // The standard library seeds every RandomState differently; 53 bits fill a f64 exactly.
    let bits = RandomState::new().hash_one(0_u8) >> 11;
    (bits as f64 / (1_u64 << 52) as f64) - 1.0
}

/// `base` stretched or shrunk by up to `share` of itself.
pub(crate) fn spread(base: Duration, share: f64, jitter: f64) -> Duration {
    base.mul_f64((1.0 + share * jitter.clamp(-1.0, 1.0)).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_within_their_bounds() {
        let mut pause = Pause::while_unavailable();
        assert!((0..200).all(|_| pause.next() <= Duration::from_secs(1)));
        let mut pause = Pause::while_refused();
        assert!(pause.next() <= Duration::from_secs(1));
        let longest = (0..400)
            .map(|_| pause.after(Duration::from_secs(3600)))
            .max()
            .unwrap();
        assert!(
            longest <= Duration::from_secs(60) && longest > Duration::from_secs(30),
            "{longest:?}"
        );
        let soon = (0..400)
            .map(|_| pause.after(Duration::from_secs(8)))
            .max()
            .unwrap();
        assert!(soon <= Duration::from_secs(2), "{soon:?}");
    }

    #[test]
    fn jitter_covers_its_range() {
        let drawn: Vec<f64> = (0..1000).map(|_| jitter()).collect();
        assert!(drawn.iter().all(|value| (-1.0..=1.0).contains(value)));
        assert!(drawn.iter().any(|value| *value < -0.8) && drawn.iter().any(|value| *value > 0.8));
    }
}

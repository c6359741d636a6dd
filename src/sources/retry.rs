//! When to try again: growing intervals with jitter, and a bucket that keeps a hot watch from spinning.
//!
//! Pure but for the clock of `tokio::time`, so tests pause time.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;
use tokio::time::Instant;

/// Growing retry intervals, each drawn from 50 % to 150 % of its mean so that replicas do not march in step.
#[derive(Debug)]
pub struct Intervals {
    exponential: ExponentialBackoff,
    longest: Duration,
}

impl Intervals {
    /// Doubles from `first` up to `longest`; never ends, because a source never gives up.
    pub fn new(first: Duration, longest: Duration) -> Self {
        let exponential = ExponentialBackoff {
            current_interval: first,
            initial_interval: first,
            randomization_factor: 0.5,
            multiplier: 2.0,
            max_interval: longest,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        Self { exponential, longest }
    }

    pub fn next_interval(&mut self) -> Duration {
        self.exponential.next_backoff().unwrap_or(self.longest)
    }

    pub fn reset(&mut self) {
        self.exponential.reset();
    }
}

/// `mean`, give or take a half.
pub fn jittered(mean: Duration) -> Duration {
    Intervals::new(mean, mean).next_interval()
}

/// A token bucket: `burst` turns at once, then one per `period`.
#[derive(Debug)]
pub struct TokenBucket {
    burst: u32,
    period: Duration,
    tokens: f64,
    filled_at: Instant,
}

impl TokenBucket {
    pub fn new(burst: u32, period: Duration) -> Self {
        Self {
            burst,
            period,
            tokens: f64::from(burst),
            filled_at: Instant::now(),
        }
    }

    /// Takes one turn and says how long to wait before using it.
    pub fn take(&mut self) -> Duration {
        self.take_at(Instant::now())
    }

    fn take_at(&mut self, now: Instant) -> Duration {
        let earned = now.duration_since(self.filled_at).as_secs_f64() / self.period.as_secs_f64();
        self.tokens = (self.tokens + earned).min(f64::from(self.burst));
        self.filled_at = now;
        self.tokens -= 1.0;
        if self.tokens >= 0.0 {
            Duration::ZERO
        } else {
            self.period.mul_f64(-self.tokens)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_grow_to_the_longest_and_start_over() {
        let mut intervals = Intervals::new(Duration::from_millis(100), Duration::from_secs(2));
        let first = intervals.next_interval();
        assert!((50..=150).contains(&first.as_millis()), "{first:?}");
        for _ in 0..20 {
            intervals.next_interval();
        }
        let late = intervals.next_interval();
        assert!((1000..=3000).contains(&late.as_millis()), "{late:?}");
        intervals.reset();
        assert!(intervals.next_interval() <= Duration::from_millis(151));
    }

    #[test]
    fn bucket_lets_a_burst_through_then_paces() {
        let mut bucket = TokenBucket::new(2, Duration::from_millis(250));
        let now = bucket.filled_at;
        assert_eq!(bucket.take_at(now), Duration::ZERO);
        assert_eq!(bucket.take_at(now), Duration::ZERO);
        assert_eq!(bucket.take_at(now), Duration::from_millis(250));
        assert_eq!(bucket.take_at(now), Duration::from_millis(500));
        let later = now + Duration::from_secs(60);
        assert_eq!(bucket.take_at(later), Duration::ZERO);
        assert_eq!(bucket.take_at(later), Duration::ZERO);
        assert!(
            !bucket.take_at(later).is_zero(),
            "rest does not add up beyond the burst"
        );
    }
}

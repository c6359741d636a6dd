//! How often a certificate may be asked for, and when its successor is due. Pure.

use std::time::Duration;

/// How many issues there may be: one per interval, counted from the last request that may have led to one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    pub(super) interval: Duration,
}

impl Budget {
    /// When the next request may be sent. A record from the future (the clock was set back) counts as just now, so
    /// that it delays by one interval at most.
    pub(super) fn next(&self, last_attempt: Option<i64>, now: i64) -> i64 {
        let interval = i64::try_from(self.interval.as_secs()).unwrap_or(i64::MAX);
        match last_attempt {
            Some(last) => last.min(now).saturating_add(interval),
            None => now,
        }
    }
}

/// 2/3 of a certificate's life, spread by 5 %. Drawn from the serial: the same after a restart, another for each
/// certificate, so that a fleet started together does not renew together.
pub(super) fn renewal_time(not_before: i64, not_after: i64, serial: &str) -> i64 {
    let life = not_after.saturating_sub(not_before).max(0);
    let hash = blake3::hash(serial.as_bytes());
    let drawn = u16::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1]]);
    // -1 to 1.
    let jitter = f64::from(drawn) / f64::from(u16::MAX / 2) - 1.0;
    let share = (2.0 / 3.0) * (1.0 + 0.05 * jitter.clamp(-1.0, 1.0));
    not_before.saturating_add((life as f64 * share) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Budget = Budget {
        interval: Duration::from_secs(60),
    };

    #[test]
    fn one_request_per_minute_however_often_the_process_starts() {
        assert_eq!(MINUTE.next(None, 1000), 1000);
        assert_eq!(MINUTE.next(Some(990), 1000), 1050);
        assert_eq!(MINUTE.next(Some(100), 1000), 160);
    }

    #[test]
    fn a_clock_set_back_delays_by_one_interval_only() {
        assert_eq!(MINUTE.next(Some(9_999_999), 1000), 1060);
    }

    #[test]
    fn due_at_two_thirds_give_or_take_a_twentieth() {
        let times: Vec<i64> = (0..200)
            .map(|serial| renewal_time(1000, 1000 + 90_000, &serial.to_string()))
            .collect();
        assert!(
            times
                .iter()
                .all(|at| (1000 + 57_000..=1000 + 63_000).contains(at)),
            "{times:?}"
        );
        assert!(
            times.iter().max().unwrap() - times.iter().min().unwrap() > 4_000,
            "spread"
        );
        assert_eq!(renewal_time(0, 900, "ab"), renewal_time(0, 900, "ab"));
    }
}

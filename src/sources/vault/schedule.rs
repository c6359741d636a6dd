//! When to renew a token and when to get another. Pure.

use std::time::Duration;

use super::backoff::spread;

/// A token shorter-lived than this is renewed in a tight loop otherwise.
const FLOOR: Duration = Duration::from_secs(5);

/// Nobody means more than a century; what a server says beyond it, no clock can count.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 86_400);

/// Renewals of many agents that started together drift apart.
const SPREAD: f64 = 0.10;

/// What is known of a token's life, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TokenLife {
    /// What is left of it; 0: it does not end (a root token).
    pub(super) ttl: u64,
    /// What a renewal should grant: the period, or the life it was made with.
    pub(super) full: u64,
    pub(super) renewable: bool,
}

/// What is left of a token with a life of `full` seconds, of which the server says `told`: it rounds down, so in its last second
/// a token that ends looks like one that does not.
pub(super) fn left(told: u64, full: u64) -> u64 {
    if full > 0 { told.max(1) } else { told }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It does not end.
    Rest,
    Renew(Duration),
    /// It cannot be prolonged (a batch token, or its maximum is near): get another, while this one still works.
    Replace(Duration),
}

/// What to do with a token just received. `jitter` is between -1 and 1.
pub(super) fn first_step(life: TokenLife, jitter: f64) -> Step {
    match life {
        TokenLife { ttl: 0, .. } => Step::Rest,
        TokenLife {
            ttl, renewable: true, ..
        } => Step::Renew(two_thirds(ttl, jitter)),
        TokenLife { ttl, .. } => Step::Replace(two_thirds(ttl, jitter)),
    }
}

/// What to do after a renewal that granted `granted` seconds. Less than asked for means that the token nears its
/// maximum life: no renewal will go beyond it.
pub(super) fn after_renewal(life: TokenLife, granted: u64, renewable: bool, jitter: f64) -> Step {
    let ends = granted > 0 && (!renewable || granted.saturating_add(tolerance(life.full)) < life.full);
    match granted {
        0 => Step::Rest,
        _ if ends => Step::Replace(two_thirds(granted, jitter)),
        _ => Step::Renew(two_thirds(granted, jitter)),
    }
}

/// Servers round to seconds, and a second can pass between two roundings.
fn tolerance(full: u64) -> u64 {
    (full / 100).clamp(1, 5)
}

/// 2/3 of a life, spread by 10 %, at least 5 s: but never beyond 90 % of the life itself.
fn two_thirds(seconds: u64, jitter: f64) -> Duration {
    let life = Duration::from_secs(seconds).min(LONGEST);
    spread(life * 2 / 3, SPREAD, jitter)
        .max(FLOOR)
        .min(life.mul_f64(0.9))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(ttl: u64, renewable: bool) -> TokenLife {
        TokenLife {
            ttl,
            full: ttl,
            renewable,
        }
    }

    #[test]
    fn renews_at_two_thirds_with_a_tenth_of_jitter() {
        assert_eq!(
            first_step(life(3600, true), 0.0),
            Step::Renew(Duration::from_secs(2400))
        );
        assert_eq!(
            first_step(life(3600, true), 1.0),
            Step::Renew(Duration::from_secs(2640))
        );
        assert_eq!(
            first_step(life(3600, true), -1.0),
            Step::Renew(Duration::from_secs(2160))
        );
    }

    #[test]
    fn a_root_token_rests_and_a_batch_token_is_replaced() {
        assert_eq!(first_step(life(0, false), 0.3), Step::Rest);
        assert_eq!(
            first_step(life(300, false), 0.0),
            Step::Replace(Duration::from_secs(200))
        );
    }

    #[test]
    fn a_token_in_its_last_second_is_not_taken_for_one_without_end() {
        let rooted = left(0, 0);
        assert_eq!(first_step(life(rooted, false), 0.0), Step::Rest);
        let ending = TokenLife {
            ttl: left(0, 20),
            full: 20,
            renewable: false,
        };
        assert_eq!(first_step(ending, 0.0), Step::Replace(Duration::from_millis(900)));
        let granted = left(0, 20);
        assert!(matches!(
            after_renewal(ending, granted, true, 0.0),
            Step::Replace(_)
        ));
        assert_eq!(left(7, 20), 7);
    }

    #[test]
    fn a_life_that_no_clock_can_count_is_a_century() {
        for seconds in [u64::MAX, u64::MAX / 2 + 1] {
            let Step::Renew(after) = first_step(life(seconds, true), 1.0) else {
                panic!("it is renewable");
            };
            assert!(after <= LONGEST);
            assert!(matches!(
                after_renewal(life(seconds, true), seconds, false, 1.0),
                Step::Replace(_)
            ));
        }
    }

    #[test]
    fn never_before_five_seconds_nor_after_the_end() {
        assert_eq!(
            first_step(life(6, true), -1.0),
            Step::Renew(Duration::from_secs(5))
        );
        assert_eq!(
            first_step(life(3, true), 0.0),
            Step::Renew(Duration::from_millis(2700))
        );
    }

    #[test]
    fn a_shrinking_grant_means_another_login() {
        let token = life(3600, true);
        assert!(matches!(after_renewal(token, 3600, true, 0.0), Step::Renew(_)));
        assert!(
            matches!(after_renewal(token, 3599, true, 0.0), Step::Renew(_)),
            "rounding is no shrinking"
        );
        assert_eq!(
            after_renewal(token, 900, true, 0.0),
            Step::Replace(Duration::from_secs(600))
        );
        assert!(matches!(after_renewal(token, 3600, false, 0.0), Step::Replace(_)));
    }

    #[test]
    fn a_periodic_token_found_half_spent_is_renewed_to_its_period() {
        let found = TokenLife {
            ttl: 900,
            full: 1800,
            renewable: true,
        };
        assert_eq!(first_step(found, 0.0), Step::Renew(Duration::from_secs(600)));
        assert_eq!(
            after_renewal(found, 1800, true, 0.0),
            Step::Renew(Duration::from_secs(1200))
        );
    }
}

//! The contract as tables: one poll's outcome in, the next poll out. No IO, no clock.

use std::sync::LazyLock;

use super::*;
use crate::sources::agent_api::Product;

fn state() -> WatchState<'static> {
    static TIMING: LazyLock<WatchTiming> = LazyLock::new(WatchTiming::default);
    WatchState::new(&TIMING)
}

fn taken(index: u64) -> Polled {
    Polled::Taken { index: Some(index) }
}

fn cut(seconds: u64) -> Polled {
    Polled::Lost {
        failure: TransportFailure::Cut,
        after: Duration::from_secs(seconds),
    }
}

fn refused(status: u16) -> Polled {
    Polled::Refused {
        status,
        retry_after: None,
    }
}

fn poll_at(state: &WatchState) -> (u64, u64) {
    let blocking = state.poll().expect("blocks");
    (blocking.index, blocking.wait.as_secs())
}

#[test]
fn first_poll_asks_at_once_then_blocks_five_minutes() {
    let mut state = state();
    assert_eq!(state.poll(), None);
    let next = state.on_answer(&taken(7));
    assert_eq!(
        next,
        Next {
            after: Duration::ZERO,
            woken: true,
            ..Next::default()
        }
    );
    assert_eq!(poll_at(&state), (7, 300));
}

#[test]
fn an_equal_index_is_a_poll_that_ran_out() {
    let mut state = state();
    state.on_answer(&taken(7));
    assert!(!state.on_answer(&taken(7)).woken);
    assert_eq!(poll_at(&state), (7, 300));
}

#[test]
fn a_lower_index_is_forgotten_and_read_again_at_once() {
    let mut state = state();
    state.on_answer(&taken(900));
    assert!(state.must_compare_whole(Some(12)));
    let next = state.on_answer(&taken(12));
    assert!(next.woken && next.after.is_zero());
    assert_eq!(state.poll(), None);
    state.on_answer(&taken(12));
    assert_eq!(poll_at(&state), (12, 300));
}

#[test]
fn no_index_means_polling_with_pauses() {
    let mut state = state();
    state.on_answer(&taken(7));
    let next = state.on_answer(&Polled::Taken { index: None });
    assert!(next.after >= Duration::from_secs(5), "{next:?}");
    assert_eq!(state.poll(), None);
}

#[test]
fn one_cut_is_benign_two_alike_lower_the_wait() {
    let mut state = state();
    state.on_answer(&taken(7));
    let next = state.on_answer(&cut(30));
    assert!(!next.tell && next.after < Duration::from_secs(1));
    let (index, wait) = poll_at(&state);
    assert_eq!(index, 7);
    assert!(
        (2..=6).contains(&wait),
        "short, for a server without its past: {wait}"
    );
    assert!(!state.is_troubled());
    assert!(state.must_compare_whole(Some(8)), "it may be another server");
    assert!(!state.must_compare_whole(Some(7)), "nothing has changed");
    state.on_answer(&taken(7));
    assert_eq!(poll_at(&state), (7, 300), "same wait");
    assert!(!state.must_compare_whole(Some(8)));
    state.on_answer(&cut(30));
    state.on_answer(&taken(7));
    assert_eq!(poll_at(&state), (7, 25));
    state.on_answer(&taken(8));
    assert_eq!(poll_at(&state), (8, 25), "the server will not have changed");
}

#[test]
fn restarts_do_not_lower_the_wait() {
    let mut state = state();
    state.on_answer(&taken(7));
    for seconds in [4, 4, 40, 80, 200] {
        state.on_answer(&cut(seconds));
        state.on_answer(&taken(7));
    }
    state.on_answer(&taken(7));
    state.on_answer(&cut(30));
    state.on_answer(&taken(7));
    state.on_answer(&taken(8));
    state.on_answer(&cut(30));
    state.on_answer(&taken(8));
    assert_eq!(poll_at(&state), (8, 300), "not in a row");
}

#[test]
fn a_habit_is_met_whatever_else_goes_wrong_between_two_cuts_and_forgotten_when_a_long_poll_ends_well() {
    let doubted = || Polled::Doubted { index: Some(7) };
    let partial = || Polled::Partial { index: Some(7) };
    for (between, is_habit) in [
        (vec![taken(7)], true),
        (vec![taken(7), taken(7)], false),
        // A short poll of its own that is cut says nothing.
        (vec![cut(2), taken(7)], true),
        // A failure is a restart.
        (vec![refused(500), taken(7)], false),
        (vec![taken(7), cut(4), taken(7)], false),
        // These wait for seconds, and then for as long as to show that thirty seconds are borne.
        (vec![doubted(), taken(7)], true),
        (
            vec![
                partial(),
                partial(),
                partial(),
                partial(),
                partial(),
                partial(),
                partial(),
                taken(7),
            ],
            false,
        ),
    ] {
        let mut state = state();
        state.on_answer(&taken(7));
        state.on_answer(&cut(30));
        let played = format!("{between:?}");
        between.iter().for_each(|polled| _ = state.on_answer(polled));
        state.on_answer(&cut(30));
        state.on_answer(&taken(7));
        let wait = if is_habit { 25 } else { 300 };
        assert_eq!(poll_at(&state), (7, wait), "{played}");
    }
}

#[test]
fn an_early_cut_is_a_failure_told_when_it_repeats() {
    let mut state = state();
    state.on_answer(&taken(7));
    assert!(!state.on_answer(&cut(0)).tell);
    assert!(state.on_answer(&cut(0)).tell);
    assert_eq!(
        poll_at(&state),
        (7, 1),
        "a short wait shows recovery without a full read"
    );
}

#[test]
fn a_part_that_is_refused_is_asked_for_again_before_long_and_only_as_long_as_it_is() {
    let mut state = state();
    state.on_answer(&taken(7));
    let mut longest = Duration::ZERO;
    for index in [8, 8, 8, 8, 8, 8, 8, 8] {
        let next = state.on_answer(&Polled::Partial { index: Some(index) });
        assert!(next.after.is_zero() && !next.tell, "{next:?}");
        assert!(state.is_troubled() && !state.is_failing(), "it is answered");
        assert!(!state.must_compare_whole(Some(8)), "what is answered is believed");
        let blocking = state.poll().expect("blocks");
        assert_eq!(blocking.index, 8);
        assert!(blocking.wait >= Duration::from_millis(2500), "{blocking:?}");
        longest = longest.max(blocking.wait);
    }
    assert_eq!(longest, Duration::from_secs(30));
    state.on_answer(&taken(8));
    assert_eq!(poll_at(&state), (8, 300));
    assert!(!state.is_troubled());
}

#[test]
fn unreachable_keeps_the_index_for_a_while() {
    let mut state = state();
    state.on_answer(&taken(7));
    let lost = Polled::Lost {
        failure: TransportFailure::Connect,
        after: Duration::ZERO,
    };
    assert!(!state.on_answer(&lost).tell);
    let mut longest = Duration::ZERO;
    for _ in 1..FORGET_AFTER {
        let next = state.on_answer(&lost);
        assert!(next.tell);
        longest = longest.max(next.after);
    }
    assert_eq!(poll_at(&state).0, 7);
    assert!(state.must_compare_whole(Some(8)));
    state.on_answer(&lost);
    assert_eq!(state.poll(), None);
    for _ in 0..20 {
        longest = longest.max(state.on_answer(&lost).after);
    }
    assert!((5..=15).contains(&longest.as_secs()), "{longest:?}");
    state.on_answer(&taken(9));
    assert!(
        state.on_answer(&lost).after < Duration::from_secs(1),
        "starts over"
    );
}

#[test]
fn an_agent_beside_us_is_asked_again_within_a_second_but_not_when_it_refuses() {
    let local = ApiAddress::parse(Product::Consul, "unix:///run/consul.sock", false).unwrap();
    let timing = WatchTiming::towards(&local);
    let mut state = WatchState::new(&timing);
    let lost = Polled::Lost {
        failure: TransportFailure::Connect,
        after: Duration::ZERO,
    };
    for _ in 0..30 {
        assert!(state.on_answer(&lost).after <= Duration::from_secs(1));
    }
    let longest = (0..30).map(|_| state.on_answer(&refused(403)).after).max();
    assert!(longest.unwrap() > Duration::from_secs(10), "{longest:?}");
}

#[test]
fn refusals() {
    for (status, tell, at_least) in [
        (403, true, 0),
        (401, true, 0),
        (429, false, 0),
        (500, false, 0),
        (503, false, 0),
        (400, true, 30),
        (301, true, 30),
    ] {
        let mut state = state();
        state.on_answer(&taken(7));
        let next = state.on_answer(&refused(status));
        assert_eq!(next.tell, tell, "{status}");
        assert!(
            next.after >= Duration::from_secs(at_least) && !next.after.is_zero(),
            "{status} {next:?}"
        );
        assert_eq!(poll_at(&state), (7, 1), "{status}: the index stands");
        assert!(state.is_troubled(), "{status}");
    }
}

#[test]
fn retry_after_is_honoured() {
    let mut state = state();
    let next = state.on_answer(&Polled::Refused {
        status: 429,
        retry_after: Some(Duration::from_secs(17)),
    });
    assert!(next.after >= Duration::from_secs(17));
}

#[test]
fn garbage_keeps_the_index_and_is_told() {
    let mut state = state();
    state.on_answer(&taken(7));
    assert!(state.on_answer(&Polled::Unreadable).tell);
    assert_eq!(poll_at(&state).0, 7);
}

#[test]
fn doubt_polls_with_short_waits_until_it_ends() {
    let mut state = state();
    state.on_answer(&taken(7));
    let next = state.on_answer(&Polled::Doubted { index: Some(9) });
    assert!(next.tell && !next.after.is_zero());
    let (index, wait) = poll_at(&state);
    assert!(index == 9 && wait <= 8, "{index} {wait}");
    for _ in 0..10 {
        state.on_answer(&Polled::Doubted { index: Some(9) });
    }
    let wait = poll_at(&state).1;
    assert!((30..=90).contains(&wait), "{wait}");
    assert!(state.must_compare_whole(Some(9)));
    state.on_answer(&taken(9));
    assert_eq!(poll_at(&state), (9, 300));
    assert!(!state.is_troubled());
}

/// Cuts of one age each, twice in a row. With the figures that a watch begins with, wherever its agent is.
#[test]
fn the_figures_that_are_shipped_tell_a_habit_from_a_restart_and_from_a_failure() {
    for address in ["127.0.0.1:8500", "https://consul.example.com:8501"] {
        let address = ApiAddress::parse(Product::Consul, address, true).unwrap();
        for (cut_at, wait, failed) in [
            // Below a second it is a failure.
            (0.0, 1.0, true),
            (0.999, 1.0, true),
            // Below ten it is a restart, or something that is broken in another way: no shorter wait mends it.
            (1.0, 300.0, false),
            (9.999, 300.0, false),
            (10.0, 8.333, false),
            // Consul of late 1.2x, nginx, and balancers that allow five minutes.
            (30.0, 25.0, false),
            (60.0, 50.0, false),
            (300.0, 250.0, false),
        ] {
            let timing = WatchTiming::towards(&address);
            let mut state = WatchState::new(&timing);
            state.on_answer(&taken(7));
            let lost = Polled::Lost {
                failure: TransportFailure::Cut,
                after: Duration::from_secs_f64(cut_at),
            };
            assert!(!state.on_answer(&lost).tell, "{cut_at}");
            if !failed {
                state.on_answer(&taken(7));
            }
            assert_eq!(state.on_answer(&lost).tell, failed, "{cut_at}");
            assert_eq!(state.is_troubled(), failed, "{cut_at}");
            if !failed {
                state.on_answer(&taken(7));
            }
            let polled = state.poll().expect("the index stands");
            assert_eq!(polled.index, 7, "{cut_at}");
            let asked = polled.wait.as_secs_f64();
            assert!((asked - wait).abs() < 0.001, "{cut_at}: {asked}");
        }
    }
}

/// What an hour costs in which nothing changes, behind whoever cuts polls at this age.
fn an_hour(cut_at: Duration) -> (u32, u32, u32) {
    let mut state = state();
    state.on_answer(&taken(7));
    let (mut polls, mut cuts, mut told) = (0, 0, 0);
    let mut clock = Duration::ZERO;
    while clock < Duration::from_secs(3600) {
        // Consul adds up to a sixteenth, so that not all polls end at once.
        let held = state.poll().expect("blocks").wait * 17 / 16;
        polls += 1;
        let polled = if held < cut_at {
            taken(7)
        } else {
            cuts += 1;
            Polled::Lost {
                failure: TransportFailure::Cut,
                after: cut_at,
            }
        };
        let next = state.on_answer(&polled);
        assert!(!next.woken && !state.is_troubled(), "nothing happened");
        told += u32::from(next.tell);
        clock += held.min(cut_at) + next.after;
    }
    (polls, cuts, told)
}

#[test]
fn an_hour_behind_a_proxy_that_cuts_polls_is_told_to_nobody_and_costs_little() {
    // Nobody cuts: one poll in 300 s and a sixteenth.
    assert_eq!(an_hour(Duration::MAX), (12, 0, 0));
    for (seconds, polls, expected) in [
        (10, 400..=430, 5..=6),
        (30, 130..=142, 3..=3),
        (60, 69..=72, 2..=2),
        (300, 15..=17, 2..=2),
    ] {
        let (asked, cuts, told) = an_hour(Duration::from_secs(seconds));
        // Two make a habit, and then it is met. After a hundred polls one more shows that it still is one.
        assert!(expected.contains(&cuts), "{seconds}: {cuts}");
        assert!(told == 0 && polls.contains(&asked), "{seconds}: {asked} {told}");
    }
    // So early that no wait is short enough to trust: each long one is cut, and a short one follows it that is not.
    let (polls, cuts, told) = an_hour(Duration::from_secs(5));
    assert!(cuts.abs_diff(polls / 2) <= 1, "{polls} {cuts}");
    assert!(told == 0 && (720..=900).contains(&polls), "{polls} {told}");
}

#[test]
fn two_restarts_that_look_like_a_habit_are_forgotten() {
    let mut state = state();
    state.on_answer(&taken(7));
    for _ in 0..2 {
        state.on_answer(&cut(12));
        state.on_answer(&taken(7));
    }
    let mut polls = 0;
    while poll_at(&state).1 < 300 {
        assert_eq!(poll_at(&state), (7, 10));
        state.on_answer(&taken(7));
        polls += 1;
    }
    assert!((90..=100).contains(&polls), "{polls}");
}

#[test]
fn a_server_that_cuts_whatever_is_asked_is_told_and_left_in_peace() {
    let mut state = state();
    state.on_answer(&taken(7));
    let mut nexts = (0..8).map(|_| state.on_answer(&cut(2))).collect::<Vec<_>>();
    let told: Vec<bool> = nexts.iter().map(|next| next.tell).collect();
    assert_eq!(told, [false, false, true, true, true, true, true, true]);
    let last = nexts.pop().expect("eight").after;
    assert!(last > Duration::from_secs(2), "{last:?}");
    // One answer, and it is as before.
    state.on_answer(&taken(8));
    assert_eq!(poll_at(&state), (8, 300));
    assert!(!state.is_troubled() && !state.on_answer(&cut(2)).tell);
}

/// Who starts waits for every first answer.
#[test]
fn a_first_read_that_hangs_is_told_at_once_and_a_poll_that_hangs_the_second_time() {
    let hung = Polled::Lost {
        failure: TransportFailure::TimedOut,
        after: Duration::from_secs(20),
    };
    let mut state = state();
    assert!(state.on_answer(&hung).tell);
    state.on_answer(&taken(7));
    assert!(!state.on_answer(&hung).tell);
    assert!(state.on_answer(&hung).tell);
}

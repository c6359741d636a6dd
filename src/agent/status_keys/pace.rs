use std::time::Duration;

use crate::sources::retry::jittered;

/// Between two writes of one node.
const LEAST: Duration = Duration::from_secs(10);
/// Writes a second that all nodes together may cost Consul.
const BUDGET: u32 = 50;

/// The shortest time between two writes of one node among so many.
pub(super) fn interval(nodes: usize) -> Duration {
    LEAST.max(all_once(nodes))
}

/// Until the next look: the interval and up to three eighths more, so that nodes started together drift apart.
pub(super) async fn pause(nodes: usize) {
    let interval = interval(nodes);
    tokio::time::sleep(interval + jittered(interval / 4)).await;
}

/// Before the first write with a session: anywhere in the time that the budget allows for one write of each node.
pub(super) async fn spread(nodes: usize) {
    // Without randomness the middle is as good a place as any.
    tokio::time::sleep(place(nodes, getrandom::u32().unwrap_or(u32::MAX / 2))).await;
}

fn place(nodes: usize, random: u32) -> Duration {
    all_once(nodes).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// How long it takes until each node has written once.
fn all_once(nodes: usize) -> Duration {
    Duration::from_secs(1) * u32::try_from(nodes).unwrap_or(u32::MAX) / BUDGET
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_nodes_together_stay_within_the_budget() {
        assert_eq!(interval(1), Duration::from_secs(10));
        assert_eq!(interval(500), Duration::from_secs(10));
        assert_eq!(interval(1000), Duration::from_secs(20));
        assert_eq!(interval(10_000), Duration::from_secs(200));
        assert!(interval(usize::MAX) >= Duration::from_secs(200));
    }

    #[test]
    fn nodes_that_get_a_session_together_write_apart() {
        assert_eq!(all_once(1000), Duration::from_secs(20));
        assert_eq!(place(1000, 0), Duration::ZERO);
        assert_eq!(place(1000, u32::MAX), Duration::from_secs(20));
        let middle = place(1000, u32::MAX / 2).as_secs_f64();
        assert!((9.9..10.1).contains(&middle), "{middle}");
        assert!(place(1, u32::MAX) < Duration::from_millis(50));
    }
}

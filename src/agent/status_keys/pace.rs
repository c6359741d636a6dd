use std::time::Duration;

use crate::sources::retry::jittered;

/// Between two writes of one node.
const LEAST: Duration = Duration::from_secs(10);
/// Writes a second that all nodes together may cost Consul.
const BUDGET: u32 = 50;

/// The shortest time between two writes of one node among so many.
pub(super) fn interval(nodes: usize) -> Duration {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    LEAST.max(Duration::from_secs(1) * nodes / BUDGET)
}

/// Until the next look: the interval and up to three eighths more, so that nodes started together drift apart.
pub(super) async fn pause(nodes: usize) {
    let interval = interval(nodes);
    tokio::time::sleep(interval + jittered(interval / 4)).await;
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
}

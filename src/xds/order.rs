//! The order of a push and its bounds, each with the outage it prevents.
//!
//! Additions go in the order of `ResourceKind::ALL`: clusters, endpoints, secrets, runtime values, listeners, scoped routes, routes.
//! What is referred to comes before what refers to it. Removals go the other way round, enforced by [`super::in_use`]:
//! a resource stays while something at Envoy that is about to change still refers to it.

use std::time::Duration;

use super::exchange::Variant;
use crate::envoy::ResourceKind;

/// How long a route waits for a new cluster; longer, up to the other bound, where its instances are checked first and a
/// check may take longer. A cluster that never gets warm then answers 503 on its own routes,
/// instead of keeping a route change away from Envoy for ever.
pub const GATE_PATIENCE: Duration = Duration::from_secs(2);

/// How long a route waits while Envoy has said nothing at all since the cluster was sent: its main thread is busy
/// (10,000 new clusters take it five seconds), and a route sent now would be applied before the endpoints.
pub const GATE_PATIENCE_SILENT: Duration = Duration::from_secs(10);

/// What the first check of an instance may take beside its own time-out: its endpoints come after the cluster, and a change
/// of theirs meanwhile has Envoy begin with another.
pub const CHECK_SLACK: Duration = Duration::from_secs(1);

/// How long a removal waits for the acknowledgement of the change that stopped using it. Too late costs memory,
/// too early costs requests; Envoy needs 1.4 s for a table of 100,000 hosts.
pub const REMOVAL_PATIENCE: Duration = Duration::from_secs(10);

/// How long what only connections from before use is kept after a listener changed the form of its routes. Three times as
/// long as an Envoy of ours drains them unless it is told otherwise; too late costs memory, too early requests.
pub const DRAIN_PATIENCE: Duration = Duration::from_secs(60);

/// After a reconnect, nothing used is removed before Envoy had time to name everything it holds: its first requests
/// for the different kinds arrive within milliseconds of each other, but one after the other.
pub const RECONNECT_SETTLE: Duration = Duration::from_secs(1);

/// Envoy holds back the acknowledgement of clusters until all of them are warm (up to 15 s), while it goes on applying.
/// Waiting for it would let one cold cluster hold up every other new cluster, so the next response follows after this.
/// Normally the answer comes within milliseconds; a whole state is sent less often than a change.
pub fn cluster_overlap(variant: Variant) -> Duration {
    match variant {
        Variant::Delta => Duration::from_millis(100),
        Variant::StateOfTheWorld => Duration::from_millis(500),
    }
}

/// Unacknowledged cluster responses on one stream. Envoy waits 15 s for a cold cluster at most: room for one response
/// every 150 ms.
pub const CLUSTER_OVERLAP_MAX: usize = 100;

/// Refusals in a row before the next push of that kind is delayed: a pipeline that puts things right within the first
/// few never notices.
pub const FREE_REFUSALS: u32 = 3;
pub const REFUSAL_DELAY: Duration = Duration::from_millis(100);
/// "The rest is pushed again within 1 s" must hold.
pub const REFUSAL_DELAY_MAX: Duration = Duration::from_millis(800);

/// Pauses before a listener is sent again that the node, not Envoy, could not open. Binding costs nothing, and who frees
/// a port waits for it.
pub const NODE_RETRY: Duration = Duration::from_millis(500);
pub const NODE_RETRY_MAX: Duration = Duration::from_secs(5);

/// Kinds that Envoy asks for without names. A state-of-the-world response of them is the whole state: what is missing
/// in it is deleted.
pub fn is_wildcard(kind: ResourceKind) -> bool {
    matches!(
        kind,
        ResourceKind::Cluster | ResourceKind::Listener | ResourceKind::ScopedRoute
    )
}

/// Kinds of which Envoy's refusal names every bad resource of the response. Measured for clusters and listeners.
pub fn is_blame_complete(kind: ResourceKind) -> bool {
    matches!(kind, ResourceKind::Cluster | ResourceKind::Listener)
}

/// Kinds that wait for the clusters they need.
pub fn is_gated(kind: ResourceKind) -> bool {
    matches!(
        kind,
        ResourceKind::Listener | ResourceKind::ScopedRoute | ResourceKind::Route
    )
}

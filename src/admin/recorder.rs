//! Counts what a look at the present state cannot show.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use crate::envoy::ResourceKind;

use super::resources::kind_name;

pub(super) type Labels = Vec<(&'static str, String)>;

/// From an endpoint change (about 1 ms) to a change of thousands of hosts.
const LATENCY_BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

/// Shared by whoever publishes, hears of refusals or starts Envoys. Clones count together.
#[derive(Clone, Debug)]
pub struct Recorder {
    pub(super) publish_latency: Histogram,
    pub(super) nacks: Family<Labels, Counter>,
    pub(super) envoy_starts: Family<Labels, Counter>,
}

impl Recorder {
    pub fn new() -> Self {
        Self {
            publish_latency: Histogram::new(LATENCY_BUCKETS),
            nacks: Family::default(),
            envoy_starts: Family::default(),
        }
    }

    /// From taking a change from its source to handing the new resources to the streams.
    pub fn published(&self, latency: Duration) {
        self.publish_latency.observe(latency.as_secs_f64());
    }

    /// An Envoy refused resources of this kind.
    pub fn refused(&self, gateway: &Arc<str>, kind: ResourceKind) {
        let labels = vec![("gateway", gateway.to_string()), ("kind", kind_name(kind))];
        self.nacks.get_or_create(&labels).inc();
    }

    /// A supervised Envoy process was started.
    pub fn envoy_started(&self, gateway: &Arc<str>) {
        self.envoy_starts
            .get_or_create(&vec![("gateway", gateway.to_string())])
            .inc();
    }
}

impl crate::pipeline::Meter for Recorder {
    fn published(&self, latency: Duration) {
        Recorder::published(self, latency);
    }

    fn refused(&self, gateway: &Arc<str>, kind: ResourceKind) {
        Recorder::refused(self, gateway, kind);
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

//! Make before break: a route that needs a cluster which is new on this stream waits until that cluster is warm.
//!
//! Per cluster, so that a cold one delays its own routes only; bounded, so that it does not delay them for ever. Meanwhile
//! Envoy keeps the old version of the route. A cluster with endpoints in the set (under its own name) is in place when
//! Envoy acknowledged these endpoints after the cluster, any other when Envoy acknowledged the cluster; in both cases
//! the secrets it needs must be acknowledged too. One whose instances are checked must be acknowledged itself, whatever it
//! has: Envoy takes endpoints at once, and the cluster after the first check of each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::order::{CHECK_SLACK, GATE_PATIENCE, GATE_PATIENCE_SILENT};
use super::subscription::{Held, InFlight};
use crate::envoy::{Resource, ResourceKind, ResourceSet};

#[derive(Default)]
pub(super) struct Gates {
    by_cluster: BTreeMap<Arc<str>, Gate>,
}

struct Gate {
    since: Duration,
    patience: Duration,
    is_checked: bool,
    sent: Option<Sent>,
    /// Acknowledged after the cluster was sent.
    cluster_acked: bool,
    endpoints_acked: bool,
}

struct Sent {
    nonce: u64,
    /// When Envoy first said anything afterwards: before that it is busy, not cold.
    reacted_at: Option<Duration>,
}

impl Gates {
    pub(super) fn is_empty(&self) -> bool {
        self.by_cluster.is_empty()
    }

    /// Of a cluster that Envoy has not been told, or was told to remove.
    pub(super) fn add(&mut self, cluster: &Resource, now: Duration) {
        let gate = self.by_cluster.entry(cluster.name.clone()).or_insert(Gate {
            since: now,
            patience: GATE_PATIENCE,
            is_checked: false,
            sent: None,
            cluster_acked: false,
            endpoints_acked: false,
        });
        gate.forget_sent();
        gate.is_checked = cluster.first_check.is_some();
        gate.patience = match cluster.first_check {
            Some(first) => (first + CHECK_SLACK).clamp(GATE_PATIENCE, GATE_PATIENCE_SILENT),
            None => GATE_PATIENCE,
        };
    }

    /// A cluster response leaves.
    pub(super) fn on_sent(&mut self, clusters: &[Arc<Resource>], nonce: u64) {
        for cluster in clusters {
            if let Some(gate) = self.by_cluster.get_mut(&cluster.name) {
                gate.forget_sent();
                gate.sent = Some(Sent {
                    nonce,
                    reacted_at: None,
                });
            }
        }
    }

    /// `answers`: the response that it is the answer to.
    pub(super) fn on_request(&mut self, answers: Option<u64>, now: Duration) {
        for gate in self.by_cluster.values_mut() {
            if let Some(sent) = &mut gate.sent
                && answers.is_none_or(|nonce| nonce >= sent.nonce)
            {
                sent.reacted_at.get_or_insert(now);
            }
        }
    }

    pub(super) fn on_acked(&mut self, kind: ResourceKind, settled: &[InFlight]) {
        if self.is_empty() {
            return;
        }
        for response in settled {
            for resource in &response.changed {
                let Some(gate) = self.by_cluster.get_mut(&resource.name) else {
                    continue;
                };
                let Some(sent) = &gate.sent else { continue };
                match kind {
                    ResourceKind::Cluster if response.nonce >= sent.nonce => gate.cluster_acked = true,
                    ResourceKind::Endpoint if response.nonce > sent.nonce => gate.endpoints_acked = true,
                    _ => {}
                }
            }
        }
    }

    /// Opens the gates of clusters that are in place, gone, or waited for long enough.
    pub(super) fn review(
        &mut self,
        target: &ResourceSet,
        told_clusters: &Held,
        acked_secrets: &Held,
        now: Duration,
    ) {
        self.by_cluster.retain(|name, gate| {
            let Some(cluster) = target.get(ResourceKind::Cluster, name) else {
                // Back before Envoy is told to remove it, it is as cold as it was.
                return told_clusters.contains_key(name) && now < gate.deadline();
            };
            let has_endpoints = target.get(ResourceKind::Endpoint, name).is_some();
            let is_warm = match (has_endpoints, gate.is_checked) {
                (true, false) => gate.endpoints_acked,
                (true, true) => gate.endpoints_acked && gate.cluster_acked,
                (false, _) => gate.cluster_acked,
            };
            let has_secrets = || {
                cluster
                    .needs
                    .iter()
                    .filter(|need| need.kind == ResourceKind::Secret)
                    .filter(|need| target.get(ResourceKind::Secret, &need.name).is_some())
                    .all(|need| acked_secrets.contains_key(&need.name))
            };
            let is_over = now >= gate.deadline();
            if is_over {
                tracing::debug!(cluster = %name, "route no longer waits for its new cluster");
            }
            let is_in_place = is_warm && has_secrets();
            !is_over && !is_in_place
        });
        give_back_room(&mut self.by_cluster);
    }

    pub(super) fn withholds(&self, resource: &Resource) -> bool {
        !self.is_empty()
            && resource
                .needs
                .iter()
                .any(|need| need.kind == ResourceKind::Cluster && self.by_cluster.contains_key(&need.name))
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.by_cluster.values().map(Gate::deadline).min()
    }
}

/// An emptied map keeps a node for eleven entries, and these are mostly empty, seven times for each Envoy.
pub(super) fn give_back_room<V>(map: &mut BTreeMap<Arc<str>, V>) {
    if map.is_empty() {
        *map = BTreeMap::new();
    }
}

impl Gate {
    fn forget_sent(&mut self) {
        self.sent = None;
        self.cluster_acked = false;
        self.endpoints_acked = false;
    }

    fn deadline(&self) -> Duration {
        let at_last = self.since + GATE_PATIENCE_SILENT;
        let reacted_at = self.sent.as_ref().and_then(|sent| sent.reacted_at);
        reacted_at.map_or(at_last, |at| at_last.min(at + self.patience))
    }
}

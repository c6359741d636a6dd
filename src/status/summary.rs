use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::node_report::{EnvoyCount, NodeReport, is_zero};
use crate::diagnostics::Diagnostic;

/// All nodes together: what the leader writes to `<prefix>/status/summary`. It only adds up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub leader: String,
    pub nodes: usize,
    /// Nodes whose key holds nothing that can be read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub nodes_unreadable: usize,
    pub gateways: BTreeMap<String, EnvoyCount>,
    pub objects: BTreeMap<String, ObjectSummary>,
    /// Some node had more objects than its key holds; those without trouble are left out first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub objects_omitted: usize,
    /// The worst ones of all nodes, each once.
    pub diagnostics: Vec<Diagnostic>,
}

/// One object over all nodes that report it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectSummary {
    /// Nodes that report it.
    pub nodes: usize,
    pub accepted: usize,
    pub resolved: usize,
    /// Programmed: Envoys that acknowledged it, of those that have a part in it.
    pub acknowledged: usize,
    pub envoys: usize,
}

impl Summary {
    pub fn of(leader: &str, reports: &[NodeReport], unreadable: usize) -> Self {
        let mut summary = Self {
            leader: leader.to_owned(),
            nodes: reports.len(),
            nodes_unreadable: unreadable,
            ..Self::default()
        };
        for report in reports {
            for (name, count) in &report.gateways {
                let entry = summary.gateways.entry(name.clone()).or_insert(EnvoyCount {
                    published: true,
                    ..EnvoyCount::default()
                });
                entry.published &= count.published;
                entry.acknowledged = entry.acknowledged.saturating_add(count.acknowledged);
                entry.envoys = entry.envoys.saturating_add(count.envoys);
            }
            for (name, object) in &report.objects {
                let entry = summary.objects.entry(name.clone()).or_default();
                entry.nodes += 1;
                entry.accepted += usize::from(object.accepted);
                entry.resolved += usize::from(object.resolved);
                entry.acknowledged = entry.acknowledged.saturating_add(object.acknowledged);
                entry.envoys = entry.envoys.saturating_add(object.envoys);
            }
            summary.objects_omitted = summary.objects_omitted.max(report.objects_omitted);
            summary.diagnostics.extend(report.diagnostics.iter().cloned());
        }
        summary.diagnostics.sort();
        summary.diagnostics.dedup();
        summary.diagnostics.truncate(DIAGNOSTICS);
        summary.bound();
        summary
    }

    /// Keeps the value far below what one key may hold: the troubled objects stay.
    fn bound(&mut self) {
        let over = self.objects.len().saturating_sub(OBJECTS);
        if over == 0 {
            return;
        }
        self.objects_omitted += over;
        let mut fine: Vec<String> = Vec::new();
        let mut troubled: Vec<String> = Vec::new();
        for (name, object) in &self.objects {
            let list = if object.is_fine() {
                &mut fine
            } else {
                &mut troubled
            };
            list.push(name.clone());
        }
        for name in fine.iter().rev().chain(troubled.iter().rev()).take(over) {
            self.objects.remove(name);
        }
    }
}

impl ObjectSummary {
    pub fn is_fine(&self) -> bool {
        self.accepted == self.nodes && self.resolved == self.nodes && self.acknowledged == self.envoys
    }
}

const OBJECTS: usize = 1000;
const DIAGNOSTICS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::ObjectReport;

    fn report(node: &str, accepted: bool, acknowledged: usize) -> NodeReport {
        let object = ObjectReport {
            accepted,
            resolved: true,
            acknowledged,
            envoys: 1,
            problems: 0,
        };
        NodeReport {
            node: node.to_owned(),
            objects: BTreeMap::from([("http_route/a".to_owned(), object)]),
            gateways: BTreeMap::from([(
                "edge".to_owned(),
                EnvoyCount {
                    published: accepted,
                    acknowledged,
                    envoys: 1,
                },
            )]),
            ..NodeReport::default()
        }
    }

    #[test]
    fn adds_up_over_nodes() {
        let summary = Summary::of("n1", &[report("n1", true, 1), report("n2", false, 0)], 1);
        let expected = ObjectSummary {
            nodes: 2,
            accepted: 1,
            resolved: 2,
            acknowledged: 1,
            envoys: 2,
        };
        assert_eq!(summary.objects["http_route/a"], expected);
        let edge = summary.gateways["edge"];
        assert_eq!((edge.published, edge.acknowledged, edge.envoys), (false, 1, 2));
        assert_eq!((summary.nodes, summary.nodes_unreadable), (2, 1));
    }

    #[test]
    fn the_troubled_stay_in_a_bounded_summary() {
        let mut one = report("n1", false, 0);
        one.objects.insert("zzz".to_owned(), one.objects["http_route/a"]);
        for n in 0..OBJECTS {
            let fine = ObjectReport {
                accepted: true,
                resolved: true,
                acknowledged: 1,
                envoys: 1,
                problems: 0,
            };
            one.objects.insert(format!("a{n:05}"), fine);
        }
        let summary = Summary::of("n1", &[one], 0);
        assert_eq!((summary.objects.len(), summary.objects_omitted), (OBJECTS, 2));
        assert!(summary.objects.contains_key("zzz"));
        assert!(serde_json::to_vec(&summary).unwrap().len() < 200_000);
    }
}

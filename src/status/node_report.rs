use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::board::Status;
use super::object::ObjectStatus;
use super::programmed::{Programmed, settled};
use super::watch::CertificatePhase;
use crate::diagnostics::Diagnostic;
use crate::pipeline::View;
use crate::xds::StreamView;

/// What one agent tells the others: the value of its key `<prefix>/status/nodes/<node>`.
///
/// Bounded, because each node writes one and the leader reads them all; never a secret, because whoever may read KV
/// reads it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    pub node: String,
    pub version: String,
    /// Counts this agent's publications.
    pub revision: u64,
    pub stale: bool,
    pub gateways: BTreeMap<String, EnvoyCount>,
    /// By `kind/name`, the troubled ones first kept.
    pub objects: BTreeMap<String, ObjectReport>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub objects_omitted: usize,
    /// Name to when it ends; what is not here yet has no end.
    pub certificates: BTreeMap<String, CertificateReport>,
    /// The worst ones.
    pub diagnostics: Vec<Diagnostic>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub diagnostics_omitted: usize,
}

/// Envoys of one gateway on one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvoyCount {
    pub published: bool,
    /// Those that acknowledged everything as published.
    pub acknowledged: usize,
    pub envoys: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectReport {
    pub accepted: bool,
    pub resolved: bool,
    pub acknowledged: usize,
    pub envoys: usize,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub problems: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateReport {
    pub phase: CertificatePhase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
}

impl ObjectReport {
    fn of(object: &ObjectStatus) -> Self {
        Self {
            accepted: object.accepted.status,
            resolved: object.resolved.status,
            acknowledged: object.programmed.acknowledged,
            envoys: object.programmed.of,
            problems: object.diagnostics.len() + object.accepted.reasons.len(),
        }
    }

    pub fn is_fine(&self) -> bool {
        self.accepted && self.resolved && self.acknowledged == self.envoys && self.problems == 0
    }
}

impl NodeReport {
    pub fn of(status: &Status, node: &str, version: &str) -> Self {
        let mut objects: Vec<(String, ObjectReport)> = status
            .objects
            .iter()
            .map(|object| {
                let name = format!("{}/{}", object.kind.as_str(), object.name);
                (name, ObjectReport::of(object))
            })
            .collect();
        // Two declarations of one name: the holder is the one that is accepted.
        objects.sort_by(|(one_name, one), (other_name, other)| {
            (one.is_fine(), one_name, !one.accepted).cmp(&(other.is_fine(), other_name, !other.accepted))
        });
        let objects_omitted = objects.len().saturating_sub(OBJECTS);
        let mut kept: BTreeMap<String, ObjectReport> = BTreeMap::new();
        for (name, report) in objects.into_iter().take(OBJECTS) {
            let entry = kept.entry(name).or_insert(report);
            if report.accepted && !entry.accepted {
                *entry = report;
            }
        }
        // Severity sorts first in a diagnostic, and the status has them sorted.
        let diagnostics: Vec<Diagnostic> = status
            .diagnostics
            .iter()
            .take(DIAGNOSTICS)
            .map(shortened)
            .collect();
        Self {
            node: node.to_owned(),
            version: version.to_owned(),
            revision: status.revision,
            stale: status.stale,
            gateways: status
                .gateways
                .iter()
                .map(|gateway| {
                    let count = EnvoyCount {
                        published: gateway.published_at.is_some(),
                        acknowledged: gateway.programmed.acknowledged,
                        envoys: gateway.programmed.of,
                    };
                    (gateway.name.clone(), count)
                })
                .collect(),
            objects: kept,
            objects_omitted,
            certificates: status
                .certificates
                .iter()
                .filter(|certificate| certificate.phase != CertificatePhase::Unused)
                .take(CERTIFICATES)
                .map(|certificate| {
                    let report = CertificateReport {
                        phase: certificate.phase,
                        not_after: certificate.not_after.clone(),
                    };
                    (certificate.name.clone(), report)
                })
                .collect(),
            diagnostics,
            diagnostics_omitted: status.diagnostics.len().saturating_sub(DIAGNOSTICS),
        }
    }
}

/// Tells cheaply whether a new report can differ from the last one: no look at any resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Signature {
    streams: Vec<u64>,
    settled: Vec<Programmed>,
}

impl Signature {
    pub fn of(view: &View, streams: &[StreamView]) -> Self {
        let gateways = view.gateways.iter();
        Self {
            streams: streams.iter().map(|stream| stream.id.0).collect(),
            settled: gateways
                .map(|gateway| settled(gateway.compiler.resources(), streams, &gateway.name))
                .collect(),
        }
    }

    /// While an Envoy is behind, its part may move at any time.
    pub fn is_settled(&self) -> bool {
        self.settled.iter().all(|programmed| programmed.is_complete())
    }
}

/// Messages may quote what an Envoy or a server said, at any length.
fn shortened(diagnostic: &Diagnostic) -> Diagnostic {
    let cut = |text: &String| -> String { text.chars().take(TEXT).collect() };
    Diagnostic {
        message: cut(&diagnostic.message),
        reason: diagnostic.reason.as_ref().map(cut),
        fix: diagnostic.fix.as_ref().map(cut),
        ..diagnostic.clone()
    }
}

pub(super) fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// About 20 KB of the 512 that one key may hold; a thousand nodes together 20 MB.
const OBJECTS: usize = 200;
const CERTIFICATES: usize = 200;
const DIAGNOSTICS: usize = 50;
/// Characters of each part of a diagnostic.
const TEXT: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ObjectKind;
    use crate::diagnostics::Code;
    use crate::status::Condition;

    fn status() -> Status {
        Status {
            revision: 7,
            ..Status::default()
        }
    }

    fn object(name: &str, reasons: &[&str]) -> ObjectStatus {
        let fine = Condition {
            status: true,
            reasons: Vec::new(),
        };
        ObjectStatus {
            kind: ObjectKind::HttpRoute,
            name: name.to_owned(),
            document: "portreeve/config/a".to_owned(),
            line: 1,
            accepted: Condition {
                status: reasons.is_empty(),
                reasons: reasons.iter().map(ToString::to_string).collect(),
            },
            resolved: fine,
            programmed: Programmed {
                acknowledged: 1,
                of: 1,
            },
            diagnostics: Vec::new(),
        }
    }

    #[test]
    fn the_troubled_are_kept_when_there_is_no_room_for_all() {
        let mut status = status();
        status.objects = (0..1000).map(|n| object(&format!("r{n:04}"), &[])).collect();
        status.objects.push(object("zz", &["bad"]));
        status.diagnostics = (0..80)
            .map(|_| Diagnostic::error(Code::SyntaxError, "x".repeat(10_000)))
            .collect();
        let report = NodeReport::of(&status, "n", "1");
        assert_eq!((report.objects.len(), report.objects_omitted), (OBJECTS, 801));
        assert!(!report.objects["http_route/zz"].accepted);
        assert_eq!((report.diagnostics.len(), report.diagnostics_omitted), (50, 30));
        let bytes = serde_json::to_vec(&report).unwrap();
        assert!(bytes.len() < 100_000, "{}", bytes.len());
        assert_eq!(serde_json::from_slice::<NodeReport>(&bytes).unwrap(), report);
    }

    #[test]
    fn the_holder_of_a_name_speaks_for_it() {
        let mut status = status();
        status.objects = vec![object("a", &["b:1:1 holds the name"]), object("a", &[])];
        assert!(NodeReport::of(&status, "n", "1").objects["http_route/a"].accepted);
        status.objects.reverse();
        assert!(NodeReport::of(&status, "n", "1").objects["http_route/a"].accepted);
    }
}

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::envoy::EnvoyStatus;
use super::excerpt::Counts;
use super::listener::{ListenerStatus, listeners};
use super::object::{DocumentStatus, ObjectStatus};
use super::programmed::{Programmed, programmed, settled};
use super::refused::refused_by_nodes;
use super::source::SourceReading;
use super::uncovered::uncovered;
use super::undeclared::undeclared;
use super::watch::{CertificateStatus, ServiceStatus, certificates, expiry, services};
use super::withheld::{keyless_on_nodes, withheld_from_nodes};
use crate::diagnostics::{Diagnostic, Severity};
use crate::envoy::ResourceKind;
use crate::pipeline::{GatewayView, View};
use crate::xds::StreamView;

/// Everything an operator asks about one agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Counts publications.
    pub revision: u64,
    /// Serving what the disk held: the document source has not answered since the start.
    pub stale: bool,
    #[serde(default)]
    pub counts: Counts,
    pub gateways: Vec<GatewayStatus>,
    #[serde(default)]
    pub listeners: Vec<ListenerStatus>,
    pub documents: Vec<DocumentStatus>,
    pub objects: Vec<ObjectStatus>,
    pub services: Vec<ServiceStatus>,
    pub certificates: Vec<CertificateStatus>,
    pub envoys: Vec<EnvoyStatus>,
    pub sources: Vec<SourceReading>,
    pub diagnostics: Vec<Diagnostic>,
}

/// One gateway that this agent serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatewayStatus {
    pub name: String,
    /// Some document declares it.
    pub declared: bool,
    /// Of the last change that reached Envoy. None: nothing is published, Envoys wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_at: Option<String>,
    /// What the first publication waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting_for: Vec<String>,
    /// Resources by kind.
    pub kinds: BTreeMap<ResourceKind, usize>,
    /// Envoys that run with all of it.
    pub programmed: Programmed,
}

impl Status {
    /// `now` is for what expires.
    pub fn of(view: &View, streams: &[StreamView], sources: Vec<SourceReading>, now: SystemTime) -> Self {
        let diagnostics = diagnostics(view, streams, now);
        let programmed = programmed(view, streams);
        let mut envoys: Vec<EnvoyStatus> = streams.iter().map(EnvoyStatus::of).collect();
        envoys.sort_by(|one, other| {
            (&one.gateway, &one.node, one.stream).cmp(&(&other.gateway, &other.node, other.stream))
        });
        let mut sources = sources;
        sources.sort_by(|one, other| one.name.cmp(&other.name));
        Self {
            revision: view.revision,
            stale: view.stale,
            counts: Counts::default(),
            gateways: view
                .gateways
                .iter()
                .map(|gateway| gateway_status(view, gateway, streams))
                .collect(),
            listeners: listeners(view, streams),
            documents: super::object::documents(view, &programmed),
            objects: super::object::objects(view, &programmed, &diagnostics),
            services: services(view),
            certificates: certificates(view, streams, now),
            envoys,
            sources,
            diagnostics,
        }
        .counted()
    }

    pub fn count(&self, severity: Severity) -> usize {
        self.diagnostics
            .iter()
            .filter(|diagnostic| diagnostic.severity == severity)
            .count()
    }
}

/// All there is to say: what the pipeline found, what single Envoys refuse or lack, and what only the whole shows.
pub fn diagnostics(view: &View, streams: &[StreamView], now: SystemTime) -> Vec<Diagnostic> {
    let mut all = view.diagnostics();
    all.extend(refused_by_nodes(view, streams));
    all.extend(withheld_from_nodes(view, streams));
    all.extend(keyless_on_nodes(view, streams));
    all.extend(expiry(view, now));
    all.extend(uncovered(view));
    all.extend(undeclared(view));
    all.sort();
    all.dedup();
    all
}

/// What this agent lacks to be of use. Empty: it is ready.
pub fn missing(view: &View) -> Vec<String> {
    if view.gateways.is_empty() {
        return vec!["a gateway to serve".to_owned()];
    }
    let unpublished = view
        .gateways
        .iter()
        .filter(|gateway| gateway.published_at.is_none());
    unpublished
        .flat_map(|gateway| {
            let name = &gateway.name;
            match gateway.waiting_for.as_slice() {
                [] => vec![format!("gateway {name:?}: the first publication")],
                waiting_for => waiting_for
                    .iter()
                    .map(|what| format!("gateway {name:?}: {what}"))
                    .collect(),
            }
        })
        .collect()
}

fn gateway_status(view: &View, gateway: &GatewayView, streams: &[StreamView]) -> GatewayStatus {
    let resources = gateway.compiler.resources();
    GatewayStatus {
        name: gateway.name.to_string(),
        declared: view.snapshot.config.gateway(&gateway.name).is_some(),
        published_at: gateway.published_at.map(timestamp),
        waiting_for: gateway.waiting_for.clone(),
        kinds: ResourceKind::ALL
            .into_iter()
            .map(|kind| (kind, resources.of_kind(kind).len()))
            .collect(),
        programmed: settled(resources, streams, &gateway.name),
    }
}

/// RFC 3339, in UTC, to the second.
pub(super) fn timestamp(time: SystemTime) -> String {
    // A clock before 1970 is no reason to fail.
    humantime::format_rfc3339_seconds(time.max(UNIX_EPOCH)).to_string()
}

//! Metrics in the OpenMetrics text format, which Prometheus reads.
//!
//! Gauges are made from the present state at each scrape, so that nothing can be left behind by what is gone. Label
//! values are names of gateways and sources, which the agent's settings bound, and of the certificates that end first.
//! Services are counted together, and so are discovery chains and intentions: there may be ten thousand.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::answer::ApiError;
use super::recorder::Labels;
use super::resources::kind_name;
use super::{Api, StatusReport, read};
use crate::diagnostics::{Code, Severity};
use crate::envoy::ResourceKind;
use crate::status::{DocumentPhase, ListenerPhase, SourceReading};

/// Certificates with a sample of their own.
const CERTIFICATES_NAMED: usize = 100;

/// No certificate can have this name.
const OTHERS: &str = "(others)";

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Gauge,
    Counter,
    Histogram,
}

/// One metric family, as documented and as encoded.
pub(super) struct Family {
    /// Without the `_total` that counters get.
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

const fn family(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
) -> Family {
    Family {
        name,
        kind,
        labels,
        help,
    }
}

#[rustfmt::skip]
pub(super) const FAMILIES: &[Family] = &[
    family("portreeve_build_info", Kind::Gauge, &["version"], "Always 1"),
    family("portreeve_ready", Kind::Gauge, &[], "1 when the agent is ready, as /ready says"),
    family("portreeve_stale", Kind::Gauge, &[], "1 while the agent serves what the disk held, because the document source has not answered since the start"),
    family("portreeve_publications", Kind::Counter, &[], "Changes handed to Envoys"),
    family("portreeve_publish_latency_seconds", Kind::Histogram, &[], "From taking up changes to handing the new resources to the streams, for each step that changed some; the wait in the queue before is not in it, nor are hosts that waited for the first answer about a new service"),
    family("portreeve_source_up", Kind::Gauge, &["source"], "1 when the source's last answer was good; services, discovery chains and intentions count together each, and are up when all of them are"),
    family("portreeve_source_freshness_seconds", Kind::Gauge, &["source"], "Since the source last proved what it says; of services the oldest"),
    family("portreeve_source_requests", Kind::Counter, &["source"], "Requests made of the source"),
    family("portreeve_source_errors", Kind::Counter, &["source"], "Requests of the source that failed"),
    family("portreeve_documents", Kind::Gauge, &["phase"], "Documents by phase: in_service, last_good (the present text is bad), out_of_service"),
    family("portreeve_diagnostics", Kind::Gauge, &["severity", "code"], "Problems there are now, by each code of the reference of diagnostics"),
    family("portreeve_services", Kind::Gauge, &["state"], "Watched services by state: healthy, unhealthy (no instance to send requests to), unanswered"),
    family("portreeve_credential_expiry_timestamp_seconds", Kind::Gauge, &["credential"], "When a token, client certificate or login identity of the agent's own ends, `xds certificate`: that of the xDS port, or `mesh certificate`: the gateway's in the mesh, in Unix seconds"),
    family("portreeve_certificate_expiry_timestamp_seconds", Kind::Gauge, &["certificate"], "When the certificate in service ends, in Unix seconds; the 100 that end first, and the first to end of the rest as (others)"),
    family("portreeve_resources", Kind::Gauge, &["gateway", "kind"], "Resources of the gateway"),
    family("portreeve_listeners", Kind::Gauge, &["gateway", "state"], "Declared listeners by state: open, partly (not on every Envoy), waiting (no Envoy has answered), withheld (kept back by the agent: a port clash, a certificate or key that is lacking), refused (by Envoy: a port in use)"),
    family("portreeve_xds_streams", Kind::Gauge, &["gateway"], "Envoys connected"),
    family("portreeve_xds_settled_streams", Kind::Gauge, &["gateway"], "Envoys that run with everything as published"),
    family("portreeve_xds_pending", Kind::Gauge, &["gateway"], "Resources on their way, over all Envoys of the gateway"),
    family("portreeve_xds_refused", Kind::Gauge, &["gateway"], "Resources that Envoys refuse now"),
    family("portreeve_xds_nacks", Kind::Counter, &["gateway", "kind"], "Refusals by Envoys since the agent started"),
    family("portreeve_xds_refused_clients", Kind::Counter, &["reason"], "Clients of xDS that were given nothing since the agent started: identity (no certificate or uid that is listed), gateway_not_permitted, unknown_gateway, limit, protocol"),
    family("portreeve_envoy_up", Kind::Gauge, &["gateway"], "1 while the supervised Envoy serves"),
    family("portreeve_envoy_starts", Kind::Counter, &["gateway"], "Envoy processes started or adopted since the agent started; all but the first are restarts"),
];

pub(super) async fn get(State(api): State<Api>) -> Result<Response, ApiError> {
    let text = read::aside(move || scrape(&api)).await?.map_err(|error| {
        ApiError::new(
            axum::http::StatusCode::INTERNAL_SERVER_ERROR,
            format!("metrics cannot be written: {error}"),
        )
    })?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

fn scrape(api: &Api) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Samples::of(&read::report(api))));
    let recorder = &api.recorder;
    registry.register(
        "portreeve_publish_latency_seconds",
        help("portreeve_publish_latency_seconds"),
        recorder.publish_latency.clone(),
    );
    registry.register(
        "portreeve_xds_nacks",
        help("portreeve_xds_nacks"),
        recorder.nacks.clone(),
    );
    registry.register(
        "portreeve_envoy_starts",
        help("portreeve_envoy_starts"),
        recorder.envoy_starts.clone(),
    );
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

fn help(name: &str) -> &'static str {
    FAMILIES
        .iter()
        .find(|family| family.name == name)
        .map_or("", |family| family.help)
}

/// What the present state says, family by family.
#[derive(Debug, Default)]
struct Samples(Vec<(&'static str, Labels, f64)>);

impl Samples {
    fn of(report: &StatusReport) -> Self {
        let mut samples = Self::default();
        samples.agent(report);
        samples.sources(&report.status.sources);
        samples.configuration(report);
        samples.envoys(report);
        samples
    }

    fn add(&mut self, name: &'static str, labels: Labels, value: f64) {
        self.0.push((name, labels, value));
    }

    fn agent(&mut self, report: &StatusReport) {
        let status = &report.status;
        self.add(
            "portreeve_build_info",
            vec![("version", report.agent.version.clone())],
            1.0,
        );
        self.add("portreeve_ready", Vec::new(), flag(report.readiness.ready));
        self.add("portreeve_stale", Vec::new(), flag(status.stale));
        self.add("portreeve_publications", Vec::new(), status.revision as f64);
    }

    fn sources(&mut self, readings: &[SourceReading]) {
        for reading in together(readings) {
            let labels = vec![("source", reading.name)];
            self.add("portreeve_source_up", labels.clone(), flag(reading.ok));
            if let Some(seconds) = reading.freshness_seconds {
                self.add("portreeve_source_freshness_seconds", labels.clone(), seconds);
            }
            self.add(
                "portreeve_source_requests",
                labels.clone(),
                reading.requests_total as f64,
            );
            self.add("portreeve_source_errors", labels, reading.errors_total as f64);
            for (name, end) in reading.credentials {
                let labels = vec![("credential", name)];
                self.add(
                    "portreeve_credential_expiry_timestamp_seconds",
                    labels,
                    end as f64,
                );
            }
        }
    }

    fn configuration(&mut self, report: &StatusReport) {
        let status = &report.status;
        for phase in DocumentPhase::ALL {
            let count = status
                .documents
                .iter()
                .filter(|document| document.phase == phase)
                .count();
            self.add(
                "portreeve_documents",
                vec![("phase", phase.as_str().to_owned())],
                count as f64,
            );
        }
        for (severity, name) in [(Severity::Error, "error"), (Severity::Warning, "warning")] {
            let mut counts: BTreeMap<Code, usize> = BTreeMap::new();
            for diagnostic in &status.diagnostics {
                if diagnostic.severity == severity {
                    *counts.entry(diagnostic.code).or_default() += 1;
                }
            }
            // All of them, so that a sum is a number when there are none.
            for &code in Code::ALL {
                let labels = vec![("severity", name.to_owned()), ("code", code.as_str().to_owned())];
                let count = counts.get(&code).copied().unwrap_or_default();
                self.add("portreeve_diagnostics", labels, count as f64);
            }
        }
        let services = &status.services;
        let healthy = services
            .iter()
            .filter(|service| service.passing + service.warning > 0)
            .count();
        let unanswered = services.iter().filter(|service| !service.answered).count();
        let unhealthy = services.len() - healthy - unanswered.min(services.len() - healthy);
        for (state, count) in [
            ("healthy", healthy),
            ("unhealthy", unhealthy),
            ("unanswered", unanswered),
        ] {
            self.add(
                "portreeve_services",
                vec![("state", state.to_owned())],
                count as f64,
            );
        }
        let ends = status
            .certificates
            .iter()
            .filter_map(|certificate| Some((certificate.expires?, certificate.name.clone())));
        for (name, expires) in named_ends(ends.collect()) {
            self.add(
                "portreeve_certificate_expiry_timestamp_seconds",
                vec![("certificate", name)],
                expires as f64,
            );
        }
    }

    fn envoys(&mut self, report: &StatusReport) {
        for gateway in &report.status.gateways {
            let labels = || vec![("gateway", gateway.name.clone())];
            let envoys: Vec<_> = report
                .status
                .envoys
                .iter()
                .filter(|envoy| envoy.gateway == gateway.name)
                .collect();
            for phase in ListenerPhase::ALL {
                let listeners = report.status.listeners.iter();
                let count = listeners
                    .filter(|listener| listener.gateway == gateway.name && listener.phase == phase)
                    .count();
                let labels = vec![
                    ("gateway", gateway.name.clone()),
                    ("state", phase.as_str().to_owned()),
                ];
                self.add("portreeve_listeners", labels, count as f64);
            }
            let pending: usize = envoys.iter().map(|envoy| envoy.pending()).sum();
            let refused: usize = envoys.iter().map(|envoy| envoy.refused().count()).sum();
            self.add("portreeve_xds_streams", labels(), envoys.len() as f64);
            self.add(
                "portreeve_xds_settled_streams",
                labels(),
                gateway.programmed.acknowledged as f64,
            );
            self.add("portreeve_xds_pending", labels(), pending as f64);
            self.add("portreeve_xds_refused", labels(), refused as f64);
            for kind in ResourceKind::ALL {
                let count = gateway.kinds.get(&kind).copied().unwrap_or_default();
                let labels = vec![("gateway", gateway.name.clone()), ("kind", kind_name(kind))];
                self.add("portreeve_resources", labels, count as f64);
            }
        }
        for (reason, count) in &report.agent.refused_clients.counts {
            let labels = vec![("reason", reason.clone())];
            self.add("portreeve_xds_refused_clients", labels, *count as f64);
        }
        for process in &report.agent.envoys {
            let up = matches!(process.state.as_str(), "running" | "replacing");
            self.add(
                "portreeve_envoy_up",
                vec![("gateway", process.gateway.clone())],
                flag(up),
            );
        }
    }
}

/// The certificates that end first by name; of the rest the first to end. Documents may declare any number, and a
/// metrics store pays for each name it ever saw.
fn named_ends(mut ends: Vec<(i64, String)>) -> Vec<(String, i64)> {
    ends.sort();
    let rest = ends.get(CERTIFICATES_NAMED).map(|(expires, _)| *expires);
    ends.truncate(CERTIFICATES_NAMED);
    let mut named: Vec<(String, i64)> = ends.into_iter().map(|(expires, name)| (name, expires)).collect();
    named.extend(rest.map(|expires| (OTHERS.to_owned(), expires)));
    named
}

/// The watches of a kind as one reading each: there is one for each service, and documents may name any number.
fn together(readings: &[SourceReading]) -> Vec<SourceReading> {
    let mut all: Vec<SourceReading> = Vec::new();
    let mut sums: BTreeMap<&str, SourceReading> = BTreeMap::new();
    for reading in readings {
        let kind = KINDS.iter().find(|(prefix, _)| reading.name.starts_with(prefix));
        let Some((_, name)) = kind else {
            all.push(reading.clone());
            continue;
        };
        let sum = match sums.remove(name) {
            Some(sum) => sum.and(reading),
            None => SourceReading {
                name: (*name).to_owned(),
                ..reading.clone()
            },
        };
        sums.insert(name, sum);
    }
    all.extend(sums.into_values());
    all
}

/// How their names begin, and what they are called together.
const KINDS: &[(&str, &str)] = &[
    ("service ", "services"),
    ("discovery chain ", "discovery chains"),
    ("intentions ", "intentions"),
];

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn sample(kind: Kind, value: f64, metric: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
    match kind {
        Kind::Counter => ConstCounter::new(value).encode(metric),
        Kind::Gauge | Kind::Histogram => ConstGauge::new(value).encode(metric),
    }
}

impl Collector for Samples {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for family in FAMILIES {
            let samples: Vec<_> = self
                .0
                .iter()
                .filter(|(name, _, _)| *name == family.name)
                .collect();
            let metric_type = match family.kind {
                Kind::Gauge => MetricType::Gauge,
                Kind::Counter => MetricType::Counter,
                Kind::Histogram => continue,
            };
            if samples.is_empty() {
                continue;
            }
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, metric_type)?;
            if let ([], [(_, _, value)]) = (family.labels, samples.as_slice()) {
                sample(family.kind, *value, metric)?;
                continue;
            }
            for (_, labels, value) in samples {
                sample(family.kind, *value, metric.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_to_end_are_named() {
        let ends =
            |count: i64| -> Vec<(i64, String)> { (0..count).rev().map(|n| (n, format!("c{n}"))).collect() };
        assert_eq!(named_ends(ends(2)), [("c0".to_owned(), 0), ("c1".to_owned(), 1)]);
        assert_eq!(named_ends(ends(100)).len(), 100);
        let named = named_ends(ends(5000));
        assert_eq!(named.len(), 101);
        assert_eq!(named[99], ("c99".to_owned(), 99));
        assert_eq!(named[100], ("(others)".to_owned(), 100));
    }

    #[test]
    fn watches_that_documents_name_are_counted_together() {
        let readings: Vec<SourceReading> = (0..3)
            .flat_map(|number| {
                ["service", "discovery chain", "intentions"].map(|kind| {
                    SourceReading::new(format!("{kind} s{number}"), number < 2, None).counted(1, number)
                })
            })
            .chain([SourceReading::new("vault", true, None)])
            .collect();
        let all = together(&readings);
        let shown: Vec<(&str, bool, u64, u64)> = all
            .iter()
            .map(|one| (&*one.name, one.ok, one.requests_total, one.errors_total))
            .collect();
        assert_eq!(
            shown,
            [
                ("vault", true, 0, 0),
                ("discovery chains", false, 3, 3),
                ("intentions", false, 3, 3),
                ("services", false, 3, 3)
            ]
        );
    }
}

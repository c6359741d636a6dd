use std::net::IpAddr;
use std::sync::Arc;

use super::Resolved;
use crate::config::{BackendTarget, Config, UpstreamSource};
use crate::diagnostics::{Code, Diagnostic, Severity};
use crate::ir::{Cluster, ClusterSource, Endpoint};
use crate::model::http::UpstreamOptions;
use crate::model::{Health, Instance, ServiceQuery};
use crate::snapshot::Snapshot;

/// Instances of one service that are told one by one.
const LEFT_OUT_SHOWN: usize = 5;

pub fn cluster_name(target: &BackendTarget) -> Arc<str> {
    match target {
        BackendTarget::Consul(service) => ["consul/", service].concat().into(),
        BackendTarget::Upstream(name) => ["upstream/", name].concat().into(),
    }
}

/// Where a destination's endpoints come from. None: nobody declares it.
pub fn resolve_target(config: &Config, target: &BackendTarget) -> Option<(UpstreamSource, UpstreamOptions)> {
    match target {
        BackendTarget::Consul(service) => {
            let query = ServiceQuery::local(service.clone());
            Some((
                UpstreamSource::Consul {
                    query,
                    port: None,
                    only_passing: false,
                },
                UpstreamOptions::default(),
            ))
        }
        BackendTarget::Upstream(name) => {
            let upstream = config.upstream(name)?;
            Some((upstream.source.clone(), upstream.options.clone()))
        }
    }
}

pub fn service_query(config: &Config, target: &BackendTarget) -> Option<ServiceQuery> {
    match resolve_target(config, target)?.0 {
        UpstreamSource::Consul { query, .. } => Some(query),
        UpstreamSource::Static(_) | UpstreamSource::Dns(_) => None,
    }
}

pub fn resolve_cluster(config: &Config, target: &BackendTarget) -> Option<Cluster> {
    let (source, options) = resolve_target(config, target)?;
    let origins = match target {
        BackendTarget::Consul(_) => Vec::new(),
        BackendTarget::Upstream(name) => config
            .upstream(name)
            .map(|upstream| upstream.origin.document.clone())
            .into_iter()
            .collect(),
    };
    let source = match source {
        UpstreamSource::Consul { .. } => ClusterSource::Discovered,
        UpstreamSource::Static(addresses) => ClusterSource::Static(addresses),
        UpstreamSource::Dns(address) => ClusterSource::Dns(address),
    };
    Some(Cluster {
        name: cluster_name(target),
        source,
        options,
        origins,
    })
}

/// The endpoints of a discovered destination. None: its watch has not answered yet.
pub fn endpoints(snapshot: &Snapshot, target: &BackendTarget) -> Option<Resolved<Vec<Endpoint>>> {
    let (
        UpstreamSource::Consul {
            query,
            port,
            only_passing,
        },
        _,
    ) = resolve_target(&snapshot.config, target)?
    else {
        return None;
    };
    let known = snapshot.service(&query)?;
    let mut diagnostics = Vec::new();
    let about = |diagnostic: Diagnostic| diagnostic.about("service", &query.name);
    if let Some(problem) = &known.problem {
        let mut diagnostic = Diagnostic::of_problem(Code::SourceProblem, problem);
        let stays = if known.value.is_some() {
            diagnostic.severity = Severity::Warning;
            "the endpoints last known stay in service"
        } else {
            "no endpoint is known: requests to it answer 503"
        };
        diagnostics.push(about(diagnostic.because(stays)));
    }
    let Some(instances) = &known.value else {
        return known.problem.is_some().then_some(Resolved {
            value: Vec::new(),
            diagnostics,
        });
    };
    let mut endpoints = Vec::with_capacity(instances.len());
    let mut unhealthy = 0usize;
    let mut left_out = Vec::new();
    for instance in instances.iter() {
        let weight = match instance.health {
            Health::Passing => instance.weights.passing,
            Health::Warning if !only_passing => instance.weights.warning,
            Health::Warning | Health::Critical | Health::Maintenance => {
                unhealthy += 1;
                continue;
            }
        };
        // Consul lets a weight be 0 to mean "no traffic"; Envoy refuses it.
        if weight == 0 {
            unhealthy += 1;
            continue;
        }
        match endpoint(instance, port.as_deref(), weight) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err((why, fix)) => left_out.push(about(
                Diagnostic::warning(
                    Code::UnusableInstance,
                    format!(
                        "instance {:?} on node {:?} is left out",
                        instance.id, instance.node
                    ),
                )
                .because(why)
                .fix(fix),
            )),
        }
    }
    // A service of thousands that is registered without ports would say the same thousands of times.
    let unusable = left_out.len();
    diagnostics.extend(left_out.into_iter().take(LEFT_OUT_SHOWN));
    endpoints.sort();
    // Two registrations of one address count as one: Envoy would refuse the second.
    endpoints.dedup_by(|later, first| (later.address, later.port) == (first.address, first.port));
    if endpoints.is_empty() && known.problem.is_none() {
        diagnostics.push(about(if instances.is_empty() {
            Diagnostic::warning(Code::UnknownService, format!("no instance of the service {:?} is registered in Consul", query.name))
                .because("requests to it answer 503")
                .fix("check the service's name and datacenter, and that the agent's token has service:read and node:read")
        } else if unhealthy > 0 {
            Diagnostic::warning(Code::NoHealthyInstance, format!("none of the {} instances of {:?} is healthy", instances.len(), query.name))
                .because("requests to it answer 503 until a check passes")
                .fix("see which check fails and why: `consul catalog` or the UI shows its output; `consul maint` ends maintenance")
        } else {
            Diagnostic::warning(Code::UnusableInstance, format!("none of the {} instances of {:?} can be used", instances.len(), query.name))
                .because(format!("requests to it answer 503: {unusable} are left out, for the reasons told beside"))
                .fix("register them with an IP address and a port")
        }));
    }
    Some(Resolved {
        value: endpoints,
        diagnostics,
    })
}

fn endpoint(instance: &Instance, port: Option<&str>, weight: u32) -> Result<Endpoint, (String, String)> {
    let port = match port {
        None => instance.port,
        Some(name) => *instance.ports.get(name).ok_or_else(|| {
            (
                format!("it has no port named {name:?}"),
                format!("register it with the port {name:?}, or name another `port` in the upstream"),
            )
        })?,
    };
    if port == 0 {
        return Err(("it has no port".into(), "register it with a port".into()));
    }
    let address: IpAddr = instance.address.parse().map_err(|_| {
        (
            format!(
                "{:?} is a host name, and discovered endpoints need an address",
                instance.address
            ),
            "register it with an IP address, or use an upstream with a dns block".into(),
        )
    })?;
    if address.is_unspecified() {
        return Err((
            format!("{address} is not an address to connect to"),
            "register it with the address that its clients reach".into(),
        ));
    }
    Ok(Endpoint {
        address,
        port,
        weight,
    })
}

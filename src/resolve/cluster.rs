use std::net::IpAddr;

use super::destination::{Destination, cluster_name, resolve_target};
use super::{Resolved, mesh};
use crate::config::{BackendTarget, Config, UpstreamSource};
use crate::diagnostics::{Code, Diagnostic, Severity};
use crate::ir::{Cluster, ClusterSource, Endpoint};
use crate::model::{DocumentId, Health, Instance, Lookup, ServiceQuery};
use crate::snapshot::{Known, Snapshot};

/// Instances of one service that are told one by one.
pub(super) const LEFT_OUT_SHOWN: usize = 5;

/// None: nobody declares it, or its cluster needs what is not known.
pub fn resolve_cluster(snapshot: &Snapshot, destination: &Destination) -> Option<Cluster> {
    let config = &snapshot.config;
    let target = match destination {
        Destination::Backend(target) => target,
        Destination::Mesh { upstream, target } => {
            return mesh::target_cluster(snapshot, destination, upstream, target);
        }
        Destination::Failover { upstream, resolver } => {
            return mesh::failover_cluster(snapshot, destination, upstream, resolver);
        }
    };
    let (source, options) = resolve_target(config, target)?;
    let source = match &*source {
        UpstreamSource::Consul { .. } | UpstreamSource::Nomad { .. } | UpstreamSource::Sidecar { .. } => {
            ClusterSource::Discovered
        }
        UpstreamSource::Static(addresses) => ClusterSource::Static(addresses.clone()),
        UpstreamSource::Dns(name) => ClusterSource::Dns(name.clone()),
        UpstreamSource::Connect(_) => return None,
    };
    Some(Cluster {
        name: cluster_name(destination),
        source,
        tls: None,
        options: options.clone(),
        balancer: None,
        only_connections: false,
        origins: match target {
            BackendTarget::Consul(_) => Vec::new(),
            BackendTarget::Upstream(name) => origins(config, name),
        },
    })
}

pub(super) fn origins(config: &Config, upstream: &str) -> Vec<DocumentId> {
    config
        .upstream(upstream)
        .map(|upstream| upstream.origin.document.clone())
        .into_iter()
        .collect()
}

/// The endpoints of a discovered destination. None: its watch has not answered yet.
pub fn endpoints(snapshot: &Snapshot, destination: &Destination) -> Option<Resolved<Vec<Endpoint>>> {
    let target = match destination {
        Destination::Backend(target) => target,
        Destination::Mesh { upstream, target } => return mesh::endpoints(snapshot, upstream, target),
        Destination::Failover { .. } => return None,
    };
    let (source, _) = resolve_target(&snapshot.config, target)?;
    let (port, only_passing) = match &*source {
        UpstreamSource::Consul {
            port, only_passing, ..
        } => (port.as_deref(), *only_passing),
        UpstreamSource::Nomad { .. } | UpstreamSource::Sidecar { .. } => (None, false),
        UpstreamSource::Connect(_) | UpstreamSource::Static(_) | UpstreamSource::Dns(_) => return None,
    };
    let queries = source.queries();
    let mut found = Found::default();
    for (priority, query) in (0..).zip(&queries) {
        match snapshot.service(query) {
            Some(known) => found.take(known, query, priority, port, only_passing),
            // Known before the others: what is preferred must have been looked for.
            None if priority == 0 => return None,
            None => {}
        }
    }
    if !found.answered {
        return None;
    }
    found.endpoints.sort();
    // Two registrations of one address count as one: Envoy would refuse the second.
    found
        .endpoints
        .dedup_by(|later, first| (later.address, later.port) == (first.address, first.port));
    if let (Some(query), true) = (queries.first(), found.endpoints.is_empty() && !found.troubled) {
        found.diagnostics.push(found.why_none(query));
    }
    Some(Resolved {
        value: found.endpoints,
        diagnostics: found.diagnostics,
    })
}

/// What the watches of one destination come to.
#[derive(Default)]
struct Found {
    endpoints: Vec<Endpoint>,
    diagnostics: Vec<Diagnostic>,
    answered: bool,
    troubled: bool,
    instances: usize,
    unhealthy: usize,
    unusable: usize,
}

impl Found {
    fn take(
        &mut self,
        known: &Known<[Instance]>,
        query: &ServiceQuery,
        priority: u32,
        port: Option<&str>,
        only_passing: bool,
    ) {
        let about = |diagnostic: Diagnostic| diagnostic.about("service", &query.name);
        if let Some(problem) = &known.problem {
            let mut diagnostic = Diagnostic::of_problem(Code::SourceProblem, problem);
            let stays = if known.value.is_some() {
                diagnostic.severity = Severity::Warning;
                "the endpoints last known stay in service"
            } else {
                "no endpoint is known: requests to it answer 503"
            };
            self.diagnostics.push(about(diagnostic.because(stays)));
            self.troubled = true;
            self.answered = true;
        }
        let Some(instances) = &known.value else { return };
        self.answered = true;
        self.instances += instances.len();
        for instance in instances.iter() {
            let weight = match instance.health {
                Health::Passing => instance.weights.passing,
                Health::Warning if !only_passing => instance.weights.warning,
                Health::Warning | Health::Critical | Health::Maintenance => 0,
            };
            // Consul lets a weight be 0 to mean "no traffic"; Envoy refuses it.
            if weight == 0 {
                self.unhealthy += 1;
                continue;
            }
            match endpoint(instance, port, weight) {
                Ok(endpoint) => self.endpoints.push(Endpoint { priority, ..endpoint }),
                Err((why, fix)) => {
                    self.unusable += 1;
                    // A service of thousands that is registered without ports would say the same thousands of times.
                    if self.unusable <= LEFT_OUT_SHOWN {
                        let what = format!(
                            "instance {:?} on node {:?} is left out",
                            instance.id, instance.node
                        );
                        let said = Diagnostic::warning(Code::UnusableInstance, what);
                        self.diagnostics.push(about(said.because(why).fix(fix)));
                    }
                }
            }
        }
    }

    fn why_none(&self, query: &ServiceQuery) -> Diagnostic {
        let diagnostic = if self.instances == 0 {
            nobody_registered(query)
        } else if self.unhealthy > 0 {
            Diagnostic::warning(
                Code::NoHealthyInstance,
                format!(
                    "{} of {:?} is healthy",
                    none_of(self.instances, "instance"),
                    query.name
                ),
            )
            .because("requests to it answer 503 until a check passes")
            .fix(why_unhealthy(query))
        } else {
            Diagnostic::warning(
                Code::UnusableInstance,
                format!("{} of {:?} can be used", none_of(self.instances, "instance"), query.name),
            )
            .because("requests to it answer 503; the instances that are left out have problems of their own, with the reasons")
            .fix("register them with an IP address and a port")
        };
        diagnostic.about("service", &query.name)
    }
}

/// How a sentence begins that goes on in the singular.
pub(super) fn none_of(count: usize, what: &str) -> String {
    match count {
        1 => format!("not even the one {what}"),
        _ => format!("none of the {count} {what}s"),
    }
}

fn why_unhealthy(query: &ServiceQuery) -> String {
    match query.lookup {
        Lookup::Nomad => "see which check fails and why: `nomad alloc checks` shows it".to_owned(),
        Lookup::Service
        | Lookup::PreparedQuery
        | Lookup::Connect
        | Lookup::MeshGateway
        | Lookup::MeshGatewayWan
        | Lookup::Sidecar => format!(
            "see which check fails and why: Consul's UI or /v1/health/service/{} shows its output; `consul maint -disable` on its node ends maintenance (-service=<id>: of one instance)",
            query.name
        ),
    }
}

fn nobody_registered(query: &ServiceQuery) -> Diagnostic {
    if query.lookup == Lookup::Sidecar {
        return Diagnostic::warning(
            Code::MeshProblem,
            match &query.narrowing().peer {
                Some(peer) => format!(
                    "the gateway's sidecar has no upstream for {:?} of the peer {peer:?}",
                    query.name
                ),
                None => format!("the gateway's sidecar has no upstream for {:?}", query.name),
            },
        )
        .because("requests to it answer 503")
        .fix("add it to the `upstreams` of the sidecar's registration, with a local_bind_port");
    }
    if query.lookup == Lookup::PreparedQuery {
        return Diagnostic::warning(
            Code::NoHealthyInstance,
            format!("the prepared query {:?} finds no instance", query.name),
        )
        .because("requests to it answer 503")
        .fix(format!(
            "see what /v1/query/{}/execute finds at Consul with the agent's token",
            query.name
        ));
    }
    if let Some(filter) = &query.narrowing().filter {
        return Diagnostic::warning(
            Code::UnknownService,
            format!(
                "no instance of the service {:?} is registered that the filter {filter:?} takes",
                query.name
            ),
        )
        .because("requests to it answer 503")
        .fix("check the upstream's `filter`, then the service's name and datacenter or namespace, and the agent's rights there");
    }
    let (catalog, fix) = match query.lookup {
        // Of a namespace that the token may not read, Nomad's list says nothing.
        Lookup::Nomad if query.narrowing().namespace.as_deref() == Some("*") => (
            "Nomad",
            "check the service's name, that its job has `provider = \"nomad\"`, and that the agent's token has read-job in its namespace (portreeve setup nomad)",
        ),
        Lookup::Nomad => (
            "Nomad",
            "check the service's name and namespace, and that its job has `provider = \"nomad\"`",
        ),
        Lookup::Service
        | Lookup::PreparedQuery
        | Lookup::Connect
        | Lookup::MeshGateway
        | Lookup::MeshGatewayWan
        | Lookup::Sidecar => (
            "Consul",
            "check the service's name and datacenter, and that the agent's token has service:read and node:read",
        ),
    };
    Diagnostic::warning(
        Code::UnknownService,
        format!(
            "no instance of the service {:?} is registered in {catalog}",
            query.name
        ),
    )
    .because("requests to it answer 503")
    .fix(fix)
}

pub(super) fn endpoint(
    instance: &Instance,
    port: Option<&str>,
    weight: u32,
) -> Result<Endpoint, (String, String)> {
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
        priority: 0,
        weight,
    })
}

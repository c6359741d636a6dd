//! Destinations: what has a cluster of its own. A rule names a backend; a backend in the mesh unfolds into the targets of
//! its discovery chain.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use super::mesh;
use crate::config::{BackendTarget, Config, ConnectSource, UpstreamSource};
use crate::model::ServiceQuery;
use crate::model::http::UpstreamOptions;
use crate::model::mesh::Interest;
use crate::snapshot::Snapshot;

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// As a rule names it. One in the mesh has no cluster under this name: it stands for the chain that is followed.
    Backend(BackendTarget),
    /// One target of a mesh upstream's discovery chain.
    Mesh { upstream: Arc<str>, target: Arc<str> },
    /// A resolver's targets, in the order of failover.
    Failover { upstream: Arc<str>, resolver: Arc<str> },
}

pub fn cluster_name(destination: &Destination) -> Arc<str> {
    match destination {
        Destination::Backend(BackendTarget::Consul(service)) => ["consul/", service].concat().into(),
        Destination::Backend(BackendTarget::Upstream(name)) => ["upstream/", name].concat().into(),
        Destination::Mesh { upstream, target } => format!("upstream/{upstream}/{target}").into(),
        Destination::Failover { upstream, resolver } => {
            format!("upstream/{upstream}/failover/{resolver}").into()
        }
    }
}

/// Where a backend's endpoints come from. None: nobody declares it.
pub fn resolve_target<'a>(
    config: &'a Config,
    target: &BackendTarget,
) -> Option<(Cow<'a, UpstreamSource>, &'a UpstreamOptions)> {
    static DEFAULT: LazyLock<UpstreamOptions> = LazyLock::new(UpstreamOptions::default);
    match target {
        BackendTarget::Consul(service) => {
            let query = ServiceQuery::local(service.clone());
            let source = UpstreamSource::Consul {
                query,
                failover: Vec::new(),
                port: None,
                only_passing: false,
            };
            Some((Cow::Owned(source), &DEFAULT))
        }
        BackendTarget::Upstream(name) => {
            let upstream = config.upstream(name)?;
            Some((Cow::Borrowed(&upstream.source), &upstream.options))
        }
    }
}

/// The watch of a backend without whose answer nothing can be said of it.
pub fn first_query(config: &Config, target: &BackendTarget) -> Option<ServiceQuery> {
    resolve_target(config, target)?.0.first_query().cloned()
}

/// The mesh upstream of this name.
pub(super) fn connect_source<'a>(config: &'a Config, upstream: &str) -> Option<&'a ConnectSource> {
    match &config.upstream(upstream)?.source {
        UpstreamSource::Connect(source) => Some(source),
        _ => None,
    }
}

/// What must be watched for a destination, in order and each once. Mostly one: kept for every destination, a set would
/// hold room for eleven.
pub fn interests_of(snapshot: &Snapshot, destination: &Destination) -> Box<[Interest]> {
    let interests = match destination {
        Destination::Backend(target) => {
            let Some((source, _)) = resolve_target(&snapshot.config, target) else {
                return Box::default();
            };
            if let UpstreamSource::Connect(source) = &*source {
                mesh::interests_of_chain(source)
            } else {
                let queries = source.queries().into_iter().cloned();
                let mut interests: Vec<Interest> = queries.map(Interest::Service).collect();
                interests.sort();
                interests.dedup();
                return interests.into();
            }
        }
        Destination::Mesh { upstream, target } => mesh::interests_of_target(snapshot, upstream, target),
        Destination::Failover { upstream, resolver } => {
            mesh::interests_of_failover(snapshot, upstream, resolver)
        }
    };
    interests.into_iter().collect()
}

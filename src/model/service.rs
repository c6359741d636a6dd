use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::shared::Shared;

/// Which list of instances is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lookup {
    /// The instances themselves: `/v1/health/service`.
    #[default]
    Service,
    /// What a prepared query finds, in whichever datacenter: `/v1/query/<name>/execute`. Asked again and again, since
    /// Consul does not say when it would find something else.
    PreparedQuery,
    /// What a member of the mesh dials in front of them: sidecars, terminating gateways, or the instances where they
    /// speak the mesh's TLS on their own. `/v1/health/connect`.
    Connect,
    /// Nomad's native services: `/v1/service`. Nothing is known of their health.
    Nomad,
    /// Mesh gateways, by their addresses in their own datacenter.
    MeshGateway,
    /// Mesh gateways of another datacenter, by the addresses that they are reached at from outside.
    MeshGatewayWan,
    /// Where the gateway's own sidecar listens for it: `/v1/agent/service`. A check that fails is told, and leaves it in service.
    Sidecar,
}

impl Lookup {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// One watch on a catalog of services. Two upstreams that ask the same share the watch.
///
/// Kept by value in many maps, ten thousand times each: so what few of them say is aside.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct ServiceQuery {
    pub lookup: Lookup,
    pub name: Arc<str>,
    /// None where it says nothing.
    narrowing: Option<Arc<Narrowing>>,
}

/// Where a service is looked for, and which of its instances.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Narrowing {
    /// Of Nomad: the region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datacenter: Option<Arc<str>>,
    /// Consul Enterprise; never sent unless set (CE answers 400).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<Arc<str>>,
    /// A cluster peering; with [`Lookup::Sidecar`] alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<Arc<str>>,
    /// A go-bexpr expression that the server evaluates after the read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Arc<str>>,
}

/// A query as it is written down.
#[derive(Serialize, Deserialize)]
struct Written {
    #[serde(default, skip_serializing_if = "Lookup::is_default")]
    lookup: Lookup,
    name: Arc<str>,
    #[serde(flatten)]
    narrowing: Narrowing,
}

impl From<Written> for ServiceQuery {
    fn from(written: Written) -> Self {
        Self::new(written.lookup, written.name, written.narrowing)
    }
}

impl From<ServiceQuery> for Written {
    fn from(query: ServiceQuery) -> Self {
        Self {
            narrowing: query.narrowing().clone(),
            lookup: query.lookup,
            name: query.name,
        }
    }
}

impl ServiceQuery {
    pub fn new(lookup: Lookup, name: Arc<str>, narrowing: Narrowing) -> Self {
        Self {
            lookup,
            name,
            narrowing: (narrowing != Narrowing::default()).then(|| Arc::new(narrowing)),
        }
    }

    pub fn named(name: &str) -> Self {
        Self::local(name.into())
    }

    /// A service of the agent's own datacenter, namespace and partition.
    pub fn local(name: Arc<str>) -> Self {
        Self {
            lookup: Lookup::Service,
            name,
            narrowing: None,
        }
    }

    pub fn narrowing(&self) -> &Narrowing {
        static NOTHING: Narrowing = Narrowing {
            datacenter: None,
            namespace: None,
            partition: None,
            peer: None,
            filter: None,
        };
        self.narrowing.as_deref().unwrap_or(&NOTHING)
    }
}

impl fmt::Display for ServiceQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match self.lookup {
            Lookup::Service => {}
            Lookup::PreparedQuery => f.write_str(" (prepared query)")?,
            Lookup::Connect => f.write_str(" (mesh)")?,
            Lookup::Nomad => f.write_str(" (nomad)")?,
            Lookup::MeshGateway | Lookup::MeshGatewayWan => f.write_str(" (mesh gateways)")?,
            Lookup::Sidecar => f.write_str(" (sidecar)")?,
        }
        let narrowing = self.narrowing();
        for (label, value) in [
            ("dc", &narrowing.datacenter),
            ("ns", &narrowing.namespace),
            ("partition", &narrowing.partition),
            ("peer", &narrowing.peer),
        ] {
            if let Some(value) = value {
                write!(f, " {label}={value}")?;
            }
        }
        if let Some(filter) = &narrowing.filter {
            write!(f, " filter={filter:?}")?;
        }
        Ok(())
    }
}

/// The worst of an instance's checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    Passing,
    Warning,
    Critical,
    /// A critical check that an operator set (`consul maint`).
    Maintenance,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Weights {
    pub passing: u32,
    pub warning: u32,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            passing: 1,
            warning: 1,
        }
    }
}

/// One registered instance of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Instance {
    pub node: Arc<str>,
    pub id: Arc<str>,
    /// A sidecar's: the id of the instance behind it, on the same node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Arc<str>>,
    /// `Service.Address`, else `Node.Address`; an IP address or a host name.
    pub address: Arc<str>,
    /// The default port; 0 if the service declares none.
    pub port: u16,
    /// Named ports (Consul 1.22 and newer).
    #[serde(default, skip_serializing_if = "is_empty")]
    pub ports: Shared<BTreeMap<Arc<str>, u16>>,
    /// A sidecar's: it can be asked for each of them (Consul Enterprise 2.0 and newer). Others know the default port alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tells_ports_apart: bool,
    pub health: Health,
    pub weights: Weights,
    /// Only where services may expose themselves: nothing else asks for them.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub tags: Shared<Vec<Arc<str>>>,
    /// The same.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub meta: Shared<BTreeMap<Arc<str>, Arc<str>>>,
    /// When it was registered first, in the catalog's own count (CreateIndex).
    #[serde(default)]
    pub created: u64,
}

impl Instance {
    /// Keeps what neighbours have in common once. Instances of one service mostly have the same labels and ports, and in
    /// order those of a node follow each other.
    pub fn share_among(sorted: &mut [Self]) {
        for at in 1..sorted.len() {
            if let [.., before, next] = &mut sorted[..=at] {
                next.share_with(before);
            }
        }
    }

    pub fn forget_labels(&mut self) {
        self.tags = Shared::default();
        self.meta = Shared::default();
    }

    fn share_with(&mut self, other: &Self) {
        for (own, others) in [(&mut self.node, &other.node), (&mut self.address, &other.address)] {
            if own == others {
                own.clone_from(others);
            }
        }
        self.ports.share_with(&other.ports);
        self.tags.share_with(&other.tags);
        self.meta.share_with(&other.meta);
    }
}

fn is_empty<T: PartialEq + Default>(shared: &Shared<T>) -> bool {
    *shared == Shared::default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::mesh::Interest;

    #[test]
    fn a_query_is_written_flat_and_read_again() {
        let narrowing = Narrowing {
            datacenter: Some("dc2".into()),
            filter: Some("Service.Port == 1".into()),
            ..Narrowing::default()
        };
        let queries = [
            ServiceQuery::named("web"),
            ServiceQuery::new(Lookup::Connect, "web".into(), narrowing),
        ];
        let written = serde_json::to_string(&queries).unwrap();
        assert_eq!(
            written,
            r#"[{"name":"web"},{"lookup":"connect","name":"web","datacenter":"dc2","filter":"Service.Port == 1"}]"#
        );
        let read: Vec<ServiceQuery> = serde_json::from_str(&written).unwrap();
        assert_eq!(read, queries);
    }

    #[test]
    fn a_query_that_says_nothing_more_is_the_same_however_it_was_made() {
        let made = ServiceQuery::new(Lookup::Service, "web".into(), Narrowing::default());
        assert_eq!(made, ServiceQuery::named("web"));
    }

    /// Ten thousand services are in a dozen maps by these.
    #[test]
    fn what_names_a_watch_is_small() {
        assert!(size_of::<ServiceQuery>() <= 32);
        assert!(size_of::<Interest>() <= 32);
    }
}

//! A named port of a service of the mesh, as Consul's own proxies dial one (Consul Enterprise 2.0 and newer): the service's
//! sidecars, with the port's name as the protocol that TLS asks for. Name and SPIFFE id of the other side are the service's.
//!
//! The discovery chain is not walked: Consul sends its default port alone along routers, splitters and resolvers.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::model::Instance;
use crate::model::mesh::{Chain, ChainQuery, ChainTarget, MeshGatewayMode};

/// The service itself, whatever its chain makes of it, under an id of its own. None: the chain does not know it.
pub(super) fn target_of_port(
    chain: &Chain,
    query: &ChainQuery,
    port: &str,
) -> Option<(Arc<str>, ChainTarget)> {
    let own = chain.targets.values().find_map(|target| {
        let is_own = target.service == chain.service
            && target.datacenter == chain.datacenter
            && or_default(Some(&target.namespace)) == or_default(query.namespace.as_ref())
            && or_default(Some(&target.partition)) == or_default(query.partition.as_ref())
            && target.peer.is_none()
            && !target.external;
        let sni = is_own.then(|| without_subset(target)).flatten()?;
        Some(ChainTarget {
            sni,
            filter: None,
            only_passing: false,
            mesh_gateway: MeshGatewayMode::None,
            ..target.clone()
        })
    })?;
    let namespace = or_default(Some(&own.namespace));
    let id = format!("{port}.{}.{namespace}.{}", own.service, own.datacenter);
    Some((id.into(), own))
}

fn or_default(name: Option<&Arc<str>>) -> &str {
    match name {
        Some(name) if !name.is_empty() => name,
        _ => "default",
    }
}

/// The SNI of the whole service: a subset is one label before it.
fn without_subset(target: &ChainTarget) -> Option<Arc<str>> {
    let (service, datacenter) = (&target.service, &target.datacenter);
    let namespace = or_default(Some(&target.namespace));
    let whole = match or_default(Some(&target.partition)) {
        "default" => format!("{service}.{namespace}.{datacenter}.internal."),
        partition => format!("{service}.{namespace}.{partition}.{datacenter}.internal-v1."),
    };
    if target.sni.starts_with(&whole) {
        return Some(target.sni.clone());
    }
    let (_, rest) = target.sni.split_once('.')?;
    rest.starts_with(&whole).then(|| rest.into())
}

/// May this sidecar be asked for the port? One that does not tell ports apart would pass the connection to another one.
/// Err: why not, and what to do.
pub(super) fn may_be_asked(
    port: &str,
    sidecar: &Instance,
    behind: Option<&Instance>,
) -> Result<(), (String, String)> {
    let Some(behind) = behind.filter(|_| sidecar.destination.is_some()) else {
        return Err((
            "it is not the sidecar of an instance in the catalog, and nobody else tells ports apart".into(),
            "register the service with `connect { sidecar_service {} }`, or leave `port` out".into(),
        ));
    };
    if !behind.ports.contains_key(port) {
        let why = match in_words(&behind.ports.keys().collect()) {
            Some(others) => format!("the instance behind it has no port named {port:?}, but {others}"),
            None => format!("the instance behind it has no port named {port:?}: it has no named port"),
        };
        let fix = format!("register it with the port {port:?}, or name another `port` in the upstream");
        return Err((why, fix));
    }
    if !sidecar.tells_ports_apart {
        return Err((
            format!("its Consul does not tell ports apart in the mesh: it would pass requests for {port:?} to the default port"),
            "named ports in the mesh take Consul Enterprise 2.0 or newer; with any other leave `port` out, or register the port as a service of its own".into(),
        ));
    }
    Ok(())
}

/// What to do where no sidecar can be asked for the port.
pub(super) fn fix_for_none(port: &str, instances: &[Instance]) -> String {
    let known: BTreeSet<&Arc<str>> = instances
        .iter()
        .flat_map(|instance| instance.ports.keys())
        .collect();
    match in_words(&known) {
        Some(_) if known.iter().any(|name| ***name == *port) => {
            "see the reasons told beside: sidecars of Consul Enterprise 2.0 or newer tell ports apart".into()
        }
        Some(others) => format!("name a port that the service has: {others}"),
        None => "register the service with named ports (`ports`), or leave `port` out".into(),
    }
}

fn in_words(names: &BTreeSet<&Arc<str>>) -> Option<String> {
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    (!quoted.is_empty()).then(|| quoted.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query() -> ChainQuery {
        ChainQuery {
            service: "web".into(),
            datacenter: None,
            namespace: None,
            partition: None,
        }
    }

    fn chain_to(change: impl FnOnce(&mut ChainTarget)) -> Chain {
        let mut chain = Chain::plain(&query());
        change(chain.targets.values_mut().next().expect("a target"));
        chain
    }

    fn sni(chain: &Chain) -> Option<String> {
        let (id, target) = target_of_port(chain, &query(), "admin")?;
        assert_eq!(&*id, "admin.web.default.dc1");
        assert_eq!((target.filter, target.only_passing), (None, false));
        Some(target.sni.to_string())
    }

    #[test]
    fn the_whole_service_is_dialed_whatever_its_chain_does() {
        let whole = "web.default.dc1.internal.example.consul";
        assert_eq!(sni(&Chain::plain(&query())).as_deref(), Some(whole));
        let subset = chain_to(|target| {
            target.sni = format!("v1.{whole}").into();
            target.filter = Some("Service.Meta.version == v1".into());
            target.only_passing = true;
        });
        assert_eq!(sni(&subset).as_deref(), Some(whole));
        // A subset that is called as the service is.
        let alike = chain_to(|target| target.sni = format!("web.{whole}").into());
        assert_eq!(sni(&alike).as_deref(), Some(whole));
    }

    #[test]
    fn where_the_chain_leads_elsewhere_nobody_is_dialed() {
        let elsewhere: [fn(&mut ChainTarget); 6] = [
            |target| target.service = "other".into(),
            |target| target.datacenter = "dc2".into(),
            |target| target.namespace = "shop".into(),
            |target| target.partition = "edge".into(),
            |target| target.peer = Some("west".into()),
            |target| target.external = true,
        ];
        for change in elsewhere {
            assert_eq!(sni(&chain_to(change)), None);
        }
        assert_eq!(
            sni(&chain_to(|target| target.sni = "legacy.example.com".into())),
            None
        );
    }

    #[test]
    fn a_partition_and_a_namespace_are_part_of_the_name() {
        let query = ChainQuery {
            namespace: Some("shop".into()),
            partition: Some("edge".into()),
            ..query()
        };
        let chain = chain_to(|target| {
            target.namespace = "shop".into();
            target.partition = "edge".into();
            target.sni = "v1.web.shop.edge.dc1.internal-v1.example.consul".into();
        });
        let (id, target) = target_of_port(&chain, &query, "admin").unwrap();
        assert_eq!(&*id, "admin.web.shop.dc1");
        assert_eq!(&*target.sni, "web.shop.edge.dc1.internal-v1.example.consul");
    }
}

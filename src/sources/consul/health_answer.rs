//! An answer of `/v1/health/service/<name>` as instances. Pure.
//!
//! All instances come back, not only passing ones, and health is decided here: the worst check counts, a maintenance
//! check is told from a failing one by its id, no check at all is passing. Null lists are empty lists, unknown fields
//! are ignored, and what a hostile registration may hold is bounded.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};

use crate::model::{Health, Instance, Lookup, Weights};

/// Instances, sorted, and what was left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Instances {
    pub(super) list: Vec<Instance>,
    /// Beyond the bound on instances.
    pub(super) cut: usize,
    /// Without a usable name, address or port.
    pub(super) unusable: usize,
}

pub(super) fn parse(body: &[u8], lookup: Lookup) -> Result<Instances, serde_json::Error> {
    let entries: Option<Vec<Entry>> = match lookup {
        Lookup::PreparedQuery => serde_json::from_slice::<Executed>(body)?.nodes,
        _ => serde_json::from_slice(body)?,
    };
    let entries = entries.unwrap_or_default();
    let is_wanted = |entry: &Entry| match lookup {
        Lookup::MeshGateway | Lookup::MeshGatewayWan => entry.service.kind == "mesh-gateway",
        Lookup::Service | Lookup::PreparedQuery | Lookup::Connect | Lookup::Nomad | Lookup::Sidecar => true,
    };
    let wanted: Vec<Entry> = entries.into_iter().filter(is_wanted).collect();
    let total = wanted.len();
    let mut list: Vec<Instance> = wanted
        .into_iter()
        .filter_map(|entry| entry.seen_from_afar(lookup == Lookup::MeshGatewayWan).instance())
        .collect();
    let unusable = total - list.len();
    list.sort();
    list.dedup();
    let cut = list.len().saturating_sub(INSTANCES);
    list.truncate(INSTANCES);
    Instance::share_among(&mut list);
    Ok(Instances { list, cut, unusable })
}

/// The service that an executed prepared query looked for.
pub(super) fn service_of_query(body: &[u8]) -> Option<Arc<str>> {
    serde_json::from_slice::<Executed>(body).ok()?.service
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Executed {
    service: Option<Arc<str>>,
    nodes: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    node: Node,
    service: Service,
    #[serde(default, deserialize_with = "null_is_default")]
    checks: Vec<Check>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    node: Arc<str>,
    #[serde(default)]
    address: String,
    #[serde(default, deserialize_with = "null_is_default")]
    meta: NodeMeta,
}

#[derive(Default, Deserialize)]
struct NodeMeta {
    /// Of the node's own agent, since 1.16. Nodes without an agent, such as those that stand for Kubernetes, say none.
    #[serde(rename = "consul-version", default)]
    version: Option<String>,
}

#[derive(Deserialize)]
struct Service {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(rename = "Kind", default)]
    kind: String,
    #[serde(rename = "Service", default)]
    name: String,
    /// Consul Enterprise says it of each, even of the default one; Consul CE has none.
    #[serde(rename = "Namespace", default)]
    namespace: String,
    #[serde(rename = "Address", default)]
    address: String,
    #[serde(rename = "Port", default)]
    port: i64,
    /// Consul 1.22 and newer, instead of `Port`.
    #[serde(rename = "Ports", default, deserialize_with = "null_is_default")]
    ports: Vec<NamedPort>,
    #[serde(rename = "Weights", default, deserialize_with = "null_is_default")]
    weights: RawWeights,
    #[serde(rename = "Tags", default, deserialize_with = "null_is_default")]
    tags: Vec<Arc<str>>,
    #[serde(rename = "Meta", default, deserialize_with = "null_is_default")]
    meta: BTreeMap<Arc<str>, Arc<str>>,
    #[serde(rename = "CreateIndex", default)]
    created: u64,
    #[serde(rename = "Proxy", default, deserialize_with = "null_is_default")]
    proxy: Proxy,
    #[serde(rename = "TaggedAddresses", default, deserialize_with = "null_is_default")]
    tagged: BTreeMap<String, TaggedAddress>,
}

#[derive(Deserialize)]
struct TaggedAddress {
    #[serde(rename = "Address", default)]
    address: String,
    #[serde(rename = "Port", default)]
    port: i64,
}

#[derive(Default, Deserialize)]
struct Proxy {
    #[serde(rename = "DestinationServiceID", default)]
    destination: Arc<str>,
}

/// Registered as `name`, and `Name` in Go's own encoding: both are taken.
#[derive(Deserialize)]
struct NamedPort {
    #[serde(alias = "Name", default)]
    name: Arc<str>,
    #[serde(alias = "Port", default)]
    port: i64,
    #[serde(alias = "Default", default)]
    default: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawWeights {
    passing: i64,
    warning: i64,
}

impl Default for RawWeights {
    fn default() -> Self {
        Self {
            passing: 1,
            warning: 1,
        }
    }
}

#[derive(Deserialize)]
struct Check {
    #[serde(rename = "CheckID", default)]
    id: String,
    #[serde(rename = "Status", default)]
    status: String,
}

impl Entry {
    fn seen_from_afar(mut self, afar: bool) -> Self {
        if let Some(wan) = self
            .service
            .tagged
            .remove("wan")
            .filter(|wan| afar && !wan.address.is_empty())
        {
            self.service.address = wan.address;
            self.service.port = if wan.port == 0 {
                self.service.port
            } else {
                wan.port
            };
        }
        self
    }

    fn instance(self) -> Option<Instance> {
        let Self {
            node,
            service,
            checks,
        } = self;
        let tells_ports_apart = service.kind == "connect-proxy"
            && !service.namespace.is_empty()
            && node.meta.version.as_deref().is_none_or(is_2_0_or_newer);
        let address = if service.address.is_empty() {
            node.address
        } else {
            service.address
        };
        let ports: BTreeMap<Arc<str>, u16> = service
            .ports
            .iter()
            .take(PORTS)
            .filter(|port| port.name.len() <= NAME_BYTES)
            .filter_map(|port| Some((port.name.clone(), u16::try_from(port.port).ok()?)))
            .collect();
        let default = service
            .ports
            .iter()
            .find(|port| port.default)
            .or(service.ports.first());
        let port = if service.port == 0 {
            default.map_or(0, |port| port.port)
        } else {
            service.port
        };
        let port = u16::try_from(port).ok()?;
        let id = if service.id.is_empty() {
            service.name
        } else {
            service.id
        };
        let usable =
            |text: &str| !text.is_empty() && text.len() <= NAME_BYTES && !text.contains(char::is_control);
        if !usable(&node.node) || !usable(&id) || !usable(&address) || address.contains(char::is_whitespace) {
            return None;
        }
        Some(Instance {
            health: worst(&checks),
            node: node.node,
            id: id.into(),
            destination: (!service.proxy.destination.is_empty()
                && service.proxy.destination.len() <= NAME_BYTES)
                .then_some(service.proxy.destination),
            address: address.into(),
            port,
            ports: ports.into(),
            tells_ports_apart,
            weights: Weights {
                passing: weight(service.weights.passing),
                warning: weight(service.weights.warning),
            },
            created: service.created,
            tags: bounded_tags(service.tags).into(),
            meta: bounded_meta(service.meta).into(),
        })
    }
}

fn is_2_0_or_newer(version: &str) -> bool {
    let major = version.split('.').next().and_then(|major| major.parse().ok());
    major.is_some_and(|major: u32| major >= 2)
}

fn worst(checks: &[Check]) -> Health {
    let health = |check: &Check| match check.status.as_str() {
        "passing" => Health::Passing,
        "warning" => Health::Warning,
        _ if check.id == "_node_maintenance" || check.id.starts_with("_service_maintenance:") => {
            Health::Maintenance
        }
        // "critical", and whatever a newer Consul may call worse than that.
        _ => Health::Critical,
    };
    checks.iter().map(health).max().unwrap_or(Health::Passing)
}

fn weight(weight: i64) -> u32 {
    u32::try_from(weight.clamp(0, WEIGHT)).unwrap_or(0)
}

fn bounded_tags(mut tags: Vec<Arc<str>>) -> Vec<Arc<str>> {
    tags.retain(|tag| tag.len() <= VALUE_BYTES);
    tags.truncate(TAGS);
    tags
}

fn bounded_meta(meta: BTreeMap<Arc<str>, Arc<str>>) -> BTreeMap<Arc<str>, Arc<str>> {
    meta.into_iter()
        .filter(|(key, value)| key.len() <= NAME_BYTES && value.len() <= VALUE_BYTES)
        .take(META)
        .collect()
}

fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// More endpoints than Envoy would be asked to hold for one cluster in any known installation.
pub(super) const INSTANCES: usize = 10_000;

/// A DNS name has at most 253 characters; Consul's own names are not longer.
const NAME_BYTES: usize = 256;

/// Consul bounds a meta value to 512 bytes and their number to 64, but not what `catalog/register` writes.
const VALUE_BYTES: usize = 512;
const META: usize = 64;
const TAGS: usize = 128;
const PORTS: usize = 64;

/// Consul's own bound on a weight.
const WEIGHT: i64 = 65_535;

#[cfg(test)]
mod tests {
    use super::*;

    fn one(service: &str, checks: &str) -> Option<Instance> {
        let body = format!(
            r#"[{{"Node":{{"ID":"","Node":"n1","Address":"10.0.0.1","Meta":null}},"Service":{{"ID":"web-1","Service":"web",{service}}},"Checks":{checks}}}]"#
        );
        parse(body.as_bytes(), Lookup::Service).unwrap().list.pop()
    }

    fn health(checks: &str) -> Health {
        one(r#""Port":1"#, checks).unwrap().health
    }

    #[test]
    fn an_answer_of_1_8_7() {
        let body = br#"[{"Node":{"ID":"38be","Node":"vm","Address":"127.0.0.1","Datacenter":"dc1","TaggedAddresses":{"lan":"127.0.0.1"},"Meta":{"consul-network-segment":""},"CreateIndex":10,"ModifyIndex":11},
          "Service":{"ID":"web-1","Service":"web","Tags":["v1","http"],"Address":"127.0.0.1","Port":9001,"Meta":{"version":"v1"},
          "TaggedAddresses":{"wan":{"Address":"198.18.0.1","Port":443}},"Weights":{"Passing":10,"Warning":1},"EnableTagOverride":false,
          "Proxy":{"MeshGateway":{},"Expose":{}},"Connect":{},"CreateIndex":29,"ModifyIndex":29},
          "Checks":[{"Node":"vm","CheckID":"serfHealth","Status":"passing","ServiceID":"","Type":""},{"CheckID":"service:web-1","Status":"warning","ServiceID":"web-1","Type":"ttl"}]}]"#;
        let instance = parse(body, Lookup::Service).unwrap().list.pop().unwrap();
        assert_eq!(
            (&*instance.node, &*instance.id, &*instance.address, instance.port),
            ("vm", "web-1", "127.0.0.1", 9001)
        );
        assert_eq!(
            instance.weights,
            Weights {
                passing: 10,
                warning: 1
            }
        );
        assert_eq!(instance.health, Health::Warning);
        assert_eq!(*instance.tags, ["v1".into(), "http".into()]);
        assert_eq!(instance.meta.get("version").map(|value| &**value), Some("v1"));
    }

    #[test]
    fn a_sidecar_names_the_instance_behind_it() {
        let sidecar = one(
            r#""Kind":"connect-proxy","Port":28000,"Proxy":{"DestinationServiceName":"web","DestinationServiceID":"web-1","LocalServicePort":9001,"MeshGateway":{},"Expose":{}}"#,
            "[]",
        );
        assert_eq!(sidecar.unwrap().destination.as_deref(), Some("web-1"));
        let plain = one(r#""Port":1,"Proxy":{"MeshGateway":{},"Expose":{}}"#, "[]");
        assert_eq!(plain.unwrap().destination, None);
    }

    #[test]
    fn sidecars_of_enterprise_2_0_tell_ports_apart() {
        let tells = |kind: &str, namespace: &str, meta: &str| {
            let body = format!(
                r#"[{{"Node":{{"Node":"n1","Address":"10.0.0.1","Meta":{meta}}},"Service":{{"Kind":"{kind}","ID":"p",{namespace}"Service":"p","Port":1}},"Checks":[]}}]"#
            );
            let list = parse(body.as_bytes(), Lookup::Connect).unwrap().list;
            list[0].tells_ports_apart
        };
        let enterprise = r#""Namespace":"default","Partition":"default","#;
        for meta in [
            r#"{"consul-version":"2.0.4"}"#,
            r#"{"consul-version":"10.1.0+ent"}"#,
            "{}",
            "null",
        ] {
            assert!(tells("connect-proxy", enterprise, meta), "{meta}");
            assert!(
                !tells("connect-proxy", "", meta),
                "CE passes all to the default port: {meta}"
            );
            assert!(!tells("", enterprise, meta), "no sidecar: {meta}");
        }
        for version in ["1.22.3", "1.22.3+ent", "", "newest"] {
            let meta = format!(r#"{{"consul-version":"{version}"}}"#);
            assert!(!tells("connect-proxy", enterprise, &meta), "{meta}");
        }
    }

    #[test]
    fn a_mesh_gateway_has_an_address_for_each_side() {
        let body = br#"[{"Node":{"Node":"n1","Address":"10.0.0.1"},"Service":{"Kind":"mesh-gateway","ID":"mgw","Service":"mesh-gateway","Address":"10.0.0.9","Port":8443,
          "TaggedAddresses":{"lan":{"Address":"10.0.0.9","Port":8443},"wan":{"Address":"198.18.0.1","Port":443}}},"Checks":[]},
          {"Node":{"Node":"n1","Address":"10.0.0.1"},"Service":{"ID":"imposter","Service":"mesh-gateway","Port":80},"Checks":[]}]"#;
        let address = |lookup| {
            let list = parse(body, lookup).unwrap().list;
            assert_eq!(list.len(), 1, "what is no mesh gateway is left out");
            format!("{}:{}", list[0].address, list[0].port)
        };
        assert_eq!(address(Lookup::MeshGateway), "10.0.0.9:8443");
        assert_eq!(address(Lookup::MeshGatewayWan), "198.18.0.1:443");
        assert_eq!(parse(body, Lookup::Service).unwrap().list.len(), 2);
    }

    #[test]
    fn the_worst_check_counts() {
        assert_eq!(health("[]"), Health::Passing);
        assert_eq!(health("null"), Health::Passing);
        assert_eq!(
            health(r#"[{"Status":"passing"},{"Status":"warning"}]"#),
            Health::Warning
        );
        assert_eq!(
            health(r#"[{"Status":"critical"},{"Status":"warning"}]"#),
            Health::Critical
        );
        assert_eq!(
            health(r#"[{"Status":"critical"},{"CheckID":"_node_maintenance","Status":"critical"}]"#),
            Health::Maintenance
        );
        assert_eq!(
            health(r#"[{"CheckID":"_service_maintenance:web-1","Status":"critical"}]"#),
            Health::Maintenance
        );
        assert_eq!(health(r#"[{"Status":"unheard-of"}]"#), Health::Critical);
    }

    #[test]
    fn addresses_and_ports_fall_back() {
        let instance = one(
            r#""Address":"","Port":0,"Tags":null,"Meta":null,"Weights":null"#,
            "null",
        )
        .unwrap();
        assert_eq!((&*instance.address, instance.port), ("10.0.0.1", 0));
        assert_eq!(instance.weights, Weights::default());
        let ports = r#""Address":"10.1.1.1","Port":0,"Ports":[{"name":"admin","port":9000},{"name":"http","port":8080,"default":true}]"#;
        let instance = one(ports, "[]").unwrap();
        assert_eq!(instance.port, 8080);
        assert_eq!(instance.ports.get("admin"), Some(&9000));
    }

    #[test]
    fn what_instances_have_in_common_is_kept_once() {
        let entry = |id: &str, tag: &str| {
            format!(
                r#"{{"Node":{{"Node":"n1","Address":"10.0.0.1"}},"Service":{{"ID":"{id}","Port":1,"Tags":["{tag}"],"Meta":{{"k":"v"}}}}}}"#
            )
        };
        let body = format!("[{},{},{}]", entry("a", "x"), entry("b", "x"), entry("c", "y"));
        let list = parse(body.as_bytes(), Lookup::Service).unwrap().list;
        let [a, b, c] = &list[..] else { panic!("{list:?}") };
        assert!(std::ptr::eq(&*a.tags, &*b.tags) && std::ptr::eq(&*a.meta, &*c.meta));
        assert!(Arc::ptr_eq(&a.node, &c.node) && Arc::ptr_eq(&a.address, &c.address));
        assert_eq!(*c.tags, [Arc::from("y")]);
    }

    #[test]
    fn hostile_registrations_are_bounded_or_left_out() {
        for service in [
            r#""Port":70000"#,
            r#""Port":-1"#,
            r#""Port":1,"Address":"10.0.0.1 evil""#,
            r#""Port":1,"Address":"a\nb""#,
            &format!(r#""Port":1,"Address":"{}""#, "x".repeat(300)),
        ] {
            assert!(one(service, "[]").is_none(), "{service}");
        }
        let meta: Vec<String> = (0..100)
            .map(|n| format!(r#""k{n:03}":"{}""#, "v".repeat(if n == 0 { 600 } else { 10 })))
            .collect();
        let instance = one(
            &format!(
                r#""Port":1,"Meta":{{{}}},"Weights":{{"Passing":-4,"Warning":99999999}}"#,
                meta.join(",")
            ),
            "[]",
        )
        .unwrap();
        assert_eq!(instance.meta.len(), META);
        assert!(!instance.meta.contains_key("k000"));
        assert_eq!(
            instance.weights,
            Weights {
                passing: 0,
                warning: 65_535
            }
        );
    }

    #[test]
    fn order_does_not_matter_and_numbers_are_bounded() {
        let entry = |n: usize| {
            format!(
                r#"{{"Node":{{"Node":"n{n:05}","Address":"10.0.0.1"}},"Service":{{"ID":"w","Port":1}},"Checks":[]}}"#
            )
        };
        let forward: Vec<String> = (0..INSTANCES + 3).map(entry).collect();
        let backward: Vec<String> = forward.iter().rev().cloned().collect();
        let a = parse(format!("[{}]", forward.join(",")).as_bytes(), Lookup::Service).unwrap();
        let b = parse(format!("[{}]", backward.join(",")).as_bytes(), Lookup::Service).unwrap();
        assert_eq!(a, b);
        assert_eq!((a.list.len(), a.cut), (INSTANCES, 3));
    }

    #[test]
    fn other_shapes_are_errors_and_null_is_empty() {
        assert!(parse(b"null", Lookup::Service).unwrap().list.is_empty());
        for text in ["{}", "rpc error", r#"[{"Node":null}]"#, ""] {
            assert!(parse(text.as_bytes(), Lookup::Service).is_err(), "{text}");
        }
    }
}

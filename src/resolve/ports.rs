//! Ports that are wanted twice: by two gateways of one node, or by a process that is not ours.
//!
//! Each gateway has an Envoy of its own, and both run on this node: the
//! kernel would share the port between them, and every other connection would reach the wrong gateway.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::config::{Config, Gateway, Listener, ObjectKey, ObjectKind};
use crate::diagnostics::{Code, Diagnostic};
use crate::model::SharedPort;
use crate::snapshot::Snapshot;

/// Why this listener is withheld: an older gateway of the node holds its port.
pub(super) fn port_clash(
    config: &Config,
    same_node: &[Arc<str>],
    bind: IpAddr,
    gateway: &Gateway,
    listener: &Listener,
) -> Option<Diagnostic> {
    if same_node.len() < 2 || !same_node.contains(&gateway.name) {
        return None;
    }
    let mut older: Vec<_> = same_node
        .iter()
        .filter_map(|name| {
            let key = ObjectKey::new(ObjectKind::Gateway, name);
            let (rank, _) = config.claims_of(&key)?.first()?;
            let gateway = config.gateway(name)?;
            Some(((rank, gateway.origin.span.start), gateway))
        })
        .collect();
    older.sort_by_key(|(age, _)| *age);
    let mut held = Held::default();
    for (_, other) in older {
        for wanted in other
            .listeners
            .iter()
            .filter(|wanted| wanted.port == listener.port)
        {
            // A listener without an address binds where the agent's settings say.
            let address = wanted.address.unwrap_or(bind);
            let holder = held.in_the_way_of(other, address);
            if other.name == gateway.name && wanted.name == listener.name {
                return holder.map(|(holder, taken)| clash(gateway, listener, holder, taken));
            }
            // A listener that is withheld holds nothing.
            if holder.is_none() {
                held.add(address, (&**other, wanted));
            }
        }
    }
    None
}

type Holder<'a> = (&'a Gateway, &'a Listener);

/// Who holds one port, and where. Of each place the first two gateways: one of them is not the one that asks.
#[derive(Default)]
struct Held<'a> {
    at: BTreeMap<IpAddr, Vec<Holder<'a>>>,
    /// At any address of IPv4, or of IPv6: Envoy's `::` takes no IPv4 connections.
    of_family: BTreeMap<bool, Vec<Holder<'a>>>,
}

impl<'a> Held<'a> {
    fn in_the_way_of(&self, gateway: &Gateway, address: IpAddr) -> Option<Holder<'a>> {
        let everywhere: IpAddr = match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let at = |place: IpAddr| self.at.get(&place).into_iter().flatten();
        let of_others = |holder: &&Holder<'a>| holder.0.name != gateway.name;
        if address == everywhere {
            let all = self.of_family.get(&address.is_ipv4());
            return all.into_iter().flatten().find(of_others).copied();
        }
        at(address).chain(at(everywhere)).find(of_others).copied()
    }

    fn add(&mut self, address: IpAddr, holder: Holder<'a>) {
        for places in [
            self.at.entry(address).or_default(),
            self.of_family.entry(address.is_ipv4()).or_default(),
        ] {
            if places.len() < 2 && places.iter().all(|(gateway, _)| gateway.name != holder.0.name) {
                places.push(holder);
            }
        }
    }
}

fn clash(gateway: &Gateway, listener: &Listener, holder: &Gateway, other: &Listener) -> Diagnostic {
    Diagnostic::error(
        Code::PortClash,
        format!(
            "gateways {:?} and {:?} both want port {}: listeners {:?} and {:?}",
            holder.name, gateway.name, listener.port, other.name, listener.name
        ),
    )
    .at(listener.origin.clone())
    .about("gateway", &gateway.name)
    .because("this agent serves both on one node, where a port belongs to one of them: the older one has it, this listener is not opened")
    .fix("give one of them another port or an `address` of its own, or serve them from different nodes")
}

/// Ports of this node's listeners on which a process that is not ours listens too.
pub fn shared_ports(snapshot: &Snapshot) -> impl Iterator<Item = Diagnostic> {
    snapshot.shared_ports().iter().filter_map(|port| {
        let gateway = snapshot.config.gateway(&port.gateway)?;
        let mut listeners = gateway.listeners.iter();
        // Gone since it was looked at: then so is the problem.
        let listener = listeners.find(|listener| listener.name == port.listener)?;
        (listener.port == port.ours.port()).then(|| shared(listener, port))
    })
}

fn shared(listener: &Listener, port: &SharedPort) -> Diagnostic {
    let SharedPort { ours, theirs, .. } = port;
    let (who, stop) = match &port.holder {
        Some((pid, name)) => (format!("process {pid} ({name})"), format!("stop process {pid}")),
        None => (
            "a process of another user".to_owned(),
            "stop that process (`ss -ltnp`, as root, names it)".to_owned(),
        ),
    };
    let (message, why) = if ours == theirs {
        (
            format!(
                "{who} listens on {ours} too, where listener {:?} is",
                listener.name
            ),
            "the kernel deals new connections out between the two: some never reach this gateway",
        )
    } else {
        (
            format!(
                "{who} listens on {theirs}, in the way of listener {:?} on {ours}",
                listener.name
            ),
            "the kernel prefers the nearer address: connections to it never reach this gateway",
        )
    };
    Diagnostic::error(Code::PortClash, message)
        .at(listener.origin.clone())
        .about("gateway", &port.gateway)
        .because(format!(
            "Envoys of one user can share a port without an error, and {why}"
        ))
        .fix(format!("{stop}, or give the listener another port or address"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConfigChange, Permissions};
    use crate::hcl::Limits;
    use crate::model::{Document, DocumentId};

    const BIND: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn clashes(text: &str, served: &[&str]) -> Vec<Diagnostic> {
        let mut config = Config::new(Permissions::default(), Limits::default());
        let document = Document {
            id: DocumentId::File("edge.hcl".into()),
            text: text.into(),
            order: 0,
            version: 0,
        };
        config.upsert(document, None, &mut ConfigChange::default());
        let served: Vec<Arc<str>> = served.iter().map(|name| Arc::from(*name)).collect();
        let gateways = served.iter().filter_map(|name| config.gateway(name));
        gateways
            .flat_map(|gateway| gateway.listeners.iter().map(move |listener| (gateway, listener)))
            .filter_map(|(gateway, listener)| port_clash(&config, &served, BIND, gateway, listener))
            .collect()
    }

    fn gateway(name: &str, port: u16, address: &str) -> String {
        let address = if address.is_empty() {
            String::new()
        } else {
            format!("address = {address:?}\n")
        };
        format!("gateway {name:?} {{\n  listener \"web\" {{\n port = {port}\n {address} }}\n}}\n")
    }

    #[test]
    fn two_gateways_on_one_port_are_named_both() {
        let text = gateway("blue", 8080, "") + &gateway("green", 8080, "");
        let found = clashes(&text, &["green", "blue"]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].code, Code::PortClash);
        assert!(
            found[0].message.contains("\"blue\" and \"green\""),
            "{}",
            found[0]
        );
        assert_eq!(found[0].origin.as_ref().unwrap().line, 7);
        assert!(
            clashes(&text, &["blue"]).is_empty(),
            "the other one is served elsewhere"
        );
    }

    #[test]
    fn other_ports_and_other_addresses_do_not_clash() {
        let ports = gateway("blue", 8080, "") + &gateway("green", 8081, "");
        assert!(clashes(&ports, &["blue", "green"]).is_empty());
        let addresses = gateway("blue", 80, "10.0.0.1") + &gateway("green", 80, "10.0.0.2");
        assert!(clashes(&addresses, &["blue", "green"]).is_empty());
        let all = gateway("blue", 80, "0.0.0.0") + &gateway("green", 80, "10.0.0.2");
        assert_eq!(clashes(&all, &["blue", "green"]).len(), 1);
        let families = gateway("blue", 80, "0.0.0.0") + &gateway("green", 80, "2001:db8::1");
        assert!(clashes(&families, &["blue", "green"]).is_empty());
        // One without an address binds where the settings say.
        let default = gateway("blue", 80, "") + &gateway("green", 80, "10.0.0.2");
        assert!(clashes(&default, &["blue", "green"]).is_empty());
        let default = gateway("blue", 80, "") + &gateway("green", 80, "10.0.0.1");
        assert_eq!(clashes(&default, &["blue", "green"]).len(), 1);
    }

    #[test]
    fn the_older_holds_and_who_is_withheld_holds_nothing() {
        let younger = gateway("zoo", 80, "10.0.0.1") + &gateway("any", 80, "0.0.0.0");
        let found = clashes(&younger, &["any", "zoo"]);
        assert_eq!(found.len(), 1);
        assert!(found[0].message.contains("\"zoo\" and \"any\""), "{}", found[0]);
        let third = younger + &gateway("third", 80, "10.0.0.2");
        assert_eq!(clashes(&third, &["any", "zoo", "third"]).len(), 1);
    }
    /// Of those that hold a part of it, one's own do not count.
    #[test]
    fn who_wants_every_address_clashes_with_any_other() {
        let blue = "gateway \"blue\" {\n  listener \"one\" {\n port = 80\n address = \"10.0.0.1\"\n }\n  listener \"all\" {\n port = 80\n address = \"0.0.0.0\"\n }\n}\n";
        assert!(clashes(blue, &["blue"]).is_empty());
        let after_green = gateway("green", 80, "10.0.0.2") + blue;
        let found = clashes(&after_green, &["blue", "green"]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].message.contains("\"green\" and \"blue\""),
            "{}",
            found[0]
        );
        // The two oldest of three: the third clashes with one that is not the first.
        let third = gateway("green", 80, "10.0.0.2") + &gateway("red", 80, "10.0.0.3");
        let found = clashes(&(third + blue), &["red", "blue", "green"]);
        assert_eq!(found.len(), 1, "{found:?}");
    }
}

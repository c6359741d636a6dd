//! Ports that two gateways of one agent both want. Each gateway has an Envoy of its own, and both run on this node:
//! the kernel would share the port between them, and every other connection would reach the wrong gateway.

use std::net::IpAddr;
use std::sync::Arc;

use crate::config::{Config, Gateway, Listener};
use crate::diagnostics::{Code, Diagnostic};

/// One diagnostic for each listener that comes second, at its place, naming both gateways.
pub(super) fn port_clashes(config: &Config, served: &[Arc<str>]) -> Vec<Diagnostic> {
    let mut gateways: Vec<&Arc<Gateway>> = served.iter().filter_map(|name| config.gateway(name)).collect();
    gateways.sort_by(|one, other| one.name.cmp(&other.name));
    let mut found = Vec::new();
    let mut earlier: Vec<(&Gateway, &Listener)> = Vec::new();
    for gateway in gateways {
        for listener in &gateway.listeners {
            let first = earlier
                .iter()
                .find(|(_, other)| other.port == listener.port && overlap(other.address, listener.address));
            if let Some((holder, other)) = first {
                found.push(clash(gateway, listener, holder, other));
            }
        }
        earlier.extend(gateway.listeners.iter().map(|listener| (&**gateway, listener)));
    }
    found
}

/// A listener without an address binds where the agent's settings say, by default everywhere.
fn overlap(one: Option<IpAddr>, other: Option<IpAddr>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one == other || one.is_unspecified() || other.is_unspecified(),
        _ => true,
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
    .because("this agent serves both on one node, where a port can belong to one of them only")
    .fix("give one of them another port or an `address` of its own, or serve them from different nodes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConfigChange, Permissions};
    use crate::hcl::Limits;
    use crate::model::{Document, DocumentId};

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
        port_clashes(&config, &served)
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
        let default = gateway("blue", 80, "") + &gateway("green", 80, "10.0.0.2");
        assert_eq!(clashes(&default, &["blue", "green"]).len(), 1);
    }
}

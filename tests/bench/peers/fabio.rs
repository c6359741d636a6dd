//! fabio, which takes routes from the tags of services, and as commands from Consul's KV.

use std::path::Path;

use super::proxy::{Entries, Peer, Place, Target};
use crate::support::ports::free_port;
use crate::support::process::Launch;

pub const PEER: Peer = Peer {
    name: "fabio",
    variable: "PEER_FABIO_BIN",
    launches,
    base: |_| Vec::new(),
    route,
    reads_services: true,
};

fn launches(program: &Path, place: &Place) -> Vec<Launch> {
    let settings = [
        ("proxy.addr", format!("127.0.0.1:{}", place.port)),
        // Instances must take turns for their end to be seen; at random they do not.
        ("proxy.strategy", "rr".to_owned()),
        ("ui.addr", format!("127.0.0.1:{}", free_port())),
        ("registry.consul.addr", place.consul.clone()),
        ("registry.consul.register.enabled", "false".to_owned()),
        ("registry.consul.pollinterval", "0".to_owned()),
        ("registry.consul.serviceMonitors", "8".to_owned()),
        ("log.routes.format", "all".to_owned()),
        ("log.level", "ERROR".to_owned()),
        // Else it refuses to run as root, as which a container's tests run.
        ("insecure", "true".to_owned()),
    ];
    let arguments = settings.map(|(name, value)| format!("-{name}={value}"));
    vec![Launch::new("fabio", program, place.directory).args(arguments)]
}

fn route(target: &Target) -> Entries {
    let command = format!(
        "route add {} {}/ http://127.0.0.1:{}/",
        target.service, target.host, target.port
    );
    vec![(format!("fabio/config/{}", target.host), command)]
}

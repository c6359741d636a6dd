//! Traefik, which reads routes from its Consul KV provider and services from its catalog provider.
//!
//! Its fastest documented settings: by default it asks the catalog once in 15 seconds and sleeps for two after each change.

use std::path::Path;

use super::proxy::{Entries, Peer, Place, Target};
use crate::support::process::Launch;

pub const PEER: Peer = Peer {
    name: "traefik",
    variable: "PEER_TRAEFIK_BIN",
    launches,
    base: |_| Vec::new(),
    route,
    reads_services: true,
};

fn launches(program: &Path, place: &Place) -> Vec<Launch> {
    let consul = &place.consul;
    let arguments = [
        format!("--entryPoints.web.address=127.0.0.1:{}", place.port),
        "--global.checkNewVersion=false".to_owned(),
        "--global.sendAnonymousUsage=false".to_owned(),
        "--log.level=ERROR".to_owned(),
        "--providers.providersThrottleDuration=0s".to_owned(),
        format!("--providers.consulCatalog.endpoint.address={consul}"),
        "--providers.consulCatalog.watch=true".to_owned(),
        "--providers.consulCatalog.refreshInterval=1s".to_owned(),
        "--providers.consulCatalog.exposedByDefault=true".to_owned(),
        "--providers.consulCatalog.defaultRule=Host(`{{ normalize .Name }}.example.com`)".to_owned(),
        format!("--providers.consul.endpoints={consul}"),
    ];
    vec![Launch::new("traefik", program, place.directory).args(arguments)]
}

fn route(target: &Target) -> Entries {
    let router = target.host.replace('.', "-");
    let key = |end: &str| format!("traefik/http/routers/{router}/{end}");
    vec![
        (key("rule"), format!("Host(`{}`)", target.host)),
        (key("service"), format!("{}@consulcatalog", target.service)),
    ]
}

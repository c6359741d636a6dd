//! Checked blocks to typed settings, with their defaults.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{ApiBlock, ConsulBlock, EnvoyBlock, Flags, MeshBlock, XdsBlock, XdsTcpBlock};
use crate::config::{AddressRules, Permissions};
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::Reader;
use crate::model::Redacted;
use crate::sources::agent_api::LoginSettings;

pub(super) fn path(reader: &Reader<'_>, name: &str) -> Option<PathBuf> {
    reader.string(name).map(|path| PathBuf::from(&*path))
}

pub(super) fn owned(reader: &Reader<'_>, name: &str) -> Option<String> {
    reader.string(name).map(|text| text.to_string())
}

pub(super) fn consul_block(reader: &Reader<'_>) -> ConsulBlock {
    ConsulBlock {
        address: owned(reader, "address"),
        token: owned(reader, "token").map(Redacted::new),
        token_file: path(reader, "token_file"),
        login: reader.child("login").and_then(|login| {
            Some(LoginSettings {
                method: owned(&login, "method")?,
                bearer_token_file: path(&login, "bearer_token_file")?,
                token_sink_file: path(&login, "token_sink_file"),
            })
        }),
        ca_file: path(reader, "ca_file"),
        ca_path: path(reader, "ca_path"),
        client_cert: path(reader, "client_cert"),
        client_key: path(reader, "client_key"),
        tls_server_name: owned(reader, "tls_server_name"),
        tls_skip_verify: reader.boolean("tls_skip_verify"),
        namespace: owned(reader, "namespace"),
        partition: owned(reader, "partition"),
        datacenter: owned(reader, "datacenter"),
        max_connections: reader
            .unsigned("max_connections")
            .and_then(|most| usize::try_from(most).ok()),
    }
}

pub(super) fn mesh_block(reader: &Reader<'_>) -> MeshBlock {
    let service = reader.string("service").unwrap_or_default();
    MeshBlock {
        sidecar: reader
            .string("sidecar")
            .unwrap_or_else(|| format!("{service}-sidecar-proxy").into()),
        service,
        token: owned(reader, "token"),
        token_file: path(reader, "token_file"),
    }
}

/// `own` is where this agent listens, `host_name` what its machine is called.
pub(super) fn permissions(kv: Option<&Reader<'_>>, mut own: Vec<SocketAddr>, host_name: &str) -> Permissions {
    own.sort();
    let short = host_name.split('.').next().unwrap_or(host_name);
    let own_names: BTreeSet<Arc<str>> = [host_name, short]
        .into_iter()
        .filter(|name| !name.is_empty())
        .map(Into::into)
        .collect();
    let mut permissions = Permissions {
        addresses: AddressRules {
            own,
            own_names: own_names.into_iter().collect(),
            ..AddressRules::default()
        },
        ..Permissions::default()
    };
    let Some(kv) = kv else { return permissions };
    permissions.files = kv.strings("files");
    if kv.has("vault_paths") {
        permissions.vault_paths = kv.strings("vault_paths");
    }
    if kv.has("nomad_variables") {
        permissions.nomad_variables = kv.strings("nomad_variables");
    }
    let rules = &mut permissions.addresses;
    rules.allowed = kv.has("addresses").then(|| kv.strings("addresses"));
    rules.allow_loopback = kv.boolean("allow_loopback").unwrap_or(false);
    rules.allow_link_local = kv.boolean("allow_link_local").unwrap_or(false);
    permissions
}

/// Where a server listens that is reached over loopback. What the settings leave to the environment is mostly there, too.
pub(super) fn on_this_machine(address: Option<&str>, usual_port: u16) -> Option<SocketAddr> {
    let Some(address) = address else {
        return Some((Ipv4Addr::LOCALHOST, usual_port).into());
    };
    let authority = match address.split_once("://") {
        Some(("unix", _)) => return None,
        Some((_, rest)) => rest.split('/').next().unwrap_or(rest),
        None => address,
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => (host, port.parse().ok()?),
        _ => (authority, usual_port),
    };
    let host: IpAddr = match host.trim_start_matches('[').trim_end_matches(']') {
        "localhost" => Ipv4Addr::LOCALHOST.into(),
        host => host.parse().ok()?,
    };
    host.is_loopback().then_some((host, port).into())
}

pub(super) fn envoy_block(reader: Option<&Reader<'_>>, dev: bool) -> EnvoyBlock {
    let default = EnvoyBlock {
        supervise: dev,
        binary: None,
        concurrency: dev.then_some(1),
        log_level: "warning".to_owned(),
        state_of_the_world: false,
        drain_time: Duration::from_secs(if dev { 2 } else { 20 }),
        max_downstream_connections: 50_000,
        stop_with_agent: true,
    };
    let Some(reader) = reader else { return default };
    EnvoyBlock {
        supervise: reader.boolean("supervise").unwrap_or(default.supervise),
        binary: path(reader, "binary"),
        concurrency: reader.unsigned("concurrency").or(default.concurrency),
        log_level: owned(reader, "log_level").unwrap_or(default.log_level),
        state_of_the_world: reader.string("variant").as_deref() == Some("sotw"),
        drain_time: reader.duration("drain_time").unwrap_or(default.drain_time),
        max_downstream_connections: reader
            .unsigned("max_downstream_connections")
            .unwrap_or(default.max_downstream_connections),
        stop_with_agent: reader
            .boolean("stop_with_agent")
            .unwrap_or(default.stop_with_agent),
    }
}

pub(super) fn xds_block(reader: Option<&Reader<'_>>, data_dir: &Path) -> Result<XdsBlock, Box<Diagnostic>> {
    let tcp = reader.and_then(|reader| reader.child("tcp")).and_then(|tcp| {
        Some(XdsTcpBlock {
            address: tcp.string("address")?.parse().ok()?,
            ca_file: path(&tcp, "ca_file")?,
            cert_file: path(&tcp, "cert_file")?,
            key_file: path(&tcp, "key_file")?,
            clients: tcp
                .children("client")
                .filter_map(|(_, client)| Some((owned(&client, "san")?, client.strings("gateways"))))
                .collect(),
        })
    });
    let uids: BTreeSet<u32> = reader
        .map(|reader| reader.integers("uids").into_iter().collect())
        .unwrap_or_default();
    Ok(XdsBlock {
        socket: reader
            .and_then(|reader| path(reader, "socket"))
            .unwrap_or_else(|| data_dir.join("xds.sock")),
        clients: reader.map_or(Ok(BTreeMap::new()), |reader| held_users(reader, &uids))?,
        uids,
        tcp,
    })
}

/// Users that may have some gateways and no others. Two blocks of one user add up, as those of one certificate do.
fn held_users(
    reader: &Reader<'_>,
    uids: &BTreeSet<u32>,
) -> Result<BTreeMap<u32, BTreeSet<Arc<str>>>, Box<Diagnostic>> {
    let mut clients: BTreeMap<u32, BTreeSet<Arc<str>>> = BTreeMap::new();
    for (_, client) in reader.children("client") {
        let Some(uid) = client.unsigned("uid") else {
            continue;
        };
        let refused = |message: String, why: &str, fix: &str| {
            let problem = Diagnostic::error(Code::Conflict, message).at(client.origin_of("uid"));
            Err(Box::new(problem.because(why).fix(fix)))
        };
        if uid == 0 {
            return refused(
                "root cannot be held to some gateways".to_owned(),
                "root may have any gateway, and can read the agent's memory in any case",
                "let that Envoy run as a user of its own, and name its uid",
            );
        }
        if uids.contains(&uid) {
            return refused(
                format!("user {uid} is held to some gateways here, and may have any of them by `uids`"),
                "the narrower rule would hold nobody back",
                "take the uid out of `uids`, or remove this `client` block",
            );
        }
        clients.entry(uid).or_default().extend(client.strings("gateways"));
    }
    Ok(clients)
}

pub(super) fn api_block(
    reader: &Reader<'_>,
    flags: &Flags,
    data_dir: &Path,
) -> Result<ApiBlock, Box<Diagnostic>> {
    let api = reader.child("api");
    let address = api
        .and_then(|api| api.string("address"))
        .and_then(|address| address.parse::<SocketAddr>().ok());
    if let (Some(address), Some(api)) = (address, &api)
        && !address.ip().is_loopback()
    {
        return Err(Box::new(
            Diagnostic::error(Code::NotAllowed, format!("the API may not listen on {address}"))
                .at(api.origin_of("address"))
                .because("it has neither TLS nor authentication")
                .fix("use a loopback address, or the unix socket"),
        ));
    }
    let socket = flags
        .api_socket
        .clone()
        .or_else(|| api.and_then(|api| path(&api, "socket")));
    Ok(ApiBlock {
        socket: socket.unwrap_or_else(|| data_dir.join("api.sock")),
        address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_this_machine_are_told_from_others() {
        let at = |address: &str| on_this_machine(Some(address), 8500).map(|address| address.to_string());
        for address in [
            "127.0.0.1",
            "localhost",
            "127.0.0.1:8500",
            "http://localhost:8500",
            "https://127.0.0.1:8500/base",
        ] {
            assert_eq!(at(address).as_deref(), Some("127.0.0.1:8500"), "{address}");
        }
        assert_eq!(at("https://[::1]:8501").as_deref(), Some("[::1]:8501"));
        for address in [
            "10.0.0.1:8500",
            "consul.example.com",
            "unix:///run/consul.sock",
            "http://",
        ] {
            assert_eq!(at(address), None, "{address}");
        }
        assert_eq!(
            on_this_machine(None, 8200),
            Some("127.0.0.1:8200".parse().unwrap())
        );
    }
}

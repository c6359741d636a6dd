//! Checked blocks to typed settings, with their defaults.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ApiBlock, ConsulBlock, EnvoyBlock, Flags, XdsBlock, XdsTcpBlock};
use crate::config::{AddressRules, Permissions};
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::Reader;

pub(super) fn path(reader: &Reader<'_>, name: &str) -> Option<PathBuf> {
    reader.string(name).map(|path| PathBuf::from(&*path))
}

pub(super) fn owned(reader: &Reader<'_>, name: &str) -> Option<String> {
    reader.string(name).map(|text| text.to_string())
}

pub(super) fn consul_block(reader: &Reader<'_>) -> ConsulBlock {
    ConsulBlock {
        address: owned(reader, "address"),
        token: owned(reader, "token"),
        token_file: path(reader, "token_file"),
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

pub(super) fn permissions(kv: Option<&Reader<'_>>) -> Permissions {
    let default = Permissions::default();
    let Some(kv) = kv else { return default };
    Permissions {
        files: kv.strings("files"),
        vault_paths: if kv.has("vault_paths") {
            kv.strings("vault_paths")
        } else {
            default.vault_paths
        },
        addresses: AddressRules {
            allow_loopback: kv.boolean("allow_loopback").unwrap_or(false),
            allow_link_local: kv.boolean("allow_link_local").unwrap_or(false),
        },
    }
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

pub(super) fn xds_block(reader: Option<&Reader<'_>>, data_dir: &Path) -> XdsBlock {
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
    XdsBlock {
        socket: reader
            .and_then(|reader| path(reader, "socket"))
            .unwrap_or_else(|| data_dir.join("xds.sock")),
        uids: reader
            .map(|reader| reader.integers("uids").into_iter().collect())
            .unwrap_or_default(),
        tcp,
    }
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

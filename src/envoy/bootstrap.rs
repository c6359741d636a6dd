//! The bootstrap: the one piece of configuration Envoy reads from a file.
//!
//! Job: say who this Envoy is, where its xDS server is and how to reach it, and what must hold before the first
//! xDS response (admin socket, connection limit). Inputs: plain values. Output: protojson for the file, and the small
//! SDS files that it refers to. Pure: nothing is written here.
//!
//! Everything else belongs into xDS resources: a bootstrap change costs a restart of Envoy.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::scope_keeper::scope_keeper;

/// The name of the static cluster that carries xDS.
pub const XDS_CLUSTER: &str = "portreeve_xds";

/// The runtime layer that comes over xDS: the listeners' connection limits.
pub const RUNTIME_LAYER: &str = "portreeve_gateway";

/// How long Envoy waits for that layer before it asks for clusters. Without a listener there is nothing to limit, and an
/// older agent never answers.
const RUNTIME_FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Bounds of Envoy's retry of the ADS stream. Its own default is 500 ms to 30 s: after a restart of the agent nodes
/// came back 0.7 to 4.3 s later.
const ADS_RETRY_BASE: Duration = Duration::from_millis(100);
const ADS_RETRY_MAX: Duration = Duration::from_secs(1);

/// A local connect is done in microseconds, a remote one in a round trip; a longer wait only delays the next try.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Finds a control plane that stopped without closing (a partition, a paused machine) within 20 s. A healthy but busy
/// one answers pings from its network task, so the timeout need not cover a long translation.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// What makes one Envoy's bootstrap. `Bootstrap::new` fills in the defaults; fields are public to be overridden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// A label for people. It proves nothing: the peer's uid or client certificate decides what an Envoy gets.
    pub node_id: String,
    /// The gateway this Envoy serves, sent as `node.cluster`.
    pub gateway: String,
    pub locality: Option<Locality>,
    pub xds: XdsEndpoint,
    pub variant: XdsVariant,
    /// A unix socket, mode 0600: the admin API can stop Envoy and show its whole configuration.
    pub admin_socket: PathBuf,
    /// Above this, new connections are refused instead of the process running out of descriptors.
    pub max_downstream_connections: u64,
    /// How long CDS and LDS may stay unanswered before Envoy goes live without them. Zero, the default, is "for ever":
    /// an Envoy that is live without listeners tells its load balancer it is ready, and during a hot restart tells its
    /// parent to close the ports that still serve. (EDS and SDS are different: there a short time keeps one missing
    /// answer from holding up the rest. Those times stand in the resources themselves.)
    pub initial_fetch_timeout: Duration,
    /// Stats whose name starts with one of these are not created.
    pub excluded_stat_prefixes: Vec<String>,
    /// Resources that exist without a control plane, as `static_resources.listeners`. For tests and probes.
    pub static_listeners: Vec<Value>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locality {
    pub region: String,
    pub zone: String,
}

/// Where the xDS server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XdsEndpoint {
    /// The agent on the same node. The socket's mode and a check of the peer's uid protect it.
    Unix(PathBuf),
    /// An agent elsewhere. Always with mutual TLS: the stream carries private keys.
    Tcp { address: String, port: u16, tls: XdsTls },
}

/// Mutual TLS towards a remote agent. All files must be replaced by a rename in their directory: Envoy watches for
/// moves, not for writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdsTls {
    pub ca_file: PathBuf,
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
    pub server_name: ServerName,
    /// Where the files named by `Rendered::files` will lie.
    pub sds_directory: PathBuf,
}

/// The subject alternative name that the server's certificate must carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerName {
    Dns(String),
    Uri(String),
    Ip(IpAddr),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdsVariant {
    #[default]
    Delta,
    StateOfTheWorld,
}

/// The bootstrap, and the files that must exist before Envoy reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    pub bootstrap: Value,
    pub files: Vec<(PathBuf, Value)>,
}

/// Why a bootstrap cannot be made from these values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapError {
    #[error(
        "the {what} path {path:?} has {length} bytes; a unix socket path may have {MAX_SOCKET_PATH} at most"
    )]
    SocketPathTooLong {
        what: &'static str,
        path: PathBuf,
        length: usize,
    },
    #[error("the path {0:?} is not UTF-8, which Envoy's configuration requires")]
    PathNotUtf8(PathBuf),
    #[error("the {0} is empty")]
    Empty(&'static str),
    #[error("the file {0:?} has no parent directory that Envoy could watch; give an absolute path")]
    NoDirectory(PathBuf),
}

/// `sun_path` has 108 bytes, the last one is NUL.
const MAX_SOCKET_PATH: usize = 107;

impl Bootstrap {
    pub fn new(node_id: &str, gateway: &str, xds: XdsEndpoint, admin_socket: &Path) -> Self {
        Self {
            node_id: node_id.to_owned(),
            gateway: gateway.to_owned(),
            locality: None,
            xds,
            variant: XdsVariant::Delta,
            admin_socket: admin_socket.to_owned(),
            // The agent's default too. Each may take an upstream connection besides: our systemd units grant descriptors for that.
            max_downstream_connections: 50_000,
            initial_fetch_timeout: Duration::ZERO,
            // The admin listener's own traffic, of no use to anyone: about 60 stats.
            excluded_stat_prefixes: vec!["http.admin.".to_owned(), "listener.admin.".to_owned()],
            static_listeners: Vec::new(),
        }
    }

    pub fn render(&self) -> Result<Rendered, BootstrapError> {
        let (xds_cluster, files) = self.xds_cluster()?;
        let listeners = match self.static_listeners.is_empty() {
            true => vec![scope_keeper()],
            // No control plane: Envoy would wait 3 s for scopes from one before it serves.
            false => self.static_listeners.clone(),
        };
        let bootstrap = json!({
            "node": self.node()?,
            "admin": {
                "address": { "pipe": { "path": socket_path("admin socket", &self.admin_socket)?, "mode": 0o600 } },
                // The operator must get in when the limit is reached.
                "ignore_global_conn_limit": true,
            },
            "dynamic_resources": self.dynamic_resources(),
            "static_resources": { "clusters": [xds_cluster], "listeners": listeners },
            "layered_runtime": layered_runtime(self.initial_fetch_timeout),
            "overload_manager": overload_manager(self.max_downstream_connections),
            // 10,000 clusters: 3.1-3.7 s and 420 MiB instead of 5.1-6.5 s and 620-685 MiB (reference, perf 1.2).
            "deferred_stat_options": { "enable_deferred_creation_stats": true },
            "stats_config": { "stats_matcher": stats_matcher(&self.excluded_stat_prefixes) },
        });
        Ok(Rendered { bootstrap, files })
    }

    fn node(&self) -> Result<Value, BootstrapError> {
        // Envoy refuses to use xDS without both.
        if self.node_id.is_empty() {
            return Err(BootstrapError::Empty("node id"));
        }
        if self.gateway.is_empty() {
            return Err(BootstrapError::Empty("gateway name"));
        }
        let mut node = json!({ "id": self.node_id, "cluster": self.gateway });
        if let Some(Locality { region, zone }) = &self.locality {
            node["locality"] = json!({ "region": region, "zone": zone });
        }
        Ok(node)
    }

    fn dynamic_resources(&self) -> Value {
        let from_ads = json!({
            "ads": {},
            "resource_api_version": "V3",
            "initial_fetch_timeout": duration(self.initial_fetch_timeout),
        });
        json!({
            "ads_config": {
                "api_type": match self.variant {
                    XdsVariant::Delta => "DELTA_GRPC",
                    XdsVariant::StateOfTheWorld => "GRPC",
                },
                "transport_api_version": "V3",
                // The node lists 516 extensions: 30 KB that need not travel with every request.
                "set_node_on_first_message_only": true,
                "grpc_services": [{
                    "envoy_grpc": {
                        "cluster_name": XDS_CLUSTER,
                        "retry_policy": {
                            "retry_back_off": {
                                "base_interval": duration(ADS_RETRY_BASE),
                                "max_interval": duration(ADS_RETRY_MAX),
                            },
                        },
                    },
                }],
            },
            "cds_config": from_ads.clone(),
            "lds_config": from_ads,
        })
    }

    fn xds_cluster(&self) -> Result<(Value, Vec<(PathBuf, Value)>), BootstrapError> {
        let mut files = Vec::new();
        let mut cluster = json!({
            "name": XDS_CLUSTER,
            "connect_timeout": duration(CONNECT_TIMEOUT),
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {
                        "http2_protocol_options": {
                            "connection_keepalive": {
                                "interval": duration(KEEPALIVE_INTERVAL),
                                "timeout": duration(KEEPALIVE_TIMEOUT),
                            },
                        },
                    },
                },
            },
        });
        let (discovery, address) = match &self.xds {
            XdsEndpoint::Unix(path) => (
                "STATIC",
                json!({ "pipe": { "path": socket_path("xDS socket", path)? } }),
            ),
            XdsEndpoint::Tcp { address, port, tls } => {
                if address.is_empty() {
                    return Err(BootstrapError::Empty("xDS address"));
                }
                cluster["transport_socket"] = tls.transport_socket()?;
                files = tls.sds_files()?;
                let discovery = if address.parse::<IpAddr>().is_ok() {
                    "STATIC"
                } else {
                    "STRICT_DNS"
                };
                (
                    discovery,
                    json!({ "socket_address": { "address": address, "port_value": port } }),
                )
            }
        };
        cluster["type"] = json!(discovery);
        cluster["load_assignment"] = json!({
            "cluster_name": XDS_CLUSTER,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
        });
        Ok((cluster, files))
    }
}

const CLIENT_CERTIFICATE: &str = "xds_client_certificate";
const SERVER_VALIDATION: &str = "xds_server_validation";

impl XdsTls {
    fn transport_socket(&self) -> Result<Value, BootstrapError> {
        let (san_type, san) = match &self.server_name {
            ServerName::Dns(name) => ("DNS", name.clone()),
            ServerName::Uri(uri) => ("URI", uri.clone()),
            ServerName::Ip(ip) => ("IP_ADDRESS", ip.to_string()),
        };
        if san.is_empty() {
            return Err(BootstrapError::Empty("xDS server name"));
        }
        let mut context = json!({
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {
                // Both ends are ours: nothing older needs to be spoken.
                "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
                "alpn_protocols": ["h2"],
                // By SDS and not in place: only then does Envoy take up renewed files without a restart.
                "tls_certificate_sds_secret_configs": [self.sds_config(CLIENT_CERTIFICATE)?],
                "combined_validation_context": {
                    "default_validation_context": {
                        "match_typed_subject_alt_names": [{ "san_type": san_type, "matcher": { "exact": san } }],
                    },
                    "validation_context_sds_secret_config": self.sds_config(SERVER_VALIDATION)?,
                },
            },
        });
        if let ServerName::Dns(name) = &self.server_name {
            context["sni"] = json!(name);
        }
        Ok(json!({ "name": "envoy.transport_sockets.tls", "typed_config": context }))
    }

    fn sds_config(&self, name: &str) -> Result<Value, BootstrapError> {
        Ok(json!({
            "name": name,
            "sds_config": {
                "path_config_source": { "path": text(&self.sds_file(name))? },
                "resource_api_version": "V3",
            },
        }))
    }

    fn sds_files(&self) -> Result<Vec<(PathBuf, Value)>, BootstrapError> {
        let secret = |name: &str, key: &str, value: Value| {
            let mut resource = Map::new();
            resource.insert(
                "@type".to_owned(),
                json!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"),
            );
            resource.insert("name".to_owned(), json!(name));
            resource.insert(key.to_owned(), value);
            (self.sds_file(name), json!({ "resources": [resource] }))
        };
        Ok(vec![
            secret(
                CLIENT_CERTIFICATE,
                "tls_certificate",
                json!({
                    "certificate_chain": { "filename": text(&self.certificate_file)? },
                    "private_key": { "filename": text(&self.key_file)? },
                    "watched_directory": { "path": directory(&self.certificate_file)? },
                }),
            ),
            secret(
                SERVER_VALIDATION,
                "validation_context",
                json!({
                    "trusted_ca": { "filename": text(&self.ca_file)? },
                    "watched_directory": { "path": directory(&self.ca_file)? },
                }),
            ),
        ])
    }

    fn sds_file(&self, name: &str) -> PathBuf {
        self.sds_directory.join(format!("{name}.json"))
    }
}

/// Envoy refuses regular expressions of more than 100 instructions, which a path of 100 letters reaches: documents are
/// checked against a bound of their own. The layer for operators stays above ours.
fn layered_runtime(initial_fetch_timeout: Duration) -> Value {
    let patience = match initial_fetch_timeout {
        Duration::ZERO => RUNTIME_FETCH_TIMEOUT,
        shorter => shorter.min(RUNTIME_FETCH_TIMEOUT),
    };
    json!({
        "layers": [
            {
                "name": "portreeve",
                "static_layer": {
                    "re2.max_program_size.error_level": 1_000_000,
                    "re2.max_program_size.warn_level": 1_000_000,
                },
            },
            {
                "name": RUNTIME_LAYER,
                "rtds_layer": {
                    "name": RUNTIME_LAYER,
                    "rtds_config": {
                        "ads": {},
                        "resource_api_version": "V3",
                        "initial_fetch_timeout": duration(patience),
                    },
                },
            },
            { "name": "admin", "admin_layer": {} },
        ],
    })
}

fn overload_manager(max_downstream_connections: u64) -> Value {
    json!({
        "resource_monitors": [{
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": {
                "@type":
                    "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                // 64-bit numbers are strings in protojson.
                "max_active_downstream_connections": max_downstream_connections.to_string(),
            },
        }],
    })
}

fn stats_matcher(excluded_prefixes: &[String]) -> Value {
    if excluded_prefixes.is_empty() {
        return json!({ "reject_all": false });
    }
    let patterns: Vec<Value> = excluded_prefixes
        .iter()
        .map(|prefix| json!({ "prefix": prefix }))
        .collect();
    json!({ "exclusion_list": { "patterns": patterns } })
}

/// A protojson duration: seconds with a fraction, and an "s".
fn duration(value: Duration) -> String {
    match value.subsec_nanos() {
        0 => format!("{}s", value.as_secs()),
        nanos => format!(
            "{}.{}s",
            value.as_secs(),
            format!("{nanos:09}").trim_end_matches('0')
        ),
    }
}

fn text(path: &Path) -> Result<&str, BootstrapError> {
    path.to_str()
        .ok_or_else(|| BootstrapError::PathNotUtf8(path.to_owned()))
}

fn socket_path<'a>(what: &'static str, path: &'a Path) -> Result<&'a str, BootstrapError> {
    let path_text = text(path)?;
    match path_text.len() {
        0 => Err(BootstrapError::Empty(what)),
        length if length > MAX_SOCKET_PATH => Err(BootstrapError::SocketPathTooLong {
            what,
            path: path.to_owned(),
            length,
        }),
        _ => Ok(path_text),
    }
}

fn directory(path: &Path) -> Result<&str, BootstrapError> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => text(parent),
        _ => Err(BootstrapError::NoDirectory(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local() -> Bootstrap {
        let xds = XdsEndpoint::Unix("/run/portreeve/xds.sock".into());
        Bootstrap::new("node-1", "edge", xds, Path::new("/run/portreeve/admin.sock"))
    }

    #[test]
    fn durations_are_protojson() {
        let cases = [(0, "0s"), (100, "0.1s"), (1000, "1s"), (1250, "1.25s")];
        for (millis, shown) in cases {
            assert_eq!(duration(Duration::from_millis(millis)), shown);
        }
    }

    #[test]
    fn local_bootstrap_needs_no_other_file() {
        let rendered = local().render().unwrap();
        assert!(rendered.files.is_empty());
        let ads = &rendered.bootstrap["dynamic_resources"]["ads_config"];
        assert_eq!(ads["api_type"], "DELTA_GRPC");
        let retry = &ads["grpc_services"][0]["envoy_grpc"]["retry_policy"]["retry_back_off"];
        assert_eq!(*retry, json!({ "base_interval": "0.1s", "max_interval": "1s" }));
        assert_eq!(rendered.bootstrap["admin"]["address"]["pipe"]["mode"], 0o600);
        assert_eq!(
            rendered.bootstrap["node"],
            json!({ "id": "node-1", "cluster": "edge" })
        );
    }

    #[test]
    fn remote_bootstrap_checks_the_server_and_watches_its_files() {
        let mut bootstrap = local();
        bootstrap.variant = XdsVariant::StateOfTheWorld;
        bootstrap.xds = XdsEndpoint::Tcp {
            address: "agent.example.com".to_owned(),
            port: 8502,
            tls: XdsTls {
                ca_file: "/etc/tls/ca.pem".into(),
                certificate_file: "/etc/tls/cert.pem".into(),
                key_file: "/etc/tls/key.pem".into(),
                server_name: ServerName::Dns("agent.example.com".to_owned()),
                sds_directory: "/run/portreeve".into(),
            },
        };
        let rendered = bootstrap.render().unwrap();
        let cluster = &rendered.bootstrap["static_resources"]["clusters"][0];
        assert_eq!(cluster["type"], "STRICT_DNS");
        let context = &cluster["transport_socket"]["typed_config"];
        assert_eq!(context["sni"], "agent.example.com");
        assert_eq!(
            context["common_tls_context"]["tls_params"]["tls_minimum_protocol_version"],
            "TLSv1_3"
        );
        assert_eq!(rendered.files.len(), 2);
        let certificate = &rendered.files[0].1["resources"][0]["tls_certificate"];
        assert_eq!(certificate["watched_directory"]["path"], "/etc/tls");
        assert_eq!(
            rendered.bootstrap["dynamic_resources"]["ads_config"]["api_type"],
            "GRPC"
        );
    }

    #[test]
    fn what_envoy_would_refuse_is_refused_here() {
        let mut bootstrap = local();
        bootstrap.admin_socket = format!("/run/{}", "x".repeat(MAX_SOCKET_PATH)).into();
        assert!(matches!(
            bootstrap.render(),
            Err(BootstrapError::SocketPathTooLong {
                what: "admin socket",
                ..
            })
        ));
        let mut bootstrap = local();
        bootstrap.gateway.clear();
        assert_eq!(bootstrap.render(), Err(BootstrapError::Empty("gateway name")));
    }
}

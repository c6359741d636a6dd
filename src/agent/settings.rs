//! The agent's own settings: HCL in `-config` files, flags over files, the environment as HashiCorp's tools read it.
//!
//! The same reader, check and diagnostics as for documents. A `-config` path may hold both: a file with document blocks
//! (`gateway`, `http_route`, ...) is a document, any other is settings.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::config::{AddressRules, Permissions, document_schema};
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::{self, Block, BlockSchema, Body, Limits, Occurs, Reader, Source, Type};
use crate::model::DocumentId;

/// What flags say; None leaves it to files and defaults.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    pub config: Vec<PathBuf>,
    pub dev: bool,
    pub dev_consul: bool,
    pub dev_vault: bool,
    pub bind: Option<IpAddr>,
    pub data_dir: Option<PathBuf>,
    pub node: Option<String>,
    pub gateways: Vec<String>,
    pub log_level: Option<String>,
    pub log_json: bool,
    pub api_socket: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub dev: bool,
    pub node: String,
    pub data_dir: PathBuf,
    pub bind_addr: IpAddr,
    pub log_level: String,
    pub log_json: bool,
    /// Empty: under -dev, whatever gateways the documents declare; else an error.
    pub gateways: Vec<Arc<str>>,
    /// Directories and files that hold documents.
    pub document_paths: Vec<PathBuf>,
    /// None: documents come from directories alone.
    pub kv_prefix: Option<String>,
    pub permissions: Permissions,
    pub consul: Option<ConsulBlock>,
    pub vault: Option<VaultBlock>,
    pub envoy: EnvoyBlock,
    pub xds: XdsBlock,
    pub api: ApiBlock,
}

/// What the `consul` block adds to the environment.
#[derive(Clone, Debug, Default)]
pub struct ConsulBlock {
    pub address: Option<String>,
    pub token: Option<String>,
    pub token_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    pub ca_path: Option<PathBuf>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    pub tls_server_name: Option<String>,
    pub tls_skip_verify: Option<bool>,
    pub namespace: Option<String>,
    pub partition: Option<String>,
    pub datacenter: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub struct VaultBlock {
    pub address: Option<String>,
    pub namespace: Option<String>,
    pub ca_file: Option<PathBuf>,
    pub ca_path: Option<PathBuf>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    pub tls_server_name: Option<String>,
    pub tls_skip_verify: Option<bool>,
    pub token_file: Option<PathBuf>,
    pub approle: Option<AppRoleBlock>,
    pub jwt: Option<JwtBlock>,
    pub poll_interval: Duration,
}

#[derive(Clone, Debug)]
pub struct AppRoleBlock {
    pub mount: String,
    pub role_id: String,
    pub secret_id_file: PathBuf,
}

#[derive(Clone, Debug)]
pub struct JwtBlock {
    pub mount: String,
    pub role: String,
    pub jwt_file: PathBuf,
}

#[derive(Clone, Debug)]
pub struct EnvoyBlock {
    pub supervise: bool,
    pub binary: Option<PathBuf>,
    pub concurrency: Option<u32>,
    pub log_level: String,
    pub state_of_the_world: bool,
    pub drain_time: Duration,
    pub max_downstream_connections: u32,
    pub stop_with_agent: bool,
}

#[derive(Clone, Debug)]
pub struct XdsBlock {
    pub socket: PathBuf,
    pub uids: BTreeSet<u32>,
    pub tcp: Option<XdsTcpBlock>,
}

#[derive(Clone, Debug)]
pub struct XdsTcpBlock {
    pub address: SocketAddr,
    pub ca_file: PathBuf,
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    /// SAN of a client certificate to the gateways it gets.
    pub clients: Vec<(String, Vec<Arc<str>>)>,
}

#[derive(Clone, Debug)]
pub struct ApiBlock {
    pub socket: PathBuf,
    /// Loopback only: /ready and /metrics for checks that cannot use a socket.
    pub address: Option<SocketAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{path}: cannot be read")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the settings have {} problem(s)", .0.len())]
    Invalid(Vec<(Diagnostic, Arc<str>)>),
}

/// The schema of the agent's settings; the reference is generated from it.
pub fn settings_schema() -> &'static BlockSchema {
    static SCHEMA: LazyLock<BlockSchema> = LazyLock::new(|| {
        BlockSchema::new("", &[], "The agent's settings.")
            .attribute(
                "gateways",
                Type::List(&Type::Name),
                None,
                "[\"edge\"]",
                "The gateways this agent serves. Under -dev: all that are declared.",
            )
            .attribute(
                "node_name",
                Type::Name,
                Some("the host's name"),
                "\"edge-1\"",
                "This agent's name in status and in Envoy's node id.",
            )
            .attribute(
                "data_dir",
                Type::String,
                Some("\"/opt/portreeve/data\""),
                "\"/var/lib/portreeve\"",
                "Where the agent keeps what survives a restart. Never private keys.",
            )
            .attribute(
                "bind_addr",
                Type::IpAddress,
                Some("\"0.0.0.0\""),
                "\"10.0.0.5\"",
                "Where listeners without an address listen. 127.0.0.1 under -dev.",
            )
            .attribute(
                "log_level",
                Type::Word(&["trace", "debug", "info", "warn", "error"]),
                Some("\"info\""),
                "\"debug\"",
                "Changed by SIGHUP without a restart.",
            )
            .attribute(
                "log_json",
                Type::Bool,
                Some("false"),
                "true",
                "Log as JSON lines.",
            )
            .block(kv_documents_schema(), Occurs::Optional)
            .block(consul_schema(), Occurs::Optional)
            .block(vault_schema(), Occurs::Optional)
            .block(envoy_schema(), Occurs::Optional)
            .block(xds_schema(), Occurs::Optional)
            .block(
                BlockSchema::new("api", &[], "The agent's HTTP API, behind the CLI.")
                    .attribute(
                        "socket",
                        Type::String,
                        Some("\"<data_dir>/api.sock\""),
                        "\"/run/portreeve/api.sock\"",
                        "Unix socket, mode 0600.",
                    )
                    .attribute(
                        "address",
                        Type::HostPort,
                        None,
                        "\"127.0.0.1:7480\"",
                        "Loopback address that serves /ready and /metrics, nothing else.",
                    ),
                Occurs::Optional,
            )
    });
    &SCHEMA
}

fn kv_documents_schema() -> BlockSchema {
    BlockSchema::new("kv_documents", &[], "Documents in Consul KV, and what they may reach: who may write KV is not trusted with the machine.")
        .attribute("prefix", Type::String, Some("\"portreeve\""), "\"portreeve\"", "Documents are the keys below `<prefix>/config/`.")
        .attribute("files", Type::List(&Type::String), Some("[]"), "[\"/etc/ssl/edge/\"]", "Files that documents may name; a directory when it ends in \"/\".")
        .attribute("vault_paths", Type::List(&Type::String), Some("[\"*\"]"), "[\"secret/edge/\", \"pki_int/issue/edge\"]", "Vault paths that documents may name (`mount/path`, `mount/issue/role`); a prefix when it ends in \"/\". \"*\": whatever the agent's token may read.")
        .attribute("allow_loopback", Type::Bool, Some("false"), "true", "Lets static and dns upstreams name loopback addresses.")
        .attribute("allow_link_local", Type::Bool, Some("false"), "true", "Lets static and dns upstreams name link-local addresses.")
}

fn tls_client(schema: BlockSchema) -> BlockSchema {
    schema
        .attribute(
            "ca_file",
            Type::String,
            None,
            "\"/etc/ssl/ca.pem\"",
            "Authorities to trust, PEM.",
        )
        .attribute(
            "ca_path",
            Type::String,
            None,
            "\"/etc/ssl/ca.d\"",
            "Directory of such files.",
        )
        .attribute(
            "client_cert",
            Type::String,
            None,
            "\"/etc/ssl/agent.pem\"",
            "Client certificate, PEM.",
        )
        .attribute(
            "client_key",
            Type::String,
            None,
            "\"/etc/ssl/agent.key\"",
            "Its key, PEM.",
        )
        .attribute(
            "tls_server_name",
            Type::String,
            None,
            "\"server.dc1.consul\"",
            "The name expected in the server's certificate.",
        )
        .attribute(
            "tls_skip_verify",
            Type::Bool,
            Some("false"),
            "true",
            "Trusts any certificate. For tests.",
        )
}

fn consul_schema() -> BlockSchema {
    tls_client(BlockSchema::new(
        "consul",
        &[],
        "How to reach Consul. What is left out is taken from CONSUL_HTTP_ADDR and its kin.",
    ))
    .attribute(
        "address",
        Type::String,
        Some("\"127.0.0.1:8500\""),
        "\"https://127.0.0.1:8501\"",
        "host:port, http://, https:// or unix://.",
    )
    .attribute("token", Type::String, None, "\"...\"", "Prefer token_file.")
    .attribute(
        "token_file",
        Type::String,
        None,
        "\"/run/secrets/consul_token\"",
        "Read again when it changes; wins over a token.",
    )
    .attribute(
        "namespace",
        Type::Name,
        None,
        "\"edge\"",
        "Consul Enterprise only.",
    )
    .attribute(
        "partition",
        Type::Name,
        None,
        "\"edge\"",
        "Consul Enterprise only.",
    )
    .attribute(
        "datacenter",
        Type::Name,
        None,
        "\"dc1\"",
        "Left out: the Consul agent's own.",
    )
}

fn vault_schema() -> BlockSchema {
    tls_client(BlockSchema::new(
        "vault",
        &[],
        "How to reach Vault or OpenBao. What is left out is taken from VAULT_ADDR and its kin.",
    ))
    .attribute(
        "address",
        Type::String,
        Some("\"https://127.0.0.1:8200\""),
        "\"https://vault.service.consul:8200\"",
        "https://, http:// or unix://.",
    )
    .attribute("namespace", Type::String, None, "\"edge\"", "Vault namespace.")
    .attribute(
        "token_file",
        Type::String,
        None,
        "\"/run/secrets/vault_token\"",
        "A token that somebody else keeps fresh; read again when it changes.",
    )
    .attribute(
        "poll_interval",
        Type::Duration(1_000, 3_600_000),
        Some("\"30s\""),
        "\"10s\"",
        "How often KV secrets are looked at: Vault has no watch.",
    )
    .block(
        BlockSchema::new("approle", &[], "Logs in with AppRole.")
            .attribute(
                "mount",
                Type::String,
                Some("\"approle\""),
                "\"approle\"",
                "Where the method is mounted.",
            )
            .required("role_id", Type::String, "\"...\"", "The role's id.")
            .required(
                "secret_id_file",
                Type::String,
                "\"/run/secrets/secret_id\"",
                "Read again on each login.",
            ),
        Occurs::Optional,
    )
    .block(
        BlockSchema::new(
            "jwt",
            &[],
            "Logs in with a JWT, such as Nomad's workload identity.",
        )
        .attribute(
            "mount",
            Type::String,
            Some("\"jwt-nomad\""),
            "\"jwt-nomad\"",
            "Where the method is mounted.",
        )
        .required("role", Type::String, "\"portreeve\"", "The role.")
        .required(
            "jwt_file",
            Type::String,
            "\"/secrets/nomad_vault.jwt\"",
            "Read again on each login: identities rotate.",
        ),
        Occurs::Optional,
    )
    .at_most_one_of(&["token_file", "approle", "jwt"])
}

fn envoy_schema() -> BlockSchema {
    BlockSchema::new("envoy", &[], "The Envoy beside this agent.")
        .attribute("supervise", Type::Bool, Some("false"), "true", "Start Envoy as a child and keep it. Under -dev: true. Otherwise Envoy is its own task or unit.")
        .attribute("binary", Type::String, Some("envoy in PATH"), "\"/usr/local/bin/envoy\"", "Envoy 1.36 to 1.40.")
        .attribute("concurrency", Type::Integer(1, 1024), None, "4", "Worker threads. Left out: one per hardware thread; 1 under -dev.")
        .attribute("log_level", Type::Word(&["trace", "debug", "info", "warning", "error", "critical", "off"]), Some("\"warning\""), "\"info\"", "Envoy's own log level.")
        .attribute("variant", Type::Word(&["delta", "sotw"]), Some("\"delta\""), "\"sotw\"", "Incremental or state-of-the-world xDS.")
        .attribute("drain_time", Type::Duration(1_000, 3_600_000), Some("\"20s\""), "\"60s\"", "How long connections of an Envoy that leaves are asked to close.")
        .attribute("max_downstream_connections", Type::Integer(1, 10_000_000), Some("50000"), "100000", "Client connections of all listeners together.")
        .attribute("stop_with_agent", Type::Bool, Some("true"), "false", "On SIGTERM, drain and stop the child Envoy too. false: it serves on and is adopted by the next agent. A killed agent always leaves it.")
}

fn xds_schema() -> BlockSchema {
    BlockSchema::new("xds", &[], "Where Envoys get their configuration.")
        .attribute(
            "socket",
            Type::String,
            Some("\"<data_dir>/xds.sock\""),
            "\"/run/portreeve/xds.sock\"",
            "Unix socket, mode 0600: it hands out private keys.",
        )
        .attribute(
            "uids",
            Type::List(&Type::Integer(0, 4_294_967_294)),
            Some("[]"),
            "[101]",
            "Users that may connect to the socket beside the agent's own and root.",
        )
        .block(
            BlockSchema::new("tcp", &[], "For remote Envoys, with mutual TLS.")
                .required("address", Type::HostPort, "\"10.0.0.5:7482\"", "Where to listen.")
                .required(
                    "ca_file",
                    Type::String,
                    "\"/etc/portreeve/envoy-ca.pem\"",
                    "Who signs the Envoys' certificates.",
                )
                .required(
                    "cert_file",
                    Type::String,
                    "\"/etc/portreeve/xds.pem\"",
                    "Our own certificate.",
                )
                .required("key_file", Type::String, "\"/etc/portreeve/xds.key\"", "Its key.")
                .block(
                    BlockSchema::new(
                        "client",
                        &[],
                        "Which gateways a client certificate gets. `node.id` is only a label.",
                    )
                    .required(
                        "san",
                        Type::String,
                        "\"spiffe://example.com/envoy/edge-1\"",
                        "A URI or DNS name of the certificate.",
                    )
                    .required(
                        "gateways",
                        Type::List(&Type::Name),
                        "[\"edge\"]",
                        "Gateways it may be given.",
                    ),
                    Occurs::AtLeastOnce,
                ),
            Occurs::Optional,
        )
}

impl Settings {
    /// Reads every `-config` path, lays flags over it and fills in defaults.
    pub fn load(flags: &Flags, host_name: &str) -> Result<Self, SettingsError> {
        let mut problems: Vec<(Diagnostic, Arc<str>)> = Vec::new();
        let mut merged = Body::default();
        let mut document_paths = Vec::new();
        let mut last = Source::new(DocumentId::File("flags".into()), "".into());
        for path in &flags.config {
            if path.is_dir() {
                document_paths.push(path.clone());
            }
            for file in files_of(path)? {
                let text = std::fs::read_to_string(&file).map_err(|source| SettingsError::Read {
                    path: file.clone(),
                    source,
                })?;
                let text: Arc<str> = text.into();
                let source = Source::new(DocumentId::File(file.to_string_lossy().into()), text.clone());
                match settings_body(&source, path.is_file()) {
                    Ok(Some(body)) => {
                        let found = hcl::check(&source, &body, settings_schema());
                        problems.extend(found.into_iter().map(|problem| (problem, text.clone())));
                        merge(&mut merged, body);
                        last = source;
                    }
                    Ok(None) if path.is_file() => document_paths.push(file),
                    Ok(None) => {}
                    Err(found) => problems.extend(found.into_iter().map(|problem| (problem, text.clone()))),
                }
            }
        }
        if !problems.is_empty() {
            return Err(SettingsError::Invalid(problems));
        }
        Self::from_body(
            flags,
            host_name,
            &Reader::document(&last, &merged),
            document_paths,
        )
        .map_err(|problem| SettingsError::Invalid(vec![(problem, last.text().clone())]))
    }

    fn from_body(
        flags: &Flags,
        host_name: &str,
        reader: &Reader<'_>,
        document_paths: Vec<PathBuf>,
    ) -> Result<Self, Diagnostic> {
        let dev = flags.dev;
        let data_dir = flags
            .data_dir
            .clone()
            .or_else(|| reader.string("data_dir").map(|path| PathBuf::from(&*path)))
            .unwrap_or_else(|| PathBuf::from("/opt/portreeve/data"));
        let consul = reader
            .child("consul")
            .map(|block| consul_block(&block))
            .or_else(|| (flags.dev_consul || (!dev && document_paths.is_empty())).then(ConsulBlock::default));
        let kv = reader.child("kv_documents");
        let kv_prefix = (kv.is_some() || (consul.is_some() && document_paths.is_empty())).then(|| {
            let prefix = kv
                .and_then(|kv| kv.string("prefix"))
                .unwrap_or_else(|| "portreeve".into());
            prefix.trim_matches('/').to_owned()
        });
        let gateways: Vec<Arc<str>> = if flags.gateways.is_empty() {
            reader.strings("gateways")
        } else {
            flags
                .gateways
                .iter()
                .map(|name| Arc::from(name.as_str()))
                .collect()
        };
        if gateways.is_empty() && !dev {
            return Err(Diagnostic::error(
                Code::MissingKey,
                "the agent does not know which gateways to serve",
            )
            .at(reader.origin())
            .fix("add `gateways = [\"edge\"]` to the settings, or start with -gateway=edge"));
        }
        let node = flags
            .node
            .clone()
            .or_else(|| reader.string("node_name").map(|name| name.to_string()));
        let bind_default = IpAddr::from(if dev { [127, 0, 0, 1] } else { [0, 0, 0, 0] });
        let api = api_block(reader, flags, &data_dir)?;
        let vault = reader
            .child("vault")
            .map(|block| vault_block(&block))
            .or_else(|| flags.dev_vault.then(VaultBlock::new));
        Ok(Self {
            dev,
            node: node.unwrap_or_else(|| host_name.to_owned()),
            bind_addr: flags
                .bind
                .or_else(|| {
                    reader
                        .string("bind_addr")
                        .and_then(|address| address.parse().ok())
                })
                .unwrap_or(bind_default),
            log_level: flags
                .log_level
                .clone()
                .or_else(|| reader.string("log_level").map(|level| level.to_string()))
                .unwrap_or_else(|| "info".to_owned()),
            log_json: flags.log_json || reader.boolean("log_json").unwrap_or(false),
            gateways,
            document_paths,
            kv_prefix,
            permissions: permissions(kv.as_ref()),
            consul,
            vault,
            envoy: envoy_block(reader.child("envoy").as_ref(), dev),
            xds: xds_block(reader.child("xds").as_ref(), &data_dir),
            api,
            data_dir,
        })
    }
}

/// Files of a `-config` path in lexical order.
fn files_of(path: &Path) -> Result<Vec<PathBuf>, SettingsError> {
    let read_error = |source| SettingsError::Read {
        path: path.to_owned(),
        source,
    };
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(read_error)? {
        let file = entry.map_err(read_error)?.path();
        let known = file
            .extension()
            .is_some_and(|extension| extension == "hcl" || extension == "json");
        let hidden = file
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if known && !hidden && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a file among the documents of a `-config` directory holds settings.
pub fn is_settings(path: &Path, text: &str) -> bool {
    let source = Source::new(DocumentId::File(path.to_string_lossy().into()), text.into());
    matches!(settings_body(&source, false), Ok(Some(_)))
}

/// None: the file is a document. In a directory that is a broken file too, and one with nothing but unknown words: it
/// must not stop the agent.
fn settings_body(source: &Source, alone: bool) -> Result<Option<Body>, Vec<Diagnostic>> {
    let body = match hcl::parse(source, settings_schema(), &Limits::default()) {
        Ok(body) => body,
        Err(problems) if alone => return Err(problems),
        Err(_) => return Ok(None),
    };
    let documents = document_schema();
    let is_document = |name: &str| documents.block_schema(name).is_some();
    // JSON documents read with the settings' schema have their blocks as attributes.
    let any = body.blocks.iter().any(|block| is_document(&block.kind))
        || body.attributes.iter().any(|a| is_document(&a.name));
    let all = body.blocks.iter().all(|block| is_document(&block.kind))
        && body.attributes.iter().all(|a| is_document(&a.name));
    if any && !all {
        let stray = body
            .blocks
            .iter()
            .find(|block| !is_document(&block.kind))
            .map(|block| (block.kind.clone(), block.span));
        let stray = stray.or_else(|| {
            body.attributes
                .iter()
                .find(|a| !is_document(&a.name))
                .map(|a| (a.name.clone(), a.name_span))
        });
        if let Some((name, span)) = stray
            && settings_schema().block_schema(&name).is_some_and(|_| true)
                | settings_schema().attribute_schema(&name).is_some()
        {
            return Err(vec![
                Diagnostic::error(
                    Code::Conflict,
                    format!("{name:?} is a setting of the agent in a file of documents"),
                )
                .at(source.origin(span))
                .fix("keep settings and documents in files of their own"),
            ]);
        }
    }
    let schema = settings_schema();
    let ours = alone
        || body
            .blocks
            .iter()
            .any(|block| schema.block_schema(&block.kind).is_some())
        || body
            .attributes
            .iter()
            .any(|a| schema.attribute_schema(&a.name).is_some() || schema.block_schema(&a.name).is_some());
    Ok((!any && ours).then_some(body))
}

/// Later files over earlier ones: attribute by attribute, block by block.
fn merge(into: &mut Body, from: Body) {
    for attribute in from.attributes {
        into.attributes.retain(|known| known.name != attribute.name);
        into.attributes.push(attribute);
    }
    for block in from.blocks {
        let same = |known: &&mut Block| known.kind == block.kind && block.kind != "client";
        match into.blocks.iter_mut().find(same) {
            Some(known) => merge(&mut known.body, block.body),
            None => into.blocks.push(block),
        }
    }
}

fn path(reader: &Reader<'_>, name: &str) -> Option<PathBuf> {
    reader.string(name).map(|path| PathBuf::from(&*path))
}

fn owned(reader: &Reader<'_>, name: &str) -> Option<String> {
    reader.string(name).map(|text| text.to_string())
}

fn consul_block(reader: &Reader<'_>) -> ConsulBlock {
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
    }
}

impl VaultBlock {
    fn new() -> Self {
        Self {
            poll_interval: Duration::from_secs(30),
            ..Self::default()
        }
    }
}

fn vault_block(reader: &Reader<'_>) -> VaultBlock {
    VaultBlock {
        address: owned(reader, "address"),
        namespace: owned(reader, "namespace"),
        ca_file: path(reader, "ca_file"),
        ca_path: path(reader, "ca_path"),
        client_cert: path(reader, "client_cert"),
        client_key: path(reader, "client_key"),
        tls_server_name: owned(reader, "tls_server_name"),
        tls_skip_verify: reader.boolean("tls_skip_verify"),
        token_file: path(reader, "token_file"),
        approle: reader.child("approle").map(|block| AppRoleBlock {
            mount: owned(&block, "mount").unwrap_or_else(|| "approle".to_owned()),
            role_id: owned(&block, "role_id").unwrap_or_default(),
            secret_id_file: path(&block, "secret_id_file").unwrap_or_default(),
        }),
        jwt: reader.child("jwt").map(|block| JwtBlock {
            mount: owned(&block, "mount").unwrap_or_else(|| "jwt-nomad".to_owned()),
            role: owned(&block, "role").unwrap_or_default(),
            jwt_file: path(&block, "jwt_file").unwrap_or_default(),
        }),
        poll_interval: reader
            .duration("poll_interval")
            .unwrap_or(Duration::from_secs(30)),
    }
}

fn permissions(kv: Option<&Reader<'_>>) -> Permissions {
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

fn envoy_block(reader: Option<&Reader<'_>>, dev: bool) -> EnvoyBlock {
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

fn xds_block(reader: Option<&Reader<'_>>, data_dir: &Path) -> XdsBlock {
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

fn api_block(reader: &Reader<'_>, flags: &Flags, data_dir: &Path) -> Result<ApiBlock, Diagnostic> {
    let api = reader.child("api");
    let address = api
        .and_then(|api| api.string("address"))
        .and_then(|address| address.parse::<SocketAddr>().ok());
    if let (Some(address), Some(api)) = (address, &api)
        && !address.ip().is_loopback()
    {
        return Err(
            Diagnostic::error(Code::NotAllowed, format!("the API may not listen on {address}"))
                .at(api.origin_of("address"))
                .because("it has neither TLS nor authentication")
                .fix("use a loopback address, or the unix socket"),
        );
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

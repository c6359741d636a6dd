//! The agent's own settings: HCL in `-config` files, flags over files, the environment as HashiCorp's tools read it.
//!
//! The same reader, check and diagnostics as for documents. A `-config` path may hold both: a file with document blocks
//! (`gateway`, `http_route`, ...) holds documents, and what may be settings is an error where it is not good settings.

mod blocks;
mod catalog;
mod files;
mod nomad;
mod reference;
mod schema;
mod tokens;
mod vault;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::data_directory::dev_data_directory;
use crate::config::Permissions;
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::Reader;
use crate::model::Redacted;
use crate::sources::agent_api::LoginSettings;

use blocks::{
    api_block, consul_block, envoy_block, mesh_block, on_this_machine, path, permissions, xds_block,
};
pub use files::{is_settings, settings_problems};
pub use nomad::NomadBlock;
pub use reference::settings_markdown;
pub use schema::settings_schema;
pub use tokens::without_tokens;
pub use vault::VaultBlock;

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
    pub node: String,
    pub data_dir: PathBuf,
    /// What is known and served survives a restart. Not under -dev, unless it was told where.
    pub keeps_state: bool,
    pub bind_addr: IpAddr,
    pub log_level: String,
    pub log_json: bool,
    /// Empty: under -dev, whatever gateways the documents declare; else an error.
    pub gateways: Vec<Arc<str>>,
    /// Directories and files that hold documents.
    pub document_paths: Vec<PathBuf>,
    /// None: documents come from directories alone.
    pub kv_prefix: Option<String>,
    /// Below it status is written. None: there is no Consul.
    pub status_prefix: Option<String>,
    pub permissions: Permissions,
    pub consul: Option<ConsulBlock>,
    pub mesh: Option<MeshBlock>,
    pub vault: Option<VaultBlock>,
    pub nomad: Option<NomadBlock>,
    pub envoy: EnvoyBlock,
    pub xds: XdsBlock,
    pub api: ApiBlock,
}

/// What the `consul` block adds to the environment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConsulBlock {
    pub address: Option<String>,
    pub token: Option<Redacted<String>>,
    pub token_file: Option<PathBuf>,
    pub login: Option<LoginSettings>,
    pub ca_file: Option<PathBuf>,
    pub ca_path: Option<PathBuf>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    pub tls_server_name: Option<String>,
    pub tls_skip_verify: Option<bool>,
    pub namespace: Option<String>,
    pub partition: Option<String>,
    pub datacenter: Option<String>,
    pub max_connections: Option<usize>,
}

/// Who the gateway is in Consul's mesh.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MeshBlock {
    pub service: Arc<str>,
    /// Where its certificate is asked for with another token than all the rest.
    pub token: Option<String>,
    pub token_file: Option<PathBuf>,
    /// The id of its sidecar, if it has one.
    pub sidecar: Arc<str>,
}

#[derive(Clone, Debug, PartialEq)]
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

#[derive(Clone, Debug, PartialEq)]
pub struct XdsBlock {
    pub socket: PathBuf,
    /// Users that may have any of the agent's gateways.
    pub uids: BTreeSet<u32>,
    /// Users that may have these.
    pub clients: BTreeMap<u32, BTreeSet<Arc<str>>>,
    pub tcp: Option<XdsTcpBlock>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct XdsTcpBlock {
    pub address: SocketAddr,
    pub ca_file: PathBuf,
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    /// SAN of a client certificate to the gateways it gets.
    pub clients: Vec<(String, Vec<Arc<str>>)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ApiBlock {
    pub socket: PathBuf,
    /// Loopback only: /ready and /metrics for checks that cannot use a socket.
    pub address: Option<SocketAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{path}: cannot be read: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the settings have {} problem(s)", .0.len())]
    Invalid(Vec<(Diagnostic, Arc<str>)>),
}

impl Settings {
    /// Reads every `-config` path, lays flags over it and fills in defaults.
    pub fn load(flags: &Flags, host_name: &str) -> Result<Self, SettingsError> {
        let mut read = files::read(&flags.config)?;
        let document_paths = std::mem::take(&mut read.document_paths);
        let reader = Reader::document(&read.source, &read.settings);
        Self::from_body(flags, host_name, &reader, document_paths)
            .map_err(|problem| SettingsError::Invalid(vec![read.with_text(*problem)]))
    }

    /// Those whose Envoys run beside this agent. A gateway that some certificate gets over TCP runs elsewhere.
    pub fn gateways_of_this_node(&self) -> Vec<Arc<str>> {
        let elsewhere = |name: &&Arc<str>| {
            let clients = self.xds.tcp.iter().flat_map(|tcp| &tcp.clients);
            !self.envoy.supervise
                && clients
                    .flat_map(|(_, gateways)| gateways)
                    .any(|known| known == *name)
        };
        let here = self.gateways.iter().filter(|name| !elsewhere(name));
        here.cloned().collect()
    }

    fn from_body(
        flags: &Flags,
        host_name: &str,
        reader: &Reader<'_>,
        document_paths: Vec<PathBuf>,
    ) -> Result<Self, Box<Diagnostic>> {
        let dev = flags.dev;
        let chosen = flags.data_dir.clone().or_else(|| path(reader, "data_dir"));
        let keeps_state = !dev || chosen.is_some();
        let data_dir = chosen.unwrap_or_else(|| {
            if dev {
                dev_data_directory()
            } else {
                PathBuf::from("/opt/portreeve/data")
            }
        });
        let consul = reader
            .child("consul")
            .map(|block| consul_block(&block))
            .or_else(|| (flags.dev_consul || (!dev && document_paths.is_empty())).then(ConsulBlock::default));
        if let Some(login) = reader.child("consul").and_then(|consul| consul.child("login")) {
            apart(&login)?;
        }
        let kv = reader.child("kv_documents");
        let prefix = kv
            .and_then(|kv| kv.string("prefix"))
            .unwrap_or_else(|| "portreeve".into());
        let prefix = prefix.trim_matches('/').to_owned();
        let status_prefix = consul.is_some().then(|| prefix.clone());
        let reads_kv = kv.is_some() || (consul.is_some() && document_paths.is_empty());
        let kv_prefix = reads_kv.then_some(prefix);
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
            let said = Diagnostic::error(
                Code::MissingKey,
                "the agent does not know which gateways to serve",
            );
            return Err(Box::new(match reader.source.is_nothing() {
                true => said
                    .because("it was given no settings file and no -gateway")
                    .fix(
                        "name a settings file with -config and put `gateways = [\"edge\"]` into it, or start with \
                         -gateway=edge; `portreeve agent -dev -config <directory>` serves whatever gateways the \
                         documents there declare",
                    ),
                false => said
                    .at(reader.origin())
                    .because("no settings file and no -gateway names one")
                    .fix("add `gateways = [\"edge\"]` to the settings, or start with -gateway=edge"),
            }));
        }
        let node = flags
            .node
            .clone()
            .or_else(|| reader.string("node_name").map(|name| name.to_string()));
        let bind_default = IpAddr::from(if dev { [127, 0, 0, 1] } else { [0, 0, 0, 0] });
        let api = api_block(reader, flags, &data_dir)?;
        let xds = xds_block(reader.child("xds").as_ref(), &data_dir)?;
        let own = api
            .address
            .into_iter()
            .chain(xds.tcp.as_ref().map(|tcp| tcp.address));
        let mut permissions = permissions(kv.as_ref(), own.collect(), host_name);
        let vault = reader
            .child("vault")
            .map(|block| VaultBlock::read(&block))
            .or_else(|| flags.dev_vault.then(VaultBlock::default));
        let nomad = reader.child("nomad").map(|block| nomad::read(&block));
        permissions.addresses.servers = [
            consul.as_ref().map(|consul| (&consul.address, 8500)),
            vault.as_ref().map(|vault| (&vault.address, 8200)),
            nomad.as_ref().map(|nomad| (&nomad.address, 4646)),
        ]
        .into_iter()
        .flatten()
        .filter_map(|(address, usual)| on_this_machine(address.as_deref(), usual))
        .collect();
        if let Some(block) = reader.child("catalog") {
            permissions.exposure = Some(Arc::new(catalog::read(&block, &gateways)?));
        }
        Ok(Self {
            keeps_state,
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
            status_prefix,
            permissions,
            consul,
            mesh: reader.child("mesh").map(|block| mesh_block(&block)),
            vault,
            nomad,
            envoy: envoy_block(reader.child("envoy").as_ref(), dev),
            xds,
            api,
            data_dir,
        })
    }
}

/// The token would replace the identity that it was got by.
fn apart(login: &Reader<'_>) -> Result<(), Box<Diagnostic>> {
    let identity = login.string("bearer_token_file");
    if identity.is_none() || login.string("token_sink_file") != identity {
        return Ok(());
    }
    let said = Diagnostic::error(
        Code::Conflict,
        "`token_sink_file` is the file of the identity that the agent logs in with",
    );
    Err(Box::new(
        said.at(login.origin_of("token_sink_file"))
            .because("the token would take the identity's place, and no other login could follow")
            .fix("name another file beside it"),
    ))
}

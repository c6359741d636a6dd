//! The agent's own settings: HCL in `-config` files, flags over files, the environment as HashiCorp's tools read it.
//!
//! The same reader, check and diagnostics as for documents. A `-config` path may hold both: a file with document blocks
//! (`gateway`, `http_route`, ...) is a document, any other is settings.

mod blocks;
mod schema;
mod vault;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Permissions, document_schema};
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::{self, Block, Body, Limits, Reader, Source};
use crate::model::DocumentId;

use blocks::{api_block, consul_block, envoy_block, permissions, xds_block};
pub use schema::settings_schema;
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
    pub max_connections: Option<usize>,
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
        .map_err(|problem| SettingsError::Invalid(vec![(*problem, last.text().clone())]))
    }

    fn from_body(
        flags: &Flags,
        host_name: &str,
        reader: &Reader<'_>,
        document_paths: Vec<PathBuf>,
    ) -> Result<Self, Box<Diagnostic>> {
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
            return Err(Box::new(
                Diagnostic::error(
                    Code::MissingKey,
                    "the agent does not know which gateways to serve",
                )
                .at(reader.origin())
                .fix("add `gateways = [\"edge\"]` to the settings, or start with -gateway=edge"),
            ));
        }
        let node = flags
            .node
            .clone()
            .or_else(|| reader.string("node_name").map(|name| name.to_string()));
        let bind_default = IpAddr::from(if dev { [127, 0, 0, 1] } else { [0, 0, 0, 0] });
        let api = api_block(reader, flags, &data_dir)?;
        let vault = reader
            .child("vault")
            .map(|block| VaultBlock::read(&block))
            .or_else(|| flags.dev_vault.then(VaultBlock::default));
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

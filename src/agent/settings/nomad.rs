//! `nomad {}`: how to reach Nomad for its native services.

use std::path::PathBuf;

use super::schema::tls_client;
use crate::hcl::{BlockSchema, Reader, Type};

/// What the `nomad` block adds to the environment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NomadBlock {
    pub address: Option<String>,
    pub token_file: Option<PathBuf>,
    pub region: Option<String>,
    pub namespace: Option<String>,
    pub ca_file: Option<PathBuf>,
    pub ca_path: Option<PathBuf>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    pub tls_server_name: Option<String>,
    pub tls_skip_verify: Option<bool>,
}

pub(super) fn schema() -> BlockSchema {
    tls_client(BlockSchema::new(
        "nomad",
        &[],
        "How to reach Nomad, for upstreams with a nomad block and certificates with a nomad_variable block. What is left out is taken from NOMAD_ADDR and its kin; inside a task, from the task API's socket and the task's own identity.",
    ))
    .attribute(
        "address",
        Type::String,
        Some("\"127.0.0.1:4646\""),
        "\"https://127.0.0.1:4646\"",
        "host:port, http://, https:// or unix://.",
    )
    .attribute(
        "token_file",
        Type::String,
        None,
        "\"/secrets/nomad_token\"",
        "An ACL token or a workload identity; read again when it changes. It wins over NOMAD_TOKEN.",
    )
    .attribute("region", Type::Name, None, "\"eu\"", "Left out: the Nomad agent's own.")
    .attribute(
        "namespace",
        Type::Name,
        Some("\"default\""),
        "\"shop\"",
        "For upstreams that name none.",
    )
}

pub(super) fn read(reader: &Reader<'_>) -> NomadBlock {
    let path = |name: &str| reader.string(name).map(|path| PathBuf::from(&*path));
    let owned = |name: &str| reader.string(name).map(|text| text.to_string());
    NomadBlock {
        address: owned("address"),
        token_file: path("token_file"),
        region: owned("region"),
        namespace: owned("namespace"),
        ca_file: path("ca_file"),
        ca_path: path("ca_path"),
        client_cert: path("client_cert"),
        client_key: path("client_key"),
        tls_server_name: owned("tls_server_name"),
        tls_skip_verify: reader.boolean("tls_skip_verify"),
    }
}

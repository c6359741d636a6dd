//! SIGHUP: the settings are read again. What can change while running does; what cannot is named.

use std::sync::Arc;

use anyhow::Context as _;

use super::settings::{Settings, XdsTcpBlock};
use crate::model::Redacted;
use crate::xds::{Identities, Identity, San, TlsSettings};

/// Settings that differ and need a restart of the agent (Envoy serves on meanwhile).
pub(super) fn needs_restart(before: &Settings, after: &Settings) -> Vec<&'static str> {
    let mut names = Vec::new();
    let mut compare = |same: bool, name: &'static str| {
        if !same {
            names.push(name);
        }
    };
    compare(before.gateways == after.gateways, "gateways");
    compare(before.node == after.node, "node_name");
    compare(before.data_dir == after.data_dir, "data_dir");
    compare(before.bind_addr == after.bind_addr, "bind_addr");
    compare(before.log_json == after.log_json, "log_json");
    compare(before.document_paths == after.document_paths, "-config");
    compare(
        before.kv_prefix == after.kv_prefix && before.permissions == after.permissions,
        "kv_documents",
    );
    compare(
        format!("{:?}", before.consul) == format!("{:?}", after.consul),
        "consul",
    );
    compare(
        format!("{:?}", before.vault) == format!("{:?}", after.vault),
        "vault",
    );
    compare(
        format!("{:?}", before.envoy) == format!("{:?}", after.envoy),
        "envoy",
    );
    compare(
        before.xds.socket == after.xds.socket && before.xds.uids == after.xds.uids,
        "xds.socket",
    );
    compare(format!("{:?}", before.api) == format!("{:?}", after.api), "api");
    names
}

/// Reads the files of the xDS port: read again on each reload.
pub(super) fn tls_settings(block: &XdsTcpBlock) -> anyhow::Result<TlsSettings> {
    let read = |path: &std::path::Path| {
        std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read (xds.tcp)", path.display()))
    };
    let identities = block.clients.iter().map(|(san, gateways)| Identity {
        san: if san.contains("://") {
            San::Uri(san.as_str().into())
        } else {
            San::Dns(san.as_str().into())
        },
        gateways: gateways.iter().cloned().collect(),
    });
    Ok(TlsSettings {
        client_ca: read(&block.ca_file)?.into(),
        certificate: read(&block.cert_file)?.into(),
        private_key: Arc::new(Redacted::new(read(&block.key_file)?)),
        identities: Identities(identities.collect()),
    })
}

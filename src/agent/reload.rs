//! SIGHUP: the settings are read again. What can change while running does; what cannot is named.

use std::sync::Arc;

use anyhow::Context as _;

use super::settings::{Settings, XdsTcpBlock};
use crate::model::Redacted;
use crate::sources::bounded_file;
use crate::xds::{Identities, Identity, San, TlsSettings};

/// Settings that differ and need a restart of the agent (Envoy serves on meanwhile).
pub(super) fn needs_restart(before: &Settings, after: &Settings) -> Vec<&'static str> {
    let address = |settings: &Settings| settings.xds.tcp.as_ref().map(|tcp| tcp.address);
    // What services may claim is taken over at once; who is asked is not.
    let asked = |settings: &Settings| {
        let exposure = settings.permissions.exposure.as_deref();
        exposure.map(|exposure| exposure.opt_in.clone())
    };
    let same = [
        ("gateways", before.gateways == after.gateways),
        ("node_name", before.node == after.node),
        ("data_dir", before.data_dir == after.data_dir),
        ("bind_addr", before.bind_addr == after.bind_addr),
        ("log_json", before.log_json == after.log_json),
        ("-config", before.document_paths == after.document_paths),
        ("kv_documents.prefix", before.kv_prefix == after.kv_prefix),
        ("consul", before.consul == after.consul),
        ("vault", before.vault == after.vault),
        ("catalog", asked(before) == asked(after)),
        ("nomad", before.nomad == after.nomad),
        ("envoy", before.envoy == after.envoy),
        ("xds.socket", before.xds.socket == after.xds.socket),
        ("xds.uids", before.xds.uids == after.xds.uids),
        ("xds.client", before.xds.clients == after.xds.clients),
        // Its files and clients are taken over at once.
        ("xds.tcp", address(before) == address(after)),
        ("api", before.api == after.api),
    ];
    same.into_iter()
        .filter(|(_, same)| !same)
        .map(|(name, _)| name)
        .collect()
}

/// Reads the files of the xDS port: read again on each reload.
pub(super) fn tls_settings(block: &XdsTcpBlock) -> anyhow::Result<TlsSettings> {
    let read = |path: &std::path::Path| {
        bounded_file::read_text(path, bounded_file::PEM_BYTES)
            .with_context(|| format!("{}: cannot be read (xds.tcp)", path.display()))
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

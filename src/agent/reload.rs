//! SIGHUP: the settings are read again. What can change while running does; what cannot is named.

use super::settings::{EnvoyBlock, Settings};

/// Settings that differ and need a restart of the agent (Envoy serves on meanwhile).
pub(super) fn needs_restart(before: &Settings, after: &Settings) -> Vec<&'static str> {
    let address = |settings: &Settings| settings.xds.tcp.as_ref().map(|tcp| tcp.address);
    // What services may claim is taken over at once; who is asked is not.
    let asked = |settings: &Settings| {
        let exposure = settings.permissions.exposure.as_deref();
        exposure.map(|exposure| exposure.opt_in.clone())
    };
    // Named one by one: a new setting is in the list below, or here it is said why not.
    let Settings {
        node,
        data_dir,
        keeps_state: _, // Of -dev and data_dir.
        bind_addr,
        log_level: _, // Taken over at once, as permissions are.
        log_json,
        gateways,
        document_paths,
        kv_prefix,
        status_prefix,
        permissions: _,
        consul,
        mesh,
        vault,
        nomad,
        envoy,
        xds: _, // By its parts.
        api,
    } = after;
    let is_same_prefix = before.kv_prefix == *kv_prefix && before.status_prefix == *status_prefix;
    let same = [
        ("gateways", before.gateways == *gateways),
        ("node_name", before.node == *node),
        ("data_dir", before.data_dir == *data_dir),
        ("bind_addr", before.bind_addr == *bind_addr),
        ("log_json", before.log_json == *log_json),
        ("-config", before.document_paths == *document_paths),
        ("kv_documents.prefix", is_same_prefix),
        ("consul", before.consul == *consul),
        ("mesh", before.mesh == *mesh),
        ("vault", before.vault == *vault),
        ("catalog", asked(before) == asked(after)),
        ("nomad", before.nomad == *nomad),
        ("envoy", before.envoy == *envoy),
        ("xds.socket", before.xds.socket == after.xds.socket),
        ("xds.uids", before.xds.uids == after.xds.uids),
        ("xds.client", before.xds.clients == after.xds.clients),
        // Its files and clients are taken over at once.
        ("xds.tcp", address(before) == address(after)),
        ("api", before.api == *api),
    ];
    same.into_iter()
        .filter(|(_, same)| !same)
        .map(|(name, _)| name)
        .collect()
}

/// Envoy has these from its own start.
pub(super) fn needs_envoy_restart(before: &Settings, after: &Settings) -> bool {
    let of_envoy = |settings: &Settings| EnvoyBlock {
        supervise: false,
        stop_with_agent: false,
        ..settings.envoy.clone()
    };
    of_envoy(before) != of_envoy(after)
}

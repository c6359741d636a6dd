//! SIGHUP: the settings are read again. What can change while running does; what cannot is named.

use std::sync::{Mutex, PoisonError};

use super::settings::{EnvoyBlock, Settings, SettingsError};
use crate::status::SourceReading;

/// What the last reload left to be done. The log says it once, and whoever starts the agent next meets it: by then it is
/// forgotten, or somebody else's. So the status says it for as long as it holds.
#[derive(Debug, Default)]
pub(super) struct LastReload(Mutex<Option<Left>>);

#[derive(Debug)]
enum Left {
    /// The settings as they are now cannot be used.
    Unusable(String),
    /// They can, and these wait for the agent's next start.
    Restart(Vec<&'static str>),
}

impl LastReload {
    pub fn unusable(&self, error: &SettingsError) {
        let said = match error {
            SettingsError::Invalid(problems) => problems.first().map(|(problem, _)| problem.to_string()),
            SettingsError::Read { .. } => None,
        };
        self.set(Some(Left::Unusable(said.unwrap_or_else(|| error.to_string()))));
    }

    /// Nothing is left where nothing needs one.
    pub fn taken_up(&self, restart: Vec<&'static str>) {
        self.set((!restart.is_empty()).then_some(Left::Restart(restart)));
    }

    /// None: the settings in use are those that were found last.
    pub fn reading(&self) -> Option<SourceReading> {
        let left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (is_ok, problem) = match left.as_ref()? {
            Left::Unusable(error) => (
                false,
                format!(
                    "the last reload failed, the settings before it stay, and the agent would not start again: {error}; mend it, then reload (SIGHUP)"
                ),
            ),
            Left::Restart(names) => (
                true,
                format!(
                    "changed, and in use only after a restart of the agent: {}",
                    names.join(", ")
                ),
            ),
        };
        Some(SourceReading::new("settings", is_ok, None).with_problem(Some(problem)))
    }

    fn set(&self, left: Option<Left>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = left;
    }
}

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

/// What services ask by is followed from the start on: judged by another one, those that are exposed would go out of
/// service, and new ones not be found.
pub(super) fn keep_opt_in(before: &Settings, after: &mut Settings) {
    let opt_in = |settings: &Settings| settings.permissions.exposure.as_ref().map(|it| it.opt_in.clone());
    if opt_in(before) != opt_in(after) {
        after
            .permissions
            .exposure
            .clone_from(&before.permissions.exposure);
    }
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

//! What `portreeve envoy run` leaves beside its bootstrap: enough to be the same Envoy again where the settings cannot be
//! read. A slip in them is no reason for closed ports, and the agent runs on without them as well.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::launch::Launch;
use super::record::{BOOTSTRAP, LAST_RUN, RuntimeDirectory, write_private};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    pub gateway: String,
    /// As it was named. Without it: `envoy` in PATH.
    pub binary: Option<PathBuf>,
    /// Those of Envoy's arguments that come from settings.
    pub arguments: Vec<String>,
    pub drain_time: Duration,
    pub(super) pass_environment: Vec<String>,
}

impl LastRun {
    pub(super) fn of(launch: &Launch) -> Self {
        let settings = &launch.settings;
        Self {
            gateway: settings.bootstrap.gateway.clone(),
            binary: settings.binary.clone(),
            arguments: launch.common_arguments(),
            drain_time: settings.drain_time,
            pass_environment: settings.pass_environment.clone(),
        }
    }

    /// None where no Envoy was run, or an agent has supervised one since.
    pub fn read(runtime_directory: &Path) -> Option<Self> {
        if !runtime_directory.join(BOOTSTRAP).is_file() {
            return None;
        }
        let text = std::fs::read(runtime_directory.join(LAST_RUN)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    pub(super) fn write(&self, runtime: &RuntimeDirectory) -> Result<(), Error> {
        let path = runtime.last_run();
        let text =
            serde_json::to_vec_pretty(self).map_err(|error| Error::file("encode", &path)(error.into()))?;
        write_private(&path, &text)
    }
}

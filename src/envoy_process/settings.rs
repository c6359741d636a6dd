//! What the operator may say about the Envoy we keep.

use std::path::PathBuf;
use std::time::Duration;

use crate::envoy::bootstrap::Bootstrap;

/// Settings of one supervised Envoy. `Settings::new` fills in the defaults.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where Envoy lies. Without it: `envoy` in PATH.
    pub binary: Option<PathBuf>,
    /// Bootstrap, record, lock, log and sockets of this one Envoy. Made with mode 0700.
    pub runtime_directory: PathBuf,
    pub bootstrap: Bootstrap,
    /// Worker threads. Without it Envoy takes one for each hardware thread.
    pub concurrency: Option<u32>,
    /// Envoy's own level: trace, debug, info, warning, error, critical, off.
    pub log_level: String,
    /// The log file is cut to nothing above this size. It is a buffer on the way to our log, not an archive.
    pub log_limit_bytes: u64,
    /// How long connections of an Envoy that leaves are asked to close (`connection: close`, GOAWAY).
    pub drain_time: Duration,
    /// Time for requests still running when the drain time is over.
    pub finish_time: Duration,
    /// From SIGTERM to SIGKILL.
    pub kill_after: Duration,
    /// How long a replacement may take to get its configuration. Until then the old Envoy serves.
    pub takeover_deadline: Duration,
    /// Environment variables handed to Envoy besides the few that it needs. Ours hold tokens, and a Lua filter can
    /// read its process's environment.
    pub pass_environment: Vec<String>,
    pub extra_arguments: Vec<String>,
}

impl Settings {
    pub fn new(runtime_directory: PathBuf, bootstrap: Bootstrap) -> Self {
        Self {
            binary: None,
            runtime_directory,
            bootstrap,
            concurrency: None,
            log_level: "info".to_owned(),
            // About 100,000 lines, or some weeks of a healthy Envoy at info.
            log_limit_bytes: 16 << 20,
            // Envoy's defaults, 600 s and 900 s, are for fleets behind slow DNS; ours sit behind health checks that
            // look every few seconds.
            drain_time: Duration::from_secs(20),
            finish_time: Duration::from_secs(10),
            kill_after: Duration::from_secs(5),
            // 10,000 clusters take 6.5 s to come up, and the agent may still wait for Vault.
            takeover_deadline: Duration::from_secs(60),
            pass_environment: Vec::new(),
            extra_arguments: Vec::new(),
        }
    }

    /// When the parent of a hot restart ends. Later than its drain, so that running requests can finish.
    pub(super) fn parent_shutdown_time(&self) -> Duration {
        self.drain_time + self.finish_time
    }
}

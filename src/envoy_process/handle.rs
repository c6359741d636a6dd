//! The supervisor as the rest of the agent sees it.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::admin_client::AdminClient;
use super::binary::Version;
use super::error::{Error, RestartError};
use super::planned_restart::RestartMethod;
use super::settings::Settings;
use super::stop::StopMode;

/// What the supervised Envoy does now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// The process runs and waits for its configuration.
    Starting {
        pid: u32,
        epoch: u32,
        adopted: bool,
    },
    Running(Running),
    /// `pid` serves while `next_pid` gets its configuration.
    Replacing {
        pid: u32,
        next_pid: u32,
    },
    /// Another Envoy runs in its place, which nobody may end but who started it.
    Waiting {
        reason: String,
    },
    /// It died or would not start; another try comes.
    Backoff {
        reason: String,
        attempt: u32,
        retry_in: Duration,
    },
    Stopping {
        pid: u32,
    },
    Stopped,
    /// The supervisor has ended, Envoy serves on.
    LeftRunning {
        pid: u32,
    },
}

impl Status {
    pub(super) fn is_running(&self) -> bool {
        matches!(self, Self::Running(_))
    }

    /// The supervisor stops: nobody follows.
    pub(super) fn is_over(&self) -> bool {
        matches!(
            self,
            Self::Stopping { .. } | Self::Stopped | Self::LeftRunning { .. }
        )
    }

    /// Of the process that has the ports, or is about to.
    pub(super) fn serving_pid(&self) -> Option<u32> {
        match self {
            Self::Running(Running { pid, .. }) | Self::Starting { pid, .. } | Self::Replacing { pid, .. } => {
                Some(*pid)
            }
            Self::Waiting { .. }
            | Self::Backoff { .. }
            | Self::Stopping { .. }
            | Self::Stopped
            | Self::LeftRunning { .. } => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    pub pid: u32,
    pub epoch: u32,
    /// Started by a former agent.
    pub adopted: bool,
    pub version: Option<Version>,
    /// Why a planned restart is due: another bootstrap, another binary.
    pub outdated: Option<String>,
}

/// Commands to the supervisor. Dropping the last one leaves Envoy running.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) admin: AdminClient,
    /// By this file its processes are known.
    pub(super) bootstrap: PathBuf,
}

pub(super) type RestartReply = oneshot::Sender<Result<RestartMethod, RestartError>>;

pub(super) enum Command {
    Restart {
        settings: Option<Box<Settings>>,
        reply: RestartReply,
    },
    Stop {
        mode: StopMode,
        reply: oneshot::Sender<()>,
    },
}

impl Handle {
    /// The present status, and a way to wait for the next.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    pub fn admin(&self) -> &AdminClient {
        &self.admin
    }

    /// Replaces Envoy without loss, with new settings if given, and returns once the new one serves. The xDS server
    /// must be answering, else the new Envoy never gets ready and the old one stays.
    pub async fn restart(&self, settings: Option<Settings>) -> Result<RestartMethod, RestartError> {
        let (reply, result) = oneshot::channel();
        let command = Command::Restart {
            settings: settings.map(Box::new),
            reply,
        };
        self.commands.send(command).await.map_err(|_| Error::Ended)?;
        result.await.map_err(|_| Error::Ended)?
    }

    /// Ends the supervision, and Envoy as the mode says. A second call with `StopMode::Now` cuts a drain short.
    pub async fn stop(&self, mode: StopMode) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Stop { mode, reply }).await.is_ok() {
            // An ended supervisor is what was asked for.
            let _ = done.await;
        }
    }

    /// Ends the supervision and leaves Envoy to the next agent.
    pub async fn detach(&self) {
        self.stop(StopMode::LeaveRunning).await;
    }
}

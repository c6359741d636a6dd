//! What can go wrong, in words for the operator.

use std::io;
use std::path::PathBuf;

use super::admin_client::AdminError;
use super::binary::BinaryError;
use crate::envoy::bootstrap::BootstrapError;

/// Why Envoy could not be started or taken over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Binary(#[from] BinaryError),
    #[error("cannot make Envoy's bootstrap")]
    Bootstrap(#[from] BootstrapError),
    #[error("cannot {action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "an agent (pid {holder}) keeps the Envoy in {directory}: stop it, or give each of the two its own runtime directory"
    )]
    Locked { directory: PathBuf, holder: String },
    #[error(
        "an Envoy of `portreeve envoy run` (pid {holder}) has {directory}: end its unit or task, as with `systemctl disable --now portreeve-envoy`"
    )]
    TakenByRun { directory: PathBuf, holder: String },
    #[error(
        "an Envoy that an agent supervised (pid {pid}) still runs in {directory}: `portreeve envoy drain -gateway {gateway} -runtime-dir {directory}`, then `kill {pid}`"
    )]
    LeftBySupervisor {
        directory: PathBuf,
        gateway: String,
        pid: u32,
    },
    #[error("cannot start {binary}")]
    Spawn { binary: PathBuf, source: io::Error },
    #[error(
        "cannot start /bin/sh, under which Envoy runs: every base image has one, an image from scratch needs it"
    )]
    Shell { source: io::Error },
    #[error("cannot watch process {pid}")]
    Watch { pid: u32, source: io::Error },
    #[error(
        "the runtime directory {path} is too long for unix sockets: {length} bytes, {limit} at most; set a shorter one"
    )]
    DirectoryTooLong {
        path: PathBuf,
        length: usize,
        limit: usize,
    },
    #[error("the supervisor has ended")]
    Ended,
}

impl Error {
    pub(super) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}

/// Why a planned restart did not happen. Unless it says otherwise the old Envoy serves on, untouched.
#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    #[error(transparent)]
    Start(#[from] Error),
    #[error("Envoy is not running: it starts again by itself")]
    NotRunning,
    #[error("the new Envoy refuses the bootstrap, the old one stays: {0}")]
    Refused(String),
    #[error(
        "Envoy is starting and has nothing to hand over yet: try again when `portreeve status` shows it running"
    )]
    NotLive,
    #[error("another restart of this Envoy is under way: try again when it is done")]
    UnderWay,
    #[error("the former Envoy has not finished draining: try again when it is gone")]
    StillDraining,
    #[error(
        "the new Envoy ended before it took over ({exit}), the old one serves on without its admin API: {last_lines}"
    )]
    Died { exit: String, last_lines: String },
    #[error(
        "the new Envoy ended ({exit}), and the old one does not serve any more: another one is being started: {last_lines}"
    )]
    NoneLeft { exit: String, last_lines: String },
    #[error(
        "the new Envoy got no configuration within {seconds} s and was stopped, the old one serves on; is the xDS server answering?"
    )]
    NotReady { seconds: u64 },
    #[error("the old Envoy does not answer on its admin socket")]
    Admin(#[from] AdminError),
}

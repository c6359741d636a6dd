//! `portreeve envoy drain`: clients leave an Envoy that systemd or Nomad is about to end.

use std::path::PathBuf;
use std::time::Duration;

use super::envoy::{ADMIN_SOCKET, runtime_directory, settings_of, the_gateway};
use super::failure::Failure;
use super::runtime::block_on;
use super::terminal::Terminal;
use crate::agent::signals::Signals;
use crate::envoy_process::{AdminClient, AdminError, drain};

#[derive(Debug, clap::Args)]
pub struct DrainArguments {
    /// The agent's settings, to take over its gateway, directory and drain time.
    #[arg(long, value_name = "PATH")]
    config: Vec<PathBuf>,
    /// The gateway that this Envoy serves.
    #[arg(long, value_name = "NAME")]
    gateway: Option<String>,
    /// Where Envoy keeps its files and its admin socket.
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// How long clients are asked to leave; the settings' drain_time by default, or 20s.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    drain_time: Option<Duration>,
    /// How long requests that still run then may take.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    finish_time: Duration,
    /// First wait until told to end (SIGTERM or SIGINT): for a Nomad task that leads its group.
    #[arg(long)]
    when_stopped: bool,
}

pub(super) fn run(arguments: &DrainArguments, terminal: &mut Terminal) -> anyhow::Result<()> {
    let settings = settings_of(&arguments.config, arguments.gateway.as_deref())?;
    let gateway = the_gateway(arguments.gateway.as_deref(), settings.as_ref())?;
    let directory = runtime_directory(arguments.runtime_dir.as_deref(), settings.as_ref(), &gateway);
    let drain_time = arguments
        .drain_time
        .or(settings.map(|settings| settings.envoy.drain_time))
        .unwrap_or(DRAIN_TIME);
    let socket = directory.join(ADMIN_SOCKET);
    let left = block_on(async {
        if arguments.when_stopped {
            let mut signals = Signals::install()
                .map_err(|error| Failure::new("cannot listen for signals").because(error))?;
            signals.told_to_leave().await;
        }
        let drained = drain(&AdminClient::new(&socket), drain_time, arguments.finish_time).await;
        Ok(drained.map_err(|error| failure(error, &gateway))?)
    })?;
    match left {
        0 => terminal.line(format!("Envoy of gateway {gateway} drained")),
        left => terminal.line(format!(
            "Envoy of gateway {gateway} drained; {left} requests, or connections without HTTP, outlast it and will be cut"
        )),
    }?;
    Ok(())
}

fn failure(error: AdminError, gateway: &str) -> Failure {
    let fix = match &error {
        AdminError::Connect { .. } => {
            "is Envoy running, and does this user own its socket? -runtime-dir or -config say where it is"
        }
        _ => "end Envoy without a drain, or try again",
    };
    Failure::new(format!("cannot drain the Envoy of gateway {gateway}"))
        .because(error)
        .fix(fix)
}

/// The settings' own default.
const DRAIN_TIME: Duration = Duration::from_secs(20);

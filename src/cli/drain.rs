//! `portreeve envoy drain`: clients leave an Envoy that systemd or Nomad is about to end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::envoy::{ADMIN_SOCKET, runtime_directory, settings_of, the_gateway, warn, without_settings};
use super::failure::{self, Failure};
use super::runtime::block_on;
use super::terminal::Terminal;
use crate::agent::signals::Signals;
use crate::envoy_process::{AdminClient, AdminError, Keeper, LastRun, drain, keeper};

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
    /// Drain also an Envoy that an agent supervises, as before the machine stops: the agent goes on as if it served.
    #[arg(long)]
    supervised: bool,
}

pub(super) fn run(arguments: &DrainArguments, terminal: &mut Terminal) -> anyhow::Result<()> {
    let Target {
        gateway,
        directory,
        drain_time,
        supervise,
    } = arguments.target(terminal)?;
    let socket = directory.join(ADMIN_SOCKET);
    let left = block_on(async {
        if arguments.when_stopped {
            let mut signals = Signals::install()
                .map_err(|error| Failure::new("cannot listen for signals").because(error))?;
            signals.told_to_leave().await;
        }
        if !arguments.supervised {
            refuse_supervised(&directory, &gateway, supervise).await?;
        }
        let drained = drain(&AdminClient::new(&socket), drain_time, arguments.finish_time).await;
        Ok(drained.map_err(|error| not_drained(error, &gateway))?)
    })?;
    match left {
        0 => terminal.line(format!("Envoy of gateway {gateway} drained")),
        left => terminal.line(format!(
            "Envoy of gateway {gateway} drained; {left} requests, or connections without HTTP, outlast it and will be cut"
        )),
    }?;
    Ok(())
}

struct Target {
    gateway: String,
    directory: PathBuf,
    drain_time: Duration,
    /// What the settings say, where they can be read.
    supervise: bool,
}

impl DrainArguments {
    fn target(&self, terminal: &mut Terminal) -> anyhow::Result<Target> {
        let named = self.runtime_dir.as_deref();
        let settings = match settings_of(&self.config, self.gateway.as_deref()) {
            Ok(settings) => settings,
            Err(error) => return self.target_without_settings(error, terminal),
        };
        let gateway = the_gateway(self.gateway.as_deref(), settings.as_ref())?;
        let supervise = settings.as_ref().is_some_and(|settings| settings.envoy.supervise);
        Ok(Target {
            supervise,
            directory: runtime_directory(named, settings.as_ref(), &gateway),
            drain_time: self
                .drain_time
                .or(settings.map(|settings| settings.envoy.drain_time))
                .unwrap_or(DRAIN_TIME),
            gateway,
        })
    }

    /// Envoy is about to be ended, whatever the settings are: where it is will do.
    fn target_without_settings(
        &self,
        error: anyhow::Error,
        terminal: &mut Terminal,
    ) -> anyhow::Result<Target> {
        let gateway = self.gateway.as_deref();
        let (error, directory) = without_settings(
            error,
            self.runtime_dir.as_deref(),
            "where -runtime-dir names its directory, Envoy is drained all the same",
        )?;
        let last = LastRun::read(directory);
        let of_last = last.as_ref().map(|last| last.drain_time);
        let drain_time = self.drain_time.or(of_last).unwrap_or(DRAIN_TIME);
        failure::write(&error, terminal)?;
        warn(
            terminal,
            format!(
                "the Envoy in {} is drained all the same, for {drain_time:?}",
                directory.display()
            ),
        )?;
        let gateway = gateway.map(str::to_owned).or(last.map(|last| last.gateway));
        Ok(Target {
            gateway: gateway.unwrap_or_else(|| "(unknown)".to_owned()),
            directory: directory.to_owned(),
            drain_time,
            supervise: false,
        })
    }
}

/// The unit of before, where its Envoy never came to be: the one that answers in its directory is the agent's, and would have
/// its ports closed for good.
async fn refuse_supervised(directory: &Path, gateway: &str, supervise: bool) -> Result<(), Failure> {
    let why = match keeper(directory).await {
        Keeper::Agent(pid) => format!("an agent (pid {pid}) supervises it and would not know"),
        // What an agent left, the next one takes over.
        Keeper::Unknown if supervise => {
            "the settings say that an agent supervises it (envoy { supervise = true })".to_owned()
        }
        Keeper::Unknown | Keeper::Run => return Ok(()),
    };
    let fix = "`portreeve envoy restart` replaces it, and a stop of the agent drains it; \
               where the machine is about to stop, drain it with -supervised";
    let what = format!("the Envoy of gateway {gateway} is not drained: {why}");
    Err(Failure::new(what).fix(fix))
}

fn not_drained(error: AdminError, gateway: &str) -> Failure {
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

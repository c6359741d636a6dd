//! `portreeve envoy`: the bootstrap, and Envoy as a process of its own.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use super::KEPT_AWAY;
use super::api_client::{ApiArguments, ApiClient};
use super::failure::{self, Failure};
use super::runtime::block_on;
use super::terminal::{Color, Terminal};
use crate::agent::settings::{Flags, Settings, SettingsError};
use crate::envoy::bootstrap::{Bootstrap, ServerName, XdsEndpoint, XdsTls, XdsVariant};
use crate::envoy_process::{self, ExecOptions, LastRun, exec_envoy, exec_envoy_again};

/// Prepare, run or restart Envoy
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the bootstrap that an Envoy needs to get its configuration from an agent
    Bootstrap(#[command(flatten)] Box<BootstrapArguments>),
    /// Become Envoy, for a Nomad task or a systemd unit of its own
    ///
    /// Where the settings cannot be read, Envoy is started with the bootstrap and the arguments of its last run, which stand
    /// in the directory that -runtime-dir names. It is not started beside an agent that supervises one.
    Run(#[command(flatten)] Box<RunArguments>),
    /// Ask the clients of an Envoy of its own to leave, before somebody ends it
    ///
    /// Clients are told `connection: close` (GOAWAY over HTTP/2) for the drain time, while the ports stay open; then the
    /// ports close and running requests have time to finish. Envoy itself goes on until systemd or Nomad ends it: use it
    /// as `ExecStop`, or as the task that leads a Nomad group. An Envoy that an agent supervises is drained with -supervised
    /// only.
    Drain(#[command(flatten)] Box<super::drain::DrainArguments>),
    /// Replace the Envoy that an agent supervises, without losing a request
    Restart {
        /// The gateway; needed where the agent supervises several Envoys.
        #[arg(long, value_name = "NAME")]
        gateway: Option<String>,
        #[command(flatten)]
        api: ApiArguments,
    },
}

#[derive(Debug, clap::Args)]
struct BootstrapArguments {
    /// The agent's settings, to take over its gateway, node name and socket.
    #[arg(long, value_name = "PATH")]
    config: Vec<PathBuf>,
    /// The gateway that this Envoy serves.
    #[arg(long, value_name = "NAME")]
    gateway: Option<String>,
    /// A label for this Envoy.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// The agent's xDS socket on this machine.
    #[arg(long, value_name = "PATH", conflicts_with = "xds_address")]
    xds_socket: Option<PathBuf>,
    /// A remote agent's xDS port, host:port; always with mutual TLS.
    #[arg(long, value_name = "ADDRESS", requires_all = ["xds_ca", "xds_cert", "xds_key"])]
    xds_address: Option<String>,
    /// Who signs the agent's certificate, PEM.
    #[arg(long, value_name = "FILE")]
    xds_ca: Option<PathBuf>,
    /// This Envoy's certificate, PEM. Its name decides which gateway it gets.
    #[arg(long, value_name = "FILE")]
    xds_cert: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, value_name = "FILE")]
    xds_key: Option<PathBuf>,
    /// The name in the agent's certificate: a DNS name, an IP address, or a URI such as spiffe://...
    #[arg(long, value_name = "NAME")]
    xds_server_name: Option<String>,
    /// delta or sotw (state of the world); delta by default.
    #[arg(long, value_name = "WORD", value_parser = ["delta", "sotw"])]
    variant: Option<String>,
    /// Where Envoy keeps its files and its admin socket.
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct RunArguments {
    #[command(flatten)]
    bootstrap: BootstrapArguments,
    /// The Envoy program; `envoy` in PATH by default.
    #[arg(long, value_name = "PATH")]
    envoy: Option<PathBuf>,
    /// Worker threads; one for each hardware thread by default.
    #[arg(long, value_name = "N")]
    concurrency: Option<u32>,
    /// trace, debug, info, warning, error, critical or off.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// How long to wait for the agent before starting without it.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

pub fn run(arguments: &Arguments, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
    match &arguments.command {
        Command::Bootstrap(arguments) => {
            let (bootstrap, ..) = arguments.bootstrap()?;
            let rendered = bootstrap.render()?;
            for (path, _) in &rendered.files {
                terminal.error_line(format!(
                    "note: this bootstrap refers to {}, which `portreeve envoy run` would write",
                    path.display()
                ))?;
            }
            terminal.json(&rendered.bootstrap)?;
        }
        Command::Run(arguments) => arguments.run(terminal)?,
        Command::Drain(arguments) => super::drain::run(arguments, terminal)?,
        Command::Restart { gateway, api } => {
            let query: Vec<(&str, &str)> = gateway.iter().map(|name| ("gateway", name.as_str())).collect();
            let answer: Value = block_on(ApiClient::new(api)?.post("/v1/envoy/restart", &query, None))?;
            let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
            terminal.line(format!(
                "Envoy of gateway {} replaced: {}",
                text("gateway"),
                text("restarted")
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl RunArguments {
    fn run(&self, terminal: &mut Terminal) -> anyhow::Result<()> {
        let (bootstrap, runtime_directory, agent) = match self.bootstrap.bootstrap() {
            Ok(made) => made,
            Err(error) => return self.run_again(error, terminal),
        };
        let mut settings = envoy_process::Settings::new(runtime_directory, bootstrap);
        if let Some(agent) = agent {
            if agent.envoy.supervise {
                let what =
                    "the settings say that the agent starts this Envoy itself (envoy { supervise = true })";
                let fix = "end this unit or task (`systemctl disable --now portreeve-envoy`), or take `supervise` out of the settings";
                return Err(Failure::new(what).fix(fix).exit(KEPT_AWAY).into());
            }
            if let Some(named) = &self.bootstrap.runtime_dir {
                let gateway = &settings.bootstrap.gateway;
                warn_of_two(named, &directory_of(&agent, gateway), terminal)?;
            }
            settings.binary = agent.envoy.binary;
            settings.concurrency = agent.envoy.concurrency;
            settings.log_level = agent.envoy.log_level;
            settings.drain_time = agent.envoy.drain_time;
        }
        settings.binary = self.envoy.clone().or(settings.binary);
        settings.concurrency = self.concurrency.or(settings.concurrency);
        if let Some(level) = &self.log_level {
            settings.log_level.clone_from(level);
        }
        if let XdsEndpoint::Tcp { tls, .. } = &settings.bootstrap.xds {
            check_files(tls)?;
        }
        let connections = settings.bootstrap.max_downstream_connections;
        if let Some(warning) = envoy_process::open_files_warning(connections) {
            terminal.error_line(format!("warning: {}; {}", warning.message, warning.fix))?;
        }
        let options = ExecOptions {
            wait_for_xds: Some(self.wait).filter(|wait| !wait.is_zero()),
        };
        terminal.flush()?;
        block_on(async { Ok(exec_envoy(settings, options, &mut warnings(terminal)).await?) })?;
        Ok(())
    }

    /// The agent goes on with the settings that it has read. So does its Envoy, however often that ends.
    fn run_again(&self, error: anyhow::Error, terminal: &mut Terminal) -> anyhow::Result<()> {
        let named = self.bootstrap.runtime_dir.as_deref();
        let (error, directory) = without_settings(
            error,
            named,
            "where -runtime-dir names its directory, Envoy is started as the last time",
        )?;
        let Some(last) = LastRun::read(directory) else {
            return Err(error);
        };
        failure::write(&error, terminal)?;
        warn(
            terminal,
            format!(
                "Envoy is started with what its last run left, {} and {}: mend the settings, they hold from its next start on",
                directory.join("bootstrap.json").display(),
                last.arguments.join(" "),
            ),
        )?;
        terminal.flush()?;
        block_on(async { Ok(exec_envoy_again(directory, &last, &mut warnings(terminal)).await?) })?;
        Ok(())
    }
}

/// Envoy starts without them, says so in one line among many, and never connects, not even when they are there later.
fn check_files(tls: &XdsTls) -> anyhow::Result<()> {
    for (flag, what, path) in [
        (
            "-xds-ca",
            "the authority of the agent's certificate",
            &tls.ca_file,
        ),
        (
            "-xds-cert",
            "the certificate that Envoy shows the agent",
            &tls.certificate_file,
        ),
        (
            "-xds-key",
            "the key of the certificate that Envoy shows the agent",
            &tls.key_file,
        ),
    ] {
        let shown = path.display();
        let failed = |why: String, fix: &str| {
            let text = format!("{flag}: {what} cannot be read from {shown}");
            Failure::new(text).because(why).fix(fix)
        };
        let bytes = std::fs::read(path).map_err(|error| {
            let fix = match error.kind() {
                std::io::ErrorKind::PermissionDenied => "let the user that Envoy runs as read it",
                _ => "put it there before Envoy is started, or name another file",
            };
            failed(error.to_string(), fix)
        })?;
        if !bytes.windows(PEM.len()).any(|window| window == PEM) {
            return Err(failed(
                "it holds no PEM block (-----BEGIN ...)".to_owned(),
                "write it as PEM",
            )
            .into());
        }
    }
    Ok(())
}

const PEM: &[u8] = b"-----BEGIN ";

pub(super) fn warn(terminal: &mut Terminal, text: impl AsRef<str>) -> std::io::Result<()> {
    let label = terminal.paint(Color::Yellow, "Warning:");
    terminal.error_line(format!("{label} {}", text.as_ref()))
}

/// As where the settings have a `data_dir` and the unit was taken as it is shipped.
fn warn_of_two(named: &Path, of_settings: &Path, terminal: &mut Terminal) -> std::io::Result<()> {
    let resolved = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path));
    if resolved(named).ok() == resolved(of_settings).ok() {
        return Ok(());
    }
    warn(
        terminal,
        format!(
            "-runtime-dir is {}, but by the settings' data_dir this Envoy is in {}, where the agent looks for it: name that one",
            named.display(),
            of_settings.display()
        ),
    )
}

/// That they are not read keeps no Envoy away.
fn warnings(terminal: &mut Terminal) -> impl FnMut(String) {
    |text| {
        let _ = warn(terminal, text);
    }
}

impl BootstrapArguments {
    /// The bootstrap, the directory of Envoy's files, and the agent's settings where they are given.
    fn bootstrap(&self) -> anyhow::Result<(Bootstrap, PathBuf, Option<Settings>)> {
        let host = host_name();
        let settings = settings_of(&self.config, self.gateway.as_deref())?;
        let node = self
            .node
            .clone()
            .or_else(|| settings.as_ref().map(|settings| settings.node.clone()))
            .unwrap_or(host);
        let gateway = the_gateway(self.gateway.as_deref(), settings.as_ref())?;
        let data_dir = settings
            .as_ref()
            .map_or_else(|| PathBuf::from(DATA_DIR), |settings| settings.data_dir.clone());
        let runtime = runtime_directory(self.runtime_dir.as_deref(), settings.as_ref(), &gateway);
        let xds = match &self.xds_address {
            Some(address) => self.remote(address, &runtime)?,
            None => XdsEndpoint::Unix(
                self.xds_socket
                    .clone()
                    .or_else(|| settings.as_ref().map(|settings| settings.xds.socket.clone()))
                    .unwrap_or_else(|| data_dir.join("xds.sock")),
            ),
        };
        let label = format!("{node}/{gateway}");
        let mut bootstrap = Bootstrap::new(&label, &gateway, xds, &runtime.join(ADMIN_SOCKET));
        if let Some(settings) = &settings {
            bootstrap.max_downstream_connections = u64::from(settings.envoy.max_downstream_connections);
        }
        let asked = settings
            .as_ref()
            .is_some_and(|settings| settings.envoy.state_of_the_world);
        if self.variant.as_ref().map_or(asked, |variant| variant == "sotw") {
            bootstrap.variant = XdsVariant::StateOfTheWorld;
        }
        Ok((bootstrap, runtime, settings))
    }

    fn remote(&self, address: &str, runtime: &std::path::Path) -> anyhow::Result<XdsEndpoint> {
        let wrong =
            || Failure::new(format!("{address:?} is no xDS address")).fix("write -xds-address host:port");
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = self.xds_server_name.clone().unwrap_or_else(|| host.clone());
        let server_name = match name.parse() {
            Ok(ip) => ServerName::Ip(ip),
            Err(_) if name.contains("://") => ServerName::Uri(name),
            Err(_) => ServerName::Dns(name),
        };
        let file = |path: &Option<PathBuf>| path.clone().unwrap_or_default();
        Ok(XdsEndpoint::Tcp {
            address: host,
            port,
            tls: XdsTls {
                ca_file: file(&self.xds_ca),
                certificate_file: file(&self.xds_cert),
                key_file: file(&self.xds_key),
                server_name,
                sds_directory: runtime.to_owned(),
            },
        })
    }
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The agent's settings, where they are given.
pub(super) fn settings_of(config: &[PathBuf], gateway: Option<&str>) -> anyhow::Result<Option<Settings>> {
    if config.is_empty() {
        return Ok(None);
    }
    let flags = Flags {
        config: config.to_vec(),
        gateways: gateway.into_iter().map(str::to_owned).collect(),
        ..Flags::default()
    };
    Ok(Some(Settings::load(&flags, &host_name())?))
}

/// The one that was named, or the only one of the settings.
pub(super) fn the_gateway(named: Option<&str>, settings: Option<&Settings>) -> anyhow::Result<String> {
    let only = || match settings.map(|settings| settings.gateways.as_slice()) {
        Some([only]) => Some(only.to_string()),
        _ => None,
    };
    let gateway = named.map(str::to_owned).or_else(only);
    Ok(gateway
        .ok_or_else(|| Failure::new("which gateway does this Envoy serve?").fix("say it with -gateway"))?)
}

/// Where this Envoy's files and its admin socket are.
pub(super) fn runtime_directory(named: Option<&Path>, settings: Option<&Settings>, gateway: &str) -> PathBuf {
    let data_dir = settings.map_or(Path::new(DATA_DIR), |settings| &settings.data_dir);
    named.map_or_else(|| data_dir.join("envoy").join(gateway), Path::to_owned)
}

/// Where the agent looks for it.
fn directory_of(settings: &Settings, gateway: &str) -> PathBuf {
    runtime_directory(None, Some(settings), gateway)
}

/// The same where the settings cannot be read, and why they cannot. Nobody knows what `data_dir` they have: where it is not the
/// default, that may hold another Envoy, or one of long ago.
pub(super) fn without_settings<'a>(
    error: anyhow::Error,
    named: Option<&'a Path>,
    with_name: &str,
) -> anyhow::Result<(anyhow::Error, &'a Path)> {
    let error = error.downcast::<SettingsError>()?;
    match named {
        Some(directory) => Ok((error.into(), directory)),
        None => {
            let fix = format!("mend them; {with_name}");
            Err(Failure::new("the settings cannot be read")
                .because(error)
                .fix(fix)
                .into())
        }
    }
}

pub(super) const ADMIN_SOCKET: &str = "admin.sock";

/// The agent's own default.
const DATA_DIR: &str = "/opt/portreeve/data";

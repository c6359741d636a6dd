//! `portreeve agent`: flags to the running agent.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio::runtime::Runtime;

use super::failure::Failure;
use crate::agent::settings::Flags;

/// Run the agent
///
/// It watches documents, Consul and Vault, and keeps Envoy configured. SIGHUP reads the settings again, SIGTERM
/// drains and stops.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A file or directory of settings and documents; may be given several times, later ones win.
    #[arg(long, value_name = "PATH")]
    config: Vec<PathBuf>,
    /// Everything on this machine: documents from -config, Envoy as a child, loopback listeners.
    #[arg(long)]
    dev: bool,
    /// With -dev: use the Consul agent at CONSUL_HTTP_ADDR or 127.0.0.1:8500.
    #[arg(long)]
    dev_consul: bool,
    /// With -dev: use Vault at VAULT_ADDR or 127.0.0.1:8200.
    #[arg(long)]
    dev_vault: bool,
    /// Where listeners without an address listen.
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<IpAddr>,
    /// Where the agent keeps what survives a restart.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// This agent's name in status and in Envoy's node id; the host's name by default.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// A gateway to serve; may be given several times.
    #[arg(long, value_name = "NAME")]
    gateway: Vec<String>,
    /// trace, debug, info, warn or error.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Log JSON, one object a line.
    #[arg(long)]
    log_json: bool,
    /// The unix socket of the agent's API; `api.sock` in the data directory by default.
    #[arg(
        long,
        value_name = "PATH",
        env = "PORTREEVE_API_SOCKET",
        hide_env_values = true
    )]
    api_socket: Option<PathBuf>,
}

pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let flags = Flags {
        config: arguments.config,
        dev: arguments.dev,
        dev_consul: arguments.dev_consul,
        dev_vault: arguments.dev_vault,
        bind: arguments.bind,
        data_dir: arguments.data_dir,
        node: arguments.node,
        gateways: arguments.gateway,
        log_level: arguments.log_level,
        log_json: arguments.log_json,
        api_socket: arguments.api_socket,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new("cannot start the agent's threads").because(error))?;
    run_to_end(runtime, crate::agent::app::run(flags))
}

/// What is left when all has been stopped is a read of a file system that hangs. It would hold the process for ever, and nobody
/// waits for its answer.
const LAST_CALLS: Duration = Duration::from_secs(2);

fn run_to_end<T>(runtime: Runtime, work: impl Future<Output = T>) -> T {
    let outcome = runtime.block_on(work);
    runtime.shutdown_timeout(LAST_CALLS);
    outcome
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_call_that_hangs_holds_nobody() {
        let (end, hangs) = mpsc::channel::<()>();
        let (done, is_done) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = Runtime::new().unwrap();
            let outcome = run_to_end(runtime, async move {
                let (started, has_started) = tokio::sync::oneshot::channel();
                // As it reads from a server that is away.
                tokio::task::spawn_blocking(move || {
                    _ = started.send(());
                    hangs.recv()
                });
                has_started.await.unwrap();
                7
            });
            done.send(outcome).unwrap();
        });
        let outcome = is_done.recv_timeout(Duration::from_secs(60));
        drop(end);
        assert_eq!(outcome, Ok(7));
    }
}

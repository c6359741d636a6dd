//! `portreeve proxy`: what Envoys are given and what they made of it.

use std::process::ExitCode;

use serde_json::Value;

use super::api_client::{ApiArguments, ApiClient};
use super::runtime::block_on;
use super::table::Table;
use super::terminal::Terminal;
use super::translate;
use crate::agent::log_format::escaped;
use crate::status::EnvoyStatus;

/// Look at the Envoys of a running agent
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show the connected Envoys, and what each acknowledged, refused or waits for
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: ApiArguments,
    },
    /// Print what the Envoys of a gateway are given, as protojson without secrets
    Config {
        /// The gateway; needed where the agent serves several.
        #[arg(long, value_name = "NAME")]
        gateway: Option<String>,
        /// cluster, endpoint, secret, listener, scoped_route, route or runtime.
        #[arg(long, value_name = "KIND", conflicts_with = "dump")]
        kind: Option<String>,
        /// Only the resource of this name.
        #[arg(long, value_name = "NAME", conflicts_with = "dump")]
        name: Option<String>,
        /// Ask the supervised Envoy itself what it holds.
        #[arg(long)]
        dump: bool,
        #[command(flatten)]
        api: ApiArguments,
    },
}

pub fn run(arguments: &Arguments, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
    match &arguments.command {
        Command::Status { json, api } => {
            let envoys: Vec<EnvoyStatus> = block_on(ApiClient::new(api)?.get("/v1/envoys", &[]))?;
            if *json {
                terminal.json(&envoys)?;
            } else if envoys.is_empty() {
                terminal.line("No Envoy is connected.")?;
            } else {
                terminal.write(&envoys_table(&envoys).render())?;
                write_refusals(&envoys, terminal)?;
            }
        }
        Command::Config {
            gateway,
            kind,
            name,
            dump,
            api,
        } => {
            let path = if *dump {
                "/v1/envoy/config_dump"
            } else {
                "/v1/resources"
            };
            let given = [("gateway", gateway), ("kind", kind), ("name", name)];
            let query: Vec<(&str, &str)> = given
                .iter()
                .filter_map(|(key, value)| Some((*key, value.as_deref()?)))
                .collect();
            let shown: Value = block_on(ApiClient::new(api)?.get(path, &query))?;
            if let Some(name) = name {
                translate::find(&shown, name, kind.as_deref())?;
            }
            terminal.json(&shown)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Connected Envoys, a line each.
pub fn envoys(envoys: &[EnvoyStatus]) -> Table {
    envoys_table(envoys)
}

fn envoys_table(envoys: &[EnvoyStatus]) -> Table {
    let mut table = Table::new(&[
        "Node",
        "Gateway",
        "Version",
        "xDS",
        "State",
        "Acknowledged",
        "Pending",
        "Refused",
        "Peer",
    ]);
    for envoy in envoys {
        let refused = envoy.refused().count();
        let state = match (envoy.settled, refused) {
            (true, _) => "settled",
            (false, 0) => "catching up",
            (false, _) => "refusing",
        };
        table.row([
            envoy.node.clone(),
            envoy.gateway.clone(),
            envoy.version.clone().unwrap_or_else(|| "-".to_owned()),
            envoy.variant.clone(),
            state.to_owned(),
            envoy
                .kinds
                .iter()
                .map(|kind| kind.acknowledged)
                .sum::<usize>()
                .to_string(),
            envoy.pending().to_string(),
            refused.to_string(),
            envoy.peer.clone(),
        ]);
    }
    table
}

fn write_refusals(envoys: &[EnvoyStatus], terminal: &mut Terminal) -> std::io::Result<()> {
    for envoy in envoys {
        for (kind, refused) in envoy.refused() {
            let kind = format!("{kind:?}").to_lowercase();
            terminal.line("")?;
            terminal.line(format!(
                "{} refuses {kind} {:?}:",
                escaped(&envoy.node),
                refused.name
            ))?;
            terminal.line(format!("  {}", escaped(&refused.message)))?;
        }
        for kind in &envoy.kinds {
            for wanted in &kind.wanted {
                terminal.line("")?;
                terminal.line(format!(
                    "{} waits for {wanted:?}, which nobody holds",
                    escaped(&envoy.node)
                ))?;
            }
        }
    }
    Ok(())
}

//! `portreeve refresh`.

use std::process::ExitCode;

use serde_json::Value;

use super::api_client::{ApiArguments, ApiClient};
use super::runtime::block_on;
use super::terminal::Terminal;

/// Make a running agent look at its polled sources now
///
/// Consul is watched and needs none of this; Vault has no watch.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    api: ApiArguments,
}

pub fn run(arguments: &Arguments, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
    let _: Value = block_on(ApiClient::new(&arguments.api)?.post("/v1/refresh", &[], None))?;
    terminal.line("The agent reads the sources that it polls; `portreeve status` shows what they say.")?;
    Ok(ExitCode::SUCCESS)
}

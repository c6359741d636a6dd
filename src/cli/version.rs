//! `portreeve version`.

use std::process::ExitCode;

use super::terminal::Terminal;

pub const NUMBER: &str = env!("CARGO_PKG_VERSION");

/// Print the version of this program
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
    if arguments.json {
        terminal.json(&serde_json::json!({ "version": NUMBER, "envoy": ENVOYS }))?;
    } else {
        terminal.write(&text())?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn text() -> String {
    format!("Portreeve v{NUMBER}\nTested with Envoy {ENVOYS}\n")
}

const ENVOYS: &str = "1.36 to 1.40";

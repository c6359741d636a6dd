//! The tree of commands and flags. Help, completions and the reference are made from it.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use super::{
    agent, apply, completion, envoy, explain, fmt, plan, proxy, refresh, setup, status, translate, validate,
    version,
};
use crate::diagnostics::suggestion;

/// A gateway agent: HCL documents, Consul and Vault in, Envoy configuration out.
///
/// Long flags take one dash or two, and their value after = or a space.
#[derive(Debug, Parser)]
#[command(name = "portreeve", version = version::NUMBER, disable_version_flag = true, max_term_width = 100)]
pub struct Arguments {
    /// Print the version.
    #[arg(long, short = 'v', action = clap::ArgAction::Version)]
    version: Option<bool>,
    /// Never color the output. The environment variable NO_COLOR does the same.
    #[arg(long, global = true, display_order = 900)]
    pub no_color: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Agent(agent::Arguments),
    Validate(validate::Arguments),
    Fmt(fmt::Arguments),
    Plan(plan::Arguments),
    Apply(apply::Arguments),
    Status(status::Arguments),
    Explain(explain::Arguments),
    Translate(translate::Arguments),
    Proxy(proxy::Arguments),
    Envoy(envoy::Arguments),
    Setup(setup::Arguments),
    Refresh(refresh::Arguments),
    Version(version::Arguments),
    Completion(completion::Arguments),
}

pub fn parse(arguments: Vec<OsString>) -> Result<Arguments, clap::Error> {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(arguments)?;
    Arguments::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Without an environment of its own: what the reference and the completions show is the same everywhere.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// For a command that is none: one of that name, or nearly, stands below another.
pub fn deeper(error: &clap::Error) -> String {
    let (Some(ContextValue::String(given)), None) = (
        error.get(ContextKind::InvalidSubcommand),
        error.get(ContextKind::SuggestedSubcommand),
    ) else {
        return String::new();
    };
    let command = command();
    let below = command.get_subcommands().flat_map(|outer| {
        let inner = outer.get_subcommands().map(clap::Command::get_name);
        inner.map(move |inner| (outer.get_name(), inner))
    });
    let below: Vec<(&str, &str)> = below.collect();
    let near = suggestion(given, below.iter().map(|(_, inner)| *inner));
    let found = near.and_then(|near| below.iter().find(|(_, inner)| *inner == near));
    found.map_or_else(String::new, |(outer, inner)| {
        format!("\n  tip: did you mean 'portreeve {outer} {inner}'?\n")
    })
}

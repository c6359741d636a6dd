//! `portreeve completion`.

use std::process::ExitCode;

use clap_complete::Shell;

use super::arguments;
use super::terminal::Terminal;

/// Print a completion script
///
/// bash: portreeve completion bash > /etc/bash_completion.d/portreeve
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[arg(value_name = "SHELL", value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

pub fn run(arguments: &Arguments, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
    let shell = match arguments.shell.as_str() {
        "zsh" => Shell::Zsh,
        "fish" => Shell::Fish,
        _ => Shell::Bash,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut arguments::command(), "portreeve", &mut script);
    terminal.write(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

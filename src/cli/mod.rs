//! The command line: what operators and scripts call.
//!
//! In: arguments, the environment, files, and the agent's API. Out: text or JSON on standard output, problems on
//! standard error, an exit code that scripts can rely on. One file per command; nothing here decides anything about
//! routing, it asks the same code that the agent runs.
//!
//! ```text
//!  arguments (clap) ──> command ──┬─> documents, offline ──> config, resolve, translate   (validate, explain, ...)
//!                                 ├─> api_client ──────────> a running agent              (status, proxy, ...)
//!                                 └─> kv ──────────────────> Consul                       (plan, apply)
//! ```

mod agent;
mod api_client;
mod apply;
mod arguments;
mod bounds;
mod change_set;
mod completion;
mod documents;
mod drain;
mod envoy;
mod explain;
mod failure;
mod fmt;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod kv;
mod offline;
mod panic_hook;
mod plan;
mod proxy;
mod reference;
mod refresh;
mod report;
mod runtime;
mod setup;
mod single_dash;
mod status;
mod table;
mod terminal;
mod translate;
mod unified_diff;
mod validate;
mod version;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;

use arguments::{Arguments, Command};
pub use panic_hook::install_panic_hook;
pub use reference::reference;
use terminal::Terminal;

/// What a script can tell apart. `plan` answers 0, 1 and 255, as Nomad's does.
const FAILED: u8 = 1;
const PLAN_FAILED: u8 = 255;
/// Another start ends the same way until the settings change: EX_CONFIG of sysexits.h.
const KEPT_AWAY: u8 = 78;

/// Runs one command to its end.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = single_dash::to_double(arguments).collect();
    // Flags of the program may stand before the command.
    let is_flag = |argument: &&OsString| argument.as_encoded_bytes().starts_with(b"-");
    let command = arguments.iter().skip(1).find(|argument| !is_flag(argument));
    let is_plan = command.is_some_and(|command| command == "plan");
    let failed = ExitCode::from(if is_plan { PLAN_FAILED } else { FAILED });
    let mut terminal = Terminal::standard();
    let parsed = match arguments::parse(arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            let text = match error.kind() {
                ErrorKind::DisplayVersion => version::text(),
                _ => single_dash::shown(&(error.render().to_string() + &arguments::deeper(&error))),
            };
            let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            let written = if asked_for {
                terminal.write(&text)
            } else {
                terminal.write_error(&text)
            };
            // Nobody reads us any more: there is nobody to tell.
            let _ = written.and_then(|()| terminal.flush());
            return if asked_for { ExitCode::SUCCESS } else { failed };
        }
    };
    if parsed.no_color {
        terminal.color = false;
    }
    let result = dispatch(parsed, &mut terminal).and_then(|code| {
        terminal.flush()?;
        Ok(code)
    });
    match result {
        Ok(code) => code,
        Err(error) if failure::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // As above.
            let _ = failure::write(&error, &mut terminal);
            failure::exit_code(&error).map_or(failed, ExitCode::from)
        }
    }
}

fn dispatch(arguments: Arguments, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Agent(arguments) => agent::run(arguments),
        Command::Validate(arguments) => validate::run(&arguments, terminal),
        Command::Fmt(arguments) => fmt::run(&arguments, terminal),
        Command::Plan(arguments) => plan::run(&arguments, terminal),
        Command::Apply(arguments) => apply::run(&arguments, terminal),
        Command::Status(arguments) => status::run(&arguments, terminal),
        Command::Explain(arguments) => explain::run(&arguments, terminal),
        Command::Translate(arguments) => translate::run(&arguments, terminal),
        Command::Proxy(arguments) => proxy::run(&arguments, terminal),
        Command::Envoy(arguments) => envoy::run(&arguments, terminal),
        Command::Setup(arguments) => setup::run(&arguments, terminal),
        Command::Refresh(arguments) => refresh::run(&arguments, terminal),
        Command::Version(arguments) => version::run(&arguments, terminal),
        Command::Completion(arguments) => completion::run(&arguments, terminal),
    }
}

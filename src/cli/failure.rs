//! The one place that turns an error into what a user reads: what, why, and what to do.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use super::terminal::{Color, Terminal};
use crate::agent::settings::{SettingsError, without_tokens};
use crate::diagnostics;

/// A command cannot go on.
#[derive(Debug)]
pub struct Failure {
    what: String,
    fix: Option<String>,
    code: Option<u8>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Failure {
    pub fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            fix: None,
            code: None,
            source: None,
        }
    }

    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// For whoever starts us again by what we ended with.
    pub fn exit(mut self, code: u8) -> Self {
        self.code = Some(code);
        self
    }
}

/// The one of its own that a failure has.
pub fn exit_code(error: &anyhow::Error) -> Option<u8> {
    error.downcast_ref::<Failure>()?.code
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl StdError for Failure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

/// Whoever reads our output has closed it, as `head` does: no error of ours.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

pub fn write(error: &anyhow::Error, terminal: &mut Terminal) -> io::Result<()> {
    let settings = error.chain().find_map(|cause| cause.downcast_ref());
    if let Some(SettingsError::Invalid(problems)) = settings {
        for (problem, text) in problems {
            let rendered = diagnostics::render(problem, Some(&without_tokens(text)), terminal.color);
            terminal.error_line(rendered)?;
        }
    }
    let label = terminal.paint(Color::Red, "Error:");
    terminal.error_line(format!("{label} {error}"))?;
    let mut said = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Many errors repeat their cause in their own words.
        if !said.contains(&cause) {
            terminal.error_line(format!("  because: {cause}"))?;
            said = cause;
        }
    }
    let fixes = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<Failure>()?.fix.as_deref());
    for fix in fixes {
        terminal.error_line(format!("  fix: {fix}"))?;
    }
    Ok(())
}

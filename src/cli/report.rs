//! Diagnostics as commands show them.

use std::process::ExitCode;

use serde_json::json;

use super::documents::Texts;
use super::terminal::{Color, Terminal};
use crate::diagnostics::{Diagnostic, Severity, render};

/// What a command found, with the texts that it is about.
pub struct Report {
    pub diagnostics: Vec<Diagnostic>,
    pub texts: Texts,
}

impl Report {
    pub fn errors(&self) -> usize {
        self.count(Severity::Error)
    }

    pub fn warnings(&self) -> usize {
        self.count(Severity::Warning)
    }

    fn count(&self, severity: Severity) -> usize {
        self.diagnostics
            .iter()
            .filter(|diagnostic| diagnostic.severity == severity)
            .count()
    }

    /// Document by document, in the order of their lines.
    pub fn sort(&mut self) {
        self.diagnostics.sort_by(|one, other| {
            let place = |diagnostic: &Diagnostic| {
                diagnostic
                    .origin
                    .as_ref()
                    .map(|origin| (origin.document.clone(), origin.span.start))
            };
            place(one).cmp(&place(other)).then_with(|| one.cmp(other))
        });
        self.diagnostics.dedup();
    }

    pub fn write(&self, terminal: &mut Terminal) -> std::io::Result<()> {
        let text = self.render(terminal.color);
        terminal.write(&text)
    }

    /// Where standard output carries something else.
    pub fn write_to_error(&self, terminal: &mut Terminal) -> std::io::Result<()> {
        let text = self.render(terminal.color);
        terminal.write_error(&text)
    }

    fn render(&self, color: bool) -> String {
        let mut shown = String::new();
        for diagnostic in &self.diagnostics {
            let text = diagnostic
                .origin
                .as_ref()
                .and_then(|origin| self.texts.get(&origin.document));
            shown.push_str(&render(diagnostic, text.map(|text| &**text), color));
            shown.push_str("\n\n");
        }
        shown
    }

    pub fn write_summary(&self, documents: usize, terminal: &mut Terminal) -> std::io::Result<()> {
        let (errors, warnings) = (self.errors(), self.warnings());
        let found = match (errors, warnings) {
            (0, 0) => terminal.paint(Color::Green, "valid"),
            (0, _) => terminal.paint(
                Color::Yellow,
                &format!("valid, with {}", counted(warnings, "warning")),
            ),
            (_, 0) => terminal.paint(Color::Red, &counted(errors, "error")),
            _ => terminal.paint(
                Color::Red,
                &format!("{}, {}", counted(errors, "error"), counted(warnings, "warning")),
            ),
        };
        terminal.line(format!("{}: {found}", counted(documents, "document")))
    }

    pub fn write_json(&self, documents: usize, terminal: &mut Terminal) -> anyhow::Result<()> {
        terminal.json(&json!({
            "documents": documents,
            "errors": self.errors(),
            "warnings": self.warnings(),
            "diagnostics": self.diagnostics,
        }))
    }

    pub fn exit_code(&self, strict: bool) -> ExitCode {
        let bad = self.errors() > 0 || (strict && self.warnings() > 0);
        ExitCode::from(u8::from(bad))
    }
}

/// `1 error`, `2 errors`.
pub fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

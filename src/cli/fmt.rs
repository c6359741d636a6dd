//! `portreeve fmt`: one way to write documents.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::documents::{self, STDIN};
use super::failure::Failure;
use super::report::Report;
use super::terminal::Terminal;
use super::unified_diff;
use crate::config::document_schema;
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::{self, Limits, NotHcl, Source};
use crate::model::{Document, Span};

/// Rewrite documents in the canonical format
///
/// Prints the names of the files it changes. HCL only: JSON is left alone, or with -hcl shown as HCL. Exit code 1 when a file is no HCL, or with
/// -check when one is not formatted.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Files and directories; - formats standard input to standard output.
    #[arg(default_value = ".", value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Write nothing; exit code 1 when a file is not formatted.
    #[arg(long)]
    check: bool,
    /// Print what would change.
    #[arg(long)]
    diff: bool,
    /// Only print the names of the files that are not formatted.
    #[arg(long)]
    list: bool,
    /// Print JSON documents as HCL; no file is changed.
    #[arg(long, conflicts_with_all = ["check", "diff", "list"])]
    hcl: bool,
}

pub fn run(arguments: &Arguments, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
    let given = documents::read(&arguments.paths)?;
    let writes = !arguments.check && !arguments.list;
    let mut report = Report {
        texts: given.texts(),
        diagnostics: given.problems,
    };
    if arguments.hcl {
        for document in given.documents.iter().filter(|document| is_json(document)) {
            match as_hcl(document) {
                Ok(text) => terminal.write(&text)?,
                Err(problems) => report.diagnostics.extend(problems),
            }
        }
        report.write(terminal)?;
        return Ok(ExitCode::from(u8::from(report.errors() > 0)));
    }
    let mut unformatted = 0;
    for document in given.documents.iter().chain(&given.settings) {
        if is_json(document) {
            continue;
        }
        let formatted = match hcl::format(&document.text) {
            Ok(formatted) => formatted,
            Err(error) => {
                report.diagnostics.push(not_hcl(document, &error));
                continue;
            }
        };
        let name = document.id.as_str();
        let same = formatted == *document.text;
        unformatted += usize::from(!same);
        if name == STDIN && writes && !arguments.diff {
            terminal.write(&formatted)?;
            continue;
        }
        if same {
            continue;
        }
        terminal.line(name)?;
        if arguments.diff {
            terminal.write(&unified_diff::render(name, &document.text, &formatted, terminal))?;
        }
        if writes && name != STDIN {
            replace(Path::new(name), &formatted)
                .map_err(|error| Failure::new(format!("cannot write {name}")).because(error))?;
        }
    }
    report.write(terminal)?;
    let bad = report.errors() > 0 || (arguments.check && unformatted > 0);
    Ok(ExitCode::from(u8::from(bad)))
}

fn is_json(document: &Document) -> bool {
    document.text.trim_start().starts_with('{')
}

/// What it says, not how: JSON has no comments to lose.
fn as_hcl(document: &Document) -> Result<String, Vec<Diagnostic>> {
    let source = Source::new(document.id.clone(), document.text.clone());
    let body = hcl::parse(&source, document_schema(), &Limits::default())?;
    let problems = hcl::check(&source, &body, document_schema());
    if !problems.is_empty() {
        return Err(problems);
    }
    hcl::to_hcl(&body).map_err(|error| {
        let said = Diagnostic::error(
            Code::SyntaxError,
            format!("this cannot be written as HCL: {error}"),
        );
        vec![
            said.at(source.origin(Span::default()))
                .because("some value has no form there")
                .fix("keep it as JSON, which means the same"),
        ]
    })
}

fn not_hcl(document: &Document, error: &NotHcl) -> Diagnostic {
    let source = Source::new(document.id.clone(), document.text.clone());
    let start = error.offset().min(document.text.len());
    let end = document.text[start..]
        .chars()
        .next()
        .map_or(start, |next| start + next.len_utf8());
    Diagnostic::error(Code::SyntaxError, format!("not valid HCL: {error}"))
        .at(source.origin(Span { start, end }))
        .because("left as it is")
        .fix("`portreeve validate` says more about what is wrong with it")
}

/// All or nothing: a reader, or a watching agent, never sees half a file. A symlink stays one.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let target = std::fs::canonicalize(path)?;
    let permissions = std::fs::metadata(&target)?.permissions();
    let name = target
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    // Hidden: the agent passes by files that begin with a dot.
    let temporary = target.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temporary)
        .and_then(|mut file| {
            file.set_permissions(std::fs::Permissions::from_mode(permissions.mode()))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&temporary, &target));
    if written.is_err() {
        // The write's own error is the one to tell.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

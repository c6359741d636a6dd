//! Documents as commands are given them: files, directories, standard input.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::failure::Failure;
use crate::agent::settings::settings_problems;
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::Limits;
use crate::model::{Document, DocumentId, Origin, Span};
use crate::sources::directory::read_documents;

/// What `-` is called in messages.
pub const STDIN: &str = "<stdin>";

/// What stands below the given paths.
#[derive(Debug, Default)]
pub struct Given {
    pub documents: Vec<Document>,
    /// Files of the agent's own settings, which may stand beside documents.
    pub settings: Vec<Document>,
    pub problems_of_settings: Vec<Diagnostic>,
    /// Path and reason of what may be a directory of documents that is not there.
    pub absent: Vec<(String, String)>,
    /// Files that could not be read.
    pub problems: Vec<Diagnostic>,
}

pub fn read(paths: &[PathBuf]) -> anyhow::Result<Given> {
    let mut given = Given::default();
    for path in paths {
        read_path(path, &mut given)?;
    }
    Ok(given)
}

/// The same, where finding nothing is a mistake: a slip in a path must not pass for "all is well".
pub fn read_some(paths: &[PathBuf]) -> anyhow::Result<Given> {
    let mut given = Given::default();
    for path in paths {
        let before = given.files();
        read_path(path, &mut given)?;
        if given.files() == before {
            return Err(nothing_below(path));
        }
    }
    Ok(given)
}

fn read_path(path: &Path, given: &mut Given) -> anyhow::Result<()> {
    if path == Path::new("-") {
        given.documents.push(standard_input()?);
        return Ok(());
    }
    if let Err(error) = std::fs::metadata(path) {
        return Err(Failure::new(format!("cannot read {}", path.display()))
            .because(error)
            .into());
    }
    // Settings are looked at too, by their own schema.
    let listing = read_documents(path, |_, _| false).map_err(|problem| Failure::new(problem.to_string()))?;
    for document in listing.documents {
        // Where an agent looks for them: beside the documents, not in directories below.
        let file = Path::new(document.id.as_str());
        let found = (file == path || file.parent() == Some(path))
            .then(|| settings_problems(document.id.as_str(), &document.text))
            .flatten();
        if let Some(problems) = found {
            given.problems_of_settings.extend(problems);
            given.settings.push(document);
        } else {
            given.documents.push(document);
        }
    }
    given.absent.extend(listing.absent);
    given.problems.extend(
        listing
            .unreadable
            .into_iter()
            .map(|(path, reason)| unreadable_file(&path, &reason)),
    );
    Ok(())
}

fn nothing_below(path: &Path) -> anyhow::Error {
    let names = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut others: Vec<String> = names
        .filter(|entry| entry.path().is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.'))
        .collect();
    others.sort();
    let failure = Failure::new(format!("no document in {}, nor below it", path.display())).because(
        "documents are files whose name ends in .hcl or .json, and does not begin with \".\" or \"#\"",
    );
    match others.first() {
        None => failure.fix("name the directory, or the files, that hold the documents"),
        Some(other) => failure.fix(format!(
            "rename what should count ({other:?} does not), or name it as a file: any name will do"
        )),
    }
    .into()
}

fn standard_input() -> anyhow::Result<Document> {
    let mut text = String::new();
    let limit = Limits::default().document_bytes as u64 + 1;
    std::io::stdin()
        .take(limit)
        .read_to_string(&mut text)
        .map_err(|error| Failure::new("cannot read standard input").because(error))?;
    Ok(Document {
        id: DocumentId::File(STDIN.into()),
        text: text.into(),
        order: 0,
        version: 0,
    })
}

fn unreadable_file(path: &str, reason: &str) -> Diagnostic {
    Diagnostic::error(
        Code::SourceProblem,
        format!("this file cannot be taken: {reason}"),
    )
    .at(Origin {
        document: DocumentId::File(path.into()),
        span: Span::default(),
        line: 1,
        column: 1,
    })
    .because("an agent would not take it either")
    .fix("make it readable UTF-8 text of at most 512 KiB, or move it out of the directory")
}

/// The text of each document, for snippets.
pub type Texts = std::collections::BTreeMap<DocumentId, Arc<str>>;

impl Given {
    /// Everything that was found, good or bad.
    fn files(&self) -> usize {
        self.documents.len() + self.settings.len() + self.problems.len()
    }

    pub fn texts(&self) -> Texts {
        let all = self.documents.iter().chain(&self.settings);
        all.map(|document| (document.id.clone(), document.text.clone()))
            .collect()
    }
}

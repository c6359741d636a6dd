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
    /// Files that could not be read.
    pub problems: Vec<Diagnostic>,
}

pub fn read(paths: &[PathBuf]) -> anyhow::Result<Given> {
    let mut given = Given::default();
    for path in paths {
        if path == Path::new("-") {
            given.documents.push(standard_input()?);
            continue;
        }
        if let Err(error) = std::fs::metadata(path) {
            return Err(Failure::new(format!("cannot read {}", path.display()))
                .because(error)
                .into());
        }
        // Settings are looked at too, by their own schema.
        let listing =
            read_documents(path, |_, _| false).map_err(|problem| Failure::new(problem.to_string()))?;
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
        given.problems.extend(
            listing
                .unreadable
                .into_iter()
                .map(|(path, reason)| unreadable_file(&path, &reason)),
        );
    }
    Ok(given)
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
    pub fn texts(&self) -> Texts {
        let all = self.documents.iter().chain(&self.settings);
        all.map(|document| (document.id.clone(), document.text.clone()))
            .collect()
    }
}

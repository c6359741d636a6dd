//! The files of `-config` paths: which hold settings, and the settings of all of them as one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::SettingsError;
use super::schema::settings_schema;
use super::words::{self, Side, Weight, Word};
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::{self, Block, Body, Limits, Source};
use crate::model::{DocumentId, Span};
use crate::sources::bounded_file;

/// Of all `-config` paths together. A settings file is a page or two.
const FILES: usize = 100_000;

/// What the `-config` paths hold.
pub(super) struct Read {
    /// All settings, later files over earlier ones, and where each stands.
    pub settings: Body,
    pub source: Source,
    /// The texts of the settings files, for what is shown of them.
    pub texts: Vec<(DocumentId, Arc<str>)>,
    /// Directories, and files that hold documents.
    pub document_paths: Vec<PathBuf>,
}

pub(super) fn read(paths: &[PathBuf]) -> Result<Read, SettingsError> {
    let mut problems: Vec<(Diagnostic, Arc<str>)> = Vec::new();
    let mut document_paths = Vec::new();
    let mut found: Vec<(Source, Body)> = Vec::new();
    for path in paths {
        let alone = !path.is_dir();
        if !alone {
            document_paths.push(path.clone());
        }
        for file in files_of(path)? {
            let (source, is_text) = text_of(&file)?;
            match settings_of(&source, alone, is_text) {
                Ok(Some(body)) => {
                    let text = source.text().clone();
                    let said = hcl::check(&source, &body, settings_schema());
                    problems.extend(said.into_iter().map(|problem| (problem, text.clone())));
                    found.push((source, body));
                }
                Ok(None) if alone => document_paths.push(file),
                Ok(None) => {}
                Err(said) => {
                    problems.extend(said.into_iter().map(|problem| (problem, source.text().clone())))
                }
            }
        }
    }
    if !problems.is_empty() {
        return Err(SettingsError::Invalid(problems));
    }
    let (sources, bodies): (Vec<Source>, Vec<Body>) = found.into_iter().unzip();
    let texts: Vec<(DocumentId, Arc<str>)> = sources
        .iter()
        .map(|source| (source.document.clone(), source.text().clone()))
        .collect();
    let (source, bases) = Source::joined(sources);
    let mut settings = Body::default();
    for (mut body, base) in bodies.into_iter().zip(bases) {
        body.shift(base);
        merge(&mut settings, body);
    }
    let read = Read {
        settings,
        source,
        texts,
        document_paths,
    };
    // What each file may say alone, two together may not: a token file here and AppRole there.
    let together = hcl::check(&read.source, &read.settings, settings_schema());
    if together.is_empty() {
        Ok(read)
    } else {
        let shown = together.into_iter().map(|problem| read.with_text(problem));
        Err(SettingsError::Invalid(shown.collect()))
    }
}

impl Read {
    pub fn with_text(&self, problem: Diagnostic) -> (Diagnostic, Arc<str>) {
        let document = problem.origin.as_ref().map(|origin| &origin.document);
        let text = self
            .texts
            .iter()
            .find(|(id, _)| Some(id) == document)
            .map_or_else(|| Arc::from(""), |(_, text)| text.clone());
        (problem, text)
    }
}

/// Files of a `-config` path in lexical order.
fn files_of(path: &Path) -> Result<Vec<PathBuf>, SettingsError> {
    let read_error = |source| SettingsError::Read {
        path: path.to_owned(),
        source,
    };
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(read_error)? {
        let file = entry.map_err(read_error)?.path();
        let known = file
            .extension()
            .is_some_and(|extension| extension == "hcl" || extension == "json");
        let hidden = file
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if known && !hidden && file.is_file() {
            files.push(file);
        }
        if files.len() > FILES {
            return Err(read_error(std::io::Error::other(format!(
                "more than {FILES} files"
            ))));
        }
    }
    files.sort();
    Ok(files)
}

/// The text up to the bound, and whether it is text at all.
fn text_of(file: &Path) -> Result<(Source, bool), SettingsError> {
    let read_error = |source| SettingsError::Read {
        path: file.to_owned(),
        source,
    };
    let limit = Limits::default().document_bytes;
    // One byte more: the parser then says that it is too large.
    let bytes = bounded_file::read_start(file, limit as u64 + 1).map_err(read_error)?;
    let text = String::from_utf8_lossy(&bytes);
    // A character that was cut at the bound is no fault of the file's.
    let is_text = matches!(text, std::borrow::Cow::Borrowed(_)) || bytes.len() > limit;
    let id = DocumentId::File(file.to_string_lossy().into());
    Ok((Source::new(id, text.into()), is_text))
}

/// Whether a file among the documents of a `-config` directory holds settings.
pub fn is_settings(path: &Path, text: &str) -> bool {
    let source = Source::new(DocumentId::File(path.to_string_lossy().into()), text.into());
    matches!(settings_of(&source, false, true), Ok(Some(_)))
}

/// The problems of a file that holds settings, or may. None: it holds documents.
pub fn settings_problems(path: &str, text: &Arc<str>) -> Option<Vec<Diagnostic>> {
    let source = Source::new(DocumentId::File(path.into()), text.clone());
    match settings_of(&source, false, true) {
        Ok(Some(body)) => Some(hcl::check(&source, &body, settings_schema())),
        Ok(None) => None,
        Err(problems) => Some(problems),
    }
}

/// None: the file holds documents, good or bad; they are somebody else's. A file that may be settings and cannot be taken
/// as such is an error: without it the agent would run with defaults, and bounds that were written would not hold.
fn settings_of(source: &Source, alone: bool, is_text: bool) -> Result<Option<Body>, Vec<Diagnostic>> {
    let read = if is_text {
        hcl::parse(source, settings_schema(), &Limits::default())
    } else {
        Err(vec![
            Diagnostic::error(Code::SyntaxError, "the file is not UTF-8 text")
                .at(source.origin(Span::default())),
        ])
    };
    let body = match read {
        Ok(body) => body,
        Err(problems) => {
            let words = words::of_broken_text(source.text());
            let telling = words.iter().find(|word| word.weight > Weight::Shape);
            return match telling.or(words.first()) {
                Some(word) if word.side == Side::Documents => Ok(None),
                _ => Err(problems.into_iter().map(says_why_it_matters).collect()),
            };
        }
    };
    let words = words::of_body(&body, source.text().trim_start().starts_with('{'));
    let strongest = |side: Side| {
        let of_side = words.iter().filter(|word| word.side == side);
        of_side.max_by_key(|word| (word.weight, std::cmp::Reverse(word.span.start)))
    };
    match (strongest(Side::Settings), strongest(Side::Documents)) {
        (None, None) if alone => Ok(Some(body)),
        (None, _) => Ok(None),
        (Some(_), None) => Ok(Some(body)),
        (Some(setting), Some(document)) => {
            if setting.weight > Weight::Shape && document.weight > Weight::Shape {
                Err(vec![mixed(source, setting, document)])
            } else {
                Ok((setting.weight >= document.weight).then_some(body))
            }
        }
    }
}

fn says_why_it_matters(mut problem: Diagnostic) -> Diagnostic {
    let why = "the file may hold settings of the agent, which must not be left out";
    problem.reason = Some(match problem.reason.take() {
        Some(reason) => format!("{reason}; {why}"),
        None => why.to_owned(),
    });
    problem
}

fn mixed(source: &Source, setting: &Word, document: &Word) -> Diagnostic {
    let what = match setting.weight {
        Weight::Exact => "is a setting of the agent",
        _ => "looks like a setting of the agent",
    };
    Diagnostic::error(
        Code::Conflict,
        format!(
            "{:?} {what} in a file of documents ({:?})",
            setting.name, document.name
        ),
    )
    .at(source.origin(setting.span))
    .fix("keep settings and documents in files of their own")
}

/// Later files over earlier ones: attribute by attribute, block by block.
fn merge(into: &mut Body, from: Body) {
    for attribute in from.attributes {
        into.attributes.retain(|known| known.name != attribute.name);
        into.attributes.push(attribute);
    }
    for block in from.blocks {
        let same = |known: &&mut Block| known.kind == block.kind && block.kind != "client";
        match into.blocks.iter_mut().find(same) {
            Some(known) => merge(&mut known.body, block.body),
            None => into.blocks.push(block),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// None: a document. Else what is said of the settings.
    fn look(text: &str) -> Option<Vec<String>> {
        settings_problems("limits.hcl", &text.into())
            .map(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_may_be_settings_is_never_taken_for_a_document() {
        for (text, said) in [
            (
                "kv_document {\n  vault_paths = [\"a\"]\n}\n",
                "did you mean \"kv_documents\"?",
            ),
            (
                "kv_documents {\n  vault_paths = [\"a\"\n}\n",
                "must not be left out",
            ),
            (
                "kv_documents {\n  vault_path = [\"a\"]\n}\n",
                "did you mean \"vault_paths\"?",
            ),
            ("log_levle = \"debug\"\n", "did you mean \"log_level\"?"),
            ("gateway = [\"edge\"]\n", "did you mean \"gateways\"?"),
            ("vault_paths = [\"a\"]\n", "unknown attribute \"vault_paths\""),
            ("limits {\n  x = 1\n}\n", "unknown block \"limits\""),
            (
                "{\"kv_document\": {\"vault_paths\": [\"a\"]}}",
                "did you mean \"kv_documents\"?",
            ),
            (
                "{\"kv_documents\": {\"vault_paths\": [\"a\"}}",
                "must not be left out",
            ),
            ("\u{1}\u{2}", "must not be left out"),
            ("gateway \"edge\" {}\nkv_documents {}\n", "in a file of documents"),
            ("gateway \"edge\" {}\nkv_document {}\n", "looks like a setting"),
        ] {
            let found = look(text).unwrap_or_else(|| panic!("a document: {text}"));
            assert!(found.iter().any(|line| line.contains(said)), "{text}: {found:?}");
        }
        let megabyte = "kv_documents {\n".to_owned() + &"# x\n".repeat(300_000);
        assert!(look(&megabyte).unwrap()[0].contains("the bound is"));
    }

    #[test]
    fn a_bad_document_is_no_settings_file() {
        for text in [
            "",
            "# nothing yet\n",
            "gateway \"edge\" {\n",
            "gateway \"edge\" {\n  listenr \"web\" {}\n}\n",
            "gateway {}\n",
            "http_rout \"x\" {}\n",
            "udp_route \"later\" {}\n",
            "http_route \"x\" {}\nretry {}\nfoo = 1\n",
            "upstream \"x\" {\n  }\n  consul {\n  }\n}\n",
            "{\"http_rout\": {\"x\": {}}}",
            "{\"later\": {\"x\": {}}}",
            "{\"http_route\": {\"x\": {}}",
        ] {
            assert_eq!(look(text), None, "{text}");
        }
    }

    #[test]
    fn a_problem_names_the_file_it_stands_in() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let first = file("first.hcl", "\n\nvault {\n  token_file = \"/t\"\n}\n");
        let second = file("second.hcl", "gateways = [\"edge\"]\n");
        let third = file(
            "third.hcl",
            "vault {\n  approle {\n    role_id = \"r\"\n    secret_id_file = \"/s\"\n  }\n}\n",
        );
        let Err(SettingsError::Invalid(problems)) = read(&[first, second, third]) else {
            panic!("both ways to log in were taken");
        };
        let [(problem, text)] = &problems[..] else {
            panic!("{problems:?}")
        };
        assert_eq!(problem.code, Code::Conflict);
        let origin = problem.origin.as_ref().unwrap();
        assert!(origin.document.as_str().ends_with("first.hcl"), "{origin}");
        assert_eq!(origin.line, 3);
        assert!(text.contains("token_file"));
    }
}

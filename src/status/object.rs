use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::programmed::Programmed;
use crate::config::{DocumentState, Object, ObjectKind};
use crate::diagnostics::{Code, Diagnostic, Severity};
use crate::model::DocumentId;
use crate::pipeline::View;

/// Holds, or why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    pub status: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
}

impl Condition {
    fn from_reasons(reasons: Vec<String>) -> Self {
        Self {
            status: reasons.is_empty(),
            reasons,
        }
    }
}

/// One declared object, as far as its document is or was in service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ObjectStatus {
    pub kind: ObjectKind,
    pub name: String,
    pub document: String,
    pub line: u32,
    /// The document's present text is in service, and the object holds its name.
    pub accepted: Condition,
    /// Everything the object names was found.
    pub resolved: Condition,
    /// Envoys that run with the current version of its document.
    pub programmed: Programmed,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Diagnostic>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DocumentPhase {
    /// As it stands in its source.
    InService,
    /// The present text is bad; the last good version is in service.
    LastGood,
    /// Nothing of it is in service.
    OutOfService,
}

impl DocumentPhase {
    pub const ALL: [Self; 3] = [Self::InService, Self::LastGood, Self::OutOfService];

    pub fn of(state: &DocumentState) -> Self {
        match (&state.in_service, state.problems.is_empty()) {
            (Some(_), true) => Self::InService,
            (Some(_), false) => Self::LastGood,
            (None, _) => Self::OutOfService,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::InService => "in_service",
            Self::LastGood => "last_good",
            Self::OutOfService => "out_of_service",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DocumentStatus {
    pub document: String,
    /// `file` or `kv`.
    pub source: String,
    /// Consul's ModifyIndex; 0 for files.
    pub version: u64,
    pub phase: DocumentPhase,
    pub objects: usize,
    pub programmed: Programmed,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Diagnostic>,
}

pub(super) fn documents(view: &View, programmed: &BTreeMap<DocumentId, Programmed>) -> Vec<DocumentStatus> {
    view.snapshot
        .config
        .documents()
        .map(|state| DocumentStatus {
            document: state.document.id.to_string(),
            source: source_of(&state.document.id).to_owned(),
            version: state.document.version,
            phase: DocumentPhase::of(state),
            objects: state.in_service.as_ref().map_or(0, |parsed| parsed.objects.len()),
            programmed: programmed.get(&state.document.id).copied().unwrap_or_default(),
            problems: state.problems.to_vec(),
        })
        .collect()
}

pub fn source_of(document: &DocumentId) -> &'static str {
    match document {
        DocumentId::File(_) => "file",
        DocumentId::Kv(_) => "kv",
        DocumentId::Catalog(_) => "catalog",
    }
}

/// Every object of every document in service, sorted by kind, name and document.
pub(super) fn objects(
    view: &View,
    programmed: &BTreeMap<DocumentId, Programmed>,
    diagnostics: &[Diagnostic],
) -> Vec<ObjectStatus> {
    let config = &view.snapshot.config;
    let by_document = by_document(diagnostics);
    let mut all = Vec::new();
    for state in config.documents() {
        let Some(parsed) = &state.in_service else { continue };
        let id = &state.document.id;
        let said = by_document.get(id).map(Vec::as_slice).unwrap_or_default();
        // The spans of a text that is not in service lead elsewhere.
        let of_text = said.iter().copied().filter(|said| !state.problems.contains(said));
        let by_object = by_object(of_text, &parsed.objects);
        for object in &parsed.objects {
            let key = object.key();
            let mut reasons: Vec<String> = state
                .problems
                .iter()
                .map(|problem| problem.message.clone())
                .collect();
            let holder = config.object(&key).map(|holder| holder.origin());
            if let Some(holder) = holder.filter(|holder| *holder != object.origin()) {
                reasons.push(format!("{holder} holds the name"));
            }
            let own = by_object.get(&start(object)).into_iter().flatten();
            let own: Vec<Diagnostic> = own.map(|diagnostic| (*diagnostic).clone()).collect();
            let unresolved = own
                .iter()
                .filter(|diagnostic| diagnostic.severity == Severity::Error)
                // One Envoy's trouble: `programmed` counts it.
                .filter(|diagnostic| diagnostic.code != Code::EnvoyRejected)
                .map(|diagnostic| diagnostic.message.clone());
            all.push(ObjectStatus {
                kind: key.kind,
                name: key.name.to_string(),
                document: id.to_string(),
                line: object.origin().line,
                accepted: Condition::from_reasons(reasons),
                resolved: Condition::from_reasons(unresolved.collect()),
                programmed: programmed.get(id).copied().unwrap_or_default(),
                diagnostics: own,
            });
        }
    }
    all.sort_by(|one, other| {
        (one.kind, &one.name, &one.document).cmp(&(other.kind, &other.name, &other.document))
    });
    all
}

fn by_document(diagnostics: &[Diagnostic]) -> BTreeMap<&DocumentId, Vec<&Diagnostic>> {
    let mut by_document: BTreeMap<&DocumentId, Vec<&Diagnostic>> = BTreeMap::new();
    for diagnostic in diagnostics {
        if let Some(origin) = &diagnostic.origin {
            by_document.entry(&origin.document).or_default().push(diagnostic);
        }
    }
    by_document
}

/// Of each object, by where it begins, what is said of places in its block: that is the last one that begins before them.
fn by_object<'a>(
    said: impl Iterator<Item = &'a Diagnostic>,
    objects: &[Object],
) -> BTreeMap<usize, Vec<&'a Diagnostic>> {
    let mut starts: Vec<usize> = objects.iter().map(start).collect();
    starts.sort_unstable();
    let mut by_object: BTreeMap<usize, Vec<&Diagnostic>> = BTreeMap::new();
    for diagnostic in said {
        let Some(place) = &diagnostic.origin else { continue };
        let begun = starts.partition_point(|start| *start <= place.span.start);
        if let Some(owner) = begun.checked_sub(1) {
            by_object.entry(starts[owner]).or_default().push(diagnostic);
        }
    }
    by_object
}

fn start(object: &Object) -> usize {
    object.origin().span.start
}

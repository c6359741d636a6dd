//! What stands between the documents that are and those that are wanted.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::bounds::Bounds;
use super::kv::{Current, Wanted, kv_id};
use super::offline::Offline;
use super::report::Report;
use super::terminal::{Color, Terminal};
use super::unified_diff;
use crate::config::document_schema;
use crate::diagnostics::Diagnostic;
use crate::hcl::{self, Body, Limits, Source, Value, ValueKind};
use crate::model::{Document, DocumentId};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Create,
    Update,
    Delete,
}

impl Action {
    fn sign(self) -> &'static str {
        match self {
            Self::Create => "+",
            Self::Update => "~",
            Self::Delete => "-",
        }
    }

    fn color(self) -> Color {
        match self {
            Self::Create => Color::Green,
            Self::Update => Color::Yellow,
            Self::Delete => Color::Red,
        }
    }

    pub fn done(self) -> &'static str {
        match self {
            Self::Create => "created",
            Self::Update => "updated",
            Self::Delete => "deleted",
        }
    }
}

/// One document that differs.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    pub action: Action,
    pub document: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<Arc<str>>,
    /// What a write must find: Consul's ModifyIndex, 0 for "not there".
    pub index: u64,
    pub objects: Vec<ObjectChange>,
    #[serde(skip)]
    pub old: Arc<str>,
    #[serde(skip)]
    pub new: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectChange {
    pub action: Action,
    pub kind: String,
    pub name: String,
}

#[derive(Debug, Default)]
pub struct ChangeSet {
    pub changes: Vec<Change>,
    pub unchanged: usize,
    /// There, and in no file: left alone.
    pub unmanaged: Vec<String>,
}

impl ChangeSet {
    /// `prune`: what no file has is deleted.
    pub fn between(current: &Current, wanted: &BTreeMap<String, Wanted>, prune: bool) -> Self {
        let Current {
            documents: current,
            illegible,
        } = current;
        let mut set = Self::default();
        for (key, wanted) in wanted {
            let document = current.get(key);
            if document.is_some_and(|document| document.text == wanted.text) {
                set.unchanged += 1;
                continue;
            }
            let there = document
                .map(|document| document.version)
                .or_else(|| illegible.get(key).copied());
            set.changes.push(Change {
                action: match there {
                    Some(_) => Action::Update,
                    None => Action::Create,
                },
                document: key.clone(),
                file: Some(wanted.file.clone()),
                index: there.unwrap_or(0),
                objects: object_changes(document.map(|document| &document.text), Some(&wanted.text)),
                old: document.map_or_else(|| "".into(), |document| document.text.clone()),
                new: wanted.text.clone(),
            });
        }
        for (key, document) in current.iter().filter(|(key, _)| !wanted.contains_key(*key)) {
            if !prune {
                set.unmanaged.push(key.clone());
                continue;
            }
            set.changes.push(Change {
                action: Action::Delete,
                document: key.clone(),
                file: None,
                index: document.version,
                objects: object_changes(Some(&document.text), None),
                old: document.text.clone(),
                new: "".into(),
            });
        }
        set
    }

    pub fn count(&self, action: Action) -> usize {
        self.changes
            .iter()
            .filter(|change| change.action == action)
            .count()
    }

    /// Deletions of something that no other change brings: a document that was renamed is none.
    pub fn losses(&self) -> Vec<&Change> {
        let all = self.changes.iter().flat_map(|change| &change.objects);
        let created = all.filter(|object| object.action == Action::Create);
        let created: BTreeSet<_> = created.map(|object| (&object.kind, &object.name)).collect();
        let comes = |lost: &ObjectChange| created.contains(&(&lost.kind, &lost.name));
        self.changes
            .iter()
            .filter(|change| change.action == Action::Delete && !change.objects.iter().all(comes))
            .collect()
    }

    pub fn write(&self, terminal: &mut Terminal) -> std::io::Result<()> {
        for change in &self.changes {
            let from = change
                .file
                .as_deref()
                .map(|file| format!("  ({file})"))
                .unwrap_or_default();
            let head = format!("{} {}{from}", change.action.sign(), change.document);
            terminal.line(terminal.paint(change.action.color(), &head))?;
            for object in &change.objects {
                terminal.line(format!(
                    "    {} {} {:?}",
                    object.action.sign(),
                    object.kind,
                    object.name
                ))?;
            }
            terminal.write(&unified_diff::render(
                &change.document,
                &change.old,
                &change.new,
                terminal,
            ))?;
            terminal.line("")?;
        }
        if !self.unmanaged.is_empty() {
            terminal.line(format!(
                "Left alone, because no file has them (-prune deletes them): {}",
                self.unmanaged.join(", ")
            ))?;
        }
        terminal.line(format!(
            "Plan: {} to create, {} to update, {} to delete, {} unchanged.",
            self.count(Action::Create),
            self.count(Action::Update),
            self.count(Action::Delete),
            self.unchanged,
        ))
    }
}

/// What the documents would say together once changed: problems of the wanted ones, and problems elsewhere that are
/// not there yet. Places are those in the files.
pub fn check(
    current: &BTreeMap<String, Document>,
    wanted: &BTreeMap<String, Wanted>,
    set: &ChangeSet,
    bounds: &Bounds,
) -> Report {
    let deleted: BTreeSet<&str> = set
        .changes
        .iter()
        .filter(|change| change.action == Action::Delete)
        .map(|change| change.document.as_str())
        .collect();
    let mut after: Vec<Document> = current
        .values()
        .filter(|document| !deleted.contains(document.id.as_str()))
        .cloned()
        .collect();
    after.retain(|document| !wanted.contains_key(document.id.as_str()));
    let newest = current.values().map(|document| document.order).max().unwrap_or(0) + 1;
    let wanted_documents = wanted.iter().map(|(key, wanted)| Document {
        id: match bounds {
            Bounds::None => DocumentId::File(key.as_str().into()),
            _ => kv_id(key),
        },
        text: wanted.text.clone(),
        // Who came first keeps the name.
        order: current.get(key).map_or(newest, |document| document.order),
        version: 0,
    });
    after.extend(wanted_documents);
    let texts = after
        .iter()
        .map(|document| (document.id.clone(), document.text.clone()))
        .collect();
    let ours = after
        .iter()
        .filter(|document| wanted.contains_key(document.id.as_str()));
    let doubts = bounds.doubts(ours);
    let before: BTreeSet<Diagnostic> =
        Offline::new(current.values().cloned().collect(), bounds.permissions())
            .diagnostics()
            .into_iter()
            .collect();
    let mut diagnostics = Offline::new(after, bounds.permissions()).diagnostics();
    diagnostics.retain(|diagnostic| is_wanted(diagnostic, wanted) || !before.contains(diagnostic));
    diagnostics.extend(doubts);
    let mut report = Report { diagnostics, texts };
    relabel(&mut report, wanted);
    report.sort();
    report
}

fn is_wanted(diagnostic: &Diagnostic, wanted: &BTreeMap<String, Wanted>) -> bool {
    diagnostic
        .origin
        .as_ref()
        .is_some_and(|origin| wanted.contains_key(origin.document.as_str()))
}

/// A problem is shown where the user can mend it: in the file.
fn relabel(report: &mut Report, wanted: &BTreeMap<String, Wanted>) {
    for diagnostic in &mut report.diagnostics {
        if let Some(origin) = &mut diagnostic.origin
            && let Some(wanted) = wanted.get(origin.document.as_str())
        {
            origin.document = DocumentId::File(wanted.file.clone());
        }
    }
    for wanted in wanted.values() {
        report
            .texts
            .insert(DocumentId::File(wanted.file.clone()), wanted.text.clone());
    }
}

/// Object by object, whatever moved in the text.
fn object_changes(old: Option<&Arc<str>>, new: Option<&Arc<str>>) -> Vec<ObjectChange> {
    let (old, new) = (objects(old), objects(new));
    let names: BTreeSet<&(String, String)> = old.keys().chain(new.keys()).collect();
    names
        .into_iter()
        .filter_map(|name| {
            let action = match (old.get(name), new.get(name)) {
                (Some(old), Some(new)) if same_body(old, new) => return None,
                (Some(_), Some(_)) => Action::Update,
                (None, _) => Action::Create,
                (_, None) => Action::Delete,
            };
            Some(ObjectChange {
                action,
                kind: name.0.clone(),
                name: name.1.clone(),
            })
        })
        .collect()
}

/// A text that cannot be read has none; the check says so.
fn objects(text: Option<&Arc<str>>) -> BTreeMap<(String, String), Body> {
    let Some(text) = text else { return BTreeMap::new() };
    let source = Source::new(DocumentId::File("".into()), text.clone());
    let body = hcl::parse(&source, document_schema(), &Limits::default()).unwrap_or_default();
    let blocks = body.blocks.into_iter();
    blocks
        .map(|block| ((block.kind.clone(), block.label(0).to_owned()), block.body))
        .collect()
}

/// The same but for places. The order of attributes does not matter, that of blocks may.
fn same_body(one: &Body, other: &Body) -> bool {
    let same_attribute = |name: &str, value: &Value| {
        other
            .attribute(name)
            .is_some_and(|attribute| same_value(&attribute.value, value))
    };
    one.attributes.len() == other.attributes.len()
        && one
            .attributes
            .iter()
            .all(|attribute| same_attribute(&attribute.name, &attribute.value))
        && one.blocks.len() == other.blocks.len()
        && one.blocks.iter().zip(&other.blocks).all(|(one, other)| {
            one.kind == other.kind
                && one
                    .labels
                    .iter()
                    .map(|(label, _)| label)
                    .eq(other.labels.iter().map(|(label, _)| label))
                && same_body(&one.body, &other.body)
        })
}

fn same_value(one: &Value, other: &Value) -> bool {
    match (&one.kind, &other.kind) {
        (ValueKind::Null, ValueKind::Null) => true,
        (ValueKind::Bool(one), ValueKind::Bool(other)) => one == other,
        (ValueKind::Integer(one), ValueKind::Integer(other)) => one == other,
        (ValueKind::Float(one), ValueKind::Float(other)) => one.to_bits() == other.to_bits(),
        (ValueKind::String(one), ValueKind::String(other)) => one == other,
        (ValueKind::List(one), ValueKind::List(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same_value(one, other))
        }
        (ValueKind::Object(one), ValueKind::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(name, _, value)| {
                    other
                        .iter()
                        .any(|(other_name, _, other)| name == other_name && same_value(value, other))
                })
        }
        _ => false,
    }
}

/// What is wanted, as documents from KV.
pub fn as_documents(wanted: &BTreeMap<String, Wanted>) -> Vec<Document> {
    let documents = wanted.iter().map(|(key, wanted)| Document {
        id: kv_id(key),
        text: wanted.text.clone(),
        order: 0,
        version: 0,
    });
    documents.collect()
}

/// Names to keys.
pub fn below(prefix: &str, wanted: BTreeMap<String, Wanted>) -> BTreeMap<String, Wanted> {
    wanted
        .into_iter()
        .map(|(name, wanted)| (format!("{prefix}/{name}"), wanted))
        .collect()
}

/// Names to the documents of an agent that reads a directory, which may lie elsewhere than the files do: below the
/// directory where most of the names are found.
pub fn matched(
    current: &BTreeMap<String, Document>,
    wanted: BTreeMap<String, Wanted>,
) -> BTreeMap<String, Wanted> {
    let mut ids: BTreeMap<PathBuf, Vec<&String>> = BTreeMap::new();
    for id in current.keys() {
        ids.entry(Path::new(id).with_extension("")).or_default().push(id);
    }
    let mut alike: BTreeMap<&OsStr, Vec<&Path>> = BTreeMap::new();
    for id in ids.keys() {
        alike
            .entry(id.file_name().unwrap_or_default())
            .or_default()
            .push(id);
    }
    let mut roots: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for name in wanted.keys() {
        let last = Path::new(name).file_name().unwrap_or_default();
        let ids = alike.get(last).into_iter().flatten();
        for root in ids.filter_map(|id| root_of(id, name)) {
            *roots.entry(root).or_default() += 1;
        }
    }
    // Of equals the shortest: what lies in a folder may be called as what lies beside it.
    let root = roots
        .iter()
        .max_by_key(|(root, names)| (**names, Reverse(root.components().count())))
        .map(|(root, _)| root);
    wanted
        .into_iter()
        .map(|(name, wanted)| {
            let extension = Path::new(&*wanted.file).extension();
            let ids = root.and_then(|root| ids.get(&root.join(&name)));
            // `shop.hcl` and `shop.json` may stand beside each other.
            let id = ids.and_then(|ids| {
                let same = ids.iter().find(|id| Path::new(id).extension() == extension);
                same.or_else(|| ids.first())
            });
            let key = id.map_or_else(|| wanted.file.to_string(), |id| (*id).clone());
            (key, wanted)
        })
        .collect()
}

/// Where a tree begins that has `id` as `name`.
fn root_of(id: &Path, name: &str) -> Option<PathBuf> {
    let above = Path::new(name).components().count();
    let root = id.ends_with(name).then(|| id.ancestors().nth(above))?;
    root.map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(old: &str, new: &str) -> Vec<String> {
        object_changes(Some(&old.into()), Some(&new.into()))
            .into_iter()
            .map(|change| format!("{}{} {}", change.action.sign(), change.kind, change.name))
            .collect()
    }

    #[test]
    fn names_find_the_documents_of_a_directory() {
        let ids = ["/etc/gw/shop.hcl", "/etc/gw/teams/shop.json", "/etc/gw/edge.hcl"];
        let current = ids.map(|id| {
            let document = Document {
                id: DocumentId::File(id.into()),
                text: "".into(),
                order: 0,
                version: 0,
            };
            (id.to_owned(), document)
        });
        let found = |names: &[&str]| -> Vec<String> {
            let wanted = names.iter().map(|name| {
                let wanted = Wanted {
                    file: format!("mine/{name}.hcl").into(),
                    text: "".into(),
                };
                ((*name).to_owned(), wanted)
            });
            let matched = matched(&current.clone().into(), wanted.collect());
            matched.into_keys().collect()
        };
        assert_eq!(
            found(&["edge", "shop", "teams/shop", "teams/new"]),
            [
                "/etc/gw/edge.hcl",
                "/etc/gw/shop.hcl",
                "/etc/gw/teams/shop.json",
                "mine/teams/new.hcl"
            ]
        );
        // One file, called as two are.
        assert_eq!(found(&["shop"]), ["/etc/gw/shop.hcl"]);
        assert_eq!(found(&["teams/shop"]), ["/etc/gw/teams/shop.json"]);
        assert_eq!(found(&["other"]), ["mine/other.hcl"]);
    }

    #[test]
    fn objects_change_by_what_they_say() {
        let old = "policy \"a\" { timeout = \"1s\" }\npolicy \"b\" { timeout = \"1s\" }\n";
        assert_eq!(
            changed(old, &format!("# a comment\n\n{old}")),
            Vec::<String>::new()
        );
        let new = "policy \"c\" {}\npolicy \"a\" { timeout = \"2s\" }\n";
        assert_eq!(changed(old, new), ["~policy a", "-policy b", "+policy c"]);
        let json = r#"{"policy": {"a": {"timeout": "1s"}, "b": {"timeout": "1s"}}}"#;
        assert_eq!(
            changed(old, json),
            Vec::<String>::new(),
            "HCL and JSON are one language"
        );
    }
}

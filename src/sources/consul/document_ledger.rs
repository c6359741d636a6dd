//! The documents as last believed, and what one listing of the prefix says against them. Pure.
//!
//! In: the body of a recursive KV read. Out: what changed, what vanished, what cannot be taken. Nothing is removed here
//! on the word of a listing: the watch asks first (see `documents`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Deserialize;

use super::kv::{VALUE_BYTES, check_key};
use crate::model::{Document, DocumentId, extension_of_key};

#[derive(Debug, Default)]
pub(super) struct DocumentLedger {
    known: BTreeMap<Arc<str>, Document>,
}

/// What one listing says against the ledger.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) changed: Vec<Document>,
    /// In the ledger and not in the listing, sorted.
    pub(super) vanished: Vec<Arc<str>>,
    /// Present, and cannot be taken; a last good version stands. Sorted.
    pub(super) rejected: Vec<Rejected>,
    pub(super) present: usize,
}

/// The names of everything under the prefix; all that is known is there.
#[derive(Debug)]
pub(super) struct Names<'a> {
    keys: Vec<Text<'a>>,
    /// Where those stand that are not known.
    unknown: Vec<usize>,
}

impl Names<'_> {
    pub(super) fn keys(&self) -> Vec<&str> {
        self.keys.iter().map(|key| &*key.0).collect()
    }

    /// Those that are not known, sorted.
    pub(super) fn new_keys(&self) -> Vec<&str> {
        let unknown = self.unknown.iter().filter_map(|at| self.keys.get(*at));
        unknown.map(|key| &*key.0).collect()
    }

    pub(super) fn are_known(&self) -> bool {
        self.unknown.is_empty()
    }
}

impl Listing {
    fn take(&mut self, row: &Row<'_>, known: Option<&Document>, compare_whole: bool) {
        if known.is_some_and(|known| !compare_whole && row.is_version_of(known)) {
            return;
        }
        match row.document() {
            Ok(document) if known == Some(&document) => {}
            Ok(document) => self.changed.push(document),
            Err(reason) => self.rejected.push(Rejected {
                key: row.key.as_ref().into(),
                version: row.modify_index,
                reason,
            }),
        }
    }
}

/// A key that is no document, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    pub key: Arc<str>,
    /// Consul's ModifyIndex.
    pub version: u64,
    pub reason: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.reason)
    }
}

impl DocumentLedger {
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Reads a listing. `compare_whole` looks at texts even where the version number is known: a Consul that lost its
    /// past may count to the same number again.
    pub(super) fn compare(&self, body: &[u8], compare_whole: bool) -> Result<Listing, serde_json::Error> {
        let mut rows: Vec<Row<'_>> = if body.is_empty() {
            Vec::new()
        } else {
            serde_json::from_slice(body)?
        };
        let mut listing = Listing::default();
        // Side by side: Consul sorts its keys as the ledger does, and ten thousand keys that begin alike are dear to look up.
        let mut known = self.known.iter().peekable();
        if !rows.is_sorted_by(|a, b| a.key <= b.key) {
            rows.sort_by(|a, b| a.key.cmp(&b.key));
        }
        for row in &rows {
            // Consul's UI makes "folders": keys that end in a slash and hold nothing.
            if row.key.ends_with('/') {
                continue;
            }
            listing.present += 1;
            while let Some((key, _)) = known.next_if(|(key, _)| ***key < *row.key) {
                listing.vanished.push(key.clone());
            }
            let known = known.next_if(|(key, _)| ***key == *row.key);
            let known = known.map(|(_, document)| document);
            listing.take(row, known, compare_whole);
        }
        listing.vanished.extend(known.map(|(key, _)| key.clone()));
        Ok(listing)
    }

    /// The highest version that was seen from the first to the last of these keys; 0 if none of them is known.
    pub(super) fn newest_among(&self, keys: &[&str]) -> u64 {
        let (Some(first), Some(last)) = (keys.first(), keys.last()) else {
            return 0;
        };
        let known = self
            .known
            .range::<str, _>((Bound::Included(*first), Bound::Included(*last)));
        known.map(|(_, document)| document.version).max().unwrap_or(0)
    }

    /// Reads the names of all keys, sorted, without Consul's "folders". None: one that is known is not among them.
    pub(super) fn names<'a>(&self, body: &'a [u8]) -> Result<Option<Names<'a>>, serde_json::Error> {
        let mut keys: Vec<Text<'a>> = serde_json::from_slice(body)?;
        keys.retain(|key| !key.0.ends_with('/'));
        if !keys.is_sorted_by(|a, b| a.0 < b.0) {
            keys.sort_by(|a, b| a.0.cmp(&b.0));
            keys.dedup_by(|a, b| a.0 == b.0);
        }
        let mut known = self.known.keys().peekable();
        let mut unknown = Vec::new();
        for (at, key) in keys.iter().enumerate() {
            if known.next_if(|known| ***known == *key.0).is_none() {
                unknown.push(at);
            }
        }
        let gone = known.next().is_some();
        Ok((!gone).then_some(Names { keys, unknown }))
    }

    /// Reads what a few shards of the prefix hold: `(body, how many documents have to be in it)`. None: what was read is
    /// not the prefix of these names at this index.
    pub(super) fn compare_some(
        &self,
        bodies: impl IntoIterator<Item = (Bytes, usize)>,
        names: &Names<'_>,
        index: u64,
    ) -> Result<Option<Listing>, serde_json::Error> {
        let mut listing = Listing {
            present: names.keys.len(),
            ..Listing::default()
        };
        let (mut newest, mut unknown) = (0, 0);
        for (body, keys) in bodies {
            let rows: Vec<Row<'_>> = serde_json::from_slice(&body)?;
            let mut documents = 0;
            for row in &rows {
                newest = newest.max(row.modify_index);
                if row.key.ends_with('/') {
                    continue;
                }
                documents += 1;
                let known = self.known.get(&*row.key);
                if known.is_some_and(|known| row.modify_index < known.version) {
                    // Versions only rise, unless Consul was restored: what else it took back is not in these parts.
                    return Ok(None);
                }
                unknown += usize::from(known.is_none());
                listing.take(row, known, false);
            }
            if documents != keys {
                return Ok(None);
            }
        }
        listing.rejected.sort_by(|a, b| a.key.cmp(&b.key));
        // What moved the index has been seen, and everything that is new.
        Ok((newest == index && unknown == names.unknown.len()).then_some(listing))
    }

    pub(super) fn apply(&mut self, changed: &[Document], removed: &[DocumentId]) {
        for document in changed {
            self.known.insert(document.id.as_str().into(), document.clone());
        }
        for id in removed {
            self.known.remove(id.as_str());
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Row<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    /// Null for an empty value.
    #[serde(borrow, default)]
    value: Option<Text<'a>>,
    create_index: u64,
    modify_index: u64,
}

/// serde borrows inside an `Option` or a `Vec` only through a type of one's own.
#[derive(Debug, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Row<'_> {
    fn is_version_of(&self, known: &Document) -> bool {
        known.version == self.modify_index && known.order == self.create_index
    }

    fn document(&self) -> Result<Document, String> {
        check_key(&self.key)?;
        if let Some(extension) = extension_of_key(&self.key) {
            let without = self.key.trim_end_matches(extension);
            return Err(format!(
                "a document's key has no file extension: write it as {without:?} and delete this one"
            ));
        }
        let encoded = self.value.as_ref().map_or("", |text| &text.0);
        // Told from the length, so that nothing large is decoded: four characters hold three bytes, less the padding.
        let padding = encoded.bytes().rev().take(2).filter(|byte| *byte == b'=').count();
        let size = (encoded.len() / 4 * 3).saturating_sub(padding);
        if size > DOCUMENT_BYTES {
            return Err(format!(
                "{size} bytes exceed the {DOCUMENT_BYTES} of one document"
            ));
        }
        let bytes = BASE64
            .decode(encoded)
            .map_err(|error| format!("not base64: {error}"))?;
        let text = String::from_utf8(bytes)
            .map_err(|error| format!("not UTF-8 text (byte {} of it)", error.utf8_error().valid_up_to()))?;
        Ok(Document {
            id: DocumentId::Kv(self.key.as_ref().into()),
            text: text.into(),
            order: self.create_index,
            version: self.modify_index,
        })
    }
}

/// Consul's own default bound on a value; here it also holds where an operator raised Consul's.
const DOCUMENT_BYTES: usize = VALUE_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &str, text: &str, create: u64, modify: u64) -> String {
        let value = if text.is_empty() {
            "null".to_owned()
        } else {
            format!("{:?}", BASE64.encode(text))
        };
        format!(
            r#"{{"LockIndex":0,"Key":"{key}","Flags":18446744073709551615,"Value":{value},"CreateIndex":{create},"ModifyIndex":{modify},"New":{{}}}}"#
        )
    }

    fn body(rows: &[String]) -> Vec<u8> {
        format!("[{}]", rows.join(",")).into_bytes()
    }

    fn filled(rows: &[String]) -> DocumentLedger {
        let mut ledger = DocumentLedger::default();
        let listing = ledger.compare(&body(rows), true).unwrap();
        ledger.apply(&listing.changed, &[]);
        ledger
    }

    fn texts(listing: &Listing) -> Vec<(&str, &str)> {
        listing
            .changed
            .iter()
            .map(|document| (document.id.as_str(), &*document.text))
            .collect()
    }

    #[test]
    fn first_listing_is_all_change() {
        let ledger = DocumentLedger::default();
        let listing = ledger.compare(
            &body(&[
                row("p/a", "x", 1, 2),
                row("p/b", "", 3, 3),
                row("p/dir/", "", 4, 4),
            ]),
            true,
        );
        let listing = listing.unwrap();
        assert_eq!(texts(&listing), [("p/a", "x"), ("p/b", "")]);
        assert_eq!(listing.present, 2);
        assert_eq!((listing.changed[0].order, listing.changed[0].version), (1, 2));
    }

    #[test]
    fn change_and_disappearance() {
        let ledger = filled(&[
            row("p/a", "x", 1, 2),
            row("p/b", "y", 1, 2),
            row("p/c", "z", 1, 2),
        ]);
        let listing = ledger
            .compare(&body(&[row("p/a", "x", 1, 2), row("p/b", "new", 1, 9)]), false)
            .unwrap();
        assert_eq!(texts(&listing), [("p/b", "new")]);
        assert_eq!(listing.vanished, ["p/c".into()]);
        let empty = ledger.compare(b"", false).unwrap();
        assert_eq!(empty.vanished.len(), 3);
    }

    #[test]
    fn same_number_other_text_is_seen_when_it_matters() {
        let ledger = filled(&[row("p/a", "x", 1, 2)]);
        let other = body(&[row("p/a", "other", 1, 2)]);
        assert!(ledger.compare(&other, false).unwrap().changed.is_empty());
        assert_eq!(texts(&ledger.compare(&other, true).unwrap()), [("p/a", "other")]);
    }

    #[test]
    fn a_key_that_turns_bad_keeps_its_last_good_version() {
        let ledger = filled(&[row("p/a", "x", 1, 2)]);
        let bad = format!(
            r#"{{"Key":"p/a","Value":"{}","CreateIndex":1,"ModifyIndex":5}}"#,
            BASE64.encode([0x66, 0xff, 0xfe])
        );
        let big = row("p/big", &"x".repeat(DOCUMENT_BYTES + 1), 1, 2);
        let listing = ledger
            .compare(
                &body(&[bad, big, row("p/shop.hcl", "x", 1, 2), row("p/ç", "x", 1, 2)]),
                false,
            )
            .unwrap();
        assert!(listing.changed.is_empty() && listing.vanished.is_empty());
        let reasons: Vec<String> = listing.rejected.iter().map(ToString::to_string).collect();
        assert!(reasons[0].contains("p/a: not UTF-8"), "{reasons:?}");
        assert!(reasons[1].contains("p/big: 524289 bytes exceed"), "{reasons:?}");
        assert!(
            reasons[2].contains("no file extension: write it as \"p/shop\""),
            "{reasons:?}"
        );
        assert!(reasons[3].contains("'ç' is not allowed"), "{reasons:?}");
        assert!(
            ledger
                .compare(&body(&[row("p/max", &"x".repeat(DOCUMENT_BYTES), 1, 2)]), false)
                .unwrap()
                .rejected
                .is_empty()
        );
    }

    #[test]
    fn parts_are_believed_only_if_they_are_of_these_names_at_this_index() {
        let ledger = filled(&[row("p/a", "x", 1, 2), row("p/b", "y", 3, 7)]);
        let listed = br#"["p/a","p/b","p/dir/","p/new"]"#;
        let names = ledger.names(listed).unwrap().unwrap();
        assert_eq!(names.keys(), ["p/a", "p/b", "p/new"]);
        let some = |rows: &[String], index| {
            let bodies = [(Bytes::from(body(rows)), rows.len())];
            ledger.compare_some(bodies, &names, index).unwrap()
        };
        let (changed, new) = (row("p/b", "other", 3, 9), row("p/new", "z", 9, 9));
        let listing = some(&[changed.clone(), new.clone()], 9).unwrap();
        assert_eq!(texts(&listing), [("p/b", "other"), ("p/new", "z")]);
        assert_eq!((listing.present, listing.vanished.len()), (3, 0));
        // A new name unread; nothing that moved the index; a version that fell.
        assert!(some(&[changed], 9).is_none());
        assert!(some(std::slice::from_ref(&new), 10).is_none());
        assert!(some(&[row("p/b", "older", 3, 5), new.clone()], 9).is_none());
        // A row is hidden from the token by now.
        let bodies = [(Bytes::from(body(&[new])), 2)];
        assert!(ledger.compare_some(bodies, &names, 9).unwrap().is_none());
        // One that is known is not listed any more.
        assert!(ledger.names(br#"["p/a","p/new"]"#).unwrap().is_none());
        assert_eq!(
            (
                ledger.newest_among(&["p/a", "p/b"]),
                ledger.newest_among(&["p/a"])
            ),
            (7, 2)
        );
    }

    #[test]
    fn other_shapes_are_errors() {
        let ledger = DocumentLedger::default();
        for text in ["{}", "<html>", "[1]", r#"[{"Key":1}]"#, "[{\"Key\":\"a\""] {
            assert!(ledger.compare(text.as_bytes(), true).is_err(), "{text}");
        }
    }
}

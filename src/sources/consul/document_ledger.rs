//! The documents as last believed, and what one listing of the prefix says against them. Pure.
//!
//! In: the body of a recursive KV read. Out: what changed, what vanished, what cannot be taken. Nothing is removed here
//! on the word of a listing: the watch asks first (see `documents`).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
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

/// A key that is no document, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    pub key: Arc<str>,
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
        let rows: Vec<Row<'_>> = if body.is_empty() {
            Vec::new()
        } else {
            serde_json::from_slice(body)?
        };
        let mut listing = Listing::default();
        let mut seen = BTreeSet::new();
        for row in &rows {
            // Consul's UI makes "folders": keys that end in a slash and hold nothing.
            if row.key.ends_with('/') {
                continue;
            }
            listing.present += 1;
            let known = self.known.get(&*row.key);
            seen.insert(&*row.key);
            if known.is_some_and(|known| !compare_whole && row.is_version_of(known)) {
                continue;
            }
            match row.document() {
                Ok(document) if known == Some(&document) => {}
                Ok(document) => listing.changed.push(document),
                Err(reason) => listing.rejected.push(Rejected {
                    key: row.key.as_ref().into(),
                    reason,
                }),
            }
        }
        listing.vanished = self
            .known
            .keys()
            .filter(|key| !seen.contains(&***key))
            .cloned()
            .collect();
        listing.rejected.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(listing)
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

/// serde borrows inside an `Option` only through a type of one's own.
#[derive(Deserialize)]
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
    fn other_shapes_are_errors() {
        let ledger = DocumentLedger::default();
        for text in ["{}", "<html>", "[1]", r#"[{"Key":1}]"#, "[{\"Key\":\"a\""] {
            assert!(ledger.compare(text.as_bytes(), true).is_err(), "{text}");
        }
    }
}

//! One-shot calls on KV: single reads, compare-and-set writes, transactions.
//!
//! Nothing here is ever recursive. A lost compare-and-set is an answer (`false`), because Consul says it with 200.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::call::Call;
use super::client::{Answer, ConsulClient};
use super::session::PARTING;
use super::{ConsulError, TxnFailure};

/// One key as Consul holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvEntry {
    pub key: Arc<str>,
    pub value: Bytes,
    pub create_index: u64,
    pub modify_index: u64,
    /// How often the key was locked; part of a fencing token.
    pub lock_index: u64,
    pub session: Option<Arc<str>>,
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnWrite {
    Set {
        key: String,
        value: Bytes,
    },
    /// `index` 0: only if the key does not exist.
    Cas {
        key: String,
        value: Bytes,
        index: u64,
    },
    Delete {
        key: String,
    },
    DeleteCas {
        key: String,
        index: u64,
    },
    /// Fails the transaction unless the key stands at `index`.
    CheckIndex {
        key: String,
        index: u64,
    },
    CheckNotExists {
        key: String,
    },
    /// Fails the transaction unless `session` holds the lock `key`.
    CheckSession {
        key: String,
        session: String,
    },
}

impl ConsulClient {
    /// Reads one key and nothing beside it.
    pub async fn read_key(&self, key: &str) -> Result<Option<KvEntry>, ConsulError> {
        entry_of(&self.probe(read_call(key)).await?)
    }

    /// Writes if the key still stands at `index` (0: does not exist); false if it does not.
    pub async fn put_cas(&self, key: &str, value: impl Into<Bytes>, index: u64) -> Result<bool, ConsulError> {
        let call = write_call(Method::PUT, key)?.query("cas", index);
        self.write(call, value.into()).await
    }

    /// Deletes if the key still stands at `index`; false if it does not (Consul answers false to index 0 always).
    pub async fn delete_cas(&self, key: &str, index: u64) -> Result<bool, ConsulError> {
        self.call(write_call(Method::DELETE, key)?.query("cas", index))
            .await?
            .json()
    }

    /// Writes while `session` lives; false if another session holds the key.
    pub(super) async fn put_acquire(
        &self,
        key: &str,
        value: Bytes,
        session: &str,
    ) -> Result<bool, ConsulError> {
        self.write(write_call(Method::PUT, key)?.query("acquire", session), value)
            .await
    }

    /// Gives the lock up, leaving `value` behind: the body of a release overwrites.
    pub(super) async fn put_release(
        &self,
        key: &str,
        value: Bytes,
        session: &str,
    ) -> Result<bool, ConsulError> {
        self.write(
            write_call(Method::PUT, key)?
                .query("release", session)
                .timeout(PARTING),
            value,
        )
        .await
    }

    /// All or nothing, under one index, which is returned. At most 64 operations and 512 KiB of JSON.
    pub async fn txn(&self, writes: &[TxnWrite]) -> Result<u64, ConsulError> {
        for write in writes {
            check_key(write.key()).map_err(|reason| ConsulError::NotSent {
                asked: format!("PUT /v1/txn with key {:?}", write.key()),
                reason,
            })?;
        }
        let rows: Vec<TxnRow<'_>> = writes.iter().map(|write| TxnRow { kv: write.row() }).collect();
        let body = serde_json::to_vec(&rows).map_err(|error| ConsulError::NotSent {
            asked: "PUT /v1/txn".to_owned(),
            reason: error.to_string(),
        })?;
        if writes.len() > TXN_OPERATIONS || body.len() > TXN_BYTES {
            return Err(ConsulError::TxnTooLarge {
                operations: writes.len(),
                bytes: body.len(),
                max_operations: TXN_OPERATIONS,
                max_bytes: TXN_BYTES,
            });
        }
        let call = Call::put("txn")
            .body(body)
            .max_error(TXN_REASONS)
            .needs("key_prefix \"…\" { policy = \"write\" } for every key written");
        match self.call(call).await {
            Ok(answer) => {
                let answer: TxnAnswer = answer.json()?;
                let indexes = answer
                    .results
                    .unwrap_or_default()
                    .into_iter()
                    .filter_map(|row| row.kv);
                Ok(indexes.map(|row| row.modify_index).max().unwrap_or(0))
            }
            Err(ConsulError::Status {
                status: 409,
                body,
                server,
                asked,
                ..
            }) => {
                match serde_json::from_str::<TxnAnswer>(&body) {
                    Ok(answer) => Err(ConsulError::TxnFailed {
                        failures: answer.failures(),
                    }),
                    // Of a proxy, or more than is kept: its beginning is still worth reading.
                    Err(_) => Err(ConsulError::Unreadable {
                        server,
                        asked,
                        reason: body.chars().take(READABLE).collect(),
                    }),
                }
            }
            Err(error) => Err(error),
        }
    }

    async fn write(&self, call: Call, value: Bytes) -> Result<bool, ConsulError> {
        if value.len() > VALUE_BYTES {
            // Consul answers before it has read the body, which looks like a broken connection.
            let reason = format!(
                "{} bytes exceed Consul's limit of {VALUE_BYTES} for one value",
                value.len()
            );
            return Err(ConsulError::NotSent {
                asked: call.to_string(),
                reason,
            });
        }
        self.call(call.body(value)).await?.json()
    }
}

impl TxnWrite {
    pub fn key(&self) -> &str {
        match self {
            Self::Set { key, .. }
            | Self::Cas { key, .. }
            | Self::Delete { key }
            | Self::DeleteCas { key, .. }
            | Self::CheckIndex { key, .. }
            | Self::CheckNotExists { key }
            | Self::CheckSession { key, .. } => key,
        }
    }

    fn row(&self) -> TxnKv<'_> {
        let row = |verb| TxnKv {
            verb,
            key: self.key(),
            value: None,
            index: None,
            session: None,
        };
        match self {
            Self::Set { value, .. } => TxnKv {
                value: Some(BASE64.encode(value)),
                ..row("set")
            },
            Self::Cas { value, index, .. } => TxnKv {
                value: Some(BASE64.encode(value)),
                index: Some(*index),
                ..row("cas")
            },
            Self::Delete { .. } => row("delete"),
            Self::DeleteCas { index, .. } => TxnKv {
                index: Some(*index),
                ..row("delete-cas")
            },
            Self::CheckIndex { index, .. } => TxnKv {
                index: Some(*index),
                ..row("check-index")
            },
            Self::CheckNotExists { .. } => row("check-not-exists"),
            Self::CheckSession { session, .. } => TxnKv {
                session: Some(session),
                ..row("check-session")
            },
        }
    }
}

/// The call that reads one key. Not found is an answer: with 403 it is what tells a deletion from lost rights.
pub(super) fn read_call(key: &str) -> Call {
    Call::get("kv")
        .key(key)
        .not_found_is_answer()
        .needs(format!("key {key:?} {{ policy = \"read\" }}"))
}

pub(super) fn entry_of(answer: &Answer) -> Result<Option<KvEntry>, ConsulError> {
    if !answer.found {
        return Ok(None);
    }
    answer
        .json::<Vec<Row>>()?
        .pop()
        .map(|row| row.entry().map_err(|error| answer.unreadable(error)))
        .transpose()
}

fn write_call(method: Method, key: &str) -> Result<Call, ConsulError> {
    let call = Call::new(method, "kv")
        .key(key)
        .needs(format!("key {key:?} {{ policy = \"write\" }}"));
    match check_key(key) {
        Ok(()) => Ok(call),
        Err(reason) => Err(ConsulError::NotSent {
            asked: call.to_string(),
            reason,
        }),
    }
}

/// Whether a key is one that we write, which every Consul takes.
pub fn is_written(key: &str) -> bool {
    check_key(key).is_ok()
}

/// What every Consul takes: one patch release refused more than this, and broke those who used it.
pub(super) fn check_key(key: &str) -> Result<(), String> {
    if key.is_empty() || key.len() > KEY_BYTES {
        return Err(format!("a key has 1 to {KEY_BYTES} characters"));
    }
    if let Some(odd) = key
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && !"_./-".contains(*c))
    {
        return Err(format!(
            "{odd:?} is not allowed in a key; use letters, digits, `_`, `.`, `/` and `-`"
        ));
    }
    if key
        .split('/')
        .any(|segment| segment.is_empty() || segment == "." || segment.contains(".."))
    {
        return Err("a key has no empty, `.` or `..` segment".to_owned());
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Row {
    key: Arc<str>,
    value: Option<String>,
    #[serde(default)]
    lock_index: u64,
    create_index: u64,
    modify_index: u64,
    session: Option<Arc<str>>,
}

impl Row {
    pub(super) fn entry(self) -> Result<KvEntry, base64::DecodeError> {
        Ok(KvEntry {
            value: BASE64.decode(self.value.unwrap_or_default())?.into(),
            key: self.key,
            create_index: self.create_index,
            modify_index: self.modify_index,
            lock_index: self.lock_index,
            session: self.session,
        })
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct TxnKv<'a> {
    verb: &'static str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
}

#[derive(Serialize)]
struct TxnRow<'a> {
    #[serde(rename = "KV")]
    kv: TxnKv<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct TxnAnswer {
    results: Option<Vec<TxnResult>>,
    errors: Option<Vec<TxnError>>,
}

impl TxnAnswer {
    pub(super) fn failures(self) -> Vec<TxnFailure> {
        let errors = self.errors.unwrap_or_default().into_iter();
        errors
            .map(|error| TxnFailure {
                operation: error.op_index,
                what: error.what,
            })
            .collect()
    }
}

#[derive(Deserialize)]
struct TxnResult {
    #[serde(rename = "KV")]
    kv: Option<TxnResultKv>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TxnResultKv {
    modify_index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TxnError {
    #[serde(default)]
    op_index: usize,
    #[serde(default)]
    what: String,
}

/// `maxTxnOps` of 1.8.7, where 65 get 413; newer versions take 128.
const TXN_OPERATIONS: usize = 64;

/// `limits.txn_max_req_len`, which counts the JSON, so after base64.
const TXN_BYTES: usize = 524_288;

/// A reason for each operation, with its key.
const TXN_REASONS: usize = 2 * TXN_OPERATIONS * KEY_BYTES;

/// Characters of an answer that nobody understands.
const READABLE: usize = 1024;

/// `limits.kv_max_value_size`.
pub(super) const VALUE_BYTES: usize = 524_288;

/// Far above any sensible key, far below what a URL may hold.
const KEY_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_every_consul_takes() {
        for key in ["portreeve/config/shop", "a.b_c-D/9"] {
            assert_eq!(check_key(key), Ok(()), "{key}");
        }
        for key in [
            "",
            "/a",
            "a//b",
            "a/",
            "a/../b",
            "a/./b",
            "ç",
            "a b",
            "a?recurse",
            "x..y",
        ] {
            assert!(check_key(key).is_err(), "{key}");
        }
    }

    #[test]
    fn operations_as_consul_reads_them() {
        let write = TxnWrite::Cas {
            key: "a".to_owned(),
            value: Bytes::from_static(b"hi"),
            index: 0,
        };
        let json = serde_json::to_string(&TxnRow { kv: write.row() }).unwrap();
        assert_eq!(
            json,
            r#"{"KV":{"Verb":"cas","Key":"a","Value":"aGk=","Index":0}}"#
        );
        let check = TxnWrite::CheckSession {
            key: "l".to_owned(),
            session: "s".to_owned(),
        };
        let json = serde_json::to_string(&TxnRow { kv: check.row() }).unwrap();
        assert_eq!(json, r#"{"KV":{"Verb":"check-session","Key":"l","Session":"s"}}"#);
    }
}

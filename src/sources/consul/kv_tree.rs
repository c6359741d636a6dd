//! Everything under one prefix of keys that we write ourselves, read once.
//!
//! Not for documents: what a token may not read is silently missing here, which is harmless only where nothing is
//! removed on the word of the answer.

use super::ConsulError;
use super::call::Call;
use super::client::ConsulClient;
use super::kv::{KvEntry, Row};

impl ConsulClient {
    pub async fn read_tree(&self, prefix: &str) -> Result<Vec<KvEntry>, ConsulError> {
        let call = Call::get("kv")
            .key(prefix)
            .flag("recurse")
            .not_found_is_answer()
            .max_body(TREE_BYTES)
            .needs(format!("key_prefix {prefix:?} {{ policy = \"read\" }}"));
        let answer = self.call(call).await?;
        if !answer.found || answer.body.is_empty() {
            return Ok(Vec::new());
        }
        answer
            .json::<Vec<Row>>()?
            .into_iter()
            .map(|row| row.entry().map_err(|error| answer.unreadable(error)))
            .collect()
    }
}

/// The documents' own bound.
const TREE_BYTES: usize = 64 * 1024 * 1024;

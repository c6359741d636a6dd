//! One-shot administration: JSON at a path, read and written. `portreeve setup` is made of it.

use reqwest::Method;
use serde_json::Value;

use super::call::Call;
use super::client::ApiClient;
use super::error::ApiError;

impl ApiClient {
    /// None: there is nothing at this path below `/v1/`.
    pub async fn read_json(
        &self,
        path: &str,
        query: &[(&'static str, &str)],
    ) -> Result<Option<Value>, ApiError> {
        let mut call = Call::get(path).max_body(LISTING).not_found_is_answer();
        for (name, value) in query {
            call = call.query(name, value);
        }
        let answer = self.call(call).await?;
        if !answer.found {
            return Ok(None);
        }
        answer.json().map(Some)
    }

    pub async fn write_json(&self, path: &str, body: &Value) -> Result<(), ApiError> {
        let call = Call::new(Method::PUT, path).body(body.to_string());
        self.call(call).await.map(|_| ())
    }
}

/// All roles or rules of a large installation.
const LISTING: usize = 16 * 1024 * 1024;

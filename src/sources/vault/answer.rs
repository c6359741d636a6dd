//! Reads Vault's answers: leniently where servers differ, without copies of secrets, within bounds.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::model::Redacted;

/// Certificates and KV secrets are a few KB; Vault itself takes at most 32 MiB in.
pub(super) const MAX_BODY_BYTES: usize = 1024 * 1024;

/// Of what a server says about an error, as much as fits a status line.
const MAX_ERROR_CHARS: usize = 400;

/// An HTTP answer, whole.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Zeroizing<Vec<u8>>,
}

impl Answer {
    pub(super) fn parse<T: DeserializeOwned>(&self) -> Option<Envelope<T>> {
        serde_json::from_slice(&self.body).ok()
    }

    /// What the server says went wrong; empty if it says nothing readable (a proxy's HTML page, for one).
    pub(super) fn errors(&self) -> String {
        let said = self.parse::<IgnoredAny>().map(|envelope| {
            let mut said = envelope.errors;
            said.extend(envelope.warnings);
            said.join("; ")
        });
        // Vault lays its lists of errors out over lines: "1 error occurred:\n\t* permission denied\n\n".
        let words: Vec<&str> = said.iter().flat_map(|text| text.split_whitespace()).collect();
        words
            .join(" ")
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX_ERROR_CHARS)
            .collect()
    }
}

/// What wraps every answer of Vault's API.
#[derive(Deserialize)]
pub(super) struct Envelope<T> {
    #[serde(default = "Option::default")]
    pub(super) data: Option<T>,
    #[serde(default)]
    pub(super) auth: Option<Auth>,
    /// Not empty: what was handed out ends with the token.
    #[serde(default, deserialize_with = "text_or_null")]
    pub(super) lease_id: String,
    /// Seconds. Advice where there is no lease.
    #[serde(default)]
    pub(super) lease_duration: u64,
    #[serde(default, deserialize_with = "texts")]
    pub(super) warnings: Vec<String>,
    #[serde(default, deserialize_with = "texts")]
    pub(super) errors: Vec<String>,
}

/// A token handed out or prolonged.
#[derive(Deserialize)]
pub(super) struct Auth {
    #[serde(deserialize_with = "redacted")]
    pub(super) client_token: Arc<Redacted<String>>,
    #[serde(default)]
    pub(super) lease_duration: u64,
    #[serde(default)]
    pub(super) renewable: bool,
}

/// What `lookup-self` tells of a token.
#[derive(Deserialize)]
pub(super) struct TokenData {
    #[serde(default)]
    pub(super) ttl: u64,
    #[serde(default)]
    pub(super) creation_ttl: u64,
    /// Absent unless the token is periodic.
    #[serde(default)]
    pub(super) period: u64,
    #[serde(default)]
    pub(super) renewable: bool,
}

/// One value of a KV secret.
pub enum Field {
    Text(Arc<Redacted<String>>),
    /// Not a text: what it is instead.
    Other(&'static str),
}

pub(super) type Fields = BTreeMap<String, Field>;

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor)
    }
}

/// Goes around `serde_json::Value`, which would leave the secret in memory after use.
struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Field, E> {
        Ok(Field::Text(Arc::new(Redacted::new(text.to_owned()))))
    }

    fn visit_string<E>(self, text: String) -> Result<Field, E> {
        Ok(Field::Text(Arc::new(Redacted::new(text))))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Field, E> {
        Ok(Field::Other("a boolean"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Field, E> {
        Ok(Field::Other("a number"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Field, E> {
        Ok(Field::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Field, E> {
        Ok(Field::Other("a number"))
    }

    fn visit_unit<E>(self) -> Result<Field, E> {
        Ok(Field::Other("null"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Field, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Field::Other("a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Field, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field::Other("an object"))
    }
}

pub(super) fn redacted<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Arc<Redacted<String>>, D::Error> {
    Ok(Arc::new(Redacted::new(String::deserialize(deserializer)?)))
}

fn text_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

/// Servers and documents show a list, null and even `""`.
fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Array(values) => values
            .into_iter()
            .filter_map(|value| value.as_str().map(str::to_owned))
            .collect(),
        Value::String(text) if !text.is_empty() => vec![text],
        _ => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sources::damage::damaged_json;

    fn answer(body: &str) -> Answer {
        Answer {
            status: 200,
            body: Zeroizing::new(body.as_bytes().to_vec()),
        }
    }

    #[test]
    fn warnings_come_as_lists_null_or_text() {
        for (warnings, count) in [
            ("[\"a\",\"b\"]", 2),
            ("null", 0),
            ("\"\"", 0),
            ("\"one\"", 1),
            ("[]", 0),
            ("7", 0),
        ] {
            let body = format!(r#"{{"warnings":{warnings},"lease_id":null,"data":{{"ttl":5}}}}"#);
            let envelope = answer(&body).parse::<TokenData>().unwrap();
            assert_eq!(envelope.warnings.len(), count, "{warnings}");
            assert_eq!(envelope.data.unwrap().ttl, 5);
        }
    }

    #[test]
    fn errors_are_one_short_line() {
        let said = answer(r#"{"errors":["1 error occurred:\n\t* permission denied\n\n"]}"#).errors();
        assert_eq!(said, "1 error occurred: * permission denied");
        assert_eq!(answer("<html>").errors(), "");
        let long = format!(r#"{{"errors":["{}"]}}"#, "x ".repeat(5000));
        assert!(answer(&long).errors().len() <= 400);
    }

    #[test]
    fn fields_that_are_no_text_say_what_they_are() {
        let body = r#"{"data":{"a":"s3cret","b":1,"c":null,"d":[1],"e":{"x":1},"f":true}}"#;
        let fields = answer(body).parse::<Fields>().unwrap().data.unwrap();
        let kinds: Vec<&str> = fields
            .values()
            .map(|field| match field {
                Field::Text(_) => "text",
                Field::Other(kind) => kind,
            })
            .collect();
        assert_eq!(
            kinds,
            ["text", "a number", "null", "a list", "an object", "a boolean"]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// What is said of an answer is one short line, and never what a field holds.
        #[test]
        fn fuzz_answers_of_vault(body in damaged_json(ISSUED)) {
            let answer = Answer { status: 200, body: Zeroizing::new(body) };
            let said = answer.errors();
            prop_assert!(said.chars().count() <= MAX_ERROR_CHARS && !said.contains(char::is_control), "{said:?}");
            prop_assert!(!said.contains("s3cret"));
            _ = answer.parse::<TokenData>();
            _ = answer.parse::<Fields>();
        }
    }

    const ISSUED: &str = r#"{"errors":["1 error occurred:\n\t* no\n\n"],"warnings":["w"],"lease_id":"","lease_duration":7,
        "auth":{"client_token":"s3cret","accessor":"a","policies":["p"],"lease_duration":60,"renewable":true},
        "data":{"private_key":"s3cret","ttl":5,"certificate":"c","ca_chain":["d"],"expiration":17,"metadata":{"version":3}}}"#;
}

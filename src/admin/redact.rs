//! Takes secrets out of Envoy's own configuration dump.
//!
//! Envoy blanks what its SDS delivered; filters that carry credentials inline print them. Field names decide, because
//! the dump is JSON without types.

use serde_json::{Map, Value};

const REDACTED: &str = "[redacted]";

/// Fields whose value is a secret, as text or as a data source.
const SECRET_FIELDS: &[&str] = &[
    "access_token",
    "api_key",
    "auth_password",
    "client_secret",
    "generic_secret",
    "hmac_secret",
    "inline_password",
    "password",
    "pkcs12",
    "private_key",
    "private_key_provider",
    "secret_access_key",
    "session_ticket_keys",
    "session_token",
    "token_secret",
];

/// Headers whose value is a credential.
const SECRET_HEADERS: &[&str] = &[
    "authorization",
    "cookie",
    "proxy-authorization",
    "set-cookie",
    "x-api-key",
];

pub fn redact(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Object(fields) => {
            redact_header(fields);
            for (name, value) in fields {
                if SECRET_FIELDS.contains(&name.as_str()) {
                    blank(value);
                } else {
                    redact(value);
                }
            }
        }
        _ => {}
    }
}

/// `{"key": "authorization", "value": "..."}`.
fn redact_header(fields: &mut Map<String, Value>) {
    let is_secret = fields.get("key").and_then(Value::as_str).is_some_and(|key| {
        SECRET_HEADERS
            .iter()
            .any(|secret| key.eq_ignore_ascii_case(secret))
    });
    if is_secret {
        for name in ["value", "raw_value"] {
            if let Some(value) = fields.get_mut(name) {
                blank(value);
            }
        }
    }
}

/// File names and names of SDS secrets may stay: they help, and tell nothing.
fn blank(value: &mut Value) {
    match value {
        Value::String(text) => REDACTED.clone_into(text),
        Value::Array(items) => items.iter_mut().for_each(blank),
        Value::Object(fields) => {
            for (name, value) in fields {
                if name != "filename" && name != "sds_config" && name != "name" {
                    blank(value);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn blanks_secrets_and_keeps_the_rest() {
        let mut dump = json!({
            "tls_certificates": [{
                "certificate_chain": { "inline_string": "PEM" },
                "private_key": { "inline_bytes": "s3cret" },
                "password": { "filename": "/etc/pw" },
            }],
            "token_secret": { "name": "token", "sds_config": { "path": "/x" } },
            "request_headers_to_add": [{ "header": { "key": "Authorization", "value": "s3cret" } }],
            "header": { "key": "x-a", "value": "kept" },
            "generic_secret": { "secret": { "inline_string": "s3cret" } },
        });
        redact(&mut dump);
        let shown = dump.to_string();
        assert!(!shown.contains("s3cret"), "{shown}");
        for kept in ["PEM", "/etc/pw", "kept", "\"token\""] {
            assert!(shown.contains(kept), "{kept} in {shown}");
        }
    }
}

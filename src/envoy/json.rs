//! Resources as protojson: what `translate`, `proxy config` and the golden tests show.
//!
//! Fields have the names of the `.proto` files, every `Any` is opened, maps are sorted, secrets are left out. The
//! descriptors are those that envoy-types was generated from, without what we never send (`tests/golden/descriptors.rs`
//! writes the file and holds it to its source).

use std::collections::BTreeMap;
use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MapKey, ReflectMessage, Value as Field};
use serde_json::{Map, Value, json};

use super::{Resource, ResourceKind, ResourceSet};

static DESCRIPTORS: &[u8] = include_bytes!("descriptors.bin");

const REDACTED: &str = "[redacted]";

/// Messages that are secrets as a whole.
const SECRET_TYPES: &[&str] = &[
    "envoy.extensions.transport_sockets.tls.v3.GenericSecret",
    "envoy.extensions.transport_sockets.tls.v3.TlsSessionTicketKeys",
    "envoy.extensions.transport_sockets.tls.v3.PrivateKeyProvider",
];

/// Fields that hold a secret, in whatever message.
const SECRET_FIELDS: &[&str] = &[
    "access_token",
    "api_key",
    "auth_password",
    "client_secret",
    "hmac_secret",
    "inline_password",
    "password",
    "pkcs12",
    "private_key",
    "secret_access_key",
    "session_token",
    "token_secret",
];

/// Headers whose value is a credential.
const SECRET_HEADERS: &[&str] = &["authorization", "cookie", "proxy-authorization", "x-api-key"];

/// Every resource of a set, by kind and in name order.
pub fn render(set: &ResourceSet) -> Value {
    let kinds = ResourceKind::ALL.into_iter().map(|kind| {
        let resources = set
            .of_kind(kind)
            .values()
            .map(|resource| render_resource(resource));
        (kind.plural().to_owned(), Value::Array(resources.collect()))
    });
    Value::Object(kinds.collect())
}

/// One resource, `@type` first. What cannot be shown says why in `error`: this never fails.
pub fn render_resource(resource: &Resource) -> Value {
    let place = |key: &str, value: Value| json!({ "@type": resource.kind.type_url(), "name": &*resource.name, key: value });
    let Some(bytes) = resource.any_bytes() else {
        return place("held_by_envoy", Value::Bool(true));
    };
    match envoy_types::pb::google::protobuf::Any::decode(bytes.clone()) {
        Ok(any) => open(&any.type_url, &any.value).unwrap_or_else(|why| place("error", Value::String(why))),
        Err(error) => place("error", Value::String(error.to_string())),
    }
}

/// The descriptors, for whoever wants to read or write other messages of Envoy's by name.
pub fn descriptors() -> Option<&'static DescriptorPool> {
    static POOL: LazyLock<Option<DescriptorPool>> =
        LazyLock::new(|| DescriptorPool::decode(DESCRIPTORS).ok());
    POOL.as_ref()
}

fn open(type_url: &str, value: &[u8]) -> Result<Value, String> {
    let name = type_url.rsplit_once('/').map_or(type_url, |(_, name)| name);
    let descriptor = descriptors()
        .and_then(|pool| pool.get_message_by_name(name))
        .ok_or_else(|| format!("{name} is not among the descriptors"))?;
    let message = DynamicMessage::decode(descriptor, value).map_err(|error| error.to_string())?;
    let mut shown = Map::from_iter([("@type".to_owned(), Value::String(type_url.to_owned()))]);
    match show_message(&message) {
        Value::Object(fields) => shown.extend(fields),
        other => {
            shown.insert("value".to_owned(), other);
        }
    }
    Ok(Value::Object(shown))
}

fn show_message(message: &DynamicMessage) -> Value {
    let descriptor = message.descriptor();
    let name = descriptor.full_name();
    if SECRET_TYPES.contains(&name) {
        return Value::String(REDACTED.to_owned());
    }
    if name == "google.protobuf.Any" {
        return show_any(message);
    }
    if name.starts_with("google.protobuf.") {
        return serde_json::to_value(message).unwrap_or(Value::Null);
    }
    let mut fields = Map::new();
    for (field, value) in message.fields() {
        let shown = if SECRET_FIELDS.contains(&field.name()) {
            Value::String(REDACTED.to_owned())
        } else {
            show_field(value, &field.kind())
        };
        fields.insert(field.name().to_owned(), shown);
    }
    if name == "envoy.config.core.v3.HeaderValue" {
        hide_credentials(&mut fields);
    }
    // Never expected: our descriptors are of the types we encode with. The golden tests look for it.
    if message.unknown_fields().next().is_some() {
        fields.insert("unknown_fields".to_owned(), Value::Bool(true));
    }
    Value::Object(fields)
}

fn show_any(message: &DynamicMessage) -> Value {
    let text = message.get_field_by_name("type_url");
    let bytes = message.get_field_by_name("value");
    let url = text.as_deref().and_then(Field::as_str).unwrap_or_default();
    let value = bytes.as_deref().and_then(Field::as_bytes);
    open(url, value.map_or(&[], |value| value)).unwrap_or_else(|why| json!({ "@type": url, "error": why }))
}

fn show_field(value: &Field, kind: &Kind) -> Value {
    match value {
        Field::Bool(value) => Value::Bool(*value),
        Field::I32(value) => (*value).into(),
        Field::U32(value) => (*value).into(),
        // protojson writes 64 bits as text: readers of JSON may have only doubles.
        Field::I64(value) => Value::String(value.to_string()),
        Field::U64(value) => Value::String(value.to_string()),
        Field::F32(value) => json!(value),
        Field::F64(value) => json!(value),
        Field::String(value) => Value::String(value.clone()),
        Field::Bytes(value) => {
            use base64::Engine as _;
            Value::String(base64::engine::general_purpose::STANDARD.encode(value))
        }
        Field::EnumNumber(number) => match kind {
            Kind::Enum(names) => names.get_value(*number).map_or_else(
                || (*number).into(),
                |value| Value::String(value.name().to_owned()),
            ),
            _ => (*number).into(),
        },
        Field::Message(message) => show_message(message),
        Field::List(items) => Value::Array(items.iter().map(|item| show_field(item, kind)).collect()),
        Field::Map(entries) => {
            let value_kind = match kind {
                Kind::Message(entry) if entry.is_map_entry() => entry.map_entry_value_field().kind(),
                other => other.clone(),
            };
            let sorted: BTreeMap<String, Value> = entries
                .iter()
                .map(|(key, value)| (show_key(key), show_field(value, &value_kind)))
                .collect();
            Value::Object(sorted.into_iter().collect())
        }
    }
}

fn show_key(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

fn hide_credentials(fields: &mut Map<String, Value>) {
    let name = fields.get("key").and_then(Value::as_str).unwrap_or_default();
    if SECRET_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
        for field in ["value", "raw_value"] {
            if let Some(value) = fields.get_mut(field) {
                *value = Value::String(REDACTED.to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use envoy_types::pb::envoy::config::core::v3::{DataSource, HeaderValue, data_source};
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
        GenericSecret, Secret, TlsCertificate, secret,
    };

    use super::*;
    use crate::envoy::any;

    fn inline(text: &str) -> Option<DataSource> {
        Some(DataSource {
            specifier: Some(data_source::Specifier::InlineString(text.to_owned())),
            ..DataSource::default()
        })
    }

    fn shown(secret: secret::Type) -> String {
        let message = Secret {
            name: "s".into(),
            r#type: Some(secret),
        };
        let resource = Resource::new(ResourceKind::Secret, Arc::from("s"), &message.encode_to_vec());
        assert!(!format!("{resource:?}").contains("hunter2"));
        render_resource(&resource).to_string()
    }

    #[test]
    fn secrets_are_left_out() {
        let certificate = shown(secret::Type::TlsCertificate(TlsCertificate {
            certificate_chain: inline("the chain"),
            private_key: inline("hunter2"),
            password: inline("hunter2"),
            ..TlsCertificate::default()
        }));
        assert!(
            certificate.contains("the chain") && !certificate.contains("hunter2"),
            "{certificate}"
        );
        let generic = shown(secret::Type::GenericSecret(GenericSecret {
            secret: inline("hunter2"),
            ..GenericSecret::default()
        }));
        assert!(!generic.contains("hunter2"), "{generic}");
        let header = any(&HeaderValue {
            key: "Authorization".into(),
            value: "hunter2".into(),
            ..HeaderValue::default()
        });
        let header = open(&header.type_url, &header.value).unwrap().to_string();
        assert!(!header.contains("hunter2"), "{header}");
    }

    #[test]
    fn what_cannot_be_shown_says_why() {
        let broken = Resource::new(ResourceKind::Route, "r".into(), b"\xff\xff");
        assert!(render_resource(&broken)["error"].is_string());
        let kept = Resource::held_by_envoy(ResourceKind::Secret, "s".into(), "1".into());
        assert_eq!(render_resource(&kept)["held_by_envoy"], true);
        assert!(open("type.googleapis.com/no.such.Type", b"").is_err());
    }
}

//! Both forms of the language, and `fmt`.

use std::collections::BTreeMap;

use portreeve::config::document_schema;
use portreeve::hcl::{self, Limits, Source, ValueKind};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::generate::document;
use super::world;

/// What a text says, without where it says it.
fn meaning(text: &str) -> Result<Value, String> {
    let document = world::file("t.hcl", text);
    let source = Source::new(document.id.clone(), document.text.clone());
    let body = hcl::parse(&source, document_schema(), &Limits::default())
        .map_err(|problems| problems[0].to_string())?;
    Ok(body_meaning(&body))
}

fn body_meaning(body: &hcl::Body) -> Value {
    let attributes: BTreeMap<&str, Value> = body
        .attributes
        .iter()
        .map(|attribute| (&*attribute.name, value_meaning(&attribute.value)))
        .collect();
    let mut blocks: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for block in &body.blocks {
        let labels: Vec<&str> = block.labels.iter().map(|(label, _)| &**label).collect();
        let inner = json!([labels, body_meaning(&block.body)]);
        blocks.entry(&block.kind).or_default().push(inner);
    }
    json!([attributes, blocks])
}

fn value_meaning(value: &hcl::Value) -> Value {
    match &value.kind {
        ValueKind::Null => Value::Null,
        ValueKind::Bool(value) => json!(value),
        ValueKind::Integer(value) => json!(value),
        ValueKind::Float(value) => json!(value),
        ValueKind::String(value) => json!(value),
        ValueKind::List(items) => items.iter().map(value_meaning).collect(),
        ValueKind::Object(entries) => entries
            .iter()
            .map(|(name, _, value)| (name.clone(), value_meaning(value)))
            .collect(),
    }
}

/// The same text as a careless hand would write it.
fn untidy(text: &str, choices: &[u8]) -> String {
    let mut untidy = String::new();
    for (index, line) in text.lines().enumerate() {
        let choice = choices[index % choices.len()];
        if choice & 1 != 0 {
            untidy.push_str(&" ".repeat(usize::from(choice >> 4)));
        }
        let line = line.trim_start();
        let spaced = match choice & 6 {
            2 => line.replacen(" = ", "=", 1),
            4 => line.replacen(" = ", "   =\t", 1),
            _ => line.to_owned(),
        };
        untidy.push_str(&spaced);
        match choice & 24 {
            8 => untidy.push_str(" # { why"),
            16 => untidy.push_str("  \n\n\n/* [ \n  kept */"),
            _ => {}
        }
        untidy.push('\n');
    }
    untidy
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_forms_mean_the_same(body in document()) {
        let (hcl, json) = (body.to_hcl(), body.to_json());
        let expected = meaning(&hcl);
        prop_assert!(expected.is_ok(), "{:?}\n{}", expected, hcl);
        prop_assert_eq!(&expected, &meaning(&json.to_string()));
        prop_assert_eq!(&expected, &meaning(&serde_json::to_string_pretty(&json).unwrap()));
    }

    /// JSON shown as HCL says the same, and is formatted.
    #[test]
    fn json_as_hcl_means_the_same(body in document()) {
        let json = world::file("t.json", &body.to_json().to_string());
        let source = Source::new(json.id.clone(), json.text.clone());
        let tree = hcl::parse(&source, document_schema(), &Limits::default()).unwrap();
        let shown = hcl::to_hcl(&tree).unwrap();
        prop_assert_eq!(meaning(&shown), meaning(&json.text), "{}", shown);
        prop_assert_eq!(hcl::format(&shown).unwrap(), shown);
    }

    #[test]
    fn generated_documents_hold_together(body in document()) {
        let document = world::file("t.hcl", &body.to_hcl());
        let parsed = portreeve::config::parse_document(
            &document,
            &portreeve::config::Permissions::default(),
            &Limits::default(),
        );
        prop_assert!(parsed.is_ok(), "{:?}\n{}", parsed.err(), body.to_hcl());
    }

    #[test]
    fn fmt_is_stable_and_keeps_meaning(body in document(), choices in proptest::collection::vec(any::<u8>(), 1..20)) {
        let text = untidy(&body.to_hcl(), &choices);
        let formatted = hcl::format(&text).unwrap();
        prop_assert_eq!(meaning(&formatted), meaning(&text), "{}", formatted);
        prop_assert_eq!(hcl::format(&formatted).unwrap(), formatted.clone());
        for comment in ["# { why", "kept */"] {
            prop_assert_eq!(formatted.matches(comment).count(), text.matches(comment).count());
        }
        // A tidy document has one form only, wherever it comes from.
        let tidy = hcl::format(&body.to_hcl()).unwrap();
        let plain = choices.iter().all(|choice| choice & 24 == 0 || choice & 24 == 24);
        prop_assert!(!plain || formatted == tidy, "{}\n{}", formatted, tidy);
    }
}

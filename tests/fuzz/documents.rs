use portreeve::config::{Permissions, parse_document};
use portreeve::diagnostics::render;
use portreeve::hcl::{self, Limits};
use portreeve::model::{Document, DocumentId};
use proptest::prelude::*;

use crate::mutation::{examples, mutated};

/// Nothing an author can write panics, and every problem can be shown with its text.
fn read(text: &str) {
    for id in [
        DocumentId::Kv("p/config/a".into()),
        DocumentId::File("a.hcl".into()),
    ] {
        let document = Document {
            id,
            text: text.into(),
            order: 1,
            version: 1,
        };
        if let Err(problems) = parse_document(&document, &Permissions::default(), &Limits::default()) {
            assert!(!problems.is_empty(), "refused without a reason: {text:?}");
            for problem in &problems {
                let _ = render(problem, Some(text), false);
                if let Some(origin) = &problem.origin {
                    assert!(origin.span.start <= origin.span.end && origin.span.end <= text.len());
                    assert!(origin.line >= 1 && origin.column >= 1);
                }
            }
        }
    }
}

const JSON: &[&str] = &[
    r#"{"gateway": {"edge": {"listener": {"web": {"port": 8080}}}}}"#,
    r#"{"gateway": [{"edge": {"listener": {"web": {"port": 8443, "protocol": "https", "tls": {"certificates": ["www"]}}}}}]}"#,
    r#"{"http_route": {"shop": {"gateways": ["edge"], "hostnames": ["shop.example.com", "*.example.org"],
        "rule": {"api": {"match": [{"path_prefix": "/api", "methods": ["GET"]}, {"path": "/x"}],
        "timeout": "10s", "retry": {"attempts": 2, "on": ["connect-failure"]},
        "backend": {"consul": {"orders": {"weight": 90}}}}}}}}"#,
    r#"{"upstream": {"a": {"static": {"addresses": ["10.0.0.1:80"]}}}, "certificate": {"www": {"vault_kv": {"mount": "secret", "path": "www"}}}}"#,
];

fn json_value() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let word = prop::sample::select(vec![
        "gateway",
        "listener",
        "port",
        "http_route",
        "rule",
        "match",
        "backend",
        "consul",
        "tls",
        "retry",
        "hostnames",
        "a",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(8, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((word.clone(), inner), 0..5).prop_map(|entries| {
                Value::Object(
                    entries
                        .into_iter()
                        .map(|(key, value)| (key.to_owned(), value))
                        .collect(),
                )
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fuzz_document_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        read(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn fuzz_document_mutated_examples(text in mutated(examples())) {
        read(&text);
    }

    #[test]
    fn fuzz_document_json(value in json_value()) {
        read(&serde_json::json!({ "gateway": value, "http_route": { "a": value } }).to_string());
        read(&value.to_string());
    }

    #[test]
    fn fuzz_document_mutated_json(text in mutated(JSON.iter().map(ToString::to_string).collect())) {
        read(&text);
    }

    #[test]
    fn fuzz_format(text in mutated(examples())) {
        if let Ok(formatted) = hcl::format(&text) {
            match hcl::format(&formatted) {
                Ok(again) => prop_assert_eq!(&again, &formatted, "formatting is not stable: {:?}", text),
                Err(error) => prop_assert!(false, "no HCL any more: {error}\n{text:?}\n{formatted:?}"),
            }
        }
    }
}

/// Nesting is not bounded by the grammar, and the stack is.
#[test]
fn fuzz_document_deep_nesting() {
    for (open, close) in [
        ("[", "]"),
        ("(", ")"),
        ("{a=", "}"),
        ("a{", "}"),
        ("\"${", "}\""),
        ("{\"a\":", "}"),
        ("!", ""),
        ("-", ""),
    ] {
        for depth in [100, 2_000, 50_000] {
            let nested = open.repeat(depth) + "1" + &close.repeat(depth);
            let (value, whole) = (format!("a = {nested}\n"), format!("{nested}\n"));
            for text in [value, whole] {
                let handle = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
                    read(&text);
                    let _ = hcl::format(&text);
                });
                handle.unwrap().join().unwrap();
            }
        }
    }
}

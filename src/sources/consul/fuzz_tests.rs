//! Answers that Consul never gives: read or refused, never a panic, never over the bounds.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use proptest::prelude::*;

use super::document_ledger::DocumentLedger;
use super::health_answer;
use crate::model::Lookup;
use crate::sources::damage::half_broken;

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| format!("{:?}", BASE64.encode(bytes))),
        Just("null".to_owned()),
        Just("1".to_owned()),
        Just("\"===\"".to_owned()),
        "[a-zA-Z=\\\\]{0,9}".prop_map(|text| format!("{text:?}")),
    ]
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof!["p/config/[a-c]", "p/[a-z/.]{0,6}", "\\PC{0,8}"]
}

fn row() -> impl Strategy<Value = String> {
    (key(), value(), any::<u64>(), any::<i64>()).prop_map(|(key, value, create, modify)| {
        format!(
            r#"{{"Key":{},"Value":{value},"CreateIndex":{create},"ModifyIndex":{modify},"Session":null}}"#,
            serde_json::Value::from(key)
        )
    })
}

fn listing() -> impl Strategy<Value = Vec<u8>> {
    let body =
        prop::collection::vec(row(), 0..6).prop_map(|rows| format!("[{}]", rows.join(",")).into_bytes());
    half_broken(body)
}

const HEALTH: &str = r#"[{"Node":{"Node":"n","Address":"10.0.0.1"},"Service":{"ID":"a","Service":"web","Address":"","Port":80,
"Weights":{"Passing":10,"Warning":1},"Tags":["a"],"Meta":{"k":"v"}},"Checks":[{"CheckID":"c","Status":"passing"}]},
{"Node":{"Node":"m","Address":"::1"},"Service":{"ID":"b","Service":"web","Address":"h.example","Port":65535,"Tags":null,
"Meta":null},"Checks":null}]"#;

fn health() -> impl Strategy<Value = Vec<u8>> {
    let swap = prop::sample::select(vec![
        ("80", "-1"),
        ("80", "65536"),
        ("80", "1e3"),
        ("80", "null"),
        ("10", "18446744073709551616"),
        ("10", "-5"),
        ("null", "{}"),
        ("[", "{"),
        ("\"passing\"", "7"),
        ("\"n\"", "\"\""),
        ("10.0.0.1", "\\u0000"),
        ("true", "false"),
    ]);
    let body = prop::collection::vec(swap, 0..4).prop_map(|swaps| {
        let text = swaps
            .iter()
            .fold(HEALTH.to_owned(), |text, (from, to)| text.replacen(from, to, 1));
        text.into_bytes()
    });
    half_broken(body)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fuzz_kv_listings(bodies in prop::collection::vec(listing(), 1..4)) {
        let mut ledger = DocumentLedger::default();
        for body in bodies {
            if let Ok(listing) = ledger.compare(&body, false) {
                let seen = listing.changed.len() + listing.rejected.len();
                prop_assert!(seen <= listing.present);
                prop_assert!(listing.vanished.len() <= ledger.len());
                ledger.apply(&listing.changed, &[]);
                let again = ledger.compare(&body, true).unwrap();
                // A key twice in one answer cannot settle; Consul's keys are unique.
                if listing.present == again.present && seen == listing.present {
                    prop_assert!(again.changed.len() <= listing.changed.len());
                }
            }
        }
    }

    #[test]
    fn fuzz_kv_bytes(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = DocumentLedger::default().compare(&body, true);
        let _ = health_answer::parse(&body, Lookup::Service);
        let _ = health_answer::parse(&body, Lookup::PreparedQuery);
    }

    #[test]
    fn fuzz_health_answers(body in health()) {
        if let Ok(instances) = health_answer::parse(&body, Lookup::Service) {
            prop_assert!(instances.list.len() + instances.unusable <= 2);
            prop_assert!(instances.list.is_sorted());
        }
    }
}

//! Answers that Nomad never gives: read or refused, never a panic, never over the bounds.

use proptest::prelude::*;

use super::answer;
use crate::sources::damage::half_broken;

const SERVICES: &str = r#"[{"ID":"a","ServiceName":"web","Namespace":"default","Address":"10.0.0.1","Port":80,
"Tags":["v1"],"NodeID":"n","CreateIndex":14},{"ID":"b","ServiceName":"web","Namespace":"default","Address":"h.example",
"Port":65535,"Tags":null,"NodeID":"m","CreateIndex":15}]"#;

const LIST: &str = r#"[{"Namespace":"shop","Services":[{"ServiceName":"web","Tags":[]}]},
{"Namespace":"default","Services":[{"ServiceName":"web","Tags":null},{"ServiceName":"db","Tags":[]}]},
{"Namespace":"empty","Services":null}]"#;

/// With up to three things that do not belong there; half of them then with one byte changed or the end cut off.
fn hostile(body: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let swap = prop::sample::select(vec![
        ("80", "-1"),
        ("80", "65536"),
        ("80", "1e3"),
        ("80", "null"),
        ("14", "18446744073709551616"),
        ("14", "-5"),
        ("null", "{}"),
        ("[", "{"),
        ("\"v1\"", "7"),
        ("\"a\"", "\"\""),
        ("\"a\"", "\"\\n\""),
        ("10.0.0.1", "\\u0000"),
        ("10.0.0.1", "10.0.0.1 10.0.0.2"),
        ("h.example", "h.example\\t"),
        ("\"shop\"", "7"),
        ("\"web\"", "\"\""),
    ]);
    let swaps = prop::collection::vec(swap, 0..4);
    half_broken(swaps.prop_map(move |swaps| {
        let mut text = body.to_owned();
        for (from, to) in swaps {
            text = text.replacen(from, to, 1);
        }
        text.into_bytes()
    }))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fuzz_answers_of_nomad(body in hostile(SERVICES)) {
        if let Ok(instances) = answer::parse(&body) {
            prop_assert!(instances.list.len() + instances.unusable <= 2);
            prop_assert!(instances.list.is_sorted());
            for instance in &instances.list {
                let odd = |text: &str| text.is_empty() || text.contains(char::is_control);
                prop_assert!(!odd(&instance.id) && !odd(&instance.address), "{instance:?}");
                prop_assert!(!instance.address.contains(char::is_whitespace), "{instance:?}");
            }
        }
    }

    #[test]
    fn fuzz_lists_of_nomad(body in hostile(LIST)) {
        if let Ok((namespaces, _)) = answer::namespaces_of(&body, "web") {
            prop_assert!(namespaces.len() <= 3);
            prop_assert!(namespaces.is_sorted());
        }
    }

    #[test]
    fn fuzz_bytes_of_nomad(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = answer::parse(&body);
        let _ = answer::namespaces_of(&body, "web");
    }
}

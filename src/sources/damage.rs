//! For fuzz tests: answers and texts that are nearly right.

use proptest::prelude::*;
use serde_json::{Value, json};

/// This JSON with up to three of its values replaced by what does not belong there; half of them then with one byte changed
/// or the end cut off.
pub fn damaged_json(text: &str) -> impl Strategy<Value = Vec<u8>> {
    let whole: Value = serde_json::from_str(text).expect("JSON to damage");
    let odd = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!([null, {"Name": "x"}])),
        Just(json!({ "": null })),
        "\\PC{0,12}".prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "\n",
            "\0",
            "*",
            "%",
            "-1s",
            "9e99h",
            "../..",
            "(",
            "[[:alpha:]]{1000}{1000}"
        ])
        .prop_map(Value::from),
        (1..200_000usize).prop_map(|length| Value::from("x".repeat(length))),
    ];
    let places = prop::collection::vec((any::<prop::sample::Index>(), odd), 0..4);
    (places, any::<prop::sample::Index>(), any::<u8>(), 0..4u8).prop_map(move |(places, place, byte, how)| {
        let mut value = whole.clone();
        for (place, odd) in places {
            let mut left = place.index(count(&value));
            replace(&mut value, &mut left, &odd);
        }
        let mut body = value.to_string().into_bytes();
        break_one(&mut body, place, byte, how);
        body
    })
}

/// Half of them with one byte changed or the end cut off.
pub fn half_broken(body: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (body, any::<prop::sample::Index>(), any::<u8>(), 0..4u8).prop_map(|(mut body, place, byte, how)| {
        break_one(&mut body, place, byte, how);
        body
    })
}

fn break_one(body: &mut Vec<u8>, place: prop::sample::Index, byte: u8, how: u8) {
    if body.is_empty() {
        return;
    }
    let at = place.index(body.len());
    match how {
        0 => body[at] = byte,
        1 => body.truncate(at),
        _ => {}
    }
}

/// This text with up to three of its lines cut, doubled or moved, or one character replaced.
pub fn damaged_text(text: &str) -> impl Strategy<Value = String> {
    let whole: Vec<String> = text.lines().map(str::to_owned).collect();
    let edit = (
        any::<prop::sample::Index>(),
        any::<prop::sample::Index>(),
        0..4u8,
        any::<char>(),
    );
    prop::collection::vec(edit, 0..4).prop_map(move |edits| {
        let mut lines = whole.clone();
        for (place, other, how, character) in edits {
            if lines.is_empty() {
                break;
            }
            let (at, to) = (place.index(lines.len()), other.index(lines.len()));
            match how {
                0 => _ = lines.remove(at),
                1 => lines.insert(to, lines[at].clone()),
                2 => lines.swap(at, to),
                _ => {
                    let mut characters: Vec<char> = lines[at].chars().collect();
                    if !characters.is_empty() {
                        let at = other.index(characters.len());
                        characters[at] = character;
                    }
                    lines[at] = characters.into_iter().collect();
                }
            }
        }
        lines.join("\n") + "\n"
    })
}

/// Values in it, itself included.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// The value that many places on.
fn replace(value: &mut Value, left: &mut usize, by: &Value) -> bool {
    if *left == 0 {
        *value = by.clone();
        return true;
    }
    *left -= 1;
    match value {
        Value::Array(list) => list.iter_mut().any(|inner| replace(inner, left, by)),
        Value::Object(map) => map.values_mut().any(|inner| replace(inner, left, by)),
        _ => false,
    }
}

#[test]
fn every_value_can_be_replaced() {
    let whole = json!({ "a": [1, { "b": 2 }], "c": "d" });
    let replaced: std::collections::BTreeSet<String> = (0..count(&whole))
        .map(|place| {
            let mut value = whole.clone();
            assert!(replace(&mut value, &mut { place }, &json!("odd")));
            value.to_string()
        })
        .collect();
    assert_eq!(replaced.len(), 6);
    assert!(
        replaced.contains(r#"{"a":[1,{"b":"odd"}],"c":"d"}"#),
        "{replaced:?}"
    );
}

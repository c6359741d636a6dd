//! Durations as Go writes them in JSON: text such as "1m30s", or a number of nanoseconds where a type has no text form
//! (`RequestTimeout` of a resolver in Consul's discovery chains).

use std::time::Duration;

use serde::{Deserialize, Deserializer};

#[derive(Deserialize)]
#[serde(untagged)]
enum Raw {
    Nanoseconds(i64),
    Text(String),
}

/// None: absent, null, empty, zero or negative. All of them mean "not set" to Consul.
pub(super) fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let duration = match Option::<Raw>::deserialize(deserializer)? {
        None => None,
        Some(Raw::Nanoseconds(nanoseconds)) => u64::try_from(nanoseconds).ok().map(Duration::from_nanos),
        Some(Raw::Text(text)) if text.is_empty() => None,
        Some(Raw::Text(text)) => Some(
            parse(&text)
                .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a duration of Go's")))?,
        ),
    };
    Ok(duration
        .filter(|duration| !duration.is_zero())
        .map(|duration| duration.min(LONGEST)))
}

fn parse(text: &str) -> Option<Duration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let (unit, after) = UNITS
            .iter()
            .find_map(|(unit, factor)| Some((factor, rest[digits..].strip_prefix(unit)?)))?;
        seconds += number * unit;
        rest = after;
    }
    if negative || text.is_empty() {
        return (!text.is_empty()).then_some(Duration::ZERO);
    }
    Duration::try_from_secs_f64(seconds).ok()
}

/// Longer names first: "ms" is not "m" and an "s".
const UNITS: &[(&str, f64)] = &[
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("ms", 1e-3),
    ("h", 3600.0),
    ("m", 60.0),
    ("s", 1.0),
];

/// Protobuf's durations end later, but nobody means more than a year.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Option<Duration>, serde_json::Error> {
        optional(&mut serde_json::Deserializer::from_str(json))
    }

    #[test]
    fn text_and_numbers_are_read() {
        for (json, expected) in [
            ("\"5s\"", Some(Duration::from_secs(5))),
            ("\"1m30s\"", Some(Duration::from_secs(90))),
            ("\"1h0m0s\"", Some(Duration::from_secs(3600))),
            ("\"250ms\"", Some(Duration::from_millis(250))),
            ("\"1.5s\"", Some(Duration::from_millis(1500))),
            ("15000000000", Some(Duration::from_secs(15))),
            ("\"0s\"", None),
            ("\"\"", None),
            ("0", None),
            ("-1", None),
            ("\"-5s\"", None),
            ("null", None),
        ] {
            assert_eq!(read(json).unwrap(), expected, "{json}");
        }
        for json in ["\"5\"", "\"s\"", "\"5x\"", "\"5s5\"", "{}", "true"] {
            assert!(read(json).is_err(), "{json}");
        }
    }
}

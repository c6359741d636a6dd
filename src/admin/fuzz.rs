//! What comes to the API, and what goes out of it of Envoy's own.

use super::parameters::Parameters;
use super::redact::redact;
use crate::fuzz::Target;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "api_parameters",
        input: "queries of the agent's API",
        run: parameters,
    },
    Target {
        name: "config_dumps",
        input: "Envoy's dump of its configuration, its secrets taken out",
        run: dump,
    },
];

fn parameters(input: &[u8]) {
    let Ok(query) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(parameters) = Parameters::parse(Some(query), &["limit", "url", "header"]) {
        // A number, or what is wrong with it.
        let _ = parameters.number("limit");
        assert!(parameters.all("header").count() <= query.len());
        parameters.get("url");
    }
}

fn dump(input: &[u8]) {
    if let Ok(mut value) = serde_json::from_slice(input) {
        redact(&mut value);
        let once = value.clone();
        redact(&mut value);
        assert_eq!(once, value, "nothing is left to take out");
    }
}

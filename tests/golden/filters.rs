//! What every request passes, by name: nothing that the documents did not ask for but the spelling of hosts (ADR 2) and the place of
//! `client_ip` (ADR 15). Snapshots show it too, among much else that changes: a filter more would be accepted with it.

use std::path::Path;

use portreeve::envoy::render;
use serde_json::{Value, json};

use super::examples;

/// A filter's name, and the type of its configuration.
type Filter<'a> = (&'a str, &'a str);

const LOWER_CASE_HOST: Filter<'static> = (
    "portreeve.lower_case_host",
    "type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher",
);
const CLIENT_IP: Filter<'static> = (
    "portreeve.client_ip",
    "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
);
const ROUTER: Filter<'static> = (
    "envoy.filters.http.router",
    "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
);

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn http_filters(manager: &Value) -> Vec<Filter<'_>> {
    let filters = list(&manager["http_filters"]).iter();
    filters
        .map(|filter| (text(&filter["name"]), text(&filter["typed_config"]["@type"])))
        .collect()
}

/// The managers of HTTP in all of a listener's chains; each chain has nothing beside its own.
fn managers(listener: &Value) -> Vec<&Value> {
    let chains = list(&listener["filter_chains"]).iter();
    let only = chains.map(|chain| match list(&chain["filters"]) {
        [only] => only,
        filters => panic!("{filters:#?}"),
    });
    only.filter(|filter| filter["name"] == "envoy.filters.network.http_connection_manager")
        .map(|filter| &filter["typed_config"])
        .collect()
}

#[test]
fn without_policies_a_request_passes_what_is_always_there() {
    let set = examples::compile(Path::new("hcl-examples/quickstart.hcl"))
        .remove("edge")
        .unwrap();
    let shown = render(&set);
    let [listener] = list(&shown["listeners"]) else {
        panic!("{shown:#}")
    };
    assert_eq!(listener["listener_filters"], Value::Null);
    let [manager] = managers(listener)[..] else {
        panic!("{listener:#}")
    };
    assert_eq!(http_filters(manager), [LOWER_CASE_HOST, CLIENT_IP, ROUTER]);
    // Without a rule, it lets everything pass.
    let place = &manager["http_filters"][1]["typed_config"];
    assert_eq!(*place, json!({ "@type": CLIENT_IP.1 }));
    for name in ["access_log", "tracing"] {
        assert_eq!(manager[name], Value::Null, "{name}");
    }
    // What is done before a route is chosen: the mark of the listener, and away with what is not a client's to say.
    let [early] = list(&manager["early_header_mutation_extensions"]) else {
        panic!("{manager:#}")
    };
    let [mark, removed @ ..] = list(&early["typed_config"]["mutations"]) else {
        panic!("{early:#}")
    };
    assert_eq!(mark["append"]["header"]["key"], "x-portreeve-listener");
    let removed: Vec<&str> = removed
        .iter()
        .filter_map(|mutation| mutation["remove"].as_str())
        .collect();
    assert_eq!(
        removed,
        [
            "x-envoy-attempt-count",
            "x-envoy-is-timeout-retry",
            "x-envoy-original-host",
            "forwarded",
            "x-forwarded-host",
            "x-forwarded-port",
            "x-forwarded-prefix",
            "x-forwarded-server",
            "x-real-ip",
        ]
    );
    // A route that was found has the one filter switched off and sets nothing up for another; no cluster has any.
    for scope in list(&shown["scoped_routes"]) {
        let off =
            json!({ "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true });
        let table = &scope["route_configuration"];
        assert_eq!(
            table["typed_per_filter_config"],
            json!({ LOWER_CASE_HOST.0: off })
        );
        assert_eq!(table.to_string().matches("typed_per_filter_config").count(), 1);
    }
    assert!(!shown["clusters"].to_string().contains("http_filters"));
}

/// Whatever documents say: no policy that there is adds a filter.
#[test]
fn every_listener_has_the_same_chain() {
    let (mut scoped, mut tables) = (0, 0);
    for (name, path) in examples::all() {
        for (gateway, set) in examples::compile(&path) {
            for listener in list(&render(&set)["listeners"]) {
                for manager in managers(listener) {
                    let shown = http_filters(manager);
                    if manager["scoped_routes"].is_object() {
                        scoped += 1;
                        assert_eq!(shown, [LOWER_CASE_HOST, CLIENT_IP, ROUTER], "{name}: {gateway}");
                    } else {
                        tables += 1;
                        // A table finds hosts however they are written.
                        assert_eq!(shown, [CLIENT_IP, ROUTER], "{name}: {gateway}");
                    }
                }
            }
        }
    }
    assert!(scoped > 10 && tables > 0, "{scoped} and {tables}");
}

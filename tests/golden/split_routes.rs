//! A route whose second try depends on the method is two for Envoy: what a list of them costs is counted in Envoy's routes.

use portreeve::envoy::render;
use serde_json::Value;

use super::examples;

fn host_of(rules: usize, retry: &str) -> Value {
    let rules: String = (0..rules)
        .map(|at| {
            format!(
                "  rule \"r{at}\" {{\n    match {{ path = \"/r{at}\" }}\n    backend \"consul\" \"orders\" {{}}\n  }}\n"
            )
        })
        .collect();
    let document = format!(
        "gateway \"edge\" {{\n  listener \"http\" {{\n    port = 8080\n  }}\n}}\n\
         http_route \"many\" {{\n  gateways  = [\"edge\"]\n  hostnames = [\"a.example.com\"]\n{retry}{rules}}}\n"
    );
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("many.hcl");
    std::fs::write(&file, document).unwrap();
    let shown = render(&examples::compile(&file).remove("edge").unwrap());
    let scopes = shown["scoped_routes"].as_array().unwrap();
    scopes[0]["route_configuration"]["virtual_hosts"][0].clone()
}

#[test]
fn routes_that_are_two_for_envoy_make_a_long_list_sooner() {
    let is_list = |host: &Value| host["matcher"].is_null();
    let count = |host: &Value| host["routes"].as_array().map_or(0, Vec::len);
    let split = "  retry { on = [\"5xx\"] }\n";

    let host = host_of(15, "");
    assert!(is_list(&host) && count(&host) == 15, "{host:#}");
    assert!(!is_list(&host_of(16, "")));

    let host = host_of(7, split);
    assert!(is_list(&host) && count(&host) == 14, "{host:#}");
    assert!(!is_list(&host_of(8, split)));

    // Of POST and GET alike.
    let host = host_of(
        15,
        "  retry {\n    on             = [\"5xx\"]\n    non_idempotent = true\n  }\n",
    );
    assert!(is_list(&host) && count(&host) == 15, "{host:#}");
}

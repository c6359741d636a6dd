//! The real Envoy reads every example: `envoy --mode validate` on a static rendering of the same messages.
//!
//! Static configuration has no xDS, so what would come over it is put in place: endpoints into clusters, secrets and
//! routes into listeners. Bytes on the wire are the business of the end-to-end tests.

use std::path::{Path, PathBuf};
use std::process::Command;

use portreeve::envoy::{ResourceKind, ResourceSet, render};
use portreeve::translate::Compiler;
use serde_json::{Value, json};

use super::{examples, world};

#[test]
fn accepts_every_example() {
    for (name, path) in examples::all() {
        for (gateway, set) in examples::compile(&path) {
            assert_eq!(validate(&static_bootstrap(&set)), Ok(()), "{name}: {gateway}");
        }
    }
}

/// The check itself can say no.
#[test]
fn refuses_what_is_wrong() {
    let set = examples::compile(Path::new("hcl-examples/quickstart.hcl"))
        .remove("edge")
        .unwrap();
    let mut bootstrap = static_bootstrap(&set);
    bootstrap["static_resources"]["clusters"][0]["lb_policy"] = json!("MAGLEV_OF_ANOTHER_WORLD");
    assert!(validate(&bootstrap).is_err());
    let mut bootstrap = static_bootstrap(&set);
    bootstrap["static_resources"]["clusters"] = json!([]);
    let said = validate(&bootstrap).unwrap_err();
    assert!(said.contains("unknown cluster"), "{said}");
}

/// Asked for in other words, Envoy would open a second subscription to scopes, which the bootstrap does not keep open.
#[test]
fn listeners_ask_for_scopes_in_the_words_of_the_bootstrap() {
    let set = examples::compile(Path::new("hcl-examples/quickstart.hcl"))
        .remove("edge")
        .unwrap();
    let listener = render(&set)["listeners"][0].clone();
    let kept = bootstrap()["static_resources"]["listeners"][0].clone();
    let words = "/filter_chains/0/filters/0/typed_config/scoped_routes/scoped_rds";
    assert!(kept.pointer(words).is_some(), "{kept}");
    assert_eq!(listener.pointer(words), kept.pointer(words));
}

/// What the language lets through as a regular expression, Envoy takes: with the bootstrap that we give it.
#[test]
fn accepts_every_regular_expression_of_ours() {
    let runtime = bootstrap()["layered_runtime"].clone();
    let patterns = [
        format!("/{}", "a".repeat(1000)),
        "/[a-z]{1,1000}".to_owned(),
        r"(?i)/\p{Greek}+/\d{3}\.\w\b.*".to_owned(),
        "/([a-z0-9]{1,50}-){1,20}".to_owned(),
    ];
    let rules: String = patterns
        .iter()
        .enumerate()
        .map(|(index, pattern)| {
            format!("rule \"r{index}\" {{\n match {{ path_regex = {pattern:?} }}\n direct_response {{ status = 200 }}\n}}\n")
        })
        .collect();
    let text = format!(
        "gateway \"edge\" {{\n listener \"web\" {{ port = 80 }}\n}}\n\
         http_route \"r\" {{\n gateways = [\"edge\"]\n hostnames = [\"a.test\"]\n {rules} }}\n"
    );
    let mut snapshot = world::empty();
    world::put(&mut snapshot, [world::file("t.hcl", &text)]);
    assert_eq!(snapshot.config.diagnostics(), []);
    let compiler = Compiler::compile("edge", world::settings(), &snapshot);
    let mut bootstrap = static_bootstrap(compiler.resources());
    assert!(
        validate(&bootstrap).is_err(),
        "Envoy's own bound is gone: so may ours be"
    );
    bootstrap["layered_runtime"] = runtime;
    assert_eq!(validate(&bootstrap), Ok(()));
}

/// References within a set: what a resource needs is there, or Envoy would wait for it.
#[test]
fn needs_nothing_that_is_not_there() {
    for (name, path) in examples::all() {
        for set in examples::compile(&path).into_values() {
            for kind in ResourceKind::ALL {
                for resource in set.of_kind(kind).values() {
                    for need in resource.needs.iter() {
                        assert!(
                            set.get(need.kind, &need.name).is_some(),
                            "{name}: {resource:?} needs {need:?}"
                        );
                    }
                }
            }
        }
    }
}

pub(super) fn validate(bootstrap: &Value) -> Result<(), String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("envoy.json");
    std::fs::write(&file, bootstrap.to_string()).unwrap();
    let output = Command::new(envoy())
        .args(["--mode", "validate", "--log-level", "error", "-c"])
        .arg(&file)
        .output()
        .unwrap();
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout))
    }
}

fn envoy() -> PathBuf {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(fetched)
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join("envoy"))
        .find(|candidate| candidate.is_file())
        .expect("envoy in target/tools/bin or on PATH: run make setup")
}

/// Ours.
fn bootstrap() -> Value {
    let endpoint = portreeve::envoy::bootstrap::XdsEndpoint::Unix("/run/portreeve/xds.sock".into());
    let ours =
        portreeve::envoy::bootstrap::Bootstrap::new("test", "edge", endpoint, Path::new("/run/admin.sock"));
    ours.render().unwrap().bootstrap
}

pub(super) fn static_bootstrap(set: &ResourceSet) -> Value {
    let mut shown = render(set);
    let take = |value: &mut Value| -> Vec<Value> {
        let mut items = value.as_array_mut().map(std::mem::take).unwrap_or_default();
        items
            .iter_mut()
            .for_each(|item| drop(item.as_object_mut().unwrap().remove("@type")));
        items
    };
    let endpoints = take(&mut shown["endpoints"]);
    let mut clusters = take(&mut shown["clusters"]);
    for cluster in &mut clusters {
        if cluster["type"] == "EDS" {
            let assignment = endpoints
                .iter()
                .find(|one| one["cluster_name"] == cluster["name"]);
            cluster["load_assignment"] = assignment.expect("endpoints of an EDS cluster").clone();
            cluster["type"] = json!("STATIC");
            cluster.as_object_mut().unwrap().remove("eds_cluster_config");
        }
        without_sds(cluster.pointer_mut("/transport_socket/typed_config/common_tls_context"));
    }
    let mut secrets = take(&mut shown["secrets"]);
    for secret in &mut secrets {
        if secret["tls_certificate"].is_object() {
            secret["tls_certificate"]["private_key"] = json!({ "inline_string": world::KEY });
        }
    }
    let scopes = take(&mut shown["scoped_routes"]);
    let tables = take(&mut shown["routes"]);
    let listeners: Vec<Value> = take(&mut shown["listeners"])
        .into_iter()
        .map(|listener| with_routes(listener, &scopes, &tables))
        .collect();
    json!({
        "node": { "id": "test", "cluster": "test" },
        "static_resources": { "clusters": clusters, "secrets": secrets, "listeners": listeners },
    })
}

/// Secrets of the mesh that stand beside the cluster, by their names.
fn without_sds(context: Option<&mut Value>) {
    let Some(context) = context else { return };
    let mine = context["tls_certificate_sds_secret_configs"].as_array_mut();
    for config in mine.into_iter().flatten() {
        config.as_object_mut().unwrap().remove("sds_config");
    }
    let theirs = context.pointer_mut("/combined_validation_context/validation_context_sds_secret_config");
    theirs.unwrap().as_object_mut().unwrap().remove("sds_config");
}

/// The listener with its secrets and routes in place.
fn with_routes(mut listener: Value, scopes: &[Value], tables: &[Value]) -> Value {
    const SDS: &str = "/transport_socket/typed_config/common_tls_context/tls_certificate_sds_secret_configs";
    let name = listener["name"].clone();
    for chain in listener["filter_chains"].as_array_mut().unwrap() {
        let sds = chain.pointer_mut(SDS).and_then(Value::as_array_mut);
        for config in sds.into_iter().flatten() {
            config.as_object_mut().unwrap().remove("sds_config");
        }
        let manager = chain["filters"].as_array_mut().unwrap().last_mut().unwrap();
        if manager["name"] == "envoy.filters.network.tcp_proxy" {
            continue;
        }
        let manager = manager["typed_config"].as_object_mut().unwrap();
        if let Some(rds) = manager.remove("rds") {
            let table = tables
                .iter()
                .find(|table| table["name"] == rds["route_config_name"]);
            manager.insert("route_config".to_owned(), strict(table.expect("a table").clone()));
            continue;
        }
        let mine = scopes
            .iter()
            .filter(|scope| scope["key"]["fragments"][0]["string_key"] == name);
        let mine: Vec<Value> = mine
            .map(|scope| {
                let mut scope = scope.clone();
                scope["route_configuration"] = strict(scope["route_configuration"].take());
                scope
            })
            .collect();
        if mine.is_empty() {
            // A listener whose routes stand in another document: a list of no scopes would be refused.
            manager.remove("scoped_routes");
            manager.insert("route_config".to_owned(), json!({ "name": name }));
            continue;
        }
        let routes = manager["scoped_routes"].as_object_mut().unwrap();
        routes.remove("scoped_rds");
        routes.remove("rds_config_source");
        routes.insert(
            "scoped_route_configurations_list".to_owned(),
            json!({ "scoped_route_configurations": mine }),
        );
    }
    listener
}

/// Here every cluster is there, so every route must name one that is.
fn strict(mut table: Value) -> Value {
    table["validate_clusters"] = json!(true);
    table
}

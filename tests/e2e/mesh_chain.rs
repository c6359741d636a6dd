//! Where the discovery chain sends each request, in which shares and under which name. All of it with ACLs that deny by
//! default; the services speak the mesh's TLS themselves.

use hyper::Method;
use serde_json::{Value, json};

use crate::connect::{document, from, mesh_stack, protocol};
use crate::mesh_tls::Native;
use crate::stack::{GATEWAY, SOON, Stack};
use crate::support::backend::Backend;
use crate::support::client::{Reply, Request};
use crate::weights::{REQUESTS, answers, counted, is_share};

/// A mesh all of whose services speak HTTP, and let the gateway in.
async fn open_mesh() -> Stack {
    let stack = mesh_stack(GATEWAY).await;
    let defaults = json!({ "Kind": "proxy-defaults", "Name": "global", "Config": { "protocol": "http" } });
    stack.consul.config_entry(&defaults).await;
    stack.consul.intention("edge-gw", "*", "allow").await;
    stack
}

/// A route of a service router to a service.
fn leads(condition: Value, service: &str) -> Value {
    json!({ "Match": { "HTTP": condition }, "Destination": { "Service": service } })
}

async fn entry(stack: &Stack, kind: &str, name: &str, more: Value) {
    let mut entry = more;
    entry["Kind"] = kind.into();
    entry["Name"] = name.into();
    stack.consul.config_entry(&entry).await;
}

fn request(method: &str, path: &str, header: Option<&str>) -> Request {
    let request = Request::new(method.parse::<Method>().unwrap(), "pets.example.com", path);
    match header {
        Some(name) => request.header(name, "1"),
        None => request,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_condition_of_a_router_leads_where_it_says() {
    let stack = open_mesh().await;
    let mut instances = Vec::new();
    for name in ["pets", "exact", "regex", "query", "methods", "inverted", "prefix"] {
        instances.push(Native::start(&stack, name).await);
    }
    let beta = json!([{ "Name": "beta", "Present": true }, { "Name": "v", "Exact": "2" }]);
    let not_old = json!([{ "Name": "x-old", "Present": true, "Invert": true }]);
    let routes = json!([
        leads(json!({ "PathExact": "/exact" }), "exact"),
        leads(json!({ "PathRegex": "/r/[0-9]+" }), "regex"),
        leads(json!({ "PathPrefix": "/q", "QueryParam": beta }), "query"),
        leads(
            json!({ "PathPrefix": "/m", "Methods": ["PUT", "POST"] }),
            "methods"
        ),
        leads(json!({ "PathPrefix": "/i", "Header": not_old }), "inverted"),
        leads(json!({ "PathPrefix": "/p" }), "prefix"),
    ]);
    entry(&stack, "service-router", "pets", json!({ "Routes": routes })).await;
    stack.put("pets", &document("pets.example.com", "pets", "")).await;

    let table = [
        ("GET", "/exact", None, "exact"),
        ("GET", "/r/12", None, "regex"),
        ("GET", "/q/x?beta=&v=2", None, "query"),
        ("PUT", "/m", None, "methods"),
        ("GET", "/i", None, "inverted"),
        ("GET", "/p", None, "prefix"),
        ("GET", "/", None, "pets"),
        // Whatever meets no condition, or all but one, is the service's own.
        ("POST", "/m/x", None, "methods"),
        ("GET", "/m", None, "pets"),
        ("GET", "/exact/", None, "pets"),
        ("GET", "/exactly", None, "pets"),
        ("GET", "/exact?x=1", None, "exact"),
        ("GET", "/r/12/x", None, "pets"),
        ("GET", "/r/a", None, "pets"),
        ("GET", "/r/12?x=a", None, "regex"),
        ("GET", "/q?beta=1", None, "pets"),
        ("GET", "/q?v=2", None, "pets"),
        ("GET", "/q?beta=1&v=3", None, "pets"),
        ("GET", "/i", Some("x-old"), "pets"),
        ("GET", "/i", Some("x-new"), "inverted"),
        // Of text, not of segments, as at Consul's own proxy.
        ("GET", "/px", None, "prefix"),
        ("DELETE", "/p/x", Some("x-old"), "prefix"),
    ];
    // Each destination is watched by itself.
    for (method, path, header, name) in &table[..7] {
        stack
            .until(&request(method, path, *header), name, from(name))
            .await;
    }
    for (method, path, header, name) in table {
        let sent = request(method, path, header);
        let reply = stack.client().timeout(SOON).send(&sent).await.unwrap();
        assert!(
            from(name)(&reply),
            "{method} {path} {header:?} is for {name}: {} {:?}",
            reply.status,
            reply.backend()
        );
    }
}

/// Consul takes any text for a regular expression. Envoy would refuse the host for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_envoy_would_refuse_leaves_the_last_good_one_and_all_others() {
    let mut stack = open_mesh().await;
    let mut instances = Vec::new();
    for name in ["pets", "birds", "cats"] {
        instances.push(Native::start(&stack, name).await);
    }
    let routes =
        |path: &str, service: &str| json!({ "Routes": [leads(json!({ "PathRegex": path }), service)] });
    entry(&stack, "service-router", "pets", routes("/r/[0-9]+", "birds")).await;
    stack.put("pets", &document("pets.example.com", "pets", "")).await;
    let known = Request::get("pets.example.com", "/r/12");
    stack.until(&known, "the good router", from("birds")).await;

    entry(&stack, "service-router", "pets", routes("/r/a{1001}", "birds")).await;
    stack
        .agent
        .wait_for_log("Envoy does not take the regular expression")
        .await;
    // Of one that was never good there is nothing. The other host of its document is served all the same.
    entry(&stack, "service-router", "cats", routes("/[a&&b]", "birds")).await;
    let other = "http_route \"other\" {\n  gateways  = [\"edge\"]\n  hostnames = [\"other.example.com\"]\n  rule \"all\" {\n    direct_response { status = 204 }\n  }\n}\n";
    let both = document("cats.example.com", "cats", "") + other;
    stack.put("both", &both).await;
    let other = Request::get("other.example.com", "/");
    stack
        .until(&other, "the other host", |reply| reply.status == 204)
        .await;
    let cats = Request::get("cats.example.com", "/");
    stack
        .until(&cats, "why not", |reply| {
            reply.status == 503 && reply.header("x-portreeve-reason") == Some("mesh-unavailable")
        })
        .await;
    let reply = stack.client().send(&known).await.unwrap();
    assert!(from("birds")(&reply), "{} {:?}", reply.status, reply.backend());

    entry(&stack, "service-router", "cats", routes("/[ab]", "birds")).await;
    stack.until(&cats, "the mended router", from("cats")).await;
}

/// Once each of these has answered, everything that shares the requests is there; who answered how often then.
async fn shares(stack: &Stack, host: &str, expected: &[(&str, f64)]) {
    let request = Request::get(host, "/");
    for (name, _) in expected {
        stack.until(&request, name, from(name)).await;
    }
    let answers = answers(stack, host, "/", REQUESTS).await;
    let counts = counted(&answers);
    println!("{host}: {counts:?}");
    assert_eq!(counts.len(), expected.len(), "{counts:?}");
    for (name, share) in expected {
        assert!(is_share(counts[name], REQUESTS, *share), "{name}: {counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_weights_of_splitters_are_kept_nested_and_beside_others() {
    let stack = open_mesh().await;
    let one = Native::start_another(&stack, "pets", "one").await;
    let two = Native::start_another(&stack, "pets", "two").await;
    let zoo = Native::start(&stack, "zoo").await;
    let plain = Backend::start("plain").await;
    stack.register("plain", &plain).await;
    let subsets =
        json!({ "first": { "Filter": "Service.ID == one" }, "second": { "Filter": "Service.ID == two" } });
    entry(&stack, "service-resolver", "pets", json!({ "Subsets": subsets })).await;
    let splits =
        json!([{ "Weight": 75, "ServiceSubset": "first" }, { "Weight": 25, "ServiceSubset": "second" }]);
    entry(&stack, "service-splitter", "pets", json!({ "Splits": splits })).await;
    let splits = json!([{ "Weight": 20, "Service": "zoo" }, { "Weight": 80, "Service": "pets" }]);
    entry(&stack, "service-splitter", "zoo", json!({ "Splits": splits })).await;
    stack.put("pets", &document("pets.example.com", "pets", "")).await;
    stack.put("zoo", &document("zoo.example.com", "zoo", "")).await;
    let mixed = document("mixed.example.com", "pets", "")
        .replace("http_route \"pets\"", "http_route \"mixed\"")
        .replace(
            "    backend \"upstream\"",
            "    backend \"consul\" \"plain\" { weight = 3 }\n    backend \"upstream\"",
        );
    let (_, mixed) = mixed.split_once("\n}\n").expect("a route behind the upstream");
    stack.put("mixed", mixed).await;

    shares(&stack, "pets.example.com", &[("one", 0.75), ("two", 0.25)]).await;
    let nested = [("zoo", 0.2), ("one", 0.8 * 0.75), ("two", 0.8 * 0.25)];
    shares(&stack, "zoo.example.com", &nested).await;
    let beside = [("plain", 0.75), ("one", 0.25 * 0.75), ("two", 0.25 * 0.25)];
    shares(&stack, "mixed.example.com", &beside).await;
    drop((one, two, zoo));
}

fn is_empty(reply: &Reply) -> bool {
    reply.status == 503
        && reply.backend().is_none()
        && reply.header("x-portreeve-reason") == Some("no-healthy-instance")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subset_is_who_is_in_it_and_nobody_else() {
    let stack = open_mesh().await;
    let mut instances = Vec::new();
    for name in ["well", "warned", "other"] {
        instances.push(Native::start_another(&stack, "pets", name).await);
    }
    stack.consul.set_check("service:warned", "warning").await;
    let not_other = "Service.ID != other";
    let subsets = json!({
        "both": { "Filter": not_other },
        "passing": { "Filter": not_other, "OnlyPassing": true },
        "empty": { "Filter": "Service.ID == nobody" },
    });
    entry(&stack, "service-resolver", "pets", json!({ "Subsets": subsets })).await;
    let to = |subset: &str| {
        let condition = json!({ "PathPrefix": format!("/{subset}") });
        json!({ "Match": { "HTTP": condition }, "Destination": { "ServiceSubset": subset } })
    };
    let routes = json!([to("both"), to("passing"), to("empty")]);
    entry(&stack, "service-router", "pets", json!({ "Routes": routes })).await;
    stack.put("pets", &document("pets.example.com", "pets", "")).await;

    let get = |path: &str| Request::get("pets.example.com", path);
    for name in ["well", "warned", "other"] {
        stack.until(&get("/"), "the whole service", from(name)).await;
    }
    for name in ["well", "warned"] {
        stack.until(&get("/both"), "both of the subset", from(name)).await;
    }
    stack.until(&get("/passing"), "who passes", from("well")).await;
    stack.until(&get("/empty"), "nobody", is_empty).await;
    // Were the warned one in it, twenty answers without it would be one run in a million.
    for _ in 0..20 {
        let client = stack.client().timeout(SOON);
        let reply = client.send(&get("/passing")).await.unwrap();
        assert!(from("well")(&reply), "{} {:?}", reply.status, reply.backend());
        let reply = client.send(&get("/both")).await.unwrap();
        assert!(
            reply.status == 200 && reply.backend() != Some("other"),
            "{:?}",
            reply.backend()
        );
        let reply = client.send(&get("/empty")).await.unwrap();
        assert!(is_empty(&reply), "{} {:?}", reply.status, reply.headers);
    }
    // Well again, and in the subset again.
    stack.consul.set_check("service:warned", "passing").await;
    stack
        .until(&get("/passing"), "the other one, too", from("warned"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_name_is_the_one_that_the_chain_says() {
    let stack = mesh_stack(GATEWAY).await;
    stack.consul.intention("edge-gw", "*", "allow").await;
    for (name, said) in [("odd", Some("odd.example")), ("even", None)] {
        match said {
            Some(said) => {
                let defaults = json!({ "Protocol": "http", "ExternalSNI": said });
                entry(&stack, "service-defaults", name, defaults).await;
            }
            None => protocol(&stack, name, "http").await,
        }
        let native = Native::start(&stack, name).await;
        let host = format!("{name}.example.com");
        stack.put(name, &document(&host, name, "")).await;
        stack.until(&Request::get(&host, "/"), name, from(name)).await;
        let names = native.server_names();
        let is_it = |heard: &Option<String>| {
            let heard = heard.as_deref().unwrap_or_default();
            match said {
                Some(said) => heard == said,
                // By the trust domain it is told from what a name alone would give.
                None => heard.starts_with("even.default.dc1.internal.") && heard.ends_with(".consul"),
            }
        };
        assert!(!names.is_empty() && names.iter().all(is_it), "{names:?}");
    }
}

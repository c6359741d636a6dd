//! Random documents over few names, so that clashes, shadows and dangling references are common.

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};

pub const SERVICES: [&str; 4] = ["s1", "s2", "s3", "u1"];
pub const MESH_SERVICES: [&str; 2] = ["s1", "s2"];
const HOSTS: [&str; 5] = ["a.test", "b.test", "c.test", "*.test", "*"];
const NAMES: [&str; 3] = ["one", "two", "three"];
const UPSTREAMS: [&str; 3] = ["u1", "u2", "u3"];
const POLICIES: [&str; 2] = ["p1", "p2"];
const CERTIFICATES: [&str; 2] = ["c1", "c2"];

/// The inside of a block, in a form that can be written as HCL and as JSON.
#[derive(Clone, Debug, Default)]
pub struct Body {
    pub attributes: Vec<(String, Value)>,
    pub blocks: Vec<(String, Vec<String>, Body)>,
}

impl Body {
    fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.attributes.push((name.to_owned(), value.into()));
        self
    }

    fn maybe(self, name: &str, value: Option<Value>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    fn block(mut self, kind: &str, labels: &[&str], body: Body) -> Self {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        self.blocks.push((kind.to_owned(), labels, body));
        self
    }

    fn maybe_block(self, kind: &str, body: Option<Body>) -> Self {
        match body {
            Some(body) => self.block(kind, &[], body),
            None => self,
        }
    }

    pub fn to_hcl(&self) -> String {
        let mut text = String::new();
        self.write_hcl(0, &mut text);
        text
    }

    fn write_hcl(&self, depth: usize, text: &mut String) {
        let indent = "  ".repeat(depth);
        for (name, value) in &self.attributes {
            text.push_str(&format!("{indent}{name} = {}\n", hcl_value(value)));
        }
        for (kind, labels, body) in &self.blocks {
            let labels: String = labels.iter().map(|label| format!(" {}", quoted(label))).collect();
            text.push_str(&format!("{indent}{kind}{labels} {{\n"));
            body.write_hcl(depth + 1, text);
            text.push_str(&format!("{indent}}}\n"));
        }
    }

    pub fn to_json(&self) -> Value {
        let mut members: Map<String, Value> = self.attributes.iter().cloned().collect();
        for (kind, labels, body) in &self.blocks {
            let nested = labels
                .iter()
                .rev()
                .fold(body.to_json(), |inner, label| json!({ label: inner }));
            let list = members.entry(kind.clone()).or_insert_with(|| json!([]));
            list.as_array_mut().unwrap().push(nested);
        }
        Value::Object(members)
    }
}

fn hcl_value(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(hcl_value).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(members) => {
            let members: Vec<String> = members
                .iter()
                .map(|(name, value)| format!("{} = {}", quoted(name), hcl_value(value)))
                .collect();
            format!("{{ {} }}", members.join(", "))
        }
        other => other.to_string(),
    }
}

fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

fn some<T: Clone + std::fmt::Debug + 'static>(from: &'static [T]) -> impl Strategy<Value = Vec<T>> {
    subsequence(from, 1..=from.len())
}

fn rarely<S: Strategy>(strategy: S) -> impl Strategy<Value = Option<S::Value>> {
    proptest::option::weighted(0.2, strategy)
}

/// Policies that may stand on any scope.
fn policies(body: Body) -> impl Strategy<Value = Body> {
    let client_ip = prop_oneof![
        Just(Body::default().with("allow", json!(["10.0.0.0/8"]))),
        Just(Body::default().with("deny", json!(["10.1.0.0/16", "2001:db8::/32"]))),
        Just(Body::default().with("disabled", true)),
    ];
    let retry = (0..4i64).prop_map(|attempts| {
        Body::default()
            .with("attempts", attempts)
            .with("on", json!(["5xx"]))
    });
    let headers = Just(Body::default().with("set", json!({ "x-a": "1", "x-b": "100%%" })));
    (
        rarely(select(&["1s", "0s", "250ms"][..])),
        rarely(client_ip),
        rarely(retry),
        rarely(headers),
        rarely(some(&POLICIES)),
    )
        .prop_map(move |(timeout, client_ip, retry, headers, bundles)| {
            body.clone()
                .maybe("timeout", timeout.map(Value::from))
                .maybe("policies", bundles.map(Value::from))
                .maybe_block("client_ip", client_ip)
                .maybe_block("retry", retry)
                .maybe_block("response_headers", headers)
        })
}

fn listener() -> impl Strategy<Value = Body> {
    (select(&[8080i64, 8081][..]), rarely(1..3i64)).prop_flat_map(|(port, proxies)| {
        policies(
            Body::default()
                .with("port", port)
                .maybe("trusted_proxies", proxies.map(Value::from)),
        )
    })
}

fn tls_listener() -> impl Strategy<Value = Body> {
    (some(&CERTIFICATES), rarely(client_ca())).prop_map(|(certificates, client_ca)| {
        let tls = Body::default().with("certificates", certificates);
        let tls = match client_ca {
            Some(client_ca) => tls.block("client_ca", &[], client_ca),
            None => tls,
        };
        Body::default()
            .with("port", 8443)
            .with("protocol", "https")
            .block("tls", &[], tls)
    })
}

/// Under the name of the plain one at times: a listener may turn from one protocol to the other.
fn tcp_listener() -> impl Strategy<Value = (&'static str, Body)> {
    (
        select(&["lines", "lines", "web"][..]),
        rarely(some(&CERTIFICATES)),
    )
        .prop_map(|(name, certificates)| {
            let body = Body::default().with("port", 7000).with("protocol", "tcp");
            let body = match certificates {
                Some(names) => body.block("tls", &[], Body::default().with("certificates", names)),
                None => body,
            };
            (name, body)
        })
}

fn client_ca() -> impl Strategy<Value = Body> {
    let mount = select(&["pki_clients", "pki_partners"][..]);
    (mount, rarely(Just(true)), rarely(Just("optional"))).prop_map(|(mount, crl, mode)| {
        let pki = Body::default()
            .with("mount", mount)
            .maybe("crl", crl.map(Value::from));
        Body::default()
            .maybe("mode", mode.map(Value::from))
            .block("vault_pki", &[], pki)
    })
}

fn gateway() -> impl Strategy<Value = Body> {
    (
        policies(Body::default()),
        listener(),
        proptest::option::of(tls_listener()),
        proptest::option::of(tcp_listener()),
    )
        .prop_map(|(body, plain, tls, tcp)| {
            let body = match tcp {
                Some((name, tcp)) => body.block("listener", &[name], tcp),
                None => body,
            };
            let has_web = body
                .blocks
                .iter()
                .any(|(_, labels, _)| labels.first().is_some_and(|name| name == "web"));
            let body = match has_web {
                true => body,
                false => body.block("listener", &["web"], plain),
            };
            match tls {
                Some(tls) => body.block("listener", &["tls"], tls),
                None => body,
            }
        })
}

fn request_match() -> impl Strategy<Value = Body> {
    let path = prop_oneof![
        select(&["/", "/a", "/a/b", "/b/"][..]).prop_map(|path| ("path_prefix", path)),
        select(&["/", "/a"][..]).prop_map(|path| ("path", path)),
        select(&["/a.*", "/[ab]/.*"][..]).prop_map(|path| ("path_regex", path)),
    ];
    let header = (select(&["x-a", "X-B"][..]), any::<bool>())
        .prop_map(|(name, invert)| (name, Body::default().with("exact", "1").with("invert", invert)));
    (
        path,
        rarely(some(&["GET", "POST"])),
        rarely(header),
        rarely(any::<bool>()),
    )
        .prop_map(|((kind, path), methods, header, query)| {
            let mut body = Body::default()
                .with(kind, path)
                .maybe("methods", methods.map(Value::from));
            if let Some((name, header)) = header {
                body = body.block("header", &[name], header);
            }
            if let Some(present) = query {
                body = body.block("query", &["q"], Body::default().with("present", present));
            }
            body
        })
}

fn backends() -> impl Strategy<Value = Body> {
    let backend = prop_oneof![
        select(&SERVICES[..]).prop_map(|name| ("consul", name)),
        select(&UPSTREAMS[..]).prop_map(|name| ("upstream", name)),
        Just(("upstream", "nowhere")),
    ];
    proptest::collection::btree_map(backend, 0..3i64, 1..3).prop_map(|backends| {
        backends
            .into_iter()
            .fold(Body::default(), |body, ((kind, name), weight)| {
                body.block("backend", &[kind, name], Body::default().with("weight", weight))
            })
    })
}

fn rule() -> impl Strategy<Value = Body> {
    let action = prop_oneof![
        6 => backends(),
        1 => Just(Body::default().block("direct_response", &[], Body::default().with("status", 418).with("body", "tea"))),
        1 => Just(Body::default().block("redirect", &[], Body::default().with("scheme", "https"))),
    ];
    (action, proptest::collection::vec(request_match(), 0..3)).prop_flat_map(|(action, matches)| {
        let body = matches
            .into_iter()
            .fold(action, |body, request| body.block("match", &[], request));
        policies(body)
    })
}

fn http_route() -> impl Strategy<Value = Body> {
    (
        some(&["edge", "other"]),
        rarely(some(&["web", "tls"])),
        some(&HOSTS),
        proptest::collection::vec(rule(), 1..4),
    )
        .prop_flat_map(|(gateways, listeners, hosts, rules)| {
            let mut body = Body::default()
                .with("gateways", gateways)
                .with("hostnames", hosts)
                .maybe("listeners", listeners.map(Value::from));
            for (index, rule) in rules.into_iter().enumerate() {
                body = body.block("rule", &[NAMES[index]], rule);
            }
            policies(body)
        })
}

fn tcp_route() -> impl Strategy<Value = Body> {
    (some(&["edge", "other"]), some(&["lines", "web"]), backends())
        .prop_map(|(gateways, listeners, body)| body.with("gateways", gateways).with("listeners", listeners))
}

fn upstream() -> impl Strategy<Value = Body> {
    let source = prop_oneof![
        3 => (select(&SERVICES[..]), rarely(Just("grpc")), any::<bool>()).prop_map(|(service, port, passing)| {
            ("consul", Body::default().with("service", service).maybe("port", port.map(Value::from)).with("only_passing", passing))
        }),
        3 => select(&MESH_SERVICES[..]).prop_map(|service| ("connect", Body::default().with("service", service))),
        1 => Just(("static", Body::default().with("addresses", json!(["10.0.0.1:80"])))),
        1 => Just(("dns", Body::default().with("address", "legacy.test:80"))),
    ];
    (source, rarely(Just("http2"))).prop_map(|((kind, source), protocol)| {
        Body::default()
            .maybe("protocol", protocol.map(Value::from))
            .block(kind, &[], source)
    })
}

fn certificate() -> impl Strategy<Value = Body> {
    select(&["a.test", "b.test"][..]).prop_map(|name| {
        Body::default().block(
            "vault_pki",
            &[],
            Body::default()
                .with("mount", "pki")
                .with("role", "edge")
                .with("common_name", name),
        )
    })
}

fn named(
    kind: &'static str,
    names: &'static [&'static str],
    body: impl Strategy<Value = Body>,
) -> impl Strategy<Value = (&'static str, &'static str, Body)> {
    (select(names), body).prop_map(move |(name, body)| (kind, name, body))
}

/// A document that holds together on its own.
pub fn document() -> impl Strategy<Value = Body> {
    let block = prop_oneof![
        2 => named("gateway", &["edge", "other"], gateway()),
        2 => named("certificate", &CERTIFICATES, certificate()),
        5 => named("http_route", &NAMES, http_route()),
        2 => named("tcp_route", &NAMES, tcp_route()),
        3 => named("upstream", &UPSTREAMS, upstream()),
        2 => named("policy", &POLICIES, policies(Body::default()).prop_map(|mut body| {
            body.attributes.retain(|(name, _)| name != "policies");
            body
        })),
    ];
    proptest::collection::vec(block, 1..6).prop_map(|blocks| {
        let mut body = Body::default();
        for (kind, name, inner) in blocks {
            // Twice in one document would be an error.
            let taken = body
                .blocks
                .iter()
                .any(|(other, labels, _)| other == kind && labels[0] == name);
            if !taken {
                body = body.block(kind, &[name], inner);
            }
        }
        body
    })
}

/// Mostly good; HCL or JSON.
pub fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => document().prop_map(|body| body.to_hcl()),
        3 => document().prop_map(|body| body.to_json().to_string()),
        1 => Just("http_route \"one\" {\n".to_owned()),
        1 => Just("upstream \"u1\" {\n  protocol = \"carrier pigeon\"\n}\n".to_owned()),
        1 => Just(String::new()),
    ]
}

/// As the path of a file, or a KV key with its CreateIndex.
pub const DOCUMENTS: [(&str, Option<u64>); 6] = [
    ("b.hcl", None),
    ("a.hcl", None),
    ("config/x", Some(7)),
    ("config/z", Some(3)),
    ("config/y", Some(3)),
    ("config/w", Some(9)),
];

pub fn as_document(index: usize, text: &str) -> portreeve::model::Document {
    let (name, order) = DOCUMENTS[index];
    match order {
        None => crate::world::file(name, text),
        Some(order) => crate::world::kv(name, order, text),
    }
}

//! `explain` against Envoy itself: on generated trees and random requests, both name the same route.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use hyper::Method;
use portreeve::config::{Config, Permissions};
use portreeve::hcl::Limits;
use portreeve::model::{Document, DocumentId, DocumentsUpdate, Observation};
use portreeve::resolve::{Request as Asked, explain};
use portreeve::snapshot::Snapshot;
use serde_json::{Value, json};

use crate::stack::{GATEWAY, Options, Stack, until};
use crate::support::client::{Failure, Request};

const TREES: usize = 25;
const REQUESTS: usize = 240;

/// A small generator of our own: the same trees on every run, so that a failure can be looked at.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        // Knuth's MMIX constants; the high bits are the good ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % sides
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.roll(from.len())]
    }
}

const SEGMENTS: &[&str] = &["api", "v1", "v2", "users", "a", "b", "apix", "API"];
const METHODS: &[&str] = &["GET", "POST", "PUT", "DELETE"];
const HEADERS: &[&str] = &["x-a", "x-b", "x-version"];
const VALUES: &[&str] = &["1", "2", "v1", "v2-beta", "", "v"];
/// With a wildcard among them, a listener's hosts are one table; exact ones alone are scopes of their own.
const HOSTS: &[&str] = &["t", "*.wild", "*", "deep.wild"];
const EXACT_HOSTS: &[&str] = &["t", "x.wild", "any", "deep.wild"];
/// What clients write and Envoy puts in order before it looks for a route.
const ODD_PATHS: &[&str] = &["//", "/./", "/../", "/a/../", "/%61pi/", "/API/", "/a//b/"];

fn path(dice: &mut Dice) -> String {
    let mut path = String::new();
    for _ in 0..dice.roll(4) {
        let _ = write!(path, "/{}", dice.pick(SEGMENTS));
    }
    if path.is_empty() { "/".to_owned() } else { path }
}

fn condition(dice: &mut Dice, kind: &str) -> String {
    let name = dice.pick(HEADERS);
    let (value, inverted) = (
        dice.pick(&["1", "2", "v1", "v2-beta", "v"]),
        kind == "header" && dice.roll(4) == 0,
    );
    let test = match dice.roll(6) {
        0 => format!("exact = {value:?}"),
        1 => format!("prefix = {value:?}"),
        2 => format!("suffix = {value:?}"),
        3 => format!("contains = {value:?}"),
        4 => "regex = \"v[0-9].*\"".to_owned(),
        _ => format!("present = {}", dice.roll(2) == 0),
    };
    let invert = if inverted { "\n        invert = true" } else { "" };
    format!("      {kind} {name:?} {{\n        {test}{invert}\n      }}\n")
}

fn rule(dice: &mut Dice, number: usize) -> String {
    let mut text = format!("  rule \"r{number}\" {{\n");
    for _ in 0..=dice.roll(2) {
        text.push_str("    match {\n");
        let path = path(dice);
        let _ = match dice.roll(6) {
            0 | 1 => writeln!(text, "      path = {path:?}"),
            2..=4 => writeln!(text, "      path_prefix = {path:?}"),
            _ => writeln!(
                text,
                "      path_regex = \"{}(/.*)?\"",
                path.trim_end_matches('/')
            ),
        };
        if dice.roll(3) == 0 {
            let (one, two) = (dice.pick(METHODS), dice.pick(METHODS));
            let _ = if one == two {
                writeln!(text, "      methods = [{one:?}]")
            } else {
                writeln!(text, "      methods = [{one:?}, {two:?}]")
            };
        }
        let mut seen = BTreeSet::new();
        for kind in ["header", "query"] {
            if dice.roll(4) == 0 {
                let block = condition(dice, kind);
                if seen.insert(block.lines().next().map(str::to_owned)) {
                    text.push_str(&block);
                }
            }
        }
        text.push_str("    }\n");
    }
    text.push_str("    direct_response {\n      status = 200\n    }\n  }\n");
    text
}

/// One route document; trees of one number share a domain, so that hosts and routes of several documents meet.
fn document(dice: &mut Dice, from: &[&str], tree: usize, part: usize) -> String {
    let mut hosts: BTreeSet<String> = BTreeSet::new();
    for _ in 0..=dice.roll(2) {
        hosts.insert(match dice.pick(from) {
            "*" => format!("*.t{tree}.example.com"),
            host => format!("{host}.t{tree}.example.com"),
        });
    }
    let hosts: Vec<String> = hosts.into_iter().collect();
    let mut text = format!(
        "http_route \"t{tree}-{part}\" {{\n  gateways  = [\"edge\"]\n  hostnames = {hosts:?}\n\n  response_headers {{\n    set = {{ \"x-route\" = \"%ROUTE_NAME%\" }}\n  }}\n\n"
    );
    for number in 0..=dice.roll(8) {
        text.push_str(&rule(dice, number));
    }
    text.push_str("}\n");
    text
}

fn request(dice: &mut Dice, tree: usize) -> Request {
    let host = match dice.roll(5) {
        0 => format!("t.t{tree}.example.com"),
        1 => format!("x.wild.t{tree}.example.com"),
        2 => format!("deep.wild.t{tree}.example.com"),
        3 => format!("any.t{tree}.example.com"),
        _ => format!("T.t{tree}.Example.com:8080"),
    };
    let mut target = path(dice);
    if dice.roll(12) == 0 {
        target = format!("{}{}", dice.pick(ODD_PATHS), target.trim_start_matches('/'));
    }
    if dice.roll(3) == 0 && !target.ends_with('/') {
        target.push('/');
    }
    for number in 0..dice.roll(3) {
        let _ = write!(
            target,
            "{}{}={}",
            if number == 0 { '?' } else { '&' },
            dice.pick(HEADERS),
            dice.pick(VALUES)
        );
    }
    let method = dice.pick(METHODS).parse().unwrap();
    let mut request = Request::new(method, &host, &target);
    for _ in 0..dice.roll(3) {
        request = request.header(dice.pick(HEADERS), dice.pick(VALUES));
    }
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_names_the_route_that_envoy_takes_in_a_table() {
    explain_names_the_route_that_envoy_takes(HOSTS, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_names_the_route_that_envoy_takes_in_a_scope() {
    explain_names_the_route_that_envoy_takes(EXACT_HOSTS, true).await;
}

async fn explain_names_the_route_that_envoy_takes(hosts: &[&str], is_scoped: bool) {
    let stack = Stack::start(Options::default()).await;
    let mut dice = Dice(20_261_123);
    let gateway = GATEWAY.replace("$HTTP", &stack.http.to_string());
    let mut documents = vec![("gateway".to_owned(), gateway)];
    for tree in 0..TREES {
        for part in 0..3 {
            documents.push((format!("t{tree}-{part}"), document(&mut dice, hosts, tree, part)));
        }
    }
    // The same order of arrival on both sides: Consul's CreateIndex decides clashes.
    let mut snapshot = Snapshot::new(
        Config::new(Permissions::default(), Limits::default()),
        BTreeSet::new(),
    );
    let mut update = DocumentsUpdate::from_source("test");
    for (order, (name, text)) in documents.iter().enumerate() {
        stack.put(name, text).await;
        let id = DocumentId::Kv(format!("portreeve/config/{name}").into());
        update.changed.push(Document {
            id,
            text: text.as_str().into(),
            order: order as u64,
            version: 0,
        });
    }
    snapshot.apply(Observation::Documents(update));
    for state in snapshot.config.documents() {
        assert!(
            state.problems.is_empty(),
            "{:?}\n{}",
            state.problems,
            state.document.text
        );
    }
    let gateway = snapshot.config.gateway("edge").unwrap().clone();
    let client = stack.client().keep_alive();
    let last = format!("t.t{}.example.com", TREES - 1);
    stack
        .until(&Request::get(&last, "/api"), "the last tree", |_| true)
        .await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;

    let dump = stack.envoy().config_dump().await.to_string();
    // Exact hosts have scopes in either form; only where requests are looked up in a table is there one.
    assert_eq!(dump.contains("dynamic_route_configs"), !is_scoped);
    // Hosts of both kinds: a list, and branches by path.
    let of_kinds = count_hosts(&serde_json::from_str(&dump).unwrap());
    assert!(of_kinds.0 > 5 && of_kinds.1 > 5, "{of_kinds:?}");

    let (mut compared, mut matched) = (0, 0);
    for tree in 0..TREES {
        for _ in 0..REQUESTS {
            let request = request(&mut dice, tree);
            let reply = client
                .send(&request)
                .await
                .unwrap_or_else(|failure| panic!("{request:?}: {failure:?}"));
            let headers: Vec<(String, String)> = request
                .headers
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
                .collect();
            let asked = Asked::new(request.method.as_str(), &request.host, &request.path, &headers);
            let said = explain(&snapshot, &gateway, "http", None, &asked);
            let expected: Option<Arc<str>> = said.route.clone();
            assert_eq!(
                reply.header("x-route"),
                expected.as_deref(),
                "Envoy answered {} to {request:?}; explain says {said:#?}",
                reply.status
            );
            compared += 1;
            matched += usize::from(expected.is_some());
        }
    }
    println!("{compared} requests compared, {matched} of them took a route");
    // 12,000 in both forms together.
    assert!(
        compared >= 6_000 && matched > compared / 5,
        "{compared} {matched}"
    );
}

/// Virtual hosts with a list of routes, and with a matcher.
fn count_hosts(dump: &Value) -> (usize, usize) {
    let below = |values: &mut dyn Iterator<Item = &Value>| {
        values
            .map(count_hosts)
            .fold((0, 0), |sum, more| (sum.0 + more.0, sum.1 + more.1))
    };
    match dump {
        Value::Array(values) => below(&mut values.iter()),
        Value::Object(fields) => {
            let (lists, matchers) = below(&mut fields.values());
            let is_host = fields.contains_key("domains");
            let has = |field| usize::from(is_host && fields.contains_key(field));
            (lists + has("routes"), matchers + has("matcher"))
        }
        _ => (0, 0),
    }
}

const TLS: &str = r#"
gateway "edge" {
  listener "secure" {
    port     = $HTTPS
    protocol = "https"
    tls { certificates = ["named", "below"] }
  }
}

certificate "named" {
  vault_pki {
    mount       = "pki_int"
    role        = "edge"
    common_name = "t.t0.example.com"
    alt_names   = ["*.wild.t0.example.com"]
  }
}

certificate "below" {
  vault_pki {
    mount       = "pki_int"
    role        = "edge"
    common_name = "below.example.com"
    alt_names   = ["*.t0.example.com"]
  }
}
"#;

/// Over https the name that the connection is opened for decides too: the live agent's explain against Envoy.
#[tokio::test(flavor = "multi_thread")]
async fn explain_knows_certificates_and_misdirected_requests() {
    let stack = Stack::start(Options {
        vault: true,
        ..Options::default()
    })
    .await;
    let mut dice = Dice(20_261_125);
    stack.put("gateway", TLS).await;
    // Enough rules for hosts of branches.
    for part in 0..8 {
        let name = format!("t0-{part}");
        stack.put(&name, &document(&mut dice, HOSTS, 0, part)).await;
    }
    let client = stack.https_client().await;
    until(
        &client,
        &Request::get("t.t0.example.com", "/api"),
        "https",
        |_| true,
    )
    .await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let dump = stack.envoy().config_dump().await.to_string();
    assert!(dump.contains("prefix_match_map") && dump.contains("portreeve/misdirected"));

    let names = [
        "t.t0.example.com",
        "x.wild.t0.example.com",
        "deep.wild.t0.example.com",
        "any.t0.example.com",
        "below.example.com",
        "stranger.example.com",
        "t0.example.com",
    ];
    let mut leaves: BTreeSet<(String, Vec<u8>)> = BTreeSet::new();
    let (mut refused, mut misdirected, mut matched) = (0, 0, 0);
    for _ in 0..500 {
        let request = request(&mut dice, 0);
        let own = request.host.split(':').next().unwrap().to_ascii_lowercase();
        let name = match dice.roll(3) {
            0 => dice.pick(&names).to_owned(),
            _ => own,
        };
        let mut headers = vec![json!(["host", request.host])];
        headers.extend(
            request
                .headers
                .iter()
                .map(|(name, value)| json!([name.as_str(), value.to_str().unwrap()])),
        );
        let asked = json!({
            "method": request.method.as_str(),
            "url": format!("https://{name}:{}{}", stack.https, request.path),
            "headers": headers,
        });
        let said = stack
            .agent
            .api(Method::POST, "/v1/explain", &asked.to_string())
            .await
            .unwrap();
        let said: Value = serde_json::from_str(&said.text()).unwrap();
        let said = &said[0];
        let answer = said["answer"].as_str().unwrap_or_default();
        let context = || format!("{name} {request:?}; explain says {said:#}");
        match client.clone().sni(&name).send(&request).await {
            Err(Failure::Tls(_) | Failure::Reset(_) | Failure::Stale) => {
                assert!(answer.contains("handshake is refused"), "{}", context());
                refused += 1;
            }
            Err(other) => panic!("{other:?}: {}", context()),
            Ok(reply) => {
                assert_eq!(reply.header("x-route"), said["route"].as_str(), "{}", context());
                assert_eq!(reply.status == 421, answer.starts_with("421"), "{}", context());
                misdirected += usize::from(reply.status == 421);
                matched += usize::from(said["route"].is_string());
                let shown = said["certificate"].as_str().unwrap().to_owned();
                leaves.insert((shown, reply.certificate.unwrap().to_vec()));
            }
        }
    }
    println!("{refused} handshakes refused, {misdirected} misdirected, {matched} took a route");
    assert!(refused > 20 && misdirected > 20 && matched > 50);
    assert_eq!(leaves.len(), 2, "each name goes with one certificate");
}

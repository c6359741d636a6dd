//! How much may be made of one document. Its routes multiply gateways, hosts and matches, and a gateway multiplies them by its
//! listeners: what fits into a document of some hundred kilobytes could be more than fits into memory, of every agent.

use std::sync::Arc;

use super::objects::{Gateway, HttpRoute, Listener, Object, Protocol, Rule, RuleAction, Scope};
use super::store::Config;
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::{Block, Body, Reader};
use crate::model::Origin;
use crate::model::http::RequestMatch;
use crate::model::regex::program_bytes;

/// Of all routes of a document: gateways x hostnames x matches, or gateways x listeners of TCP. With every eighth backend of
/// a rule, and with each 2 KiB of what else stands in it or around it, its matches count once more.
pub const CLAIMS: usize = 100_000;

/// What an entry may be made of, to count no more than once: some policies are usual.
const TEXT: usize = 2048;

/// The same of compiled regular expressions: Envoy has one for each entry.
const PROGRAM: usize = 8192;

/// The same, rounded up to a power of two, times the listeners for http and https of one gateway.
pub const PLACES: usize = 1 << 19;

/// Of a gateway; Gateway API has the same bound.
pub const HTTP_LISTENERS: usize = 64;

/// Of every protocol.
pub const LISTENERS: usize = 1024;

/// Of a rule, or of a TCP route: Envoy looks through them for each request.
pub(super) const BACKENDS: usize = 256;

/// Of a listener: each is a filter chain of its own, with all that the listener does.
const CERTIFICATES: usize = 16_384;

/// In one `policies`.
pub(super) const BUNDLES: usize = 64;

/// What the routes of a document claim together. Each of them knows it from then on, rounded: no route may become another one
/// whenever its neighbours do.
pub(super) fn count_claims(objects: &mut [Object]) -> usize {
    let all = claims(objects);
    for object in objects {
        if let Object::HttpRoute(route) = object {
            Arc::make_mut(route).claims_of_document = all.checked_next_power_of_two().unwrap_or(usize::MAX);
        }
    }
    all
}

fn claims(objects: &[Object]) -> usize {
    let of_each = objects.iter().map(|object| match object {
        Object::HttpRoute(route) => route.claims_of_document,
        Object::TcpRoute(route) => route.gateways.len().saturating_mul(route.listeners.len()),
        _ => 0,
    });
    of_each.fold(0, usize::saturating_add)
}

/// What a route as it is written claims for itself.
pub(super) fn claims_of_route(route: &HttpRoute, reader: &Reader<'_>) -> usize {
    let blocks = reader.body.blocks.iter();
    let around: usize = blocks
        .filter(|block| block.kind != "rule")
        .map(Block::bytes)
        .sum();
    let rules = route.rules.iter().zip(reader.children("rule"));
    let matches: usize = rules.map(|(rule, (block, _))| entries(rule, block, around)).sum();
    let names = route.gateways.len().saturating_mul(route.hostnames.len());
    names.saturating_mul(matches)
}

/// Each match is made with all backends and all policies. A few are usual and cost little.
fn entries(rule: &Rule, block: &Block, around: usize) -> usize {
    let backends = match &rule.action {
        RuleAction::Forward(backends) => backends.len(),
        RuleAction::Redirect(_) | RuleAction::Respond(_) => 0,
    };
    let of_matches: usize = block.body.blocks_of("match").map(Block::bytes).sum();
    let copied = around + block.bytes() - of_matches;
    let of_each = copied.saturating_mul(told_apart(rule).max(1));
    let regexes: usize = rule
        .matches
        .iter()
        .flat_map(RequestMatch::regexes)
        .map(program_bytes)
        .sum();
    rule.matches.len() * (1 + backends / 8 + of_each / TEXT) + of_matches / TEXT + regexes / PROGRAM
}

pub(super) fn too_many_bundles(origin: &Origin) -> Diagnostic {
    Diagnostic::error(
        Code::TooLarge,
        format!("more than {BUNDLES} bundles in `policies`"),
    )
    .at(origin.clone())
    .because("each is laid over the ones before it, for every host of every route there")
    .fix("put what belongs together into one `policy`")
}

pub(super) fn too_many_certificates(named: &[(Arc<str>, Origin)]) -> Option<Diagnostic> {
    let (_, origin) = named.get(CERTIFICATES)?;
    let message = format!("more than {CERTIFICATES} certificates on one listener");
    let diagnostic = Diagnostic::error(Code::TooLarge, message)
        .at(origin.clone())
        .because("all that the listener does is made once for each of them")
        .fix(
            "use certificates of several names or of a wildcard, or divide the hosts among several listeners",
        );
    Some(diagnostic)
}

pub(super) fn too_many_claims(claims: usize) -> Option<Diagnostic> {
    (claims > CLAIMS).then(|| {
        let message = format!("the routes of this document multiply to {claims}, and {CLAIMS} is the most");
        Diagnostic::error(Code::TooLarge, message)
            .because("for each gateway, each hostname and each match of a route an entry is made, which counts more with many backends, long policies or costly regular expressions")
            .fix("use a wildcard hostname for many, or fewer matches; or divide the routes among several documents")
    })
}

/// Whether the routes of a document can be put on this gateway.
pub fn fits(config: &Config, gateway: &Gateway, route: &HttpRoute) -> bool {
    let listeners = match route.listeners.len() {
        0 => http_listeners(gateway).count(),
        named => named,
    };
    let places = route.claims_of_document.saturating_mul(listeners);
    let fits = |times: usize| places.saturating_mul(times) <= PLACES;
    fits(1) && fits(1 + bytes_laid_on(config, gateway, route) / TEXT)
}

/// What is not of its document and stands in each entry all the same: the policies of the gateway, and all bundles. Of
/// listeners and rules that which has most.
fn bytes_laid_on(config: &Config, gateway: &Gateway, route: &HttpRoute) -> usize {
    let bundles = |scope: &Scope| -> usize {
        let bundles = scope.bundles.iter().filter_map(|(name, _)| config.policy(name));
        bundles.map(|bundle| bundle.bytes).sum()
    };
    let of_listeners = http_listeners(gateway).map(|listener| bundles(&listener.scope));
    let of_all = gateway.policy_bytes
        + bundles(&gateway.scope)
        + of_listeners.max().unwrap_or_default()
        + bundles(&route.scope);
    let of_rules = route.rules.iter().map(|rule| {
        let of_each = of_all + bundles(&rule.scope);
        of_each.saturating_mul(told_apart(rule).max(1))
    });
    of_rules.max().unwrap_or(of_all)
}

/// Backends of which some says otherwise than its rule: what holds is then written at each of them, not once for all.
fn told_apart(rule: &Rule) -> usize {
    match &rule.action {
        RuleAction::Forward(backends) if backends.iter().any(|backend| !backend.policies.is_empty()) => {
            backends.len()
        }
        _ => 0,
    }
}

/// What a gateway as it is written lays on each of its routes.
pub(super) fn policy_bytes(reader: &Reader<'_>) -> usize {
    let of = |body: &Body| -> usize {
        let policies = body
            .blocks
            .iter()
            .filter(|block| block.kind != "listener" && block.kind != "tls");
        policies.map(Block::bytes).sum()
    };
    let of_listeners = reader
        .children("listener")
        .map(|(listener, _)| of(&listener.body));
    of(reader.body) + of_listeners.max().unwrap_or_default()
}

fn http_listeners(gateway: &Gateway) -> impl Iterator<Item = &Listener> {
    gateway
        .listeners
        .iter()
        .filter(|listener| listener.protocol != Protocol::Tcp)
}

pub(super) fn does_not_fit(config: &Config, gateway: &Gateway, route: &HttpRoute) -> Option<Diagnostic> {
    (!fits(config, gateway, route)).then(|| {
        let message = format!(
            "the routes of this document multiply to more than fits the gateway {:?} with its {} listeners for http and https",
            gateway.name,
            http_listeners(gateway).count(),
        );
        Diagnostic::error(Code::TooLarge, message)
            .because(format!(
                "gateways, hostnames, matches and listeners make more than {PLACES} entries, or fewer that the policies of the gateway and the bundles in `policies` make long: the gateway does not serve the route"
            ))
            .fix("name the listeners that are meant in `listeners`, shorten the policies, or divide the routes among several documents")
    })
}

/// At the first listener that is one too many.
pub(super) fn too_many_listeners(gateway: &Gateway) -> Option<Diagnostic> {
    let (listener, most, of) = match http_listeners(gateway).nth(HTTP_LISTENERS) {
        Some(listener) => (listener, HTTP_LISTENERS, " for http and https"),
        None => (gateway.listeners.get(LISTENERS)?, LISTENERS, ""),
    };
    let message = format!(
        "the gateway {:?} has more than {most} listeners{of}",
        gateway.name
    );
    let diagnostic = Diagnostic::error(Code::TooLarge, message)
        .at(listener.origin.clone())
        .because("every route of the gateway is put on each of them")
        .fix("several hosts on one port are several routes, and need no listeners of their own; or declare another gateway");
    Some(diagnostic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConfigChange, Permissions, parse_document};
    use crate::hcl::Limits;
    use crate::model::{Document, DocumentId};

    fn read(text: &str) -> Result<Vec<Object>, Vec<Diagnostic>> {
        let document = Document {
            id: DocumentId::File("a.hcl".into()),
            text: text.into(),
            order: 1,
            version: 1,
        };
        parse_document(&document, &Permissions::default(), &Limits::default()).map(|parsed| parsed.objects)
    }

    fn names(prefix: &str, count: usize) -> String {
        let names: Vec<String> = (0..count).map(|number| format!("\"{prefix}{number}\"")).collect();
        names.join(", ")
    }

    fn route(name: &str, gateways: usize, hosts: usize, matches: usize) -> String {
        let matches = "match { path = \"/\" }\n".repeat(matches);
        format!(
            "http_route \"{name}\" {{\ngateways = [{}]\nhostnames = [{}]\nrule \"a\" {{\n{matches}backend \"consul\" \"x\" {{}}\n}}\n}}\n",
            names("edge", gateways),
            names("h", hosts)
        )
    }

    fn gateway(protocol: &str, listeners: usize) -> String {
        let listeners: String = (0..listeners)
            .map(|number| {
                format!(
                    "listener \"l{number}\" {{\nport = {}\nprotocol = \"{protocol}\"\n}}\n",
                    number + 1
                )
            })
            .collect();
        format!("gateway \"edge0\" {{\n{listeners}}}\n")
    }

    /// About a thousand bytes for each header.
    fn long_policy(headers: usize) -> String {
        let value = "v".repeat(1000);
        let lines: Vec<String> = (0..headers)
            .map(|number| format!("x{number} = \"{value}\""))
            .collect();
        format!("request_headers {{\nset = {{\n{}\n}}\n}}\n", lines.join("\n"))
    }

    fn codes(text: &str) -> Vec<(Code, String)> {
        let problems = read(text).err().unwrap_or_default();
        problems
            .into_iter()
            .map(|problem| (problem.code, problem.message))
            .collect()
    }

    #[test]
    fn what_a_document_multiplies_to_has_a_bound() {
        assert_eq!(codes(&route("a", 1, 1000, 100)), []);
        for text in [
            route("a", 1, 1000, 101),
            route("a", 101, 1000, 1),
            route("a", 1, 1000, 60) + &route("b", 5, 100, 90),
            format!(
                "tcp_route \"t\" {{\ngateways = [{}]\nlisteners = [{}]\nbackend \"consul\" \"x\" {{}}\n}}\n",
                names("g", 400),
                names("l", 251)
            ),
        ] {
            let problems = codes(&text);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert_eq!(problems[0].0, Code::TooLarge, "{problems:?}");
        }
    }

    #[test]
    fn many_backends_count_as_many_matches() {
        let with = |backends: usize| {
            let backends: String = (0..backends)
                .map(|number| format!("backend \"consul\" \"b{number}\" {{}}\n"))
                .collect();
            route("a", 1, 100, 400).replace("backend \"consul\" \"x\" {}\n", &backends)
        };
        assert_eq!(codes(&with(15)), []);
        let problems = codes(&with(16));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].0, Code::TooLarge, "{problems:?}");
    }

    #[test]
    fn a_scope_has_bundles_in_measure() {
        for (count, expected) in [(BUNDLES, vec![]), (BUNDLES + 1, vec![Code::TooLarge])] {
            let text = route("a", 1, 1, 1).replace(
                "hostnames",
                &format!("policies = [{}]\nhostnames", names("p", count)),
            );
            let found: Vec<Code> = codes(&text).into_iter().map(|(code, _)| code).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_gateway_has_listeners_in_measure() {
        for (protocol, most) in [("http", HTTP_LISTENERS), ("tcp", LISTENERS)] {
            assert_eq!(codes(&gateway(protocol, most)), []);
            let problems = codes(&gateway(protocol, most + 1));
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert_eq!(problems[0].0, Code::TooLarge, "{problems:?}");
        }
    }

    #[test]
    fn a_listener_has_certificates_in_measure() {
        for (most, expected) in [(CERTIFICATES, vec![]), (CERTIFICATES + 1, vec![Code::TooLarge])] {
            // Named twice is named once.
            let text = gateway("https", 1).replace(
                "protocol",
                &format!(
                    "tls {{\ncertificates = [\"c1\", {}]\n}}\nprotocol",
                    names("c", most)
                ),
            );
            let found: Vec<Code> = codes(&text).into_iter().map(|(code, _)| code).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_rule_has_backends_in_measure() {
        for (most, codes_of) in [(BACKENDS, vec![]), (BACKENDS + 1, vec![Code::TooLarge])] {
            let backends: String = (0..most)
                .map(|number| format!("backend \"consul\" \"b{number}\" {{}}\n"))
                .collect();
            for text in [
                format!(
                    "http_route \"r\" {{\ngateways = [\"g\"]\nhostnames = [\"h\"]\nrule \"a\" {{\n{backends}}}\n}}\n"
                ),
                format!("tcp_route \"t\" {{\ngateways = [\"g\"]\nlisteners = [\"l\"]\n{backends}}}\n"),
            ] {
                let found: Vec<Code> = codes(&text).into_iter().map(|(code, _)| code).collect();
                assert_eq!(found, codes_of);
            }
        }
    }

    #[test]
    fn a_route_that_is_too_wide_for_the_listeners_is_not_put_on_them() {
        let of = |text: &str| read(text).unwrap();
        let objects = of(&(gateway("http", 9) + &route("wide", 1, 600, 99) + &route("neighbour", 1, 1, 1)));
        let config = Config::new(Permissions::default(), Limits::default());
        let mut gateways = objects.iter().filter_map(|object| match object {
            Object::Gateway(gateway) => Some(gateway.clone()),
            _ => None,
        });
        let gateway = gateways.next().unwrap();
        let routes: Vec<_> = objects
            .iter()
            .filter_map(|object| match object {
                Object::HttpRoute(route) => Some(route.clone()),
                _ => None,
            })
            .collect();
        assert_eq!(routes.len(), 2);
        for route in &routes {
            assert_eq!(route.claims_of_document, 1 << 16);
            assert!(!fits(&config, &gateway, route));
            assert!(does_not_fit(&config, &gateway, route).is_some());
        }
        // Those of TCP take no routes of http.
        let mut of_tcp = (*gateway).clone();
        of_tcp
            .listeners
            .iter_mut()
            .skip(1)
            .for_each(|listener| listener.protocol = Protocol::Tcp);
        assert!(fits(&config, &of_tcp, &routes[0]));
        let mut few = (*routes[0]).clone();
        few.listeners = vec![("l1".into(), few.origin.clone())];
        assert!(fits(&config, &gateway, &few));
        assert!(does_not_fit(&config, &gateway, &few).is_none());
    }

    /// Each copy of a rule has all that stands in it and around it.
    #[test]
    fn long_policies_count_as_many_matches() {
        let with =
            |at: &str, count: usize| route("a", 1, 50, 100).replacen(at, &(long_policy(count) + at), 1);
        for at in ["rule", "match"] {
            assert_eq!(codes(&with(at, 40)), [], "{at}");
            let problems = codes(&with(at, 41));
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert_eq!(problems[0].0, Code::TooLarge, "{problems:?}");
        }
        // What stands in a match is not copied to the others.
        let long = "/p".repeat(500);
        let paths = route("a", 1, 50, 100).replace("\"/\"", &format!("\"{long}\""));
        assert_eq!(codes(&paths), []);
        assert_eq!(read(&paths).unwrap().len(), 1);
    }

    /// What a backend says otherwise makes Envoy be told of each what holds for it.
    #[test]
    fn policies_count_for_each_backend_that_is_told_apart() {
        let headers = |value: &str| format!("request_headers {{\nset = {{\nx = \"{value}\"\n}}\n}}\n");
        let with = |own: &str| {
            let backends = format!("backend \"consul\" \"x\" {{\n{own}}}\nbackend \"consul\" \"y\" {{}}\n");
            let backends = backends + "backend \"consul\" \"z\" {}\nbackend \"consul\" \"w\" {}\n";
            let long = headers(&"v".repeat(3000));
            route("a", 1, 500, 60)
                .replace("backend \"consul\" \"x\" {}\n", &backends)
                .replacen("match", &(long + "match"), 1)
        };
        assert_eq!(codes(&with("")), []);
        let problems = codes(&with(&headers("own")));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].0, Code::TooLarge, "{problems:?}");
    }

    /// What is wrong with these documents together.
    fn codes_of(documents: [&str; 3]) -> Vec<Code> {
        let mut config = Config::new(Permissions::default(), Limits::default());
        for (order, text) in documents.into_iter().enumerate() {
            let document = Document {
                id: DocumentId::File(format!("{order}.hcl").into()),
                text: text.into(),
                order: order as u64,
                version: 1,
            };
            config.upsert(document, None, &mut ConfigChange::default());
        }
        config.diagnostics().into_iter().map(|said| said.code).collect()
    }

    /// They may stand in a document of their own, as may those of the gateway.
    #[test]
    fn what_is_laid_on_a_route_from_elsewhere_counts_too() {
        let before = |text: &str, at: &str, what: &str| text.replacen(at, &format!("{what}{at}"), 1);
        let (wide, edge) = (route("a", 1, 50, 1000), gateway("http", 1));
        let named = "policies = [\"long\"]\n";
        for (headers, expected) in [(16, vec![]), (17, vec![Code::TooLarge])] {
            let own = long_policy(headers);
            let bundle = format!("policy \"long\" {{\n{own}}}\n");
            for at in ["hostnames", "match"] {
                assert_eq!(
                    codes_of([&edge, &bundle, &before(&wide, at, named)]),
                    expected,
                    "{at}"
                );
            }
            for at in ["listener", "port"] {
                assert_eq!(
                    codes_of([&before(&edge, at, named), &bundle, &wide]),
                    expected,
                    "{at}"
                );
                assert_eq!(
                    codes_of([&before(&edge, at, &own), &bundle, &wide]),
                    expected,
                    "{at}"
                );
            }
        }
    }
}

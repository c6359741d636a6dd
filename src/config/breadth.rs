//! How much may be made of one document. Its routes multiply gateways, hosts and matches, and a gateway multiplies them by its
//! listeners: what fits into a document of some hundred kilobytes could be more than fits into memory, of every agent.

use std::sync::Arc;

use super::objects::{Gateway, HttpRoute, Listener, Object, Protocol, Rule, RuleAction};
use crate::diagnostics::{Code, Diagnostic};
use crate::model::Origin;

/// Of all routes of a document: gateways x hostnames x matches, or gateways x listeners of TCP. With every eighth backend of
/// a rule its matches count once more.
pub const CLAIMS: usize = 100_000;

/// The same, rounded up to a power of two, times the listeners for http and https of one gateway.
pub const PLACES: usize = 1 << 19;

/// Of a gateway; Gateway API has the same bound.
pub const HTTP_LISTENERS: usize = 64;

/// Of every protocol.
pub const LISTENERS: usize = 1024;

/// Of a rule, or of a TCP route: Envoy looks through them for each request.
pub(super) const BACKENDS: usize = 256;

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
        Object::HttpRoute(route) => {
            let matches: usize = route.rules.iter().map(entries).sum();
            let names = route.gateways.len().saturating_mul(route.hostnames.len());
            names.saturating_mul(matches)
        }
        Object::TcpRoute(route) => route.gateways.len().saturating_mul(route.listeners.len()),
        _ => 0,
    });
    of_each.fold(0, usize::saturating_add)
}

/// Each match is made with all backends. A few are usual and cost little.
fn entries(rule: &Rule) -> usize {
    let backends = match &rule.action {
        RuleAction::Forward(backends) => backends.len(),
        RuleAction::Redirect(_) | RuleAction::Respond(_) => 0,
    };
    rule.matches.len() * (1 + backends / 8)
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

pub(super) fn too_many_claims(claims: usize) -> Option<Diagnostic> {
    (claims > CLAIMS).then(|| {
        let message = format!("the routes of this document multiply to {claims}, and {CLAIMS} is the most");
        Diagnostic::error(Code::TooLarge, message)
            .because("for each gateway, each hostname and each match of a route an entry is made, and more of many backends")
            .fix("use a wildcard hostname for many, or fewer matches; or divide the routes among several documents")
    })
}

/// Whether the routes of a document can be put on this gateway.
pub fn fits(gateway: &Gateway, route: &HttpRoute) -> bool {
    let fit_on = |listeners: usize| route.claims_of_document.saturating_mul(listeners) <= PLACES;
    match route.listeners.len() {
        // Asked for each host: most often no listener has to be looked at.
        0 => fit_on(gateway.listeners.len()) || fit_on(http_listeners(gateway).count()),
        named => fit_on(named),
    }
}

fn http_listeners(gateway: &Gateway) -> impl Iterator<Item = &Listener> {
    gateway
        .listeners
        .iter()
        .filter(|listener| listener.protocol != Protocol::Tcp)
}

pub(super) fn does_not_fit(gateway: &Gateway, route: &HttpRoute) -> Option<Diagnostic> {
    (!fits(gateway, route)).then(|| {
        let message = format!(
            "the routes of this document multiply to more than fits the {} listeners for http and https of the gateway {:?}",
            http_listeners(gateway).count(),
            gateway.name
        );
        Diagnostic::error(Code::TooLarge, message)
            .because(format!(
                "gateways, hostnames, matches and listeners make more than {PLACES} entries: the gateway does not serve the route"
            ))
            .fix("name the listeners that are meant in `listeners`, or divide the routes among several documents")
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
    use crate::config::{Permissions, parse_document};
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
            assert!(!fits(&gateway, route));
            assert!(does_not_fit(&gateway, route).is_some());
        }
        // Those of TCP take no routes of http.
        let mut of_tcp = (*gateway).clone();
        of_tcp
            .listeners
            .iter_mut()
            .skip(1)
            .for_each(|listener| listener.protocol = Protocol::Tcp);
        assert!(fits(&of_tcp, &routes[0]));
        let mut few = (*routes[0]).clone();
        few.listeners = vec![("l1".into(), few.origin.clone())];
        assert!(fits(&gateway, &few));
        assert!(does_not_fit(&gateway, &few).is_none());
    }
}

//! What is wrong with the configuration as a whole, whichever gateway an agent serves.

use std::collections::BTreeMap;

use super::breadth;
use super::objects::{ObjectKey, ObjectKind, Protocol, RouteRef};
use super::store::{Config, DocumentState};
use crate::diagnostics::{Code, Diagnostic, Problems, suggestion};
use crate::model::Origin;

impl Config {
    /// Everything: bad documents and what good ones say without effect, clashes of names, routes that hang in the air. Walks all objects: for status and CLI.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let mut said: Vec<Diagnostic> = self
            .documents()
            .flat_map(
                |document| match (&document.in_service, document.problems.is_empty()) {
                    (Some(parsed), true) => parsed.warnings.iter(),
                    _ => document.problems.iter(),
                },
            )
            .cloned()
            .collect();
        for key in self.keys() {
            said.extend(self.name_clashes(key));
        }
        let (unattached, follow_ups) = self.unattached();
        said.extend(unattached);
        said.extend(follow_ups);
        said
    }

    /// Every route that is attached to less than it names; apart from them those that only wait for a gateway's document
    /// to be mended.
    pub fn unattached(&self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        let broken: Vec<&DocumentState> = self
            .documents()
            .map(|state| &**state)
            .filter(|state| !state.problems.is_empty())
            .collect();
        let mut found = (Vec::new(), Vec::new());
        let mut declared_by = BTreeMap::new();
        for route in [ObjectKind::HttpRoute, ObjectKind::TcpRoute]
            .into_iter()
            .flat_map(|kind| self.of_kind(kind))
            .filter_map(|object| object.route())
        {
            found.0.extend(self.attachment_problems(route));
            for (name, origin) in route.gateways() {
                if self.gateway(name).is_some() {
                    continue;
                }
                let document = *declared_by.entry(name).or_insert_with(|| {
                    let mut broken = broken.iter();
                    broken
                        .find(|state| seems_to_declare(&state.document.text, name))
                        .copied()
                });
                match document {
                    Some(document) => found.1.push(waits_for(document, name, origin, route)),
                    None => found.0.push(self.undeclared(name, origin, route)),
                }
            }
        }
        found
    }

    fn undeclared(&self, name: &str, origin: &Origin, route: RouteRef<'_>) -> Diagnostic {
        let near = self.nearest(ObjectKind::Gateway, name);
        Diagnostic::error(
            Code::NotAttached,
            format!("no document declares the gateway {name:?}"),
        )
        .at(origin.clone())
        .about(route.kind().as_str(), route.name())
        .because(
            "until a document declares it, only the route's other gateways serve the route, if it names any",
        )
        .fix(near.map_or_else(
            || {
                let known = self
                    .gateways()
                    .take(8)
                    .map(|gateway| format!("{:?}", gateway.name));
                match known.collect::<Vec<_>>().join(", ") {
                    none if none.is_empty() => format!("declare `gateway {name:?} {{ ... }}`"),
                    known => format!("declare `gateway {name:?} {{ ... }}`; declared are: {known}"),
                }
            },
            |near| format!("did you mean {near:?}?"),
        ))
    }

    /// Names declared more than once: the losers say so.
    pub fn name_clashes(&self, key: &ObjectKey) -> Vec<Diagnostic> {
        let Some(claims) = self.claims_of(key) else {
            return Vec::new();
        };
        let Some(((_, holder), losers)) = claims.split_first() else {
            return Vec::new();
        };
        losers
            .iter()
            // It is not there for this agent: whoever may use it holds the name.
            .filter(|(_, object)| !object.is_refused() || holder.is_refused())
            .map(|(_, object)| {
                Diagnostic::error(Code::DuplicateName, format!("{key} is declared already"))
                    .at(object.origin().clone())
                    .about(key.kind.as_str(), &key.name)
                    .because(format!(
                        "{} holds the name: the older document wins",
                        holder.origin()
                    ))
                    .fix("give this one another name, or take one of the two away")
            })
            .collect()
    }

    /// The declared name nearest to one that nobody declares. Looks at no more than 64 names that begin alike: a hint
    /// must not cost a walk over all objects.
    pub fn nearest(&self, kind: ObjectKind, name: &str) -> Option<String> {
        let first: String = name.chars().take(1).collect();
        let known: Vec<_> = self
            .keys_from(ObjectKey::new(kind, &first))
            .take_while(|key| key.kind == kind && key.name.starts_with(&first))
            .take(64)
            .collect();
        suggestion(name, known.iter().map(|key| &*key.name)).map(str::to_owned)
    }

    /// Listeners that a route names and its gateways do not have, or that speak something else.
    fn attachment_problems(&self, route: RouteRef<'_>) -> Vec<Diagnostic> {
        let mut said = Problems::default();
        let mut listeners: Vec<(&str, Protocol)> = Vec::new();
        for (name, origin) in route.gateways() {
            let Some(gateway) = self.gateway(name) else {
                continue;
            };
            if let RouteRef::Http(http) = route
                && let Some(problem) = breadth::does_not_fit(self, gateway, http)
            {
                said.push(
                    problem
                        .at(origin.clone())
                        .about(route.kind().as_str(), route.name()),
                );
            }
            let declared = gateway.listeners.iter();
            listeners.extend(declared.map(|listener| (&*listener.name, listener.protocol)));
        }
        if listeners.is_empty() {
            // Its listeners cannot be known either.
            return said.told();
        }
        let fitting = || {
            listeners
                .iter()
                .filter(|(_, protocol)| route.goes_with(*protocol))
        };
        let not_attached = |origin: &Origin, message: String| {
            Diagnostic::error(Code::NotAttached, message)
                .at(origin.clone())
                .about(route.kind().as_str(), route.name())
        };
        if route.listeners().is_empty() && fitting().next().is_none() {
            let message = "none of the route's gateways has an http or https listener".to_owned();
            said.push(
                not_attached(route.origin(), message)
                    .because("the route is served by nobody")
                    .fix("add such a listener, or write a tcp_route for those that are there"),
            );
        }
        for (name, origin) in route.listeners() {
            let named = listeners.iter().filter(|(listener, _)| *listener == &**name);
            let spoken: Vec<Protocol> = named.map(|(_, protocol)| *protocol).collect();
            if spoken.iter().any(|protocol| route.goes_with(*protocol)) {
                continue;
            }
            said.push(match spoken.first() {
                Some(protocol) => {
                    let message = format!(
                        "the listener {name:?} speaks {}, which is not for {} {:?}",
                        protocol.as_str(),
                        route.kind().as_str(),
                        route.name()
                    );
                    let fix = match route {
                        RouteRef::Http(_) => "name an http or https listener, or write a tcp_route",
                        RouteRef::Tcp(_) => "set `protocol = \"tcp\"` there, or write an http_route",
                    };
                    not_attached(origin, message)
                        .because("the listener does not serve the route")
                        .fix(fix)
                }
                None => {
                    let near = suggestion(name, fitting().take(64).map(|(listener, _)| *listener));
                    let known: Vec<&str> = listeners.iter().take(8).map(|(listener, _)| *listener).collect();
                    not_attached(
                        origin,
                        format!("none of the route's gateways has a listener {name:?}"),
                    )
                    .because("until a gateway has it, only the route's other listeners serve the route, if it names any")
                    .fix(near.map_or_else(
                        || format!("listeners there: {}", known.join(", ")),
                        |near| format!("did you mean {near:?}?"),
                    ))
                }
            });
        }
        said.told()
    }
}

fn waits_for(state: &DocumentState, name: &str, origin: &Origin, route: RouteRef<'_>) -> Diagnostic {
    let document = &state.document.id;
    let place = state.problems.first().and_then(|problem| problem.origin.as_ref());
    Diagnostic::error(
        Code::NotAttached,
        format!("the document that declares the gateway {name:?} has errors"),
    )
    .at(origin.clone())
    .about(route.kind().as_str(), route.name())
    .because("until it is mended, only the route's other gateways serve the route, if it names any")
    .fix(place.map_or_else(|| format!("mend {document}"), |place| format!("mend {place}")))
}

/// Whether a text, which cannot be read as a whole, has a block `gateway` of this name, in HCL or in JSON.
fn seems_to_declare(text: &str, name: &str) -> bool {
    text.match_indices("gateway").any(|(at, word)| {
        let behind = &text[at + word.len()..];
        let label = behind.trim_start_matches(|c: char| c.is_whitespace() || "\":{[".contains(c));
        let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || "._-".contains(c));
        label.len() < behind.len() && label.strip_prefix(name).is_some_and(ends)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_text_shows_which_gateway_it_would_declare() {
        for text in [
            "gateway \"edge\" {",
            "gateway \"edge {",
            "gateway edge {",
            "# x\ngateway\t\"edge\"\n{",
            "{\"gateway\": {\"edge\": {",
            "{\"gateway\": [{\"edge\": {",
        ] {
            assert!(seems_to_declare(text, "edge"), "{text}");
        }
        for text in [
            "",
            "gateway",
            "gateway \"edge-2\" {",
            "gateway \"inner\" { # edge",
            "http_route \"a\" {\n  gateways = [\"edge\"]",
        ] {
            assert!(!seems_to_declare(text, "edge"), "{text}");
        }
    }
}

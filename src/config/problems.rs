//! What is wrong with the configuration as a whole, whichever gateway an agent serves.

use super::breadth;
use super::objects::{ObjectKey, ObjectKind, Protocol, RouteRef};
use super::store::Config;
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
        said.extend(self.unattached());
        said
    }

    /// Every route that is attached to less than it names.
    pub fn unattached(&self) -> Vec<Diagnostic> {
        [ObjectKind::HttpRoute, ObjectKind::TcpRoute]
            .into_iter()
            .flat_map(|kind| self.of_kind(kind))
            .filter_map(|object| object.route())
            .flat_map(|route| self.attachment_problems(route))
            .collect()
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

    /// Gateways and listeners that a route names and nobody declares, or that speak something else.
    fn attachment_problems(&self, route: RouteRef<'_>) -> Vec<Diagnostic> {
        let mut said = Problems::default();
        let mut listeners: Vec<(&str, Protocol)> = Vec::new();
        for (name, origin) in route.gateways() {
            match self.gateway(name) {
                Some(gateway) => {
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
                None => {
                    let near = self.nearest(ObjectKind::Gateway, name);
                    said.push(
                        Diagnostic::error(
                            Code::NotAttached,
                            format!("no document declares the gateway {name:?}"),
                        )
                        .at(origin.clone())
                        .about(route.kind().as_str(), route.name())
                        .because("until a document declares it, only the route's other gateways serve the route, if it names any")
                        .fix(near.map_or_else(
                            || {
                                let known = self
                                    .gateways()
                                    .take(8)
                                    .map(|gateway| format!("{:?}", gateway.name));
                                match known.collect::<Vec<_>>().join(", ") {
                                    none if none.is_empty() => {
                                        format!("declare `gateway {name:?} {{ ... }}`")
                                    }
                                    known => {
                                        format!("declare `gateway {name:?} {{ ... }}`; declared are: {known}")
                                    }
                                }
                            },
                            |near| format!("did you mean {near:?}?"),
                        )),
                    );
                }
            }
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

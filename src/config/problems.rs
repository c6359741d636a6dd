//! What is wrong with the configuration as a whole, whichever gateway an agent serves.

use super::objects::{HttpRoute, Object, ObjectKey, ObjectKind};
use super::store::Config;
use crate::diagnostics::{Code, Diagnostic, suggestion};

impl Config {
    /// Everything: bad documents, clashes of names, routes that hang in the air. Walks all objects: for status and CLI.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let mut said: Vec<Diagnostic> = self
            .documents()
            .flat_map(|document| document.problems.iter().cloned())
            .collect();
        for key in self.keys() {
            said.extend(self.name_clashes(key));
        }
        said.extend(self.unattached());
        said
    }

    /// Every route that is attached to less than it names.
    pub fn unattached(&self) -> Vec<Diagnostic> {
        self.of_kind(ObjectKind::HttpRoute)
            .flat_map(|object| match object {
                Object::HttpRoute(route) => self.attachment_problems(route),
                _ => Vec::new(),
            })
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

    /// The declared name nearest to one that nobody declares. Looks at no more than 256 names that begin alike: a hint
    /// must not cost a walk over all objects.
    pub fn nearest(&self, kind: ObjectKind, name: &str) -> Option<String> {
        let first: String = name.chars().take(1).collect();
        let known: Vec<_> = self
            .keys_from(ObjectKey::new(kind, &first))
            .take_while(|key| key.kind == kind && key.name.starts_with(&first))
            .take(256)
            .collect();
        suggestion(name, known.iter().map(|key| &*key.name)).map(str::to_owned)
    }

    /// Gateways and listeners that a route names and nobody declares.
    fn attachment_problems(&self, route: &HttpRoute) -> Vec<Diagnostic> {
        let mut said = Vec::new();
        let mut listeners = Vec::new();
        for (name, origin) in &route.gateways {
            match self.gateway(name) {
                Some(gateway) => listeners.extend(gateway.listeners.iter().map(|listener| &*listener.name)),
                None => {
                    let near = self.nearest(ObjectKind::Gateway, name);
                    said.push(
                        Diagnostic::error(
                            Code::NotAttached,
                            format!("no document declares the gateway {name:?}"),
                        )
                        .at(origin.clone())
                        .about("http_route", &route.name)
                        .because("the route is not served by a gateway that nobody declares")
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
            return said;
        }
        for (name, origin) in &route.listeners {
            if listeners.contains(&&**name) {
                continue;
            }
            let near = suggestion(name, listeners.iter().copied());
            said.push(
                Diagnostic::error(
                    Code::NotAttached,
                    format!("none of the route's gateways has a listener {name:?}"),
                )
                .at(origin.clone())
                .about("http_route", &route.name)
                .because("the route is not served by a listener that nobody declares")
                .fix(near.map_or_else(
                    || format!("listeners there: {}", listeners.join(", ")),
                    |near| format!("did you mean {near:?}?"),
                )),
            );
        }
        said
    }
}

//! What no gateway can say about itself: routes that name a gateway or a listener nobody declares.

use std::sync::Arc;

use crate::config::{Config, Gateway, HttpRoute, Object, ObjectKind};
use crate::diagnostics::{Code, Diagnostic, suggestion};
use crate::model::Origin;

/// Every route that is attached to less than it names.
pub fn unattached(config: &Config) -> Vec<Diagnostic> {
    let routes = config
        .of_kind(ObjectKind::HttpRoute)
        .filter_map(|object| match object {
            Object::HttpRoute(route) => Some(route),
            _ => None,
        });
    routes.flat_map(|route| unattached_route(config, route)).collect()
}

fn unattached_route(config: &Config, route: &HttpRoute) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let mut gateways: Vec<&Arc<Gateway>> = Vec::new();
    for (name, origin) in &route.gateways {
        match config.gateway(name) {
            Some(gateway) => gateways.push(gateway),
            None => {
                let known: Vec<&str> = config.gateways().map(|gateway| &*gateway.name).collect();
                found.push(
                    missing(route, "gateway", name, origin, &known)
                        .because("the route is not served by a gateway that nobody declares"),
                );
            }
        }
    }
    if gateways.is_empty() {
        // Its listeners cannot be known either.
        return found;
    }
    for (name, origin) in &route.listeners {
        let listeners = gateways.iter().flat_map(|gateway| &gateway.listeners);
        if !listeners.clone().any(|listener| listener.name == *name) {
            let known: Vec<&str> = listeners.map(|listener| &*listener.name).collect();
            found.push(
                missing(route, "listener", name, origin, &known)
                    .because("none of the route's gateways has a listener of that name"),
            );
        }
    }
    found
}

fn missing(route: &HttpRoute, what: &str, name: &str, origin: &Origin, known: &[&str]) -> Diagnostic {
    let near = suggestion(name, known.iter().copied());
    let fix = match (near, known) {
        (Some(near), _) => format!("did you mean {near:?}?"),
        (None, []) => format!("declare `{what} {name:?} {{ ... }}`"),
        (None, known) => format!("declared are: {}", known.join(", ")),
    };
    Diagnostic::error(
        Code::NotAttached,
        format!("no document declares the {what} {name:?}"),
    )
    .at(origin.clone())
    .about("http_route", &route.name)
    .fix(fix)
}

//! What is said of a destination, at the place that names it.
//!
//! Done when it is read, not when it is made: routes come and go, and lines move, without the destination being looked
//! at again.

use super::{Destination, interests_of};
use crate::config::{Backend, BackendTarget, Config, RouteRef};
use crate::diagnostics::{Code, Diagnostic, suggestion};
use crate::model::mesh::Interest;
use crate::model::{Lookup, ServiceQuery};
use crate::snapshot::Snapshot;

/// Users counted; beyond, "more than" says enough.
const COUNTED: usize = 100;

/// Names looked at for a hint. It must not cost a walk over a whole catalog.
const NEAR: usize = 256;

/// Adds the place: the upstream's block, or the first backend that names the service; who else uses it; and for a
/// service that nobody registered the name that was probably meant.
pub fn at_its_users(
    snapshot: &Snapshot,
    gateway: &str,
    destination: &Destination,
    diagnostic: &Diagnostic,
) -> Diagnostic {
    let config = &snapshot.config;
    let target = &match destination {
        Destination::Backend(target) => target.clone(),
        Destination::Mesh { upstream, .. } | Destination::Failover { upstream, .. } => {
            BackendTarget::Upstream(upstream.clone())
        }
    };
    let mut said = diagnostic.clone();
    if users(config, gateway, target).all(|(route, _)| matches!(route, RouteRef::Tcp(_))) {
        // Nobody who uses it could be answered.
        said.reason = said.reason.map(|reason| {
            let reason = reason.replace(
                "requests to it answer 503",
                "connections to it are closed at once",
            );
            reason.replace(
                "clients get 503",
                "connections to it are closed; where no other backend is left, so is the port",
            )
        });
    }
    let mut users = users(config, gateway, target);
    let first = users.next();
    match target {
        BackendTarget::Upstream(name) => {
            said.origin = config.upstream(name).map(|upstream| upstream.origin.clone());
            if let Some((route, backend)) = first {
                add_reason(
                    &mut said,
                    format!("used by {}", listed(route, backend, users.count())),
                );
            }
        }
        BackendTarget::Consul(_) => {
            said.origin = first.map(|(_, backend)| backend.origin.clone());
            if let Some((route, backend)) = users.next() {
                add_reason(
                    &mut said,
                    format!("also used by {}", listed(route, backend, users.count())),
                );
            }
        }
    }
    if said.code == Code::UnknownService
        && let Some(near) = looked_up(snapshot, destination).and_then(|query| nearest(snapshot, &query))
    {
        said.fix = Some(format!("did you mean {near:?}?"));
    }
    said
}

/// The service itself, not its sidecars.
fn looked_up(snapshot: &Snapshot, destination: &Destination) -> Option<ServiceQuery> {
    let services = interests_of(snapshot, destination).into_iter();
    services
        .filter_map(|interest| match interest {
            Interest::Service(query) => Some(query),
            _ => None,
        })
        .find(|query| query.lookup == Lookup::Service)
}

fn users<'a>(
    config: &'a Config,
    gateway: &'a str,
    target: &'a BackendTarget,
) -> impl Iterator<Item = (RouteRef<'a>, &'a Backend)> {
    config
        .routes_to(target)
        .filter(move |route| route.gateways().iter().any(|(name, _)| **name == *gateway))
        .flat_map(move |route| {
            let backends = route.backends().filter(move |backend| backend.target == *target);
            backends.map(move |backend| (route, backend))
        })
        .take(COUNTED + 2)
}

fn listed(route: RouteRef<'_>, backend: &Backend, others: usize) -> String {
    let first = format!(
        "{} {:?} ({})",
        route.kind().as_str(),
        route.name(),
        backend.origin
    );
    match others {
        0 => first,
        1 => format!("{first} and one more backend"),
        2..COUNTED => format!("{first} and {others} more backends"),
        _ => format!("{first} and more than {COUNTED} others"),
    }
}

fn add_reason(said: &mut Diagnostic, more: String) {
    said.reason = Some(match said.reason.take() {
        Some(reason) => format!("{reason}; {more}"),
        None => more,
    });
}

/// The registered name nearest to one that is not. The names are those of the agent's own datacenter.
fn nearest<'a>(snapshot: &'a Snapshot, query: &ServiceQuery) -> Option<&'a str> {
    let asked = query.narrowing();
    if asked.datacenter.is_some() || asked.namespace.is_some() || asked.partition.is_some() {
        return None;
    }
    let names = snapshot.service_names()?;
    let first = query.name.get(..query.name.chars().next()?.len_utf8())?;
    let from = names.partition_point(|name| **name < *first);
    let alike = names[from..]
        .iter()
        .map(|name| &**name)
        .take_while(|name| name.starts_with(first))
        .filter(|name| name.len().abs_diff(query.name.len()) <= 1 + query.name.len() / 4)
        .take(NEAR);
    suggestion(&query.name, alike)
}

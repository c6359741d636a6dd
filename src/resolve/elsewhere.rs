//! Where else a request might have gone, and why it does not.

use std::sync::Arc;

use serde::Serialize;

use crate::config::{Gateway, Listener, Protocol};
use crate::diagnostics::suggestion;
use crate::snapshot::Snapshot;

/// Told of one kind; who has more knows them by other means.
const SHOWN: usize = 16;

/// Names looked at for one that is nearly right.
const NEAR: usize = 1024;

/// A listener or host that is not it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Elsewhere {
    /// `listener "tls"`, `host "*.example.com"`.
    pub what: String,
    pub why_not: String,
}

pub(super) fn other_listeners(
    gateway: &Gateway,
    taken: Option<&Listener>,
    protocol: Protocol,
    port: Option<u16>,
) -> Vec<Elsewhere> {
    let others = gateway
        .listeners
        .iter()
        .filter(|listener| taken.is_none_or(|taken| taken.name != listener.name));
    others
        .take(SHOWN)
        .map(|listener| Elsewhere {
            what: format!("listener {:?}", listener.name),
            why_not: match (listener.protocol == protocol, port) {
                (false, _) => format!(
                    "it speaks {}, on port {}",
                    listener.protocol.as_str(),
                    listener.port
                ),
                (true, Some(asked)) => format!("it is on port {}, not {asked}", listener.port),
                (true, None) => format!(
                    "it is on port {}; a URL without a port is explained for the first {} listener",
                    listener.port,
                    protocol.as_str()
                ),
            },
        })
        .collect()
}

/// Hosts that match as well and are less specific; hosts of other listeners; without any, the name that was meant.
pub(super) fn other_hosts(
    snapshot: &Snapshot,
    gateway: &Gateway,
    listener: &Listener,
    asked: &str,
    taken: Option<&Arc<str>>,
) -> Vec<Elsewhere> {
    let config = &snapshot.config;
    let mut found = Vec::new();
    for candidate in candidates(asked) {
        let candidate: Arc<str> = candidate.into();
        if taken == Some(&candidate) {
            continue;
        }
        let mut is_claimed = false;
        let mut names: Vec<&str> = Vec::new();
        let mut is_here = false;
        for (_, route) in config.routes_of_host(&gateway.name, &candidate) {
            is_claimed = true;
            is_here |=
                route.listeners.is_empty() || route.listeners.iter().any(|(name, _)| *name == listener.name);
            names.extend(route.listeners.iter().map(|(name, _)| &**name));
        }
        let why_not = match (is_claimed, is_here, taken) {
            (false, _, _) => continue,
            (true, false, _) => {
                names.sort_unstable();
                names.dedup();
                format!("its routes are for other listeners: {}", names.join(", "))
            }
            (true, true, Some(taken)) => {
                format!("less specific than {taken:?}, whose rules alone are looked at")
            }
            (true, true, None) => continue,
        };
        found.push(Elsewhere {
            what: format!("host {candidate:?}"),
            why_not,
        });
    }
    found.truncate(SHOWN);
    if taken.is_none() && found.is_empty() {
        let known = config.hosts_of_gateway(&gateway.name).take(NEAR);
        let near = known.into_iter().find(|host| is_near(asked, host));
        found.extend(near.map(|near| Elsewhere {
            what: format!("host {near:?}"),
            why_not: format!("nearly {asked:?}, and not the same"),
        }));
    }
    found
}

/// A slip in one label: with whole names compared, every host of one domain would be near every other.
fn is_near(asked: &str, known: &str) -> bool {
    let (Some((first, rest)), Some((known_first, known_rest))) =
        (asked.split_once('.'), known.split_once('.'))
    else {
        return suggestion(asked, [known]).is_some();
    };
    (rest == known_rest && suggestion(first, [known_first]).is_some())
        || (first == known_first && suggestion(rest, [known_rest]).is_some())
}

/// Every entry that could take a host, the most specific first.
fn candidates(host: &str) -> impl Iterator<Item = String> {
    let parents = std::iter::successors(Some(host), |name| name.split_once('.').map(|(_, parent)| parent));
    let wildcards = parents.skip(1).map(|parent| format!("*.{parent}"));
    std::iter::once(host.to_owned())
        .chain(wildcards)
        .chain(["*".to_owned()])
}

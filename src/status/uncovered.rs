//! Hosts that a listener serves and that none of its certificates names: clients are refused before anything is routed.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::{Gateway, Listener};
use crate::diagnostics::{Code, Diagnostic};
use crate::model::is_covered;
use crate::pipeline::{GatewayView, View};

/// Of one listener, in one message.
const SHOWN: usize = 8;

pub(super) fn uncovered(view: &View) -> Vec<Diagnostic> {
    let served = view
        .gateways
        .iter()
        .filter_map(|served| Some((served, view.snapshot.config.gateway(&served.name)?)));
    served
        .flat_map(|(served, gateway)| {
            let listeners = gateway.listeners.iter();
            listeners.filter_map(move |listener| of_listener(view, served, gateway, listener))
        })
        .collect()
}

fn of_listener(
    view: &View,
    served: &GatewayView,
    gateway: &Gateway,
    listener: &Listener,
) -> Option<Diagnostic> {
    let tls = listener.tls.as_ref()?;
    let names = names_shown(view, tls.certificates.iter().map(|(name, _)| name))?;
    let hosts = served.compiler.hosts();
    let of_listener = hosts.filter(|(name, _)| **name == listener.name);
    let missed: Vec<&Arc<str>> = of_listener
        .map(|(_, host)| host)
        .filter(|host| !is_covered(&names, host))
        .collect();
    if missed.is_empty() {
        return None;
    }
    let shown = missed.iter().take(SHOWN).map(|host| format!("{host:?}"));
    let mut shown = shown.collect::<Vec<_>>().join(", ");
    if let more @ 1.. = missed.len().saturating_sub(SHOWN) {
        shown.push_str(&format!(" and {more} more"));
    }
    let text = format!(
        "the listener {:?} serves hosts that none of its certificates names",
        listener.name
    );
    Some(
        Diagnostic::warning(Code::HostNotCovered, text)
            .at(listener.origin.clone())
            .about("gateway", &gateway.name)
            .because(format!(
                "the certificate is chosen by the name that a client asks for; without one its handshake is refused: {shown}"
            ))
            .fix(
                "issue a certificate with these names, and list it here; or keep their routes to the listeners that serve \
                 them (`listeners = [...]`)",
            ),
    )
}

/// None: not all of them are known, or there is none to choose, which is told elsewhere.
fn names_shown<'a>(
    view: &View,
    certificates: impl Iterator<Item = &'a Arc<str>>,
) -> Option<BTreeSet<Arc<str>>> {
    let mut names = BTreeSet::new();
    for certificate in certificates {
        let material = view.snapshot.serving(certificate)?.value.as_ref()?;
        names.extend(material.host_names());
    }
    (!names.is_empty()).then_some(names)
}

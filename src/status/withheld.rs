use std::sync::Arc;

use crate::config::listener_of_client_ca;
use crate::diagnostics::{Code, Diagnostic};
use crate::envoy::{ResourceKind, ResourceSet};
use crate::pipeline::View;
use crate::resolve::certificate_of_secret;
use crate::snapshot::Snapshot;
use crate::xds::{StreamView, Variant, WithheldListener};

/// Listeners that single Envoys are not given, because the keys of their certificates are with others alone.
pub(super) fn withheld_from_nodes(view: &View, streams: &[StreamView]) -> Vec<Diagnostic> {
    let mut all = Vec::new();
    for stream in streams {
        let Some(gateway) = view.snapshot.config.gateway(&stream.gateway) else {
            continue;
        };
        for withheld in &stream.withheld {
            let declared = gateway
                .listeners
                .iter()
                .find(|listener| listener.name == withheld.name);
            let diagnostic =
                withheld_from_node(&view.snapshot, stream, withheld).about("gateway", &gateway.name);
            all.push(match declared {
                Some(listener) => diagnostic.at(listener.origin.clone()),
                None => diagnostic,
            });
        }
    }
    all
}

fn withheld_from_node(snapshot: &Snapshot, stream: &StreamView, withheld: &WithheldListener) -> Diagnostic {
    let names: Vec<&str> = withheld.lacks.iter().filter_map(|it| certificate(it)).collect();
    let shown: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    let (node, listener, shown) = (&stream.node, &withheld.name, shown.join(", "));
    let text = format!(
        "Envoy {node:?} is not given the listener {listener:?}: it has no private key for {shown}, and this agent has \
         had none since its restart"
    );
    // One that is issued anew is here in a moment, and nothing is amiss yet.
    let has_problem = |name: &&&str| {
        let known = snapshot.serving(name);
        known.is_some_and(|known| known.problem.is_some())
    };
    match names.iter().any(|name| has_problem(&name)) {
        true => Diagnostic::error(Code::ListenerWithheld, text),
        false => Diagnostic::warning(Code::ListenerWithheld, text),
    }
    .because(
        "Envoys that had the key before serve on with it; a port that answers every handshake with an error is worse \
         than a closed one",
    )
    .fix(format!(
        "mend the source of one of its certificates: {shown}; the listener opens by itself"
    ))
}

/// Certificates without a key on single Envoys, beside others of the listener that have theirs: it is open, and refuses
/// handshakes for their names.
pub(super) fn keyless_on_nodes(view: &View, streams: &[StreamView]) -> Vec<Diagnostic> {
    let mut all = Vec::new();
    // Most Envoys of a gateway are to have the very same, and mostly the keys of all of it are here.
    let mut last: Option<(&ResourceSet, Vec<Arc<str>>)> = None;
    for stream in streams {
        let Some(target) = &stream.target else { continue };
        // In the state of the world an Envoy that comes back does not say what it has. One that begins anew has nothing.
        if stream.variant == Variant::StateOfTheWorld && stream.came_with_state {
            continue;
        }
        if !last.as_ref().is_some_and(|(known, _)| known.is(target)) {
            last = Some((target, keyless(target)));
        }
        let keyless = last.iter().flat_map(|(_, keyless)| keyless);
        for secret in keyless.filter(|secret| stream.acked.get(ResourceKind::Secret, secret).is_none()) {
            let listeners = stream.acked.of_kind(ResourceKind::Listener).values();
            for listener in listeners.filter(|listener| listener.needs_one_of.contains(secret)) {
                all.extend(keyless_on_node(&view.snapshot, stream, secret, &listener.name));
            }
        }
    }
    all
}

/// Secrets whose key Envoys alone may have.
fn keyless(set: &ResourceSet) -> Vec<Arc<str>> {
    let secrets = set.of_kind(ResourceKind::Secret).values();
    secrets
        .filter(|secret| secret.is_held_by_envoy())
        .map(|secret| secret.name.clone())
        .collect()
}

fn keyless_on_node(
    snapshot: &Snapshot,
    stream: &StreamView,
    secret: &Arc<str>,
    listener: &str,
) -> Option<Diagnostic> {
    let name = certificate(secret)?;
    let text = format!(
        "Envoy {:?} has no private key for the certificate {name:?}, and this agent has had none since its restart",
        stream.node
    );
    let problem = snapshot.serving(name).and_then(|known| known.problem.as_ref());
    let (why, fix) = match problem {
        Some(problem) => (format!(" ({problem})"), problem.advice()),
        None => (
            String::new(),
            "wait until it is issued anew: at most once a minute",
        ),
    };
    let diagnostic = Diagnostic::error(Code::CertificateProblem, text)
        .because(format!(
            "that Envoy refuses handshakes for its names, while the listener {listener:?} serves with its others{why}"
        ))
        .fix(fix)
        .about("gateway", &stream.gateway);
    Some(match snapshot.config.certificate(name) {
        Some(declared) => diagnostic.at(declared.origin.clone()),
        None => diagnostic,
    })
}

/// Authorities of clients have no key that could be lost.
pub(super) fn certificate(secret: &Arc<str>) -> Option<&str> {
    certificate_of_secret(secret).filter(|name| listener_of_client_ca(name).is_none())
}

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::Resolved;
use crate::config::{ClientCa, Gateway, Listener, ListenerTls, ObjectKind};
use crate::diagnostics::{Code, Diagnostic};
use crate::features::FEATURES;
use crate::ir::{self, ClientTls, Routing, Secret, SecretKind, Tls, TlsChain, VirtualHost};
use crate::model::{CertificateQuery, DocumentId};
use crate::snapshot::Snapshot;

/// The certificates and authorities that a gateway's listeners name, with what to fetch for each.
pub fn certificates_of(snapshot: &Snapshot, gateway: &Gateway) -> Vec<(Arc<str>, CertificateQuery)> {
    let mut wanted: BTreeMap<Arc<str>, CertificateQuery> = BTreeMap::new();
    for listener in &gateway.listeners {
        let Some(tls) = &listener.tls else { continue };
        for (name, _) in &tls.certificates {
            if let Some(declared) = snapshot.config.certificate(name) {
                wanted.insert(name.clone(), declared.query.clone());
            }
        }
        if let Some(client_ca) = &tls.client_ca {
            wanted.insert(client_ca_name(&listener.name), client_ca.query.clone());
        }
    }
    wanted.into_iter().collect()
}

/// A certificate's name has no slash: the two cannot clash.
pub fn client_ca_name(listener: &str) -> Arc<str> {
    format!("client_ca/{listener}").into()
}

/// Of a certificate, or of a listener's authorities by their own name.
pub fn secret_name(certificate: &str) -> Arc<str> {
    if certificate.starts_with("client_ca/") {
        certificate.into()
    } else {
        format!("certificate/{certificate}").into()
    }
}

pub fn resolve_secret(snapshot: &Snapshot, gateway: &Gateway, name: &str) -> Option<Secret> {
    let (query, kind, document) = match name.strip_prefix("client_ca/") {
        Some(listener) => {
            let listener = gateway.listeners.iter().find(|known| &*known.name == listener)?;
            let client_ca = listener.tls.as_ref()?.client_ca.as_ref()?;
            (
                &client_ca.query,
                SecretKind::Authorities,
                &gateway.origin.document,
            )
        }
        None => {
            let declared = snapshot.config.certificate(name)?;
            (
                &declared.query,
                SecretKind::Certificate,
                &declared.origin.document,
            )
        }
    };
    Some(Secret {
        name: secret_name(name),
        kind,
        material: snapshot.certificate(query)?.value.clone()?,
        origins: vec![document.clone()],
    })
}

/// Features with a filter that some route of the host asks for, without those of security policies: they are always there.
pub fn attached_features(host: &VirtualHost) -> BTreeSet<&'static str> {
    let used: BTreeSet<&'static str> = host
        .routes
        .iter()
        .flat_map(|route| route.policies.iter().map(|(name, _)| name))
        .collect();
    FEATURES
        .iter()
        .filter(|feature| {
            used.contains(feature.name()) && !feature.is_security() && feature.http_filter().is_some()
        })
        .map(|feature| feature.name())
        .collect()
}

/// None as value: the listener is withheld, and the diagnostics say why.
pub fn resolve_listener(
    snapshot: &Snapshot,
    gateway: &Gateway,
    listener: &Listener,
    bind_address: IpAddr,
    routing: Routing,
    features: Vec<&'static str>,
) -> Resolved<Option<ir::Listener>> {
    let mut diagnostics = Vec::new();
    let mut origins = BTreeSet::from([gateway.origin.document.clone()]);
    let tls = match &listener.tls {
        None => None,
        Some(tls) => {
            let mut chains: Vec<TlsChain> = Vec::new();
            let mut taken: BTreeSet<Arc<str>> = BTreeSet::new();
            for (name, origin) in &tls.certificates {
                let stale = not_renewed(snapshot, name);
                diagnostics
                    .extend(stale.map(|stale| stale.at(origin.clone()).about("gateway", &gateway.name)));
                match chain(snapshot, listener, name, &mut taken) {
                    Ok((chain, document)) => {
                        origins.insert(document);
                        chains.extend(chain);
                    }
                    Err(diagnostic) => {
                        diagnostics.push(diagnostic.at(origin.clone()).about("gateway", &gateway.name))
                    }
                }
            }
            if chains.is_empty() {
                diagnostics.push(
                    Diagnostic::error(
                        Code::ListenerWithheld,
                        format!(
                            "the listener {:?} has no usable certificate and is not opened",
                            listener.name
                        ),
                    )
                    .at(listener.origin.clone())
                    .about("gateway", &gateway.name)
                    .because("a port that answers every handshake with an error is worse than a closed one")
                    .fix(format!(
                        "mend one of its certificates, each says what it lacks: {}",
                        names_of(tls)
                    )),
                );
                return Resolved {
                    value: None,
                    diagnostics,
                };
            }
            if let Some(client_ca) = &tls.client_ca {
                let (known, problem) = authorities(snapshot, listener, client_ca);
                diagnostics.extend(problem.map(|problem| problem.about("gateway", &gateway.name)));
                if !known {
                    return Resolved {
                        value: None,
                        diagnostics,
                    };
                }
            }
            Some(Tls {
                chains,
                min_version: tls.min_version.clone(),
                clients: tls.client_ca.as_ref().map(|client_ca| ClientTls {
                    secret: client_ca_name(&listener.name),
                    require: client_ca.require,
                }),
            })
        }
    };
    let value = ir::Listener {
        name: listener.name.clone(),
        address: listener.address.unwrap_or(bind_address),
        port: listener.port,
        tls,
        routing,
        trusted_proxies: listener.trusted_proxies,
        idle_timeout: listener.idle_timeout,
        stream_idle_timeout: listener.stream_idle_timeout,
        request_headers_timeout: listener.request_headers_timeout,
        max_request_headers_kb: listener.max_request_headers_kb,
        features,
        origins: origins.into_iter().collect(),
    };
    Resolved {
        value: Some(value),
        diagnostics,
    }
}

fn names_of(tls: &ListenerTls) -> String {
    let names: Vec<String> = tls
        .certificates
        .iter()
        .map(|(name, _)| format!("{name:?}"))
        .collect();
    names.join(", ")
}

/// One that is here, and whose source has not been able to bring a newer one since.
fn not_renewed(snapshot: &Snapshot, name: &str) -> Option<Diagnostic> {
    let known = snapshot.certificate(&snapshot.config.certificate(name)?.query)?;
    let problem = known.problem.as_ref()?;
    known.value.is_some().then(|| {
        Diagnostic::warning(
            Code::CertificateProblem,
            format!("certificate {name:?}: {problem}"),
        )
        .because("the one that was fetched before stays in service, as long as it lasts")
        .fix(problem.advice())
    })
}

/// Whether it is known whose certificates clients may show, and what is wrong with that. Unknown, nobody is let in: the
/// listener stays closed rather than open to all.
fn authorities(snapshot: &Snapshot, listener: &Listener, client_ca: &ClientCa) -> (bool, Option<Diagnostic>) {
    let known = snapshot.certificate(&client_ca.query);
    let at_hand = known.is_some_and(|known| known.value.is_some());
    let problem = known.and_then(|known| known.problem.as_ref());
    let withheld = |why: String| {
        format!(
            "the listener {:?} is not opened: whose client certificates are good is not known: {why}",
            listener.name
        )
    };
    let diagnostic = match (at_hand, problem) {
        (true, None) => None,
        (true, Some(problem)) => Some(
            Diagnostic::warning(
                Code::CertificateProblem,
                format!("client_ca of listener {:?}: {problem}", listener.name),
            )
            .because("the authorities and revocations that were read before stay in force")
            .fix(problem.advice()),
        ),
        (false, Some(problem)) => Some(
            Diagnostic::error(Code::ListenerWithheld, withheld(problem.to_string()))
                .because("open without them, the port would let in any client, or none")
                .fix(problem.advice()),
        ),
        (false, None) => Some(
            Diagnostic::warning(
                Code::NotYetKnown,
                withheld(format!("{} has not answered yet", client_ca.query)),
            )
            .because("open without them, the port would let in any client, or none")
            .fix("wait a moment; if it stays, `portreeve status` says how its source is"),
        ),
    };
    (
        at_hand,
        diagnostic.map(|diagnostic| diagnostic.at(client_ca.origin.clone())),
    )
}

/// The chain for one certificate. None: all its names are served by an earlier one.
fn chain(
    snapshot: &Snapshot,
    listener: &Listener,
    name: &Arc<str>,
    taken: &mut BTreeSet<Arc<str>>,
) -> Result<(Option<TlsChain>, DocumentId), Box<Diagnostic>> {
    let Some(declared) = snapshot.config.certificate(name) else {
        let near = snapshot.config.nearest(ObjectKind::Certificate, name);
        return Err(Box::new(
            Diagnostic::error(
                Code::UnknownReference,
                format!("no document declares the certificate {name:?}"),
            )
            .because(format!("the listener {:?} goes on without it", listener.name))
            .fix(near.map_or_else(
                || format!("declare `certificate {name:?} {{ ... }}`"),
                |near| format!("did you mean {near:?}?"),
            )),
        ));
    };
    let known = snapshot.certificate(&declared.query);
    let Some(material) = known.and_then(|known| known.value.as_ref()) else {
        return Err(Box::new(match known.and_then(|known| known.problem.as_ref()) {
            Some(problem) => Diagnostic::error(
                Code::CertificateProblem,
                format!("certificate {name:?}: {problem}"),
            )
            .because(format!("the listener {:?} goes on without it", listener.name))
            .fix(problem.advice()),
            None => Diagnostic::warning(
                Code::NotYetKnown,
                format!("certificate {name:?} has not arrived yet ({})", declared.query),
            )
            .because(format!(
                "its source has not answered yet; the listener {:?} goes on without it",
                listener.name
            ))
            .fix("wait a moment; if it stays, `portreeve status` says how its source is"),
        }));
    };
    // A client's SNI is a DNS name; IP addresses never appear in one. Envoy refuses wildcards that are not a whole first
    // label, and with them the listener.
    let usable: Vec<Arc<str>> = material
        .names
        .iter()
        .filter(|san| san.parse::<IpAddr>().is_err())
        .map(|san| Arc::from(san.to_ascii_lowercase()))
        .filter(|san: &Arc<str>| !san.strip_prefix("*.").unwrap_or(san).contains('*') && !san.is_empty())
        .collect();
    if usable.is_empty() {
        return Err(Box::new(
            Diagnostic::error(
                Code::CertificateProblem,
                format!("certificate {name:?} names no host"),
            )
            .because("which certificate is served is decided by the client's SNI, which names a host")
            .fix("issue it with a DNS name (subject alternative name)"),
        ));
    }
    let server_names: Vec<Arc<str>> = usable
        .into_iter()
        .filter(|san| taken.insert(san.clone()))
        .collect();
    let chain = (!server_names.is_empty()).then(|| TlsChain {
        secret: secret_name(name),
        server_names,
    });
    Ok((chain, declared.origin.document.clone()))
}

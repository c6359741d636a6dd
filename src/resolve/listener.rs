use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::Resolved;
use super::certificate::code_of;
use super::client_ca::{authorities, client_ca_of, named};
use super::ports::port_clash;
use crate::config::{
    Gateway, Listener, ListenerTls, NotAllowed, ObjectKind, client_ca_name, listener_of_client_ca,
};
use crate::diagnostics::{Code, Diagnostic};
use crate::features::FEATURES;
use crate::ir::{
    self, ClientTls, Http, MESH_LEAF, MESH_ROOTS, Routing, Secret, SecretContent, Serves, Tls, TlsChain,
    VirtualHost,
};
use crate::model::{CertificateQuery, DocumentId};
use crate::snapshot::Snapshot;

/// The certificates that a gateway's listeners show, and the authorities of their clients.
pub fn certificates_of(snapshot: &Snapshot, gateway: &Gateway) -> BTreeSet<Arc<str>> {
    let listeners = gateway.listeners.iter();
    listeners
        .flat_map(|listener| shown_by(snapshot, gateway, listener))
        .collect()
}

/// Those that a listener names, and those that it goes on showing until they are there; whom it asks of its clients.
pub fn shown_by(
    snapshot: &Snapshot,
    gateway: &Gateway,
    listener: &Listener,
) -> impl Iterator<Item = Arc<str>> {
    let named = listener.tls.iter().flat_map(|tls| &tls.certificates);
    let outgoing = snapshot.outgoing(&gateway.name, &listener.name);
    let clients = client_ca_of(gateway, &listener.name).map(|_| client_ca_name(&listener.name));
    let shown = named.map(|(name, _)| name).chain(outgoing);
    shown.cloned().chain(clients).collect::<Vec<_>>().into_iter()
}

pub fn secret_name(name: &str) -> Arc<str> {
    match listener_of_client_ca(name) {
        Some(_) => name.into(),
        None => format!("certificate/{name}").into(),
    }
}

/// The other way round. None: neither a certificate's nor that of a listener's authorities.
pub fn certificate_of_secret(secret: &str) -> Option<&str> {
    match listener_of_client_ca(secret) {
        Some(_) => Some(secret),
        None => secret.strip_prefix("certificate/"),
    }
}

pub fn resolve_secret(snapshot: &Snapshot, gateway: &Gateway, name: &str) -> Option<Secret> {
    let named = named(snapshot, gateway, name);
    let material = named.serving?.value.clone()?;
    Some(Secret {
        name: secret_name(name),
        content: match listener_of_client_ca(name) {
            Some(_) => SecretContent::ClientCa(material),
            None => SecretContent::Certificate(material),
        },
        origins: named
            .declared
            .map(|(_, document)| document.clone())
            .into_iter()
            .collect(),
    })
}

/// The gateway's own certificate in the mesh and the authorities there, once both are known.
pub fn mesh_secrets(snapshot: &Snapshot) -> Vec<Secret> {
    let Some((leaf, roots)) = snapshot.mesh().usable() else {
        return Vec::new();
    };
    let secret = |name: &str, content| Secret {
        name: name.into(),
        content,
        origins: Vec::new(),
    };
    vec![
        secret(MESH_LEAF, SecretContent::MeshLeaf(leaf.clone())),
        secret(MESH_ROOTS, SecretContent::MeshRoots(roots.clone())),
    ]
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

/// As an http or https listener.
pub fn serves_http(listener: &Listener, routing: Routing, features: Vec<&'static str>) -> Serves {
    Serves::Http(Http {
        routing,
        trusted_proxies: listener.trusted_proxies,
        stream_idle_timeout: listener.stream_idle_timeout,
        request_headers_timeout: listener.request_headers_timeout,
        max_request_headers_kb: listener.max_request_headers_kb,
        health_check_path: listener.health_check_path.clone(),
        features,
    })
}

/// None as value: the listener is withheld, and the diagnostics say why.
pub fn resolve_listener(
    snapshot: &Snapshot,
    gateway: &Gateway,
    listener: &Listener,
    (bind_address, same_node): (IpAddr, &[Arc<str>]),
    (serves, documents): (Result<Serves, Box<Diagnostic>>, &[DocumentId]),
) -> Resolved<Option<ir::Listener>> {
    let mut diagnostics = Vec::new();
    if let Some(clash) = port_clash(&snapshot.config, same_node, bind_address, gateway, listener) {
        return Resolved {
            value: None,
            diagnostics: vec![clash],
        };
    }
    let serves = match serves {
        Ok(serves) => serves,
        Err(nobody) => {
            return Resolved {
                value: None,
                diagnostics: vec![*nobody],
            };
        }
    };
    let mut origins = BTreeSet::from([gateway.origin.document.clone()]);
    origins.extend(documents.iter().cloned());
    let tls = match &listener.tls {
        None => None,
        Some(tls) => {
            let mut chains: Vec<TlsChain> = Vec::new();
            let mut taken: BTreeSet<Arc<str>> = BTreeSet::new();
            let outgoing = snapshot.outgoing(&gateway.name, &listener.name);
            let mut unshown: Vec<Option<Unshown>> = Vec::new();
            let mut shadowed: BTreeSet<&Arc<str>> = BTreeSet::new();
            let mut are_names_known = true;
            for (name, _) in &tls.certificates {
                // While others are shown in its place, one whose key only Envoy might have is not there.
                let is_expected = snapshot.is_expected(&gateway.name, &listener.name, name);
                let chain = match is_expected {
                    true => Err(Unshown::NotThere),
                    false => chain(snapshot, name, &mut taken),
                };
                are_names_known &= !has_guessed_names(snapshot, name);
                if let Ok(None) = &chain
                    && are_names_known
                {
                    shadowed.insert(name);
                }
                if let Ok(Some(_)) = &chain {
                    let declared = snapshot.config.certificate(name);
                    origins.extend(declared.map(|declared| declared.origin.document.clone()));
                }
                unshown.push(chain.map(|chain| chains.extend(chain)).err());
            }
            // After those that take their place, which have the first claim to a host.
            for name in outgoing {
                chains.extend(chain(snapshot, name, &mut taken).ok().flatten());
            }
            let meanwhile = Meanwhile {
                snapshot,
                listener,
                outgoing,
                is_open: !chains.is_empty(),
            };
            for ((name, origin), unshown) in tls.certificates.iter().zip(unshown) {
                let declared = snapshot.config.certificate(name);
                if let Some(refused) = declared.and_then(|declared| declared.query.as_ref().err()) {
                    diagnostics.extend(meanwhile.not_allowed(name, refused, gateway));
                    continue;
                }
                let problem = match unshown {
                    None => not_renewed(snapshot, name)
                        .or_else(|| meanwhile.not_there(name))
                        .or_else(|| shadowed.contains(name).then(|| never_shown(name))),
                    Some(Unshown::NotThere) => meanwhile.not_there(name),
                    Some(Unshown::NoHost) => Some(names_no_host(name)),
                };
                let placed = |problem: Diagnostic| problem.at(origin.clone()).about("gateway", &gateway.name);
                diagnostics.extend(problem.map(placed));
            }
            if chains.is_empty() {
                let text = format!(
                    "the listener {:?} has no usable certificate and is not opened",
                    listener.name
                );
                // At a start, until the sources have answered, nothing is amiss yet.
                let is_awaited = diagnostics.iter().all(|it| it.code == Code::NotYetKnown);
                let withheld = match is_awaited {
                    true => Diagnostic::warning(Code::ListenerWithheld, text),
                    false => Diagnostic::error(Code::ListenerWithheld, text),
                };
                diagnostics.push(
                    withheld
                        .at(listener.origin.clone())
                        .about("gateway", &gateway.name)
                        .because(
                            "a port that answers every handshake with an error is worse than a closed one",
                        )
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
                let (known, problem) = authorities(snapshot, gateway, listener, client_ca);
                diagnostics.extend(problem);
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
                    forward: client_ca.forward,
                }),
            })
        }
    };
    let value = ir::Listener {
        name: listener.name.clone(),
        address: listener.address.unwrap_or(bind_address),
        port: listener.port,
        tls,
        serves,
        idle_timeout: listener.idle_timeout,
        origins: origins.into_iter().collect(),
    };
    Resolved {
        value: Some(value),
        diagnostics,
    }
}

/// Where nobody was asked for the certificate, only a document can say its names: otherwise it is taken to have any.
fn has_guessed_names(snapshot: &Snapshot, name: &str) -> bool {
    let declared = snapshot
        .config
        .certificate(name)
        .and_then(|declared| declared.allowed());
    let Some(query) = declared.filter(|query| !matches!(query, CertificateQuery::VaultPki { .. })) else {
        return false;
    };
    let known = snapshot.certificate(query).and_then(|known| known.value.as_ref());
    known.is_some_and(|material| material.chain.is_empty())
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
    let known = snapshot.certificate(snapshot.config.certificate(name)?.allowed()?)?;
    let problem = known.problem.as_ref()?;
    known.value.is_some().then(|| {
        Diagnostic::warning(code_of(problem.kind), format!("certificate {name:?}: {problem}"))
            .because("the one that was fetched before stays in service, as long as it lasts")
            .fix(problem.advice())
    })
}

/// What becomes of a listener while one of its certificates is not there.
struct Meanwhile<'a> {
    snapshot: &'a Snapshot,
    listener: &'a Listener,
    outgoing: &'a [Arc<str>],
    is_open: bool,
}

impl Meanwhile<'_> {
    fn said(&self, name: &str) -> String {
        if self.snapshot.former(name).is_some() {
            return "the one that was fetched before its parameters changed stays in service until it is there"
                .to_owned();
        }
        let listener = &self.listener.name;
        if !self.is_open {
            return format!("the listener {listener:?} has no other, and is not opened until one is there");
        }
        if self.outgoing.is_empty() {
            return format!("the listener {listener:?} goes on without it");
        }
        let names: Vec<String> = self.outgoing.iter().map(|name| format!("{name:?}")).collect();
        format!(
            "the listener {listener:?} goes on with {}, which it named before, until it is there",
            names.join(", ")
        )
    }

    /// One that its document may not use, told where the document names it.
    fn not_allowed(&self, name: &str, refused: &NotAllowed, gateway: &Gateway) -> Vec<Diagnostic> {
        let meanwhile = self.said(name);
        let problems = refused.problems.iter().cloned();
        problems
            .map(|mut problem| {
                problem.reason = Some(match problem.reason.take() {
                    Some(reason) => format!("{reason}; {meanwhile}"),
                    None => meanwhile.clone(),
                });
                problem.about("gateway", &gateway.name)
            })
            .collect()
    }

    /// One whose source has not brought it, as it is declared now.
    fn not_there(&self, name: &str) -> Option<Diagnostic> {
        let Meanwhile {
            snapshot, outgoing, ..
        } = *self;
        let meanwhile = self.said(name);
        let Some(declared) = snapshot.config.certificate(name) else {
            let near = snapshot.config.nearest(ObjectKind::Certificate, name);
            return Some(
                Diagnostic::error(
                    Code::UnknownReference,
                    format!("no document declares the certificate {name:?}"),
                )
                .because(meanwhile)
                .fix(near.map_or_else(
                    || format!("declare `certificate {name:?} {{ ... }}`"),
                    |near| format!("did you mean {near:?}?"),
                )),
            );
        };
        // Whoever asks has told of one that may not be used.
        let declared = declared.allowed()?;
        let known = snapshot.certificate(declared);
        if let Some(material) = known.and_then(|known| known.value.as_deref()) {
            if material.host_names().next().is_none() {
                return Some(names_no_host(name).because(meanwhile));
            }
            let is_awaited = snapshot.former(name).is_some() || !outgoing.is_empty();
            return (is_awaited && material.private_key.is_none()).then(|| {
                Diagnostic::warning(
                    Code::NotYetKnown,
                    format!("the private key of certificate {name:?} is not here: another one is asked for"),
                )
                .because(meanwhile)
                .fix("wait until it is issued: at most once a minute")
            });
        }
        Some(match known.and_then(|known| known.problem.as_ref()) {
            Some(problem) => {
                Diagnostic::error(code_of(problem.kind), format!("certificate {name:?}: {problem}"))
                    .because(meanwhile)
                    .fix(problem.advice())
            }
            None => Diagnostic::warning(
                Code::NotYetKnown,
                format!("certificate {name:?} has not arrived yet ({declared})"),
            )
            .because(format!("its source has not answered yet; {meanwhile}"))
            .fix("wait a moment; if it stays, `portreeve status` says how its source is"),
        })
    }
}

fn never_shown(name: &str) -> Diagnostic {
    Diagnostic::warning(
        Code::CertificateProblem,
        format!("certificate {name:?} is shown to nobody: those before it have all of its names"),
    )
    .because("for one name the first certificate in the list is shown, whatever kind its key is")
    .fix("leave it out, or list it first")
}

fn names_no_host(name: &str) -> Diagnostic {
    Diagnostic::error(
        Code::CertificateProblem,
        format!("certificate {name:?} names no host"),
    )
    .because("which certificate is served is decided by the client's SNI, which names a host")
    .fix("issue it with a DNS name (subject alternative name)")
}

/// Why a certificate has no chain.
enum Unshown {
    NotThere,
    NoHost,
}

/// The chain for one certificate. None: all its names are served by an earlier one.
fn chain(
    snapshot: &Snapshot,
    name: &Arc<str>,
    taken: &mut BTreeSet<Arc<str>>,
) -> Result<Option<TlsChain>, Unshown> {
    let known = snapshot.serving(name);
    let material = known
        .and_then(|known| known.value.as_ref())
        .ok_or(Unshown::NotThere)?;
    let usable: Vec<Arc<str>> = material.host_names().collect();
    if usable.is_empty() {
        return Err(Unshown::NoHost);
    }
    let server_names: Vec<Arc<str>> = usable
        .into_iter()
        .filter(|san| taken.insert(san.clone()))
        .collect();
    Ok((!server_names.is_empty()).then(|| TlsChain {
        secret: secret_name(name),
        server_names,
    }))
}

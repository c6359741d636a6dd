use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::board::timestamp;
use crate::config::{Certificate, ClientCa, Gateway, Listener, Object, ObjectKind, client_ca_name};
use crate::diagnostics::{Code, Diagnostic};
use crate::envoy::ResourceKind;
use crate::model::{CertificateMaterial, CertificateQuery, Health, Problem};
use crate::pipeline::View;
use crate::resolve::{certificates_of, client_ca_of, named, secret_name};
use crate::snapshot::Known;
use crate::xds::{StreamView, Variant};

/// One watched service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub service: String,
    /// The watch has answered: instances, or a reason why there are none.
    pub answered: bool,
    pub instances: usize,
    pub passing: usize,
    pub warning: usize,
    pub critical: usize,
    pub maintenance: usize,
    /// From disk: the source has not answered since the start.
    pub stale: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    pub gateways: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificatePhase {
    Valid,
    /// Less than a fifth of its life is left (of revocation lists: a tenth): it should have been replaced by now.
    Expiring,
    Expired,
    NotYetValid,
    /// Its private key is neither here nor with any Envoy that is connected: it is shown to nobody.
    NoKey,
    /// Not here yet, and no reason known.
    Waiting,
    /// Could not be fetched, and none is here from before.
    Missing,
    /// No gateway of this agent serves it, so it is not fetched.
    Unused,
}

impl CertificatePhase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Expiring => "expiring",
            Self::Expired => "expired",
            Self::NotYetValid => "not yet valid",
            Self::NoKey => "no key",
            Self::Waiting => "waiting",
            Self::Missing => "missing",
            Self::Unused => "unused",
        }
    }
}

/// One declared certificate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CertificateStatus {
    pub name: String,
    pub source: String,
    /// What is served came from there, by the parameters before the present ones, which have brought nothing yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serves_former: Option<String>,
    pub phase: CertificatePhase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    /// Unix seconds, for metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<i64>,
    /// Whether this agent holds the private key. After a restart only Envoy may.
    pub has_key: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    pub gateways: Vec<String>,
}

pub(super) fn services(view: &View) -> Vec<ServiceStatus> {
    let users: Vec<_> = view
        .gateways
        .iter()
        .map(|gateway| (gateway.name.to_string(), gateway.compiler.services()))
        .collect();
    let mut all: Vec<ServiceStatus> = view
        .snapshot
        .services()
        .map(|(query, known)| {
            let instances = known.value.as_deref().unwrap_or_default();
            let count = |health| {
                instances
                    .iter()
                    .filter(|instance| instance.health == health)
                    .count()
            };
            ServiceStatus {
                service: query.to_string(),
                answered: view.snapshot.service_answered(query),
                instances: instances.len(),
                passing: count(Health::Passing),
                warning: count(Health::Warning),
                critical: count(Health::Critical),
                maintenance: count(Health::Maintenance),
                stale: known.stale,
                problem: known.problem.as_ref().map(ToString::to_string),
                gateways: users
                    .iter()
                    .filter(|(_, services)| services.contains(query))
                    .map(|(name, _)| name.clone())
                    .collect(),
            }
        })
        .collect();
    all.sort_by(|one, other| one.service.cmp(&other.service));
    all
}

pub(super) fn certificates(view: &View, streams: &[StreamView], now: SystemTime) -> Vec<CertificateStatus> {
    let mut shown: Vec<CertificateStatus> = declared(view)
        .map(|certificate| certificate_status(view, certificate, now))
        .chain(outgoing(view, now))
        .collect();
    for certificate in &mut shown {
        let is_served = matches!(
            certificate.phase,
            CertificatePhase::Valid | CertificatePhase::Expiring
        );
        let secret = secret_name(&certificate.name);
        if is_served && !certificate.has_key && !streams.iter().any(|stream| may_have_key(stream, &secret)) {
            certificate.phase = CertificatePhase::NoKey;
        }
    }
    shown.extend(client_cas(view, now));
    shown
}

/// In the state of the world an Envoy that comes back does not say what it has.
fn may_have_key(stream: &StreamView, secret: &str) -> bool {
    let may_be_silent = stream.variant == Variant::StateOfTheWorld && stream.came_with_state;
    may_be_silent || stream.acked.get(ResourceKind::Secret, secret).is_some()
}

/// The authorities of clients, by gateway and listener.
fn client_cas(view: &View, now: SystemTime) -> Vec<CertificateStatus> {
    asking(view)
        .map(|(gateway, listener, client_ca)| {
            let name = client_ca_name(&listener.name);
            let named = named(&view.snapshot, gateway, &name);
            let name = format!("client_ca/{}/{}", gateway.name, listener.name);
            let known = view.snapshot.certificate(&client_ca.query);
            status_of(
                name,
                Fetched {
                    declared: client_ca.query.to_string(),
                    problem: known.and_then(problem_of),
                    former: named.former,
                    serving: named.serving,
                },
                vec![gateway.name.to_string()],
                now,
            )
        })
        .collect()
}

/// The listeners that ask clients for a certificate.
fn asking(view: &View) -> impl Iterator<Item = (&Gateway, &Listener, &ClientCa)> {
    let gateways = view.gateways.iter();
    gateways
        .filter_map(|gateway| view.snapshot.config.gateway(&gateway.name))
        .flat_map(|gateway| {
            let listeners = gateway.listeners.iter();
            listeners.filter_map(|listener| {
                let client_ca = client_ca_of(gateway, &listener.name)?;
                Some((&**gateway, listener, client_ca))
            })
        })
}

/// Certificates that no document declares any more, and that serve until what takes their place is there.
fn outgoing(view: &View, now: SystemTime) -> Vec<CertificateStatus> {
    let mut all: BTreeMap<Arc<str>, Certificate> = BTreeMap::new();
    for gateway in &view.gateways {
        for (name, fetched) in gateway.compiler.certificates() {
            if let (None, Some(former), Some(declared_by)) = (
                &fetched.declared,
                &fetched.former,
                view.snapshot.config.gateway(&gateway.name),
            ) {
                let certificate = Certificate {
                    name: name.clone(),
                    origin: declared_by.origin.clone(),
                    query: Ok(former.clone()),
                };
                all.insert(name.clone(), certificate);
            }
        }
    }
    all.values()
        .map(|certificate| certificate_status(view, certificate, now))
        .collect()
}

/// Certificates in use that are near their end or past it.
pub(super) fn expiry(view: &View, now: SystemTime) -> Vec<Diagnostic> {
    let in_use = declared(view).filter(|certificate| !users_of(view, certificate).is_empty());
    let certificates = in_use.filter_map(|certificate| {
        let material = view.snapshot.serving(&certificate.name)?.value.as_deref()?;
        let query = certificate.allowed()?;
        let known = view.snapshot.certificate(query);
        let (end, name) = (timestamp(unix(material.not_after)), &certificate.name);
        let diagnostic = match phase_of(material, now) {
            CertificatePhase::Expired => Diagnostic::error(
                Code::CertificateExpiry,
                format!("certificate {name:?} expired at {end}"),
            )
            .because("clients refuse it"),
            CertificatePhase::Expiring => Diagnostic::warning(
                Code::CertificateExpiry,
                format!("certificate {name:?} expires at {end}"),
            )
            .because("less than a fifth of its life is left, and no newer one has come"),
            _ => return None,
        };
        let diagnostic = diagnostic
            .at(certificate.origin.clone())
            .about("certificate", name);
        Some(match known.and_then(|known| known.problem.as_ref()) {
            Some(problem) => not_replaced(diagnostic, problem),
            None => diagnostic.fix(format!("put a newer one at {query}")),
        })
    });
    certificates.chain(expiry_of_client_cas(view, now)).collect()
}

/// Envoy lets in nobody whose authority, or its revocation list, has run out.
fn expiry_of_client_cas(view: &View, now: SystemTime) -> impl Iterator<Item = Diagnostic> {
    asking(view).filter_map(move |(gateway, listener, client_ca)| {
        let serving = named(&view.snapshot, gateway, &client_ca_name(&listener.name)).serving?;
        let material = serving.value.as_deref()?;
        let what = match material.crl {
            Some(_) => "the authorities or a revocation list of",
            None => "the authorities of",
        };
        let end = timestamp(unix(material.not_after));
        let said = |verb: &str| {
            format!(
                "client_ca of listener {:?}: {what} {} {verb} at {end}",
                listener.name, client_ca.query
            )
        };
        let diagnostic = match phase_of(material, now) {
            CertificatePhase::Expired => Diagnostic::error(Code::CertificateExpiry, said("ended"))
                .because("clients whose authority, or its revocation list, has run out are refused"),
            CertificatePhase::Expiring => Diagnostic::warning(Code::CertificateExpiry, said("end")).because(
                "little of their life is left, and nothing newer has come; clients are refused from then on",
            ),
            _ => return None,
        };
        let diagnostic = diagnostic
            .at(client_ca.origin.clone())
            .about("gateway", &gateway.name);
        Some(match &serving.problem {
            Some(problem) => not_replaced(diagnostic, problem),
            None => {
                diagnostic.fix("publish a new list (Vault: read <mount>/crl/rotate), or a newer authority")
            }
        })
    })
}

/// What would take its place cannot be had: that is what there is to mend.
fn not_replaced(mut diagnostic: Diagnostic, problem: &Problem) -> Diagnostic {
    diagnostic.reason = Some(match diagnostic.reason {
        Some(reason) => format!("{reason}: {}", problem.message),
        None => problem.message.to_string(),
    });
    diagnostic.fix(problem.advice())
}

fn declared(view: &View) -> impl Iterator<Item = &Certificate> {
    view.snapshot
        .config
        .of_kind(ObjectKind::Certificate)
        .filter_map(|object| match object {
            Object::Certificate(certificate) => Some(&**certificate),
            _ => None,
        })
}

fn users_of(view: &View, certificate: &Certificate) -> Vec<String> {
    let uses = |name: &std::sync::Arc<str>| *name == certificate.name;
    view.gateways
        .iter()
        .filter(|gateway| gateway.compiler.certificates().keys().any(uses))
        .map(|gateway| gateway.name.to_string())
        .collect()
}

/// The gateways whose listeners name it.
fn naming(view: &View, certificate: &Certificate) -> Vec<String> {
    let snapshot = &view.snapshot;
    let names = |gateway: &Gateway| certificates_of(snapshot, gateway).contains(&certificate.name);
    let gateways = view.gateways.iter();
    gateways
        .filter_map(|gateway| snapshot.config.gateway(&gateway.name))
        .filter(|gateway| names(gateway))
        .map(|gateway| gateway.name.to_string())
        .collect()
}

fn certificate_status(view: &View, certificate: &Certificate, now: SystemTime) -> CertificateStatus {
    let (gateways, problem) = match &certificate.query {
        Ok(query) => {
            let known = view.snapshot.certificate(query);
            (users_of(view, certificate), known.and_then(problem_of))
        }
        Err(refused) => {
            // It concerns those alone who show it.
            let gateways = naming(view, certificate);
            let problem = refused.problems.first().filter(|_| !gateways.is_empty());
            (gateways, problem.map(|problem| problem.message.clone()))
        }
    };
    let fetched = Fetched {
        declared: certificate.source().to_string(),
        problem,
        former: view.snapshot.former(&certificate.name),
        serving: view.snapshot.serving(&certificate.name),
    };
    status_of(certificate.name.to_string(), fetched, gateways, now)
}

fn problem_of(known: &Known<CertificateMaterial>) -> Option<String> {
    known.problem.as_ref().map(ToString::to_string)
}

struct Fetched<'a> {
    declared: String,
    /// Why it is not here.
    problem: Option<String>,
    former: Option<&'a CertificateQuery>,
    serving: Option<&'a Known<CertificateMaterial>>,
}

fn status_of(
    name: String,
    fetched: Fetched<'_>,
    gateways: Vec<String>,
    now: SystemTime,
) -> CertificateStatus {
    let Fetched {
        declared,
        problem,
        former,
        serving,
    } = fetched;
    let material = serving.and_then(|serving| serving.value.as_deref());
    let former = former.filter(|_| material.is_some());
    // Why the declared one is not here; else, why the one that serves is not renewed.
    let problem = problem.or(serving.and_then(problem_of));
    let phase = match material {
        Some(material) => phase_of(material, now),
        None if problem.is_some() => CertificatePhase::Missing,
        None if gateways.is_empty() => CertificatePhase::Unused,
        None => CertificatePhase::Waiting,
    };
    CertificateStatus {
        name,
        source: declared,
        serves_former: former.map(ToString::to_string),
        phase,
        serial: material.map(|material| material.serial.to_string()),
        names: material.map_or_else(Vec::new, |material| {
            material.names.iter().map(ToString::to_string).collect()
        }),
        not_before: material.map(|material| timestamp(unix(material.not_before))),
        not_after: material.map(|material| timestamp(unix(material.not_after))),
        expires: material.map(|material| material.not_after),
        has_key: material.is_some_and(|material| material.private_key.is_some()),
        problem,
        gateways,
    }
}

fn phase_of(material: &CertificateMaterial, now: SystemTime) -> CertificatePhase {
    let (from, to) = (unix(material.not_before), unix(material.not_after));
    let life = to.duration_since(from).unwrap_or_default();
    // Vault makes a new revocation list when a sixth of the old one's life is left.
    let little = if material.crl.is_some() { 10 } else { 5 };
    if now < from {
        CertificatePhase::NotYetValid
    } else if now >= to {
        CertificatePhase::Expired
    } else if to.duration_since(now).unwrap_or_default() < life / little {
        CertificatePhase::Expiring
    } else {
        CertificatePhase::Valid
    }
}

fn unix(seconds: i64) -> SystemTime {
    /// The end of year 9999, the last that RFC 3339 can write; what is later is as good as never.
    const LAST: u64 = 253_402_300_799;
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0).min(LAST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_of_a_certificate() {
        let material = CertificateMaterial {
            chain: "".into(),
            private_key: None,
            serial: "1".into(),
            names: Vec::new(),
            not_before: 1000,
            not_after: 2000,
            crl: None,
        };
        let phase = |at| phase_of(&material, UNIX_EPOCH + Duration::from_secs(at));
        assert_eq!(phase(999), CertificatePhase::NotYetValid);
        assert_eq!(phase(1000), CertificatePhase::Valid);
        assert_eq!(phase(1800), CertificatePhase::Valid);
        assert_eq!(phase(1801), CertificatePhase::Expiring);
        assert_eq!(phase(2000), CertificatePhase::Expired);
    }

    #[test]
    fn no_end_can_be_written() {
        assert_eq!(timestamp(unix(i64::MAX)), "9999-12-31T23:59:59Z");
        assert_eq!(timestamp(unix(-1)), "1970-01-01T00:00:00Z");
    }
}

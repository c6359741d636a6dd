//! Turns PEM text into the authorities that client certificates are checked against, and the lists of what those
//! revoked. Pure.
//!
//! Strict, because Envoy believes what it gets: what is no authority is refused, and where revocation is asked for,
//! every authority must come with a list that is its own and in date. Envoy refuses all clients of one without.

use std::collections::BTreeSet;
use std::sync::Arc;

use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::pem::encode;
use crate::model::{CertificateMaterial, Problem, ProblemKind};
use crate::sources::vault::timestamp;

/// A hundred authorities. More is a system's bundle, which nobody means to let in as clients.
pub(super) const MAX_AUTHORITIES_BYTES: usize = 256 * 1024;

/// Some ten thousand revocations. Envoy holds a copy per TLS context.
pub(super) const MAX_CRL_BYTES: usize = 768 * 1024;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AuthorityFault {
    #[error("the authorities are larger than {} KiB", MAX_AUTHORITIES_BYTES / 1024)]
    TooLarge,
    #[error("the revocation lists are larger than {} KiB", MAX_CRL_BYTES / 1024)]
    ListsTooLarge,
    #[error("there is no CERTIFICATE block in the authorities' text")]
    NoCertificate,
    #[error("certificate {0} of the authorities is not a valid X.509 certificate")]
    Broken(usize),
    #[error("certificate {0} of the authorities ({1}) is no authority")]
    NotAnAuthority(usize, String),
    #[error("all authorities have expired, the last at {}", timestamp(*.0))]
    Expired(i64),
    #[error("revocation list {0} is not a valid X.509 CRL")]
    BrokenList(usize),
    #[error("the revocation list of {0:?} is signed by none of the authorities")]
    StrangeList(String),
    #[error("the revocation list of {0:?} expired at {time}: no client of it is let in", time = timestamp(*.1))]
    ListExpired(String, i64),
    #[error("the authority {0:?} has no revocation list")]
    NoList(String),
}

impl AuthorityFault {
    pub(super) fn problem(&self, place: &str) -> Problem {
        Problem::new(ProblemKind::Invalid, format!("{place}: {self}")).with_fix(self.fix())
    }

    fn fix(&self) -> &'static str {
        match self {
            Self::TooLarge => "Name only the authorities whose clients are meant.",
            Self::ListsTooLarge => {
                "Let short-lived certificates run out instead of revoking them; tidy the PKI mount."
            }
            Self::NoCertificate | Self::Broken(_) => {
                "Store the authorities as PEM (-----BEGIN CERTIFICATE-----), one after the other."
            }
            Self::NotAnAuthority(..) => {
                "Name the certificate that signs the clients' certificates, not one of the clients'."
            }
            Self::Expired(_) => {
                "Store an authority that is in date, and have clients' certificates signed by it."
            }
            Self::BrokenList(_) => "Store the list as PEM (-----BEGIN X509 CRL-----).",
            Self::StrangeList(_) => "Store the list of the authorities that are named, and of no other.",
            Self::ListExpired(..) => {
                "Publish a new list: `vault read <mount>/crl/rotate`, and set auto_rebuild=true at <mount>/config/crl."
            }
            Self::NoList(_) => "Store its list too, or set crl = false.",
        }
    }
}

/// `lists` is none where revocation is not asked for.
pub(super) fn parse(
    authorities: &str,
    lists: Option<&str>,
    now: i64,
) -> Result<CertificateMaterial, AuthorityFault> {
    if authorities.len() > MAX_AUTHORITIES_BYTES {
        return Err(AuthorityFault::TooLarge);
    }
    let blocks: Vec<Vec<u8>> = blocks(authorities, "CERTIFICATE", AuthorityFault::Broken)?;
    let parsed: Vec<X509Certificate<'_>> = blocks
        .iter()
        .enumerate()
        .map(|(index, der)| match X509Certificate::from_der(der) {
            Ok((_, certificate)) if certificate.is_ca() => Ok(certificate),
            Ok((_, certificate)) => Err(AuthorityFault::NotAnAuthority(
                index + 1,
                certificate.subject().to_string(),
            )),
            Err(_) => Err(AuthorityFault::Broken(index + 1)),
        })
        .collect::<Result<_, _>>()?;
    let first = parsed.first().ok_or(AuthorityFault::NoCertificate)?;
    let end = |certificate: &X509Certificate<'_>| certificate.validity().not_after.timestamp();
    let not_after = parsed.iter().map(end).max().unwrap_or_default();
    if not_after <= now {
        return Err(AuthorityFault::Expired(not_after));
    }
    let mut life = (first.validity().not_before.timestamp().min(now), not_after);
    let crl = match lists {
        Some(text) => {
            let lists = revocations(text, &parsed, now)?;
            // Whichever ends first ends what clients can do.
            if let Some((from, to)) = lists.life.filter(|(_, to)| *to < not_after) {
                life = (from, to);
            }
            Some(lists.pem)
        }
        None => None,
    };
    // Sorted, so that another order in the source is not a change.
    let pem: BTreeSet<String> = blocks.iter().map(|der| encode("CERTIFICATE", der)).collect();
    Ok(CertificateMaterial {
        chain: pem.into_iter().collect::<String>().into(),
        private_key: None,
        serial: super::pem::serial(first).into(),
        names: Vec::new(),
        not_before: life.0,
        not_after: life.1,
        crl,
    })
}

struct Lists {
    pem: Arc<str>,
    /// Of the one that runs out first, in Unix seconds. None: they all last for ever.
    life: Option<(i64, i64)>,
}

fn revocations(text: &str, authorities: &[X509Certificate<'_>], now: i64) -> Result<Lists, AuthorityFault> {
    if text.len() > MAX_CRL_BYTES {
        return Err(AuthorityFault::ListsTooLarge);
    }
    let blocks = blocks(text, "X509 CRL", AuthorityFault::BrokenList)?;
    let mut listed = BTreeSet::new();
    let mut life: Option<(i64, i64)> = None;
    for (index, der) in blocks.iter().enumerate() {
        let (_, list) =
            CertificateRevocationList::from_der(der).map_err(|_| AuthorityFault::BrokenList(index + 1))?;
        let issuer = list.issuer().to_string();
        // Several may: one key, certified by more than one authority above it.
        let signers = authorities.iter().enumerate().filter(|(_, authority)| {
            authority.subject().as_raw() == list.issuer().as_raw()
                && list.verify_signature(authority.public_key()).is_ok()
        });
        let signers: Vec<usize> = signers.map(|(index, _)| index).collect();
        if signers.is_empty() {
            return Err(AuthorityFault::StrangeList(issuer));
        }
        listed.extend(signers);
        if let Some(end) = list.next_update().map(|time| time.timestamp()) {
            if end <= now {
                return Err(AuthorityFault::ListExpired(issuer, end));
            }
            if life.is_none_or(|(_, first)| end < first) {
                life = Some((list.last_update().timestamp().min(now), end));
            }
        }
    }
    let mut all = authorities.iter().enumerate();
    if let Some((_, without)) = all.find(|(index, _)| !listed.contains(index)) {
        return Err(AuthorityFault::NoList(without.subject().to_string()));
    }
    let pem: BTreeSet<String> = blocks.iter().map(|der| encode("X509 CRL", der)).collect();
    Ok(Lists {
        pem: pem.into_iter().collect::<String>().into(),
        life,
    })
}

/// The DER of every block with this label.
fn blocks(
    text: &str,
    label: &str,
    broken: fn(usize) -> AuthorityFault,
) -> Result<Vec<Vec<u8>>, AuthorityFault> {
    let mut found = Vec::new();
    for (index, block) in x509_parser::pem::Pem::iter_from_buffer(text.as_bytes()).enumerate() {
        let block = block.map_err(|_| broken(index + 1))?;
        if block.label == label {
            found.push(block.contents);
        }
    }
    Ok(found)
}

#[cfg(test)]
#[path = "authorities_tests.rs"]
mod tests;

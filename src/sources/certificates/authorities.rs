//! Turns PEM text into the authorities that client certificates are checked against, and the lists of what those
//! revoked. Pure.
//!
//! Strict, because Envoy believes what it gets: what is no authority is refused, and so is a list that none of the
//! authorities signed. Where revocation is asked for, Envoy refuses all clients of an authority without a list that is in
//! date. So such an authority is told, and does not keep the lists of the others from being taken up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use x509_parser::error::X509Error;
use x509_parser::objects::{oid_registry, oid2sn};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::pem::encode;
use crate::model::{CertificateMaterial, ClientCaQuery, Problem, ProblemKind};
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
    #[error("the authority {0:?} expired at {time}: no client of it is let in", time = timestamp(*.1))]
    OneExpired(String, i64),
    #[error("revocation list {0} is not a valid X.509 CRL")]
    BrokenList(usize),
    #[error("there is no X509 CRL block in the revocation lists' text")]
    NoListBlock,
    #[error("the revocation list of {0:?} is signed by none of the authorities")]
    StrangeList(String),
    #[error("the revocation list of {0:?} is signed in a way that is not supported ({1})")]
    UnsupportedSignature(String, String),
    #[error("the revocation list of {0:?} expired at {time}: no client of it is let in", time = timestamp(*.1))]
    ListExpired(String, i64),
    #[error("the authority {0:?} has no revocation list: without one no client of it is let in")]
    NoList(String),
}

impl AuthorityFault {
    pub(super) fn problem(&self, source: &ClientCaQuery, place: &str) -> Problem {
        Problem::new(self.kind(), format!("{place}: {self}")).with_fix(self.fix(source))
    }

    fn kind(&self) -> ProblemKind {
        match self {
            Self::TooLarge
            | Self::ListsTooLarge
            | Self::NoCertificate
            | Self::Broken(_)
            | Self::BrokenList(_)
            | Self::NoListBlock => ProblemKind::Malformed,
            Self::Expired(_) | Self::OneExpired(..) | Self::ListExpired(..) => ProblemKind::Expired,
            Self::NotAnAuthority(..)
            | Self::StrangeList(_)
            | Self::UnsupportedSignature(..)
            | Self::NoList(_) => ProblemKind::Invalid,
        }
    }

    fn fix(&self, source: &ClientCaQuery) -> String {
        let fix = match (self, source) {
            (Self::TooLarge, _) => "Name only the authorities whose clients are meant.",
            (Self::ListsTooLarge, ClientCaQuery::VaultPki { .. }) => {
                "Let short-lived certificates run out instead of revoking them; tidy the PKI mount."
            }
            (Self::ListsTooLarge, _) => {
                "Let short-lived certificates run out instead of revoking them; drop from the lists what has run out."
            }
            (Self::NoCertificate | Self::Broken(_), _) => {
                "Store the authorities as PEM (-----BEGIN CERTIFICATE-----), one after the other."
            }
            (Self::NotAnAuthority(..), _) => {
                "Name the certificate that signs the clients' certificates, not one of the clients'."
            }
            (Self::Expired(_), _) => {
                "Store an authority that is in date, and have clients' certificates signed by it."
            }
            (Self::OneExpired(..), _) => {
                "Store its successor, or leave it out if nobody has a certificate of it any more."
            }
            (Self::BrokenList(_) | Self::NoListBlock, _) => {
                "Store the lists as PEM (-----BEGIN X509 CRL-----), one after the other."
            }
            (Self::StrangeList(_), _) => {
                "Store only revocation lists that were signed by the authorities stored here."
            }
            (Self::UnsupportedSignature(..), _) => {
                "Let the authority sign with RSA, Ed25519, or ECDSA on P-256 or P-384 (SHA-256 or SHA-384); or have \
                 nothing taken as revoked: leave crl out."
            }
            (Self::ListExpired(..), ClientCaQuery::VaultPki { mount, .. }) => {
                return format!(
                    "Publish a new list: `vault read {mount}/crl/rotate`. Have them made hourly: `vault write {mount}/config/crl \
                     expiry=72h auto_rebuild=true auto_rebuild_grace_period=71h`."
                );
            }
            (Self::ListExpired(..), _) => {
                "Have the authority publish a new list, and store it in place of the old one."
            }
            (Self::NoList(_), ClientCaQuery::VaultPki { .. }) => {
                "Let this issuer sign lists (its `usage` needs crl-signing), name another issuer, or set crl = false."
            }
            (Self::NoList(_), _) => "Store its list too, or leave crl out: then nothing is taken as revoked.",
        };
        fix.to_owned()
    }
}

/// What clients are checked by.
#[derive(Debug)]
pub(super) struct Authorities {
    pub(super) material: CertificateMaterial,
    /// Why Envoy refuses the clients of one of them.
    pub(super) shut_out: Option<AuthorityFault>,
}

/// `lists` is none where revocation is not asked for.
pub(super) fn parse(authorities: &str, lists: Option<&str>, now: i64) -> Result<Authorities, AuthorityFault> {
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
    let lives = lives(&parsed);
    let in_date = lives.values().filter(|(to, _)| *to > now);
    let Some((not_after, not_before)) = in_date.min() else {
        let last = lives.values().map(|(to, _)| *to).max();
        return Err(AuthorityFault::Expired(last.unwrap_or_default()));
    };
    let mut life = (*not_before.min(&now), *not_after);
    let expired = lives.iter().find(|(_, (to, _))| *to <= now);
    let expired = expired.map(|((subject, _), (to, _))| AuthorityFault::OneExpired(subject.clone(), *to));
    let (crl, shut_out) = match lists {
        Some(text) => {
            let lists = revocations(text, &parsed, now)?;
            // Whichever ends first ends what clients can do.
            if let Some((from, to)) = lists.life.filter(|(_, to)| to < not_after) {
                life = (from, to);
            }
            (Some(lists.pem), lists.shut_out.or(expired))
        }
        None => (None, expired),
    };
    // Sorted, so that another order in the source is not a change.
    let pem: BTreeSet<String> = blocks.iter().map(|der| encode("CERTIFICATE", der)).collect();
    let material = CertificateMaterial {
        chain: pem.into_iter().collect::<String>().into(),
        private_key: None,
        serial: super::pem::serial(first).into(),
        names: Vec::new(),
        not_before: life.0,
        not_after: life.1,
        crl,
    };
    Ok(Authorities { material, shut_out })
}

/// When each authority ends and since when it holds, by its name and its key: one that was renewed ends with the last of its
/// certificates.
fn lives<'a>(authorities: &'a [X509Certificate<'_>]) -> BTreeMap<(String, &'a [u8]), (i64, i64)> {
    let mut lives = BTreeMap::new();
    for authority in authorities {
        let validity = authority.validity();
        let life = (validity.not_after.timestamp(), validity.not_before.timestamp());
        let of = (authority.subject().to_string(), authority.public_key().raw);
        let known = lives.entry(of).or_insert(life);
        *known = life.max(*known);
    }
    lives
}

struct Lists {
    pem: Arc<str>,
    /// Of the authority whose lists run out first, in Unix seconds. None: they all last for ever.
    life: Option<(i64, i64)>,
    /// Why clients of one of the authorities are refused.
    shut_out: Option<AuthorityFault>,
}

fn revocations(text: &str, authorities: &[X509Certificate<'_>], now: i64) -> Result<Lists, AuthorityFault> {
    if text.len() > MAX_CRL_BYTES {
        return Err(AuthorityFault::ListsTooLarge);
    }
    let blocks = blocks(text, "X509 CRL", AuthorityFault::BrokenList)?;
    if blocks.is_empty() && !text.trim().is_empty() {
        return Err(AuthorityFault::NoListBlock);
    }
    // When the last list of an authority runs out, and since when it holds.
    let mut lives: BTreeMap<usize, (i64, i64)> = BTreeMap::new();
    for (index, der) in blocks.iter().enumerate() {
        let (_, list) =
            CertificateRevocationList::from_der(der).map_err(|_| AuthorityFault::BrokenList(index + 1))?;
        let end = list.next_update().map_or(i64::MAX, |time| time.timestamp());
        let life = (end, list.last_update().timestamp().min(now));
        for signer in signers(&list, authorities)? {
            let known = lives.entry(signer).or_insert(life);
            *known = life.max(*known);
        }
    }
    let is_in_date = |index: usize| lives.get(&index).is_some_and(|(end, _)| *end > now);
    let without = authorities.iter().enumerate();
    let mut without = without.filter(|(index, _)| !is_in_date(*index));
    let shut_out = without.next().map(|(index, authority)| {
        let name = authority.subject().to_string();
        match lives.get(&index) {
            Some((end, _)) => AuthorityFault::ListExpired(name, *end),
            None => AuthorityFault::NoList(name),
        }
    });
    // Nobody would be let in.
    if let Some(fault) = &shut_out
        && !(0..authorities.len()).any(is_in_date)
    {
        return Err(fault.clone());
    }
    let pem: BTreeSet<String> = blocks.iter().map(|der| encode("X509 CRL", der)).collect();
    let first = lives.into_values().filter(|(end, _)| *end < i64::MAX).min();
    Ok(Lists {
        pem: pem.into_iter().collect::<String>().into(),
        life: first.map(|(end, from)| (from, end)),
        shut_out,
    })
}

/// Several may be: one key, certified by more than one authority above it.
fn signers(
    list: &CertificateRevocationList<'_>,
    authorities: &[X509Certificate<'_>],
) -> Result<Vec<usize>, AuthorityFault> {
    let mut signers = Vec::new();
    let mut is_supported = true;
    for (index, authority) in authorities.iter().enumerate() {
        if authority.subject().as_raw() != list.issuer().as_raw() {
            continue;
        }
        match list.verify_signature(authority.public_key()) {
            Ok(()) => signers.push(index),
            Err(X509Error::SignatureUnsupportedAlgorithm) => is_supported = false,
            Err(_) => {}
        }
    }
    let issuer = || list.issuer().to_string();
    match (signers.is_empty(), is_supported) {
        (false, _) => Ok(signers),
        (true, true) => Err(AuthorityFault::StrangeList(issuer())),
        (true, false) => {
            let algorithm = &list.signature_algorithm.algorithm;
            let name = oid2sn(algorithm, oid_registry());
            let name = name.map_or_else(|_| algorithm.to_id_string(), str::to_owned);
            Err(AuthorityFault::UnsupportedSignature(issuer(), name))
        }
    }
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

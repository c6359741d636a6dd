//! Turns PEM text into `CertificateMaterial`, or says exactly why it cannot be served.
//!
//! Input: the text of a chain, the text of a key (often the same text), and the time. Output: the chain in
//! canonical PEM (leaf first, no self-signed root), so that a comment or a line ending in the source is not a
//! change. Pure: no clock, file or socket.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::error::X509Error;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use crate::model::{CertificateMaterial, Problem, ProblemKind, Redacted};
use crate::sources::vault::timestamp;

/// A chain of ten RSA 4096 certificates is about 20 KB; what is larger is not a chain (a CA bundle, mostly).
pub const MAX_CHAIN_BYTES: usize = 64 * 1024;

/// An RSA 16384 key in PEM is 13 KB.
pub const MAX_KEY_BYTES: usize = 16 * 1024;

/// Clocks of two machines may differ by this much before a fresh certificate counts as "not valid yet". Vault
/// dates its own back by 30 s (`not_before_duration`), for the same reason.
const CLOCK_SKEW_SECONDS: i64 = 30;

/// Reads, checks and orders a chain and its key.
pub fn parse(chain: &str, private_key: &str, now: i64) -> Result<CertificateMaterial, PemFault> {
    let material = parse_signed_now(chain, private_key, now)?;
    if material.not_before > now + CLOCK_SKEW_SECONDS {
        return Err(PemFault::NotYetValid(material.not_before));
    }
    Ok(material)
}

/// The same of one that clients of a listener are shown: by the name that they ask for.
pub(super) fn parse_served(
    chain: &str,
    private_key: &str,
    now: i64,
) -> Result<CertificateMaterial, PemFault> {
    let material = parse(chain, private_key, now)?;
    if material.host_names().next().is_none() {
        return Err(PemFault::NamesNoHost);
    }
    Ok(material)
}

/// The same of what was signed a moment ago: one that begins later comes from a clock that is ahead of this machine's, and
/// clients whose clock is right take it.
pub(super) fn parse_signed_now(
    chain: &str,
    private_key: &str,
    now: i64,
) -> Result<CertificateMaterial, PemFault> {
    if private_key.len() > MAX_CHAIN_BYTES + MAX_KEY_BYTES {
        return Err(PemFault::KeyTooLarge);
    }
    let certificates = certificates(chain)?;
    let key = key(private_key)?;
    let signing =
        rustls::crypto::ring::sign::any_supported_type(&key).map_err(|_| PemFault::UnsupportedKey)?;
    let leaf = certificates
        .iter()
        .position(|candidate| {
            CertifiedKey::new(vec![candidate.clone()], signing.clone())
                .keys_match()
                .is_ok()
        })
        .ok_or(PemFault::KeyMismatch)?;
    let mut material = describe(&certificates, leaf, now)?;
    material.private_key = Some(Arc::new(Redacted::new(encode_key(&key))));
    Ok(material)
}

/// Reads a chain without its key.
pub fn parse_public(chain: &str, now: i64) -> Result<CertificateMaterial, PemFault> {
    describe(&certificates(chain)?, 0, now)
}

/// What a restarted agent still knows of a certificate that Envoy holds, and shows, whether it has ended meanwhile or not.
pub(super) fn parse_held(chain: &str) -> Result<CertificateMaterial, PemFault> {
    parse_public(chain, i64::MIN)
}

/// Why a certificate cannot be served. Each message is followed by what to do (`fix`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemFault {
    #[error("the certificate chain is larger than {} KiB", MAX_CHAIN_BYTES / 1024)]
    ChainTooLarge,
    #[error("the private key is larger than {} KiB", MAX_KEY_BYTES / 1024)]
    KeyTooLarge,
    #[error("there is no CERTIFICATE block in the certificate text")]
    NoCertificate,
    #[error("the PEM text is broken: {0}")]
    BrokenPem(String),
    #[error("certificate {0} of the chain is not a valid X.509 certificate")]
    BrokenCertificate(usize),
    #[error("there is no PRIVATE KEY block in the private key text")]
    NoKey,
    #[error("the private key is encrypted with a passphrase")]
    EncryptedKey,
    #[error("the private key is damaged or of a kind that cannot be served")]
    UnsupportedKey,
    #[error("the private key does not belong to any certificate of the chain")]
    KeyMismatch,
    #[error("the certificate names no host")]
    NamesNoHost,
    #[error("the certificate expired at {}", timestamp(*.0))]
    Expired(i64),
    #[error("the certificate is not valid before {}", timestamp(*.0))]
    NotYetValid(i64),
}

impl PemFault {
    pub fn fix(&self) -> &'static str {
        match self {
            Self::ChainTooLarge => {
                "Store the leaf and its intermediates only, not a bundle of trusted authorities."
            }
            Self::KeyTooLarge => "Store one private key, in PEM.",
            Self::NoCertificate => {
                "Store the chain as PEM (-----BEGIN CERTIFICATE-----), leaf first; convert DER with `openssl x509 -inform der`."
            }
            Self::BrokenPem(_) => {
                "Store the text as it was issued, with its line ends; a value pasted on one line loses them."
            }
            Self::BrokenCertificate(_) => {
                "Issue the certificate again; `openssl x509 -text` shows what is wrong with this one."
            }
            Self::NoKey => {
                "Store the private key as PEM (PKCS#8, PKCS#1 or SEC1) in the field or file that the document names."
            }
            Self::EncryptedKey => "Store it without a passphrase: `openssl pkey -in key.pem -out plain.pem`.",
            Self::UnsupportedKey => "Use an RSA key of 2048 to 8192 bits, or ECDSA on P-256 or P-384.",
            Self::KeyMismatch => "Store the key and the certificate that were issued together.",
            Self::NamesNoHost => {
                "Issue it with a DNS name (subject alternative name): which certificate is served is decided by the name that \
                 the client asks for."
            }
            Self::Expired(_) => {
                "Store a renewed certificate; what was served before stays in use until then."
            }
            Self::NotYetValid(_) => "Wait, issue it again, or check the clock of this machine.",
        }
    }

    /// As a problem of what was read, `place` naming it.
    pub fn problem(&self, place: &str) -> Problem {
        Problem::new(self.kind(), format!("{place}: {self}")).with_fix(self.fix())
    }

    fn kind(&self) -> ProblemKind {
        match self {
            Self::ChainTooLarge
            | Self::KeyTooLarge
            | Self::NoCertificate
            | Self::BrokenPem(_)
            | Self::BrokenCertificate(_)
            | Self::NoKey
            | Self::EncryptedKey
            | Self::UnsupportedKey => ProblemKind::Malformed,
            Self::KeyMismatch => ProblemKind::KeyMismatch,
            Self::Expired(_) => ProblemKind::Expired,
            Self::NamesNoHost | Self::NotYetValid(_) => ProblemKind::Invalid,
        }
    }
}

fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, PemFault> {
    if text.len() > MAX_CHAIN_BYTES {
        return Err(PemFault::ChainTooLarge);
    }
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| PemFault::BrokenPem(error.to_string()))?;
    if certificates.is_empty() {
        Err(PemFault::NoCertificate)
    } else {
        Ok(certificates)
    }
}

fn key(text: &str) -> Result<PrivateKeyDer<'static>, PemFault> {
    if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(PemFault::EncryptedKey);
    }
    let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| match error {
        rustls_pki_types::pem::Error::NoItemsFound => PemFault::NoKey,
        // The error's own text can quote the line it stumbled over: of a key, nothing is quoted.
        _ => PemFault::UnsupportedKey,
    })?;
    if key.secret_der().len() > MAX_KEY_BYTES {
        Err(PemFault::KeyTooLarge)
    } else {
        Ok(key)
    }
}

fn describe(
    certificates: &[CertificateDer<'static>],
    leaf: usize,
    now: i64,
) -> Result<CertificateMaterial, PemFault> {
    let parsed = certificates
        .iter()
        .enumerate()
        .map(|(index, der)| match X509Certificate::from_der(der) {
            Ok((_, certificate)) => Ok(certificate),
            Err(_) => Err(PemFault::BrokenCertificate(index + 1)),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let certificate = &parsed[leaf];
    let not_before = certificate.validity().not_before.timestamp();
    let not_after = certificate.validity().not_after.timestamp();
    if not_after <= now {
        return Err(PemFault::Expired(not_after));
    }
    let chain: String = ordered(&parsed, leaf)
        .into_iter()
        .map(|index| encode("CERTIFICATE", &certificates[index]))
        .collect();
    Ok(CertificateMaterial {
        chain: chain.into(),
        private_key: None,
        serial: serial(certificate).into(),
        names: names(certificate),
        not_before,
        not_after,
        crl: None,
    })
}

/// The leaf, then each one's issuer as far as given, then other certificates of those issuers: who knows the old root alone finds
/// his way by one that the old root signed for the new. What is signed by itself is left out (the client has it or does not
/// trust it), and so is whatever belongs to another chain.
fn ordered(certificates: &[X509Certificate<'_>], leaf: usize) -> Vec<usize> {
    let given: Vec<usize> = (0..certificates.len())
        .filter(|index| *index == leaf || !is_self_signed(&certificates[*index]))
        .collect();
    let signs = |issuer: usize, of: usize| is_signed_by(&certificates[of], &certificates[issuer]);
    let mut order = vec![leaf];
    let mut end = leaf;
    while let Some(next) = given
        .iter()
        .copied()
        .find(|next| !order.contains(next) && order.len() < LONGEST_CHAIN && signs(*next, end))
    {
        order.push(next);
        end = next;
    }
    let mut at = 0;
    while let Some(of) = order.get(at).copied() {
        for other in &given {
            if order.len() < LONGEST_CHAIN && !order.contains(other) && signs(*other, of) {
                order.push(*other);
            }
        }
        at += 1;
    }
    order
}

/// Far above what is in use, and a bound on how many signatures are looked at.
const LONGEST_CHAIN: usize = 16;

/// By the signature: a certificate that an old root made for a new one of its name looks the same.
fn is_self_signed(certificate: &X509Certificate<'_>) -> bool {
    is_signed_by(certificate, certificate)
}

/// Where a signature cannot be checked, the names decide.
fn is_signed_by(certificate: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> bool {
    certificate.issuer().as_raw() == issuer.subject().as_raw()
        && matches!(
            certificate.verify_signature(Some(issuer.public_key())),
            Ok(()) | Err(X509Error::SignatureUnsupportedAlgorithm)
        )
}

/// As Vault writes it: `39:dd:2e`, without the sign byte of the DER integer.
pub(super) fn serial(certificate: &X509Certificate<'_>) -> String {
    let bytes: Vec<String> = certificate
        .tbs_certificate
        .serial
        .to_bytes_be()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    bytes.join(":")
}

fn names(certificate: &X509Certificate<'_>) -> Vec<Arc<str>> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    extension
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(Arc::from(name.to_ascii_lowercase())),
            GeneralName::IPAddress(bytes) => address(bytes),
            _ => None,
        })
        .collect()
}

fn address(bytes: &[u8]) -> Option<Arc<str>> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(octets).to_string().into());
    }
    <[u8; 16]>::try_from(bytes)
        .ok()
        .map(|octets| Ipv6Addr::from(octets).to_string().into())
}

fn encode_key(key: &PrivateKeyDer<'_>) -> String {
    let label = match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    encode(label, key.secret_der())
}

pub(super) fn encode(label: &str, der: &[u8]) -> String {
    let body = Zeroizing::new(STANDARD.encode(der));
    // Sized up front: growing would leave copies of a key behind in freed memory.
    let mut text = String::with_capacity(body.len() + body.len() / 64 + 2 * label.len() + 48);
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        // RFC 7468: 64 characters a line.
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

#[cfg(test)]
#[path = "pem_tests.rs"]
mod tests;

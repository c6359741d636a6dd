//! Mutual TLS for remote Envoys: one `rustls` configuration made from PEM, remade whenever the settings change.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::access::{Identities, San};
use crate::model::Redacted;

/// Everything that may change while the listener stays open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// Who signs the certificates of our Envoys. PEM, may hold several.
    pub client_ca: Arc<str>,
    /// Our own chain, leaf first. PEM.
    pub certificate: Arc<str>,
    pub private_key: Arc<Redacted<String>>,
    pub identities: Identities,
}

#[derive(Debug, Error)]
pub enum TlsError {
    #[error("the {what} is no usable PEM")]
    Pem {
        what: &'static str,
        source: rustls_pki_types::pem::Error,
    },
    #[error("the {what} holds no certificate")]
    Empty { what: &'static str },
    #[error("the client CA is not usable")]
    ClientCa(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the server certificate and its private key are not usable together")]
    Certificate(#[source] rustls::Error),
}

impl TlsSettings {
    /// Whether a listener would take them.
    pub fn check(&self) -> Result<(), TlsError> {
        server_config(self).map(drop)
    }
}

pub(super) fn server_config(settings: &TlsSettings) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    // Named, not the process default: this module must work before and without `main`.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&settings.client_ca, "client CA")? {
        roots
            .add(certificate)
            .map_err(|source| TlsError::ClientCa(source.into()))?;
    }
    // A peer without a certificate is let in as far as to be told why it gets nothing: Envoy logs a gRPC status, and
    // hardly anything of a broken handshake. It stays among the unknown, and is let go soon.
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|source| TlsError::ClientCa(source.into()))?;
    let chain = certificates(&settings.certificate, "server certificate")?;
    let key = PrivateKeyDer::from_pem_slice(settings.private_key.expose().as_bytes()).map_err(|source| {
        TlsError::Pem {
            what: "private key",
            source,
        }
    })?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Certificate)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(TlsError::Certificate)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// The names that decide about gateways. None for a certificate that does not parse.
pub(super) fn sans(certificate: &[u8]) -> Vec<San> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let Ok(Some(extension)) = parsed.subject_alternative_name() else {
        return Vec::new();
    };
    let names = extension.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(San::Dns((*name).into())),
            GeneralName::URI(uri) => Some(San::Uri((*uri).into())),
            _ => None,
        })
        .collect()
}

fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem { what, source })?;
    if found.is_empty() {
        Err(TlsError::Empty { what })
    } else {
        Ok(found)
    }
}

//! The TLS of every connection to an agent: whom to trust, which name to expect, which pair to show.
//!
//! Read from its files once for all connections: the machine's authorities alone take a tenth of a megabyte.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_platform_verifier::Verifier;
use zeroize::Zeroizing;

use super::product::Product;
use super::settings::{ApiSettings, SettingsError};
use crate::sources::bounded_file;

/// HTTP/2 where the server has it.
pub(super) const HTTP_2: &[u8] = b"h2";

pub(super) fn config(settings: &ApiSettings) -> Result<ClientConfig, SettingsError> {
    let fail = |error: rustls::Error| SettingsError::Tls {
        product: settings.product,
        reason: error.to_string(),
    };
    let provider = CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()));
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(fail)?;
    let roots = roots(settings)?;
    let builder = if settings.tls_skip_verify {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unverified(provider)))
    } else if roots.is_empty() {
        let machine = Verifier::new(provider).map_err(fail)?;
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(machine))
    } else {
        builder.with_root_certificates(roots)
    };
    let mut config = match pair(settings)? {
        Some((certificates, key)) => builder.with_client_auth_cert(certificates, key).map_err(fail)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![HTTP_2.to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn pair(settings: &ApiSettings) -> Result<Option<Pair>, SettingsError> {
    let (Some(cert), Some(key)) = (&settings.client_cert, &settings.client_key) else {
        return Ok(None);
    };
    let fail = |reason: String| SettingsError::Pem {
        product: settings.product,
        what: "client certificate with its key",
        path: cert.clone(),
        reason,
    };
    // Either may hold both.
    let mut pem = Zeroizing::new(read_file(settings.product, "client certificate", cert)?);
    pem.push(b'\n');
    pem.extend_from_slice(&Zeroizing::new(read_file(settings.product, "client key", key)?));
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| fail(error.to_string()))?;
    let key = PrivateKeyDer::pem_slice_iter(&pem)
        .last()
        .transpose()
        .map_err(|error| fail(error.to_string()))?;
    match key {
        Some(key) if !certificates.is_empty() => Ok(Some((certificates, key))),
        _ => Err(fail("private key or certificate not found".to_owned())),
    }
}

fn roots(settings: &ApiSettings) -> Result<RootCertStore, SettingsError> {
    let mut files: Vec<PathBuf> = settings.ca_file.iter().cloned().collect();
    if let Some(directory) = &settings.ca_path {
        let fail = |source| SettingsError::File {
            product: settings.product,
            what: "CA directory",
            path: directory.clone(),
            source,
        };
        for entry in std::fs::read_dir(directory).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            if path.is_file() {
                files.push(path);
            }
        }
    }
    let mut roots = RootCertStore::empty();
    for file in files {
        let pem = read_file(settings.product, "CA certificate", &file)?;
        let fail = |reason: String| SettingsError::Pem {
            product: settings.product,
            what: "CA certificate",
            path: file.clone(),
            reason,
        };
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|_| fail("invalid certificate encoding".to_owned()))?;
            roots.add(certificate).map_err(|error| fail(error.to_string()))?;
        }
        if roots.len() == before {
            return Err(fail("no certificate found".to_owned()));
        }
    }
    Ok(roots)
}

fn read_file(product: Product, what: &'static str, path: &Path) -> Result<Vec<u8>, SettingsError> {
    bounded_file::read(path, bounded_file::PEM_BYTES).map_err(|source| SettingsError::File {
        product,
        what,
        path: path.to_owned(),
        source,
    })
}

/// For `tls_skip_verify`, which says what it does.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

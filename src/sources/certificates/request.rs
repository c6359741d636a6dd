//! Makes a private key and the request that asks for its certificate. The key never leaves this process but to Envoy.
//!
//! The names stand in the request and beside it: a role takes them from the request (`use_csr_common_name` and
//! `use_csr_sans`, the defaults) or from beside it.

use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_RSA_SHA256, SanType,
};
use rsa::pkcs8::EncodePrivateKey as _;
use rustls_pki_types::PrivatePkcs8KeyDer;
use zeroize::Zeroizing;

use crate::model::{KeyType, Redacted};

/// What to ask a certificate for.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) common_name: Arc<str>,
    pub(super) alt_names: Vec<Arc<str>>,
    pub(super) ip_sans: Vec<Arc<str>>,
}

/// A fresh key and the request signed with it, both PEM.
pub(super) struct Request {
    pub(super) csr: String,
    pub(super) private_key: Redacted<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RequestError {
    #[error("{0:?} cannot stand in a certificate request")]
    Name(Arc<str>),
    #[error("no private key could be made ({0})")]
    Key(String),
}

/// Takes a moment for RSA: call it where blocking is allowed.
pub(super) fn make(key_type: KeyType, names: &Names) -> Result<Request, RequestError> {
    let failed = |error: rcgen::Error| RequestError::Key(error.to_string());
    let key = match key_type {
        KeyType::Ec256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?,
        KeyType::Ec384 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).map_err(failed)?,
        KeyType::Rsa2048 | KeyType::Rsa3072 | KeyType::Rsa4096 => rsa_key(key_type)?,
    };
    let csr = params(names)?
        .serialize_request(&key)
        .and_then(|request| request.pem())
        .map_err(failed)?;
    Ok(Request {
        csr,
        private_key: Redacted::new(key.serialize_pem()),
    })
}

fn rsa_key(key_type: KeyType) -> Result<KeyPair, RequestError> {
    let made = rsa::PrivateKey::new(&mut getrandom::SysRng, key_type.bits())
        .map_err(|error| RequestError::Key(error.to_string()))?;
    let der = made
        .to_pkcs8_der()
        .map_err(|error| RequestError::Key(error.to_string()))?;
    let der = Zeroizing::new(der.as_bytes().to_vec());
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der.as_slice()), &PKCS_RSA_SHA256)
        .map_err(|error| RequestError::Key(error.to_string()))
}

fn params(names: &Names) -> Result<CertificateParams, RequestError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, names.common_name.as_ref());
    let mut all: Vec<SanType> = Vec::new();
    // As `issue` does: the common name is a name that the certificate covers.
    for name in std::iter::once(&names.common_name)
        .chain(&names.alt_names)
        .chain(&names.ip_sans)
    {
        let san = match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(
                name.as_ref()
                    .try_into()
                    .map_err(|_| RequestError::Name(name.clone()))?,
            ),
        };
        if !all.contains(&san) {
            all.push(san);
        }
    }
    params.subject_alt_names = all;
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::{FromDer, ParsedExtension, X509CertificationRequest};

    fn names() -> Names {
        Names {
            common_name: "www.example.com".into(),
            alt_names: vec!["www.example.com".into(), "example.com".into()],
            ip_sans: vec!["10.1.2.3".into()],
        }
    }

    #[test]
    fn a_request_names_everything_once_and_holds_no_key() {
        let request = make(KeyType::Ec256, &names()).unwrap();
        assert!(!request.csr.contains("PRIVATE KEY"));
        assert!(!format!("{:?}", request.private_key).contains("PRIVATE KEY"));
        let (_, pem) = x509_parser::pem::parse_x509_pem(request.csr.as_bytes()).unwrap();
        let (_, csr) = X509CertificationRequest::from_der(&pem.contents).unwrap();
        let info = &csr.certification_request_info;
        assert_eq!(info.subject.to_string(), "CN=www.example.com");
        let names = csr
            .requested_extensions()
            .unwrap()
            .find_map(|extension| match extension {
                ParsedExtension::SubjectAlternativeName(names) => Some(names.general_names.len()),
                _ => None,
            });
        assert_eq!(names, Some(3));
    }

    #[test]
    fn each_key_is_another_and_of_the_kind_asked_for() {
        for (key_type, bits) in [
            (KeyType::Ec256, 256),
            (KeyType::Ec384, 384),
            (KeyType::Rsa2048, 2048),
        ] {
            let (one, two) = (
                make(key_type, &names()).unwrap(),
                make(key_type, &names()).unwrap(),
            );
            assert_ne!(one.private_key.expose(), two.private_key.expose());
            let (_, pem) = x509_parser::pem::parse_x509_pem(one.csr.as_bytes()).unwrap();
            let (_, csr) = X509CertificationRequest::from_der(&pem.contents).unwrap();
            let key = csr.certification_request_info.subject_pki.parsed().unwrap();
            assert_eq!(key.key_size(), bits, "{key_type}");
        }
    }

    #[test]
    fn a_name_that_is_no_ascii_is_said() {
        let odd = Names {
            common_name: "m\u{fc}nchen.example".into(),
            ..names()
        };
        assert_eq!(
            make(KeyType::Ec256, &odd).err(),
            Some(RequestError::Name("m\u{fc}nchen.example".into()))
        );
    }
}

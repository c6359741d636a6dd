//! A certificate authority for tests.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rcgen::{SanType, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, PEM.
    pub certificate: String,
}

/// A leaf certificate and its key, PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Ca {
    pub fn new(name: &str) -> Ca {
        let (params, key) = authority(name);
        let certificate = params.self_signed(&key).unwrap().pem();
        Ca {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    /// An authority below this one.
    pub fn intermediate(&self, name: &str) -> Ca {
        let (params, key) = authority(name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Ca {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    /// What it revoked, PEM, from now on and for so long.
    pub fn revocation_list(&self, revoked: &[&Pair], life: Duration) -> String {
        let now = date_time_ymd(1970, 1, 1) + std::time::UNIX_EPOCH.elapsed().unwrap();
        let entry = |pair: &&Pair| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&pair.serial()),
            revocation_time: now - Duration::from_secs(60),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now - Duration::from_secs(60),
            next_update: now + life,
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// A leaf for servers and clients, valid for a day. A name is a DNS name, an IP address or a `scheme://`
    /// URI.
    pub fn issue(&self, names: &[&str]) -> Pair {
        self.issue_for(names, Duration::from_secs(24 * 3600))
    }

    pub fn issue_for(&self, names: &[&str], validity: Duration) -> Pair {
        self.issue_between(names, Duration::from_secs(60), validity)
    }

    /// Good since `past` ago, and for `validity` from now on.
    pub fn issue_between(&self, names: &[&str], past: Duration, validity: Duration) -> Pair {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, names[0]);
        params.subject_alt_names = names.iter().map(|name| subject_alt_name(name)).collect();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let since_epoch = std::time::UNIX_EPOCH.elapsed().unwrap();
        params.not_before = date_time_ymd(1970, 1, 1) + (since_epoch - past);
        params.not_after = date_time_ymd(1970, 1, 1) + (since_epoch + validity);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair {
            certificate,
            key: key.serialize_pem(),
        }
    }
}

fn authority(name: &str) -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params, KeyPair::generate().unwrap())
}

/// What Consul takes as the root of a mesh: an authority with the mesh's own URI.
pub fn mesh_authority(trust_domain: &str) -> Pair {
    let mut params = CertificateParams::default();
    let name = format!("Test CA {:?}", std::time::UNIX_EPOCH.elapsed().unwrap());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params.subject_alt_names = vec![subject_alt_name(&format!("spiffe://{trust_domain}"))];
    let key = KeyPair::generate().unwrap();
    Pair {
        certificate: params.self_signed(&key).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

impl Pair {
    /// When it ends, in Unix seconds.
    pub fn not_after(&self) -> i64 {
        let (_, pem) = x509_parser::pem::parse_x509_pem(self.certificate.as_bytes()).unwrap();
        pem.parse_x509().unwrap().validity().not_after.timestamp()
    }

    fn serial(&self) -> Vec<u8> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(self.certificate.as_bytes()).unwrap();
        pem.parse_x509().unwrap().raw_serial().to_vec()
    }

    /// For a rustls server or client.
    pub fn parsed(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (
            parse_certificates(&self.certificate),
            PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap(),
        )
    }

    /// A TLS server with this certificate, for clients with one of this authority.
    pub fn server_config_for(&self, clients: &Ca) -> std::sync::Arc<rustls::ServerConfig> {
        super::http::install_tls_provider();
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(parse_certificates(&clients.certificate));
        let verifier = rustls::server::WebPkiClientVerifier::builder(roots.into()).build();
        let (chain, key) = self.parsed();
        let config = rustls::ServerConfig::builder()
            .with_client_cert_verifier(verifier.unwrap())
            .with_single_cert(chain, key);
        std::sync::Arc::new(config.unwrap())
    }

    /// A TLS server with this certificate, for [`super::backend::Backend::start_tls`].
    pub fn server_config(&self) -> std::sync::Arc<rustls::ServerConfig> {
        super::http::install_tls_provider();
        let (chain, key) = self.parsed();
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key);
        std::sync::Arc::new(config.unwrap())
    }
}

pub fn parse_certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(Result::unwrap)
        .collect()
}

fn subject_alt_name(name: &str) -> SanType {
    if name.contains("://") {
        SanType::URI(name.try_into().unwrap())
    } else if let Ok(address) = name.parse::<IpAddr>() {
        SanType::IpAddress(address)
    } else {
        SanType::DnsName(name.try_into().unwrap())
    }
}

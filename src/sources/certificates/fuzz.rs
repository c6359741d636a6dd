//! Certificates, keys, authorities and lists of revocation, wherever they come from; what is kept of them on disk.

use std::time::Duration;

use super::budget::{Budget, renewal_time};
use super::variable::Variable;
use super::{StoredCertificate, authorities, parse, parse_public};
use crate::fuzz::Target;
use crate::model::CertificateQuery;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "certificates",
        input: "certificates and private keys in PEM",
        run: certificates,
    },
    Target {
        name: "client_authorities",
        input: "authorities of clients and their lists of revocation",
        run: client_authorities,
    },
    Target {
        name: "der",
        input: "the DER of certificates and lists, and the names in the certificates of Envoys",
        run: der,
    },
    Target {
        name: "nomad_variables",
        input: "Nomad's answers about variables",
        run: variables,
    },
    Target {
        name: "certificate_records",
        input: "what the agent keeps of certificates on its disk",
        run: records,
    },
];

/// Within the life of what the corpora hold.
const NOW: i64 = 1_800_000_000;

fn certificates(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(material) = parse_public(text, NOW) {
        // What is canonical is read as the same.
        assert_eq!(parse_public(&material.chain, NOW).as_ref(), Ok(&material));
    }
    // As many keep them, both in one text.
    if let Err(fault) = parse(text, text, NOW) {
        assert!(!fault.problem("here").message.is_empty());
    }
}

/// The lists stand behind the authorities in the same text.
fn client_authorities(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    for lists in [None, Some(text)] {
        if let Ok(read) = authorities::parse(text, lists, NOW) {
            assert!(read.material.not_after > NOW && !read.material.chain.is_empty());
        }
    }
}

/// In the PEM that it would come in: no change of a byte makes base64 of something else than DER.
fn der(input: &[u8]) {
    let certificate = super::pem::encode("CERTIFICATE", input);
    // Material or a reason.
    let _ = parse_public(&certificate, NOW);
    let list = super::pem::encode("X509 CRL", input);
    let _ = authorities::parse(&certificate, Some(&list), NOW);
    crate::xds::fuzz::names(input);
}

fn variables(input: &[u8]) {
    let Ok(variable) = serde_json::from_slice::<Variable>(input) else {
        return;
    };
    if let (Some(chain), Some(key)) = (
        variable.items.get("certificate"),
        variable.items.get("private_key"),
    ) {
        let _ = parse(chain.0.expose(), key.0.expose(), NOW);
    }
}

/// The key of a record, or the record itself.
fn records(input: &[u8]) {
    if let Ok(query) = serde_json::from_slice::<CertificateQuery>(input) {
        assert!(!query.to_string().is_empty());
    }
    let Ok(record) = serde_json::from_slice::<StoredCertificate>(input) else {
        return;
    };
    record.matters_until();
    let budget = Budget {
        interval: Duration::from_secs(60),
    };
    assert!(budget.next(record.last_attempt, NOW) <= NOW + 60);
    if let Some(certificate) = &record.certificate {
        renewal_time(certificate.not_before, certificate.not_after, &certificate.serial);
        let _ = parse_public(&certificate.chain, NOW);
    }
}

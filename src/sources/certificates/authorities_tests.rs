use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};

use super::*;

const NOW: i64 = 1_800_000_000; // January 2027

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

fn authority(name: &str, until: i32) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_after = date_time_ymd(until, 1, 1);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Authority {
        issuer: Issuer::new(params, key),
        pem,
    }
}

fn list(by: &Authority, until: i32) -> String {
    let revoked = RevokedCertParams {
        serial_number: SerialNumber::from(7_u64),
        revocation_time: date_time_ymd(2026, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(until, 1, 1),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: KeyIdMethod::Sha256,
    }
    .signed_by(&by.issuer)
    .unwrap()
    .pem()
    .unwrap()
}

#[test]
fn several_authorities_with_their_lists_in_any_order() {
    let (one, two) = (authority("one", 2030), authority("two", 2031));
    let lists = format!("{}{}", list(&one, 2030), list(&two, 2030));
    let material = parse(&format!("{}{}", one.pem, two.pem), Some(&lists), NOW).unwrap();
    assert_eq!(material.chain.matches("BEGIN CERTIFICATE").count(), 2);
    assert_eq!(
        material.crl.as_deref().unwrap().matches("BEGIN X509 CRL").count(),
        2
    );
    let again = parse(
        &format!("# a comment\n{}\n{}", two.pem, one.pem),
        Some(&lists),
        NOW,
    )
    .unwrap();
    assert_eq!(
        (&material.chain, material.version()),
        (&again.chain, again.version())
    );
    // A list alone is a change, and so is its absence.
    let longer = format!("{}{}", list(&one, 2031), list(&two, 2030));
    let longer = parse(&format!("{}{}", one.pem, two.pem), Some(&longer), NOW).unwrap();
    assert_ne!(material.version(), longer.version());
    let without = parse(&one.pem, None, NOW).unwrap();
    assert!(without.crl.is_none());
}

#[test]
fn what_cannot_be_believed_is_refused() {
    let (one, two) = (authority("one", 2030), authority("two", 2030));
    let impostor = authority("one", 2030);
    let leaf = CertificateParams::new(vec!["client.example".to_owned()]).unwrap();
    let leaf = leaf
        .signed_by(&KeyPair::generate().unwrap(), &one.issuer)
        .unwrap()
        .pem();
    let fault = |authorities: &str, lists: Option<&str>| parse(authorities, lists, NOW).unwrap_err();
    assert!(matches!(fault("hello", None), AuthorityFault::NoCertificate));
    assert!(matches!(fault(&leaf, None), AuthorityFault::NotAnAuthority(1, _)));
    assert!(matches!(
        fault(
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            None
        ),
        AuthorityFault::Broken(1)
    ));
    assert!(matches!(
        fault(&authority("old", 2020).pem, None),
        AuthorityFault::Expired(_)
    ));
    assert!(matches!(
        fault(&"x".repeat(300_000), None),
        AuthorityFault::TooLarge
    ));
    assert!(matches!(fault(&one.pem, Some("")), AuthorityFault::NoList(_)));
    assert!(matches!(
        fault(&one.pem, Some(&list(&two, 2030))),
        AuthorityFault::StrangeList(_)
    ));
    // The same name, another key.
    assert!(matches!(
        fault(&one.pem, Some(&list(&impostor, 2030))),
        AuthorityFault::StrangeList(_)
    ));
    assert!(matches!(
        fault(&one.pem, Some(&list(&one, 2026))),
        AuthorityFault::ListExpired(..)
    ));
    let both = format!("{}{}", one.pem, two.pem);
    assert!(matches!(
        fault(&both, Some(&list(&one, 2030))),
        AuthorityFault::NoList(name) if name == "CN=two"
    ));
    for fault in [fault(&leaf, None), fault(&one.pem, Some(&list(&one, 2026)))] {
        let problem = fault.problem("vault_kv secret/clients");
        assert!(problem.message.starts_with("vault_kv secret/clients: ") && problem.fix.is_some());
    }
}

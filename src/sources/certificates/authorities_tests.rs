use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};

use super::*;
use crate::model::KvVersion;
use crate::sources::damage::damaged_text;

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

/// Clients of one are refused from its end on, however long the others last.
#[test]
fn the_end_of_each_authority_counts() {
    let (ended, first, last) = (
        authority("ended", 2025),
        authority("first", 2028),
        authority("last", 2040),
    );
    let year = |year: i32| date_time_ymd(year, 1, 1).unix_timestamp();
    let both = parse(&format!("{}{}", last.pem, first.pem), None, NOW).unwrap();
    assert_eq!(both.material.not_after, year(2028));
    assert_eq!(both.shut_out, None);
    let one_ended = parse(&format!("{}{}", ended.pem, last.pem), None, NOW).unwrap();
    assert_eq!(one_ended.material.not_after, year(2040));
    assert_eq!(
        one_ended.shut_out,
        Some(AuthorityFault::OneExpired("CN=ended".to_owned(), year(2025)))
    );
    // One key, certified anew: its clients are let in.
    let mut renewed = CertificateParams::default();
    renewed.distinguished_name.push(DnType::CommonName, "ended");
    renewed.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    renewed.not_after = date_time_ymd(2035, 1, 1);
    let renewed = renewed.self_signed(ended.issuer.key()).unwrap().pem();
    let again = parse(&format!("{}{renewed}", ended.pem), None, NOW).unwrap();
    assert_eq!((again.material.not_after, again.shut_out), (year(2035), None));
}

#[test]
fn several_authorities_with_their_lists_in_any_order() {
    let (one, two) = (authority("one", 2030), authority("two", 2031));
    let lists = format!("{}{}", list(&one, 2030), list(&two, 2030));
    let material = parse(&format!("{}{}", one.pem, two.pem), Some(&lists), NOW)
        .unwrap()
        .material;
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
    .unwrap()
    .material;
    assert_eq!(
        (&material.chain, material.version()),
        (&again.chain, again.version())
    );
    // A list alone is a change, and so is its absence.
    let longer = format!("{}{}", list(&one, 2031), list(&two, 2030));
    let longer = parse(&format!("{}{}", one.pem, two.pem), Some(&longer), NOW)
        .unwrap()
        .material;
    assert_ne!(material.version(), longer.version());
    let without = parse(&one.pem, None, NOW).unwrap().material;
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
    assert!(matches!(
        fault(&one.pem, Some("MIIBDjBy: a list in base64 alone")),
        AuthorityFault::NoListBlock
    ));
    let both = format!("{}{}", one.pem, two.pem);
    let all_expired = format!("{}{}", list(&one, 2026), list(&two, 2025));
    assert!(matches!(
        fault(&both, Some(&all_expired)),
        AuthorityFault::ListExpired(name, _) if name == "CN=one"
    ));
    assert!(matches!(
        fault(&both, Some(&list(&two, 2026))),
        AuthorityFault::NoList(name) if name == "CN=one"
    ));
    let problem = fault(&leaf, None).problem(&kv(), "vault_kv secret/clients");
    assert!(problem.message.starts_with("vault_kv secret/clients: ") && problem.fix.is_some());
}

/// Whom one authority revoked does not wait for another one's list.
#[test]
fn an_authority_without_a_list_in_date_holds_up_no_other() {
    let (one, two) = (authority("one", 2030), authority("two", 2031));
    let both = format!("{}{}", one.pem, two.pem);
    let whole = parse(
        &both,
        Some(&format!("{}{}", list(&one, 2028), list(&two, 2029))),
        NOW,
    )
    .unwrap();
    assert_eq!(whole.shut_out, None);
    let end = |year: i32| date_time_ymd(year, 1, 1).unix_timestamp();
    assert_eq!(whole.material.not_after, end(2028));

    let lists = format!("{}{}", list(&one, 2026), list(&two, 2029));
    let expired = parse(&both, Some(&lists), NOW).unwrap();
    assert_eq!(
        expired.shut_out,
        Some(AuthorityFault::ListExpired("CN=one".to_owned(), end(2026)))
    );
    // The one that has run out too: Envoy refuses clients by what it says.
    let crl = expired.material.crl.unwrap();
    assert_eq!(crl.matches("BEGIN X509 CRL").count(), 2);
    assert_eq!(expired.material.not_after, end(2026), "status says so");
    // An older list beside one that is in date is of no account.
    let lists = format!("{}{lists}", list(&one, 2028));
    let renewed = parse(&both, Some(&lists), NOW).unwrap();
    assert_eq!((renewed.shut_out, renewed.material.not_after), (None, end(2028)));

    let lists = list(&two, 2029);
    let without = parse(&both, Some(&lists), NOW).unwrap();
    assert_eq!(
        without.shut_out,
        Some(AuthorityFault::NoList("CN=one".to_owned()))
    );
    assert_eq!(without.material.chain.matches("BEGIN CERTIFICATE").count(), 2);
}

fn kv() -> ClientCaQuery {
    ClientCaQuery::VaultKv {
        mount: "secret".into(),
        path: "clients".into(),
        version: KvVersion::V2,
        certificate_field: "certificate".into(),
        crl_field: Some("crl".into()),
    }
}

/// `crl` is a switch at a PKI mount and a name elsewhere, and only Vault makes a list when it is asked to.
#[test]
fn the_fix_is_one_that_the_source_knows() {
    let file = ClientCaQuery::File {
        certificate: "/clients.pem".into(),
        crl: Some("/clients.crl".into()),
    };
    let pki = ClientCaQuery::VaultPki {
        mount: "pki_clients".into(),
        issuer: None,
        crl: true,
    };
    let fix = |fault: &AuthorityFault, source: &ClientCaQuery| {
        let fix = fault.problem(source, "here").fix.unwrap();
        fix.to_string()
    };
    let expired = AuthorityFault::ListExpired("CN=one".to_owned(), 0);
    let missing = AuthorityFault::NoList("CN=one".to_owned());
    assert!(fix(&expired, &pki).contains("vault read pki_clients/crl/rotate"));
    assert!(fix(&missing, &pki).contains("crl = false"));
    for source in [file, kv()] {
        assert!(!fix(&expired, &source).contains("vault"), "{source:?}");
        assert!(fix(&missing, &source).contains("leave crl out"), "{source:?}");
    }
}

/// What cannot be checked is not called a stranger's. Made by `openssl`: the curve is P-521.
#[test]
fn a_signature_that_cannot_be_checked_is_told_as_that() {
    let fault = parse(P521_AUTHORITY, Some(P521_LIST), NOW).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "the revocation list of \"CN=large\" is signed in a way that is not supported (ecdsa-with-SHA512)"
    );
}

const P521_AUTHORITY: &str = "\
-----BEGIN CERTIFICATE-----
MIIB7jCCAU+gAwIBAgIUbKX3nVNT0wOWy1FGoJihogHYeBwwCgYIKoZIzj0EAwQw
EDEOMAwGA1UEAwwFbGFyZ2UwIBcNMjYxMTI2MDgxMzQ2WhgPMjEyNjExMDIwODEz
NDZaMBAxDjAMBgNVBAMMBWxhcmdlMIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQB
FERoQlwxuU2vPW1j8PI8HHyTufxbX6rv9t2lVKvZMCqlhInqAc4E72S1PfhMFFYn
WbFIDqNTT/wNWS6nXLYwQMYAa3HPOmYfSwA7gcNAsK+emp7VdINVpWLYO7/wy+py
LqwSYkLgNsa3RiiBImcGdsHG08b4VK0Q2HPF+hcIJNRRhN6jQjBAMA8GA1UdEwEB
/wQFMAMBAf8wDgYDVR0PAQH/BAQDAgEGMB0GA1UdDgQWBBTV7Gw5KJoSeWYWzO76
L9lHf2Q7tDAKBggqhkjOPQQDBAOBjAAwgYgCQgCpbqvBp8nDL7dMn8Y466rlbyFs
gC46xcTUDXYa/4EiKk9sMFOeKHOQ2rqBuNxCQ0RpoUFsbJCR2rmPUZdcwxqskQJC
AZ8je4kqM2D5cNvr9RhyELnibzZQDB8FW6tsRu4EgTNw0Iq+6wZNQyw0RzWzTPmD
mi6oynVUdFLXzisBBtUY1X5e
-----END CERTIFICATE-----
";

const P521_LIST: &str = "\
-----BEGIN X509 CRL-----
MIIBDjByAgEBMAoGCCqGSM49BAMEMBAxDjAMBgNVBAMMBWxhcmdlFw0yNjExMjYw
ODEzNDZaGA8yMTI1MDYyMDA4MTM0NlqgLzAtMB8GA1UdIwQYMBaAFNXsbDkomhJ5
ZhbM7vov2Ud/ZDu0MAoGA1UdFAQDAgEBMAoGCCqGSM49BAMEA4GLADCBhwJBXTaG
7szAHs6eQ3uJRgUlpaxZeLfKU1Fr/4EGCtYXORLdIEEqFbmvp/CppYl+rP8R27zb
5cM9WKgrO9S8lcPjMtwCQgGPZd9jiIO6S4E+4FzeGGNO61djsq8jCd3u42WSQsrx
4q7WdILr88RS+pUAr9r2qWUERbOg7YnvH4o6b0D8VlFE5g==
-----END X509 CRL-----
";

fn texts() -> &'static (String, String) {
    static TEXTS: std::sync::LazyLock<(String, String)> = std::sync::LazyLock::new(|| {
        let (one, two) = (authority("one", 2030), authority("two", 2031));
        let lists = format!("{}{}", list(&one, 2030), list(&two, 2030));
        (format!("{}{}", one.pem, two.pem), lists)
    });
    &TEXTS
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Where revocation is asked for nobody is let in without a list.
    #[test]
    fn fuzz_authorities(
        authorities in damaged_text(&texts().0),
        lists in prop::option::of(damaged_text(&texts().1)),
        now in prop_oneof![Just(NOW), any::<i64>()],
    ) {
        if let Ok(read) = parse(&authorities, lists.as_deref(), now) {
            prop_assert!(read.material.chain.contains("BEGIN CERTIFICATE"));
            prop_assert_eq!(read.material.crl.is_some(), lists.is_some());
        }
    }
}

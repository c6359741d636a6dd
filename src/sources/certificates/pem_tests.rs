use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, SerialNumber};

use crate::sources::damage::damaged_text;

use super::{PemFault, encode, parse, parse_public, parse_served, timestamp};

const DAY: i64 = 86_400;
/// 2026-01-01.
const NOW: i64 = 1_767_225_600;

struct Issued {
    leaf: String,
    key: String,
    intermediate: String,
    root: String,
}

fn validity(params: &mut CertificateParams, from: i64, to: i64) {
    params.not_before = (std::time::UNIX_EPOCH + std::time::Duration::from_secs(from as u64)).into();
    params.not_after = (std::time::UNIX_EPOCH + std::time::Duration::from_secs(to as u64)).into();
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    validity(&mut params, NOW - 100 * DAY, NOW + 100 * DAY);
    params
}

fn issue(from: i64, to: i64) -> Issued {
    let root_key = KeyPair::generate().unwrap();
    let root_params = authority("root");
    let root = root_params.self_signed(&root_key).unwrap();
    let root_issuer = Issuer::from_params(&root_params, &root_key);

    let intermediate_key = KeyPair::generate().unwrap();
    let intermediate_params = authority("intermediate");
    let intermediate = intermediate_params
        .signed_by(&intermediate_key, &root_issuer)
        .unwrap();
    let intermediate_issuer = Issuer::from_params(&intermediate_params, &intermediate_key);

    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["WWW.example.com".to_owned()]).unwrap();
    params
        .subject_alt_names
        .push(SanType::IpAddress("10.0.0.7".parse().unwrap()));
    params
        .subject_alt_names
        .push(SanType::IpAddress("::1".parse().unwrap()));
    params.serial_number = Some(SerialNumber::from_slice(&[0x00, 0xf0, 0x0d]));
    validity(&mut params, from, to);
    let leaf = params.signed_by(&key, &intermediate_issuer).unwrap();
    Issued {
        leaf: leaf.pem(),
        key: key.serialize_pem(),
        intermediate: intermediate.pem(),
        root: root.pem(),
    }
}

fn valid() -> Issued {
    issue(NOW - DAY, NOW + DAY)
}

#[test]
fn puts_the_leaf_first_and_leaves_the_root_out() {
    let Issued {
        leaf,
        key,
        intermediate,
        root,
    } = valid();
    let straight = parse(&format!("{leaf}{intermediate}"), &key, NOW).unwrap();
    let shuffled = parse(&format!("{root}\r\n# a comment\n{intermediate}{leaf}"), &key, NOW).unwrap();
    assert_eq!(straight, shuffled);
    assert_eq!(straight.chain.matches("BEGIN CERTIFICATE").count(), 2);
    assert_eq!(straight.serial.as_ref(), "f0:0d");
    let names: Vec<&str> = straight.names.iter().map(AsRef::as_ref).collect();
    assert_eq!(names, ["www.example.com", "10.0.0.7", "::1"]);
    assert_eq!((straight.not_before, straight.not_after), (NOW - DAY, NOW + DAY));
    assert!(straight.private_key.is_some());

    let public = parse_public(&straight.chain, NOW).unwrap();
    assert_eq!(public.version(), straight.version());
    assert!(public.private_key.is_none());
}

/// While a root is replaced: who trusts the old one alone finds the leaf by what that signed for the new one, whose name may be
/// the same.
#[test]
fn keeps_what_an_old_root_signed_for_a_new_one() {
    let (old_key, new_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let params = authority("root");
    let new = Issuer::from_params(&params, &new_key);
    let root = params.self_signed(&new_key).unwrap().pem();
    let crossed = params
        .signed_by(&new_key, &Issuer::from_params(&params, &old_key))
        .unwrap()
        .pem();
    let intermediate_key = KeyPair::generate().unwrap();
    let intermediate_params = authority("intermediate");
    let intermediate = intermediate_params
        .signed_by(&intermediate_key, &new)
        .unwrap()
        .pem();
    // Of the same intermediate by the old root, and one of its name that has another key.
    let by_old = intermediate_params
        .signed_by(&intermediate_key, &Issuer::from_params(&params, &old_key))
        .unwrap()
        .pem();
    let stranger = intermediate_params
        .signed_by(&KeyPair::generate().unwrap(), &new)
        .unwrap()
        .pem();
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::new(vec!["www.example.com".to_owned()]).unwrap();
    validity(&mut leaf, NOW - DAY, NOW + DAY);
    let leaf = leaf
        .signed_by(
            &key,
            &Issuer::from_params(&intermediate_params, &intermediate_key),
        )
        .unwrap()
        .pem();
    let served = |parts: &[&str]| parse(&parts.concat(), &key.serialize_pem(), NOW).unwrap().chain;
    let plain = |parts: &[&str]| parts.concat().replace("\r\n", "\n");
    assert_eq!(
        *served(&[&root, &crossed, &stranger, &intermediate, &leaf]),
        plain(&[&leaf, &intermediate, &crossed])
    );
    assert_eq!(
        *served(&[&leaf, &intermediate, &by_old, &root]),
        plain(&[&leaf, &intermediate, &by_old]),
        "the way that ends first, and then the other"
    );
    // What is stored is read again as it is.
    let stored = served(&[&leaf, &by_old, &intermediate, &crossed]);
    assert_eq!(parse_public(&stored, NOW).unwrap().chain, stored);
}

#[test]
fn a_certificate_that_no_client_can_ask_for_is_not_served() {
    let key = KeyPair::generate().unwrap();
    for (names, fault) in [
        (vec![], Some(PemFault::NamesNoHost)),
        (vec!["10.0.0.7"], Some(PemFault::NamesNoHost)),
        (vec!["10.0.0.7", "www.example.com"], None),
    ] {
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let mut params = CertificateParams::new(names).unwrap();
        validity(&mut params, NOW - DAY, NOW + DAY);
        let leaf = params.self_signed(&key).unwrap().pem();
        assert_eq!(parse_served(&leaf, &key.serialize_pem(), NOW).err(), fault);
    }
}

#[test]
fn keeps_a_self_signed_leaf() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["dev".to_owned()]).unwrap();
    validity(&mut params, NOW - DAY, NOW + DAY);
    let leaf = params.self_signed(&key).unwrap();
    let both = format!("{}{}", key.serialize_pem(), leaf.pem());
    assert_eq!(
        parse(&both, &both, NOW).unwrap().chain.matches("BEGIN").count(),
        1
    );
}

#[test]
fn every_fault_has_its_own_message_and_fix() {
    let Issued { leaf, key, .. } = valid();
    let expired = issue(NOW - 2 * DAY, NOW - DAY);
    let early = issue(NOW + DAY, NOW + 2 * DAY);
    let broken_leaf = encode("CERTIFICATE", b"not a certificate");
    let both = format!("{leaf}{broken_leaf}");
    let damaged_key = encode("PRIVATE KEY", b"not a key");
    let cases: [(&str, &str, PemFault); 11] = [
        (&"x".repeat(70_000), &key, PemFault::ChainTooLarge),
        (&leaf, &"x".repeat(90_000), PemFault::KeyTooLarge),
        ("hello", &key, PemFault::NoCertificate),
        (&both, &key, PemFault::BrokenCertificate(2)),
        (&leaf, "hello", PemFault::NoKey),
        (&leaf, &damaged_key, PemFault::UnsupportedKey),
        (
            &leaf,
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            PemFault::EncryptedKey,
        ),
        (&leaf, &expired.key, PemFault::KeyMismatch),
        (&expired.leaf, &expired.key, PemFault::Expired(NOW - DAY)),
        (&early.leaf, &early.key, PemFault::NotYetValid(NOW + DAY)),
        (&leaf, &leaf, PemFault::NoKey),
    ];
    for (chain, key, expected) in cases {
        let fault = parse(chain, key, NOW).unwrap_err();
        assert_eq!(fault, expected);
        let problem = fault.problem("secret/www");
        assert!(problem.message.starts_with("secret/www: "), "{problem}");
        assert!(problem.fix.is_some());
    }
    assert!(matches!(
        parse(
            "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n",
            &key,
            NOW
        ),
        Err(PemFault::BrokenPem(_))
    ));
    assert_eq!(
        PemFault::Expired(NOW).to_string(),
        "the certificate expired at 2026-01-01T00:00:00Z"
    );
}

#[test]
fn no_fault_quotes_a_key() {
    let Issued { leaf, key, .. } = valid();
    let secret: String = key.lines().nth(1).unwrap().to_owned();
    for damaged in [
        key.replace("-----END", "----END"),
        key.replace('M', "!"),
        key.replacen('\n', "", 2),
    ] {
        let shown = match parse(&leaf, &damaged, NOW) {
            Ok(material) => format!("{material:?}"),
            Err(fault) => format!("{fault} {fault:?}"),
        };
        assert!(!shown.contains(&secret[..20]), "{shown}");
    }
}

#[test]
fn odd_times_do_not_panic() {
    assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
    assert!(timestamp(-1).contains("-1"));
    assert!(timestamp(i64::MAX).contains("epoch"));
}

proptest::proptest! {
    #[test]
    fn any_text_is_a_value_or_a_fault(chain in ".{0,400}", key in ".{0,400}") {
        let _ = parse(&chain, &key, NOW);
    }
}

fn issued() -> &'static Issued {
    static ISSUED: std::sync::LazyLock<Issued> = std::sync::LazyLock::new(valid);
    &ISSUED
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// What is served is a pair, and no fault shows a line of the key.
    #[test]
    fn fuzz_certificates(
        chain in damaged_text(&format!("{}{}", issued().leaf, issued().intermediate)),
        key in damaged_text(&issued().key),
        now in prop_oneof![Just(NOW), any::<i64>()],
    ) {
        let secret = issued().key.lines().nth(1).unwrap();
        match parse(&chain, &key, now) {
            Ok(material) => {
                prop_assert!(parse_public(&material.chain, now).is_ok());
                prop_assert!(material.private_key.is_some());
                let shown = format!("{:?}", material);
                prop_assert!(!shown.contains(&secret[..20]));
            }
            Err(fault) => {
                let shown = format!("{fault} {fault:?} {}", fault.fix());
                prop_assert!(!shown.contains(&secret[..20]), "{shown}");
            }
        }
        _ = parse_public(&chain, now);
    }
}

use proptest::prelude::*;

use super::*;
use crate::model::{Health, Shared, Weights};

fn exposure() -> Exposure {
    Exposure {
        opt_in: OptIn {
            prefix: "portreeve".into(),
            metadata_of: Vec::new(),
        },
        gateways: vec!["edge".into()],
        listeners: Vec::new(),
        default_host: Some("{service}.apps.example.com".into()),
        hostnames: vec!["*.apps.example.com".into(), "shop.example.com".into()],
        services: vec!["*".into()],
        required_tags: Vec::new(),
        policies: vec!["standard".into()],
    }
}

fn instance(id: &str, created: u64, tags: &[&str]) -> Instance {
    Instance {
        node: "n1".into(),
        id: id.into(),
        destination: None,
        address: "10.0.0.1".into(),
        port: 80,
        ports: Shared::default(),
        tells_ports_apart: false,
        health: Health::Critical,
        weights: Weights::default(),
        tags: tags.iter().map(|tag| Arc::from(*tag)).collect::<Vec<_>>().into(),
        meta: Shared::default(),
        created,
    }
}

fn routes(exposure: &Exposure, instances: &[Instance]) -> Result<Vec<HttpRoute>, Vec<Diagnostic>> {
    let document = exposure.document("orders", instances).unwrap();
    let objects = exposure.parse("orders", &document)?.objects;
    Ok(objects
        .into_iter()
        .filter_map(|object| match object {
            Object::HttpRoute(route) => Some((*route).clone()),
            _ => None,
        })
        .collect())
}

#[test]
fn a_bare_tag_gets_the_default_host() {
    let found = routes(&exposure(), &[instance("a", 7, &["v1", "portreeve.enable=true"])]).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].hostnames, ["orders.apps.example.com".into()]);
    assert_eq!(&*found[0].scope.bundles[0].0, "standard");
    assert_eq!(found[0].origin.to_string(), "catalog service orders:1:1");
}

#[test]
fn nobody_asks_nothing_is_said() {
    let exposure = exposure();
    assert_eq!(exposure.document("orders", &[instance("a", 7, &["v1"])]), None);
    let disabled = instance(
        "a",
        7,
        &["portreeve.enable=false", "portreeve.host=shop.example.com"],
    );
    assert_eq!(exposure.document("orders", &[disabled]), None);
}

#[test]
fn a_rolling_deploy_is_the_union_and_the_oldest_comes_first() {
    let old = instance("a", 7, &["portreeve", "portreeve.host=shop.example.com"]);
    let new = instance(
        "b",
        9,
        &[
            "portreeve",
            "portreeve.host=shop.example.com,new.apps.example.com",
            "portreeve.path=/",
        ],
    );
    let document = exposure()
        .document("orders", &[new.clone(), old.clone()])
        .unwrap();
    assert_eq!(
        document,
        exposure()
            .document("orders", &[old.clone(), new.clone()])
            .unwrap()
    );
    assert_eq!(document.order, 7);
    let found = routes(&exposure(), &[old, new.clone()]).unwrap();
    assert_eq!(found[0].hostnames, ["shop.example.com".into()]);
    assert_eq!(
        found[1].hostnames,
        ["new.apps.example.com".into()],
        "what the older has it keeps"
    );
    let after = routes(&exposure(), &[new]).unwrap();
    assert_eq!(after[0].hostnames.len(), 2);
}

#[test]
fn metadata_says_the_same_as_tags() {
    let mut one = instance("a", 7, &[]);
    for (key, value) in [
        ("portreeve-enable", "true"),
        ("portreeve-host", "shop.example.com"),
        ("portreeve-path", "/api/"),
        ("portreeve-strip-path", "true"),
    ] {
        one.meta.to_mut().insert(key.into(), value.into());
    }
    let found = routes(&exposure(), &[one]).unwrap();
    assert_eq!(
        found[0].rules[0].matches[0].path,
        PathMatch::Prefix("/api".into())
    );
    assert!(found[0].rules[0].rewrite.is_some());
}

#[test]
fn grpc_and_named_ports_get_an_upstream_of_their_own() {
    let document = exposure()
        .document(
            "orders",
            &[instance(
                "a",
                7,
                &["portreeve", "portreeve.protocol=grpc", "portreeve.port=rpc"],
            )],
        )
        .unwrap();
    let objects = exposure().parse("orders", &document).unwrap().objects;
    let upstream = objects.iter().find_map(|object| match object {
        Object::Upstream(upstream) => Some(upstream.clone()),
        _ => None,
    });
    let upstream = upstream.unwrap();
    assert_eq!(upstream.options.protocol, UpstreamProtocol::Http2);
    assert!(matches!(&upstream.source, UpstreamSource::Consul { port: Some(port), .. } if &**port == "rpc"));
}

/// Each with its own code and words: nothing a registration holds gets through unseen.
#[test]
fn hostile_and_mistaken_registrations_are_refused_with_a_reason() {
    let long = format!("portreeve.host={}.apps.example.com", "x".repeat(300));
    for (tag, code, words) in [
        (
            "portreeve.host=admin.example.com",
            Code::NotAllowed,
            "may not claim the host",
        ),
        (
            "portreeve.host=*.apps.example.com",
            Code::NotAllowed,
            "every host below",
        ),
        ("portreeve.host=*", Code::NotAllowed, "every host below"),
        ("portreeve.host=a b.apps.example.com", Code::InvalidValue, "a b"),
        ("portreeve.host=a\nportreeve.host=b", Code::InvalidValue, "u{a}"),
        (
            "portreeve.host=x.apps.example.com:80",
            Code::InvalidValue,
            "leave the port out",
        ),
        ("portreeve.host=", Code::InvalidValue, "\"\""),
        (&long, Code::InvalidValue, "xxx"),
        ("portreeve.path=../etc", Code::InvalidValue, "../etc"),
        ("portreeve.protocol=ftp", Code::InvalidValue, "not a protocol"),
        ("portreeve.policies=a b", Code::InvalidValue, "not a name"),
        (
            "portreeve.gateways=internal",
            Code::NotAllowed,
            "may not choose the gateway",
        ),
        ("portreeve.hots=x.apps.example.com", Code::UnknownKey, "hots"),
    ] {
        let problems = routes(&exposure(), &[instance("a", 1, &["portreeve", tag])]).unwrap_err();
        let first = &problems[0];
        assert_eq!(first.code, code, "{tag}: {first}");
        assert!(first.message.contains(words), "{tag}: {first}");
        assert_eq!(first.origin.as_ref().unwrap().line, 2, "{tag}");
    }
}

#[test]
fn constraints_say_which_and_what_to_do() {
    let mut strict = exposure();
    strict.services = vec!["web-*".into()];
    let problems = routes(&strict, &[instance("a", 1, &["portreeve"])]).unwrap_err();
    assert!(problems[0].fix.as_deref().unwrap().contains("web-*"));
    let mut tagged = exposure();
    tagged.required_tags = vec!["public".into()];
    assert!(routes(&tagged, &[instance("a", 1, &["portreeve"])]).is_err());
    assert!(routes(&tagged, &[instance("a", 1, &["portreeve", "public"])]).is_ok());
    let names = exposure()
        .document("or ders", &[instance("a", 1, &["portreeve"])])
        .unwrap();
    assert!(exposure().parse("or ders", &names).is_err());
}

/// Whoever may register a service writes here.
#[test]
fn what_instances_say_is_bounded() {
    let kinds = |count: usize| -> Vec<Instance> {
        (0..count)
            .map(|at| {
                let host = format!("portreeve.host=h{at}.apps.example.com");
                instance(&format!("i{at}"), at as u64, &["portreeve.enable=true", &host])
            })
            .collect()
    };
    assert_eq!(routes(&exposure(), &kinds(KINDS)).unwrap().len(), KINDS);
    let problems = routes(&exposure(), &kinds(100)).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].code, Code::TooLarge);
    assert!(
        exposure()
            .document("web", &kinds(100))
            .unwrap()
            .text
            .lines()
            .count()
            < 3 * (KINDS + 1) + 1
    );

    let names: Vec<String> = (0..NAMES).map(|at| format!("p{at}")).collect();
    let bundles = |more: &str| {
        let tag = format!("portreeve.policies={},{more}", names.join(","));
        routes(
            &exposure(),
            &[instance(
                "i",
                1,
                &["portreeve.enable=true", "portreeve.host=a.apps.example.com", &tag],
            )],
        )
    };
    // One that is named again is one.
    assert_eq!(
        bundles("p1").unwrap()[0].scope.bundles.len(),
        NAMES + exposure().policies.len()
    );
    assert_eq!(bundles("q").unwrap_err()[0].message, "more than 64 names");

    let long = |commas: usize| {
        let hosts = format!("portreeve.host=a.apps.example.com{}", ",".repeat(commas));
        routes(
            &exposure(),
            &[instance("i", 1, &["portreeve.enable=true", &hosts])],
        )
        .unwrap_err()
    };
    let told = long(1_000);
    assert!(
        told.len() == 101
            && told
                .iter()
                .all(|problem| problem.code != Code::TooLarge || problem.message.contains("900 more")),
        "{told:?}"
    );
    let told = long(TEXT_BYTES);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].message.contains("129 KiB long, and 128 the most"),
        "{}",
        told[0]
    );
}

fn tag() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "portreeve[.-](enable|host|path|strip_path|protocol|port|policy)=[a-z0-9.*,/{}-]{0,24}",
        1 => Just("portreeve.enable=true".to_owned()),
        1 => "portreeve[.-]host=(\\*\\.|[a-z]{1,4}\\.)?(apps|shop)\\.example\\.(com|net)",
        1 => "portreeve\\PC{0,20}",
        1 => "\\PC{0,20}",
        1 => "portreeve.host=[a-z.]{0,5}[\\n\\r\u{0}\u{2028}][ -~]{0,20}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a registration says: refused with a reason, or no host beyond those that the settings allow.
    #[test]
    fn fuzz_tags(all in prop::collection::vec(prop::collection::vec(tag(), 0..6), 1..4)) {
        let exposure = exposure();
        let instances: Vec<Instance> = all
            .iter()
            .enumerate()
            .map(|(number, tags)| {
                let mut tags: Vec<&str> = tags.iter().map(String::as_str).collect();
                tags.push("portreeve.enable=true");
                instance(&format!("i{number}"), number as u64, &tags)
            })
            .collect();
        match routes(&exposure, &instances) {
            Err(problems) => prop_assert!(!problems.is_empty()),
            Ok(routes) => {
                for host in routes.iter().flat_map(|route| &route.hostnames) {
                    let below = host.strip_suffix(".apps.example.com").is_some_and(|rest| !rest.is_empty());
                    prop_assert!(below || &**host == "shop.example.com", "{host:?}");
                }
            }
        }
    }
}

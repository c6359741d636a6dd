//! Every kind of diagnostic says what, where, why and what to do.

use std::collections::BTreeSet;

use portreeve::diagnostics::{Code, Diagnostic};
use portreeve::model::{DocumentsUpdate, Observation, Problem, ProblemKind};

use super::case::{GATEWAY, NOW, good_world, said_by};
use super::cases;
use super::world;

/// What the cases of the page cannot show: it takes two gateways, another time, or a source.
fn beside_the_cases() -> Vec<(&'static str, Vec<Diagnostic>)> {
    let mut two_gateways = good_world();
    let blue = "gateway \"blue\" {\n  listener \"web\" {\n    port = 8080\n  }\n}\n";
    world::put(&mut two_gateways, [world::file("blue.hcl", blue)]);
    let mut kv_away = good_world();
    kv_away.apply(Observation::Documents(DocumentsUpdate {
        source: "portreeve/config/".into(),
        problem: Some(Problem::new(ProblemKind::Unavailable, "Consul does not answer")),
        ..DocumentsUpdate::default()
    }));
    vec![
        (
            "two gateways on one port",
            said_by(&two_gateways, &["edge", "blue"], NOW),
        ),
        (
            "a certificate near its end",
            said_by(&good_world(), &["edge"], 3_999_000_000),
        ),
        (
            "a certificate past its end",
            said_by(&good_world(), &["edge"], 4_000_000_001),
        ),
        (
            "a gateway that nobody declares",
            said_by(&good_world(), &["egde"], NOW),
        ),
        ("documents that cannot be read", said_by(&kv_away, &["edge"], NOW)),
    ]
}

#[test]
fn every_code_is_said_with_place_reason_and_fix() {
    let mut said: BTreeSet<Code> = BTreeSet::new();
    let mut lacking = Vec::new();
    let cases = cases::all();
    let of_cases = cases.iter().map(|case| (case.what, case.said()));
    for (what, diagnostics) in of_cases.chain(beside_the_cases()) {
        for diagnostic in diagnostics {
            said.insert(diagnostic.code);
            // A source of documents and the agent's own settings are no document.
            let of_a_document = !matches!(
                diagnostic.object.as_ref().map(|object| &*object.kind),
                Some("documents")
            ) && what != "a gateway that nobody declares";
            let has = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.trim().is_empty());
            let place = diagnostic
                .origin
                .as_ref()
                .is_some_and(|origin| origin.line >= 1 && !origin.document.as_str().is_empty());
            for (part, is_there) in [
                ("a place", place || !of_a_document),
                ("a message", !diagnostic.message.is_empty()),
                ("a reason", has(&diagnostic.reason)),
                ("a fix", has(&diagnostic.fix)),
            ] {
                if !is_there {
                    lacking.push(format!("{what}: no {part}: {diagnostic}"));
                }
            }
        }
    }
    assert!(lacking.is_empty(), "{}", lacking.join("\n"));
    let all: BTreeSet<Code> = Code::ALL.iter().copied().collect();
    let missing: Vec<_> = all.difference(&said).collect();
    assert!(missing.is_empty(), "no case says {missing:?}");
}

/// One service of many routes is told once, at the first, with the others counted.
#[test]
fn a_service_is_told_once_with_all_who_use_it() {
    let mut snapshot = world::empty();
    let route = |number: usize| {
        format!(
            "http_route \"r{number:03}\" {{\n  gateways  = [\"edge\"]\n  hostnames = [\"h{number}.example.com\"]\n\n  rule \"all\" {{\n    backend \"consul\" \"orders\" {{}}\n  }}\n}}\n"
        )
    };
    let elsewhere = route(999)
        .replace("\"edge\"", "\"other\"")
        .replace("r999", "r000-elsewhere");
    let mut documents = vec![
        world::file("gateway.hcl", GATEWAY),
        world::file("elsewhere.hcl", &elsewhere),
    ];
    documents.extend((0..300).map(|number| world::file(&format!("r{number}.hcl"), &route(number))));
    for (count, expected) in [
        (3, "no other"),
        (4, "also used by http_route \"r001\" (r1.hcl:6:5)"),
        (
            6,
            "also used by http_route \"r001\" (r1.hcl:6:5) and 2 more backends",
        ),
        (302, "and more than 100 others"),
    ] {
        world::put(&mut snapshot, documents[..count].iter().cloned());
        world::answer_service(&mut snapshot, &super::case::service("orders"), vec![]);
        world::answer_all(&mut snapshot, "edge");
        let mut said = said_by(&snapshot, &["edge"], NOW);
        said.retain(|diagnostic| diagnostic.code == Code::UnknownService);
        assert_eq!(said.len(), 1, "{said:#?}");
        assert_eq!(said[0].origin.as_ref().unwrap().to_string(), "r0.hcl:6:5");
        let reason = said[0].reason.as_deref().unwrap();
        match expected {
            "no other" => assert!(!reason.contains("used by"), "{reason}"),
            expected => assert!(reason.contains(expected), "{reason}"),
        }
    }
}

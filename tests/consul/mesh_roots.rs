//! Authorities of the mesh that cannot be used: those that were there before stay, and the reason is told.

use portreeve::diagnostics::Code;
use portreeve::envoy::ResourceKind;
use portreeve::model::mesh::Interest;
use portreeve::model::{MeshUpdate, Observation};
use portreeve::snapshot::Snapshot;
use portreeve::translate::Compiler;

use crate::answering::{Answer, AnsweringServer};
use crate::mesh::{LEAF, ROOTS, watching};
use crate::server::{Running, quick};
use crate::world;

const DOCUMENT: &str = r#"
gateway "edge" {
  listener "web" { port = 8080 }
}

upstream "web" {
  connect {}
}

http_route "web" {
  gateways  = ["edge"]
  hostnames = ["www.example.com"]

  rule "all" {
    backend "upstream" "web" {}
  }
}
"#;

/// What Envoy has as the authorities, and whether they are complained of.
fn served(snapshot: &Snapshot) -> (String, Vec<String>) {
    let compiler = Compiler::compile("edge", world::settings(), snapshot);
    let secrets = compiler.resources().of_kind(ResourceKind::Secret);
    let roots = secrets
        .iter()
        .find(|(name, _)| &***name == "mesh/roots")
        .map(|(_, secret)| portreeve::envoy::render_resource(secret).to_string())
        .expect("authorities");
    let said = compiler
        .diagnostics()
        .flat_map(|(_, all)| all.iter())
        .filter(|diagnostic| diagnostic.code == Code::MeshProblem)
        .map(|diagnostic| format!("{diagnostic:?}"))
        .collect();
    (roots, said)
}

/// Until the authorities' watch has spoken.
async fn roots(running: &mut Running, snapshot: &mut Snapshot) -> Result<(), String> {
    loop {
        let observation = running.next().await;
        let said = match &observation {
            Observation::Mesh(MeshUpdate::Roots(result)) => Some(match result {
                Ok(_) => Ok(()),
                Err(problem) => Err(problem.message.to_string()),
            }),
            _ => None,
        };
        snapshot.apply(observation);
        if let Some(said) = said {
            return said;
        }
    }
}

#[tokio::test]
async fn authorities_that_cannot_be_used_leave_those_of_before() {
    let server = AnsweringServer::start().await;
    server.put(ROOTS, Answer::kept("roots"));
    server.put(LEAF, Answer::kept("leaf"));
    let mut snapshot = world::empty();
    world::put(&mut snapshot, [world::file("web.hcl", DOCUMENT)]);
    world::answer_all(&mut snapshot, "edge");
    let (mut running, _watcher) = watching(&server, quick(), [Interest::Mesh]);
    let mut leaf = false;
    let mut told = 0;
    // By their own watch, and before the leaf.
    while !leaf || told < 2 {
        let observation = running.next().await;
        match &observation {
            Observation::Mesh(MeshUpdate::Leaf(Ok(_))) => leaf = true,
            Observation::Mesh(MeshUpdate::Roots(Ok(_))) => told += 1,
            other => panic!("{other:?}"),
        }
        snapshot.apply(observation);
    }
    let (good, said) = served(&snapshot);
    assert_eq!(said, [""; 0]);

    let torn = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let list =
        |roots: &str| Answer::kept("roots").with("\"Roots\":", &format!("\"Roots\":{roots},\"Left\":"));
    let no_domain = Answer::kept("roots").with(
        "\"TrustDomain\":\"11111111-2222-3333-4444-555555555555.consul\"",
        "\"TrustDomain\":\"\"",
    );
    for (index, (answer, reason)) in [
        (Answer::kept_with("roots", torn, ""), "a root is not usable"),
        (Answer::kept_with("roots", "no PEM", ""), "a root is not usable"),
        (list("[]"), "it has 0 roots"),
        (list("null"), "it has 0 roots"),
        (no_domain, "it has 2 roots for the trust domain \"\""),
    ]
    .into_iter()
    .enumerate()
    {
        server.put(ROOTS, answer.at(200 + index as u64));
        let problem = roots(&mut running, &mut snapshot).await.unwrap_err();
        assert!(problem.contains(reason), "{problem}");
        let (now, said) = served(&snapshot);
        assert_eq!(now, good, "{reason}");
        assert!(
            said.len() == 1 && said[0].contains(reason.split('"').next().unwrap()),
            "{said:?}"
        );
        // A good answer is taken at once, and ends the complaint.
        server.put(ROOTS, Answer::kept("roots").at(300 + index as u64));
        roots(&mut running, &mut snapshot).await.unwrap();
        assert_eq!(served(&snapshot), (good.clone(), Vec::new()), "{reason}");
    }
}

//! The pipeline and a scripted Envoy: what confirms a text, and what becomes of events that are lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use portreeve::config::DocumentState;
use portreeve::diagnostics::Code;
use portreeve::envoy::ResourceKind;
use portreeve::model::mesh::{Chain, ChainQuery, MeshLeaf, MeshRoots};
use portreeve::model::{
    CertificateMaterial, CertificateQuery, CertificateUpdate, Document, DocumentsUpdate, Observation,
    Problem, ProblemKind, ServiceUpdate,
};
use portreeve::pipeline::Restored;
use portreeve::xds::StreamView;

use crate::agent::{Agent, GATEWAY, answer_until, envoy, id, route, settled_envoy, starting_envoy};
use crate::harness::{Client, PATIENCE};

use ResourceKind::{Listener, ScopedRoute, Secret};

/// "Not known yet" is not "empty".
#[tokio::test]
async fn nothing_is_published_before_each_watch_has_answered() {
    let mut agent = Agent::start().await;
    let gateway = "gateway \"edge\" {\n  listener \"web\" {\n    port     = 443\n    protocol = \"https\"\n    \
                   tls {\n      certificates = [\"www\"]\n    }\n  }\n}\n\n\
                   certificate \"www\" {\n  file {\n    certificate = \"/www.pem\"\n    private_key = \"/www.key\"\n  }\n}\n";
    let shop = "http_route \"shop\" {\n  gateways  = [\"edge\"]\n  hostnames = [\"a.example.com\"]\n\n  \
                rule \"all\" {\n    backend \"consul\" \"orders\" {}\n  }\n}\n";
    agent.put(&[("gateway", gateway), ("shop", shop)]).await;
    let waiting_for = async |agent: &mut Agent, number: usize| {
        let wait = agent.view.wait_for(|view| {
            view.snapshot.config.gateway("edge").is_some() && view.gateways[0].waiting_for.len() == number
        });
        let view = tokio::time::timeout(PATIENCE, wait).await;
        let gateway = view.expect("that many watches to wait for").unwrap().gateways[0].clone();
        assert_eq!(
            gateway.published_at.is_some(),
            number == 0,
            "{:?}",
            gateway.waiting_for
        );
        gateway.waiting_for
    };
    let both = waiting_for(&mut agent, 2).await.join(", ");
    assert!(both.contains("orders") && both.contains("www"), "{both}");

    let interests = agent.interests.borrow().clone();
    let query = interests
        .services
        .keys()
        .next()
        .expect("a watched service")
        .clone();
    // No instance is an answer.
    let update = ServiceUpdate {
        query,
        result: Ok(Arc::from([])),
    };
    agent
        .observations
        .send(Observation::Service(update))
        .await
        .unwrap();
    let one = waiting_for(&mut agent, 1).await.join(", ");
    assert!(one.contains("www"), "{one}");

    let query = agent
        .view
        .borrow()
        .snapshot
        .config
        .certificate("www")
        .unwrap()
        .query
        .clone()
        .unwrap();
    let problem = Problem::new(ProblemKind::NotFound, "no such file");
    let update = CertificateUpdate {
        query,
        result: Err(problem),
    };
    agent
        .observations
        .send(Observation::Certificate(update))
        .await
        .unwrap();
    waiting_for(&mut agent, 0).await;
    agent.served.end().await;
}

/// An upstream of the mesh went while the agent was away.
#[tokio::test]
async fn what_the_disk_has_of_the_mesh_and_nobody_needs_is_forgotten() {
    let query = ChainQuery {
        service: "web".into(),
        datacenter: None,
        namespace: None,
        partition: None,
    };
    let roots = MeshRoots {
        trust_domain: "x.consul".into(),
        pem: "pem".into(),
        count: 1,
    };
    let leaf = MeshLeaf {
        service: "edge-gw".into(),
        uri: "spiffe://x.consul".into(),
        material: CertificateMaterial {
            chain: "pem".into(),
            private_key: None,
            serial: "1".into(),
            names: Vec::new(),
            not_before: 0,
            not_after: 1,
            crl: None,
        },
    };
    let restored = Restored {
        chains: vec![(query.clone(), Arc::new(Chain::plain(&query)))],
        mesh: Some((Arc::new(leaf), Arc::new(roots))),
        ..Restored::default()
    };
    let mut agent = Agent::start_from(restored).await;
    agent.put(&[("gateway", GATEWAY)]).await;
    agent
        .view_where("nothing of it is left", |view| {
            view.snapshot.chains().count() == 0 && view.snapshot.mesh().usable().is_none()
        })
        .await;
    agent.served.end().await;
}

#[tokio::test]
async fn lost_events_are_made_up_for() {
    let mut agent = Agent::start().await;
    let good = route("edge", 200);
    agent.put(&[("gateway", GATEWAY), ("shop", &good)]).await;
    let mut client = settled_envoy(&mut agent).await;

    agent.put(&[("shop", &route("edge", 201))]).await;
    let response = answer_until(&mut client, "web/a.example.com").await;
    client.answer(&response, Some("no such thing")).await;
    agent
        .served
        .view_where("refused", |view| !view.kind(ScopedRoute).refused.is_empty())
        .await;
    agent.lose_events().await;
    let state = agent
        .document_where("shop", |state| !state.problems.is_empty())
        .await;
    assert_eq!(state.problems[0].code, Code::EnvoyRejected);
    assert_eq!(*state.in_service.as_ref().unwrap().document.text, *good);
    agent.served.end().await;
}

/// As after a restart: the key is Envoy's alone. And one comes that does not have it, but nobody is told.
async fn a_lost_wish(source: &str) -> (Agent, Client, CertificateQuery) {
    let mut agent = Agent::start().await;
    let gateway = format!(
        "gateway \"edge\" {{\n  listener \"web\" {{\n    port     = 443\n    protocol = \"https\"\n    \
         tls {{\n      certificates = [\"www\"]\n    }}\n  }}\n}}\n\ncertificate \"www\" {{\n  {source}\n}}\n"
    );
    agent.put(&[("gateway", &gateway)]).await;
    let state = agent
        .document_where("gateway", |state| state.in_service.is_some())
        .await;
    assert!(state.problems.is_empty(), "{:?}", state.problems);
    let view = agent.view.borrow().clone();
    let query = view
        .snapshot
        .config
        .certificate("www")
        .unwrap()
        .query
        .clone()
        .unwrap();
    agent.certify(&query, &["www.example.com"], None).await;
    let client = envoy(&agent).await;
    client.ask(Secret, &["certificate/www"]).await;
    agent
        .served
        .view_where("the wish", |view| !view.kind(Secret).wanted.is_empty())
        .await;
    let told = tokio::time::timeout(Duration::ZERO, agent.wanted.take()).await;
    assert!(told.is_err(), "nobody was told");
    agent.lose_events().await;
    (agent, client, query)
}

#[tokio::test]
async fn a_lost_wish_for_a_key_is_made_up_for() {
    let source = "vault_pki {\n    mount       = \"pki\"\n    role        = \"edge\"\n    common_name = \"www.example.com\"\n  }";
    let (agent, _client, query) = a_lost_wish(source).await;
    let wanted = tokio::time::timeout(PATIENCE, agent.wanted.take()).await.unwrap();
    assert_eq!(wanted, BTreeSet::from([query]));
    agent.served.end().await;
}

/// Of what is read, not issued, there is no other key. That one Envoy lacks it says nothing of others, which may come back
/// with it at any time: it stays published.
#[tokio::test]
async fn a_key_that_one_envoy_lacks_stays_with_the_others() {
    let source = "file {\n    certificate = \"/www.pem\"\n    private_key = \"/www.key\"\n  }";
    let (agent, lacking, query) = a_lost_wish(source).await;
    lacking.ask(Listener, &[]).await;
    let withheld = |view: &StreamView| {
        let all = view.withheld.iter();
        all.map(|withheld| (&*withheld.name, withheld.lacks.len()))
            .collect::<Vec<_>>()
            == [("web", 1)]
    };
    agent.served.view_where("the listener withheld", withheld).await;
    let view = agent.view.borrow().clone();
    let resources = view.gateways[0].compiler.resources();
    assert!(resources.get(Listener, "web").is_some());
    let secret = resources.get(Secret, "certificate/www").unwrap();
    assert!(secret.is_held_by_envoy());
    assert!(view.snapshot.certificate(&query).unwrap().value.is_some());
    let told = tokio::time::timeout(Duration::ZERO, agent.wanted.take()).await;
    assert!(told.is_err(), "nobody can issue it");
    agent.served.end().await;
}

/// Its Envoys are elsewhere: that ours are content says nothing of it.
#[tokio::test]
async fn a_document_of_a_gateway_that_is_served_elsewhere_is_not_confirmed() {
    let mut agent = Agent::start().await;
    let (ours, theirs) = (route("edge", 200), route("inner", 200));
    let inner = GATEWAY.replace("edge", "inner");
    let documents = [
        ("gateway", GATEWAY),
        ("shop", &ours),
        ("inner", &inner),
        ("pets", &theirs),
    ];
    agent.put(&documents).await;
    let _client = settled_envoy(&mut agent).await;
    let view = agent.view.borrow().clone();
    for name in ["inner", "pets"] {
        let state = view.snapshot.config.document(&id(name)).unwrap();
        assert!(state.in_service.is_some() && state.confirmed.is_none(), "{name}");
    }
    agent.served.end().await;
}

/// Answers everything for as long as the future takes.
async fn while_answering<T>(mut client: Client, wait: impl Future<Output = T>) -> T {
    tokio::pin!(wait);
    loop {
        tokio::select! {
            outcome = &mut wait => return outcome,
            response = client.next() => client.answer(&response.unwrap(), None).await,
        }
    }
}

fn is_confirmed(state: &DocumentState) -> bool {
    state.confirmed.is_some() && state.is_confirmed()
}

/// A later refusal must not bring back the routes that were removed.
#[tokio::test]
async fn a_text_that_leaves_nothing_is_confirmed_by_the_removal() {
    let mut agent = Agent::start().await;
    agent
        .put(&[("gateway", GATEWAY), ("shop", &route("edge", 200))])
        .await;
    let client = envoy(&agent).await;
    let empty = "# nothing left\n";
    let (observations, sent) = (agent.observations.clone(), empty.to_owned());
    let wait = async {
        agent.document_where("shop", is_confirmed).await;
        let update = DocumentsUpdate {
            source: "test".into(),
            changed: vec![Document {
                id: id("shop"),
                text: sent.into(),
                order: 0,
                version: 0,
            }],
            ..DocumentsUpdate::default()
        };
        observations.send(Observation::Documents(update)).await.unwrap();
        let is_empty = |state: &DocumentState| *state.document.text == *empty && is_confirmed(state);
        agent.document_where("shop", is_empty).await
    };
    let state = while_answering(client, wait).await;
    assert_eq!(*state.confirmed.as_ref().unwrap().document.text, *empty);
    agent.served.end().await;
}

/// Envoy asks for what its listeners show: a certificate whose hosts another one serves already is no part of that.
#[tokio::test]
async fn what_no_chain_shows_is_not_published_and_what_no_envoy_runs_is_not_confirmed() {
    let mut agent = Agent::start().await;
    let gateway = "gateway \"edge\" {\n  listener \"web\" {\n    port     = 443\n    protocol = \"https\"\n    \
                   tls {\n      certificates = [\"www\", \"same\"]\n    }\n  }\n}\n";
    let certificate = |name: &str| {
        format!(
            "certificate \"{name}\" {{\n  file {{\n    certificate = \"/{name}.pem\"\n    \
             private_key = \"/{name}.key\"\n  }}\n}}\n"
        )
    };
    agent
        .put(&[
            ("gateway", gateway),
            ("www", &certificate("www")),
            ("same", &certificate("same")),
            ("shop", &route("edge", 200)),
        ])
        .await;
    agent
        .document_where("same", |state| state.in_service.is_some())
        .await;
    for name in ["www", "same"] {
        let view = agent.view.borrow().clone();
        let query = view
            .snapshot
            .config
            .certificate(name)
            .unwrap()
            .query
            .clone()
            .unwrap();
        agent.certify(&query, &["www.example.com"], Some("key")).await;
    }
    // As Envoy does it: no certificate is asked for but by the chain that shows it, no routes but by a listener that runs.
    let mut client = starting_envoy(&agent).await;
    let response = answer_until(&mut client, "web").await;
    let busy = "Error adding/updating listener(s) web: cannot bind '127.0.0.1:443': Address already in use";
    client.answer(&response, Some(busy)).await;
    agent
        .served
        .view_where("refused", |view| !view.kind(Listener).refused.is_empty())
        .await;
    agent.lose_events().await;
    let view = agent.view.borrow().clone();
    let published = view.gateways[0].compiler.resources();
    assert!(published.get(Secret, "certificate/www").is_some());
    assert!(
        published.get(Secret, "certificate/same").is_none(),
        "no chain shows it"
    );
    for name in ["gateway", "shop", "www"] {
        let state = agent.document_where(name, |_| true).await;
        assert!(state.confirmed.is_none(), "no Envoy runs with {name}");
    }
    agent.served.end().await;
}

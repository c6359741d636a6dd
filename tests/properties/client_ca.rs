//! A listener that asks clients for certificates never opens without knowing whose are good.

use std::sync::Arc;

use portreeve::diagnostics::Code;
use portreeve::envoy::{ResourceKind, render_resource};
use portreeve::model::{CertificateMaterial, CertificateQuery, ClientCaQuery, Problem, ProblemKind};
use portreeve::resolve::{Request, explain};

use super::succession::{Edge, certificate};
use super::world;

/// The listener's `tls` block: the certificate `site`, and this.
fn gateway(client_ca: &str) -> String {
    format!(
        "gateway \"edge\" {{\n  listener \"web\" {{\n    port     = 443\n    protocol = \"https\"\n\n    tls {{\n      \
         certificates = [\"site\"]\n{client_ca}\n    }}\n  }}\n}}\n"
    )
}

fn clients_of(file: &str) -> String {
    format!("      client_ca {{\n        file {{ certificate = \"/{file}.pem\" }}\n      }}")
}

fn query(file: &str) -> CertificateQuery {
    CertificateQuery::ClientCa(ClientCaQuery::File {
        certificate: format!("/{file}.pem").into(),
        crl: None,
    })
}

fn authorities(file: &str) -> Arc<CertificateMaterial> {
    Arc::new(CertificateMaterial {
        chain: format!("authorities of {file}").into(),
        private_key: None,
        ..world::material(&query(file))
    })
}

/// Lets in clients of `a`.
fn asking() -> Edge {
    let mut edge = Edge::serving();
    edge.put(&[("gateway.hcl", gateway(&clients_of("a")))]);
    assert_eq!(lets_in(&edge), Opening::Closed);
    edge.says(query("a"), Ok(authorities("a")));
    assert_eq!(lets_in(&edge), Opening::ClientsOf("a".into()));
    assert_eq!(edge.said(), []);
    edge
}

#[derive(Debug, PartialEq)]
enum Opening {
    Closed,
    Anybody,
    ClientsOf(String),
}

fn lets_in(edge: &Edge) -> Opening {
    let set = edge.compiler.resources();
    let secret = set.get(ResourceKind::Secret, "client_ca/web");
    let Some(listener) = set.get(ResourceKind::Listener, "web") else {
        assert!(secret.is_none(), "nobody asks for it");
        return Opening::Closed;
    };
    if !render_resource(listener).to_string().contains("client_ca/web") {
        assert!(secret.is_none(), "nobody asks for it");
        return Opening::Anybody;
    }
    let secret = render_resource(secret.expect("the authorities, with the listener")).to_string();
    let (_, file) = secret
        .split_once("authorities of ")
        .expect("a file's authorities");
    Opening::ClientsOf(file.chars().take_while(char::is_ascii_alphanumeric).collect())
}

/// As `explain` says it.
fn asked_of_clients(edge: &Edge) -> String {
    let gateway = edge.snapshot.config.gateway("edge").unwrap();
    let request = Request::new("GET", "www.example.com", "/", &[]);
    explain(&edge.snapshot, gateway, "https", None, &request)
        .clients
        .unwrap()
}

#[test]
fn a_listener_that_asks_anew_is_closed_until_it_is_known_for_whom() {
    let mut edge = Edge::serving();
    assert!(
        edge.compiler
            .resources()
            .get(ResourceKind::Listener, "web")
            .is_some()
    );
    edge.put(&[("gateway.hcl", gateway(&clients_of("a")))]);
    assert_eq!(lets_in(&edge), Opening::Closed);
    let said = edge.said();
    assert_eq!(said[0].0, Code::ListenerWithheld, "{said:?}");
    edge.says(
        query("a"),
        Err(Problem::new(ProblemKind::Invalid, "no CERTIFICATE block")),
    );
    assert_eq!(lets_in(&edge), Opening::Closed);
    assert_eq!(edge.said()[0].0, Code::ListenerWithheld);
    edge.says(query("a"), Ok(authorities("a")));
    assert_eq!(lets_in(&edge), Opening::ClientsOf("a".into()));
    // One that was good stays when its source fails later.
    edge.says(query("a"), Err(Problem::new(ProblemKind::Unavailable, "away")));
    assert_eq!(lets_in(&edge), Opening::ClientsOf("a".into()));
    assert_eq!(edge.said()[0].0, Code::CertificateProblem);
    edge.put(&[("gateway.hcl", gateway(""))]);
    assert_eq!(lets_in(&edge), Opening::Anybody);
}

#[test]
fn other_authorities_take_over_once_they_are_there() {
    let mut edge = asking();
    edge.put(&[("gateway.hcl", gateway(&clients_of("b")))]);
    assert_eq!(lets_in(&edge), Opening::ClientsOf("a".into()));
    assert!(edge.fetched().contains(&query("a")) && edge.fetched().contains(&query("b")));
    let said = edge.said();
    assert!(said[0].1.contains("checked as before the edit"), "{said:?}");
    assert_eq!(
        asked_of_clients(&edge),
        "must show a certificate by client_ca file /a.pem (until client_ca file /b.pem has answered)"
    );
    let expecting: Vec<_> = edge
        .compiler
        .expecting()
        .map(|id| id.as_str().to_owned())
        .collect();
    assert_eq!(expecting, ["gateway.hcl"]);
    // Edited again before the first answer.
    edge.put(&[("gateway.hcl", gateway(&clients_of("c")))]);
    assert_eq!(lets_in(&edge), Opening::ClientsOf("a".into()));
    assert!(!edge.fetched().contains(&query("b")));
    edge.says(query("c"), Ok(authorities("c")));
    assert_eq!(lets_in(&edge), Opening::ClientsOf("c".into()));
    assert_eq!(
        asked_of_clients(&edge),
        "must show a certificate by client_ca file /c.pem"
    );
    assert!(!edge.fetched().contains(&query("a")));
    assert_eq!(edge.said(), []);
    assert_eq!(edge.compiler.expecting().count(), 0);
}

#[test]
fn what_is_wrong_with_the_new_ones_keeps_nobody_in() {
    for kind in [
        ProblemKind::Invalid,
        ProblemKind::Refused,
        ProblemKind::NotFound,
        ProblemKind::Unavailable,
    ] {
        let mut edge = asking();
        edge.put(&[("gateway.hcl", gateway(&clients_of("b")))]);
        edge.says(query("b"), Err(Problem::new(kind, "of no use")));
        assert_eq!(lets_in(&edge), Opening::Closed, "{kind:?}");
        assert_eq!(edge.said()[0].0, Code::ListenerWithheld);
        assert!(!edge.fetched().contains(&query("a")));
        // And what was there before does not come back by itself.
        edge.says(query("b"), Ok(authorities("b")));
        assert_eq!(lets_in(&edge), Opening::ClientsOf("b".into()));
    }
}

#[test]
fn an_edit_that_is_taken_back_changes_nothing() {
    let mut edge = asking();
    edge.put(&[("gateway.hcl", gateway(&clients_of("b")))]);
    edge.put(&[("gateway.hcl", gateway(&clients_of("a")))]);
    assert_eq!(lets_in(&edge), Opening::ClientsOf("a".into()));
    assert!(!edge.fetched().contains(&query("b")));
    assert_eq!(edge.said(), []);
}

#[test]
fn a_listener_without_a_certificate_of_its_own_is_closed_all_the_same() {
    let mut edge = asking();
    edge.put(&[(
        "gateway.hcl",
        gateway(&clients_of("a")).replace("\"site\"", "\"lost\""),
    )]);
    // The former certificate goes on, for the same clients.
    assert_eq!(lets_in(&edge), Opening::ClientsOf("a".into()));
    edge.put(&[
        ("gateway.hcl", gateway(&clients_of("b"))),
        ("site.hcl", certificate("site", "a")),
    ]);
    edge.says(query("b"), Ok(authorities("b")));
    assert_eq!(lets_in(&edge), Opening::ClientsOf("b".into()));
}

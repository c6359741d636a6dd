//! Headers that rules and backends set, add and remove, as backend and client see them.

use crate::stack::{GATEWAY, Options, Stack};
use crate::support::backend::{Backend, Behaviour};
use crate::support::client::{Reply, Request};

const ROUTES: &str = r#"
http_route "headers" {
  gateways  = ["edge"]
  hostnames = ["headers.example.com"]

  rule "backends" {
    match { path_prefix = "/backends" }

    backend "consul" "blue" {
      request_headers {
        set    = { "x-team" = "blue" }
        add    = { "x-seen-by" = "blue" }
        remove = ["x-internal"]
      }
    }

    backend "consul" "green" {
      response_headers {
        set    = { "x-version" = "green" }
        add    = { "x-served-by" = "green" }
        remove = ["x-secret", "x-absent"]
      }
    }
  }

  rule "one-backend" {
    match { path_prefix = "/one" }

    request_headers {
      set = { "x-team" = "rule", "x-rule" = "yes" }
    }

    backend "consul" "blue" {
      request_headers {
        set = { "x-team" = "backend" }
      }
    }
  }

  rule "all" {
    request_headers {
      set    = { "x-team" = "rule", "x-client" = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "x-share" = "100%%", "x-subject" = "%DOWNSTREAM_PEER_SUBJECT%" }
      add    = { "x-seen-by" = "edge" }
      remove = ["x-internal", "x-absent"]
    }

    response_headers {
      set    = { "x-version" = "rule", "x-rule" = "%RESPONSE_CODE%" }
      add    = { "x-served-by" = "edge" }
      remove = ["x-secret"]
    }

    backend "consul" "blue" {}
  }
}
"#;

/// All values of one header, in order.
fn values<'a>(reply: &'a Reply, name: &str) -> Vec<&'a str> {
    reply
        .headers
        .get_all(name)
        .iter()
        .map(|value| value.to_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_set_added_and_removed() {
    let stack = Stack::start(Options::default()).await;
    let (blue, green) = (Backend::start("blue").await, Backend::start("green").await);
    for (name, backend) in [("blue", &blue), ("green", &green)] {
        let own = [("x-version", "7"), ("x-served-by", name), ("x-secret", "s")];
        backend.behave(Behaviour {
            headers: own.map(|(name, value)| (name.into(), value.into())).into(),
            ..Behaviour::default()
        });
        stack.register(name, backend).await;
    }
    stack.put("gateway", GATEWAY).await;
    stack.put("headers", ROUTES).await;
    let ask = |path: &str| {
        Request::get("headers.example.com", path)
            .header("x-team", "client")
            .header("x-seen-by", "client")
            .header("x-internal", "1")
            .header("x-internal", "2")
            .header("x-subject", "CN=admin")
            .header("x-rule", "client")
    };
    let reply = stack
        .until(&ask("/"), "the rule", |reply| reply.status == 200)
        .await;
    let seen = reply.json()["headers"].clone();
    for (name, value) in [
        ("x-team", Some("rule")),
        ("x-client", Some("127.0.0.1")),
        ("x-share", Some("100%")),
        // There is no certificate, and what the client says of one is not believed.
        ("x-subject", Some("")),
        ("x-seen-by", Some("client, edge")),
        ("x-internal", None),
        ("x-absent", None),
        ("x-rule", Some("client")),
    ] {
        assert_eq!(seen[name].as_str(), value, "{name} at the backend: {seen}");
    }
    for (name, expected) in [
        ("x-version", &["rule"][..]),
        ("x-rule", &["200"]),
        ("x-served-by", &["blue", "edge"]),
        ("x-secret", &[]),
    ] {
        assert_eq!(
            values(&reply, name),
            expected,
            "{name} at the client: {:?}",
            reply.headers
        );
    }

    // The nearest block holds as a whole, with a single backend too.
    let reply = stack.client().send(&ask("/one")).await.unwrap();
    let seen = reply.json()["headers"].clone();
    assert_eq!(
        (&seen["x-team"], &seen["x-rule"]),
        (&"backend".into(), &"client".into()),
        "{seen}"
    );

    let mut met = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let reply = stack.client().send(&ask("/backends")).await.unwrap();
        let seen = reply.json()["headers"].clone();
        let request = ["x-team", "x-seen-by", "x-internal"].map(|name| seen[name].as_str());
        let response = ["x-version", "x-served-by", "x-secret"].map(|name| values(&reply, name));
        let name = reply.backend().unwrap().to_owned();
        if name == "blue" {
            assert_eq!(request, [Some("blue"), Some("client, blue"), None], "{seen}");
            assert_eq!(response, [vec!["7"], vec!["blue"], vec!["s"]], "blue");
        } else {
            assert_eq!(request, [Some("client"), Some("client"), Some("1, 2")], "{seen}");
            assert_eq!(response, [vec!["green"], vec!["green", "green"], vec![]], "green");
        }
        met.insert(name);
        if met.len() == 2 {
            break;
        }
    }
    assert_eq!(met.len(), 2, "{met:?}");
}

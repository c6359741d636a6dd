//! Which of several policies holds, asked of Envoy: gateway, listener, route, rule and backend, with bundles between.

use crate::stack::{Options, Stack};
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::ports::free_port;

/// Every scope says who it is. `$OTHER` is a second listener, without a block of its own.
const DOCUMENT: &str = r#"
gateway "edge" {
  response_headers {
    set = { "x-scope" = "gateway" }
  }

  listener "web" {
    port     = $HTTP
    policies = ["of-listener"]
  }

  listener "plain" {
    port = $OTHER
  }
}

policy "of-listener" {
  response_headers {
    set = { "x-scope" = "listener" }
  }
}

policy "first" {
  response_headers {
    set = { "x-scope" = "first bundle" }
  }
}

policy "second" {
  response_headers {
    set = { "x-scope" = "second bundle" }
  }
}

http_route "inherits" {
  gateways  = ["edge"]
  hostnames = ["inherits.example.com"]

  rule "all" {
    direct_response {
      status = 200
    }
  }
}

http_route "bundles" {
  gateways  = ["edge"]
  hostnames = ["bundles.example.com"]
  policies  = ["first", "second"]

  rule "own" {
    match { path_prefix = "/own" }

    response_headers {
      set = { "x-scope" = "rule" }
    }

    policies = ["first"]

    direct_response {
      status = 200
    }
  }

  rule "bundle" {
    match { path_prefix = "/bundle" }

    policies = ["first"]

    direct_response {
      status = 200
    }
  }

  rule "off" {
    match { path_prefix = "/off" }

    response_headers { disabled = true }

    direct_response {
      status = 200
    }
  }

  rule "all" {
    direct_response {
      status = 200
    }
  }
}

http_route "block" {
  gateways  = ["edge"]
  hostnames = ["block.example.com"]
  policies  = ["first"]

  response_headers {
    set = { "x-scope" = "route" }
  }

  rule "all" {
    direct_response {
      status = 200
    }
  }
}

http_route "backends" {
  gateways  = ["edge"]
  hostnames = ["backends.example.com"]

  response_headers {
    set = { "x-scope" = "route", "x-more" = "route" }
  }

  rule "one" {
    match { path_prefix = "/one" }

    backend "consul" "blue" {
      response_headers {
        set = { "x-scope" = "backend" }
      }
    }
  }

  rule "several" {
    request_headers {
      set = { "x-to" = "rule" }
    }

    backend "consul" "blue" {
      response_headers {
        set = { "x-scope" = "blue" }
      }

      request_headers { disabled = true }
    }

    backend "consul" "green" {}

    backend "consul" "red" {
      response_headers { disabled = true }

      request_headers {
        set = { "x-to" = "red" }
      }
    }
  }
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_nearest_policy_holds() {
    let stack = Stack::start(Options::default()).await;
    let (blue, green, red) = (
        Backend::start("blue").await,
        Backend::start("green").await,
        Backend::start("red").await,
    );
    for (name, backend) in [("blue", &blue), ("green", &green), ("red", &red)] {
        stack.register(name, backend).await;
    }
    let other = free_port();
    stack
        .put("all", &DOCUMENT.replace("$OTHER", &other.to_string()))
        .await;
    let several = Request::get("backends.example.com", "/");
    stack
        .until(&several, "the backends", |reply| reply.status == 200)
        .await;
    let (web, plain) = (stack.client(), Client::http(other));
    for (client, host, path, expected) in [
        (&plain, "inherits.example.com", "/", Some("gateway")),
        (&web, "inherits.example.com", "/", Some("listener")),
        (&web, "bundles.example.com", "/", Some("second bundle")),
        (&web, "bundles.example.com", "/bundle", Some("first bundle")),
        (&web, "bundles.example.com", "/own", Some("rule")),
        (&web, "bundles.example.com", "/off", None),
        (&plain, "bundles.example.com", "/off", None),
        (&web, "block.example.com", "/", Some("route")),
        (&web, "backends.example.com", "/one", Some("backend")),
    ] {
        let reply = client.get(host, path).await;
        assert_eq!(reply.status, 200, "{host}{path}");
        assert_eq!(
            reply.header("x-scope"),
            expected,
            "{host}{path} on {}",
            client.port()
        );
    }
    // A block wins as a whole: what the route says beside does not hold.
    assert_eq!(
        web.get("backends.example.com", "/one").await.header("x-more"),
        None
    );

    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let reply = web.get("backends.example.com", "/").await;
        let backend = reply.backend().unwrap().to_owned();
        let (scope, more, to) = match &*backend {
            "blue" => (Some("blue"), None, None),
            "green" => (Some("route"), Some("route"), Some("rule")),
            _ => (None, None, Some("red")),
        };
        assert_eq!(reply.header("x-scope"), scope, "{backend}");
        assert_eq!(reply.header("x-more"), more, "{backend}");
        assert_eq!(reply.json()["headers"]["x-to"].as_str(), to, "{backend}");
        seen.insert(backend);
        if seen.len() == 3 {
            break;
        }
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}

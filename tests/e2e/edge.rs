//! Safe defaults of HTTP at the edge, each asked for through Envoy.

use std::time::Duration;

use crate::stack::{GATEWAY, Options, Stack};
use crate::support::backend::{Backend, Behaviour};
use crate::support::client::Request;

const ROUTES: &str = r#"
http_route "edge" {
  gateways  = ["edge"]
  hostnames = ["edge.example.com"]

  response_headers {
    set = { "x-route" = "%ROUTE_NAME%" }
  }

  rule "admin" {
    match { path_prefix = "/admin" }
    direct_response {
      status = 403
    }
  }

  rule "limited" {
    match { path_prefix = "/limited" }
    timeout = "300ms"
    backend "consul" "app" {}
  }

  rule "office" {
    match { path_prefix = "/office" }
    client_ip {
      allow = ["10.0.0.0/8"]
    }
    backend "consul" "app" {}
  }

  rule "moved" {
    match { path_prefix = "/old" }
    redirect {
      path_prefix = "/new"
      scheme      = "https"
      status      = 301
    }
  }

  rule "renamed" {
    match { path_prefix = "/renamed" }
    redirect { hostname = "www.example.com" }
  }

  rule "inside" {
    match { path_prefix = "/inside" }
    redirect { path_prefix = "/within" }
  }

  rule "front" {
    match { path_prefix = "/front" }
    redirect {
      hostname = "www.example.com"
      port     = 80
    }
  }

  rule "stripped" {
    match { path_prefix = "/strip" }
    rewrite { path_prefix = "/" }
    backend "consul" "app" {}
  }

  rule "app" {
    backend "consul" "app" {}
  }
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn http_at_the_edge_is_safe_by_default() {
    let stack = Stack::start(Options::default()).await;
    let backend = Backend::start("app").await;
    stack.register("app", &backend).await;
    stack.put("gateway", GATEWAY).await;
    stack.put("edge", ROUTES).await;
    let get = |path: &str| Request::get("edge.example.com", path);
    stack
        .until(&get("/"), "the route", |reply| reply.status == 200)
        .await;
    let client = stack.client();

    // Paths: what is matched is what is meant.
    for path in ["/admin", "/x/../admin", "//admin", "/./admin/x", "/admin//x"] {
        assert_eq!(client.send(&get(path)).await.unwrap().status, 403, "{path}");
    }
    for path in ["/%2fadmin", "/x%2f..%2fadmin", "/x%5c..%5cadmin"] {
        let reply = client.send(&get(path)).await.unwrap();
        assert_eq!(
            reply.status, 307,
            "{path} is sent to the path it means: {:?}",
            reply.headers
        );
        let location = reply.header("location").expect("a location").to_owned();
        let meant = location
            .split_once("edge.example.com")
            .map_or(&*location, |(_, path)| path);
        assert!(!meant.contains('%') && !meant.contains('\\'), "{location}");
        assert_eq!(client.send(&get(meant)).await.unwrap().status, 403, "{location}");
    }
    assert_eq!(
        client.send(&get("/adminx")).await.unwrap().status,
        200,
        "prefixes match whole segments"
    );
    let seen = client.send(&get("/strip/a/b?x=1")).await.unwrap().json();
    assert_eq!(
        (&seen["path"], &seen["query"]),
        (&"/a/b".into(), &"x=1".into()),
        "{seen}"
    );
    assert_eq!(client.send(&get("/strip")).await.unwrap().json()["path"], "/");
    let moved = client.send(&get("/old/a?b=c")).await.unwrap();
    assert_eq!(moved.status, 301);
    assert_eq!(
        moved.header("location"),
        Some("https://edge.example.com/new/a?b=c")
    );

    // As Gateway API has it: without a scheme the listener's port, with one the scheme's own, and 80 and 443 unnamed.
    let port = stack.http;
    for (path, location) in [
        ("/renamed", format!("http://www.example.com:{port}/renamed")),
        ("/inside/a", format!("http://edge.example.com:{port}/within/a")),
        ("/front", "http://www.example.com/front".to_owned()),
    ] {
        let reply = client.send(&get(path)).await.unwrap();
        assert_eq!(
            (reply.status, reply.header("location")),
            (302, Some(&*location)),
            "{path}"
        );
    }

    // Headers: what a client may not say.
    let forged = get("/")
        .header("x-envoy-retry-on", "5xx")
        .header("x-envoy-upstream-rq-timeout-ms", "1")
        .header("x-envoy-internal", "true")
        .header("x-envoy-attempt-count", "7")
        .header("x-envoy-is-timeout-retry", "true")
        .header("x-envoy-original-host", "forged.example.com")
        .header("forwarded", "host=forged.example.com")
        .header("x-forwarded-host", "forged.example.com")
        .header("x-forwarded-port", "81")
        .header("x-forwarded-prefix", "/forged")
        .header("x-forwarded-server", "forged")
        .header("x-real-ip", "10.1.2.3")
        .header("x-portreeve-listener", "other")
        .header("x-forwarded-for", "10.1.2.3");
    let seen = client.send(&forged).await.unwrap().json();
    let headers = seen["headers"].to_string().to_lowercase();
    for name in [
        "x-envoy-retry-on",
        "x-envoy-upstream-rq-timeout-ms",
        "x-envoy-internal",
        "x-envoy-attempt-count",
        "x-envoy-is-timeout-retry",
        "x-envoy-original-host",
        "\"forwarded\"",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-prefix",
        "x-forwarded-server",
        "x-real-ip",
        "x-portreeve-",
    ] {
        assert!(!headers.contains(name), "{name} reached the backend: {headers}");
    }
    let office = get("/office").header("x-forwarded-for", "10.1.2.3");
    assert_eq!(
        client.send(&office).await.unwrap().status,
        403,
        "X-Forwarded-For is not believed"
    );
    let raw = |request: &str| request.replace('\n', "\r\n");
    let underscore = client
        .raw(raw("GET / HTTP/1.1\nHost: edge.example.com\nx_user: root\nConnection: close\n\n").as_bytes())
        .await;
    assert!(
        underscore.unwrap().starts_with("HTTP/1.1 400"),
        "underscores in header names are refused"
    );

    // Offered with any request by some clients, and not taken up.
    let offered = "GET / HTTP/1.1\nHost: edge.example.com\nConnection: Upgrade, close\nUpgrade: TLS/1.2\n\n";
    let plain = client.raw(raw(offered).as_bytes()).await.unwrap();
    assert!(plain.starts_with("HTTP/1.1 200"), "{plain}");

    // Hosts: without case, port and trailing dot.
    for host in [
        "EDGE.example.com",
        "edge.example.com:8080",
        "Edge.Example.COM:80",
        "edge.example.com.",
    ] {
        assert_eq!(
            client.send(&Request::get(host, "/")).await.unwrap().status,
            200,
            "{host}"
        );
    }
    assert_eq!(
        client
            .send(&Request::get("other.example.com", "/"))
            .await
            .unwrap()
            .status,
        404
    );

    // Bounds.
    let many: String = (0..150).map(|number| format!("x-{number}: 1\n")).collect();
    let answer = client
        .raw(
            raw(&format!(
                "GET / HTTP/1.1\nHost: edge.example.com\n{many}Connection: close\n\n"
            ))
            .as_bytes(),
        )
        .await;
    assert!(
        answer.unwrap().starts_with("HTTP/1.1 431"),
        "more than 100 headers"
    );
    let large = "a".repeat(70 * 1024);
    let answer = client
        .raw(
            raw(&format!(
                "GET / HTTP/1.1\nHost: edge.example.com\nx-large: {large}\nConnection: close\n\n"
            ))
            .as_bytes(),
        )
        .await;
    assert!(
        answer.unwrap().starts_with("HTTP/1.1 431"),
        "more than 60 KiB of headers"
    );

    // Timeouts: none by default, the route's where it says so.
    backend.behave(Behaviour {
        delay: Duration::from_secs(2),
        ..Behaviour::default()
    });
    let late = client.send(&get("/limited")).await.unwrap();
    assert_eq!(late.status, 504);
    assert_eq!(late.header("x-portreeve-reason"), Some("timeout"));
    backend.behave(Behaviour::default());

    // A request that may have taken effect is not tried again.
    backend.behave(Behaviour {
        status: 503,
        ..Behaviour::default()
    });
    let before = backend.requests();
    assert_eq!(
        client
            .send(&Request::post("edge.example.com", "/", "order"))
            .await
            .unwrap()
            .status,
        503
    );
    assert_eq!(
        backend.requests(),
        before + 1,
        "a POST that failed is not repeated"
    );
}

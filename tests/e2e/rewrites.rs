//! What a rule makes of path and host: rewritten on the way to the backend, or sent back in a redirect.

use crate::stack::{GATEWAY, Options, Stack};
use crate::support::backend::Backend;
use crate::support::client::Request;

/// A rule each: its match, its rewrite.
const REWRITES: [(&str, &str, &str); 8] = [
    ("whole", r#"path_prefix = "/whole""#, r#"path = "/new""#),
    ("exact", r#"path = "/exact""#, r#"path = "/""#),
    ("regex", r#"path_regex = "/v[0-9]+/x""#, r#"path = "/versioned""#),
    ("prefix", r#"path_prefix = "/api""#, r#"path_prefix = "/v2""#),
    ("slash", r#"path_prefix = "/slash/""#, r#"path_prefix = "/v2/""#),
    ("strip", r#"path_prefix = "/strip""#, r#"path_prefix = "/""#),
    (
        "host",
        r#"path_prefix = "/host""#,
        r#"hostname = "orders.internal""#,
    ),
    (
        "both",
        r#"path_prefix = "/both""#,
        "hostname    = \"orders.internal\"\n      path_prefix = \"/b\"",
    ),
];

fn rule(name: &str, matching: &str, action: &str) -> String {
    format!("  rule \"{name}\" {{\n    match {{ {matching} }}\n{action}\n  }}\n")
}

fn on_host(name: &str, rules: &str) -> String {
    format!(
        "http_route \"{name}\" {{\n  gateways  = [\"edge\"]\n  hostnames = [\"{name}.example.com\"]\n\n{rules}}}\n"
    )
}

/// The second host rewrites all of its paths to below one, the third leaves them as they are.
fn rewrites() -> String {
    let one = |(name, matching, rewrite): &(&str, &str, &str)| {
        let action = format!("    rewrite {{\n      {rewrite}\n    }}\n    backend \"consul\" \"app\" {{}}");
        rule(name, matching, &action)
    };
    let several: String = REWRITES.iter().map(one).collect();
    on_host(
        "paths",
        &format!("{several}  rule \"rest\" {{\n    backend \"consul\" \"app\" {{}}\n  }}\n"),
    ) + &on_host(
        "below",
        &one(&("all", r#"path_prefix = "/""#, r#"path_prefix = "/v2""#)),
    ) + &on_host(
        "same",
        &one(&("all", r#"path_prefix = "/""#, r#"path_prefix = "/""#)),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backend_sees_the_rewritten_path_and_host() {
    let stack = Stack::start(Options::default()).await;
    let backend = Backend::start("app").await;
    stack.register("app", &backend).await;
    stack.put("gateway", GATEWAY).await;
    stack.put("rewrites", &rewrites()).await;
    stack
        .until(&Request::get("same.example.com", "/"), "the routes", |reply| {
            reply.status == 200
        })
        .await;
    for (host, sent, seen, query, seen_host) in [
        ("paths", "/whole", "/new", None, None),
        ("paths", "/whole/a/b?c=d/e&f", "/new", Some("c=d/e&f"), None),
        ("paths", "/exact?c=d", "/", Some("c=d"), None),
        ("paths", "/v12/x", "/versioned", None, None),
        ("paths", "/v12/x/y", "/v12/x/y", None, None),
        ("paths", "/api", "/v2", None, None),
        ("paths", "/api/", "/v2/", None, None),
        ("paths", "/api/a?/api=1", "/v2/a", Some("/api=1"), None),
        ("paths", "/api/api/a", "/v2/api/a", None, None),
        ("paths", "/apix", "/apix", None, None),
        ("paths", "/slash", "/v2", None, None),
        ("paths", "/slash/a", "/v2/a", None, None),
        ("paths", "/strip", "/", None, None),
        ("paths", "/strip/", "/", None, None),
        ("paths", "/strip?c=d", "/", Some("c=d"), None),
        ("paths", "/strip/a/strip/", "/a/strip/", None, None),
        ("paths", "/stripped", "/stripped", None, None),
        ("paths", "/host/a", "/host/a", None, Some("orders.internal")),
        ("paths", "/both/a", "/b/a", None, Some("orders.internal")),
        ("below", "/a/b?c=d", "/v2/a/b", Some("c=d"), None),
        ("below", "/v2/a", "/v2/v2/a", None, None),
        ("below", "/", "/v2/", None, None),
        ("same", "/", "/", None, None),
        ("same", "/a/?c=d", "/a/", Some("c=d"), None),
    ] {
        let host = format!("{host}.example.com");
        let reply = stack.client().get(&host, sent).await;
        assert_eq!(reply.status, 200, "{host}{sent}");
        let echo = reply.json();
        assert_eq!(
            (
                echo["path"].as_str(),
                echo["query"].as_str(),
                echo["headers"]["host"].as_str()
            ),
            (Some(seen), query, Some(seen_host.unwrap_or(&host))),
            "{host}{sent}"
        );
    }
}

/// The rules' own redirects: match, redirect.
const REDIRECTS: [(&str, &str, &str); 11] = [
    (
        "s301",
        r#"path = "/301""#,
        "path   = \"/moved\"\n      status = 301",
    ),
    ("s302", r#"path = "/302""#, r#"path = "/moved""#),
    (
        "s303",
        r#"path = "/303""#,
        "path   = \"/moved\"\n      status = 303",
    ),
    (
        "s307",
        r#"path = "/307""#,
        "path   = \"/moved\"\n      status = 307",
    ),
    (
        "s308",
        r#"path = "/308""#,
        "path   = \"/moved\"\n      status = 308",
    ),
    ("whole", r#"path_prefix = "/whole""#, r#"path = "/moved""#),
    ("prefix", r#"path_prefix = "/api""#, r#"path_prefix = "/v2""#),
    ("strip", r#"path_prefix = "/strip""#, r#"path_prefix = "/""#),
    (
        "host",
        r#"path_prefix = "/host""#,
        r#"hostname = "www.example.com""#,
    ),
    (
        "host-and-path",
        r#"path_prefix = "/both""#,
        "hostname    = \"www.example.com\"\n      path_prefix = \"/b\"",
    ),
    (
        "all",
        r#"path_regex = "/all/.*""#,
        "scheme   = \"https\"\n      hostname = \"www.example.com\"\n      port     = 8443\n      path     = \"/moved\"\n      status   = 308",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_names_the_new_place() {
    let stack = Stack::start(Options::default()).await;
    stack.put("gateway", GATEWAY).await;
    let one = |(name, matching, redirect): &(&str, &str, &str)| {
        rule(
            name,
            matching,
            &format!("    redirect {{\n      {redirect}\n    }}"),
        )
    };
    let several: String = REDIRECTS.iter().map(one).collect();
    let away = "hostname    = \"www.example.com\"\n      path_prefix = \"/v2\"";
    let documents =
        on_host("old", &several) + &on_host("below", &one(&("all", r#"path_prefix = "/""#, away)));
    stack.put("redirects", &documents).await;
    stack
        .until(&Request::get("below.example.com", "/"), "the routes", |reply| {
            reply.status == 302
        })
        .await;
    let old = format!("http://old.example.com:{}", stack.http);
    let www = format!("http://www.example.com:{}", stack.http);
    for (host, sent, status, location) in [
        ("old", "/301", 301, format!("{old}/moved")),
        ("old", "/302", 302, format!("{old}/moved")),
        ("old", "/303", 303, format!("{old}/moved")),
        ("old", "/307", 307, format!("{old}/moved")),
        ("old", "/308", 308, format!("{old}/moved")),
        ("old", "/whole/a?c=d", 302, format!("{old}/moved?c=d")),
        ("old", "/api/a?c=d", 302, format!("{old}/v2/a?c=d")),
        ("old", "/api", 302, format!("{old}/v2")),
        ("old", "/strip", 302, format!("{old}/")),
        ("old", "/strip/a?c=d", 302, format!("{old}/a?c=d")),
        ("old", "/host/a?c=d", 302, format!("{www}/host/a?c=d")),
        ("old", "/both/a", 302, format!("{www}/b/a")),
        (
            "old",
            "/all/a?c=d",
            308,
            "https://www.example.com:8443/moved?c=d".to_owned(),
        ),
        ("below", "/", 302, format!("{www}/v2/")),
        ("below", "/a?c=d", 302, format!("{www}/v2/a?c=d")),
    ] {
        let reply = stack.client().get(&format!("{host}.example.com"), sent).await;
        assert_eq!(
            (reply.status, reply.header("location")),
            (status, Some(&*location)),
            "{host}{sent}"
        );
    }
}

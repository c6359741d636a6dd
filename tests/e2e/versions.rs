//! The main path on every supported Envoy. They come by `make envoys`.

use std::path::{Path, PathBuf};

use crate::stack::{GATEWAY, Options, Stack, route, until};
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};

const DOCUMENT: &str = r#"
certificate "www" {
  vault_pki {
    mount       = "pki_int"
    role        = "edge"
    common_name = "www.example.com"
  }
}

http_route "www" {
  gateways  = ["edge"]
  hostnames = ["www.example.com"]

  client_ip {
    allow = ["127.0.0.0/8"]
  }

  retry {
    attempts = 1
    on       = ["connect-failure"]
  }

  rule "all" {
    response_headers {
      set = { "x-round" = "1" }
    }

    backend "consul" "orders" {}
  }
}
"#;

fn envoy(version: &str) -> PathBuf {
    let fetched = format!("target/tools/envoy-{version}/envoy");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(fetched);
    assert!(path.is_file(), "no Envoy {version}: run make envoys");
    path
}

/// A host of its own, and all hosts below another.
fn more_routes() -> (String, String) {
    let pets = route("pets", "pets.example.com", "orders");
    (route("wild", "*.example.org", "orders"), pets)
}

/// So many rules that the host is cut into branches by path.
fn many_rules() -> String {
    let rules: String = (0..40)
        .map(|at| {
            let kind = ["path", "path_prefix"][at % 2];
            format!("  rule \"r{at}\" {{\n    match {{ {kind} = \"/r{at}\" }}\n    direct_response {{ status = {} }}\n  }}\n", 240 + at)
        })
        .collect();
    format!(
        "http_route \"many\" {{\n  gateways  = [\"edge\"]\n  hostnames = [\"www.example.com\"]\n\n{rules}}}\n"
    )
}

async fn asks_for_many_rules(http: &Client, https: &Client) {
    for client in [http, https] {
        let last = Request::get("www.example.com", "/r39/below?x=1");
        until(client, &last, "the last of many rules", |reply| {
            reply.status == 279
        })
        .await;
        // Scopes are found by an exact key.
        let shouted = client.get("WWW.Example.com", "/r7/below").await;
        assert_eq!(shouted.status, 247);
        for (path, status) in [
            ("/r7/below", 247),
            ("/r8?x=1", 248),
            ("/r8/below", 200),
            ("/", 200),
        ] {
            assert_eq!(client.get("www.example.com", path).await.status, status, "{path}");
        }
    }
}

async fn main_path(version: &str, state_of_the_world: bool) {
    let mut stack = Stack::start(Options {
        vault: true,
        envoy: Some(envoy(version)),
        state_of_the_world,
        ..Options::default()
    })
    .await;
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    stack.register("orders", &one).await;
    // Before 1.38, a listener that came after Envoy's start never got its scopes by itself.
    stack.agent.wait_for_log("Envoy serves").await;
    let gateway = GATEWAY.trim_end().trim_end_matches('}').to_owned()
        + "\n  listener \"secure\" {\n    port     = $HTTPS\n    protocol = \"https\"\n    tls { certificates = [\"www\"] }\n  }\n}\n";
    stack.put("gateway", &gateway).await;
    stack.put("www", DOCUMENT).await;
    let vault = stack.vault.as_ref().unwrap();
    let root = vault.read("pki_int/cert/ca").await["data"]["certificate"]
        .as_str()
        .unwrap()
        .to_owned();
    let (http, https) = (stack.client(), Client::https(stack.https, &root));
    let request = Request::get("www.example.com", "/");
    for client in [&http, &https] {
        until(client, &request, "the main path", |reply| {
            reply.status == 200 && reply.backend() == Some("one") && reply.header("x-round") == Some("1")
        })
        .await;
    }
    stack.register("orders", &two).await;
    stack.deregister("orders", &one).await;
    until(&https, &request, "an endpoint change", |reply| {
        reply.backend() == Some("two")
    })
    .await;
    stack.put("www", &DOCUMENT.replace("\"1\" }", "\"2\" }")).await;
    until(&http, &request, "a route change", |reply| {
        reply.header("x-round") == Some("2")
    })
    .await;
    stack.put("many", &many_rules()).await;
    asks_for_many_rules(&http, &https).await;
    // Exact hosts are looked up one by one; with a wildcard among them all hosts of a listener come in one table.
    let (wild, pets) = more_routes();
    let (below, pet) = (
        Request::get("a.b.example.org", "/"),
        Request::get("pets.example.com", "/"),
    );
    stack.put("wild", &wild).await;
    stack.put("pets", &pets).await;
    for request in [&below, &pet, &request] {
        until(&http, request, "a wildcard, and the hosts beside it", |reply| {
            reply.backend() == Some("two")
        })
        .await;
    }
    assert_eq!(
        http.get("example.org", "/").await.status,
        404,
        "the wildcard is for those below"
    );
    asks_for_many_rules(&http, &https).await;
    stack.delete("many").await;
    stack.delete("www").await;
    until(&http, &request, "a deletion", |reply| reply.status == 404).await;

    stack.agent.wait_ready().await;
    let info = stack.envoy().get("/server_info").await.unwrap().json();
    let ran = info["version"].as_str().unwrap().to_owned();
    println!("Envoy {version}: {ran}");
    assert!(ran.contains(&format!("/{version}.")), "another Envoy ran: {ran}");
    let log = stack.agent.process.log();
    assert!(
        !log.contains("Envoy refused"),
        "{version} refused something:\n{log}"
    );
    refused_and_mended(&mut stack, &http, &pets).await;
    stack.delete("wild").await;
    until(&http, &below, "the wildcard's end", |reply| reply.status == 404).await;
    let pet = http.get("pets.example.com", "/").await;
    assert_eq!(
        (pet.status, pet.header("x-pets")),
        (200, Some("mended")),
        "the hosts beside the wildcard are looked up one by one again: {pet:?}"
    );
    // What a version deprecates or does not know, it says.
    let log = stack.agent.process.log();
    for complaint in ["eprecated", "unknown field"] {
        let found = log.lines().find(|line| line.contains(complaint));
        assert_eq!(found, None, "{version} complains");
    }
}

/// Envoy refuses a document: it is named, its last good version serves, the others move on.
async fn refused_and_mended(stack: &mut Stack, http: &Client, pets: &str) {
    let with = |value: &str| {
        let headers =
            format!("  response_headers {{\n    set = {{ \"x-pets\" = \"{value}\" }}\n  }}\n\n  rule");
        pets.replacen("  rule", &headers, 1)
    };
    stack.put("pets", &with("%PROTOCOL(x)%")).await;
    let line = stack.agent.wait_for_log("error[envoy-rejected]").await;
    assert!(line.contains("portreeve/config/pets:2:1"), "{line}");
    stack
        .put("birds", &route("birds", "birds.example.com", "orders"))
        .await;
    let birds = Request::get("birds.example.com", "/");
    until(http, &birds, "the others to move on", |reply| reply.status == 200).await;
    let pet = http.get("pets.example.com", "/").await;
    assert_eq!(
        (pet.status, pet.header("x-pets")),
        (200, None),
        "what Envoy last accepted serves on"
    );
    stack.put("pets", &with("mended")).await;
    let pet = Request::get("pets.example.com", "/");
    until(http, &pet, "a mended document", |reply| {
        reply.header("x-pets") == Some("mended")
    })
    .await;
}

/// Each version with both variants, as tests of their own.
macro_rules! versions {
    ($($module:ident: $version:literal),+ $(,)?) => {
        $(mod $module {
            #[tokio::test(flavor = "multi_thread")]
            async fn delta() {
                super::main_path($version, false).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn state_of_the_world() {
                super::main_path($version, true).await;
            }
        })+
    };
}

versions!(
    envoy_1_36: "1.36",
    envoy_1_37: "1.37",
    envoy_1_38: "1.38",
    envoy_1_39: "1.39",
    envoy_1_40: "1.40",
);

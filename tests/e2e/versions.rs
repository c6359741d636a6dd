//! The main path on every supported Envoy. They come by `make envoys`.

use std::path::{Path, PathBuf};

use crate::stack::{GATEWAY, Options, Stack, until};
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

async fn main_path(version: &str) {
    let mut stack = Stack::start(Options {
        vault: true,
        envoy: Some(envoy(version)),
        ..Options::default()
    })
    .await;
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    stack.register("orders", &one).await;
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
    // What a version deprecates or does not know, it says.
    for complaint in ["eprecated", "unknown field"] {
        let found = log.lines().find(|line| line.contains(complaint));
        assert_eq!(found, None, "{version} complains");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_1_36() {
    main_path("1.36").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_1_37() {
    main_path("1.37").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_1_38() {
    main_path("1.38").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_1_39() {
    main_path("1.39").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_1_40() {
    main_path("1.40").await;
}

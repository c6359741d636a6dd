//! Certificates from Vault: served, rotated under load, and never re-issued without need.

use std::time::Duration;

use crate::stack::{Options, SOON, Stack, until};
use crate::support::client::{Client, Failure, Request};
use crate::support::load::Load;
use crate::support::wait_for;

const DOCUMENT: &str = r#"
gateway "edge" {
  listener "secure" {
    port     = $HTTPS
    protocol = "https"
    tls { certificates = ["www"] }
  }
}

certificate "www" {
  vault_pki {
    mount       = "pki_int"
    role        = "edge"
    common_name = "www.example.com"
    alt_names   = ["other.example.com", "nowhere.example.com"]
    ttl         = "TTL"
  }
}

http_route "www" {
  gateways  = ["edge"]
  hostnames = ["www.example.com", "other.example.com"]

  rule "all" {
    direct_response {
      status = 200
      body   = "secure"
    }
  }
}
"#;

async fn secure(options: Options, ttl: &str) -> (Stack, Client) {
    let stack = Stack::start(Options {
        vault: true,
        ..options
    })
    .await;
    stack.put("www", &DOCUMENT.replace("TTL", ttl)).await;
    let client = stack.https_client().await;
    (stack, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn https_serves_a_certificate_from_vault_and_refuses_what_it_should() {
    let (mut stack, client) = secure(Options::default(), "72h").await;
    let request = Request::get("www.example.com", "/");
    let reply = until(&client, &request, "https", |reply| reply.status == 200).await;
    assert_eq!(reply.text(), "secure");
    // Another host on a connection opened for the first.
    let misdirected = client
        .clone()
        .sni("www.example.com")
        .send(&Request::get("other.example.com", "/"))
        .await
        .unwrap();
    assert_eq!(misdirected.status, 421);
    // A name that the certificate covers and no route serves, and one that no certificate covers.
    assert_eq!(
        client
            .send(&Request::get("nowhere.example.com", "/"))
            .await
            .unwrap()
            .status,
        404
    );
    let unknown = client.send(&Request::get("stranger.example.com", "/")).await;
    assert!(
        matches!(unknown, Err(Failure::Tls(_) | Failure::Reset(_) | Failure::Stale)),
        "an unknown SNI is refused: {unknown:?}"
    );

    // A killed agent: Envoy serves on, the next agent adopts it and issues nothing.
    let vault = stack.vault.as_ref().unwrap();
    let issued = vault.count_certificates("pki_int").await;
    let envoy = stack.envoy_pid();
    stack.agent.kill();
    assert_eq!(client.send(&request).await.unwrap().status, 200);
    let start = stack.agent.process.log_length();
    stack.agent.process.start_again();
    stack
        .agent
        .process
        .wait_for_log_after(start, "Envoy connected", SOON)
        .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(stack.envoy_pid(), envoy, "adopted, not doubled");
    assert_eq!(client.send(&request).await.unwrap().status, 200);
    assert_eq!(
        vault.count_certificates("pki_int").await,
        issued,
        "a restart issues nothing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_fails_no_handshake_delta() {
    rotation_fails_no_handshake(Options::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_fails_no_handshake_state_of_the_world() {
    rotation_fails_no_handshake(Options {
        state_of_the_world: true,
        ..Options::default()
    })
    .await;
}

/// Five rotations of a KV certificate under 50 new, fully verified TLS connections a second.
async fn rotation_fails_no_handshake(options: Options) {
    let stack = Stack::start(Options {
        vault: true,
        ..options
    })
    .await;
    let vault = stack.vault.as_ref().unwrap();
    let ca = crate::support::pki::Ca::new("rotation");
    let put = async |number: usize| {
        let pair = ca.issue(&["www.example.com"]);
        let data =
            serde_json::json!({ "certificate": pair.certificate, "private_key": pair.key, "number": number });
        vault.put_kv2("secret", "edge/www", data).await;
        pair.certificate
    };
    put(0).await;
    let document = DOCUMENT.replace("TTL", "1h");
    let start = document.find("  vault_pki {").unwrap();
    let end = start + document[start..].find("  }\n").unwrap() + 4;
    let kv = "  vault_kv {\n    mount = \"secret\"\n    path  = \"edge/www\"\n  }\n";
    stack
        .put("www", &format!("{}{kv}{}", &document[..start], &document[end..]))
        .await;
    let client = Client::https(stack.https, &ca.certificate);
    let request = Request::get("www.example.com", "/");
    until(&client, &request, "https", |reply| reply.status == 200).await;
    let load = Load::start(50, client.clone(), request.clone());
    for number in 1..=5 {
        let before = client.send(&request).await.unwrap().certificate;
        put(number).await;
        wait_for("the new certificate", SOON, async || {
            let now = client
                .send(&request)
                .await
                .map_err(|failure| anyhow::anyhow!("{failure:?}"))?
                .certificate;
            anyhow::ensure!(now != before, "still the old one");
            Ok(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let report = load.finish().await;
    println!("rotation: {report}");
    report.assert_none_lost();
    assert!(report.sent > 200, "{report}");
}

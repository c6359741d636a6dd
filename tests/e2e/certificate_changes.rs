//! Changes of what is fetched: other parameters, another certificate, a document that goes and comes. A handshake never
//! finds the port closed or a certificate of nobody.

use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;

use crate::stack::{Options, SOON, Stack, until};
use crate::support::client::{Client, Request};
use crate::support::load::Load;
use crate::support::wait_for;

const GATEWAY: &str = r#"
gateway "edge" {
  listener "secure" {
    port     = $HTTPS
    protocol = "https"
    tls { certificates = ["NAME"] }
  }
}

http_route "www" {
  gateways  = ["edge"]
  hostnames = ["www.example.com"]

  rule "all" {
    direct_response {
      status = 200
    }
  }
}
"#;

fn gateway(certificate: &str) -> String {
    GATEWAY.replace("NAME", certificate)
}

fn certificate(name: &str, role: &str, ttl: &str) -> String {
    format!(
        "certificate \"{name}\" {{\n  vault_pki {{\n    mount       = \"pki_int\"\n    role        = \"{role}\"\n    \
         common_name = \"www.example.com\"\n    ttl         = \"{ttl}\"\n  }}\n}}\n"
    )
}

async fn status_where(stack: &Stack, what: &str, expected: impl Fn(&str) -> bool) {
    wait_for(what, SOON, async || {
        let status = stack.agent.api(Method::GET, "/v1/status", "").await?.text();
        anyhow::ensure!(expected(&status), "{status}");
        Ok(())
    })
    .await;
}

async fn serves_another_than(client: &Client, before: &Option<Bytes>) -> Option<Bytes> {
    let request = Request::get("www.example.com", "/");
    let mut now = None;
    wait_for("another certificate", SOON, async || {
        let reply = client.send(&request).await;
        now = reply
            .map_err(|failure| anyhow::anyhow!("{failure:?}"))?
            .certificate;
        anyhow::ensure!(now != *before, "still the old one");
        Ok(())
    })
    .await;
    now
}

#[tokio::test(flavor = "multi_thread")]
async fn no_change_of_a_certificate_costs_a_handshake() {
    let mut stack = Stack::start(Options {
        vault: true,
        ..Options::default()
    })
    .await;
    let vault = stack.vault.take().unwrap();
    let root = vault.read("pki_int/cert/ca").await["data"]["certificate"]
        .as_str()
        .unwrap()
        .to_owned();
    let client = Client::https(stack.https, &root);
    let request = Request::get("www.example.com", "/");
    stack.put("edge", &gateway("site")).await;
    stack.put("site", &certificate("site", "edge", "72h")).await;
    let first = until(&client, &request, "https", |reply| reply.status == 200)
        .await
        .certificate;
    let load = Load::start(50, client.clone(), request.clone());

    // Other parameters.
    stack.put("site", &certificate("site", "edge", "48h")).await;
    let second = serves_another_than(&client, &first).await;

    // Parameters that bring nothing: what serves goes on serving, and status says why nothing newer comes.
    stack
        .put("site", &certificate("site", "no-such-role", "24h"))
        .await;
    status_where(&stack, "the refusal", |status| {
        status.contains("no-such-role")
            && status.contains("stays in service until it is there")
            && status.contains("\"serves_former\": \"vault_pki pki_int/sign/edge")
    })
    .await;
    assert_eq!(client.send(&request).await.unwrap().certificate, second);

    // Taken back: the key is still here, nothing is issued.
    let before = vault.count_certificates("pki_int").await;
    stack.put("site", &certificate("site", "edge", "48h")).await;
    status_where(&stack, "nothing to say", |status| {
        !status.contains("no-such-role")
    })
    .await;
    assert_eq!(client.send(&request).await.unwrap().certificate, second);
    assert_eq!(vault.count_certificates("pki_int").await, before);

    // The listener names another one, which is declared a second later.
    stack.put("edge", &gateway("next")).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(client.send(&request).await.unwrap().certificate, second);
    stack.put("next", &certificate("next", "edge", "36h")).await;
    let third = serves_another_than(&client, &second).await;

    let report = load.finish().await;
    println!("changes of a certificate: {report}");
    report.assert_none_lost();

    // Its document goes and comes back, within the minute in which nothing may be issued again.
    let before = vault.count_certificates("pki_int").await;
    stack.delete("next").await;
    wait_for("the closed port", SOON, async || {
        anyhow::ensure!(client.send(&request).await.is_err(), "still open");
        Ok(())
    })
    .await;
    stack.put("next", &certificate("next", "edge", "36h")).await;
    let reply = until(&client, &request, "https again", |reply| reply.status == 200).await;
    assert_eq!(reply.certificate, third);
    assert_eq!(vault.count_certificates("pki_int").await, before);
}

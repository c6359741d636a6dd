//! Nothing fails open: what a missing, deleted or broken policy or certificate gets, asked of Envoy.

use std::time::Duration;

use hyper::Method;
use serde_json::json;

use crate::stack::{GATEWAY, Options, SOON, Stack, until};
use crate::support::client::{Client, Failure, Request};
use crate::support::load::Load;
use crate::support::ports::free_port;
use crate::support::wait_for;

/// Answers by itself, so that a 503 can only be the gateway's.
fn respond(name: &str, host: &str, more: &str) -> String {
    format!(
        "http_route {name:?} {{\n  gateways  = [\"edge\"]\n  hostnames = [{host:?}]\n{more}\n  rule \"all\" {{\n    direct_response {{\n      status = 200\n    }}\n  }}\n}}\n"
    )
}

const OFFICE: &str = "policy \"office\" {\n  client_ip { deny = [\"203.0.113.0/24\"] }\n}\n";
const NOBODY: &str = "policy \"office\" {\n  client_ip { deny = [\"127.0.0.0/8\"] }\n}\n";

fn closed(reply: &crate::support::client::Reply) -> bool {
    reply.status == 503 && reply.header("x-portreeve-reason") == Some("policy-unresolved")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_is_missing_closes_what_names_it_and_nothing_else() {
    let stack = Stack::start(Options::default()).await;
    let other = free_port();
    let gateway = |on_gateway: &str, on_listener: &str| {
        format!(
            "gateway \"edge\" {{\n{on_gateway}\n  listener \"web\" {{\n    port = $HTTP\n{on_listener}\n  }}\n\n  listener \"other\" {{\n    port = {other}\n  }}\n}}\n"
        )
    };
    let named = "policies = [\"office\"]";
    stack.put("gateway", &gateway("", "")).await;
    stack.put("shop", &respond("shop", "shop.example.com", "")).await;
    let shop = Request::get("shop.example.com", "/");
    let (web, plain) = (stack.client(), Client::http(other));
    until(&web, &shop, "the route", |reply| reply.status == 200).await;

    // On a listener: that one is closed, the other one is not.
    stack.put("gateway", &gateway("", named)).await;
    until(&web, &shop, "the listener to close", closed).await;
    assert_eq!(plain.send(&shop).await.unwrap().status, 200);

    // On the gateway: both.
    stack.put("gateway", &gateway(named, "")).await;
    until(&plain, &shop, "the gateway to close", closed).await;
    until(&web, &shop, "the gateway to close", closed).await;

    // It appears: open, and in force.
    stack.put("office", OFFICE).await;
    until(&web, &shop, "the bundle", |reply| reply.status == 200).await;
    stack.put("office", NOBODY).await;
    until(&web, &shop, "the bundle's list", |reply| reply.status == 403).await;

    // It turns bad while it serves: its last good version stays in force.
    let start = stack.agent.process.log_length();
    stack.put("office", "policy \"office\" {\n  client_ip {").await;
    let mut stack = stack;
    stack
        .agent
        .process
        .wait_for_log_after(start, "error[syntax-error]", SOON)
        .await;
    for _ in 0..20 {
        assert_eq!(web.send(&shop).await.unwrap().status, 403);
        assert_eq!(plain.send(&shop).await.unwrap().status, 403);
    }

    // It is deleted while it serves: never a moment without it.
    stack.put("office", NOBODY).await;
    let load = Load::start_expecting(100, web.clone(), shop.clone(), |reply| {
        reply.status == 403 || closed(reply)
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    stack.delete("office").await;
    until(&web, &shop, "the deletion to close", closed).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let report = load.finish().await;
    println!("a bundle deleted under load: {report}");
    report.assert_none_lost();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_was_never_good_leaves_the_rest_alone() {
    let stack = Stack::start(Options::default()).await;
    // Bad before anything else is there.
    stack
        .put("bad", &respond("bad", "bad.example.com", "  hostname = \"x\"\n"))
        .await;
    stack.put("gateway", GATEWAY).await;
    stack.put("good", &respond("good", "good.example.com", "")).await;
    let (good, bad) = (
        Request::get("good.example.com", "/"),
        Request::get("bad.example.com", "/"),
    );
    stack
        .until(&good, "the good one", |reply| reply.status == 200)
        .await;
    assert_eq!(stack.client().send(&bad).await.unwrap().status, 404);
    stack.put("bad", &respond("bad", "bad.example.com", "")).await;
    stack
        .until(&bad, "the mended one", |reply| reply.status == 200)
        .await;
    assert_eq!(stack.client().send(&good).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_without_a_certificate_is_withheld_and_one_of_several_left_out() {
    let stack = Stack::start(Options {
        vault: true,
        ..Options::default()
    })
    .await;
    let gateway = |certificates: &str| {
        format!(
            "gateway \"edge\" {{\n  listener \"web\" {{\n    port = $HTTP\n  }}\n\n  listener \"tls\" {{\n    port     = $HTTPS\n    protocol = \"https\"\n    tls {{ certificates = [{certificates}] }}\n  }}\n}}\n"
        )
    };
    let certificates = "certificate \"www\" {\n  vault_pki {\n    mount       = \"pki_int\"\n    role        = \"edge\"\n    common_name = \"www.example.com\"\n  }\n}\n\ncertificate \"api\" {\n  vault_kv {\n    mount = \"secret\"\n    path  = \"edge/api\"\n  }\n}\n";
    stack.put("certificates", certificates).await;
    stack.put("gateway", &gateway("\"api\"")).await;
    stack.put("www", &respond("www", "www.example.com", "")).await;
    stack.put("api", &respond("api", "api.example.com", "")).await;
    let (www, api) = (
        Request::get("www.example.com", "/"),
        Request::get("api.example.com", "/"),
    );
    // Plain http serves; the https port is not opened, since its only certificate is not in Vault.
    stack.until(&www, "plain http", |reply| reply.status == 200).await;
    let vault = stack.vault.as_ref().unwrap();
    let client = stack.https_client().await;
    let refused = client.send(&www).await;
    assert!(matches!(refused, Err(Failure::Refused)), "{refused:?}");
    let asked = json!({ "url": format!("https://www.example.com:{}/", stack.https) });
    let said = stack
        .agent
        .api(Method::POST, "/v1/explain", &asked.to_string())
        .await
        .unwrap();
    assert!(
        said.text().contains("the connection is refused") && said.text().contains("no usable certificate"),
        "explain agrees: {}",
        said.text()
    );

    // With a usable one beside: that one is served, the other host's handshake is refused.
    stack.put("gateway", &gateway("\"www\", \"api\"")).await;
    until(&client, &www, "the certificate that is there", |reply| {
        reply.status == 200
    })
    .await;
    let refused = client.send(&api).await;
    assert!(
        matches!(refused, Err(Failure::Tls(_) | Failure::Reset(_) | Failure::Stale)),
        "{refused:?}"
    );

    // It arrives in Vault: served without another document.
    let issued = vault
        .write("pki_int/issue/edge", json!({ "common_name": "api.example.com" }))
        .await;
    let pair = json!({
        "certificate": issued["data"]["certificate"],
        "private_key": issued["data"]["private_key"],
    });
    vault.put_kv2("secret", "edge/api", pair).await;
    wait_for("the certificate that was missing", SOON, async || {
        let reply = client
            .send(&api)
            .await
            .map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        anyhow::ensure!(reply.status == 200);
        Ok(())
    })
    .await;
    assert_eq!(client.send(&www).await.unwrap().status, 200);
}

//! A good certificate for other names does not take away the hosts of the one in service.

use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use serde_json::Value;

use crate::lost_keys::{Files, gateway};
use crate::stack::{SOON, Stack, until};
use crate::support::client::{Client, Request};
use crate::support::load::Load;
use crate::support::pki::Ca;
use crate::support::wait_for;

const BOTH: [&str; 2] = ["www.example.com", "shop.example.com"];

async fn certificate(stack: &Stack) -> anyhow::Result<Value> {
    let status: Value = stack.agent.api(Method::GET, "/v1/status", "").await?.ok()?.json();
    Ok(status["certificates"][0].clone())
}

async fn is_kept_out(stack: &Stack) {
    wait_for("a word of the one that is not taken", SOON, async || {
        let problem = certificate(stack).await?["problem"].to_string();
        anyhow::ensure!(problem.contains("does not cover hosts"), "{problem}");
        anyhow::ensure!(problem.contains("shop.example.com"), "{problem}");
        Ok(())
    })
    .await;
}

async fn shown(client: &Client, host: &str) -> Option<Bytes> {
    let reply = until(client, &Request::get(host, "/"), host, |reply| {
        reply.status == 200
    })
    .await;
    reply.certificate
}

/// Until `www` is served with another one than this.
async fn is_taken(client: &Client, before: &Option<Bytes>) -> Option<Bytes> {
    let mut now = None;
    wait_for("the new certificate", 6 * SOON, async || {
        let reply = client.send(&Request::get("www.example.com", "/")).await;
        now = reply
            .map_err(|failure| anyhow::anyhow!("{failure:?}"))?
            .certificate;
        anyhow::ensure!(now != *before, "still the one of before");
        Ok(())
    })
    .await;
    now
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_without_the_hosts_of_the_one_in_service_is_not_taken() {
    let files = Files::new();
    let authority = Ca::new("files");
    files.put(&authority.issue(&BOTH));
    let mut stack = Stack::start(files.options()).await;
    stack.put("edge", &gateway("edge", stack.https)).await;
    let both = files.document("").replace(
        "[\"www.example.com\"]",
        "[\"www.example.com\", \"shop.example.com\"]",
    );
    stack.put("www", &both).await;
    let client = Client::https(stack.https, &authority.certificate);
    let first = shown(&client, "www.example.com").await;
    let load = Load::start(50, client.clone(), Request::get("shop.example.com", "/"));

    files.put(&authority.issue(&BOTH[..1]));
    is_kept_out(&stack).await;
    let line = stack.agent.wait_for_log("does not cover hosts").await;
    println!("not taken: {}", line.trim());
    assert!(line.contains("restart the agent"), "{line}");
    assert_eq!(shown(&client, "www.example.com").await, first);
    let metrics = stack.agent.api(Method::GET, "/metrics", "").await.unwrap().text();
    let name = "portreeve_diagnostics{severity=\"warning\",code=\"certificate-problem\"} 1.0";
    assert!(metrics.contains(name), "{metrics}");

    // A renewal of all names.
    let short = authority.issue_for(&BOTH, Duration::from_secs(20));
    files.put(&short);
    let second = is_taken(&client, &first).await;
    assert!(certificate(&stack).await.unwrap()["problem"].is_null());
    files.put(&authority.issue(&BOTH[..1]));
    is_kept_out(&stack).await;
    assert_eq!(shown(&client, "shop.example.com").await, second);
    load.finish().await.assert_none_lost();

    // Its end: of two evils the new one, which names one of the hosts.
    let third = is_taken(&client, &second).await;
    let shop = Request::get("shop.example.com", "/");
    assert!(client.send(&shop).await.is_err(), "no certificate for this name");

    // All names again, and then a host that no route needs any more.
    files.put(&authority.issue(&BOTH));
    let fourth = is_taken(&client, &third).await;
    files.put(&authority.issue(&BOTH[..1]));
    is_kept_out(&stack).await;
    stack.put("www", &files.document("")).await;
    let fifth = is_taken(&client, &fourth).await;

    // A restart takes what is there.
    stack.put("www", &both).await;
    files.put(&authority.issue(&BOTH));
    let sixth = is_taken(&client, &fifth).await;
    files.put(&authority.issue(&BOTH[..1]));
    is_kept_out(&stack).await;
    assert_eq!(shown(&client, "shop.example.com").await, sixth);
    stack.agent.restart().await;
    is_taken(&client, &sixth).await;
}

//! Documents by the hundred, broken ones among them, and one that Envoy refuses.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use serde_json::json;

use crate::course::{Course, PLAIN_RULE};
use crate::support::agent;
use crate::support::client::Request;
use crate::support::stack::{GATEWAY, route};

/// The whole tree from a directory, again and again.
#[tokio::test(flavor = "multi_thread")]
async fn gateway_replaced_by_apply() {
    let mut course = Course::begin("gateway_replaced_by_apply").await;
    let directory = crate::support::scratch_directory("apply");
    let gateway = GATEWAY.replace("$HTTP", &course.stack.http.to_string());
    for round in 0..course.rounds(3) {
        // The other text each time, as a whole.
        let remark = format!("# round {round}\n{gateway}");
        std::fs::write(directory.path().join("gateway.hcl"), remark).unwrap();
        std::fs::write(directory.path().join("shop.hcl"), course.next(PLAIN_RULE)).unwrap();
        apply(directory.path(), course.stack.consul.address()).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    course.change(PLAIN_RULE).await;
    course.recovers().await;
    course.end().await;
}

async fn apply(directory: &Path, consul: String) {
    let directory = directory.to_owned();
    let output = tokio::task::spawn_blocking(move || {
        let address = format!("-consul-address={consul}");
        let path = directory.display().to_string();
        agent::run(&directory, &["apply", "-auto-approve", &address, &path])
    });
    let output = output.await.unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Every other of the documents is broken in one way or another; the others, and what served, serve on.
#[tokio::test(flavor = "multi_thread")]
async fn half_of_the_documents_broken() {
    let mut course = Course::begin("half_of_the_documents_broken").await;
    let host = |number: u32| format!("h{number}.example.com");
    for number in 0..20 {
        let good = route(&format!("r{number}"), &host(number), "orders");
        course.stack.put(&format!("r{number}"), &good).await;
    }
    let last = Request::get(&host(19), "/");
    course
        .stack
        .until(&last, "the last route", |reply| reply.status == 200)
        .await;
    for number in (0..20).step_by(2) {
        let good = route(&format!("r{number}"), &host(number), "orders");
        let broken = match number % 5 {
            0 => good.replace("rule", "rulle"),
            1 => good.replace('}', ""),
            2 => good.replace("\"edge\"", "edge"),
            3 => good.replace("consul\"", "no-such-kind\""),
            _ => "\u{0}\u{1}".to_owned(),
        };
        course.stack.put(&format!("r{number}"), &broken).await;
    }
    course.change(PLAIN_RULE).await;
    course.recovers().await;
    for number in 0..20 {
        let reply = course.stack.client().get(&host(number), "/").await;
        assert_eq!(reply.status, 200, "{}", host(number));
    }
    course.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_documents_in_one_second() {
    let mut course = Course::begin("a_thousand_documents_in_one_second").await;
    let begun = std::time::Instant::now();
    let numbers: Vec<u32> = (0..1000).collect();
    for chunk in numbers.chunks(60) {
        let operations: Vec<_> = chunk
            .iter()
            .map(|number| {
                let text = route(&format!("d{number}"), &format!("d{number}.example.com"), "orders");
                let value = base64::engine::general_purpose::STANDARD.encode(text);
                json!({ "KV": { "Verb": "set", "Key": format!("portreeve/config/d{number}"), "Value": value } })
            })
            .collect();
        course.stack.consul.txn(json!(operations)).await;
    }
    println!("1,000 documents written in {:.1?}", begun.elapsed());
    course.change(PLAIN_RULE).await;
    course.recovers().await;
    let last = Request::get("d999.example.com", "/");
    course
        .stack
        .until(&last, "the last document", |reply| reply.status == 200)
        .await;
    // Back to where it began: what is still held then is held of nothing. Of keys that vanish at once the agent reads 256 by
    // themselves, to know that they are gone and not hidden.
    course.may_ask_once(256);
    course.stack.consul.delete_tree("portreeve/config/d").await;
    course
        .stack
        .until(&last, "the last document's end", |reply| reply.status == 404)
        .await;
    course.end().await;
}

/// Envoy refuses one change; those before and after it are served.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_among_good_changes() {
    let mut course = Course::begin("a_refusal_among_good_changes").await;
    for round in 0..course.rounds(4) {
        course.change(PLAIN_RULE).await;
        // Our own check and Envoy's differ in what they take here.
        let bad = route(
            &format!("bad{round}"),
            &format!("bad{round}.example.com"),
            "orders",
        )
        .replace(
            "  rule \"all\" {",
            "  response_headers {\n    set = { \"x-bad\" = \"%NO_SUCH_OPERATOR%\" }\n  }\n\n  rule \"all\" {",
        );
        course.stack.put(&format!("bad{round}"), &bad).await;
        course.change(PLAIN_RULE).await;
        course.recovers().await;
        // Each change costs some requests: without a pause they are as many as the machine is fast.
        course.lasts(50).await;
    }
    course.status_says("envoy-rejected").await;
    course.end().await;
}

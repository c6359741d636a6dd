//! Documents by the hundred, broken ones among them, and one that Envoy refuses.

use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::json;

use crate::course::{Course, PLAIN_RULE};
use crate::support::client::{Client, Request};
use crate::support::ports::free_port;
use crate::support::stack::{SOON, route};
use crate::support::{agent, wait_for};

/// The whole tree from a directory, again and again: each time the listener that serves has other bounds, a second one comes or
/// goes, and one document takes the place of another.
#[tokio::test(flavor = "multi_thread")]
async fn gateway_replaced_by_apply() {
    let mut course = Course::begin("gateway_replaced_by_apply").await;
    let directory = crate::support::scratch_directory("apply");
    let file = |name: &str| directory.path().join(format!("{name}.hcl"));
    let page = |round: u32| format!("page-{round}");
    let host = |round: u32| format!("page-{round}.example.com");
    let (http, more) = (course.stack.http, free_port());
    let replaced = listeners_replaced(&course).await;
    let rounds = course.rounds(3);
    for round in 0..rounds {
        let has_more = round.is_multiple_of(2);
        std::fs::write(file("gateway"), gateway(http, round, has_more.then_some(more))).unwrap();
        std::fs::write(file("shop"), course.next(PLAIN_RULE)).unwrap();
        let new = route(&page(round), &host(round), "orders");
        std::fs::write(file(&page(round)), new).unwrap();
        if round > 0 {
            std::fs::remove_file(file(&page(round - 1))).unwrap();
        }
        apply(directory.path(), course.stack.consul.address()).await;
        course.is_served().await;
        let request = Request::get(&host(round), "/");
        course
            .stack
            .until(&request, "the new document", |reply| reply.status == 200)
            .await;
        if round > 0 {
            let request = Request::get(&host(round - 1), "/");
            course
                .stack
                .until(&request, "the old document's end", |reply| reply.status == 404)
                .await;
        }
        let second = Client::http(more);
        wait_for("the second listener to follow", SOON, async || {
            let answer = second.send(&Request::get("shop.example.com", "/")).await;
            anyhow::ensure!(answer.is_ok() == has_more, "{answer:?}");
            Ok(())
        })
        .await;
    }
    // What replaces nothing proves nothing.
    let replaced = listeners_replaced(&course).await - replaced;
    assert!(
        replaced >= u64::from(rounds),
        "{replaced} listeners replaced in {rounds} rounds"
    );
    course.change(PLAIN_RULE).await;
    course.recovers().await;
    course.end().await;
}

/// Of each round its own: the listener keeps its port and its name, and nothing else.
fn gateway(port: u16, round: u32, more: Option<u16>) -> String {
    let more = more.map_or(String::new(), |more| {
        format!("\n  listener \"more\" {{\n    port = {more}\n  }}\n")
    });
    format!(
        "gateway \"edge\" {{\n  listener \"web\" {{\n    port                   = {port}\n    idle_timeout           = \
         \"{}m\"\n    max_request_headers_kb = {}\n    max_connections        = {}\n  }}\n{more}}}\n",
        60 + round,
        61 + round,
        20_000 + round,
    )
}

/// How often this Envoy took another version of a listener that it had.
async fn listeners_replaced(course: &Course) -> u64 {
    course
        .stack
        .envoy()
        .stat("listener_manager.listener_modified")
        .await
}

async fn apply(directory: &Path, consul: String) {
    let directory = directory.to_owned();
    let output = tokio::task::spawn_blocking(move || {
        let address = format!("-consul-address={consul}");
        let path = directory.display().to_string();
        agent::run(&directory, &["apply", "-auto-approve", "-prune", &address, &path])
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
    course.is_told(&["unknown-key", "rulle"]).await;
    course.is_told(&["syntax-error"]).await;
    course.change(PLAIN_RULE).await;
    course.recovers().await;
    for number in 0..20 {
        let reply = course.stack.client().get(&host(number), "/").await;
        assert_eq!(reply.status, 200, "{}", host(number));
    }
    course.end().await;
}

/// The second that they are to come in, and what Consul may take to write them: it syncs its log for each of 17 transactions.
const WRITTEN_WITHIN: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_documents_in_one_second() {
    let mut course = Course::begin("a_thousand_documents_in_one_second").await;
    let begun = Instant::now();
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
    // Written more slowly they would prove less than their name says.
    course.held_to("written_ms", begun.elapsed(), WRITTEN_WITHIN);
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
            "  response_headers {\n    set = { \"x-bad\" = \"%PROTOCOL(x)%\" }\n  }\n\n  rule \"all\" {",
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

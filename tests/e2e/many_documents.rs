//! As many documents as are taken, all of them broken; and one too many.

use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};

use crate::stack::{Options, Stack, route};
use crate::support::client::Request;
use crate::support::load::Load;
use crate::support::process::memory_kib;
use crate::support::wait_for;

/// How soon so many are read and judged by a build without optimisation, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

const MANY: usize = 99_990;

async fn write(stack: &Stack, names: std::ops::Range<usize>, text: &str) {
    let value = base64::engine::general_purpose::STANDARD.encode(text);
    let operations: Vec<Value> = names
        .map(|name| json!({ "KV": { "Verb": "set", "Key": format!("portreeve/config/tiny{name}"), "Value": value } }))
        .collect();
    for part in operations.chunks(64) {
        stack.consul.txn(Value::from(part.to_vec())).await;
    }
}

/// A good document, until its host answers.
async fn put_until_served(stack: &Stack, name: &str, what: &str) {
    let host = format!("{name}.example.com");
    stack.put(name, &route(name, &host, "orders")).await;
    let request = Request::get(&host, "/");
    let client = stack.client().timeout(Duration::from_secs(5));
    wait_for(what, PATIENCE, async || {
        let reply = client
            .send(&request)
            .await
            .map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        anyhow::ensure!(reply.status == 200, "{}", reply.status);
        Ok(())
    })
    .await;
}

/// Everything goes on being served and changed, the log stays readable, and what is too many is said and not taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_tiny_documents_harm_nothing_else() {
    let mut stack = Stack::start(Options::default()).await;
    let (_backend, shop) = stack.shop().await;
    let load = Load::start(50, stack.client(), shop.clone());
    let before = stack.agent.process.log_length();

    let begun = std::time::Instant::now();
    write(&stack, 0..MANY, "x").await;
    println!("{MANY} documents written in {:.1?}", begun.elapsed());
    put_until_served(&stack, "late", "a good document among them").await;
    println!("a good one serves after {:.1?}", begun.elapsed());
    println!("{} KiB", memory_kib(stack.agent.process.pid()));

    // One more than the bound: what was known stays, and it is said.
    write(&stack, MANY..MANY + 20, "x").await;
    let bound = "more than the 100000 that are taken";
    stack
        .agent
        .process
        .wait_for_log_after(before, bound, PATIENCE)
        .await;
    assert_eq!(stack.client().get("late.example.com", "/").await.status, 200);

    println!("bound told after {:.1?}", begun.elapsed());
    stack.consul.delete_tree("portreeve/config/tiny").await;
    put_until_served(&stack, "last", "a document after the flood").await;
    println!("over after {:.1?}", begun.elapsed());
    // In ten seconds a hundred of each of three kinds, and of each outcome of asking for an accepted text, with what they say.
    let windows = 2 + usize::try_from(begun.elapsed().as_secs()).unwrap() / 10;
    let lines = stack.agent.process.log()[before..].lines().count();
    println!("{lines} lines of log in {windows} windows");
    assert!(
        lines < 700 * windows,
        "{lines} lines of log about {MANY} documents"
    );
    load.finish().await.assert_none_lost();
}

//! Services that expose themselves stay exposed: over restarts, lost rights, and a Consul that comes back wiped.

use std::time::Duration;

use crate::exposure::{backend_of, options, tagged};
use crate::stack::{GATEWAY, Options, Stack};
use crate::support::START_LIMIT;
use crate::support::backend::Backend;
use crate::support::client::Request;
use crate::support::load::Load;

fn rules(service: &str) -> String {
    format!(
        "service_prefix \"\" {{ policy = \"{service}\" }}\nnode_prefix \"\" {{ policy = \"read\" }}\nkey_prefix \"portreeve/\" {{ policy = \"write\" }}\nsession_prefix \"\" {{ policy = \"write\" }}\n"
    )
}

/// Registrations wake the list. A poll has the rights of its beginning: the first shows the old ones, the next the new.
async fn wake_the_list(stack: &Stack, backend: &Backend, name: &str) {
    for round in 0..5 {
        stack.register(&format!("{name}-{round}"), backend).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_and_lost_rights_take_no_route_away() {
    let mut stack = Stack::start(Options {
        consul_policy: Some(rules("read")),
        ..options()
    })
    .await;
    stack.put("gateway", GATEWAY).await;
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let tags = ["portreeve", "portreeve.host=shop.example.com"];
    stack.consul.register(&tagged("orders", &one, &tags)).await;
    backend_of(&stack, "shop.example.com", "one").await;

    let load = Load::start(100, stack.client(), Request::get("shop.example.com", "/"));
    stack.agent.kill();
    stack.agent.restart().await;
    tokio::time::sleep(Duration::from_secs(1)).await;

    // Told by the first name of those that vanished.
    let vanished = |first: &str| {
        format!("the service \"{first}\" vanished from the catalog because the token may no longer read it")
    };
    let deny = async |stack: &mut Stack, name: &str, first: &str| {
        let start = stack.agent.process.log_length();
        stack
            .consul
            .change_policy(crate::stack::POLICY, &rules("deny"))
            .await;
        wake_the_list(stack, &two, name).await;
        let log = &mut stack.agent.process;
        log.wait_for_log_after(start, &vanished(first), START_LIMIT).await;
    };
    deny(&mut stack, "noise", "orders").await;

    // Rights that come back while a poll waits: it still answers with none.
    stack
        .consul
        .change_policy(crate::stack::POLICY, &rules("read"))
        .await;
    wake_the_list(&stack, &two, "more").await;
    stack
        .consul
        .register(&tagged("invoices", &two, &["portreeve"]))
        .await;
    backend_of(&stack, "invoices.apps.example.com", "two").await;

    // An agent that starts without the rights does not take its first, empty list for the truth either.
    deny(&mut stack, "again", "invoices").await;
    stack.agent.kill();
    let start = stack.agent.process.log_length();
    stack.agent.restart().await;
    let log = &mut stack.agent.process;
    log.wait_for_log_after(start, &vanished("invoices"), START_LIMIT)
        .await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    backend_of(&stack, "invoices.apps.example.com", "two").await;
    stack
        .consul
        .change_policy(crate::stack::POLICY, &rules("read"))
        .await;
    stack
        .consul
        .register(&tagged("bills", &two, &["portreeve"]))
        .await;
    crate::support::wait_for("the rights to be used", Duration::from_secs(60), async || {
        let request = Request::get("bills.apps.example.com", "/");
        let reply = stack.client().send(&request).await;
        anyhow::ensure!(reply.as_ref().is_ok_and(|reply| reply.status == 200), "{reply:?}");
        Ok(())
    })
    .await;
    load.finish().await.assert_none_lost();
}

/// Also where the agent is started again meanwhile: what can be told is told, and the rest serves from disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_the_token_may_not_see_any_more_keeps_no_other() {
    let hiding = |name: &str| format!("{}service \"{name}\" {{ policy = \"deny\" }}\n", rules("read"));
    let mut stack = Stack::start(Options {
        consul_policy: Some(rules("read")),
        ..options()
    })
    .await;
    stack.put("gateway", GATEWAY).await;
    let one = Backend::start("one").await;
    for name in ["invoices", "orders"] {
        stack.consul.register(&tagged(name, &one, &["portreeve"])).await;
        backend_of(&stack, &format!("{name}.apps.example.com"), "one").await;
    }
    let load = Load::start(100, stack.client(), Request::get("orders.apps.example.com", "/"));
    stack
        .consul
        .change_policy(crate::stack::POLICY, &hiding("orders"))
        .await;
    wake_the_list(&stack, &one, "noise").await;
    stack
        .agent
        .wait_for_log("the service \"orders\" vanished from the catalog")
        .await;
    stack
        .consul
        .register(&tagged("bills", &one, &["portreeve"]))
        .await;
    backend_of(&stack, "bills.apps.example.com", "one").await;

    stack.agent.kill();
    stack.agent.restart().await;
    stack
        .consul
        .register(&tagged("cards", &one, &["portreeve"]))
        .await;
    backend_of(&stack, "cards.apps.example.com", "one").await;
    crate::support::wait_for("all that can be known", START_LIMIT, async || {
        let status = stack
            .agent
            .api(hyper::Method::GET, "/v1/status", "")
            .await?
            .json();
        anyhow::ensure!(status["stale"] == false, "{}", status["stale"]);
        Ok(())
    })
    .await;
    stack
        .agent
        .process
        .wait_for_log("the service \"orders\" vanished from the catalog", START_LIMIT)
        .await;
    load.finish().await.assert_none_lost();
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_that_comes_back_wiped_takes_no_route_away() {
    let mut stack = Stack::start(options()).await;
    // Before the document, too: one as young as what a new Consul writes at its start would pass for deleted.
    stack.consul.grow_old().await;
    stack.put("gateway", GATEWAY).await;
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    for name in ["invoices", "orders"] {
        stack.consul.register(&tagged(name, &one, &["portreeve"])).await;
        backend_of(&stack, &format!("{name}.apps.example.com"), "one").await;
    }
    let load = Load::start(100, stack.client(), Request::get("orders.apps.example.com", "/"));
    stack.consul.kill();
    std::fs::remove_dir_all(stack.consul.directory.path().join("data")).unwrap();
    stack.consul.restart().await;
    let line = stack.agent.wait_for_log("no longer lists the service").await;
    assert!(
        line.contains("lost its state") && line.contains("1 others"),
        "{line}"
    );

    // One is registered again, by another instance; the others wait for theirs.
    stack
        .consul
        .register(&tagged("invoices", &two, &["portreeve"]))
        .await;
    crate::support::wait_for("the new instance", Duration::from_secs(60), async || {
        let request = Request::get("invoices.apps.example.com", "/");
        let reply = stack.client().send(&request).await;
        let backend = reply
            .as_ref()
            .ok()
            .and_then(|reply| reply.backend().map(str::to_owned));
        anyhow::ensure!(backend.as_deref() == Some("two"), "{reply:?}");
        Ok(())
    })
    .await;
    load.finish().await.assert_none_lost();
}

//! A listener's hosts change their form when it gets its first wildcard and when it loses its last one. The exact hosts
//! beside it notice nothing.

use std::time::Duration;

use crate::stack::{Options, Stack, route};
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::load::Load;

async fn start(state_of_the_world: bool, drain_time: &'static str) -> Stack {
    Stack::start(Options {
        state_of_the_world,
        drain_time: Some(drain_time),
        ..Options::default()
    })
    .await
}

async fn come(stack: &Stack) {
    let below = Request::get("a.b.example.org", "/");
    stack.put("wild", &route("wild", "*.example.org", "orders")).await;
    stack
        .until(&below, "a wildcard", |reply| reply.status == 200)
        .await;
}

async fn go(stack: &Stack) {
    let below = Request::get("a.b.example.org", "/");
    stack.delete("wild").await;
    stack.until(&below, "its end", |reply| reply.status == 404).await;
}

/// New connections and old ones: nothing of a listener's former form is drained meanwhile.
async fn comes_and_goes(state_of_the_world: bool) {
    let stack = start(state_of_the_world, "10m").await;
    let (_backend, shop) = stack.shop().await;
    let loads = [stack.client(), Client::http(stack.http).keep_alive()]
        .map(|client| Load::start(100, client, shop.clone()));
    for _ in 0..5 {
        come(&stack).await;
        go(&stack).await;
    }
    for load in loads {
        let report = load.finish().await;
        println!("{report}");
        report.assert_none_lost();
    }
}

/// One document, so that the one ends with the same change that brings the other, which leads elsewhere. New connections
/// and old ones: those go on with what they found.
async fn takes_over(state_of_the_world: bool) {
    let stack = start(state_of_the_world, "10m").await;
    let (_backend, _) = stack.shop().await;
    let other = Backend::start("two").await;
    stack.register("others", &other).await;
    // Both services stay known, the first by `shop`: a host whose service is new waits for it.
    stack
        .put("known", &route("known", "known.example.com", "others"))
        .await;
    stack
        .until(
            &Request::get("known.example.com", "/"),
            "the other service",
            |reply| reply.backend() == Some("two"),
        )
        .await;
    let (shop, below) = (
        Request::get("shop.example.org", "/"),
        Request::get("a.example.org", "/"),
    );
    let mut loads = None;
    for (host, service) in [("shop.example.org", "orders"), ("*.example.org", "others")].repeat(5) {
        let (status, backend) = match service {
            "orders" => (404, "one"),
            _ => (200, "two"),
        };
        stack.put("one", &route("one", host, service)).await;
        stack
            .until(&shop, "the host", |reply| reply.backend() == Some(backend))
            .await;
        stack
            .until(&below, "those beside it", |reply| reply.status == status)
            .await;
        loads.get_or_insert_with(|| {
            [stack.client(), Client::http(stack.http).keep_alive()]
                .map(|client| Load::start(100, client, shop.clone()))
        });
    }
    for load in loads.expect("two loads") {
        let report = load.finish().await;
        println!("{report}");
        report.assert_none_lost();
    }
}

/// The same where each change leads to a service that nothing else uses: what comes waits until Consul has told of it.
async fn takes_over_with_a_new_service(state_of_the_world: bool) {
    let stack = start(state_of_the_world, "10m").await;
    let (_backend, _) = stack.shop().await;
    let backends = [Backend::start("even").await, Backend::start("odd").await];
    let shop = Request::get("shop.example.org", "/");
    let forms = ["shop.example.org", "*.example.org", "*"].repeat(4);
    for at in 0..forms.len() {
        stack.register(&format!("new-{at}"), &backends[at % 2]).await;
    }
    let mut loads = None;
    for (at, host) in forms.into_iter().enumerate() {
        stack.put("one", &route("one", host, &format!("new-{at}"))).await;
        let backend = ["even", "odd"][at % 2];
        stack
            .until(&shop, "the service", |reply| reply.backend() == Some(backend))
            .await;
        loads.get_or_insert_with(|| {
            [stack.client(), Client::http(stack.http).keep_alive()]
                .map(|client| Load::start(200, client, shop.clone()))
        });
    }
    for load in loads.expect("two loads") {
        let report = load.finish().await;
        println!("{report}");
        report.assert_none_lost();
    }
}

/// Envoy has let the former form go before the next change.
async fn comes_and_goes_slowly(state_of_the_world: bool) {
    let stack = start(state_of_the_world, "1s").await;
    let (_backend, shop) = stack.shop().await;
    let drained = Duration::from_millis(2500);
    come(&stack).await;
    tokio::time::sleep(drained).await;
    go(&stack).await;
    let reply = stack.client().send(&shop).await.expect("an answer");
    assert_eq!(reply.status, 200);
    tokio::time::sleep(drained).await;
    come(&stack).await;
    let reply = stack.client().send(&shop).await.expect("an answer");
    assert_eq!(reply.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_hosts_serve_while_a_wildcard_comes_and_goes() {
    comes_and_goes(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_hosts_serve_while_a_wildcard_comes_and_goes_in_the_state_of_the_world() {
    comes_and_goes(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exact_host_and_a_wildcard_take_over_from_each_other() {
    takes_over(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exact_host_and_a_wildcard_take_over_from_each_other_in_the_state_of_the_world() {
    takes_over(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exact_host_and_a_wildcard_take_over_with_a_service_that_is_new() {
    takes_over_with_a_new_service(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exact_host_and_a_wildcard_take_over_with_a_service_that_is_new_in_the_state_of_the_world() {
    takes_over_with_a_new_service(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wildcard_comes_and_goes_where_the_former_form_was_drained() {
    comes_and_goes_slowly(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wildcard_comes_and_goes_where_the_former_form_was_drained_in_the_state_of_the_world() {
    comes_and_goes_slowly(true).await;
}

//! Several things at once.

use std::time::{Duration, Instant};

use crate::course::{Course, PATIENCE, PLAIN_RULE};
use crate::endpoints::gives_way;
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::failure::Failure;
use crate::support::line::{Line, Trouble};
use crate::support::ports::free_port;
use crate::support::stack::Options;
use crate::support::wait_for;

/// Routes are edited and instances rolled, while the line to Consul (over TLS) fails, the agent is killed and Consul restarted.
#[tokio::test(flavor = "multi_thread")]
async fn several_at_once() {
    let mut course = Course::begin_https("several_at_once").await;
    let mut before = Backend::start("several-0").await;
    course.stack.register("orders", &before).await;
    for round in 1..=course.rounds(1) {
        for _ in 0..5 {
            course.change(PLAIN_RULE).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let next = Backend::start(&format!("several-{round}")).await;
        course.stack.register("orders", &next).await;
        course.trouble(Trouble::Status(500));
        course.change(PLAIN_RULE).await;
        course.stack.agent.kill();
        course.stack.consul.kill();
        course.lasts(500).await;
        course.trouble(Trouble::None);
        course.stack.consul.restart().await;
        course.agent_returns().await;
        course.change(PLAIN_RULE).await;
        course.recovers().await;
        // Known to be seen: only now may the old one go.
        gives_way(&mut course, Instant::now(), &mut before, next).await;
    }
    course.end().await;
    before.stop().await;
}

/// Consul and Vault are both away; meanwhile Envoy dies, the next one makes way for another, and the agent is killed and comes back
/// with nothing but what it kept. What was written meanwhile (a route, a listener, an instance, a certificate of other parameters)
/// is there when what it comes from is back.
#[tokio::test(flavor = "multi_thread")]
async fn everything_at_once() {
    let options = Options {
        vault: true,
        line: Some(Line::start_tls().await),
        vault_line: Some(Line::start().await),
        ..Options::default()
    };
    let mut course = Course::begin_with("everything_at_once", options).await;
    let port = free_port();
    let mut before = Backend::start("everything-0").await;
    course.stack.register("orders", &before).await;
    for round in 1..=course.rounds(1) {
        let start = course.log_length();
        let (served, had_listener) = (course.served_epoch().await, course.more.is_some());
        course.stack.vault.as_mut().expect("a Vault").seal().await;
        course.trouble(Trouble::Silent);
        let next = Backend::start(&format!("everything-{round}")).await;
        course.stack.register("orders", &next).await;
        course.add_or_remove_listener(port);
        course.ask_for_another_certificate().await;
        course.change(PLAIN_RULE).await;
        course.kill_envoy().await;
        course.restart_envoy().await;
        // Not before Envoy: issued keys are in the agent's memory alone, and the next Envoy needs them.
        course.stack.agent.kill();
        course.stack.consul.kill();
        // Nobody is there any more, so the line closes whatever comes.
        course.trouble(Trouble::None);
        course.agent_returns().await;
        course
            .is_told_since(start, &["serving the last published state from disk"])
            .await;
        assert_eq!(course.served_epoch().await, served, "Consul is away");
        assert_eq!(has_listener(port).await.unwrap(), had_listener, "Consul is away");
        course.stack.consul.restart().await;
        let since = Instant::now();
        course.recovers().await;
        wait_for("the second listener to follow", PATIENCE, async || {
            anyhow::ensure!(has_listener(port).await? != had_listener);
            Ok(())
        })
        .await;
        course.converged(since.elapsed());
        course.is_told_since(start, &["certificate-problem"]).await;
        course.serves_the_former_certificate().await;
        course.stack.vault.as_mut().expect("a Vault").unseal().await;
        course.certificate_arrives().await;
        gives_way(&mut course, Instant::now(), &mut before, next).await;
    }
    course.end().await;
    before.stop().await;
}

/// It serves, or nobody listens there.
async fn has_listener(port: u16) -> anyhow::Result<bool> {
    match Client::http(port)
        .send(&Request::get("shop.example.com", "/"))
        .await
    {
        Ok(reply) if reply.status == 200 => Ok(true),
        Err(Failure::Refused) => Ok(false),
        other => anyhow::bail!("{other:?}"),
    }
}

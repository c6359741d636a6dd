//! An agent that keeps an Envoy is told to stop: the requests that are under way are answered first.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::stack::{GATEWAY, Options, SOON, Stack, route};
use crate::support::backend::Backend;
use crate::support::client::{Failure, Request};
use crate::support::load::{Load, Report};
use crate::support::wait_for;

/// Of the stack's Envoys.
pub const DRAIN_TIME: Duration = Duration::from_secs(2);

/// A clock for the load and one here, each read on a busy machine.
const SLACK: Duration = Duration::from_millis(100);

/// How far from the first refusal a connection may be that the port's end met in the kernel's queue: an Envoy that waits
/// for its turn on a busy machine leaves it there for a while. What Envoy works on at its own end is seconds later.
const QUEUED: Duration = Duration::from_millis(250);

/// A gateway with one route to one backend, and a request that it answers.
async fn serving(options: Options, gateway: &str) -> (Stack, Backend, Request) {
    let stack = Stack::start(options).await;
    let backend = Backend::start("one").await;
    stack.register("orders", &backend).await;
    stack.put("gateway", gateway).await;
    stack
        .put("shop", &route("shop", "shop.example.com", "orders"))
        .await;
    let request = Request::get("shop.example.com", "/");
    stack
        .until(&request, "the route", |reply| reply.status == 200)
        .await;
    (stack, backend, request)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_answers_what_is_under_way() {
    let (mut stack, _backend, request) = serving(Options::default(), GATEWAY).await;
    let envoy = stack.envoy_pid();

    let begun = Instant::now();
    let load = Load::start(100, stack.client(), request.clone());
    let kept = Load::start(50, stack.client().keep_alive(), request.clone());
    // One ends while clients are asked to leave, one after the ports are closed.
    let slow: Vec<_> = ["1000", "2000", "5000"]
        .map(|delay| {
            let (client, request) = (stack.client(), request.clone().header("x-test-delay", delay));
            tokio::spawn(async move { client.send(&request).await })
        })
        .into();
    wait_for("the slow requests", SOON, async || {
        let active = stack
            .envoy()
            .stats(r"^cluster\..*orders.*\.upstream_rq_active$")
            .await;
        anyhow::ensure!(active.values().sum::<u64>() >= 3, "{active:?}");
        Ok(())
    })
    .await;
    let told = begun.elapsed();
    stack.agent.process.signal(Signal::TERM);
    let exit = wait_for("the agent's end", 3 * SOON, async || {
        let exit = stack.agent.process.exit_status();
        exit.ok_or_else(|| anyhow::anyhow!("it still runs"))
    })
    .await;
    assert!(exit.success(), "{exit:?}");
    let alive = std::path::Path::new("/proc").join(envoy.to_string());
    assert!(!alive.exists(), "its Envoy has ended with it");
    for slow in slow {
        assert_eq!(slow.await.unwrap().map(|reply| reply.status), Ok(200));
    }
    assert_eq!(
        stack.client().send(&request).await.unwrap_err(),
        Failure::Refused,
        "nobody serves"
    );

    let closed = told + DRAIN_TIME;
    assert_only_refused(&load.finish().await, closed, "new connections");
    assert_only_refused(&kept.finish().await, closed, "kept connections");
}

/// No wrong answer, and nothing cut: requests are refused, and only once ports may be closed. Times are since the load's
/// start.
#[track_caller]
pub fn assert_only_refused(report: &Report, closed: Duration, what: &str) {
    println!("{what}, ports open until {closed:.1?} at least: {report}");
    assert!(report.ok > 50 && report.wrong_status.is_empty(), "{report}");
    let refused = report.failures.iter().filter(|failed| failed.kind == "refused");
    let first = refused.map(|failed| failed.due + failed.after).min();
    for failed in &report.failures {
        let is_late = failed.due + failed.after + SLACK >= closed;
        let is_excused = match failed.kind {
            "refused" => is_late,
            // A connection that waits in the kernel's queue when its port closes is reset: Envoy never had it.
            "reset" => is_late && first.is_some_and(|first| failed.due.abs_diff(first) <= QUEUED),
            // Closed while idle: clients send again by themselves.
            kind => kind == Failure::Stale.kind(),
        };
        assert!(is_excused, "{failed:?}, first refused at {first:?}: {report}");
    }
    let reset = report.failed.get("reset").copied().unwrap_or(0);
    assert!(reset <= 3, "more than a queue: {report}");
}

/// An Envoy outlives an agent that is killed, and the next one may serve another gateway.
#[tokio::test(flavor = "multi_thread")]
async fn the_envoy_of_a_gateway_that_is_served_no_more_is_told() {
    let mut stack = Stack::start(Options {
        arguments: vec!["-gateway=edge", "-gateway=inner"],
        ..Options::default()
    })
    .await;
    let (_backend, request) = stack.shop().await;
    stack.agent.wait_for_log("gateway=inner peer=").await;
    stack.agent.kill();
    let start = stack.agent.process.log_length();
    let arguments = &mut stack.agent.process.launch_mut().args;
    arguments.retain(|argument| argument != "-gateway=inner");
    stack.agent.restart().await;
    let said = "an Envoy of a gateway that this agent does not serve is still running";
    let line = stack.agent.process.wait_for_log_after(start, said, SOON).await;
    assert!(line.contains("gateway=inner pid="), "{line}");
    assert!(!line.contains("gateway=edge"), "{line}");
    stack.until(&request, "edge", |reply| reply.status == 200).await;
}

/// A load balancer with checks of its own hears of a stop while the ports are open.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_told_to_who_asks_for_the_health_of_the_gateway() {
    let options = Options {
        drain_time: Some("10s"),
        ..Options::default()
    };
    let gateway = GATEWAY.replacen("port", "health_check_path = \"/gateway/health\"\n    port", 1);
    let (mut stack, backend, request) = serving(options, &gateway).await;
    let client = stack.client();
    let before = backend.requests();
    for host in ["shop.example.com", "10.0.0.1", "nobody.example.com"] {
        for path in ["/gateway/health", "/gateway/health?from=balancer"] {
            let health = client.send(&Request::get(host, path)).await;
            assert_eq!(health.unwrap().status, 200, "{host}{path}");
        }
    }
    assert_eq!(backend.requests(), before, "no route has it");

    stack.agent.process.signal(Signal::TERM);
    let health = Request::get("10.0.0.1", "/gateway/health");
    wait_for("a health check that fails", SOON, async || {
        let status = client.send(&health).await.unwrap().status;
        anyhow::ensure!(status == 503, "{status}");
        Ok(())
    })
    .await;
    let mut stay = 0;
    for _ in 0..10 {
        let reply = client.send(&request).await.unwrap();
        assert_eq!(reply.status, 200, "it serves on");
        let header = reply
            .headers
            .keys()
            .find(|name| name.as_str().starts_with("x-envoy-"));
        assert_eq!(header, None, "for an Envoy in front that would be an order");
        stay += usize::from(reply.header("connection") != Some("close"));
    }
    assert!(stay > 0, "connections leave one after the other, not all at once");
}

/// It is served, and looks like one that the system keeps. It is not.
#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_that_nobody_supervises_any_more_is_told() {
    let mut stack = Stack::start(Options::default()).await;
    let (_backend, request) = stack.shop().await;
    let pid = stack.envoy_pid();
    stack.agent.kill();
    let settings = stack.data.with_file_name("portreeve.hcl");
    let text = std::fs::read_to_string(&settings).unwrap();
    let key = "supervise       = ";
    std::fs::write(
        &settings,
        text.replace(&format!("{key}true"), &format!("{key}false")),
    )
    .unwrap();
    let start = stack.agent.process.log_length();
    stack.agent.restart().await;
    let said = "an Envoy that a former agent supervised is still running";
    let line = stack.agent.process.wait_for_log_after(start, said, SOON).await;
    for part in [
        &format!("gateway=edge pid={pid}"),
        "`portreeve envoy drain -gateway edge -runtime-dir ",
        &format!("`kill {pid}`"),
    ] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    stack.until(&request, "edge", |reply| reply.status == 200).await;
}

//! What signals do to a running agent.

use std::time::Duration;

use rustix::process::Signal;

use crate::central::{Central, EDGE, request};
use crate::stack::{Options, SOON, Stack};
use crate::support::backend::Behaviour;
use crate::support::wait_for;

/// While a drain goes on, a second signal ends it: with an error, since requests are cut.
async fn a_second_signal(first: Signal, second: Signal) {
    let mut stack = Stack::start(Options::default()).await;
    let (backend, shop) = stack.shop().await;
    let envoy = stack.envoy_pid();
    // Longer than a drain waits for.
    backend.behave(Behaviour {
        delay: Duration::from_secs(120),
        ..Behaviour::default()
    });
    let (client, before) = (
        stack.client().timeout(Duration::from_secs(180)),
        backend.requests(),
    );
    let slow = tokio::spawn(async move { client.send(&shop).await });
    wait_for("the slow request", SOON, async || {
        anyhow::ensure!(backend.requests() > before);
        Ok(())
    })
    .await;

    stack.agent.process.signal(first);
    stack.agent.wait_for_log("draining Envoy").await;
    assert!(stack.agent.process.is_running() && !slow.is_finished());
    stack.agent.process.signal(second);
    stack
        .agent
        .wait_for_log("caught a second signal, ending at once")
        .await;
    let status = stack.agent.process.wait_exit(Duration::from_secs(60)).unwrap();
    assert_eq!(status.code(), Some(1), "{status:?}");
    let cut = slow.await.unwrap();
    assert!(cut.is_err(), "the drain was waited for: {cut:?}");
    let gone = !std::path::Path::new(&format!("/proc/{envoy}")).exists();
    assert!(gone, "Envoy {envoy} goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_while_draining_ends_at_once() {
    a_second_signal(Signal::TERM, Signal::TERM).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_after_sigterm_ends_at_once() {
    a_second_signal(Signal::TERM, Signal::INT).await;
}

/// Both are there before the first of them is taken up.
#[tokio::test(flavor = "multi_thread")]
async fn two_signals_at_once_leave_an_envoy_that_is_to_be_left() {
    let mut stack = Stack::start(Options {
        leave_envoy: true,
        ..Options::default()
    })
    .await;
    let (_backend, shop) = stack.shop().await;
    let envoy = stack.envoy_pid();
    // Which of two is looked at first was drawn by lot.
    for _ in 0..4 {
        stack.agent.process.signal(Signal::TERM);
        stack.agent.process.signal(Signal::INT);
        stack.agent.process.wait_exit(Duration::from_secs(60)).unwrap();
        stack
            .until(&shop, "Envoy alone", |reply| reply.status == 200)
            .await;
        let start = stack.agent.process.log_length();
        stack.agent.process.start_again();
        stack
            .agent
            .process
            .wait_for_log_after(start, "Envoy connected", SOON)
            .await;
        assert_eq!(stack.envoy_pid(), envoy, "adopted");
    }
}

/// New files of the xDS port are taken up by SIGHUP, the authority of the clients included; bad ones are not.
#[tokio::test(flavor = "multi_thread")]
async fn sighup_takes_up_the_certificate_of_the_xds_port() {
    let mut central = Central::start().await;
    let pair = central.ca.issue(&[EDGE]);
    let (_first, _) = central.run("remote-1", "edge", &pair, "delta");
    central.serves("the first Envoy").await;

    // Files that cannot be used change nothing: whoever comes now is let in by the old ones.
    central.write_own("agent.pem", "nonsense");
    central.stack.agent.reload();
    central
        .stack
        .agent
        .wait_for_log("new TLS settings are not usable: keeping the old ones")
        .await;
    let (second, _) = central.run("remote-2", "edge", &pair, "delta");
    connected(&central, "remote-2").await;
    drop(second);

    // An Envoy of the next authority is refused by the old files, and refuses them.
    central.rotate();
    let pair = central.ca.issue(&[EDGE]);
    let (_third, _) = central.run("remote-3", "edge", &pair, "delta");
    central
        .stack
        .agent
        .wait_for_log("TLS handshake with an Envoy failed")
        .await;
    assert!(!central.envoys().await.contains("remote-3"));
    central.stack.agent.reload();
    connected(&central, "remote-3").await;
    central
        .stack
        .until(&request(), "an answer", |reply| reply.status == 200)
        .await;
}

async fn connected(central: &Central, node: &str) {
    wait_for(node, Duration::from_secs(30), async || {
        let envoys = central.envoys().await;
        anyhow::ensure!(envoys.contains(node), "{envoys}");
        Ok(())
    })
    .await;
}

//! What signals do to a running agent.

use std::time::Duration;

use hyper::Method;
use rustix::process::Signal;

use crate::central::{AGENT, Central, EDGE, request};
use crate::stack::{Options, SOON, Stack};
use crate::support::backend::Behaviour;
use crate::support::pki::{Ca, Pair};
use crate::support::process::Process;
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

async fn with_an_envoy() -> (Central, Pair, Process) {
    let central = Central::start().await;
    let pair = central.ca.issue(&[EDGE]);
    let (envoy, _) = central.run("remote-1", "edge", &pair, "delta");
    central.serves("the first Envoy").await;
    (central, pair, envoy)
}

/// Other files are taken up by SIGHUP, the authority of the clients included; ones that cannot be used are not.
#[tokio::test(flavor = "multi_thread")]
async fn sighup_takes_up_the_certificate_of_the_xds_port() {
    let (mut central, pair, _first) = with_an_envoy().await;

    // Files that cannot be used change nothing: whoever comes now is let in by the old ones.
    let next = Ca::new("next envoys");
    let own = next.issue(&[AGENT]);
    for (name, certificate) in [
        ("nonsense", "nonsense"),
        ("mismatch", &*next.issue(&[AGENT]).certificate),
    ] {
        central.write_own(&format!("{name}-ca.pem"), &next.certificate);
        central.write_own(&format!("{name}.pem"), certificate);
        central.write_own(&format!("{name}.key"), &own.key);
        central.name_own_files(name);
        let start = central.stack.agent.process.log_length();
        central.stack.agent.reload();
        let said = "the old certificate and clients of the xDS port stay";
        let agent = &mut central.stack.agent.process;
        let line = agent.wait_for_log_after(start, said, SOON).await;
        for part in ["ERROR", &format!("{name}.pem"), &format!("{name}.key")] {
            assert!(line.contains(part), "no {part} in {line}");
        }
    }
    let (second, _) = central.run("remote-2", "edge", &pair, "delta");
    connected(&central, "remote-2").await;
    drop(second);

    // An Envoy of the next authority is refused by the old files, and refuses them, whatever the settings name by now.
    central.write_own("next-ca.pem", &next.certificate);
    central.write_own_pair("next", &own);
    central.name_own_files("next");
    central.ca = next;
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

/// A new connection sees the new certificate, and nobody told the agent of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_certificate_of_the_xds_port_is_taken_up_by_itself() {
    let (mut central, pair, _first) = with_an_envoy().await;
    let in_a_day = ends(&central).await;

    // Certificate and key are two files, and there is time between their two writes.
    let next = central
        .ca
        .issue_between(&[AGENT], Duration::from_secs(7200), Duration::from_secs(3600));
    central.write_own("agent.pem", &next.certificate);
    let said = "changed files of the xDS port (xds.tcp) are not used, those before stay";
    let line = central.stack.agent.wait_for_log(said).await;
    for part in ["WARN", "agent.pem", "not usable together", "fix="] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    let (second, _) = central.run("remote-2", "edge", &pair, "delta");
    connected(&central, "remote-2").await;
    drop(second);
    let status = central.stack.agent.api(Method::GET, "/v1/status", "").await;
    let status = status.unwrap().text();
    assert!(status.contains("not usable together"), "{status}");
    central.write_own("agent.key", &next.key);
    central
        .stack
        .agent
        .wait_for_log("the certificate of the xDS port was read again")
        .await;
    // It is in its last third already.
    let line = central.stack.agent.wait_for_log("a credential ends soon").await;
    assert!(line.contains("agent.pem"), "{line}");
    assert!(ends(&central).await < in_a_day);

    // All three, by another authority, which an Envoy of it takes for the agent's.
    central.rotate();
    let pair = central.ca.issue(&[EDGE]);
    let (_third, _) = central.run("remote-3", "edge", &pair, "delta");
    connected(&central, "remote-3").await;
    central
        .stack
        .until(&request(), "an answer", |reply| reply.status == 200)
        .await;
}

/// Files that are of no use cost nothing, and once the ones in use are back nothing is said of them any more.
#[tokio::test(flavor = "multi_thread")]
async fn files_of_the_xds_port_that_went_or_ended_are_forgotten_when_the_right_ones_are_back() {
    let (mut central, pair, _first) = with_an_envoy().await;
    let good = central.ca.issue(&[AGENT]);
    central.write_own_pair("agent", &good);
    let taken_up = "the certificate of the xDS port was read again";
    central.stack.agent.wait_for_log(taken_up).await;

    // Away with its directory, and back as it was.
    let (file, away) = (
        central.files.path().join("agent.pem"),
        central.files.path().join("away"),
    );
    std::fs::rename(&file, &away).unwrap();
    let said = "changed files of the xDS port (xds.tcp) are not used, those before stay";
    let line = central.stack.agent.wait_for_log(said).await;
    assert!(line.contains("agent.pem: cannot be read"), "{line}");
    assert!(problem_of_xds(&central).await.is_some());
    std::fs::rename(&away, &file).unwrap();
    until_in_order(&central).await;

    // Somebody puts one back that has ended.
    let ended = central
        .ca
        .issue_between(&[AGENT], Duration::from_secs(3600), Duration::from_secs(1));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let start = central.stack.agent.process.log_length();
    central.write_own_pair("agent", &ended);
    let agent = &mut central.stack.agent.process;
    let line = agent.wait_for_log_after(start, "expired at", SOON).await;
    for part in ["WARN", said, "agent.pem", "fix="] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    let (_second, _) = central.run("remote-2", "edge", &pair, "delta");
    connected(&central, "remote-2").await;
    central.write_own_pair("agent", &good);
    until_in_order(&central).await;
}

async fn problem_of_xds(central: &Central) -> Option<String> {
    let status = central.stack.agent.api(Method::GET, "/v1/status", "").await;
    let status = status.unwrap().json();
    let sources = status["sources"].as_array().unwrap();
    let source = sources
        .iter()
        .find(|source| source["name"] == "xds certificate")
        .unwrap_or_else(|| panic!("{status:#}"));
    source["problem"].as_str().map(str::to_owned)
}

async fn until_in_order(central: &Central) {
    wait_for("no problem with the files", SOON, async || {
        let problem = problem_of_xds(central).await;
        anyhow::ensure!(problem.is_none(), "{problem:?}");
        Ok(())
    })
    .await;
}

/// A file system that hangs: nobody writes to the pipe.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_hangs_keeps_no_agent_from_stopping() {
    let (mut central, _, _envoy) = with_an_envoy().await;
    for file in ["pipe-ca.pem", "pipe.pem", "pipe.key"] {
        let path = central.files.path().join(file);
        let made = std::process::Command::new("mkfifo").arg(path).status();
        assert!(made.unwrap().success());
    }
    central.name_own_files("pipe");
    central.stack.agent.reload();
    tokio::time::sleep(Duration::from_secs(2)).await;
    central.serves("Envoy while a reload hangs").await;
    assert_eq!(problem_of_xds(&central).await, None);
    central.stack.agent.terminate();
    let log = central.stack.agent.process.log();
    assert!(log.contains("told to stop"), "{log}");
}

/// In Unix seconds, by the metric.
async fn ends(central: &Central) -> f64 {
    let metrics = central
        .stack
        .agent
        .api(Method::GET, "/metrics", "")
        .await
        .unwrap()
        .text();
    let name = "portreeve_credential_expiry_timestamp_seconds{credential=\"xds certificate\"} ";
    let value = metrics.lines().find_map(|line| line.strip_prefix(name));
    value
        .unwrap_or_else(|| panic!("no {name} in {metrics}"))
        .parse()
        .unwrap()
}

async fn connected(central: &Central, node: &str) {
    wait_for(node, Duration::from_secs(30), async || {
        let envoys = central.envoys().await;
        anyhow::ensure!(envoys.contains(node), "{envoys}");
        Ok(())
    })
    .await;
}

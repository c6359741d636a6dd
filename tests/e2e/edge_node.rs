//! The default on a node: an agent, and an Envoy that the system started. The command lines are those of the systemd units.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hyper::Method;
use rustix::process::Signal;

use crate::stack::{Options, SOON, Stack, route, until};
use crate::stopping::{DRAIN_TIME, assert_only_refused};
use crate::support::backend::Backend;
use crate::support::client::{Client, Failure, Request};
use crate::support::load::Load;
use crate::support::process::{Launch, Process};
use crate::support::wait_for;

/// Of a unit's `ExecStart` or `ExecStop`: the arguments, with this stack's settings in place of the installed ones.
fn arguments(stack: &Stack, unit: &str, key: &str) -> Vec<String> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs/deploy")
        .join(unit);
    let text = std::fs::read_to_string(&path).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{key}=")));
    let mut words = line
        .unwrap_or_else(|| panic!("no {key} in {unit}"))
        .split_whitespace();
    assert_eq!(words.next(), Some("/usr/local/bin/portreeve"), "{unit}");
    let (settings, data) = (
        settings(stack).display().to_string(),
        stack.data.display().to_string(),
    );
    words
        .map(|word| word.replace("/etc/portreeve.d/portreeve.hcl", &settings))
        .map(|word| word.replace("/opt/portreeve/data", &data))
        .collect()
}

fn settings(stack: &Stack) -> PathBuf {
    stack.data.with_file_name("portreeve.hcl")
}

fn envoy_unit(stack: &Stack, key: &str) -> Launch {
    unit(stack, "portreeve-envoy.service", key)
}

fn unit(stack: &Stack, unit: &str, key: &str) -> Launch {
    let name = match key {
        "ExecStart" => "envoy",
        _ => unit.trim_end_matches(".service"),
    };
    let directory = stack.data.parent().unwrap();
    Launch::new(name, env!("CARGO_BIN_EXE_portreeve"), directory).args(arguments(stack, unit, key))
}

fn shop() -> Request {
    Request::get("shop.example.com", "/")
}

async fn serves_from(client: &Client, backend: &str) {
    until(client, &shop(), backend, |reply| reply.backend() == Some(backend)).await;
}

const DOCUMENTS: &str = r#"
gateway "edge" {
  listener "web" {
    port = $HTTP
  }

  listener "secure" {
    port     = $HTTPS
    protocol = "https"
    tls { certificates = ["shop"] }
  }
}

certificate "shop" {
  vault_pki {
    mount       = "pki_int"
    role        = "edge"
    common_name = "shop.example.com"
  }
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn agent_and_envoy_come_and_go_apart_from_each_other() {
    let mut stack = Stack::start(Options {
        no_envoy: true,
        vault: true,
        ..Options::default()
    })
    .await;
    let started = stack.agent.process.launch_mut().args.clone();
    let unit = arguments(&stack, "portreeve.service", "ExecStart");
    assert!(
        started.iter().eq(unit.iter().map(AsRef::<OsStr>::as_ref)),
        "{started:?} is not the unit's {unit:?}"
    );
    let (one, two, three) = (
        Backend::start("one").await,
        Backend::start("two").await,
        Backend::start("three").await,
    );
    stack.register("orders", &one).await;
    stack.put("gateway", DOCUMENTS).await;
    stack
        .put("shop", &route("shop", "shop.example.com", "orders"))
        .await;
    let mut envoy = envoy_unit(&stack, "ExecStart").start();
    let vault = stack.vault.as_ref().unwrap();
    let root = vault.read("pki_int/cert/ca").await["data"]["certificate"].clone();
    let https = Client::https(stack.https, root.as_str().unwrap());
    serves_from(&stack.client(), "one").await;
    serves_from(&https, "one").await;
    stack.agent.wait_ready().await;
    let connected = stack.agent.api(Method::GET, "/v1/envoys", "").await.unwrap();
    assert!(connected.text().contains("node-1/edge"), "{}", connected.text());

    envoy_is_stopped_and_started(&stack, &https, &mut envoy).await;

    // It ends without being asked: the system starts it again, the agent gives it everything.
    envoy.kill();
    envoy.start_again();
    serves_from(&stack.client(), "one").await;
    serves_from(&https, "one").await;

    // The agent dies and comes back, and its changes arrive again.
    let issued = vault.count_certificates("pki_int").await;
    let pid = envoy.pid();
    let load = Load::start(100, stack.client(), shop());
    let kept = Load::start(50, https.clone().keep_alive(), shop());
    stack.agent.kill();
    stack.register("orders", &two).await;
    stack.deregister("orders", &one).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    stack.agent.restart().await;
    serves_from(&https, "two").await;
    let (report, kept) = (load.finish().await, kept.finish().await);
    println!("agent kill -9 and back, new connections: {report}\nkept, https: {kept}");
    report.assert_none_lost();
    kept.assert_none_lost();
    assert!(
        envoy.is_running() && envoy.pid() == pid,
        "nothing happens to Envoy"
    );
    let after = stack.vault.as_ref().unwrap().count_certificates("pki_int").await;
    assert_eq!(after, issued, "Envoy has a certificate");

    // Both gone, and Envoy is first back: it waits for the agent. A key that died with both is issued again within a minute.
    stack.agent.kill();
    envoy.kill();
    stack.register("orders", &three).await;
    stack.deregister("orders", &two).await;
    envoy.start_again();
    let outcome = stack.client().send(&shop()).await;
    assert_eq!(outcome.unwrap_err(), Failure::Refused, "nothing to serve yet");
    stack.agent.restart().await;
    serves_from(&stack.client(), "three").await;
}

async fn until_a_request_runs(stack: &Stack) {
    wait_for("the slow request", SOON, async || {
        let envoy = stack.envoy();
        let active = envoy.stats(r"^cluster\..*orders.*\.upstream_rq_active$").await;
        anyhow::ensure!(active.values().sum::<u64>() > 0, "{active:?}");
        Ok(())
    })
    .await;
}

/// `systemctl restart portreeve-envoy` under load: ExecStop, SIGTERM, ExecStart.
async fn envoy_is_stopped_and_started(stack: &Stack, https: &Client, envoy: &mut Process) {
    let begun = Instant::now();
    let load = Load::start(100, stack.client(), shop());
    let kept = Load::start(50, https.clone().keep_alive(), shop());
    // Longer than the drain time: it ends when the ports are closed.
    let (client, slow) = (https.clone(), shop().header("x-test-delay", "4000"));
    let slow = tokio::spawn(async move { client.send(&slow).await });
    until_a_request_runs(stack).await;
    let closed = begun.elapsed() + DRAIN_TIME;
    let mut drain = envoy_unit(stack, "ExecStop").start();
    ended(&mut drain).await;
    println!("after {:?}: {}", begun.elapsed(), drain.log().trim());
    assert_eq!(
        drain.log().trim(),
        "Envoy of gateway edge drained",
        "nothing is cut"
    );
    let slow = slow.await.unwrap().map(|reply| reply.status);
    assert_eq!(slow, Ok(200), "it was under way");
    envoy.signal(Signal::TERM);
    ended(envoy).await;
    envoy.start_again();
    serves_from(&stack.client(), "one").await;
    serves_from(https, "one").await;
    assert_only_refused(&load.finish().await, closed, "Envoy restarted, new connections");
    assert_only_refused(&kept.finish().await, closed, "Envoy restarted, kept, https");
}

async fn ended(process: &mut Process) {
    let exit = wait_for("its end", 3 * SOON, async || {
        let exit = process.exit_status();
        exit.ok_or_else(|| anyhow::anyhow!("{} still runs", process.name()))
    })
    .await;
    assert!(exit.success(), "{}: {exit:?}", process.name());
}

/// The agent goes on with what it read. An Envoy that the kernel ends for memory comes back with what it had.
#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_be_read_keep_no_envoy_away() {
    let stack = Stack::start(Options {
        no_envoy: true,
        ..Options::default()
    })
    .await;
    let backend = Backend::start("one").await;
    stack.register("orders", &backend).await;
    stack.put("gateway", crate::stack::GATEWAY).await;
    stack
        .put("shop", &route("shop", "shop.example.com", "orders"))
        .await;
    let good = std::fs::read_to_string(settings(&stack)).unwrap();
    let slip = || {
        let bad = good.replace("supervise ", "supervize ");
        assert_ne!(good, bad);
        std::fs::write(settings(&stack), bad).unwrap();
    };
    wait_for("an agent that has read them", SOON, async || {
        stack.agent.api(Method::GET, "/v1/envoys", "").await
    })
    .await;
    slip();
    let mut first = envoy_unit(&stack, "ExecStart").start();
    let exit = wait_for("its end", SOON, async || {
        let exit = first.exit_status();
        exit.ok_or_else(|| anyhow::anyhow!("it runs, from nothing"))
    })
    .await;
    assert_eq!(exit.code(), Some(1));
    assert!(first.log().contains("supervize"), "{}", first.log());

    std::fs::write(settings(&stack), &good).unwrap();
    let mut envoy = envoy_unit(&stack, "ExecStart").start();
    serves_from(&stack.client(), "one").await;
    let command_line = |pid: u32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let before = command_line(envoy.pid());
    envoy.kill();
    slip();
    envoy.start_again();
    serves_from(&stack.client(), "one").await;
    assert_eq!(command_line(envoy.pid()), before);
    let said = envoy.log();
    for part in [
        "supervize",
        "Warning: Envoy is started with what its last run left",
        "bootstrap.json",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }

    let mut drain = envoy_unit(&stack, "ExecStop").start();
    ended(&mut drain).await;
    let said = drain.log();
    for part in [
        "supervize",
        "is drained all the same, for 2s",
        "Envoy of gateway edge drained",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    assert!(envoy.is_running());
}

/// As systemd stops it when the machine stops: before the agent, which would leave its Envoy to be killed.
#[tokio::test(flavor = "multi_thread")]
async fn the_drain_unit_empties_an_envoy_that_its_agent_would_leave() {
    let mut stack = Stack::start(Options {
        leave_envoy: true,
        ..Options::default()
    })
    .await;
    let (_backend, _) = stack.shop().await;
    let (client, slow) = (stack.client(), shop().header("x-test-delay", "3000"));
    let slow = tokio::spawn(async move { client.send(&slow).await });
    until_a_request_runs(&stack).await;
    // That of the unit which this agent keeps from starting is told so, and takes its stop for nothing.
    let mut other = envoy_unit(&stack, "ExecStop").start();
    let exit = wait_for("its end", SOON, async || {
        let exit = other.exit_status();
        exit.ok_or_else(|| anyhow::anyhow!("it drains"))
    })
    .await;
    assert_eq!(exit.code(), Some(1));
    assert!(
        other.log().contains("is not drained: an agent"),
        "{}",
        other.log()
    );
    assert_eq!(stack.client().send(&shop()).await.unwrap().status, 200);

    let mut drain = unit(&stack, "portreeve-drain.service", "ExecStop").start();
    ended(&mut drain).await;
    assert_eq!(drain.log().trim(), "Envoy of gateway edge drained");
    assert_eq!(slow.await.unwrap().map(|reply| reply.status), Ok(200));
    let outcome = stack.client().send(&shop()).await;
    assert_eq!(outcome.unwrap_err(), Failure::Refused);
    stack.agent.terminate();
    stack.agent.wait_for_log("leaving Envoy running").await;
}

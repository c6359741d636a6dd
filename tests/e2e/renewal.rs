//! Certificates that Vault's PKI issues: renewed at two thirds of their life under load, and never issued faster than
//! once a minute, whatever dies.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};

use crate::stack::{Options, SOON, Stack, kill, until};
use crate::support::client::{Client, Request};
use crate::support::vault::Vault;
use crate::support::wait_for;

const HOSTS: usize = 5;

/// Each host has a certificate of its own: five renewals while one certificate would have one.
fn document(ttl: &str) -> String {
    let mut text = String::new();
    let names: Vec<String> = (0..HOSTS).map(|number| format!("\"c{number}\"")).collect();
    text.push_str(&format!(
        "gateway \"edge\" {{\n  listener \"secure\" {{\n    port     = $HTTPS\n    protocol = \"https\"\n    \
         tls {{ certificates = [{}] }}\n  }}\n\n  listener \"web\" {{\n    port = $HTTP\n  }}\n}}\n",
        names.join(", ")
    ));
    for number in 0..HOSTS {
        text.push_str(&format!(
            r#"
certificate "c{number}" {{
  vault_pki {{
    mount       = "pki_int"
    role        = "edge"
    common_name = "c{number}.example.com"
    ttl         = "{ttl}"
  }}
}}

http_route "c{number}" {{
  gateways  = ["edge"]
  hostnames = ["c{number}.example.com"]

  rule "all" {{
    direct_response {{
      status = 200
    }}
  }}
}}
"#
        ));
    }
    text
}

fn host(number: usize) -> String {
    format!("c{number}.example.com")
}

async fn root_of(vault: &Vault) -> String {
    let root = vault.read("pki_int/cert/ca").await;
    root["data"]["certificate"].as_str().unwrap().to_owned()
}

/// When each serial number was first seen. As Vault writes it.
type Seen = Arc<Mutex<BTreeMap<String, Instant>>>;

fn saw(seen: &Seen, serial: String) {
    seen.lock().unwrap().entry(serial).or_insert_with(Instant::now);
}

/// What Vault has issued, as it comes.
async fn follow_vault(vault: Arc<Vault>, seen: Seen) {
    let list = Method::from_bytes(b"LIST").unwrap();
    loop {
        if let Ok(answer) = vault.call(list.clone(), "pki_int/certs", Value::Null).await {
            let keys = answer.json()["data"]["keys"].clone();
            for key in keys.as_array().into_iter().flatten().filter_map(Value::as_str) {
                saw(&seen, key.replace('-', ":"));
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Ten new, fully verified connections a second to one host.
async fn connect_for_ever(client: Client, host: String, seen: Seen, failed: Arc<Mutex<Vec<String>>>) {
    let request = Request::get(&host, "/");
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    loop {
        ticks.tick().await;
        let (client, request, seen, failed) = (client.clone(), request.clone(), seen.clone(), failed.clone());
        tokio::spawn(async move {
            match client.send(&request).await {
                Ok(reply) if reply.status == 200 => saw(&seen, reply.serial()),
                other => failed
                    .lock()
                    .unwrap()
                    .push(format!("{}: {other:?}", request.host)),
            }
        });
    }
}

/// 50 handshakes a second over five renewals.
async fn renewals_fail_no_handshake(options: Options) {
    let mut stack = Stack::start(Options {
        vault: true,
        ..options
    })
    .await;
    let vault = Arc::new(stack.vault.take().unwrap());
    // No certificate is dated back, and two thirds of its life are just over the minute between two issues.
    vault
        .write(
            "pki_int/roles/edge",
            json!({
                "allowed_domains": "example.com", "allow_subdomains": true, "key_type": "ec", "key_bits": 256,
                "max_ttl": "1h", "not_before_duration": "1s",
            }),
        )
        .await;
    let client = Client::https(stack.https, &root_of(&vault).await);
    stack.put("edge", &document("96s")).await;
    for number in 0..HOSTS {
        until(&client, &Request::get(&host(number), "/"), "https", |reply| {
            reply.status == 200
        })
        .await;
    }
    let (issued, served, failed) = (Seen::default(), Seen::default(), Arc::default());
    let follower = tokio::spawn(follow_vault(vault.clone(), issued.clone()));
    let load: Vec<_> = (0..HOSTS)
        .map(|number| {
            let (served, failed) = (served.clone(), Arc::clone(&failed));
            tokio::spawn(connect_for_ever(client.clone(), host(number), served, failed))
        })
        .collect();
    wait_for("five renewals", Duration::from_secs(150), async || {
        let count = served.lock().unwrap().len();
        anyhow::ensure!(count >= 2 * HOSTS, "{count} certificates were served");
        Ok(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    load.iter().for_each(|task| task.abort());
    follower.abort();
    // What is under way.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let failed = failed.lock().unwrap().clone();
    assert!(failed.is_empty(), "{} failed: {failed:#?}", failed.len());

    let (issued, served) = (issued.lock().unwrap().clone(), served.lock().unwrap().clone());
    let mut delays: Vec<Duration> = served
        .iter()
        .map(|(serial, at)| {
            let known = issued
                .get(serial)
                .unwrap_or_else(|| panic!("{serial} is not Vault's"));
            at.saturating_duration_since(*known)
        })
        .collect();
    delays.sort();
    // The five of the start were there before both lists began.
    println!(
        "from Vault's list to a client's handshake (looked at every 20 ms and 100 ms): {:?}",
        &delays[HOSTS.min(delays.len() - 1)..]
    );
    assert!(delays.last().unwrap() < &SOON, "{delays:?}");
    assert_eq!(
        served.len(),
        2 * HOSTS,
        "each once more, and none in vain: {}",
        served.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pki_renewals_fail_no_handshake_delta() {
    renewals_fail_no_handshake(Options::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pki_renewals_fail_no_handshake_state_of_the_world() {
    renewals_fail_no_handshake(Options {
        state_of_the_world: true,
        ..Options::default()
    })
    .await;
}

/// Agent and Envoy die together, again and again: each time nobody holds the keys any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_loop_of_kills_issues_once_a_minute_and_certificate() {
    let mut stack = Stack::start(Options {
        vault: true,
        ..Options::default()
    })
    .await;
    let vault = stack.vault.take().unwrap();
    let client = Client::https(stack.https, &root_of(&vault).await);
    stack.put("edge", &document("72h")).await;
    let begun = Instant::now();
    let hosts: Vec<Request> = (0..HOSTS)
        .map(|number| Request::get(&host(number), "/"))
        .collect();
    for request in &hosts {
        until(&client, request, "https", |reply| reply.status == 200).await;
    }
    // The root is one of them.
    let count = async || vault.count_certificates("pki_int").await - 1;
    assert_eq!(count().await, HOSTS);
    let mut rounds = 0;
    while begun.elapsed() < Duration::from_secs(45) {
        stack.agent.kill();
        kill(stack.envoy_pid());
        let start = stack.agent.process.log_length();
        stack.agent.process.start_again();
        stack
            .agent
            .process
            .wait_for_log_after(start, "Envoy connected", SOON)
            .await;
        // Where no key is needed, it serves meanwhile.
        stack
            .until(&hosts[0], "plain http", |reply| reply.status == 200)
            .await;
        rounds += 1;
        let issued = count().await;
        let minutes = begun.elapsed().as_secs() as usize / 60 + 1;
        assert!(
            issued <= HOSTS * minutes,
            "round {rounds}: {issued} issued in minute {minutes}"
        );
    }
    println!(
        "{rounds} kills of both in {:?}: {} issued",
        begun.elapsed(),
        count().await
    );
    assert!(rounds >= 4, "only {rounds} rounds");
    wait_for("the keys to come again", Duration::from_secs(90), async || {
        for request in &hosts {
            let reply = client
                .send(request)
                .await
                .map_err(|failure| anyhow::anyhow!("{failure}"))?;
            anyhow::ensure!(reply.status == 200);
        }
        Ok(())
    })
    .await;
    assert_eq!(
        count().await,
        2 * HOSTS,
        "one more of each, once a minute had passed"
    );
    assert!(
        begun.elapsed() >= Duration::from_secs(58),
        "{:?}",
        begun.elapsed()
    );
}

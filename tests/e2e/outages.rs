//! Vault and Consul are away: what was there stays, and status says so.

use std::time::Duration;

use hyper::Method;
use serde_json::Value;

use crate::stack::{Options, SOON, Stack, kill, route, secure, until};
use crate::support::agent;
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::load::Load;
use crate::support::wait_for;

fn document() -> String {
    secure("direct_response {\n      status = 200\n    }")
}

async fn status(stack: &Stack) -> anyhow::Result<Value> {
    Ok(stack.agent.api(Method::GET, "/v1/status", "").await?.ok()?.json())
}

async fn until_status(stack: &Stack, what: &str, expected: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, Duration::from_secs(30), async || {
        let status = status(stack).await?;
        anyhow::ensure!(expected(&status), "{status:#}");
        Ok(status)
    })
    .await
}

fn source<'a>(status: &'a Value, name: &str) -> &'a Value {
    let sources = status["sources"].as_array().into_iter().flatten();
    sources
        .into_iter()
        .find(|source| source["name"] == name)
        .unwrap_or(&Value::Null)
}

/// When the certificate `www` ends: in the metric, and in status with its serial. None: not known.
async fn end_of_www(stack: &Stack) -> anyhow::Result<Option<(i64, Value)>> {
    let metrics = stack.agent.api(Method::GET, "/metrics", "").await?.ok()?.text();
    let name = "portreeve_certificate_expiry_timestamp_seconds{certificate=\"www\"} ";
    let metric = metrics.lines().find_map(|line| line.strip_prefix(name));
    let metric = metric.map(str::parse::<f64>).transpose()?;
    let status = status(stack).await?;
    let certificates = status["certificates"].as_array().into_iter().flatten();
    let www = certificates
        .into_iter()
        .find(|certificate| certificate["name"] == "www");
    let (Some(metric), Some(www)) = (metric, www.filter(|www| www["expires"].is_i64())) else {
        return Ok(None);
    };
    anyhow::ensure!(
        www["expires"] == metric as i64,
        "{metric} is not the end of {www}"
    );
    let told = serde_json::json!({ "not_after": www["not_after"], "serial": www["serial"] });
    Ok(Some((metric as i64, told)))
}

fn says(status: &Value, code: &str) -> Option<String> {
    let diagnostics = status["diagnostics"].as_array().into_iter().flatten();
    diagnostics
        .into_iter()
        .find(|diagnostic| diagnostic["code"] == code)
        .map(Value::to_string)
}

/// The certificate is fresh, so the agent asks for nothing: and yet it must know.
async fn vault_away_is_told(options: Options) {
    let mut stack = Stack::start(Options {
        vault: true,
        ..options
    })
    .await;
    stack.put("www", &document()).await;
    let client = stack.https_client().await;
    let request = Request::get("www.example.com", "/");
    until(&client, &request, "https", |reply| reply.status == 200).await;
    let certificate = client.send(&request).await.unwrap().certificate;
    until_status(&stack, "a healthy Vault", |status| {
        source(status, "vault")["ok"] == true
    })
    .await;
    let load = Load::start(50, client.clone(), request.clone());

    stack.vault.as_ref().unwrap().seal().await;
    let sealed = until_status(&stack, "the seal", |status| {
        source(status, "vault")["ok"] == false
    })
    .await;
    let problem = source(&sealed, "vault")["problem"].to_string();
    assert!(problem.contains("sealed"), "{problem}");
    stack.agent.wait_for_log("vault does not serve").await;
    // A change that needs no secret goes through meanwhile.
    let changed = document().replace("status = 200", "status = 200\n      body   = \"changed\"");
    stack.put("www", &changed).await;
    until(&client, &request, "a change", |reply| reply.text() == "changed").await;
    stack.vault.as_ref().unwrap().unseal().await;
    until_status(&stack, "the unsealing", |status| {
        source(status, "vault")["ok"] == true
    })
    .await;

    stack.vault.as_mut().unwrap().kill();
    let down = until_status(&stack, "the outage", |status| {
        source(status, "vault")["ok"] == false
    })
    .await;
    let problem = source(&down, "vault")["problem"].to_string();
    assert!(
        problem.contains("reached") || problem.contains("no answer"),
        "{problem}"
    );
    stack.vault.as_mut().unwrap().restart().await;
    until_status(&stack, "the return", |status| {
        source(status, "vault")["ok"] == true
    })
    .await;

    let report = load.finish().await;
    println!("vault sealed and down: {report}");
    report.assert_none_lost();
    assert_eq!(client.send(&request).await.unwrap().certificate, certificate);
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_sealed_or_down_keeps_the_certificate_and_is_told_delta() {
    vault_away_is_told(Options::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_sealed_or_down_keeps_the_certificate_and_is_told_state_of_the_world() {
    vault_away_is_told(Options {
        state_of_the_world: true,
        ..Options::default()
    })
    .await;
}

/// Vault is there and refuses: a right that was taken away.
#[tokio::test(flavor = "multi_thread")]
async fn a_right_taken_away_keeps_the_certificate_and_names_the_rule() {
    let rule = "path \"secret/data/edge/*\" { capabilities = [\"read\"] }".to_owned();
    let mut stack = Stack::start(Options {
        vault: true,
        vault_policies: vec![("edge", rule.clone())],
        more: "\n".to_owned(),
        ..Options::default()
    })
    .await;
    let vault = stack.vault.as_ref().unwrap();
    let ca = crate::support::pki::Ca::new("refused");
    let pair = ca.issue(&["www.example.com"]);
    let secret = serde_json::json!({ "certificate": pair.certificate, "private_key": pair.key });
    vault.put_kv2("secret", "edge/www", secret).await;
    let document = document();
    let start = document.find("  vault_pki {").unwrap();
    let end = start + document[start..].find("  }\n").unwrap() + 4;
    let kv = "  vault_kv {\n    mount = \"secret\"\n    path  = \"edge/www\"\n  }\n";
    stack
        .put("www", &format!("{}{kv}{}", &document[..start], &document[end..]))
        .await;
    let client = Client::https(stack.https, &ca.certificate);
    let request = Request::get("www.example.com", "/");
    until(&client, &request, "https", |reply| reply.status == 200).await;
    let taken = stack.agent.wait_for_log("not_after=").await;
    assert!(taken.contains("not_after=20"), "a date, not seconds: {taken}");
    let load = Load::start(50, client.clone(), request.clone());
    vault
        .policy("edge", "path \"secret/other\" { capabilities = [\"read\"] }")
        .await;
    let status = until_status(&stack, "the refusal", |status| {
        says(status, "missing-permission").is_some()
    })
    .await;
    let said = says(&status, "missing-permission").unwrap();
    println!("{said}");
    for part in ["secret/data/edge/www", "read", "permission denied"] {
        assert!(said.contains(part), "{part}: {said}");
    }

    // An agent that begins now knows of the certificate what was public, and Envoy has the key.
    stack.agent.kill();
    let start = stack.agent.process.log_length();
    stack.agent.process.start_again();
    for line in ["certificate not refreshed", "Envoy connected"] {
        let log = &mut stack.agent.process;
        log.wait_for_log_after(start, line, SOON).await;
    }
    stack.agent.wait_ready().await;
    until(&client, &request, "https as before the restart", |reply| {
        reply.status == 200
    })
    .await;
    let status = until_status(&stack, "the refusal again", |status| {
        says(status, "missing-permission").is_some()
    })
    .await;
    assert!(says(&status, "listener-withheld").is_none(), "{status:#}");

    let vault = stack.vault.as_ref().unwrap();
    vault.policy("edge", &rule).await;
    until_status(&stack, "the right to be back", |status| {
        says(status, "missing-permission").is_none()
    })
    .await;
    load.finish().await.assert_none_lost();
}

/// One certificate of two is not in Vault: its names alone suffer. A listener without any stays closed.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_certificate_costs_its_own_names_alone() {
    let stack = Stack::start(Options {
        vault: true,
        ..Options::default()
    })
    .await;
    let missing = r#"
certificate "missing" {
  vault_kv {
    mount = "secret"
    path  = "edge/missing"
  }
}
"#;
    let both = document()
        .replace("[\"www\"]", "[\"www\", \"missing\"]")
        .replace(
            "  listener \"web\" {\n    port = $HTTP\n  }",
            "  listener \"web\" {\n    port     = $HTTP\n    protocol = \"https\"\n    tls { certificates = [\"missing\"] }\n  }",
        )
        .replace("[\"www.example.com\"]", "[\"www.example.com\", \"missing.example.org\"]");
    stack.put("www", &format!("{both}{missing}")).await;
    let client = stack.https_client().await;
    let request = Request::get("www.example.com", "/");
    until(&client, &request, "the certificate that is there", |reply| {
        reply.status == 200
    })
    .await;
    let status = until_status(&stack, "both to be told", |status| {
        says(status, "certificate-problem").is_some() && says(status, "listener-withheld").is_some()
    })
    .await;
    let said = says(&status, "certificate-problem").unwrap();
    assert!(said.contains("secret/data/edge/missing"), "{said}");
    let other = Request::get("missing.example.org", "/");
    assert!(client.send(&other).await.is_err(), "no certificate for this name");
    let closed = Client::http(stack.http).send(&request).await;
    assert_eq!(
        closed.unwrap_err().kind(),
        "refused",
        "a listener without a certificate"
    );

    // It comes: both names, both listeners.
    let ca = crate::support::pki::Ca::new("late");
    let pair = ca.issue(&["missing.example.org"]);
    let secret = serde_json::json!({ "certificate": pair.certificate, "private_key": pair.key });
    let vault = stack.vault.as_ref().unwrap();
    vault.put_kv2("secret", "edge/missing", secret).await;
    for port in [stack.https, stack.http] {
        let late = Client::https(port, &ca.certificate);
        until(&late, &other, "the late certificate", |reply| reply.status == 200).await;
    }
}

/// Nothing but the disk: documents and instances come from it, keys do not.
async fn cold_start(options: Options) {
    let mut stack = Stack::start(Options {
        vault: true,
        ..options
    })
    .await;
    let backend = Backend::start("one").await;
    stack.register("orders", &backend).await;
    stack.put("www", &document()).await;
    stack
        .put("shop", &route("shop", "shop.example.com", "orders"))
        .await;
    let (shop, www) = (
        Request::get("shop.example.com", "/"),
        Request::get("www.example.com", "/"),
    );
    let client = stack.https_client().await;
    stack.until(&shop, "the route", |reply| reply.status == 200).await;
    let before = until(&client, &www, "https", |reply| reply.status == 200)
        .await
        .certificate;
    until_status(&stack, "everything fresh", |status| {
        status["readiness"]["ready"] == true && status["readiness"]["stale"] == false
    })
    .await;
    let end = end_of_www(&stack).await.unwrap().expect("its end");
    // Settled and on disk.
    tokio::time::sleep(Duration::from_millis(500)).await;

    stack.consul.kill();
    stack.vault.as_mut().unwrap().kill();
    stack.agent.kill();
    kill(stack.envoy_pid());
    stack.agent.process.start_again();
    stack
        .until(&shop, "http from the disk alone", |reply| {
            reply.backend() == Some("one")
        })
        .await;
    assert!(client.send(&www).await.is_err(), "no key: https is pending");
    let status = until_status(&stack, "the outage", |status| {
        status["readiness"]["stale"] == true && source(status, "vault")["ok"] == false
    })
    .await;
    assert_eq!(source(&status, "kv portreeve/config/")["ok"], false, "{status:#}");
    // Its public half is on the disk, so its end is known although nobody can be asked.
    let known = wait_for("the certificate's end", Duration::from_secs(30), async || {
        let end = end_of_www(&stack).await?;
        end.ok_or_else(|| anyhow::anyhow!("it is not known"))
    })
    .await;
    assert_eq!(known, end);
    let ready = stack.agent.api(Method::GET, "/v1/ready", "").await.unwrap();
    assert_eq!(ready.json()["stale"], true, "{}", ready.text());
    let socket = format!("-api-socket={}", stack.agent.api.display());
    let output = tokio::task::spawn_blocking(move || agent::run(&std::env::temp_dir(), &["status", &socket]));
    let shown = String::from_utf8_lossy(&output.await.unwrap().stdout).into_owned();
    assert!(shown.contains("serving what the disk held"), "{shown}");

    // Vault is back, Consul is not: a new key, once the minute since the last issue is over.
    stack.vault.as_mut().unwrap().restart().await;
    let after = wait_for("https again", Duration::from_secs(100), async || {
        let reply = client
            .send(&www)
            .await
            .map_err(|failure| anyhow::anyhow!("{failure}"))?;
        anyhow::ensure!(reply.status == 200);
        Ok(reply.certificate)
    })
    .await;
    assert_ne!(before, after, "the old key died with its Envoy");
    let vault = stack.vault.as_ref().unwrap();
    assert_eq!(vault.count_certificates("pki_int").await - 1, 2);
    let ready = stack.agent.api(Method::GET, "/v1/ready", "").await.unwrap();
    assert_eq!(ready.json()["stale"], true, "{}", ready.text());

    stack.consul.restart().await;
    until_status(&stack, "everything fresh again", |status| {
        status["readiness"]["stale"] == false && status["readiness"]["ready"] == true
    })
    .await;
    stack.agent.process.check_running().unwrap();
    let two = Backend::start("two").await;
    stack.register("orders", &two).await;
    wait_for("changes to flow again", SOON, async || {
        let reply = stack.client().send(&shop).await;
        let reply = reply.map_err(|failure| anyhow::anyhow!("{failure}"))?;
        anyhow::ensure!(reply.backend() == Some("two"));
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_start_without_consul_and_vault_serves_what_needs_no_key_delta() {
    cold_start(Options::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_start_without_consul_and_vault_serves_what_needs_no_key_state_of_the_world() {
    cold_start(Options {
        state_of_the_world: true,
        ..Options::default()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_certificate_costs_its_own_name_alone() {
    let stack = Stack::start(Options {
        vault: true,
        ..Options::default()
    })
    .await;
    let vault = stack.vault.as_ref().unwrap();
    let ca = crate::support::pki::Ca::new("shop");
    let day = Duration::from_secs(86_400);
    let put = async |name: &str, certificate: &str, key: &str| {
        let secret = serde_json::json!({ "certificate": certificate, "private_key": key });
        vault.put_kv2("secret", &format!("edge/{name}"), secret).await;
    };
    let good = ca.issue(&["unfit.example.org"]);
    put("unfit", &good.certificate, &ca.issue(&["unfit.example.org"]).key).await;
    put("malformed", "hello", &good.key).await;
    let ended = ca.issue_between(&["expired.example.org"], 2 * day, Duration::ZERO);
    put("expired", &ended.certificate, &ended.key).await;
    put("version", &good.certificate, &good.key).await;
    // What each is called, where it is, its diagnostic, what that says, and what to do.
    let bad = [
        (
            "mount",
            "mount = \"nowhere\"",
            "vault-wrong-mount",
            "no secrets engine is mounted",
            "secrets list",
        ),
        (
            "engine",
            "mount = \"pki_int\"",
            "vault-wrong-mount",
            "is of type \"pki\", not kv",
            "kv secrets engine",
        ),
        (
            "version",
            "mount = \"secret\"\n    kv_version = 1",
            "vault-wrong-kv-version",
            "is KV version 2, and the document says version 1",
            "kv_version = 2",
        ),
        (
            "malformed",
            "mount = \"secret\"",
            "certificate-malformed",
            "no CERTIFICATE block",
            "PEM",
        ),
        (
            "unfit",
            "mount = \"secret\"",
            "certificate-key-mismatch",
            "does not belong to any certificate",
            "together",
        ),
        (
            "expired",
            "mount = \"secret\"",
            "certificate-expired",
            "expired at",
            "renewed",
        ),
    ];
    let mut documents = document();
    for (name, mount, ..) in bad {
        documents = documents
            .replace("[\"www\"", &format!("[\"www\", \"{name}\""))
            .replace(
                "[\"www.example.com\"",
                &format!("[\"www.example.com\", \"{name}.example.org\""),
            );
        documents.push_str(&format!(
            "certificate \"{name}\" {{\n  vault_kv {{\n    {mount}\n    path = \"edge/{name}\"\n  }}\n}}\n"
        ));
    }
    stack.put("www", &documents).await;
    let client = stack.https_client().await;
    let request = Request::get("www.example.com", "/");
    until(&client, &request, "the good certificate", |reply| {
        reply.status == 200
    })
    .await;
    until_status(&stack, "each to be told", |status| {
        let said = status["diagnostics"].as_array().into_iter().flatten();
        let said: Vec<&Value> = said.collect();
        bad.iter().all(|(name, _, code, words, fix)| {
            let (named, words) = (format!("certificate \"{name}\": "), *words);
            said.iter().any(|one| {
                let message = one["message"].as_str().unwrap_or_default();
                let right = one["code"] == *code && message.starts_with(&named) && message.contains(words);
                right && one["fix"].as_str().is_some_and(|said| said.contains(fix))
            })
        })
    })
    .await;
    for (name, ..) in bad {
        let other = Request::get(&format!("{name}.example.org"), "/");
        assert!(client.send(&other).await.is_err(), "{name} has no certificate");
    }
    let fresh = stack.https_client().await;
    assert_eq!(fresh.send(&request).await.unwrap().status, 200);

    // One that is mended serves, and the others still harm nobody.
    put("unfit", &good.certificate, &good.key).await;
    let trusting = Client::https(stack.https, &ca.certificate);
    let mended = Request::get("unfit.example.org", "/");
    until(&trusting, &mended, "the mended one", |reply| reply.status == 200).await;
    assert_eq!(
        stack.https_client().await.send(&request).await.unwrap().status,
        200
    );
}

//! Nomad's native services: they come, go and fail; requests follow. Nomad's side is `support::nomad`; the real one is
//! proven by `tests/nomad`.

use std::path::PathBuf;
use std::time::Duration;

use hyper::Method;
use serde_json::json;
use tempfile::TempDir;

use crate::stack::{GATEWAY, Options, SOON, Stack, kill, route, until};
use crate::support::backend::Backend;
use crate::support::client::{Client, Reply, Request};
use crate::support::load::Load;
use crate::support::nomad::NomadContract;
use crate::support::pki::{Ca, parse_certificates};
use crate::support::wait_for;

/// A gateway beside a Nomad that takes one identity, as a task has it: in a file.
struct Task {
    nomad: NomadContract,
    stack: Stack,
    token: PathBuf,
    _directory: TempDir,
}

async fn task_with(identity: &str) -> Task {
    task_of(NomadContract::start(identity).await, identity).await
}

async fn task_of(nomad: NomadContract, identity: &str) -> Task {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("nomad_token");
    std::fs::write(&token, identity).unwrap();
    let more = format!(
        "nomad {{\n  address    = \"unix://{}\"\n  token_file = {token:?}\n}}\n",
        nomad.socket.display()
    );
    let stack = Stack::start(Options {
        more,
        ..Options::default()
    })
    .await;
    Task {
        nomad,
        stack,
        token,
        _directory: directory,
    }
}

/// Waits until twenty in a row are answered so.
pub async fn until_all(stack: &Stack, request: &Request, what: &str, is_it: impl Fn(&Reply) -> bool) {
    wait_for(what, SOON, async || {
        for _ in 0..20 {
            let reply = stack.client().send(request).await;
            let reply = reply.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
            anyhow::ensure!(is_it(&reply), "{} of {:?}", reply.status, reply.backend());
        }
        Ok(())
    })
    .await;
}

/// A route and the upstream `orders`, which `block` describes.
pub fn upstream(name: &str, block: &str) -> String {
    let to_upstream = route(name, &format!("{name}.example.com"), "x")
        .replace("\"consul\" \"x\"", "\"upstream\" \"orders\"");
    format!("{to_upstream}\nupstream \"orders\" {{\n{block}\n}}\n")
}

/// Envoy checks the instances of `orders` at this interval. Returns the first of them, and a request that it answers.
async fn checked_every(interval: &str) -> (Task, Backend, Request) {
    let task = task_with("identity-1").await;
    let one = Backend::start("one").await;
    task.nomad.register("default", "orders", one.port);
    task.stack.put("gateway", GATEWAY).await;
    let checked = format!("  nomad {{}}\n  health_check {{\n    interval = {interval:?}\n  }}");
    task.stack.put("shop", &upstream("shop", &checked)).await;
    let request = Request::get("shop.example.com", "/");
    task.stack
        .until(&request, "the first instance", |reply| {
            reply.backend() == Some("one")
        })
        .await;
    (task, one, request)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_follow_nomad_and_the_health_that_envoy_finds() {
    let (task, one, request) = checked_every("500ms").await;
    let Task {
        nomad,
        stack,
        token,
        _directory,
    } = task;
    let mut two = Backend::start("two").await;
    nomad.register("default", "orders", two.port);
    stack
        .until(&request, "a second instance", |reply| {
            reply.backend() == Some("two")
        })
        .await;

    // What Nomad does not see: the instance is registered and answers nobody.
    two.stop().await;
    until_all(&stack, &request, "the dead instance to be left out", |reply| {
        reply.backend() == Some("one")
    })
    .await;
    two.restart().await;
    stack
        .until(&request, "it to be back", |reply| reply.backend() == Some("two"))
        .await;

    // The identity is renewed: the old one is refused, nothing is lost meanwhile, and the new one is picked up.
    let load = Load::start(100, stack.client(), request.clone());
    nomad.set_token("identity-2");
    tokio::time::sleep(Duration::from_millis(500)).await;
    std::fs::write(&token, "identity-2").unwrap();
    nomad.deregister("default", "orders", one.port);
    until_all(&stack, &request, "the first to be gone", |reply| {
        reply.backend() == Some("two")
    })
    .await;
    load.finish().await.assert_none_lost();
}

/// Nomad's own port, as operators secure it: its authority, a name that the address is not, a client certificate. With
/// `more` settings.
async fn over_tls(more: &str) -> (Stack, NomadContract, tempfile::TempDir) {
    let authority = Ca::new("nomad");
    let server = authority.issue(&["server.global.nomad"]);
    let (nomad, port) = NomadContract::start_tls("t", server.server_config_for(&authority)).await;
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let client = authority.issue(&["client.global.nomad"]);
    let more = format!(
        "nomad {{\n  address = \"https://127.0.0.1:{port}\"\n  token_file = {:?}\n  ca_file = {:?}\n  client_cert = {:?}\n  \
         client_key = {:?}\n  tls_server_name = \"server.global.nomad\"\n{more}}}\n",
        file("token", "t"),
        file("ca.pem", &authority.certificate),
        file("client.pem", &client.certificate),
        file("client.key", &client.key),
    );
    let stack = Stack::start(Options {
        more,
        ..Options::default()
    })
    .await;
    (stack, nomad, directory)
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_with_a_client_certificate_and_in_a_region() {
    let (stack, nomad, _files) = over_tls("  region = \"eu\"\n  namespace = \"shop\"\n").await;
    let backend = Backend::start("one").await;
    nomad.register("shop", "orders", backend.port);
    stack.put("gateway", GATEWAY).await;
    stack.put("shop", &upstream("shop", "  nomad {}")).await;
    let request = Request::get("shop.example.com", "/");
    stack
        .until(&request, "the instance", |reply| reply.backend() == Some("one"))
        .await;
    let asked = nomad.asked();
    let services = asked.iter().filter(|path| path.contains("/v1/service/orders"));
    for path in services {
        assert!(
            path.contains("region=eu") && path.contains("namespace=shop"),
            "{path}"
        );
    }
}

/// Nomad speaks no HTTP/2, and closes what is more than 100 connections of one address: other programs' too.
#[tokio::test(flavor = "multi_thread")]
async fn over_tls_the_connections_to_nomad_are_bounded_too() {
    const UPSTREAMS: usize = 120;
    let (stack, nomad, _files) = over_tls("").await;
    let backend = Backend::start("one").await;
    stack.put("gateway", GATEWAY).await;
    let mut text =
        "http_route \"shop\" {\n  gateways  = [\"edge\"]\n  hostnames = [\"shop.example.com\"]\n".to_owned();
    for n in 0..UPSTREAMS {
        nomad.register("default", &format!("orders-{n}"), backend.port);
        text += &format!(
            "\n  rule \"r{n}\" {{\n    match {{\n      path = \"/{n}\"\n    }}\n    backend \"upstream\" \"orders-{n}\" {{}}\n  }}\n"
        );
    }
    text += "}\n";
    for n in 0..UPSTREAMS {
        text += &format!("\nupstream \"orders-{n}\" {{\n  nomad {{}}\n}}\n");
    }
    stack.put("shop", &text).await;
    for n in [0, 60, UPSTREAMS - 1] {
        stack
            .until(
                &Request::get("shop.example.com", &format!("/{n}")),
                "each of them",
                |reply| reply.backend() == Some("one"),
            )
            .await;
    }
    wait_for("every service's first read", SOON, async || {
        let asked = nomad.asked();
        for n in 0..UPSTREAMS {
            let path = format!("/v1/service/orders-{n}");
            anyhow::ensure!(
                asked
                    .iter()
                    .any(|asked| asked.split('?').next() == Some(path.as_str())),
                "{path}"
            );
        }
        Ok(())
    })
    .await;
    // Every change wakes every watch.
    for _ in 0..5 {
        let before = nomad.asked().len();
        nomad.register("default", "another", backend.port);
        wait_for("the watches to be back", SOON, async || {
            anyhow::ensure!(nomad.asked().len() >= before + 70);
            Ok(())
        })
        .await;
    }
    // 70 watch, eight at a time take turns, and some more ask for lives and events, or were opened and not needed.
    let most = nomad.most_connections();
    println!("{most} connections at most");
    assert!((70..100).contains(&most), "{most} connections");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_upstream_takes_instances_of_every_namespace() {
    let Task {
        nomad,
        mut stack,
        token: _,
        _directory,
    } = task_with("t").await;
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    stack.put("gateway", GATEWAY).await;
    stack
        .put("shop", &upstream("shop", "  nomad {\n    namespace = \"*\"\n  }"))
        .await;
    // What the token may not see is left out without a word: the advice says so.
    stack.agent.wait_for_log("has read-job in its namespace").await;
    nomad.register("blue", "orders", one.port);
    let request = Request::get("shop.example.com", "/");
    stack
        .until(&request, "one namespace", |reply| reply.backend() == Some("one"))
        .await;
    nomad.register("green", "orders", two.port);
    stack
        .until(&request, "another", |reply| reply.backend() == Some("two"))
        .await;
    assert!(
        nomad
            .asked()
            .iter()
            .any(|asked| asked.contains("/v1/service/orders?namespace=green")),
        "{:?}",
        nomad.asked()
    );
}

/// The list of services waits for a change, and leaves out what the token that asked for it may not see.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_may_see_more_namespaces_is_asked_with_at_once() {
    let nomad = NomadContract::start("every").await;
    nomad.add_token("blue", "blue");
    let Task {
        nomad,
        stack,
        token,
        _directory,
    } = task_of(nomad, "blue").await;
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    nomad.register("blue", "orders", one.port);
    nomad.register("green", "orders", two.port);
    stack.put("gateway", GATEWAY).await;
    stack
        .put("shop", &upstream("shop", "  nomad {\n    namespace = \"*\"\n  }"))
        .await;
    let request = Request::get("shop.example.com", "/");
    stack
        .until(&request, "what it may see", |reply| {
            reply.backend() == Some("one")
        })
        .await;
    let green = "/v1/service/orders?namespace=green";
    assert!(
        !nomad.asked().iter().any(|asked| asked.contains(green)),
        "it does not know of it"
    );

    std::fs::write(&token, "every").unwrap();
    stack
        .until(&request, "the rest", |reply| reply.backend() == Some("two"))
        .await;

    // A right that is lost takes nothing away: the list is shorter without a word, the namespace itself says 403.
    std::fs::write(&token, "blue").unwrap();
    let status = async || stack.agent.api(Method::GET, "/v1/status", "").await;
    wait_for("word of the right", SOON, async || {
        let status = status().await?.text();
        let rule = r#"namespace \"green\" { capabilities = [\"read-job\"] }"#;
        anyhow::ensure!(status.contains(rule), "{status}");
        Ok(())
    })
    .await;
    stack
        .until(&request, "what it may not see", |reply| {
            reply.backend() == Some("two")
        })
        .await;
    // What it may see is followed all the same.
    let three = Backend::start("three").await;
    nomad.register("blue", "orders", three.port);
    stack
        .until(&request, "a new one", |reply| reply.backend() == Some("three"))
        .await;

    // With the right back, what went meanwhile goes.
    nomad.deregister("green", "orders", two.port);
    std::fs::write(&token, "every").unwrap();
    until_all(&stack, &request, "its end", |reply| {
        reply.backend() != Some("two")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nomad_the_route_says_what_is_missing() {
    let mut stack = Stack::start(Options::default()).await;
    stack.put("gateway", GATEWAY).await;
    stack.put("shop", &upstream("shop", "  nomad {}")).await;
    let line = stack.agent.wait_for_log("not connected to Nomad").await;
    assert!(line.contains("add a `nomad {}` block"), "{line}");
    stack
        .until(&Request::get("shop.example.com", "/"), "a 503", |reply| {
            reply.status == 503
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_in_a_nomad_variable_is_followed() {
    let Task {
        nomad,
        mut stack,
        token,
        _directory,
    } = task_with("t").await;
    let document = r#"
gateway "edge" {
  listener "secure" {
    port     = $HTTPS
    protocol = "https"
    tls { certificates = ["www"] }
  }
}

certificate "www" {
  nomad_variable {
    path        = "nomad/jobs/portreeve"
    certificate = "www_pem"
    private_key = "www_key"
  }
}

http_route "www" {
  gateways  = ["edge"]
  hostnames = ["www.example.com"]

  rule "all" {
    direct_response {
      status = 200
    }
  }
}
"#;
    stack.put("www", document).await;
    stack.agent.wait_for_log("Nomad has no such variable").await;

    let authority = Ca::new("variables");
    let items = || {
        let leaf = authority.issue(&["www.example.com"]);
        let der = parse_certificates(&leaf.certificate)[0].to_vec();
        let items = json!({ "www_pem": leaf.certificate, "www_key": leaf.key, "other": "x" });
        (items, der)
    };
    let put = |items: Option<serde_json::Value>| nomad.set_variable("default", "nomad/jobs/portreeve", items);
    let client = Client::https(stack.https, &authority.certificate);
    let request = Request::get("www.example.com", "/");
    let shows = async |der: &[u8], what: &str| {
        until(&client, &request, what, |reply| {
            reply.certificate.as_deref() == Some(der)
        })
        .await;
    };
    let (first, first_der) = items();
    put(Some(first));
    shows(&first_der, "the certificate").await;

    let load = Load::start(50, client.clone(), request.clone());
    let (second, second_der) = items();
    put(Some(second.clone()));
    shows(&second_der, "the next one").await;

    // A key that does not fit, an item that is not there, no variable at all, a token without the right: whatever is wrong,
    // the last good pair is served.
    let (third, third_der) = items();
    let mut unfit = third.clone();
    unfit["www_key"] = second["www_key"].clone();
    let malformed = json!({ "www_pem": "x", "www_key": "y" });
    for (now, problem) in [
        (Some(unfit), "does not belong to any certificate of the chain"),
        (Some(malformed), "certificate not refreshed"),
        (Some(json!({ "tls": "x" })), "it has no item"),
        (None, "Nomad has no such variable"),
    ] {
        let start = stack.agent.process.log_length();
        put(now);
        let log = &mut stack.agent.process;
        let line = log.wait_for_log_after(start, problem, SOON).await;
        assert!(line.contains("nomad/jobs/portreeve"), "{line}");
        assert!(
            problem != "it has no item" || (line.contains("www_pem") && line.contains("tls")),
            "{line}"
        );
        shows(&second_der, problem).await;
    }
    let start = stack.agent.process.log_length();
    nomad.set_token("another");
    let log = &mut stack.agent.process;
    let line = log
        .wait_for_log_after(start, "certificate not refreshed", SOON)
        .await;
    assert!(line.contains("403"), "{line}");
    put(Some(third));
    shows(&second_der, "without the right").await;
    // As Nomad does with the identity of a task.
    std::fs::write(&token, "another").unwrap();
    shows(&third_der, "the third, as soon as the token is right again").await;

    // The agent ends, and begins anew while Nomad refuses it: Envoy has the key.
    nomad.set_token("a third");
    stack.agent.kill();
    let start = stack.agent.process.log_length();
    stack.agent.process.start_again();
    for line in ["certificate not refreshed", "Envoy connected"] {
        let log = &mut stack.agent.process;
        log.wait_for_log_after(start, line, SOON).await;
    }
    stack.agent.wait_ready().await;
    shows(&third_der, "the third, as Envoy has it").await;
    load.finish().await.assert_none_lost();

    // Both begin anew, and nobody has the key: the port stays closed until somebody does.
    stack.agent.kill();
    kill(stack.envoy_pid());
    let start = stack.agent.process.log_length();
    stack.agent.process.start_again();
    let log = &mut stack.agent.process;
    log.wait_for_log_after(start, "is not given the listener \"secure\"", SOON)
        .await;
    wait_for("a closed port", SOON, async || {
        match client.send(&request).await {
            Err(failure) if failure.kind() == "refused" => Ok(()),
            other => anyhow::bail!("{:?}", other.map(|reply| reply.status)),
        }
    })
    .await;
    std::fs::write(&token, "a third").unwrap();
    shows(&third_der, "the third, from Nomad again").await;
}

async fn until_found_dead(stack: &Stack, port: u16) {
    wait_for("Envoy's own check to fail", Duration::from_secs(60), async || {
        let clusters = stack.envoy().clusters().await;
        let clusters = clusters["cluster_statuses"].as_array().unwrap().iter();
        let mut hosts =
            clusters.flat_map(|cluster| cluster["host_statuses"].as_array().into_iter().flatten());
        anyhow::ensure!(hosts.any(|host| {
            host["address"]["socket_address"]["port_value"] == port
                && host["health_status"]["failed_active_health_check"] == true
        }));
        Ok(())
    })
    .await;
}

/// Nomad registers a task that begins, not one that listens: its first check mostly fails. Nobody waits for an interval then.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_registered_before_it_listens_serves_soon_after_it_does() {
    let (task, _one, request) = checked_every("10m").await;
    let Task {
        nomad,
        stack,
        _directory,
        ..
    } = task;
    let mut two = Backend::start("two").await;
    two.stop().await;
    nomad.register("default", "orders", two.port);
    until_found_dead(&stack, two.port).await;
    two.restart().await;
    stack
        .until(&request, "the second instance", |reply| {
            reply.backend() == Some("two")
        })
        .await;
}

/// No document says how: a port that takes no connection is found within the default interval.
#[tokio::test(flavor = "multi_thread")]
async fn instances_are_checked_where_no_document_says_so() {
    let Task {
        nomad,
        stack,
        token: _,
        _directory,
    } = task_with("identity-1").await;
    let (one, mut two) = (Backend::start("one").await, Backend::start("two").await);
    nomad.register("default", "orders", one.port);
    nomad.register("default", "orders", two.port);
    stack.put("gateway", GATEWAY).await;
    stack.put("shop", &upstream("shop", "  nomad {}")).await;
    let request = Request::get("shop.example.com", "/");
    stack
        .until(&request, "an instance", |reply| reply.backend() == Some("two"))
        .await;
    two.stop().await;
    until_found_dead(&stack, two.port).await;
    for _ in 0..20 {
        let reply = stack.client().send(&request).await.unwrap();
        assert_eq!(reply.backend(), Some("one"));
    }
}

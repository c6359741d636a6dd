//! How many connections are taken: by one listener, whatever number of certificates it has, and by all together.

use crate::stack::{Options, SOON, Stack, until};
use crate::support::client::{Client, Request};
use crate::support::wait_for;

fn document(certificates: &[&str], limit: u32) -> String {
    let named: Vec<String> = certificates.iter().map(|name| format!("{name:?}")).collect();
    let blocks: String = certificates
        .iter()
        .map(|name| {
            format!(
                "certificate {name:?} {{\n  vault_pki {{\n    mount       = \"pki_int\"\n    role        = \"edge\"\n    \
                 common_name = \"{name}.example.com\"\n  }}\n}}\n"
            )
        })
        .collect();
    format!(
        r#"
gateway "edge" {{
  listener "secure" {{
    port            = $HTTPS
    protocol        = "https"
    max_connections = {limit}
    tls {{ certificates = [{named}] }}
  }}

  listener "web" {{
    port = $HTTP
  }}
}}

{blocks}
http_route "all" {{
  gateways  = ["edge"]
  hostnames = ["a.example.com", "b.example.com", "c.example.com"]

  rule "all" {{
    direct_response {{
      status = 200
    }}
  }}
}}
"#,
        named = named.join(", ")
    )
}

/// A client that keeps the one connection it has just made.
async fn hold(client: &Client, host: &str) -> Client {
    let held = client.clone().keep_alive();
    until(&held, &Request::get(host, "/"), "a connection", |reply| {
        reply.status == 200
    })
    .await;
    held
}

async fn refused(client: &Client, host: &str) {
    let answer = client.send(&Request::get(host, "/")).await;
    assert!(answer.is_err(), "{host}: one too many was served: {answer:?}");
}

async fn a_limit_counts_the_listener(options: Options) {
    let stack = Stack::start(Options {
        vault: true,
        ..options
    })
    .await;
    stack.put("edge", &document(&["a", "b"], 2)).await;
    let client = stack.https_client().await;
    let (a, b) = ("a.example.com", "b.example.com");
    for host in [a, b] {
        until(&client, &Request::get(host, "/"), host, |reply| {
            reply.status == 200
        })
        .await;
    }

    let first = hold(&client, a).await;
    let second = hold(&client, b).await;
    refused(&client, a).await;
    refused(&client, b).await;
    assert_eq!(
        stack.client().send(&Request::get(a, "/")).await.unwrap().status,
        200,
        "another listener has a limit of its own, or none"
    );
    let overflow = stack
        .envoy()
        .stats(r"^listener\..*\.downstream_cx_overflow$")
        .await;
    assert!(overflow.values().sum::<u64>() >= 2, "{overflow:?}");

    // Another certificate is another filter chain: what is connected still counts.
    stack.put("edge", &document(&["a", "b", "c"], 2)).await;
    wait_for("the third certificate", SOON, async || {
        let dump = stack.envoy().config_dump().await.to_string();
        anyhow::ensure!(dump.contains("certificate/c"));
        Ok(())
    })
    .await;
    refused(&client, b).await;
    refused(&client, "c.example.com").await;

    // Room again, for any of them.
    drop(first);
    let third = hold(&client, "c.example.com").await;
    refused(&client, a).await;

    // A higher limit needs no new listener: nobody is sent away.
    stack.put("edge", &document(&["a", "b", "c"], 3)).await;
    let fourth = hold(&client, a).await;
    refused(&client, a).await;
    for (held, host) in [(second, b), (third, "c.example.com"), (fourth, a)] {
        let reply = held.send(&Request::get(host, "/")).await;
        assert_eq!(reply.unwrap().status, 200, "{host}: a held connection serves on");
    }
    let taken = stack.envoy().stat("listener_manager.listener_modified").await
        + stack
            .envoy()
            .stat("listener_manager.listener_in_place_updated")
            .await;
    println!("listener updates: {taken}, overflow {overflow:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn max_connections_counts_a_listeners_connections_over_all_certificates_delta() {
    a_limit_counts_the_listener(Options::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn max_connections_counts_a_listeners_connections_over_all_certificates_state_of_the_world() {
    a_limit_counts_the_listener(Options {
        state_of_the_world: true,
        ..Options::default()
    })
    .await;
}

/// The bound of the agent's settings, over all listeners. Envoy's admin socket stays open to the operator.
#[tokio::test(flavor = "multi_thread")]
async fn max_downstream_connections_bounds_the_whole_envoy() {
    let stack = Stack::start(Options {
        envoy_settings: "max_downstream_connections = 3",
        ..Options::default()
    })
    .await;
    let document = r#"
gateway "edge" {
  listener "web" {
    port = $HTTP
  }

  listener "other" {
    port = $HTTPS
  }
}

http_route "all" {
  gateways  = ["edge"]
  hostnames = ["a.example.com"]

  rule "all" {
    direct_response {
      status = 200
    }
  }
}
"#;
    stack.put("edge", document).await;
    let (web, other) = (stack.client(), Client::http(stack.https));
    let host = "a.example.com";
    let held = [
        hold(&web, host).await,
        hold(&other, host).await,
        hold(&web, host).await,
    ];
    refused(&web, host).await;
    refused(&other, host).await;
    stack.envoy().ready().await.unwrap();
    drop(held);
    hold(&other, host).await;
}

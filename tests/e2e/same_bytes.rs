//! Two agents make the same bytes of the same documents, however these came to be, and again after a restart.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::Method;
use serde_json::Value;

use crate::stack::{GATEWAY, Options, SOON, Stack, route};
use crate::support::agent::Agent;
use crate::support::backend::Backend;
use crate::support::wait_for;

/// Many names in every map: an order that is not fixed would show.
fn document(number: usize) -> String {
    let headers: Vec<String> = (0..12)
        .map(|n| {
            format!(
                "      \"x-{}-{n}\" = \"{number}\"",
                (b'a' + (n * 7 % 26) as u8) as char
            )
        })
        .collect();
    format!(
        r#"
http_route "shop-{number}" {{
  gateways  = ["edge"]
  hostnames = ["shop-{number}.example.com", "*.shop-{number}.example.com"]

  client_ip {{
    allow = ["127.0.0.0/8", "10.{number}.0.0/16", "2001:db8::/32"]
    deny  = ["10.6.6.0/24"]
  }}

  retry {{
    attempts = 2
    on       = ["connect-failure", "gateway-error"]
  }}

  rule "api" {{
    match {{
      path_prefix = "/api"
      methods     = ["GET", "POST"]

      header "x-version" {{ exact = "{number}" }}
      header "x-team" {{ prefix = "t" }}
    }}

    client_ip {{
      allow = ["127.0.0.0/8"]
    }}

    request_headers {{
      set = {{
{headers}
      }}
    }}

    response_headers {{
      set = {{
{headers}
      }}
    }}

    backend "consul" "orders" {{ weight = {weight} }}
    backend "consul" "orders-next" {{ weight = 7 }}
    backend "upstream" "fixed-{number}" {{ weight = 1 }}
  }}

  rule "rest" {{
    timeout = "3s"
    backend "consul" "orders" {{}}
  }}
}}

upstream "fixed-{number}" {{
  static {{ addresses = ["127.0.0.1:9{number:03}", "127.0.0.1:8{number:03}"] }}

  circuit_breaker {{
    max_requests    = 10
    max_connections = 5
  }}
}}
"#,
        headers = headers.join("\n"),
        weight = number + 1,
    )
}

const HOSTS: usize = 8;

async fn listing(agent: &Agent) -> anyhow::Result<String> {
    let answer = agent.api(Method::GET, "/v1/resources", "").await?;
    Ok(answer.ok()?.text())
}

/// Kind and name to version.
fn versions(listing: &str) -> BTreeMap<String, String> {
    let listing: Value = serde_json::from_str(listing).unwrap();
    let mut versions = BTreeMap::new();
    for (kind, resources) in listing.as_object().unwrap() {
        for resource in resources.as_array().unwrap() {
            let name = format!("{kind} {}", resource["name"].as_str().unwrap());
            versions.insert(name, resource["version"].as_str().unwrap().to_owned());
        }
    }
    versions
}

async fn same(one: &Agent, two: &Agent, what: &str) -> BTreeMap<String, String> {
    wait_for(what, SOON, async || {
        let (first, second) = (listing(one).await?, listing(two).await?);
        anyhow::ensure!(first == second, "{}", difference(&first, &second));
        let missing = (0..HOSTS).find(|number| !first.contains(&format!("upstream/fixed-{number}\"")));
        anyhow::ensure!(missing.is_none(), "not all is published yet");
        Ok(versions(&first))
    })
    .await
}

fn difference(first: &str, second: &str) -> String {
    let (first, second) = (versions(first), versions(second));
    let names = first.keys().chain(second.keys());
    let differ: Vec<&String> = names
        .filter(|name| first.get(*name) != second.get(*name))
        .collect();
    format!("they differ in {differ:?}")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_and_every_restart_make_the_same_bytes() {
    let stack = Stack::start(Options {
        no_envoy: true,
        ..Options::default()
    })
    .await;
    let (one, two, next) = (
        Backend::start("one").await,
        Backend::start("two").await,
        Backend::start("next").await,
    );
    // The first agent sees everything come, one by one and with detours.
    stack.put("gateway", GATEWAY).await;
    stack.register("orders", &two).await;
    for number in (0..HOSTS).rev() {
        stack
            .put(
                &format!("shop-{number}"),
                &route(&format!("shop-{number}"), "detour.example.com", "orders"),
            )
            .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        stack.put(&format!("shop-{number}"), &document(number)).await;
    }
    stack.register("orders-next", &next).await;
    stack.register("orders", &one).await;

    // The second finds it all there.
    let launch = Agent::prepare();
    let home = stack.data.parent().unwrap();
    let settings = std::fs::read_to_string(home.join("portreeve.hcl")).unwrap();
    let settings = settings
        .replace(home.to_str().unwrap(), launch.directory().to_str().unwrap())
        .replace("\"node-1\"", "\"node-2\"");
    let settings = launch.file("portreeve.hcl", &settings);
    let data = launch.directory().join("data");
    let mut other = launch.arg("agent").arg("-config").arg(&settings).start();
    let versions = same(&stack.agent, &other, "the same from both").await;
    println!("{} resources, the same in both processes", versions.len());
    assert!(versions.len() >= HOSTS + 6, "{versions:#?}");

    // Hashes have other seeds in each process: several, with the state on disk and without.
    for round in 0..4 {
        other.kill();
        if round % 2 == 1 {
            std::fs::remove_dir_all(&data).unwrap();
        }
        other.process.start_again();
        let again = same(&stack.agent, &other, "the same after a restart").await;
        assert_eq!(again, versions, "round {round}");
    }

    // A change shows, in what it concerns, and in both alike.
    stack
        .put("shop-3", &document(3).replace("\"3s\"", "\"4s\""))
        .await;
    wait_for("a change", SOON, async || {
        anyhow::ensure!(self::versions(&listing(&stack.agent).await?) != versions);
        Ok(())
    })
    .await;
    let changed = same(&stack.agent, &other, "the same after a change").await;
    let differ: Vec<&String> = changed
        .keys()
        .filter(|name| changed.get(*name) != versions.get(*name))
        .collect();
    println!("one timeout changes {differ:?}");
    assert!(!differ.is_empty() && differ.len() <= 2, "{differ:?}");
}

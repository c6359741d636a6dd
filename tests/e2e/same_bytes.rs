//! Two agents make the same bytes of the same documents, however these came to be, and again after a restart.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use portreeve::envoy::ResourceKind;
use tokio::sync::mpsc;
use tonic::transport::Endpoint;

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

/// Kind and name to version and bytes.
type Listing = BTreeMap<String, String>;

/// All that an Envoy of this agent is told, as it comes out of the socket.
async fn listing(data: &Path) -> anyhow::Result<Listing> {
    let socket = format!("unix://{}", data.join("xds.sock").display());
    let channel = Endpoint::from_shared(socket)?.connect().await?;
    let (requests, receiver) = mpsc::channel(64);
    for kind in ResourceKind::ALL {
        let node = Node {
            id: "reader".to_owned(),
            cluster: "edge".to_owned(),
            ..Node::default()
        };
        let request = DeltaDiscoveryRequest {
            node: Some(node),
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: vec!["*".to_owned()],
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(request).await?;
    }
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(usize::MAX);
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut responses = client.delta_aggregated_resources(stream).await?.into_inner();
    let mut listing = Listing::new();
    // Routes follow once the clusters are acknowledged; then it is quiet.
    while let Ok(response) = tokio::time::timeout(Duration::from_millis(500), responses.message()).await {
        let response = response?.ok_or_else(|| anyhow::anyhow!("the stream ended"))?;
        for resource in &response.resources {
            let body = &resource.resource.as_ref().expect("a body").value;
            let content = format!("{} {}", resource.version, blake3::hash(body).to_hex());
            let kind = response.type_url.rsplit('.').next().unwrap_or_default();
            listing.insert(format!("{kind} {}", resource.name), content);
        }
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(answer).await?;
    }
    Ok(listing)
}

async fn same(one: &Path, two: &Path, what: &str) -> Listing {
    wait_for(what, SOON, async || {
        let (first, second) = (listing(one).await?, listing(two).await?);
        let names = first.keys().chain(second.keys());
        let differ: Vec<&String> = names
            .filter(|name| first.get(*name) != second.get(*name))
            .collect();
        anyhow::ensure!(differ.is_empty(), "they differ in {differ:?}");
        let missing =
            (0..HOSTS).find(|number| !first.contains_key(&format!("Cluster upstream/fixed-{number}")));
        anyhow::ensure!(missing.is_none(), "not all is published yet: {:?}", first.keys());
        Ok(first)
    })
    .await
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
    let versions = same(&stack.data, &data, "the same from both").await;
    println!("{} resources, the same in both processes", versions.len());
    assert!(versions.len() >= HOSTS + 6, "{versions:#?}");

    // Hashes have other seeds in each process: several, with the state on disk and without.
    for round in 0..4 {
        other.kill();
        if round % 2 == 1 {
            std::fs::remove_dir_all(&data).unwrap();
        }
        other.process.start_again();
        let again = same(&stack.data, &data, "the same after a restart").await;
        assert_eq!(again, versions, "round {round}");
    }

    // A change shows, in what it concerns, and in both alike.
    stack
        .put("shop-3", &document(3).replace("\"3s\"", "\"4s\""))
        .await;
    wait_for("a change", SOON, async || {
        anyhow::ensure!(listing(&stack.data).await? != versions);
        Ok(())
    })
    .await;
    let changed = same(&stack.data, &data, "the same after a change").await;
    let differ: Vec<&String> = changed
        .keys()
        .filter(|name| changed.get(*name) != versions.get(*name))
        .collect();
    println!("one timeout changes {differ:?}");
    assert!(!differ.is_empty() && differ.len() <= 2, "{differ:?}");
}

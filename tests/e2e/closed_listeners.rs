//! A listener that is not open is told as that: by `status`, `/ready`, `explain` and a metric.

use std::net::TcpListener;
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use crate::stack::{GATEWAY, Options, SOON, Stack, until};
use crate::support::client::{Client, Request};
use crate::support::wait_for;

const ROUTE: &str = r#"
http_route "shop" {
  gateways  = ["edge"]
  hostnames = ["shop.example.com"]

  rule "all" {
    direct_response {
      status = 200
    }
  }
}
"#;

async fn ready(stack: &Stack) -> anyhow::Result<(u16, Value)> {
    let answer = stack.agent.api(Method::GET, "/v1/ready", "").await?;
    Ok((answer.status.as_u16(), answer.json()))
}

async fn explained(stack: &Stack) -> Value {
    let path = format!(
        "/v1/explain?url=http%3A%2F%2Fshop.example.com%3A{}%2F",
        stack.https
    );
    let answer = stack.agent.api(Method::GET, &path, "").await.unwrap();
    answer.ok().unwrap().json()[0].clone()
}

async fn listeners(stack: &Stack) -> Value {
    let answer = stack.agent.api(Method::GET, "/v1/status", "").await.unwrap();
    answer.ok().unwrap().json()["listeners"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_only_port_is_taken_is_not_ready_and_says_why() {
    let stack = Stack::start(Options::default()).await;
    // A child that another test is just starting holds a port that was open here, until it is another program.
    let taken = wait_for("a port to occupy", Duration::from_secs(5), async || {
        Ok(TcpListener::bind(("127.0.0.1", stack.https))?)
    })
    .await;
    let only = "gateway \"edge\" {\n  listener \"taken\" {\n    port = $HTTPS\n  }\n}\n";
    stack.put("gateway", only).await;
    stack.put("shop", ROUTE).await;
    let said = wait_for("the agent not to be ready", SOON, async || {
        let (status, said) = ready(&stack).await?;
        let said = said["missing"].to_string();
        anyhow::ensure!(status == 503 && said.contains("Address already in use"), "{said}");
        Ok(said)
    })
    .await;
    println!("the only port is taken: {said}");
    assert!(
        said.contains("an open listener: of gateway \\\"edge\\\""),
        "{said}"
    );
    wait_for("the route", SOON, async || {
        anyhow::ensure!(explained(&stack).await["route"] == "shop/all");
        Ok(())
    })
    .await;
    let all = listeners(&stack).await;
    assert_eq!(all[0]["phase"], "refused", "{all}");
    assert_eq!(all[0]["open"], json!({ "acknowledged": 0, "of": 1 }), "{all}");
    assert!(
        all[0]["reasons"][0]
            .as_str()
            .unwrap()
            .contains("Address already in use"),
        "{all}"
    );
    let explanation = explained(&stack).await;
    let answer = explanation["answer"].as_str().unwrap();
    assert!(
        answer.contains("the rule matches, but the listener \"taken\" is not open: Envoy"),
        "{explanation:#}"
    );
    let metrics = stack.agent.api(Method::GET, "/metrics", "").await.unwrap().text();
    assert!(
        metrics.contains("portreeve_listeners{gateway=\"edge\",state=\"refused\"} 1.0\n"),
        "{metrics}"
    );

    // Beside one that is open the agent is of use.
    let more = GATEWAY.trim_end().trim_end_matches('}').to_owned()
        + "\n  listener \"taken\" {\n    port = $HTTPS\n  }\n}\n";
    stack.put("gateway", &more).await;
    wait_for("the agent to be ready, but for one listener", SOON, async || {
        let (status, said) = ready(&stack).await?;
        let degraded = said["degraded"].to_string();
        anyhow::ensure!(
            status == 200 && degraded.contains("the listener \\\"taken\\\" is not open"),
            "{said}"
        );
        Ok(())
    })
    .await;

    stack.put("gateway", only).await;
    wait_for("the agent not to be ready again", SOON, async || {
        anyhow::ensure!(ready(&stack).await?.0 == 503);
        Ok(())
    })
    .await;
    drop(taken);
    let opened = Client::http(stack.https);
    let request = Request::get("shop.example.com", "/");
    until(&opened, &request, "the freed port", |reply| reply.status == 200).await;
    wait_for("the agent to be ready", SOON, async || {
        let (status, said) = ready(&stack).await?;
        anyhow::ensure!(status == 200 && said["degraded"].is_null(), "{said}");
        Ok(())
    })
    .await;
    assert_eq!(listeners(&stack).await[0]["phase"], "open");
    assert!(explained(&stack).await["closed"].is_null());
}

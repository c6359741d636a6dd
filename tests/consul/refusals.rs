//! Refusals of a real Consul that no rule of a policy mends: the agent has no token, or Consul's settings keep the request out.

use imbl::OrdMap;
use portreeve::model::{Problem, ProblemKind, ServiceQuery};
use portreeve::sources::consul::{ConsulClient, ServiceWatcher, list_documents};
use serde_json::json;

use crate::server::{ROOT, Running, Server, quick};

/// What Consul takes everybody for who shows no token.
const ANONYMOUS: &str = "acl/token/00000000-0000-0000-0000-000000000002";

fn watch(client: ConsulClient) -> (Running, ServiceWatcher) {
    let (mut running, sender) = Running::new();
    let (watcher, task) = ServiceWatcher::new(client, sender);
    running
        .tasks
        .spawn(task.with_timing(quick()).run(running.cancel.clone()));
    watcher.set_interests(OrdMap::unit(ServiceQuery::named("web"), 0));
    (running, watcher)
}

/// What is said of the service, and what to do.
async fn said(running: &mut Running) -> (Problem, String) {
    let problem = running.service().await.result.expect_err("a problem");
    let fix = problem.fix.as_deref().expect("a fix").to_owned();
    (problem, fix)
}

#[tokio::test]
async fn where_the_acls_want_a_token_and_the_agent_has_none_that_is_said() {
    for extra in ["", "disable_coordinates = true"] {
        let server = Server::start_with(true, extra).await;
        server.register("web", "web-1", 80).await;
        let error = list_documents(&server.client(None), "portreeve/config/")
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ProblemKind::NoToken, "{error}");
        assert!(error.to_string().contains("without a token"), "{error}");

        // Consul hides what it does not say: the service first, then the nodes.
        server
            .policy("services", "service_prefix \"\" { policy = \"read\" }")
            .await;
        for (policies, rule) in [
            (json!([]), "service \"web\""),
            (json!([{ "Name": "services" }]), "node_prefix"),
        ] {
            server.put(ANONYMOUS, json!({ "Policies": policies })).await;
            let (mut running, _watcher) = watch(server.client(None));
            let (problem, fix) = said(&mut running).await;
            assert_eq!(problem.kind, ProblemKind::NoToken, "{problem}");
            assert!(
                problem.message.contains("the agent, which has no token,"),
                "{problem}"
            );
            assert!(
                fix.contains("no token is set; put one into CONSUL_HTTP_TOKEN"),
                "{fix}"
            );
            assert!(fix.contains(rule), "{fix}");
        }
    }
}

#[tokio::test]
async fn an_endpoint_that_consul_blocks_is_no_missing_right() {
    let blocks = "http_config { block_endpoints = [\"/v1/health/service\"] }";
    let server = Server::start_with(true, blocks).await;
    server.register("web", "web-1", 80).await;
    let (mut running, _watcher) = watch(server.client(Some(ROOT)));
    let (problem, fix) = said(&mut running).await;
    assert_eq!(problem.kind, ProblemKind::Blocked, "{problem}");
    assert!(problem.message.contains("/v1/health/service/web"), "{problem}");
    assert!(fix.contains("http_config.block_endpoints"), "{fix}");
}

/// To ask for one node's coordinates is how the right to see nodes is found out. Blocked, it says nothing of rights.
#[tokio::test]
async fn blocked_coordinates_hold_no_instance_in_service() {
    let blocks = "http_config { block_endpoints = [\"/v1/coordinate\"] }";
    let server = Server::start_with(true, blocks).await;
    server.register("web", "web-1", 80).await;
    let (mut running, _watcher) = watch(server.client(Some(ROOT)));
    assert_eq!(running.service().await.result.unwrap().len(), 1);
    server.put("agent/service/deregister/web-1", "").await;
    assert!(running.service().await.result.unwrap().is_empty());
}

#[tokio::test]
async fn a_write_from_where_consul_takes_none_is_no_missing_right() {
    let writers = "http_config { allow_write_http_from = [\"10.0.0.0/8\"] }";
    let server = Server::start_with(true, writers).await;
    let client = server.client(Some(ROOT));
    let error = client.put_cas("portreeve/x", "1", 0).await.unwrap_err();
    assert_eq!(error.kind(), ProblemKind::Blocked, "{error}");
    let fix = error.problem().fix.unwrap();
    assert!(fix.contains("http_config.allow_write_http_from"), "{fix}");
    assert!(
        client.read_key("portreeve/x").await.unwrap().is_none(),
        "it may read"
    );
}

//! What a reload could not take up stands in the status. No Envoy: settings alone.

use anyhow::Context as _;
use hyper::Method;
use serde_json::Value;

use crate::stack::SOON;
use crate::support::agent::Agent;
use crate::support::wait_for;

/// What the status says of the last reload.
async fn problem_of_settings(agent: &Agent) -> Option<Value> {
    let status = agent
        .api(Method::GET, "/v1/status", "")
        .await
        .expect("an answer")
        .json();
    let mut sources = status["sources"].as_array().into_iter().flatten();
    sources.find(|source| source["name"] == "settings").cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_reload_left_undone_stands_in_the_status_until_it_is_settled() {
    let launch = Agent::prepare();
    let good = "kv_documents {\n  vault_paths = [\"secret/edge/\"]\n}\n";
    let conf = launch.file("conf/limits.hcl", good).parent().unwrap().to_owned();
    let data = launch.directory().join("data");
    let launch = launch
        .api_socket(data.join("api.sock"))
        .arg("agent")
        .arg("-gateway=edge")
        .arg("-config");
    let launch = launch.arg(&conf).arg(format!("-data-dir={}", data.display()));
    let mut agent = launch.start_ready().await;
    assert_eq!(problem_of_settings(&agent).await, None);
    std::fs::write(
        conf.join("limits.hcl"),
        good.replace("kv_documents", "kv_document"),
    )
    .unwrap();
    agent.reload();
    agent.wait_for_log("the old ones stay").await;
    // Whoever restarts the agent some day is told before.
    let problem = wait_for("a standing problem", SOON, async || {
        problem_of_settings(&agent).await.context("there is none")
    })
    .await;
    assert_eq!(problem["ok"], false, "{problem}");
    for said in ["limits.hcl:1", "would not start again", "did you mean"] {
        assert!(problem["problem"].to_string().contains(said), "{problem}");
    }
    std::fs::write(conf.join("limits.hcl"), good).unwrap();
    agent.reload();
    agent.wait_for_log("settings reloaded").await;
    wait_for(
        "the end of the problem",
        SOON,
        async || match problem_of_settings(&agent).await {
            None => Ok(()),
            Some(problem) => anyhow::bail!("{problem}"),
        },
    )
    .await;

    // What waits for a restart is told until there is one, or the settings are what they were.
    std::fs::write(conf.join("log.hcl"), "log_json = true\n").unwrap();
    agent.reload();
    let problem = wait_for("settings that wait", SOON, async || {
        problem_of_settings(&agent).await.context("there is none")
    })
    .await;
    assert_eq!(problem["ok"], true, "{problem}");
    assert!(
        problem["problem"]
            .to_string()
            .contains("after a restart of the agent: log_json"),
        "{problem}"
    );
    // What services ask by is followed from the start on.
    let catalog = "consul {\n  address = \"http://127.0.0.1:1\"\n}\ncatalog {}\n";
    std::fs::write(conf.join("log.hcl"), catalog).unwrap();
    agent.reload();
    wait_for("the catalog, which waits", SOON, async || {
        let problem = problem_of_settings(&agent).await.context("there is none")?;
        anyhow::ensure!(problem.to_string().contains("catalog"), "{problem}");
        Ok(())
    })
    .await;
    std::fs::remove_file(conf.join("log.hcl")).unwrap();
    agent.reload();
    wait_for("the end of it", SOON, async || {
        match problem_of_settings(&agent).await {
            None => Ok(()),
            Some(problem) => anyhow::bail!("{problem}"),
        }
    })
    .await;
    agent.terminate();
}

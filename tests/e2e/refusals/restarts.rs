//! What a restart of the agent remembers, and what it lets go.

use std::path::Path;

use hyper::Method;
use rustix::process::Signal;

use super::{BAD_HEADER, document_of, edge, envoy_with_a_listener, get, kill, wait_for_phase};
use crate::stack::{GATEWAY, Options, SOON, Stack, until};
use crate::support::agent::Agent;
use crate::support::client::Client;
use crate::support::ports::free_port;
use crate::support::{program, scratch_directory, wait_for};

/// The agent dies after it published a bad text and before it heard of it: the accepted one is on disk, apart.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_between_a_put_and_its_refusal_keeps_what_was_accepted() {
    let mut stack = Stack::start(Options::default()).await;
    stack.put("gateway", GATEWAY).await;
    stack.put("shop", &edge("shop", "one", "")).await;
    stack
        .until(&get("shop"), "the first text", |reply| reply.text() == "one")
        .await;
    let envoy = stack.envoy_pid();
    // It gets the text and can say nothing.
    kill(envoy, Signal::STOP);
    let start = stack.agent.process.log_length();
    stack.put("shop", &edge("shop", "two", BAD_HEADER)).await;
    stack
        .agent
        .process
        .wait_for_log_after(start, "document taken", SOON)
        .await;
    // On disk by then.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(document_of(&stack.agent, "/shop").await, "in_service");
    stack.agent.kill();
    kill(envoy, Signal::KILL);
    stack.agent.process.start_again();
    stack
        .until(&get("shop"), "what was accepted", |reply| reply.text() == "one")
        .await;
    let problem = wait_for_phase(&stack.agent, "/shop", "last_good").await;
    assert_eq!(problem["code"], "envoy-rejected", "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_went_while_the_agent_was_down_is_gone() {
    let files = scratch_directory("documents");
    let write = |path: &str, text: &str| {
        let path = files.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let agent = |launch: crate::support::agent::AgentLaunch, documents: &Path| {
        let settings = launch.file(
            "portreeve.hcl",
            &format!(
                "gateways  = [\"edge\"]\nnode_name = \"node-1\"\nbind_addr = \"127.0.0.1\"\ndata_dir  = \"{}\"\n\n\
                 envoy {{\n  supervise       = true\n  binary          = \"{}\"\n  concurrency     = 1\n  \
                 drain_time      = \"1s\"\n  stop_with_agent = true\n}}\n\napi {{\n  socket = \"{}\"\n}}\n",
                launch.directory().join("data").display(),
                program("envoy").display(),
                launch.api().display(),
            ),
        );
        launch
            .args(["agent", "-config"])
            .arg(settings)
            .arg("-config")
            .arg(documents)
            .start()
    };
    let port = free_port();
    let gateway = GATEWAY.replace("$HTTP", &port.to_string());
    write("one/gateway.hcl", &gateway);
    write("one/shop.hcl", &edge("shop", "shop", ""));
    write("one/pets.hcl", &edge("pets", "pets", ""));
    write("two/gateway.hcl", &gateway);
    write("two/more.hcl", &edge("more", "more", ""));
    let one = files.path().join("one");
    let mut agent = agent(Agent::prepare(), &one);
    let client = Client::http(port);
    for name in ["shop", "pets"] {
        until(&client, &get(name), "both files", |reply| reply.status == 200).await;
    }
    // A file that goes while nobody looks.
    agent.kill();
    std::fs::remove_file(one.join("pets.hcl")).unwrap();
    agent.process.start_again();
    until(&client, &get("pets"), "the end of the file", |reply| {
        reply.status == 404
    })
    .await;
    assert_eq!(client.send(&get("shop")).await.unwrap().text(), "shop");

    // Another directory.
    agent.kill();
    let arguments = &mut agent.process.launch_mut().args;
    *arguments.last_mut().unwrap() = files.path().join("two").into();
    agent.process.start_again();
    until(&client, &get("more"), "the other directory", |reply| {
        reply.text() == "more"
    })
    .await;
    until(&client, &get("shop"), "the end of the old one", |reply| {
        reply.status == 404
    })
    .await;
    wait_for("the API", SOON, async || {
        agent.api(Method::GET, "/v1/status", "").await.map(drop)
    })
    .await;
    assert_eq!(document_of(&agent, "shop.hcl").await, "absent");
}

/// What a text was refused for may be gone when it comes back after another.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_text_that_comes_back_after_another_is_a_new_attempt() {
    let (_files, own_envoy, own) = envoy_with_a_listener();
    let stack = Stack::start(Options {
        envoy: Some(own_envoy.clone()),
        ..Options::default()
    })
    .await;
    stack.put("gateway", GATEWAY).await;
    stack.put("shop", &edge("shop", "shop", "")).await;
    let opened = |client: Client| async move {
        until(&client, &get("shop"), "the listener", |reply| reply.status == 200).await;
    };
    opened(stack.client()).await;
    let with = |port: &str| {
        let more = format!("\n  listener \"more\" {{\n    port = {port}\n  }}\n}}\n");
        GATEWAY.trim_end().trim_end_matches('}').to_owned() + &more
    };
    let refused = with(&own.to_string());
    stack.put("gateway", &refused).await;
    wait_for_phase(&stack.agent, "/gateway", "last_good").await;
    stack.put("gateway", &with("$HTTPS")).await;
    opened(Client::http(stack.https)).await;
    wait_for_phase(&stack.agent, "/gateway", "in_service").await;
    // The same Envoy, without the listener that had the port.
    let plain = format!("#!/bin/sh\nexec {} \"$@\"\n", program("envoy").display());
    std::fs::write(&own_envoy, plain).unwrap();
    kill(stack.envoy_pid(), Signal::KILL);
    opened(Client::http(stack.https)).await;
    stack.put("gateway", &refused).await;
    opened(Client::http(own)).await;
    wait_for_phase(&stack.agent, "/gateway", "in_service").await;
}

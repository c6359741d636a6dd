//! The agent's disk: full, damaged, gone.

use std::time::Duration;

use crate::stack::{Options, SOON, Stack, route};
use crate::support::client::Request;
use crate::support::load::Load;
use crate::support::wait_for;

/// A valid document that takes room: its comment.
fn large(name: &str) -> String {
    let comment = format!("# {}\n", "x".repeat(1000)).repeat(300);
    format!(
        "{comment}{}",
        route(name, &format!("{name}.example.com"), "orders")
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_nothing_but_the_next_restart_suffers() {
    let mut stack = Stack::start(Options {
        file_size_limit: Some(4096),
        ..Options::default()
    })
    .await;
    let (_backend, shop) = stack.shop().await;
    let load = Load::start(100, stack.client(), shop.clone());

    for number in 0..16 {
        let name = format!("large-{number}");
        stack.put(&name, &large(&name)).await;
    }
    let line = stack.agent.wait_for_log("cannot save the agent's state").await;
    println!("{}", line.trim());
    assert!(line.contains("make room on the disk"), "{line}");
    // Every change still reaches Envoy.
    for name in ["large-15", "large-0"] {
        let request = Request::get(&format!("{name}.example.com"), "/");
        stack.until(&request, name, |reply| reply.status == 200).await;
    }
    stack
        .put("pets", &route("pets", "pets.example.com", "orders"))
        .await;
    let pets = Request::get("pets.example.com", "/");
    stack
        .until(&pets, "a document", |reply| reply.status == 200)
        .await;

    // Room again: what could not be saved meanwhile is saved now, without a restart and without another change.
    let pid = rustix::process::Pid::from_raw(stack.agent.process.pid() as i32).unwrap();
    let unlimited = rustix::process::Rlimit {
        current: None,
        maximum: None,
    };
    rustix::process::prlimit(Some(pid), rustix::process::Resource::Fsize, unlimited).unwrap();
    stack.agent.wait_for_log("the agent's state is saved again").await;
    let report = load.finish().await;
    println!("full disk: {report}");
    report.assert_none_lost();
    // Its first transaction may have been begun before the last document came.
    let state = stack.data.join("state.redb");
    wait_for("all of it in the file", SOON, async || {
        let saved = std::fs::read(&state)?;
        for key in ["portreeve/config/large-15", "portreeve/config/pets"] {
            let is_saved = saved.windows(key.len()).any(|window| window == key.as_bytes());
            anyhow::ensure!(is_saved, "{key} was not saved");
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_state_file_is_named_envoy_serves_on_and_deleting_it_helps() {
    let mut stack = Stack::start(Options::default()).await;
    let (_backend, shop) = stack.shop().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let envoy = stack.envoy_pid();
    let load = Load::start(100, stack.client(), shop.clone());
    for file in ["state.redb", "certificates.redb"] {
        stack.agent.kill();
        let path = stack.data.join(file);
        let length = std::fs::metadata(&path).unwrap().len() as usize;
        std::fs::write(&path, vec![0x5a; length]).unwrap();
        let start = stack.agent.process.log_length();
        stack.agent.process.start_again();
        wait_for("the agent to give up", SOON, async || {
            anyhow::ensure!(!stack.agent.process.is_running(), "it runs");
            Ok(())
        })
        .await;
        let said = stack.agent.process.log()[start..].to_owned();
        println!("{said}");
        assert!(said.contains(path.to_str().unwrap()), "names the file: {said}");
        assert!(said.contains("delete"), "says what to do: {said}");

        std::fs::remove_file(&path).unwrap();
        let start = stack.agent.process.log_length();
        stack.agent.process.start_again();
        stack
            .agent
            .process
            .wait_for_log_after(start, "Envoy connected", SOON)
            .await;
    }
    assert_eq!(stack.envoy_pid(), envoy, "adopted, not doubled");
    stack
        .put("pets", &route("pets", "pets.example.com", "orders"))
        .await;
    let pets = Request::get("pets.example.com", "/");
    stack
        .until(&pets, "changes to flow", |reply| reply.status == 200)
        .await;
    let report = load.finish().await;
    println!("damaged state: {report}");
    report.assert_none_lost();
}

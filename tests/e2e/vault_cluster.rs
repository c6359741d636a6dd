//! Vault as a cluster: the agent talks to a standby, and the leader fails.

use hyper::Method;
use serde_json::Value;

use crate::stack::{Options, SOON, Stack, secure, until};
use crate::support::client::Request;
use crate::support::load::Load;
use crate::support::wait_for;

const RULE: &str = "direct_response {\n      status = 200\n    }";

fn another(name: &str) -> String {
    secure(RULE)
        .replace(
            "certificates = [\"www\"]",
            &format!("certificates = [\"www\", \"{name}\"]"),
        )
        .replace(
            "hostnames = [\"www.example.com\"]",
            &format!("hostnames = [\"www.example.com\", \"{name}.example.com\"]"),
        )
        + &format!(
            "certificate \"{name}\" {{\n  vault_pki {{\n    mount       = \"pki_int\"\n    role        = \"edge\"\n    \
             common_name = \"{name}.example.com\"\n  }}\n}}\n"
        )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_serves_the_agent_and_the_loss_of_the_leader_no_request() {
    let mut stack = Stack::start(Options {
        vault: true,
        vault_standbys: 2,
        ..Options::default()
    })
    .await;
    let health = async |node: &crate::support::vault::Vault| {
        let answer = node.call(Method::GET, "sys/health", Value::Null).await;
        answer.map_or(0, |answer| answer.status.as_u16())
    };
    assert_eq!(
        health(&stack.standbys[0]).await,
        429,
        "it is the standby that is asked"
    );
    stack.put("www", &secure(RULE)).await;
    let client = stack.https_client().await;
    let www = Request::get("www.example.com", "/");
    until(&client, &www, "a certificate by way of the standby", |reply| {
        reply.status == 200
    })
    .await;
    assert_eq!(health(&stack.standbys[0]).await, 429);

    let load = Load::start(30, client.clone(), www);
    stack.vault.as_mut().unwrap().kill();
    let leader = wait_for("another leader", 6 * SOON, async || {
        for node in &stack.standbys {
            if health(node).await == 200 {
                return Ok(node);
            }
        }
        anyhow::bail!("none yet")
    })
    .await;
    stack.put("www", &another("shop")).await;
    let shop = Request::get("shop.example.com", "/");
    wait_for("a certificate of the new leader", 6 * SOON, async || {
        let reply = client
            .send(&shop)
            .await
            .map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        anyhow::ensure!(reply.status == 200, "{}", reply.status);
        Ok(())
    })
    .await;
    load.finish().await.assert_none_lost();
    // A standby answers reads from what has reached it so far.
    let issued = leader.count_certificates("pki_int").await;
    assert_eq!(issued, 3, "the root and one for each name");
}

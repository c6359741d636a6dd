//! After a restart of the agent while the source of a certificate is away, only the Envoys that had its key have it.

use std::path::Path;
use std::time::Duration;

use hyper::Method;
use serde_json::Value;

use crate::stack::{Options, SOON, Stack, kill, secure, until};
use crate::support::client::{Client, Request};
use crate::support::load::Load;
use crate::support::pki::{Ca, Pair};
use crate::support::wait_for;

/// Envoy drains for 2 s.
const DRAINED: Duration = Duration::from_secs(20);

/// The two files of the certificate `www`.
pub struct Files(tempfile::TempDir);

impl Files {
    pub fn new() -> Files {
        Files(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    pub fn put(&self, pair: &Pair) {
        // Moved into place, so that no half of one is ever read.
        for (name, text) in [("www.key", &pair.key), ("www.pem", &pair.certificate)] {
            std::fs::write(self.path("new"), text).unwrap();
            std::fs::rename(self.path("new"), self.path(name)).unwrap();
        }
    }

    fn take(&self) {
        for name in ["www.key", "www.pem"] {
            std::fs::remove_file(self.path(name)).unwrap();
        }
    }

    pub fn document(&self, more: &str) -> String {
        format!(
            r#"
certificate "www" {{
  file {{
    certificate = {:?}
    private_key = {:?}
  }}
}}

http_route "www" {{
  gateways  = ["edge"{more}]
  hostnames = ["www.example.com"]

  rule "all" {{
    direct_response {{
      status = 200
    }}
  }}
}}
"#,
            self.path("www.pem"),
            self.path("www.key"),
        )
    }

    pub fn options(&self) -> Options {
        Options {
            kv_documents: Some(format!(
                "allow_loopback = true\n  files          = [\"{}/\"]",
                self.0.path().display()
            )),
            ..Options::default()
        }
    }
}

pub fn gateway(name: &str, port: u16) -> String {
    format!(
        "gateway {name:?} {{\n  listener \"secure\" {{\n    port     = {port}\n    protocol = \"https\"\n    \
         tls {{ certificates = [\"www\"] }}\n  }}\n}}\n"
    )
}

fn www() -> Request {
    Request::get("www.example.com", "/")
}

async fn serves(client: &Client, what: &str) {
    until(client, &www(), what, |reply| reply.status == 200).await;
}

async fn is_closed(client: &Client) {
    // A request that hangs is asked again, not waited for until the end of all patience.
    let client = client.clone().timeout(SOON / 4);
    wait_for("a closed port", SOON, async || match client.send(&www()).await {
        Err(failure) if failure.kind() == "refused" => Ok(()),
        other => anyhow::bail!("{:?}", other.map(|reply| reply.status)),
    })
    .await;
}

fn envoy_of(data: &Path, gateway: &str) -> i32 {
    let path = data.join(format!("envoy/{gateway}/envoy-state.json"));
    let record: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    record["pid"].as_i64().unwrap() as i32
}

fn signal(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

async fn status(stack: &Stack) -> anyhow::Result<Value> {
    Ok(stack.agent.api(Method::GET, "/v1/status", "").await?.ok()?.json())
}

/// The Envoy without the key asks first, before the one that has it is back: whatever it lacks is its own affair.
async fn one_lacks_what_the_other_has(state_of_the_world: bool) {
    let files = Files::new();
    let authority = Ca::new("files");
    let pair = authority.issue(&["www.example.com"]);
    files.put(&pair);
    let mut stack = Stack::start(Options {
        state_of_the_world,
        arguments: vec!["-gateway=edge", "-gateway=inner"],
        ..files.options()
    })
    .await;
    let other = crate::support::ports::free_port();
    stack.put("edge", &gateway("edge", stack.https)).await;
    stack.put("inner", &gateway("inner", other)).await;
    stack.put("www", &files.document(", \"inner\"")).await;
    let edge = Client::https(stack.https, &authority.certificate);
    let inner = Client::https(other, &authority.certificate);
    serves(&edge, "https of the one").await;
    serves(&inner, "https of the other").await;

    stack.agent.kill();
    kill(envoy_of(&stack.data, "inner"));
    files.take();
    let holder = envoy_of(&stack.data, "edge");
    signal(holder, rustix::process::Signal::STOP);
    let start = stack.agent.process.log_length();
    stack.agent.process.start_again();
    let log = &mut stack.agent.process;
    let line = log
        .wait_for_log_after(start, "is not given the listener", SOON)
        .await;
    assert!(
        line.contains("/inner") && line.contains("www") && line.contains("listener-withheld"),
        "{line}"
    );
    is_closed(&inner).await;
    signal(holder, rustix::process::Signal::CONT);
    // It has served all along, as far as it was let.
    let load = Load::start(50, edge.clone(), www());
    wait_for(
        "the one that has the key to be back, and the other to be told of",
        SOON,
        async || {
            let status = status(&stack).await?;
            let programmed = |name: &str| {
                let gateways = status["gateways"].as_array()?;
                let gateway = gateways.iter().find(|gateway| gateway["name"] == name)?;
                Some((
                    gateway["programmed"]["acknowledged"].as_u64()?,
                    gateway["programmed"]["of"].as_u64()?,
                ))
            };
            anyhow::ensure!(programmed("edge") == Some((1, 1)), "{status:#}");
            anyhow::ensure!(programmed("inner") == Some((0, 1)), "{status:#}");
            let phase = |gateway: &str| {
                let mut all = status["listeners"].as_array()?.iter();
                all.find(|listener| listener["gateway"] == gateway)?["phase"].as_str()
            };
            anyhow::ensure!(phase("edge") == Some("open"), "{status:#}");
            anyhow::ensure!(phase("inner") == Some("withheld"), "{status:#}");
            // Somebody has it.
            anyhow::ensure!(status["certificates"][0]["phase"] == "valid", "{status:#}");
            Ok(())
        },
    )
    .await;
    // Longer than an Envoy is waited for that may still say what it has.
    let load = load.run_for(Duration::from_secs(4)).await;
    println!("with the key, while another has none: {load}");
    load.assert_none_lost();
    is_closed(&inner).await;
    assert_eq!(envoy_of(&stack.data, "edge"), holder);

    files.put(&pair);
    serves(&inner, "the other, once the key is back").await;
    serves(&edge, "the one").await;
    wait_for("an end of the trouble", SOON, async || {
        let status = status(&stack).await?;
        anyhow::ensure!(!status.to_string().contains("listener-withheld"), "{status:#}");
        Ok(())
    })
    .await;
}

/// The listener has another one, so its port is open: what it refuses is told.
async fn lacks_one_of_several_keys(state_of_the_world: bool) {
    let files = Files::new();
    let authority = Ca::new("files");
    let pair = authority.issue(&["www.example.com"]);
    files.put(&pair);
    let other = authority.issue(&["other.example.com"]);
    let more = format!(
        "certificate \"other\" {{\n  file {{\n    certificate = {:?}\n    private_key = {:?}\n  }}\n}}\n",
        files.path("other.pem"),
        files.path("other.key")
    );
    std::fs::write(files.path("other.pem"), &other.certificate).unwrap();
    std::fs::write(files.path("other.key"), &other.key).unwrap();
    let mut stack = Stack::start(Options {
        state_of_the_world,
        ..files.options()
    })
    .await;
    let edge = gateway("edge", stack.https).replace("\"www\"", "\"www\", \"other\"");
    stack.put("edge", &(edge + &more)).await;
    let hosts = "[\"www.example.com\", \"other.example.com\"]";
    let route = files.document("").replace("[\"www.example.com\"]", hosts);
    stack.put("www", &route).await;
    let client = Client::https(stack.https, &authority.certificate);
    serves(&client, "https").await;

    stack.agent.kill();
    kill(envoy_of(&stack.data, "edge"));
    files.take();
    let start = stack.agent.process.log_length();
    stack.agent.process.start_again();
    let log = &mut stack.agent.process;
    let line = log
        .wait_for_log_after(start, "has no private key for the certificate", SOON)
        .await;
    assert!(
        line.contains("certificate \"www\"") && line.contains("certificate-problem"),
        "{line}"
    );
    let request = Request::get("other.example.com", "/");
    until(&client, &request, "the other host", |reply| reply.status == 200).await;
    let told = status(&stack).await.unwrap();
    let text = told.to_string();
    assert!(text.contains("refuses handshakes for its names"), "{text}");
    let all = told["certificates"].as_array().unwrap();
    let www_is = |phase: &str| {
        all.iter()
            .any(|one| one["name"] == "www" && one["phase"] == phase)
    };
    assert!(www_is("no_key"), "{all:#?}");
    assert!(client.send(&www()).await.is_err(), "without a certificate");

    files.put(&pair);
    serves(&client, "https, once the key is back").await;
    wait_for("an end of the trouble", SOON, async || {
        let status = status(&stack).await?;
        anyhow::ensure!(!status.to_string().contains("refuses handshakes"), "{status:#}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_that_lacks_one_of_several_keys_is_told_of_delta() {
    lacks_one_of_several_keys(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_that_lacks_one_of_several_keys_is_told_of_state_of_the_world() {
    lacks_one_of_several_keys(true).await;
}

/// Envoy stays, and is connected again at the end.
async fn kill_and_start_again(stack: &mut Stack) {
    stack.agent.kill();
    let start = stack.agent.process.log_length();
    stack.agent.process.start_again();
    let log = &mut stack.agent.process;
    log.wait_for_log_after(start, "Envoy connected", SOON).await;
    stack.agent.wait_ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_envoy_lacks_closes_no_port_of_another_delta() {
    one_lacks_what_the_other_has(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_envoy_lacks_closes_no_port_of_another_state_of_the_world() {
    one_lacks_what_the_other_has(true).await;
}

async fn restart(stack: &Stack) -> anyhow::Result<(u16, String)> {
    let answer = stack.agent.api(Method::POST, "/v1/envoy/restart", "").await?;
    Ok((answer.status.as_u16(), answer.text()))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_that_alone_has_a_key_is_not_replaced() {
    let files = Files::new();
    let authority = Ca::new("files");
    let pair = authority.issue(&["www.example.com"]);
    files.put(&pair);
    let mut stack = Stack::start(files.options()).await;
    stack.put("edge", &gateway("edge", stack.https)).await;
    stack.put("www", &files.document("")).await;
    let client = Client::https(stack.https, &authority.certificate);
    serves(&client, "https").await;
    let pid = stack.envoy_pid();
    let load = Load::start(50, client.clone(), www());

    stack.agent.kill();
    files.take();
    let start = stack.agent.process.log_length();
    stack.agent.process.start_again();
    let log = &mut stack.agent.process;
    log.wait_for_log_after(start, "Envoy connected", SOON).await;
    stack.agent.wait_ready().await;
    let (code, said) = restart(&stack).await.unwrap();
    println!("{code} {said}");
    assert_eq!(code, 409, "{said}");
    assert!(
        said.contains("www") && said.contains("running Envoy alone"),
        "{said}"
    );
    assert_eq!(stack.envoy_pid(), pid);
    serves(&client, "the Envoy that was not replaced").await;

    files.put(&pair);
    wait_for("a restart, once the key is back", DRAINED, async || {
        let (code, said) = restart(&stack).await?;
        anyhow::ensure!(code == 200, "{said}");
        Ok(())
    })
    .await;
    assert_ne!(stack.envoy_pid(), pid);
    serves(&client, "the next Envoy").await;
    let load = load.finish().await;
    println!("a restart that had to wait: {load}");
    load.assert_none_lost();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_envoy_gets_the_keys_that_can_be_issued_anew() {
    let mut stack = Stack::start(Options {
        vault: true,
        ..Options::default()
    })
    .await;
    stack
        .put("www", &secure("direct_response {\n      status = 200\n    }"))
        .await;
    let client = stack.https_client().await;
    serves(&client, "https").await;
    let pid = stack.envoy_pid();
    let load = Load::start(50, client.clone(), www());

    kill_and_start_again(&mut stack).await;
    // A certificate is issued once a minute at most, and one was just now.
    wait_for("a restart", Duration::from_secs(100), async || {
        let (code, said) = restart(&stack).await?;
        anyhow::ensure!(code == 200, "{said}");
        Ok(())
    })
    .await;
    assert_ne!(stack.envoy_pid(), pid);
    serves(&client, "the next Envoy").await;
    let load = load.finish().await;
    println!("a restart that had a key issued: {load}");
    load.assert_none_lost();
    let vault = stack.vault.as_ref().unwrap();
    assert_eq!(
        vault.count_certificates("pki_int").await,
        1 + 2,
        "the root, the first, and the one for the next Envoy"
    );
}

/// Nobody renewed it, and clients that do not look at dates are served: a closed port helps nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_has_ended_stays_over_a_restart_of_the_agent() {
    let files = Files::new();
    let authority = Ca::new("files");
    files.put(&authority.issue_for(&["www.example.com"], Duration::from_secs(10)));
    let mut stack = Stack::start(files.options()).await;
    stack.put("edge", &gateway("edge", stack.https)).await;
    stack.put("www", &files.document("")).await;
    serves(&Client::https(stack.https, &authority.certificate), "https").await;
    // A new connection each time.
    let port = stack.https;
    let new_client = || Client::https(port, &authority.certificate);
    let shows_it = async |client: Client| match client.send(&www()).await {
        Err(failure) if format!("{failure:?}").contains("xpired") => Ok(()),
        other => anyhow::bail!("{other:?}"),
    };
    wait_for("its end", SOON, async || shows_it(new_client()).await).await;

    kill_and_start_again(&mut stack).await;
    wait_for("what is to be mended", SOON, async || {
        let status = status(&stack).await?;
        anyhow::ensure!(status.to_string().contains("certificate-expiry"), "{status:#}");
        anyhow::ensure!(
            status["gateways"][0]["programmed"]["acknowledged"] == 1,
            "{status:#}"
        );
        Ok(())
    })
    .await;
    shows_it(new_client()).await.unwrap();
    files.put(&authority.issue(&["www.example.com"]));
    serves(&new_client(), "the renewed one").await;
}

/// The key is with Envoy alone, by the name that the certificate had.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_renamed_after_a_restart_closes_no_port_until_a_key_is_issued() {
    let mut stack = Stack::start(Options {
        vault: true,
        ..Options::default()
    })
    .await;
    let document = secure("direct_response {\n      status = 200\n    }");
    stack.put("www", &document).await;
    let client = stack.https_client().await;
    serves(&client, "https").await;
    let before = client.send(&www()).await.unwrap().certificate;
    kill_and_start_again(&mut stack).await;

    let load = Load::start(50, client.clone(), www());
    for name in ["first", "second"] {
        let renamed = document
            .replace("certificates = [\"www\"]", &format!("certificates = [{name:?}]"))
            .replace("certificate \"www\"", &format!("certificate {name:?}"));
        assert_ne!(renamed, document);
        stack.put("www", &renamed).await;
        wait_for("what is waited for", SOON, async || {
            let said = status(&stack).await?.to_string();
            anyhow::ensure!(
                said.contains(&format!(
                    "the private key of certificate \\\"{name}\\\" is not here"
                )) && said.contains("goes on with \\\"www\\\", which it named before"),
                "{said}"
            );
            Ok(())
        })
        .await;
        assert_eq!(client.send(&www()).await.unwrap().certificate, before, "{name}");
    }
    // A certificate is issued once a minute at most, and one was just now.
    wait_for("its own key", Duration::from_secs(100), async || {
        let reply = client.send(&www()).await;
        let reply = reply.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        anyhow::ensure!(reply.certificate != before, "the one that was shown before");
        Ok(())
    })
    .await;
    wait_for("an end of the wait", SOON, async || {
        let said = status(&stack).await?.to_string();
        anyhow::ensure!(!said.contains("is not here"), "{said}");
        Ok(())
    })
    .await;
    let load = load.finish().await;
    println!("a certificate that was renamed while only Envoy had its key: {load}");
    load.assert_none_lost();
}

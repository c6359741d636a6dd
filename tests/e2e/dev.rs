//! `agent -dev -config DIR` alone: no Consul, no Vault.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
use serde_json::Value;

use crate::stack::{SOON, pid_of_envoy, until};
use crate::support::agent::{Agent, AgentLaunch};
use crate::support::client::{Client, Reply, Request};
use crate::support::load::Load;
use crate::support::pki::Ca;
use crate::support::ports::free_port;
use crate::support::{program, wait_for};

struct Dev {
    agent: Agent,
    documents: PathBuf,
    data: PathBuf,
    port: u16,
}

fn document(port: u16, body: &str) -> String {
    format!(
        r#"
gateway "edge" {{
  listener "web" {{
    port = {port}
  }}
}}

http_route "site" {{
  gateways  = ["edge"]
  hostnames = ["site.example.com"]

  rule "all" {{
    direct_response {{
      status = 200
      body   = "{body}"
    }}
  }}
}}
"#
    )
}

/// As editors and Nomad templates save: a new file over the old one.
fn save(file: &Path, text: &str) {
    let beside = file.with_file_name(".save.tmp");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(&beside, file).unwrap();
}

fn dev(arguments: impl FnOnce(&AgentLaunch) -> Vec<String>) -> Dev {
    dev_in(|launch| {
        let mut arguments = arguments(launch);
        arguments.push(format!("-data-dir={}", launch.directory().join("data").display()));
        arguments
    })
}

/// The arguments say that the data directory is `data`.
fn dev_in(arguments: impl FnOnce(&AgentLaunch) -> Vec<String>) -> Dev {
    let port = free_port();
    let launch = Agent::prepare();
    let file = launch.file("documents/site.hcl", &document(port, "one"));
    let (documents, data) = (file.parent().unwrap().to_owned(), launch.directory().join("data"));
    let tools = program("envoy").parent().unwrap().to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(tools).chain(std::env::split_paths(&path))).unwrap();
    let arguments = arguments(&launch);
    let api = data.join("api.sock");
    let agent = launch
        .api_socket(api)
        .args(["agent", "-dev", "-config"])
        .arg(&documents)
        .args(arguments)
        .env("PATH", path)
        .start();
    Dev {
        agent,
        documents,
        data,
        port,
    }
}

impl Dev {
    async fn until(&self, what: &str, expected: impl Fn(&Reply) -> bool) -> Reply {
        let request = Request::get("site.example.com", "/");
        until(&Client::http(self.port), &request, what, expected).await
    }

    async fn body(&self) -> String {
        Client::http(self.port).get("site.example.com", "/").await.text()
    }

    fn site(&self) -> PathBuf {
        self.documents.join("site.hcl")
    }
}

/// The processes whose command line names this directory.
fn processes_of(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        (line.contains(directory.to_str()?) && line.contains("envoy")).then_some(line)
    });
    lines.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_serves_reloads_on_save_and_leaves_nothing_behind() {
    let mut dev = dev(|_| Vec::new());
    dev.until("the first answer", |reply| reply.text() == "one").await;
    assert!(
        !processes_of(&dev.data).is_empty(),
        "the look for processes finds none"
    );

    for (number, body) in ["two", "three"].into_iter().enumerate() {
        let started = std::time::Instant::now();
        if number == 0 {
            save(&dev.site(), &document(dev.port, body));
        } else {
            std::fs::write(dev.site(), document(dev.port, body)).unwrap();
        }
        dev.until("a save", |reply| reply.text() == body).await;
        println!("saved and served after {:?}", started.elapsed());
    }

    // Another file beside it, and its end.
    let pets = document(dev.port, "pets").replace("site", "pets");
    let pets = &pets[pets.find("http_route").unwrap()..];
    save(&dev.documents.join("pets.hcl"), pets);
    let request = Request::get("pets.example.com", "/");
    let client = Client::http(dev.port);
    until(&client, &request, "a new file", |reply| reply.status == 200).await;

    // A bad edit keeps what was, and says where it is wrong; the other file moves on.
    save(
        &dev.site(),
        &document(dev.port, "four").replace("hostnames", "hostnam"),
    );
    let line = dev.agent.wait_for_log("site.hcl:").await;
    println!("bad edit: {}", line.trim());
    assert!(line.contains("ERROR"), "{line}");
    save(
        &dev.documents.join("pets.hcl"),
        &pets.replace("\"pets\"\n", "\"more\"\n"),
    );
    until(&client, &request, "the other file", |reply| {
        reply.text() == "more"
    })
    .await;
    assert_eq!(dev.body().await, "three", "the last good version");
    save(&dev.site(), &document(dev.port, "five"));
    dev.until("the repair", |reply| reply.text() == "five").await;
    std::fs::remove_file(dev.documents.join("pets.hcl")).unwrap();
    until(&client, &request, "a removed file", |reply| reply.status == 404).await;

    let status = dev.agent.process.terminate(Duration::from_secs(20));
    assert_eq!(status.code(), Some(0), "{status:?}");
    wait_for("no Envoy", Duration::from_secs(2), async || {
        let left = processes_of(&dev.data);
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_takes_settings_over_and_keeps_the_old_ones_on_error() {
    let mut settings = PathBuf::new();
    let mut dev = dev(|launch| {
        settings = launch.file("agent.hcl", "log_level = \"info\"\n");
        vec!["-config".to_owned(), settings.display().to_string()]
    });
    dev.until("the first answer", |reply| reply.text() == "one").await;

    for bad in [
        "log_level = \"loud\"\n",
        "log_level = \n",
        "log_levle = \"debug\"\n",
    ] {
        let start = dev.agent.process.log_length();
        save(&settings, bad);
        dev.agent.reload();
        let log = &mut dev.agent.process;
        log.wait_for_log_after(start, "the old ones stay", SOON).await;
        let line = log.wait_for_log_after(start, "agent.hcl:1", SOON).await;
        println!("bad settings: {}", line.trim());
        assert!(dev.agent.process.is_running());
        assert_eq!(dev.body().await, "one");
        // Still of use.
        let start = dev.agent.process.log_length();
        save(&dev.site(), &document(dev.port, "two"));
        dev.until("a save", |reply| reply.text() == "two").await;
        save(&dev.site(), &document(dev.port, "one"));
        dev.until("a save", |reply| reply.text() == "one").await;
        assert!(dev.agent.process.log()[start..].contains("document taken"));
    }

    // Good settings are taken over: quiet, and loud again.
    let start = dev.agent.process.log_length();
    save(&settings, "log_level = \"error\"\n");
    dev.agent.reload();
    tokio::time::sleep(Duration::from_millis(500)).await;
    save(&dev.site(), &document(dev.port, "three"));
    dev.until("a save", |reply| reply.text() == "three").await;
    assert!(!dev.agent.process.log()[start..].contains("document taken"));
    save(&settings, "log_level = \"info\"\n");
    dev.agent.reload();
    let log = &mut dev.agent.process;
    log.wait_for_log_after(start, "settings reloaded", SOON).await;
    save(&dev.site(), &document(dev.port, "four"));
    dev.agent
        .process
        .wait_for_log_after(start, "document taken", SOON)
        .await;
    let status = dev.agent.process.terminate(Duration::from_secs(20));
    assert_eq!(status.code(), Some(0), "{status:?}");
}

/// Settings and documents may stand in one directory.
#[tokio::test(flavor = "multi_thread")]
async fn a_settings_file_among_the_documents_is_no_bad_document() {
    let dev = dev(|launch| {
        launch.file("documents/agent.hcl", "log_level = \"info\"\n");
        Vec::new()
    });
    dev.until("the first answer", |reply| reply.text() == "one").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let log = dev.agent.process.log();
    let complaint = log.lines().find(|line| line.contains("ERROR"));
    assert_eq!(complaint, None);

    // Nothing but a misspelt block is a bad document, and stops no agent: neither now nor at the next start.
    let mut dev = dev;
    save(&dev.documents.join("odd.hcl"), "http_rout \"x\" {}\n");
    let line = dev.agent.wait_for_log("odd.hcl:1").await;
    assert!(line.contains("http_route"), "no suggestion in {line}");
    assert_eq!(
        dev.agent.process.terminate(Duration::from_secs(20)).code(),
        Some(0)
    );
    let start = dev.agent.process.log_length();
    dev.agent.process.start_again();
    dev.agent
        .process
        .wait_for_log_after(start, "odd.hcl:1", SOON)
        .await;
    dev.until("the others", |reply| reply.text() == "one").await;
}

/// What a settings file says of the data directory holds under -dev too, and whoever says where state goes wants it kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_in_the_settings_keeps_the_last_good_version() {
    let mut dev = dev_in(|launch| {
        let data = launch.directory().join("data");
        let settings = launch.file("agent.hcl", &format!("data_dir = {data:?}\n"));
        vec!["-config".to_owned(), settings.display().to_string()]
    });
    dev.until("the first answer", |reply| reply.text() == "one").await;
    assert!(dev.data.join("envoy/edge/envoy-state.json").exists());
    let status = dev.agent.process.terminate(Duration::from_secs(20));
    assert_eq!(status.code(), Some(0), "{status:?}");
    save(
        &dev.site(),
        &document(dev.port, "two").replace("hostnames", "hostnam"),
    );
    let start = dev.agent.process.log_length();
    dev.agent.process.start_again();
    dev.until("the last good version", |reply| reply.text() == "one")
        .await;
    let log = &mut dev.agent.process;
    log.wait_for_log_after(start, "unknown attribute \"hostnam\"", SOON)
        .await;
}

/// A pair of files, replaced as certbot and Vault's agent do: new files over the old ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_from_files_is_served_and_replaced() {
    let ca = Ca::new("files");
    let https = free_port();
    let mut pair = (PathBuf::new(), PathBuf::new());
    let first = ca.issue(&["site.example.com"]);
    let dev = dev(|launch| {
        pair = (
            launch.file("www.pem", &first.certificate),
            launch.file("www.key", &first.key),
        );
        let secure = format!(
            "gateway \"edge\" {{\n  listener \"secure\" {{\n    port     = {https}\n    protocol = \"https\"\n    tls {{ \
             certificates = [\"www\"] }}\n  }}\n}}\n\ncertificate \"www\" {{\n  file {{\n    certificate = {:?}\n    \
             private_key = {:?}\n  }}\n}}\n",
            pair.0, pair.1
        );
        let site = document(https, "one");
        let routes = &site[site.find("http_route").unwrap()..];
        launch.file("documents/site.hcl", &format!("{secure}\n{routes}"));
        Vec::new()
    });
    let client = Client::https(https, &ca.certificate);
    let request = Request::get("site.example.com", "/");
    let reply = until(&client, &request, "https", |reply| reply.status == 200).await;
    let before = reply.certificate.expect("the certificate that was shown");
    let load = Load::start(50, client.clone(), request.clone());
    for _ in 0..3 {
        let next = ca.issue(&["site.example.com"]);
        let expected = next.parsed().0[0].to_vec();
        assert_ne!(expected, before.to_vec());
        save(&pair.1, &next.key);
        save(&pair.0, &next.certificate);
        until(&client, &request, "the next certificate", |reply| {
            reply.certificate.as_deref() == Some(&expected[..])
        })
        .await;
    }
    let report = load.finish().await;
    println!("certificate files replaced: {report}");
    report.assert_none_lost();
    assert!(dev.data.exists());
}

/// Who listens beside this agent's Envoy, as its diagnostics say.
async fn sharers(dev: &Dev) -> anyhow::Result<Vec<String>> {
    let answer = dev.agent.api(Method::GET, "/v1/diagnostics", "").await?.ok()?;
    let Value::Array(all) = answer.json() else {
        anyhow::bail!("no list")
    };
    let clashes = all.iter().filter(|said| said["code"] == "port-clash");
    Ok(clashes
        .map(|said| said["message"].as_str().unwrap_or_default().to_owned())
        .collect())
}

async fn wait_for_sharers(dev: &Dev, expected: &[String]) {
    wait_for("who shares the port", SOON, async || {
        let found = sharers(dev).await?;
        anyhow::ensure!(found == expected, "{found:?}");
        Ok(())
    })
    .await;
}

/// Envoy binds with SO_REUSEPORT: two on one port get half of the connections each, and neither says so.
#[tokio::test(flavor = "multi_thread")]
async fn two_agents_on_one_port_are_told_of_each_other() {
    let mut one = dev(|_| Vec::new());
    one.until("the first agent", |reply| reply.text() == "one").await;
    let mut two = dev(|_| Vec::new());
    two.until("the second agent", |reply| reply.text() == "one").await;
    assert!(sharers(&two).await.unwrap().is_empty());
    save(&two.site(), &document(one.port, "two"));

    let shared = |other: &Dev| {
        let (pid, port) = (pid_of_envoy(&other.data), one.port);
        vec![format!(
            "process {pid} (envoy) listens on 127.0.0.1:{port} too, where listener \"web\" is"
        )]
    };
    wait_for_sharers(&one, &shared(&two)).await;
    wait_for_sharers(&two, &shared(&one)).await;
    let line = two.agent.wait_for_log("too, where listener").await;
    println!("{}", line.trim());
    assert!(line.contains("site.hcl:3"), "{line}");
    let requests = async || {
        let mut bodies = std::collections::BTreeSet::new();
        for _ in 0..100 {
            bodies.insert(one.body().await);
        }
        bodies
    };
    assert_eq!(requests().await.len(), 2, "both answer: that is what is told");

    // Its own Envoy, which it adopts, is none of them.
    let before = pid_of_envoy(&two.data);
    two.agent.kill();
    two.agent.process.start_again();
    two.agent.wait_for_log("taking over the Envoy").await;
    assert_eq!(pid_of_envoy(&two.data), before);
    wait_for_sharers(&two, &shared(&one)).await;
    let start = two.agent.process.log_length();
    one.agent.process.terminate(Duration::from_secs(20));
    wait_for_sharers(&two, &[]).await;
    let log = &mut two.agent.process;
    log.wait_for_log_after(start, "in order again: process", SOON)
        .await;
}

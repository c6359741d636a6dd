//! What documents from KV may reach, with a real agent's real settings.

use hyper::Method;
use serde_json::Value;

use crate::stack::{GATEWAY, Options, SOON, Stack, until};
use crate::support::agent;
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::pki::Ca;
use crate::support::ports::free_port;
use crate::support::{scratch_directory, wait_for};

const BOUNDS: &str = r#"files          = ["/etc/portreeve-test/"]
  vault_paths    = ["secret/edge/", "pki_int/sign/edge"]
  addresses      = ["127.0.0.1", "localhost", "10.0.0.0/8", "*.example.com"]
  allow_loopback = true"#;

/// A document whose route leads to what `source` says.
fn document(name: &str, source: &str) -> String {
    format!(
        "upstream \"{name}\" {{\n  {source}\n}}\n{}",
        crate::stack::route(name, &format!("{name}.example.com"), "").replace(
            "backend \"consul\" \"\"",
            &format!("backend \"upstream\" \"{name}\"")
        )
    )
}

/// A document that is fine but for its certificate.
fn with_certificate(name: &str, source: &str) -> String {
    format!(
        "certificate \"{name}\" {{\n  {source}\n}}\n{}",
        crate::stack::route(name, &format!("{name}.example.com"), "orders")
    )
}

/// The usual gateway, with a listener that shows what the documents of this test bring.
fn shows_certificates() -> String {
    let secure = r#"gateway "edge" {
  listener "secure" {
    port     = $HTTPS
    protocol = "https"
    tls { certificates = ["file", "secret", "issuer"] }
  }
"#;
    GATEWAY.replace("gateway \"edge\" {\n", secure)
}

async fn said_of(stack: &Stack, document: &str) -> Vec<Value> {
    // Not there before the agent is.
    let Ok(answer) = stack.agent.api(Method::GET, "/v1/status", "").await else {
        return Vec::new();
    };
    let status: Value = answer.ok().unwrap().json();
    let all = status["diagnostics"].as_array().unwrap().clone();
    let of_it = |diagnostic: &Value| {
        diagnostic["origin"]["document"]
            .to_string()
            .contains(&format!("config/{document}\""))
    };
    all.into_iter().filter(of_it).collect()
}

async fn is_refused(stack: &Stack, document: &str) -> Value {
    wait_for(&format!("a refusal of {document}"), SOON, async || {
        let said = said_of(stack, document).await;
        let refusal = said.iter().find(|said| said["code"] == "not-allowed");
        refusal.cloned().ok_or_else(|| anyhow::anyhow!("{said:?}"))
    })
    .await
}

fn get(document: &str) -> Request {
    Request::get(&format!("{document}.example.com"), "/")
}

/// `plan` and `apply` refuse beforehand what this agent would refuse afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn apply_asks_the_agent_what_documents_may_reach() {
    let stack = Stack::start(Options {
        kv_documents: Some(BOUNDS.to_owned()),
        ..Options::default()
    })
    .await;
    stack.put("gateway", GATEWAY).await;
    stack
        .until(&get("nobody"), "the gateway", |reply| reply.status == 404)
        .await;
    let files = scratch_directory("bounds");
    let (consul, socket) = (
        format!("-consul-address={}", stack.consul.address()),
        format!("-api-socket={}", stack.agent.api.display()),
    );
    let run = async |arguments: &[&str], text: &str| {
        std::fs::write(files.path().join("new.hcl"), text).unwrap();
        let mut all: Vec<String> = arguments.iter().map(|one| (*one).to_owned()).collect();
        all.extend([files.path().display().to_string(), consul.clone(), socket.clone()]);
        let directory = files.path().to_owned();
        let output = tokio::task::spawn_blocking(move || {
            agent::run(&directory, &all.iter().map(String::as_str).collect::<Vec<_>>())
        });
        let output = output.await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.code(), said.into_owned())
    };
    let refused = document("new", "static { addresses = [\"127.0.0.2:80\"] }");
    for arguments in [&["apply", "-y", "-agent"][..], &["plan", "-agent"]] {
        let (code, said) = run(arguments, &refused).await;
        assert!(
            code != Some(0) && said.contains("error[not-allowed]"),
            "{arguments:?} {code:?} {said}"
        );
    }
    assert_eq!(stack.consul.get("portreeve/config/new").await, None);
    // What it allows is taken without a word, and by the agent too.
    let backend = Backend::start("one").await;
    let source = format!("static {{ addresses = [\"127.0.0.1:{}\"] }}", backend.port);
    let (code, said) = run(&["apply", "-y", "-agent"], &document("new", &source)).await;
    assert!(
        code == Some(0) && !said.contains("not-allowed") && !said.contains("note:"),
        "{code:?} {said}"
    );
    stack
        .until(&get("new"), "the route", |reply| reply.status == 200)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_from_kv_reach_what_the_settings_allow_and_nothing_else() {
    let api = free_port();
    let mut stack = Stack::start(Options {
        kv_documents: Some(BOUNDS.to_owned()),
        arguments: vec!["-log-level=debug"],
        ..Options::default()
    })
    .await;
    let settings = stack.data.parent().unwrap().join("portreeve.hcl");
    let text = std::fs::read_to_string(&settings).unwrap();
    let with_port = text.replace("api {", &format!("api {{\n  address = \"127.0.0.1:{api}\""));
    std::fs::write(&settings, &with_port).unwrap();
    stack.agent.wait_for_log("agent started").await;
    stack.agent.process.terminate(SOON);
    stack.agent.process.start_again();

    let backend = Backend::start("one").await;
    stack.register("orders", &backend).await;
    stack.put("gateway", &shows_certificates()).await;
    let by_address = document(
        "by-address",
        &format!("static {{ addresses = [\"127.0.0.1:{}\"] }}", backend.port),
    );
    stack.put("by-address", &by_address).await;
    let by_name = document(
        "by-name",
        &format!("dns {{ address = \"localhost:{}\" }}", backend.port),
    );
    stack.put("by-name", &by_name).await;
    for (name, text) in [
        (
            "own",
            document("own", &format!("static {{ addresses = [\"127.0.0.1:{api}\"] }}")),
        ),
        (
            "own-name",
            document("own-name", &format!("dns {{ address = \"localhost:{api}\" }}")),
        ),
        (
            "link-local",
            document("link-local", "static { addresses = [\"169.254.169.254:80\"] }"),
        ),
        (
            "metadata",
            document("metadata", "dns { address = \"metadata.google.internal:80\" }"),
        ),
        (
            "metadata-6",
            document("metadata-6", "static { addresses = [\"[fd00:ec2::254]:80\"] }"),
        ),
        (
            "unlisted",
            document("unlisted", "static { addresses = [\"127.0.0.2:80\"] }"),
        ),
        (
            "rebind",
            document("rebind", "dns { address = \"rebind.example.org:80\" }"),
        ),
    ] {
        stack.put(name, &text).await;
        let refusal = is_refused(&stack, name).await;
        println!("{name}: {}", refusal["message"]);
        assert!(refusal["fix"].is_string(), "{refusal}");
        // Nothing of the document serves.
        stack.until(&get(name), name, |reply| reply.status == 404).await;
    }
    let files = scratch_directory("bounds-files");
    let authority = Ca::new("files");
    let leaf = authority.issue(&["file.example.com"]);
    std::fs::write(files.path().join("a.pem"), &leaf.certificate).unwrap();
    std::fs::write(files.path().join("a.key"), &leaf.key).unwrap();
    let directory = files.path().display();
    for (name, text) in [
        (
            "file",
            with_certificate(
                "file",
                &format!(
                    "file {{\n    certificate = \"{directory}/a.pem\"\n    private_key = \"{directory}/a.key\"\n  }}"
                ),
            ),
        ),
        (
            "secret",
            with_certificate(
                "secret",
                "vault_kv {\n    mount = \"secret\"\n    path  = \"payroll\"\n  }",
            ),
        ),
        (
            "issuer",
            with_certificate(
                "issuer",
                "vault_pki {\n    mount       = \"pki_int\"\n    role        = \"edge\"\n    issuer      = \"root\"\n    common_name = \"issuer.example.com\"\n  }",
            ),
        ),
    ] {
        stack.put(name, &text).await;
        let refusal = is_refused(&stack, name).await;
        println!("{name}: {}", refusal["message"]);
        assert!(refusal["fix"].is_string(), "{refusal}");
        // What else the document says serves.
        stack
            .until(&get(name), name, |reply| reply.backend() == Some("one"))
            .await;
    }
    let https = Client::https(stack.https, &authority.certificate);
    let closed = async |what: &str| {
        wait_for(what, SOON, async || match https.send(&get("file")).await {
            Ok(reply) => anyhow::bail!("{}", reply.status),
            Err(_) => Ok(()),
        })
        .await;
    };
    closed("a listener without a certificate that it may show").await;
    for name in ["by-address", "by-name"] {
        stack
            .until(&get(name), name, |reply| reply.backend() == Some("one"))
            .await;
        assert!(said_of(&stack, name).await.is_empty());
    }

    // Tighter bounds hold for what is in service, wider ones let in what waited: without a restart.
    let start = stack.agent.process.log_length();
    let other = with_port
        .replace("allow_loopback = true", "allow_loopback = false")
        .replace(
            "\"/etc/portreeve-test/\"",
            &format!("\"/etc/portreeve-test/\", \"{directory}/\""),
        );
    assert_ne!(other, with_port);
    std::fs::write(&settings, &other).unwrap();
    stack.agent.reload();
    let log = &mut stack.agent.process;
    log.wait_for_log_after(start, "held to the new kv_documents", SOON)
        .await;
    is_refused(&stack, "by-address").await;
    stack
        .until(&get("by-address"), "tighter bounds", |reply| reply.status == 404)
        .await;
    until(&https, &get("file"), "wider bounds", |reply| {
        reply.backend() == Some("one")
    })
    .await;
    std::fs::write(&settings, &with_port).unwrap();
    stack.agent.reload();
    stack
        .until(&get("by-address"), "what was", |reply| {
            reply.backend() == Some("one")
        })
        .await;
    closed("what was").await;
    let log = stack.agent.process.log();
    assert!(
        !log[start..].contains("after a restart of the agent"),
        "{}",
        &log[start..]
    );
}

/// Without a word about it in the settings.
#[tokio::test(flavor = "multi_thread")]
async fn by_default_no_name_no_loopback_no_file() {
    let stack = Stack::start(Options {
        kv_documents: Some(String::new()),
        no_envoy: true,
        ..Options::default()
    })
    .await;
    stack.put("gateway", &shows_certificates()).await;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for (name, text) in [
        (
            "loopback",
            document("loopback", "static { addresses = [\"127.0.0.1:80\"] }"),
        ),
        (
            "name",
            document("name", "dns { address = \"legacy.example.com:80\" }"),
        ),
        (
            "host",
            document("host", &format!("dns {{ address = \"{}:80\" }}", host.trim())),
        ),
        (
            "file",
            with_certificate(
                "file",
                "file {\n    certificate = \"/etc/ssl/a.pem\"\n    private_key = \"/etc/ssl/a.key\"\n  }",
            ),
        ),
    ] {
        stack.put(name, &text).await;
        let refusal = is_refused(&stack, name).await;
        if name == "host" {
            assert!(refusal["reason"].to_string().contains("loopback"), "{refusal}");
        }
    }
}

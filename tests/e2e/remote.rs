//! Central mode: an Envoy elsewhere, which gets its gateway by its certificate.

use std::path::PathBuf;
use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use tempfile::TempDir;

use crate::stack::{GATEWAY, Options, SOON, Stack, route};
use crate::support::agent;
use crate::support::backend::Backend;
use crate::support::client::{Failure, Request};
use crate::support::envoy::{Envoy, EnvoyAdmin};
use crate::support::pki::{Ca, Pair};
use crate::support::ports::free_port;
use crate::support::process::{Launch, Process};
use crate::support::{program, scratch_directory, wait_for};

/// What the agent's certificate says, and so what an Envoy expects.
const AGENT: &str = "agent.example.com";
const EDGE: &str = "spiffe://example.com/envoy/edge-1";
const INNER: &str = "inner.example.com";
/// Long enough for an Envoy that were let in to serve.
const NEVER: Duration = Duration::from_secs(3);

struct Central {
    stack: Stack,
    ca: Ca,
    files: TempDir,
    port: u16,
    _backend: Backend,
}

impl Central {
    /// An agent without an Envoy of its own, for `edge` and `inner`.
    async fn start() -> Central {
        let (files, port, ca) = (scratch_directory("central"), free_port(), Ca::new("envoys"));
        let own = ca.issue(&[AGENT]);
        let file = |name: &str, text: &str| {
            let path = files.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let more = format!(
            r#"
xds {{
  tcp {{
    address   = "127.0.0.1:{port}"
    ca_file   = {ca:?}
    cert_file = {certificate:?}
    key_file  = {key:?}

    client {{
      san      = "{EDGE}"
      gateways = ["edge"]
    }}

    client {{
      san      = "{INNER}"
      gateways = ["inner"]
    }}
  }}
}}
"#,
            ca = file("ca.pem", &ca.certificate),
            certificate = file("agent.pem", &own.certificate),
            key = file("agent.key", &own.key),
        );
        let stack = Stack::start(Options {
            no_envoy: true,
            arguments: vec!["-gateway=edge", "-gateway=inner"],
            more,
            ..Options::default()
        })
        .await;
        let backend = Backend::start("one").await;
        stack.register("orders", &backend).await;
        stack.put("gateway", GATEWAY).await;
        stack
            .put("shop", &route("shop", "shop.example.com", "orders"))
            .await;
        Central {
            stack,
            ca,
            files,
            port,
            _backend: backend,
        }
    }

    /// The flags of `portreeve envoy` for an Envoy with this certificate.
    fn flags(&self, name: &str, gateway: &str, pair: &Pair, variant: &str) -> Vec<String> {
        let file = |kind: &str, text: &str| {
            let path = self.files.path().join(format!("{name}.{kind}"));
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        vec![
            format!("-gateway={gateway}"),
            format!("-node={name}"),
            format!("-xds-address=127.0.0.1:{}", self.port),
            format!("-xds-ca={}", file("ca", &self.ca.certificate)),
            format!("-xds-cert={}", file("pem", &pair.certificate)),
            format!("-xds-key={}", file("key", &pair.key)),
            format!("-xds-server-name={AGENT}"),
            format!("-variant={variant}"),
            format!("-runtime-dir={}", self.runtime(name).display()),
        ]
    }

    fn runtime(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// `portreeve envoy run` becomes Envoy.
    fn run(&self, name: &str, gateway: &str, pair: &Pair, variant: &str) -> (Process, EnvoyAdmin) {
        let process = Launch::new(name, env!("CARGO_BIN_EXE_portreeve"), self.files.path())
            .args(["envoy", "run", "-concurrency=1"])
            .arg(format!("-envoy={}", program("envoy").display()))
            .args(self.flags(name, gateway, pair, variant))
            .start();
        let socket = self.runtime(name).join("admin.sock");
        (process, EnvoyAdmin { socket })
    }

    /// `portreeve envoy bootstrap`, printed.
    fn bootstrap(&self, name: &str, pair: &Pair) -> Value {
        let mut args = vec!["envoy".to_owned(), "bootstrap".to_owned()];
        args.extend(self.flags(name, "edge", pair, "delta"));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = agent::run(self.files.path(), &args);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    async fn envoys(&self) -> String {
        let answer = self.stack.agent.api(Method::GET, "/v1/envoys", "").await;
        answer.unwrap().text().trim().to_owned()
    }

    async fn serves(&self, who: &str) {
        self.stack
            .until(&request(), who, |reply| reply.status == 200)
            .await;
    }

    /// Its Envoy is gone.
    async fn stopped(&self) {
        wait_for("the end of Envoy", SOON, async || {
            let outcome = self.stack.client().send(&request()).await;
            anyhow::ensure!(matches!(outcome, Err(Failure::Refused)), "{outcome:?}");
            anyhow::ensure!(self.envoys().await == "[]");
            Ok(())
        })
        .await;
    }

    /// Nothing listens: no Envoy was given the gateway's listener.
    async fn nobody_serves(&self) {
        tokio::time::sleep(NEVER).await;
        let outcome = self.stack.client().send(&request()).await;
        assert!(matches!(outcome, Err(Failure::Refused)), "{outcome:?}");
    }
}

fn request() -> Request {
    Request::get("shop.example.com", "/")
}

async fn serves(variant: &str) {
    let central = Central::start().await;
    let pair = central.ca.issue(&[EDGE]);
    let (mut envoy, _) = central.run("remote-1", "edge", &pair, variant);
    let stack = &central.stack;
    stack
        .until(&request(), "the remote Envoy", |reply| {
            reply.backend() == Some("one")
        })
        .await;
    let envoys = central.envoys().await;
    assert!(
        envoys.contains(EDGE) && envoys.contains(&format!("{variant:?}")),
        "{envoys}"
    );
    let two = Backend::start("two").await;
    stack.register("orders", &two).await;
    stack
        .until(&request(), "an endpoint change", |reply| {
            reply.backend() == Some("two")
        })
        .await;
    stack
        .put("pets", &route("pets", "pets.example.com", "orders"))
        .await;
    let pets = Request::get("pets.example.com", "/");
    stack
        .until(&pets, "a route change", |reply| reply.status == 200)
        .await;
    assert!(envoy.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_envoy_serves_delta() {
    serves("delta").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_envoy_serves_state_of_the_world() {
    serves("sotw").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_nodes_gateway_is_refused_and_told() {
    let mut central = Central::start().await;
    let pair = central.ca.issue(&[INNER]);
    let (envoy, admin) = central.run("inner-1", "edge", &pair, "delta");
    let line = central
        .stack
        .agent
        .wait_for_log("an xDS client was refused")
        .await;
    println!("another's gateway: {}", line.trim());
    assert!(
        line.contains(r#"gateway \"edge\""#) && line.contains(INNER),
        "{line}"
    );
    central.nobody_serves().await;
    assert!(admin.ready().await.is_err(), "it must wait for its configuration");
    assert_eq!(central.envoys().await, "[]", "it is not among the connected");
    drop(envoy);

    // The same certificate gets the gateway that it is for.
    let (_envoy, _) = central.run("inner-2", "inner", &pair, "delta");
    wait_for("its own gateway", SOON, async || {
        let envoys = central.envoys().await;
        anyhow::ensure!(envoys.contains(r#""gateway": "inner""#), "{envoys}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_known_certificate_nothing_is_given() {
    let mut central = Central::start().await;
    let pair = central.ca.issue(&[EDGE]);
    // It writes the files that the printed bootstrap refers to.
    let (known, _) = central.run("known", "edge", &pair, "delta");
    central.serves("a known certificate").await;
    drop(known);
    central.stopped().await;
    let mut bootstrap = central.bootstrap("known", &pair);
    for secret in ["BEGIN", "PRIVATE"] {
        assert!(!bootstrap.to_string().contains(secret), "{bootstrap}");
    }
    // Its admin socket goes where the harness puts it.
    bootstrap["admin"] = Value::Null;
    let envoy = Envoy::start(&bootstrap);
    central.serves("the printed bootstrap").await;
    drop(envoy);
    central.stopped().await;

    // The same without its certificate.
    let mut without = bootstrap.clone();
    let removed = strip(&mut without);
    assert!(removed > 0, "no certificate in {bootstrap:#}");
    let envoy = Envoy::start(&without);
    let line = central
        .stack
        .agent
        .wait_for_log("an xDS client was refused")
        .await;
    println!("without a certificate: {}", line.trim());
    assert!(line.contains("no client certificate"), "{line}");
    central.nobody_serves().await;
    assert!(envoy.admin.ready().await.is_err());
    drop(envoy);

    // Signed by somebody else, with the right name in it.
    let start = central.stack.agent.process.log_length();
    let forged = Ca::new("others").issue(&[EDGE]);
    let (envoy, _) = central.run("forged", "edge", &forged, "delta");
    let line = central
        .stack
        .agent
        .process
        .wait_for_log_after(start, "an xDS client was refused", SOON)
        .await;
    println!("by another authority: {}", line.trim());
    central.nobody_serves().await;
    assert_eq!(central.envoys().await, "[]");
    drop(envoy);

    // A name that is not in the table.
    let start = central.stack.agent.process.log_length();
    let stranger = central.ca.issue(&["stranger.example.com"]);
    let (envoy, _) = central.run("stranger", "edge", &stranger, "delta");
    let line = central
        .stack
        .agent
        .process
        .wait_for_log_after(start, "stranger.example.com", SOON)
        .await;
    assert!(line.contains("no gateway is open to"), "{line}");
    drop(envoy);
}

/// Takes every client certificate out of a bootstrap.
fn strip(value: &mut Value) -> usize {
    match value {
        Value::Object(map) => {
            let before = map.len();
            map.retain(|key, _| {
                !["tls_certificate_sds_secret_configs", "tls_certificates"].contains(&&**key)
            });
            before - map.len() + map.values_mut().map(strip).sum::<usize>()
        }
        Value::Array(list) => list.iter_mut().map(strip).sum(),
        _ => 0,
    }
}

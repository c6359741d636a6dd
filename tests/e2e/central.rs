//! An agent without an Envoy of its own, and Envoys elsewhere, started by our own command.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use tempfile::TempDir;

use crate::stack::{GATEWAY, Options, SOON, Stack, route};
use crate::support::agent;
use crate::support::backend::Backend;
use crate::support::client::{Failure, Request};
use crate::support::envoy::EnvoyAdmin;
use crate::support::pki::{Ca, Pair};
use crate::support::ports::free_port;
use crate::support::process::{Launch, Process};
use crate::support::{program, scratch_directory, wait_for};

/// What the agent's certificate says, and so what an Envoy expects.
pub const AGENT: &str = "agent.example.com";
pub const EDGE: &str = "spiffe://example.com/envoy/edge-1";
pub const INNER: &str = "inner.example.com";
/// Long enough for an Envoy that were let in to serve.
const NEVER: Duration = Duration::from_secs(3);

pub struct Central {
    pub stack: Stack,
    pub ca: Ca,
    pub files: TempDir,
    port: u16,
    _backend: Backend,
}

impl Central {
    /// An agent without an Envoy of its own, for `edge` and `inner`.
    pub async fn start() -> Central {
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

    /// One of the agent's own files: `ca.pem`, `agent.pem`, `agent.key`. It is replaced as a whole.
    pub fn write_own(&self, name: &str, text: &str) {
        let path = self.files.path().join(name);
        let new = path.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    /// Another authority, and a certificate of it for the agent. Flags made from now on are for it.
    pub fn rotate(&mut self) {
        self.ca = Ca::new("next envoys");
        self.write_own("ca.pem", &self.ca.certificate);
        self.write_own_pair("agent", &self.ca.issue(&[AGENT]));
    }

    pub fn write_own_pair(&self, name: &str, pair: &Pair) {
        self.write_own(&format!("{name}.pem"), &pair.certificate);
        self.write_own(&format!("{name}.key"), &pair.key);
    }

    /// Has the settings name `<name>.pem`, `<name>.key` and `<name>-ca.pem`.
    pub fn name_own_files(&self, name: &str) {
        let settings = self.stack.data.with_file_name("portreeve.hcl");
        let text = std::fs::read_to_string(&settings).unwrap();
        let named = text.lines().map(|line| {
            let file = match line.trim().split_once(' ').map(|(key, _)| key) {
                Some("ca_file") => format!("{name}-ca.pem"),
                Some("cert_file") => format!("{name}.pem"),
                Some("key_file") => format!("{name}.key"),
                _ => return format!("{line}\n"),
            };
            let (before, _) = line.rsplit_once('/').unwrap();
            format!("{before}/{file}\"\n")
        });
        std::fs::write(&settings, named.collect::<String>()).unwrap();
    }

    /// Of the agent, for remote Envoys.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn runtime(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// `portreeve envoy run` becomes Envoy.
    pub fn run(&self, name: &str, gateway: &str, pair: &Pair, variant: &str) -> (Process, EnvoyAdmin) {
        self.run_program(&program("envoy"), name, gateway, pair, variant)
    }

    /// The same with another Envoy.
    pub fn run_program(
        &self,
        envoy: &Path,
        name: &str,
        gateway: &str,
        pair: &Pair,
        variant: &str,
    ) -> (Process, EnvoyAdmin) {
        let process = Launch::new(name, env!("CARGO_BIN_EXE_portreeve"), self.files.path())
            .args(["envoy", "run", "-concurrency=1"])
            .arg(format!("-envoy={}", envoy.display()))
            .args(self.flags(name, gateway, pair, variant))
            .start();
        let socket = self.runtime(name).join("admin.sock");
        (process, EnvoyAdmin { socket })
    }

    /// `portreeve envoy bootstrap`, printed.
    pub fn bootstrap(&self, name: &str, pair: &Pair) -> Value {
        let mut args = vec!["envoy".to_owned(), "bootstrap".to_owned()];
        args.extend(self.flags(name, "edge", pair, "delta"));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = agent::run(self.files.path(), &args);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub async fn envoys(&self) -> String {
        let answer = self.stack.agent.api(Method::GET, "/v1/envoys", "").await;
        answer.unwrap().text().trim().to_owned()
    }

    pub async fn serves(&self, who: &str) {
        self.stack
            .until(&request(), who, |reply| reply.status == 200)
            .await;
    }

    /// Its Envoy is gone.
    pub async fn stopped(&self) {
        wait_for("the end of Envoy", SOON, async || {
            let outcome = self.stack.client().send(&request()).await;
            anyhow::ensure!(matches!(outcome, Err(Failure::Refused)), "{outcome:?}");
            anyhow::ensure!(self.envoys().await == "[]");
            Ok(())
        })
        .await;
    }

    /// Nothing listens: no Envoy was given the gateway's listener.
    pub async fn nobody_serves(&self) {
        tokio::time::sleep(NEVER).await;
        let outcome = self.stack.client().send(&request()).await;
        assert!(matches!(outcome, Err(Failure::Refused)), "{outcome:?}");
    }
}

pub fn request() -> Request {
    Request::get("shop.example.com", "/")
}

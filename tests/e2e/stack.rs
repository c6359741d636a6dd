//! A whole gateway: Consul, OpenBao, backends, and an agent that keeps an Envoy.

use std::path::PathBuf;
use std::time::Duration;

use crate::support::agent::{Agent, AgentLaunch};
use crate::support::backend::Backend;
use crate::support::client::{Client, Reply, Request};
use crate::support::consul::{Consul, service};
use crate::support::ports::free_port;
use crate::support::vault::Vault;
use crate::support::{program, wait_for};

/// How soon a change must be seen. Generous against a busy machine; the benchmarks measure the real figure.
pub const SOON: Duration = Duration::from_secs(10);

pub struct Stack {
    pub agent: Agent,
    pub consul: Consul,
    pub vault: Option<Vault>,
    pub http: u16,
    pub https: u16,
    pub data: PathBuf,
}

#[derive(Clone, Copy, Default)]
pub struct Options {
    pub vault: bool,
    pub state_of_the_world: bool,
}

impl Stack {
    pub async fn start(options: Options) -> Stack {
        let consul = Consul::start().await;
        let vault = if options.vault {
            Some(start_vault().await)
        } else {
            None
        };
        let launch = Agent::prepare();
        let settings = settings(&launch, &consul, vault.as_ref(), options);
        let stack = Stack {
            data: launch.directory().join("data"),
            http: free_port(),
            https: free_port(),
            agent: start(launch, &settings),
            consul,
            vault,
        };
        stack
    }

    /// Puts a document with `$HTTP` and `$HTTPS` replaced by this stack's ports.
    pub async fn put(&self, name: &str, text: &str) {
        let text = text
            .replace("$HTTPS", &self.https.to_string())
            .replace("$HTTP", &self.http.to_string());
        self.consul.put(&format!("portreeve/config/{name}"), text).await;
    }

    pub async fn delete(&self, name: &str) {
        self.consul.delete(&format!("portreeve/config/{name}")).await;
    }

    /// Registers a backend as an instance that passes.
    pub async fn register(&self, name: &str, backend: &Backend) {
        self.consul
            .register(&service(name, &id(name, backend), backend.port))
            .await;
        self.consul
            .set_check(&format!("service:{}", id(name, backend)), "passing")
            .await;
    }

    pub async fn deregister(&self, name: &str, backend: &Backend) {
        self.consul.deregister(&id(name, backend)).await;
    }

    pub fn client(&self) -> Client {
        Client::http(self.http)
    }

    /// The pid of the supervised Envoy, from its record.
    pub fn envoy_pid(&self) -> i32 {
        let text =
            std::fs::read_to_string(self.data.join("envoy/edge/envoy-state.json")).expect("Envoy's record");
        let record: serde_json::Value = serde_json::from_str(&text).expect("a record");
        find_pid(&record).unwrap_or_else(|| panic!("no pid in {text}"))
    }

    /// Polls until a request is answered as expected.
    pub async fn until(&self, request: &Request, what: &str, expected: impl Fn(&Reply) -> bool) -> Reply {
        until(&self.client(), request, what, expected).await
    }
}

pub async fn until(
    client: &Client,
    request: &Request,
    what: &str,
    expected: impl Fn(&Reply) -> bool,
) -> Reply {
    wait_for(what, SOON, async || {
        let reply = client
            .send(request)
            .await
            .map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        anyhow::ensure!(
            expected(&reply),
            "{} {:?} {}",
            reply.status,
            reply.headers,
            reply.text()
        );
        Ok(reply)
    })
    .await
}

pub fn id(name: &str, backend: &Backend) -> String {
    format!("{name}-{}", backend.port)
}

fn find_pid(value: &serde_json::Value) -> Option<i32> {
    match value {
        serde_json::Value::Object(map) => map
            .get("pid")
            .and_then(|pid| pid.as_i64())
            .map(|pid| pid as i32)
            .or_else(|| map.values().find_map(find_pid)),
        _ => None,
    }
}

async fn start_vault() -> Vault {
    let vault = Vault::start().await;
    vault.enable_pki("pki_int", "example.com").await;
    vault.enable_kv("secret", 2).await;
    vault
}

fn settings(launch: &AgentLaunch, consul: &Consul, vault: Option<&Vault>, options: Options) -> PathBuf {
    let mut text = format!(
        r#"
gateways  = ["edge"]
node_name = "node-1"
bind_addr = "127.0.0.1"
data_dir  = "{data}"

consul {{
  address = "{consul}"
}}

kv_documents {{
  allow_loopback = true
}}

envoy {{
  supervise       = true
  binary          = "{envoy}"
  concurrency     = 1
  drain_time      = "2s"
  variant         = "{variant}"
  stop_with_agent = true
}}

api {{
  socket = "{api}"
}}
"#,
        data = launch.directory().join("data").display(),
        consul = consul.address(),
        envoy = program("envoy").display(),
        variant = if options.state_of_the_world {
            "sotw"
        } else {
            "delta"
        },
        api = launch.api().display(),
    );
    if let Some(vault) = vault {
        let token = launch.file("vault-token", &vault.root_token);
        text.push_str(&format!(
            "\nvault {{\n  address       = \"{}\"\n  token_file    = \"{}\"\n  poll_interval = \"1s\"\n}}\n",
            vault.address(),
            token.display()
        ));
    }
    launch.file("portreeve.hcl", &text)
}

fn start(launch: AgentLaunch, settings: &std::path::Path) -> Agent {
    launch.arg("agent").arg("-config").arg(settings).start()
}

pub const GATEWAY: &str = r#"
gateway "edge" {
  listener "web" {
    port = $HTTP
  }
}
"#;

/// A route of one host to one Consul service.
pub fn route(name: &str, host: &str, service: &str) -> String {
    format!(
        r#"
http_route "{name}" {{
  gateways  = ["edge"]
  hostnames = ["{host}"]

  rule "all" {{
    backend "consul" "{service}" {{}}
  }}
}}
"#
    )
}

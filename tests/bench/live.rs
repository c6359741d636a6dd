//! The real programs: Consul with a data directory, the agent of this build, its supervised Envoy.
//!
//! The agent reaches Consul over TLS, where its long polls share connections, unless it is told otherwise: plain HTTP has
//! room for some 150 of them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::agent::Agent;
use crate::support::client::{Client, Request};
use crate::support::consul::Consul;
use crate::support::pki::Ca;
use crate::support::ports::free_port;
use crate::support::stack::pid_of_envoy;
use crate::support::{program, scratch_directory, wait_for};
use crate::synthetic;

pub struct Live {
    pub agent: Agent,
    pub consul: Consul,
    pub client: Client,
    /// When the agent was started.
    pub launched: Instant,
    consul_https: u16,
    data: PathBuf,
    /// Where Consul serves its own proxies.
    pub consul_grpc: u16,
    certificates: TempDir,
}

/// Operations of one transaction: Consul's own limit.
const TRANSACTION: usize = 64;
pub const NODE: &str = "bench-node";
pub const PATIENCE: Duration = Duration::from_secs(180);

/// How the agent reaches Consul.
#[derive(Clone, Copy, PartialEq)]
pub enum Towards {
    Plain,
    Tls,
}

/// With a node for the services of the bench, which Consul's agent does not look after.
pub struct ConsulTls {
    pub consul: Consul,
    https: u16,
    grpc: u16,
    certificates: TempDir,
}

impl Live {
    /// With a gateway that has no route.
    pub async fn start() -> Live {
        Live::start_with(Towards::Tls, "", async |_| {}).await
    }

    /// With more settings, and a Consul that this was done to before the agent began.
    pub async fn start_with(towards: Towards, more: &str, before: impl AsyncFnOnce(&Consul)) -> Live {
        let consul = ConsulTls::start().await;
        before(&consul.consul).await;
        let consul_block = consul.settings(towards);
        let launch = Agent::prepare();
        let data = launch.directory().join("data");
        let settings = format!(
            r#"
gateways  = ["edge"]
node_name = "node-1"
bind_addr = "127.0.0.1"
data_dir  = "{data}"

consul {{
  {consul_block}
}}

{more}

kv_documents {{
  allow_loopback = true
}}

envoy {{
  supervise       = true
  binary          = "{envoy}"
  concurrency     = 1
  drain_time      = "2s"
  stop_with_agent = true
}}

api {{
  socket = "{api}"
}}
"#,
            data = data.display(),
            envoy = program("envoy").display(),
            api = launch.api().display(),
        );
        let file = launch.file("portreeve.hcl", &settings);
        let launched = Instant::now();
        let agent = launch.arg("agent").arg("-config").arg(&file).start();
        let http = free_port();
        let live = Live {
            agent,
            consul: consul.consul,
            client: Client::http(http).keep_alive(),
            launched,
            consul_https: consul.https,
            data,
            consul_grpc: consul.grpc,
            certificates: consul.certificates,
        };
        live.put("gateway", &synthetic::gateway(http)).await;
        live.until_status("nobody.example.com", 404).await;
        live
    }

    pub async fn put(&self, name: &str, text: &str) {
        self.consul
            .put(&format!("portreeve/config/{name}"), text.to_owned())
            .await;
    }

    /// Many documents, a transaction for each 64.
    pub async fn put_all(&self, documents: impl Iterator<Item = (String, String)>) {
        let operations = documents.map(|(name, text)| {
            let value = base64::engine::general_purpose::STANDARD.encode(text);
            json!({ "KV": { "Verb": "set", "Key": format!("portreeve/config/{name}"), "Value": value } })
        });
        transact(&self.consul, operations.collect()).await;
    }

    /// Instances that nobody asks, so many for each of so many services (`s0`, `s1`, ...).
    pub async fn register_all(&self, services: usize, instances: usize) {
        let operations = (0..services * instances).map(|at| {
            let (name, instance) = (synthetic::service_name(at / instances), at % instances);
            let service = json!({
                "ID": format!("{name}-{instance}"), "Service": name,
                "Address": format!("127.0.1.{}", instance + 1), "Port": 9,
            });
            json!({ "Service": { "Verb": "set", "Node": NODE, "Service": service } })
        });
        transact(&self.consul, operations.collect()).await;
    }

    pub async fn until_status(&self, host: &str, status: u16) {
        self.until_answer(host, "/", status).await;
    }

    pub async fn until_answer(&self, host: &str, path: &str, status: u16) {
        let request = Request::get(host, path);
        wait_for(&format!("{status} from {host}{path}"), PATIENCE, async || {
            let reply = self.client.send(&request).await;
            let reply = reply.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
            anyhow::ensure!(reply.status == status, "it is {}", reply.status);
            Ok(())
        })
        .await;
    }

    /// Where the agent reaches it.
    pub fn consul_port(&self, towards: Towards) -> u16 {
        match towards {
            Towards::Plain => self.consul.port,
            Towards::Tls => self.consul_https,
        }
    }

    pub fn envoy_pid(&self) -> u32 {
        pid_of_envoy(&self.data).try_into().expect("a process")
    }

    /// Of whoever asks this Consul over TLS: every port of its own has it.
    pub fn authority(&self) -> String {
        std::fs::read_to_string(self.certificates.path().join("ca.pem")).expect("a certificate")
    }

    pub fn resident_mib(&self) -> f64 {
        crate::clock::resident_mib(self.agent.process.pid())
    }

    /// Between two changes: no two alike, so that no timer falls into step with them.
    pub async fn rest(&self, sample: usize) {
        tokio::time::sleep(Duration::from_millis(50 + (sample * 7919 % 200) as u64)).await;
    }

    /// Until the agent uses next to no CPU.
    pub async fn until_quiet(&self) {
        until_quiet(self.agent.process.pid()).await;
    }
}

impl ConsulTls {
    pub async fn start() -> ConsulTls {
        let certificates = scratch_directory("consul-tls");
        let ca = Ca::new("bench");
        let pair = ca.issue(&["server.dc1.consul", "127.0.0.1"]);
        let file = |name: &str, text: &str| {
            let path = certificates.path().join(name);
            std::fs::write(&path, text).expect("a file");
            path
        };
        let (ca_file, https, grpc) = (file("ca.pem", &ca.certificate), free_port(), free_port());
        let settings = json!({
            "ports": { "https": https, "grpc": grpc },
            "ca_file": ca_file,
            "cert_file": file("consul.pem", &pair.certificate),
            "key_file": file("consul.key", &pair.key),
            "log_level": "warn",
        });
        let consul = Consul::start_with(false, settings).await;
        consul
            .catalog_register(&json!({ "Node": NODE, "Address": "127.0.0.1" }))
            .await;
        ConsulTls {
            consul,
            https,
            grpc,
            certificates,
        }
    }

    /// What stands in the agent's `consul` block.
    pub fn settings(&self, towards: Towards) -> String {
        match towards {
            Towards::Plain => format!("address = \"{}\"", self.consul.address()),
            Towards::Tls => format!(
                "address = \"https://127.0.0.1:{}\"\n  ca_file = {:?}",
                self.https,
                self.certificates.path().join("ca.pem"),
            ),
        }
    }
}

/// Until a process uses next to no CPU.
pub async fn until_quiet(pid: u32) {
    let started = Instant::now();
    let mut before = ticks(pid);
    while started.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = ticks(pid);
        if now - before <= 3 {
            return;
        }
        before = now;
    }
}

/// Services that ask to be exposed, all at one address: `s0` and on, as an external node has them.
pub async fn register_exposed(consul: &Consul, services: std::ops::Range<usize>, port: u16) {
    let operations = services.map(|number| {
        let name = synthetic::service_name(number);
        let service = json!({
            "ID": name, "Service": name, "Tags": ["portreeve"], "Address": "127.0.0.1", "Port": port,
        });
        json!({ "Service": { "Verb": "set", "Node": NODE, "Service": service } })
    });
    transact(consul, operations.collect()).await;
}

/// As many transactions as it takes.
pub async fn transact(consul: &Consul, operations: Vec<Value>) {
    let total = operations.len();
    for (at, part) in operations.chunks(TRANSACTION).enumerate() {
        consul.txn(Value::from(part.to_vec())).await;
        if at % 100 == 99 {
            eprintln!("bench:   {} of {total} written to Consul", (at + 1) * TRANSACTION);
        }
    }
}

/// CPU time of a process in hundredths of a second.
pub fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|word| word.parse::<u64>().ok())
        .sum()
}

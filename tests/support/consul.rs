//! A real Consul server with a data directory, alone in its datacenter.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use hyper::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::{Answer, api_client};
use super::network::FarNetwork;
use super::ports::free_port;
use super::process::{Launch, Process};
use super::{START_LIMIT, program, scratch_directory, wait_for};

/// The management token of a Consul that was started with ACLs.
pub const MASTER_TOKEN: &str = "b1a2c3d4-0000-4000-8000-00000000feed";

pub struct Consul {
    pub process: Process,
    host: &'static str,
    pub port: u16,
    acl: bool,
    client: reqwest::Client,
    pub directory: TempDir,
}

impl Consul {
    /// Without ACLs.
    pub async fn start() -> Consul {
        Consul::start_with(false, json!({})).await
    }

    /// With ACLs, denying by default; [`Consul::call`] uses [`MASTER_TOKEN`].
    pub async fn start_with_acl() -> Consul {
        Consul::start_with(true, json!({})).await
    }

    /// `settings` are laid over the agent's configuration, key by key of the top level and of the objects in it.
    pub async fn start_with(acl: bool, settings: Value) -> Consul {
        let mut this = Consul::launch(acl, settings, None);
        this.wait_ready().await;
        this
    }

    /// Without ACLs, in another network: it is asked across the link, and on its own loopback.
    pub async fn start_in(network: &FarNetwork, mut settings: Value) -> Consul {
        settings["client_addr"] = json!(format!("{} 127.0.0.1", FarNetwork::ADDRESS));
        let mut this = Consul::launch(false, settings, Some(network));
        this.wait_ready().await;
        this
    }

    /// A client agent, as programs have beside them, and three servers, which elect one of them.
    pub async fn start_cluster() -> (Consul, Vec<Consul>) {
        let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let addresses: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let servers = ports.iter().zip(1..).map(|(serf, number)| {
            let settings = json!({
                "bootstrap_expect": 3, "node_name": format!("server-{number}"),
                "retry_join": addresses, "retry_interval": "1s", "ports": { "serf_lan": serf },
            });
            Consul::launch(false, settings, None)
        });
        let servers = servers.collect();
        let settings = json!({
            "server": false, "bootstrap_expect": null, "retry_join": addresses, "retry_interval": "1s",
        });
        let mut client = Consul::launch(false, settings, None);
        client.wait_ready().await;
        (client, servers)
    }

    /// Whether this server leads the others.
    pub async fn is_leader(&self) -> bool {
        let own = self.call(Method::GET, "/v1/agent/self", "").await;
        own.is_ok_and(|own| own.json()["Stats"]["consul"]["leader"] == "true")
    }

    fn launch(acl: bool, settings: Value, network: Option<&FarNetwork>) -> Consul {
        let directory = scratch_directory("consul");
        let consul = program("consul");
        let port = free_port();
        let mut config = json!({
            "server": true,
            "bootstrap_expect": 1,
            "datacenter": "dc1",
            "node_name": "node-1",
            "data_dir": directory.path().join("data"),
            "bind_addr": "127.0.0.1",
            "advertise_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "ports": {
                "http": port, "server": free_port(), "serf_lan": free_port(),
                "serf_wan": -1, "https": -1, "grpc": -1, "dns": -1,
            },
            "performance": { "raft_multiplier": 1 },
            "connect": { "enabled": true },
            "disable_update_check": true,
            "check_update_interval": "0s",
            "log_level": "info",
        });
        if acl {
            let name = if has_old_token_names(&consul) {
                "master"
            } else {
                "initial_management"
            };
            config["acl"] = json!({
                "enabled": true,
                "default_policy": "deny",
                "down_policy": "extend-cache",
                "tokens": { name: MASTER_TOKEN, "agent": MASTER_TOKEN },
            });
        }
        for (key, value) in settings.as_object().expect("settings are an object") {
            if value.is_null() {
                config.as_object_mut().expect("an object").remove(key);
                continue;
            }
            match (config[key].as_object_mut(), value.as_object()) {
                (Some(here), Some(over)) => here.extend(over.clone()),
                _ => config[key] = value.clone(),
            }
        }
        let file = directory.path().join("consul.json");
        std::fs::write(&file, config.to_string()).expect("consul's configuration");
        let launch = Launch::new("consul", consul, directory.path())
            .arg("agent")
            .arg("-config-file")
            .arg(&file);
        let (launch, host) = match network {
            Some(network) => (network.launch(launch), FarNetwork::ADDRESS),
            None => (launch, "127.0.0.1"),
        };
        Consul {
            process: launch.start(),
            host,
            port,
            acl,
            client: api_client(),
            directory,
        }
    }

    /// Waits for a leader, for the node in the catalog (sessions need it), and for the Connect CA.
    pub async fn wait_ready(&mut self) {
        wait_for("consul to elect itself", START_LIMIT, async || {
            self.process.check_running()?;
            let leader = self.call(Method::GET, "/v1/status/leader", "").await?.ok()?;
            ensure!(leader.text().len() > 2, "there is no leader yet");
            let health = self
                .call(Method::GET, "/v1/health/node/node-1", "")
                .await?
                .ok()?
                .json();
            ensure!(
                health.to_string().contains("\"serfHealth\""),
                "the node is not in the catalog: {health}"
            );
            let roots = self.call(Method::GET, "/v1/connect/ca/roots", "").await?;
            let connect_off = roots.text().contains("Connect must be enabled");
            ensure!(
                connect_off || roots.json()["Roots"][0].is_object(),
                "no Connect root: {}",
                roots.text()
            );
            Ok(())
        })
        .await;
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again (killing it first if it runs) on the same ports and data.
    pub async fn restart(&mut self) {
        self.process.start_again();
        self.wait_ready().await;
    }

    /// `host:port`, as in CONSUL_HTTP_ADDR.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The management token, if ACLs are on.
    pub fn token(&self) -> Option<&'static str> {
        self.acl.then_some(MASTER_TOKEN)
    }

    /// One request with the management token; every status is an answer.
    pub async fn call(&self, method: Method, path: &str, body: impl Into<reqwest::Body>) -> Result<Answer> {
        self.call_as(self.token().unwrap_or_default(), method, path, body)
            .await
    }

    pub async fn call_as(
        &self,
        token: &str,
        method: Method,
        path: &str,
        body: impl Into<reqwest::Body>,
    ) -> Result<Answer> {
        let mut request = self
            .client
            .request(method, format!("http://{}{path}", self.address()))
            .body(body);
        if !token.is_empty() {
            request = request.header("x-consul-token", token);
        }
        Answer::read(request.send().await?).await
    }

    /// [`Consul::call`] that panics unless the status is 2xx, and answers the body as JSON.
    pub async fn expect(&self, method: Method, path: &str, body: impl Into<reqwest::Body>) -> Value {
        let answer = self.call(method.clone(), path, body).await.and_then(Answer::ok);
        answer
            .unwrap_or_else(|error| panic!("consul: {method} {path}: {error:#}"))
            .json()
    }

    // ---- KV ----

    pub async fn put(&self, key: &str, value: impl Into<reqwest::Body>) {
        let stored = self.expect(Method::PUT, &format!("/v1/kv/{key}"), value).await;
        assert_eq!(stored, json!(true), "consul refused to store {key}");
    }

    /// As one that has been in use for a while: another that begins anew is not as far within a test, however busy the
    /// machine.
    pub async fn grow_old(&self) {
        for round in 0..100 {
            self.put("noise", round.to_string()).await;
        }
    }

    pub async fn get(&self, key: &str) -> Option<String> {
        let answer = self
            .call(Method::GET, &format!("/v1/kv/{key}?raw"), "")
            .await
            .expect("an answer of consul");
        if answer.status == 404 {
            None
        } else {
            Some(answer.ok().expect("a KV value").text())
        }
    }

    pub async fn delete(&self, key: &str) {
        self.expect(Method::DELETE, &format!("/v1/kv/{key}"), "").await;
    }

    pub async fn delete_tree(&self, prefix: &str) {
        self.expect(Method::DELETE, &format!("/v1/kv/{prefix}?recurse"), "")
            .await;
    }

    /// The keys under a prefix.
    pub async fn keys(&self, prefix: &str) -> Vec<String> {
        let answer = self
            .call(Method::GET, &format!("/v1/kv/{prefix}?keys"), "")
            .await
            .expect("an answer of consul");
        serde_json::from_value(answer.json()).unwrap_or_default()
    }

    /// All operations at once, e.g. `json!([{"KV": {"Verb": "set", "Key": "a", "Value": "YQ=="}}])`.
    pub async fn txn(&self, operations: Value) -> Value {
        self.expect(Method::PUT, "/v1/txn", operations.to_string()).await
    }

    // ---- Services ----

    /// Registers on this agent; [`service`] makes the usual definition.
    pub async fn register(&self, definition: &Value) {
        self.expect(Method::PUT, "/v1/agent/service/register", definition.to_string())
            .await;
    }

    pub async fn deregister(&self, id: &str) {
        self.expect(Method::PUT, &format!("/v1/agent/service/deregister/{id}"), "")
            .await;
    }

    /// `status` is passing, warning or critical; the check must have a TTL, as [`service`]'s `service:<id>`
    /// has.
    pub async fn set_check(&self, check: &str, status: &str) {
        let body = json!({ "Status": status, "Output": "set by a test" }).to_string();
        self.expect(Method::PUT, &format!("/v1/agent/check/update/{check}"), body)
            .await;
    }

    pub async fn maintenance(&self, id: &str, enable: bool) {
        let path = format!("/v1/agent/service/maintenance/{id}?enable={enable}&reason=test");
        self.expect(Method::PUT, &path, "").await;
    }

    pub async fn node_maintenance(&self, enable: bool) {
        self.expect(
            Method::PUT,
            &format!("/v1/agent/maintenance?enable={enable}&reason=test"),
            "",
        )
        .await;
    }

    /// Registers on any node, past the agent: `{"Node", "Address", "Service": {...}, "Checks": [...]}`.
    pub async fn catalog_register(&self, entry: &Value) {
        self.expect(Method::PUT, "/v1/catalog/register", entry.to_string())
            .await;
    }

    pub async fn catalog_deregister(&self, entry: &Value) {
        self.expect(Method::PUT, "/v1/catalog/deregister", entry.to_string())
            .await;
    }
}

/// A service on 127.0.0.1 with a passing TTL check `service:<id>` that never expires within a test.
pub fn service(name: &str, id: &str, port: u16) -> Value {
    json!({
        "Name": name, "ID": id, "Address": "127.0.0.1", "Port": port,
        "Check": { "CheckID": format!("service:{id}"), "TTL": "24h", "Status": "passing" },
    })
}

/// Before 1.11, `tokens.initial_management` was called `tokens.master`; each knows only its own name.
fn has_old_token_names(consul: &Path) -> bool {
    let output = Command::new(consul)
        .arg("version")
        .output()
        .expect("consul's version");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix('v'))
        .unwrap_or_default();
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < (1, 11)
}

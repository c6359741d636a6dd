//! A Consul server of a test's own: loopback only, data in a temporary directory, killed when dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use portreeve::model::{DocumentsUpdate, Observation, Redacted, ServiceUpdate};
use portreeve::sources::agent_api::{ApiAddress, Product};
use portreeve::sources::consul::{ConsulClient, ConsulSettings, WatchTiming};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::ports::free_port;

pub struct Server {
    child: Child,
    directory: TempDir,
    http: reqwest::Client,
    pub port: u16,
    pub https_port: u16,
}

pub const ROOT: &str = "root-token-of-the-tests";

impl Server {
    pub async fn start() -> Self {
        Self::start_with(false, "").await
    }

    pub async fn start_with_acls() -> Self {
        Self::start_with(true, "").await
    }

    /// `extra` is more of the agent's HCL; `{dir}` in it is the data directory.
    pub async fn start_with(acls: bool, extra: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let [port, https_port, server, serf] = std::array::from_fn(|_| free_port());
        let acl = if acls {
            format!(
                "acl {{ enabled = true  default_policy = \"deny\"  tokens {{ master = \"{ROOT}\"  agent = \"{ROOT}\" }} }}"
            )
        } else {
            String::new()
        };
        let https = if extra.contains("cert_file") {
            i32::from(https_port)
        } else {
            -1
        };
        let extra = extra.replace("{dir}", &directory.path().display().to_string());
        let config = format!(
            "data_dir = \"{}/data\"\nserver = true\nbootstrap_expect = 1\nnode_name = \"n1\"\nbind_addr = \"127.0.0.1\"\n\
             client_addr = \"127.0.0.1\"\ndisable_update_check = true\nperformance {{ raft_multiplier = 1 }}\n\
             ports {{ http = {port}  https = {https}  dns = -1  grpc = -1  server = {server}  serf_lan = {serf}  serf_wan = -1 }}\n\
             {acl}\n{extra}\n",
            directory.path().display()
        );
        std::fs::write(directory.path().join("agent.hcl"), config).unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let child = launch(directory.path());
        let server = Self {
            child,
            directory,
            http,
            port,
            https_port,
        };
        server.wait_until_ready().await;
        server
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Kills and starts again on the same data.
    pub async fn restart(&mut self) {
        self.stop();
        self.child = launch(self.directory.path());
        self.wait_until_ready().await;
    }

    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Keeps it from answering, with its connections open.
    pub fn freeze(&self, frozen: bool) {
        use rustix::process::{Pid, Signal, kill_process};
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        kill_process(Pid::from_child(&self.child), signal).expect("a process");
    }

    /// Kills, forgets everything, starts again.
    pub async fn restart_wiped(&mut self) {
        self.stop();
        std::fs::remove_dir_all(self.directory.path().join("data")).unwrap();
        self.child = launch(self.directory.path());
        self.wait_until_ready().await;
    }

    async fn wait_until_ready(&self) {
        for _ in 0..300 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            // The node's own registration comes after the leader: sessions and services need it.
            let Ok(response) = self.ask(reqwest::Method::GET, "catalog/nodes", None).await else {
                continue;
            };
            if response.1.contains("\"n1\"") {
                return;
            }
        }
        panic!(
            "Consul did not start:\n{}",
            std::fs::read_to_string(self.directory.path().join("log")).unwrap()
        );
    }

    pub fn settings(&self, token: Option<&str>) -> ConsulSettings {
        ConsulSettings {
            address: ApiAddress::parse(Product::Consul, &format!("127.0.0.1:{}", self.port), false).unwrap(),
            token: token.map(|token| Redacted::new(token.to_owned())),
            ..ConsulSettings::default()
        }
    }

    pub fn client(&self, token: Option<&str>) -> ConsulClient {
        ConsulClient::new(&self.settings(token)).unwrap()
    }

    async fn ask(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<String>,
    ) -> reqwest::Result<(u16, String)> {
        let url = format!("http://127.0.0.1:{}/v1/{path}", self.port);
        let mut request = self.http.request(method, url).header("x-consul-token", ROOT);
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = request.send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    }

    /// As root; must succeed.
    pub async fn put(&self, path: &str, body: impl ToString) -> String {
        let (status, text) = self
            .ask(reqwest::Method::PUT, path, Some(body.to_string()))
            .await
            .unwrap();
        assert_eq!(status, 200, "PUT {path}: {text}");
        text
    }

    /// Creates a prepared query and returns its id.
    pub async fn prepared_query(&self, query: Value) -> String {
        let (status, text) = self
            .ask(reqwest::Method::POST, "query", Some(query.to_string()))
            .await
            .unwrap();
        assert_eq!(status, 200, "{query}: {text}");
        serde_json::from_str::<Value>(&text).unwrap()["ID"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    pub async fn delete(&self, path: &str) {
        let (status, text) = self.ask(reqwest::Method::DELETE, path, None).await.unwrap();
        assert_eq!(status, 200, "DELETE {path}: {text}");
    }

    /// Creates or replaces a policy.
    pub async fn policy(&self, name: &str, rules: &str) {
        let (status, text) = self
            .ask(reqwest::Method::GET, &format!("acl/policy/name/{name}"), None)
            .await
            .unwrap();
        let path = match serde_json::from_str::<Value>(&text) {
            Ok(found) if status == 200 => format!("acl/policy/{}", found["ID"].as_str().unwrap()),
            _ => "acl/policy".to_owned(),
        };
        self.put(&path, json!({ "Name": name, "Rules": rules })).await;
    }

    /// A new token with one policy: (accessor, secret).
    pub async fn token(&self, policy: &str) -> (String, String) {
        let made = self
            .put("acl/token", json!({ "Policies": [{ "Name": policy }] }))
            .await;
        let made: Value = serde_json::from_str(&made).unwrap();
        (
            made["AccessorID"].as_str().unwrap().to_owned(),
            made["SecretID"].as_str().unwrap().to_owned(),
        )
    }

    pub async fn register(&self, name: &str, id: &str, port: u16) {
        let body = json!({ "Name": name, "ID": id, "Address": "127.0.0.1", "Port": port });
        self.put("agent/service/register", body).await;
    }

    /// An instance on another node, as an external service has it.
    pub async fn register_on(&self, node: &str, name: &str, port: u16) {
        let body =
            json!({ "Node": node, "Address": "10.0.0.9", "Service": { "Service": name, "Port": port } });
        self.put("catalog/register", body).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A source under test: what it says, and its end.
pub struct Running {
    pub observations: mpsc::Receiver<Observation>,
    pub cancel: CancellationToken,
    pub tasks: JoinSet<()>,
}

impl Running {
    pub fn new() -> (Self, mpsc::Sender<Observation>) {
        let (sender, observations) = mpsc::channel(64);
        (
            Self {
                observations,
                cancel: CancellationToken::new(),
                tasks: JoinSet::new(),
            },
            sender,
        )
    }

    pub async fn documents(&mut self) -> DocumentsUpdate {
        match self.next().await {
            Observation::Documents(update) => update,
            other => panic!("{other:?}"),
        }
    }

    pub async fn service(&mut self) -> ServiceUpdate {
        match self.next().await {
            Observation::Service(update) => update,
            other => panic!("{other:?}"),
        }
    }

    pub async fn next(&mut self) -> Observation {
        tokio::time::timeout(Duration::from_secs(20), self.observations.recv())
            .await
            .expect("an observation")
            .unwrap()
    }

    pub async fn quiet_for(&mut self, millis: u64) {
        let heard = tokio::time::timeout(Duration::from_millis(millis), self.observations.recv()).await;
        assert!(heard.is_err(), "{heard:?}");
    }
}

/// The contract's figures, shrunk so that doubt and recovery take a second.
pub fn quick() -> WatchTiming {
    WatchTiming {
        recovery_wait: Duration::from_millis(200),
        doubt_wait: (Duration::from_millis(300), Duration::from_millis(600)),
        poll_interval: Duration::from_millis(200),
        retry: (Duration::from_millis(50), Duration::from_millis(400)),
        refused: Duration::from_millis(400),
        stream_refused: (Duration::from_millis(100), Duration::from_millis(400)),
        ..WatchTiming::default()
    }
}

fn launch(directory: &Path) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(directory.join("log"))
        .unwrap();
    Command::new(binary())
        .arg("agent")
        .arg(format!("-config-file={}", directory.join("agent.hcl").display()))
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .stdin(Stdio::null())
        .spawn()
        .expect("Consul starts; see the head of tests/consul/main.rs for where it is looked for")
}

fn binary() -> PathBuf {
    if let Some(named) = std::env::var_os("CONSUL_BIN") {
        return named.into();
    }
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin/consul");
    if fetched.exists() {
        fetched
    } else {
        "consul".into()
    }
}

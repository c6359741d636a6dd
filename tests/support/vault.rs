//! A real OpenBao server (or Vault, where only that is at hand) with its storage on disk: initialised,
//! unsealed.

use anyhow::{Result, ensure};
use hyper::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::{Answer, api_client};
use super::jwt::JwtIssuer;
use super::ports::free_port;
use super::process::{Launch, Process};
use super::{START_LIMIT, find_program, program, scratch_directory, wait_for};

/// The multiplier of Raft's time-outs with which a lone node leads within a second or two.
const ALONE: &str = "1";

/// One with which a leader that waits half a second for its turn on a busy machine goes on leading.
const AMONG_OTHERS: &str = "3";

pub struct Vault {
    pub process: Process,
    pub port: u16,
    pub root_token: String,
    /// Where calls go from now on; empty: the root namespace.
    pub namespace: String,
    unseal_key: String,
    client: reqwest::Client,
    _directory: TempDir,
}

impl Vault {
    pub async fn start() -> Vault {
        Vault::start_with(&[]).await
    }

    /// With more listeners (`tcp` blocks) beside the one that tests use.
    pub async fn start_with(listeners: &[Value]) -> Vault {
        Vault::start_first(ALONE, listeners).await
    }

    /// The first node of a cluster, for [`Vault::join`].
    pub async fn start_to_be_joined() -> Vault {
        Vault::start_first(AMONG_OTHERS, &[]).await
    }

    async fn start_first(multiplier: &str, listeners: &[Value]) -> Vault {
        let mut vault = Vault::launch("vault-1", multiplier, listeners).await;
        let keys = vault
            .expect(
                Method::PUT,
                "sys/init",
                json!({ "secret_shares": 1, "secret_threshold": 1 }),
            )
            .await;
        vault.root_token = keys["root_token"].as_str().expect("a root token").to_owned();
        vault.unseal_key = keys["keys_base64"][0].as_str().expect("an unseal key").to_owned();
        vault.unseal().await;
        vault
    }

    /// Another node of this one's cluster, on standby. Returns when it votes.
    pub async fn join(&self, name: &str) -> Vault {
        let mut node = Vault::launch(name, AMONG_OTHERS, &[]).await;
        node.root_token.clone_from(&self.root_token);
        node.unseal_key.clone_from(&self.unseal_key);
        let leader = json!({ "leader_api_addr": self.address() });
        node.expect(Method::PUT, "sys/storage/raft/join", leader).await;
        // The challenge is answered once it has come from the leader.
        wait_for("the node to join", START_LIMIT, async || {
            let key = json!({ "key": node.unseal_key });
            node.call(Method::PUT, "sys/unseal", key).await?.ok()?;
            let health = node.call(Method::GET, "sys/health", Value::Null).await?;
            ensure!(
                [429, 473].contains(&health.status.as_u16()),
                "status {}: {}",
                health.status,
                health.text()
            );
            let cluster = self.read("sys/storage/raft/configuration").await;
            let servers = cluster["data"]["config"]["servers"].as_array().cloned();
            let votes = |server: &Value| server["node_id"] == name && server["voter"] == true;
            ensure!(
                servers.is_some_and(|servers| servers.iter().any(votes)),
                "{cluster}"
            );
            Ok(())
        })
        .await;
        node
    }

    async fn launch(name: &str, multiplier: &str, listeners: &[Value]) -> Vault {
        let directory = scratch_directory("vault");
        let port = free_port();
        let data = directory.path().join("data");
        std::fs::create_dir(&data).expect("vault's data directory");
        let cluster = format!("127.0.0.1:{}", free_port());
        let binary = find_program("bao")
            .or_else(|| find_program("vault"))
            .unwrap_or_else(|| program("bao"));
        let mut config = json!({
            // OpenBao has no file storage any more.
            "storage": { "raft": { "path": data, "node_id": name, "performance_multiplier": multiplier } },
            "listener": [{ "tcp": {
                "address": format!("127.0.0.1:{port}"),
                "cluster_address": cluster,
                "tls_disable": true,
            } }],
            "api_addr": format!("http://127.0.0.1:{port}"),
            "cluster_addr": format!("https://{cluster}"),
            "log_level": "info",
        });
        let tcp = |listener: &Value| json!({ "tcp": listener });
        let more = listeners.iter().map(tcp);
        config["listener"].as_array_mut().expect("a list").extend(more);
        if binary.ends_with("vault") {
            config["disable_mlock"] = json!(true); // OpenBao never locks memory
        }
        let file = directory.path().join("vault.json");
        std::fs::write(&file, config.to_string()).expect("vault's configuration");
        let binary = find_program("bao")
            .or_else(|| find_program("vault"))
            .unwrap_or_else(|| program("bao"));
        let launch = Launch::new(name, binary, directory.path()).arg("server");
        let process = launch.arg(format!("-config={}", file.display())).start();
        let (root_token, unseal_key) = (String::new(), String::new());
        let mut vault = Vault {
            process,
            port,
            root_token,
            namespace: String::new(),
            unseal_key,
            client: api_client(),
            _directory: directory,
        };
        vault.wait_listening().await;
        vault
    }

    async fn wait_listening(&mut self) {
        wait_for("vault to listen", START_LIMIT, async || {
            self.process.check_running()?;
            self.call(Method::GET, "sys/seal-status", Value::Null).await?.ok()
        })
        .await;
    }

    pub async fn unseal(&self) {
        self.expect(Method::PUT, "sys/unseal", json!({ "key": self.unseal_key }))
            .await;
        wait_for("vault to become active", START_LIMIT, async || {
            let health = self.call(Method::GET, "sys/health", Value::Null).await?;
            ensure!(
                health.status == 200,
                "status {}: {}",
                health.status,
                health.text()
            );
            Ok(())
        })
        .await;
    }

    pub async fn seal(&self) {
        self.expect(Method::PUT, "sys/seal", Value::Null).await;
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again (killing it first if it runs) on the same port and data, and unseals it.
    pub async fn restart(&mut self) {
        self.restart_sealed().await;
        self.unseal().await;
    }

    pub async fn restart_sealed(&mut self) {
        self.process.start_again();
        self.wait_listening().await;
    }

    /// `http://127.0.0.1:port`, as in VAULT_ADDR.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// One request with the root token; every status is an answer. `path` comes without `/v1/`.
    pub async fn call(&self, method: Method, path: &str, body: Value) -> Result<Answer> {
        self.call_as(&self.root_token, method, path, body).await
    }

    pub async fn call_as(&self, token: &str, method: Method, path: &str, body: Value) -> Result<Answer> {
        let mut request = self
            .client
            .request(method, format!("{}/v1/{path}", self.address()));
        if !token.is_empty() {
            request = request.header("x-vault-token", token);
        }
        if !self.namespace.is_empty() {
            request = request.header("x-vault-namespace", &self.namespace);
        }
        if !body.is_null() {
            request = request.json(&body);
        }
        Answer::read(request.send().await?).await
    }

    /// [`Vault::call`] that panics unless the status is 2xx, and answers the body as JSON.
    pub async fn expect(&self, method: Method, path: &str, body: Value) -> Value {
        let answer = self.call(method.clone(), path, body).await.and_then(Answer::ok);
        answer
            .unwrap_or_else(|error| panic!("vault: {method} {path}: {error:#}"))
            .json()
    }

    pub async fn write(&self, path: &str, body: Value) -> Value {
        self.expect(Method::POST, path, body).await
    }

    /// A write whose answer comes wrapped: its wrapping token.
    pub async fn wrap(&self, path: &str) -> String {
        let request = self
            .client
            .post(format!("{}/v1/{path}", self.address()))
            .header("x-vault-token", &self.root_token)
            .header("x-vault-wrap-ttl", "10m");
        let answer = Answer::read(request.send().await.expect("an answer of vault")).await;
        let wrapped = answer.and_then(Answer::ok).expect("a wrapped answer").json();
        wrapped["wrap_info"]["token"]
            .as_str()
            .expect("a token")
            .to_owned()
    }

    pub async fn read(&self, path: &str) -> Value {
        self.expect(Method::GET, path, Value::Null).await
    }

    // ---- Secrets ----

    /// Mounts a key-value store of version 1 or 2.
    pub async fn enable_kv(&self, mount: &str, version: u8) {
        let body = json!({ "type": "kv", "options": { "version": version.to_string() } });
        self.write(&format!("sys/mounts/{mount}"), body).await;
        // A new version 2 store answers 400 until it has upgraded itself.
        let probe = format!("{mount}/{}probe", if version == 2 { "data/" } else { "" });
        wait_for("the kv mount", START_LIMIT, async || {
            let answer = self.call(Method::GET, &probe, Value::Null).await?;
            ensure!(answer.status == 404, "{}", answer.text());
            Ok(())
        })
        .await;
    }

    /// Writes to a version 2 store. To a version 1 store: `write("mount/path", data)`.
    pub async fn put_kv2(&self, mount: &str, path: &str, data: Value) {
        self.write(&format!("{mount}/data/{path}"), json!({ "data": data }))
            .await;
    }

    // ---- PKI ----

    /// Mounts a PKI with a root of its own and a role `edge` for `domain`, its subdomains and itself.
    /// Returns the root, PEM.
    pub async fn enable_pki(&self, mount: &str, domain: &str) -> String {
        let tune = json!({ "type": "pki", "config": { "max_lease_ttl": "87600h" } });
        self.write(&format!("sys/mounts/{mount}"), tune).await;
        let root = json!({ "common_name": format!("{domain} root"), "ttl": "8760h", "key_type": "ec", "key_bits": 256 });
        let root = self.write(&format!("{mount}/root/generate/internal"), root).await;
        let role = json!({
            "allowed_domains": domain, "allow_subdomains": true, "allow_bare_domains": true, "allow_localhost": true,
            "key_type": "ec", "key_bits": 256, "max_ttl": "72h", "no_store": false,
        });
        self.write(&format!("{mount}/roles/edge"), role).await;
        root["data"]["certificate"]
            .as_str()
            .expect("a root certificate")
            .to_owned()
    }

    /// What is known of each token that is there, the root token included.
    pub async fn tokens(&self) -> Vec<Value> {
        let list = Method::from_bytes(b"LIST").expect("a method");
        let accessors = self.expect(list, "auth/token/accessors", Value::Null).await;
        let mut tokens = Vec::new();
        for accessor in accessors["data"]["keys"].as_array().into_iter().flatten() {
            let body = json!({ "accessor": accessor });
            let found = self
                .call(Method::POST, "auth/token/lookup-accessor", body)
                .await
                .and_then(Answer::ok);
            // One that ended meanwhile is none.
            tokens.extend(found.map(|found| found.json()["data"].clone()));
        }
        tokens
    }

    /// How many certificates a PKI mount has issued and stored, its root included.
    pub async fn count_certificates(&self, mount: &str) -> usize {
        let list = Method::from_bytes(b"LIST").expect("a method");
        let answer = self
            .call(list, &format!("{mount}/certs"), Value::Null)
            .await
            .expect("an answer of vault");
        answer.json()["data"]["keys"].as_array().map_or(0, Vec::len)
    }

    // ---- Policies and logins ----

    pub async fn policy(&self, name: &str, rules: &str) {
        self.expect(
            Method::PUT,
            &format!("sys/policies/acl/{name}"),
            json!({ "policy": rules }),
        )
        .await;
    }

    /// A token that is renewable up to `ttl` at a time, e.g. `"30s"`.
    pub async fn create_token(&self, policies: &[&str], ttl: &str) -> String {
        let body = json!({ "policies": policies, "ttl": ttl, "renewable": true, "no_parent": true });
        let token = self.write("auth/token/create", body).await;
        token["auth"]["client_token"]
            .as_str()
            .expect("a token")
            .to_owned()
    }

    pub async fn revoke_token(&self, token: &str) {
        self.write("auth/token/revoke", json!({ "token": token })).await;
    }

    pub async fn enable_auth(&self, mount: &str, kind: &str) {
        self.write(&format!("sys/auth/{mount}"), json!({ "type": kind }))
            .await;
    }

    /// A role under `auth/approle` (enabled before). Returns its role id and a secret id.
    pub async fn approle(&self, name: &str, policies: &[&str], token_ttl: &str) -> (String, String) {
        let role = format!("auth/approle/role/{name}");
        self.write(
            &role,
            json!({ "token_policies": policies, "token_ttl": token_ttl }),
        )
        .await;
        let role_id = self.read(&format!("{role}/role-id")).await["data"]["role_id"]
            .as_str()
            .unwrap()
            .to_owned();
        let secret = self.write(&format!("{role}/secret-id"), json!({})).await;
        (
            role_id,
            secret["data"]["secret_id"]
                .as_str()
                .expect("a secret id")
                .to_owned(),
        )
    }

    /// A role under `auth/jwt` (enabled before) for tokens of `issuer` whose audience is `vault`.
    pub async fn jwt_role(&self, name: &str, issuer: &JwtIssuer, policies: &[&str], token_ttl: &str) {
        let keys =
            json!({ "jwt_validation_pubkeys": [issuer.public_key()], "jwt_supported_algs": ["EdDSA"] });
        self.write("auth/jwt/config", keys).await;
        let role = json!({
            "role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"],
            "token_policies": policies, "token_ttl": token_ttl,
        });
        self.write(&format!("auth/jwt/role/{name}"), role).await;
    }
}

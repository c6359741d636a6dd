//! A real OpenBao server with a data directory on loopback, set up as an operator would.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::ports::free_port;

pub struct Bao {
    pub address: String,
    pub root_token: String,
    /// Where all that follows happens; empty: the root.
    pub namespace: String,
    unseal_key: String,
    directory: tempfile::TempDir,
    process: Option<Child>,
    http: reqwest::Client,
}

impl Bao {
    /// Started, initialised and unsealed.
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// With a certificate for 127.0.0.1 and its authority, PEM; it asks clients for certificates.
    pub async fn start_tls(certificate: &str, key: &str, authority: &str) -> Self {
        Self::start_with(Some((certificate, key, authority))).await
    }

    async fn start_with(tls: Option<(&str, &str, &str)>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let address = format!("{scheme}://127.0.0.1:{port}");
        let mut authorities = Vec::new();
        let mut security = "tls_disable = true".to_owned();
        if let Some((certificate, key, authority)) = tls {
            let file = |name: &str, text: &str| {
                let path = directory.path().join(name);
                std::fs::write(&path, text).unwrap();
                path
            };
            security = format!(
                "tls_cert_file = {:?}\n  tls_key_file = {:?}",
                file("server.pem", certificate),
                file("server.key", key)
            );
            authorities.push(reqwest::Certificate::from_pem(authority.as_bytes()).unwrap());
        }
        let cluster = free_port();
        let data = directory.path().join("data");
        std::fs::create_dir(&data).unwrap();
        // OpenBao 2.7 has no "file" storage any more; a raft of one is what it writes to disk with.
        let config = format!(
            r#"
storage "raft" {{
  path                   = "{data}"
  node_id                = "one"
  performance_multiplier = 1
}}
listener "tcp" {{
  address         = "127.0.0.1:{port}"
  cluster_address = "127.0.0.1:{cluster}"
  {security}
}}
api_addr     = "{address}"
cluster_addr = "https://127.0.0.1:{cluster}"
"#,
            data = data.display()
        );
        std::fs::write(directory.path().join("bao.hcl"), config).unwrap();
        let http = reqwest::Client::builder()
            .tls_certs_only(authorities)
            .no_proxy()
            .build()
            .unwrap();
        let mut bao = Self {
            address,
            root_token: String::new(),
            namespace: String::new(),
            unseal_key: String::new(),
            directory,
            process: None,
            http,
        };
        bao.launch().await;
        let (_, keys) = bao
            .send(
                "PUT",
                "sys/init",
                Some(json!({"secret_shares": 1, "secret_threshold": 1})),
            )
            .await;
        bao.root_token = keys["root_token"].as_str().expect("init").to_owned();
        bao.unseal_key = keys["keys_base64"][0].as_str().expect("init").to_owned();
        bao.unseal().await;
        bao
    }

    pub async fn unseal(&self) {
        let (status, body) = self
            .send("PUT", "sys/unseal", Some(json!({"key": self.unseal_key})))
            .await;
        assert_eq!(status, 200, "{body}");
        let started = Instant::now();
        while self.send("GET", "sys/health", None).await.0 != 200 {
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "not active: {}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn seal(&self) {
        self.write("sys/seal", json!({})).await;
    }

    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// After `kill`: sealed, on the same port and data.
    pub async fn launch(&mut self) {
        let log = std::fs::File::create(self.directory.path().join("bao.log")).unwrap();
        let process = Command::new(binary())
            .arg("server")
            .arg(format!(
                "-config={}",
                self.directory.path().join("bao.hcl").display()
            ))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("bao starts");
        self.process = Some(process);
        let started = Instant::now();
        while self
            .http
            .get(format!("{}/v1/sys/seal-status", self.address))
            .send()
            .await
            .is_err()
        {
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "not listening: {}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn send(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.send_as(&self.root_token, method, path, body).await
    }

    pub async fn send_as(&self, token: &str, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self
            .http
            .request(method.parse().unwrap(), format!("{}/v1/{path}", self.address));
        if !token.is_empty() {
            request = request.header("X-Vault-Token", token);
        }
        if !self.namespace.is_empty() {
            request = request.header("X-Vault-Namespace", &self.namespace);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.expect("bao answers");
        (
            response.status().as_u16(),
            response.json().await.unwrap_or(Value::Null),
        )
    }

    /// A write that must succeed; the answer.
    pub async fn write(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.send("POST", path, Some(body)).await;
        assert!(status < 300, "POST {path}: {status} {answer}");
        answer
    }

    /// A write whose answer comes wrapped for `ttl`.
    pub async fn write_wrapped(&self, path: &str, ttl: &str) -> Value {
        let request = self
            .http
            .post(format!("{}/v1/{path}", self.address))
            .header("X-Vault-Token", &self.root_token)
            .header("X-Vault-Wrap-TTL", ttl);
        request.send().await.unwrap().json().await.unwrap()
    }

    pub async fn read(&self, path: &str) -> Value {
        let (status, answer) = self.send("GET", path, None).await;
        assert!(status < 300, "GET {path}: {status} {answer}");
        answer
    }

    pub async fn delete(&self, path: &str) {
        let (status, answer) = self.send("DELETE", path, None).await;
        assert!(status < 300, "DELETE {path}: {status} {answer}");
    }

    pub async fn policy(&self, name: &str, text: &str) {
        self.write(&format!("sys/policies/acl/{name}"), json!({"policy": text}))
            .await;
    }

    /// `secret` as KV v2, `kv` as KV v1.
    pub async fn mount_kv(&self) {
        self.write(
            "sys/mounts/secret",
            json!({"type": "kv", "options": {"version": "2"}}),
        )
        .await;
        self.write(
            "sys/mounts/kv",
            json!({"type": "kv", "options": {"version": "1"}}),
        )
        .await;
        // A v2 mount upgrades itself for a moment after it is made, and answers 400 until then.
        let started = Instant::now();
        while self.send("GET", "secret/config", None).await.0 != 200 {
            assert!(started.elapsed() < Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A root at `pki`, an intermediate at `pki_int`, and the role `edge`.
    pub async fn mount_pki(&self, role: Value) {
        for mount in ["pki", "pki_int"] {
            self.write(
                &format!("sys/mounts/{mount}"),
                json!({"type": "pki", "config": {"max_lease_ttl": "87600h"}}),
            )
            .await;
        }
        let root = json!({"common_name": "root", "ttl": "87600h", "key_type": "ec", "key_bits": 256});
        self.write("pki/root/generate/internal", root).await;
        let request = json!({"common_name": "intermediate", "key_type": "ec", "key_bits": 256});
        let csr = self
            .write("pki_int/intermediate/generate/internal", request)
            .await;
        let csr = csr["data"]["csr"].as_str().unwrap();
        let signed = self
            .write(
                "pki/root/sign-intermediate",
                json!({"csr": csr, "ttl": "43800h", "format": "pem_bundle"}),
            )
            .await;
        let certificate = signed["data"]["certificate"].as_str().unwrap();
        let root = self.read("pki/cert/ca").await;
        let chain = format!("{certificate}\n{}", root["data"]["certificate"].as_str().unwrap());
        self.write("pki_int/intermediate/set-signed", json!({"certificate": chain}))
            .await;
        self.write("pki_int/roles/edge", role).await;
    }

    /// How many leaves the intermediate has issued.
    pub async fn issued(&self) -> usize {
        let (_, list) = self.send("GET", "pki_int/certs?list=true", None).await;
        // The intermediate itself is stored beside its leaves, and so may the root be.
        let mut leaves = 0;
        for serial in list["data"]["keys"].as_array().into_iter().flatten() {
            let stored = self
                .read(&format!("pki_int/cert/{}", serial.as_str().unwrap()))
                .await;
            let pem = stored["data"]["certificate"].as_str().unwrap().to_owned();
            let (_, der) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
            leaves += usize::from(!der.parse_x509().unwrap().is_ca());
        }
        leaves
    }

    /// An AppRole `edge`; its role id and a secret id.
    pub async fn app_role(&self, settings: Value) -> (String, String) {
        self.write("sys/auth/approle", json!({"type": "approle"})).await;
        self.write("auth/approle/role/edge", settings).await;
        let role = self.read("auth/approle/role/edge/role-id").await;
        let secret = self.write("auth/approle/role/edge/secret-id", json!({})).await;
        (
            role["data"]["role_id"].as_str().unwrap().to_owned(),
            secret["data"]["secret_id"].as_str().unwrap().to_owned(),
        )
    }

    /// A token by a parent token of `settings`.
    pub async fn token(&self, settings: Value) -> String {
        let answer = self.write("auth/token/create", settings).await;
        answer["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    pub async fn revoke(&self, token: &str) {
        self.write("auth/token/revoke", json!({"token": token})).await;
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("bao.log")).unwrap_or_default()
    }
}

impl Drop for Bao {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `bao` of `make tools`, else of the PATH. Missing, the test fails: it is not skipped.
pub fn binary() -> PathBuf {
    let fetched = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin/bao");
    if fetched.exists() {
        fetched
    } else {
        PathBuf::from("bao")
    }
}

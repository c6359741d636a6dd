//! A real Proxy of OpenBao before the server: it logs in and adds the token, and takes only requests that say that they
//! are meant for it.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use portreeve::model::KvVersion;
use portreeve::sources::vault::VaultAuth;
use serde_json::json;

use super::bao::{Bao, binary};
use super::ports::free_port;
use super::rig::{Rig, kv, pki, self_signed};
use super::shipped::shipped;

struct Proxy {
    address: String,
    process: Child,
}

impl Proxy {
    async fn start(bao: &Bao, directory: &std::path::Path, role_id: &str, secret_id: &str) -> Self {
        let port = free_port();
        let file = |name: &str, text: &str| {
            let path = directory.join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let config = format!(
            r#"
vault {{ address = "{}" }}
auto_auth {{
  method "approle" {{
    config = {{
      role_id_file_path                   = "{}"
      secret_id_file_path                 = "{}"
      remove_secret_id_file_after_reading = false
    }}
  }}
}}
api_proxy {{ use_auto_auth_token = true }}
listener "tcp" {{
  address                = "127.0.0.1:{port}"
  tls_disable            = true
  require_request_header = true
}}
"#,
            bao.address,
            file("role-id", role_id),
            file("secret-id", secret_id)
        );
        let config = file("proxy.hcl", &config);
        let log = std::fs::File::create(directory.join("proxy.log")).unwrap();
        let process = Command::new(binary())
            .args(["proxy", &format!("-config={config}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("the proxy starts");
        let proxy = Self {
            address: format!("http://127.0.0.1:{port}"),
            process,
        };
        let started = Instant::now();
        while proxy.status(true).await != Some(200) {
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "{}",
                std::fs::read_to_string(directory.join("proxy.log")).unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        proxy
    }

    /// Of what the token of the proxy may read, with or without the header.
    async fn status(&self, marked: bool) -> Option<u16> {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut request = client.get(format!("{}/v1/secret/data/portreeve/www", self.address));
        if marked {
            request = request.header("X-Vault-Request", "true");
        }
        Some(request.send().await.ok()?.status().as_u16())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_proxy_that_demands_the_request_header_adds_its_token() {
    let bao = Bao::start().await;
    bao.mount_kv().await;
    bao.mount_pki(json!({"allow_any_name": true, "max_ttl": "1h", "key_type": "ec"}))
        .await;
    let (certificate, key) = self_signed("one.example", 5);
    let fields = json!({"certificate": certificate, "private_key": key});
    bao.write("secret/data/portreeve/www", json!({"data": fields}))
        .await;
    for name in ["portreeve-kv", "portreeve-pki"] {
        bao.policy(name, &shipped(name)).await;
    }
    let role = json!({"token_policies": ["portreeve-kv", "portreeve-pki"], "token_no_default_policy": true});
    let (role_id, secret_id) = bao.app_role(role).await;
    let directory = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(&bao, directory.path(), &role_id, &secret_id).await;
    let unmarked = proxy.status(false).await.unwrap();
    assert!(unmarked >= 400, "{unmarked}: the proxy takes any request");

    let mut rig = Rig::start(&proxy.address, VaultAuth::Proxy, directory.path());
    let (from_kv, from_pki) = (
        kv(KvVersion::V2, "secret", "portreeve/www"),
        pki("www.example.com", 600),
    );
    rig.watch(&[&from_kv]);
    assert_eq!(rig.material().await.names[0].as_ref(), "one.example");
    rig.watch(&[&from_kv, &from_pki]);
    assert_eq!(rig.material().await.names[0].as_ref(), "www.example.com");
    rig.stop().await;
}

//! Mutual TLS with authorities and revocations from Vault, with the shipped policies alone: who is let in, who is not,
//! and that a change of either loses no request of anybody else.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use crate::stack::{Options, SOON, Stack, until};
use crate::support::client::{Client, Request};
use crate::support::load::Load;
use crate::support::pki::Pair;
use crate::support::vault::Vault;
use crate::support::wait_for;

const DOCUMENT: &str = r#"
gateway "edge" {
  listener "secure" {
    port     = $HTTPS
    protocol = "https"

    tls {
      certificates = ["www"]

      client_ca {
        mode = "MODE"

        SOURCE
      }
    }
  }
}

certificate "www" {
  vault_pki {
    mount       = "pki_int"
    role        = "edge"
    common_name = "www.example.com"
  }
}

http_route "www" {
  gateways  = ["edge"]
  hostnames = ["www.example.com"]

  rule "all" {
    direct_response {
      status = 200
      body   = "let in"
    }
  }
}
"#;

const FROM_PKI: &str = "vault_pki {\n          mount = \"pki_clients\"\n          crl   = true\n        }";

fn document(mode: &str, source: &str) -> String {
    DOCUMENT.replace("MODE", mode).replace("SOURCE", source)
}

fn shipped(name: &str) -> String {
    std::fs::read_to_string(format!(
        "{}/vault-policies/{name}.hcl",
        env!("CARGO_MANIFEST_DIR")
    ))
    .unwrap()
}

async fn stack() -> Stack {
    let stack = Stack::start(Options {
        vault: true,
        vault_policies: vec![
            ("portreeve-kv", shipped("portreeve-kv")),
            ("portreeve-pki", shipped("portreeve-pki")),
        ],
        ..Options::default()
    })
    .await;
    let vault = stack.vault.as_ref().unwrap();
    vault.enable_pki("pki_root", "clients").await;
    for mount in ["pki_clients", "pki_other"] {
        let tune = json!({ "type": "pki", "config": { "max_lease_ttl": "8760h" } });
        vault.write(&format!("sys/mounts/{mount}"), tune).await;
        intermediate(vault, mount, "generation 1").await;
    }
    stack
}

/// Another issuer of `mount`, signed by the common root and made its default; its id.
async fn intermediate(vault: &Vault, mount: &str, name: &str) -> String {
    let request = json!({ "common_name": format!("{mount} {name}"), "key_type": "ec", "key_bits": 256 });
    let csr = vault
        .write(&format!("{mount}/intermediate/generate/internal"), request)
        .await;
    let sign = json!({ "csr": csr["data"]["csr"], "ttl": "8000h", "format": "pem_bundle" });
    let signed = vault.write("pki_root/root/sign-intermediate", sign).await;
    let root = vault.read("pki_root/cert/ca").await;
    // With the root above it, as Vault's own tutorials do: it must not be trusted for being here.
    let chain = format!(
        "{}\n{}",
        signed["data"]["certificate"].as_str().unwrap(),
        root["data"]["certificate"].as_str().unwrap()
    );
    let imported = vault
        .write(
            &format!("{mount}/intermediate/set-signed"),
            json!({ "certificate": chain }),
        )
        .await;
    let mapping = imported["data"]["mapping"].as_object().unwrap();
    let (id, _) = mapping
        .iter()
        .find(|(_, key)| key.as_str().is_some_and(|key| !key.is_empty()))
        .unwrap();
    vault
        .write(&format!("{mount}/config/issuers"), json!({ "default": id }))
        .await;
    let role = json!({ "allow_any_name": true, "key_type": "ec", "max_ttl": "72h", "issuer_ref": "default" });
    vault.write(&format!("{mount}/roles/client"), role).await;
    id.clone()
}

/// A client's certificate, and its serial number.
async fn issue(vault: &Vault, mount: &str, name: &str) -> (Pair, Value) {
    let answer = vault
        .write(&format!("{mount}/issue/client"), json!({ "common_name": name }))
        .await;
    let text = |name: &str| answer["data"][name].as_str().unwrap().to_owned();
    let pair = Pair {
        certificate: text("certificate"),
        key: text("private_key"),
    };
    (pair, answer["data"]["serial_number"].clone())
}

struct Clients {
    port: u16,
    root: String,
}

impl Clients {
    async fn of(stack: &Stack) -> Clients {
        let root = stack.vault.as_ref().unwrap().read("pki_int/cert/ca").await;
        Clients {
            port: stack.https,
            root: root["data"]["certificate"].as_str().unwrap().to_owned(),
        }
    }

    fn with(&self, identity: Option<&Pair>) -> Client {
        Client::https_as(self.port, &self.root, identity)
    }
}

fn get() -> Request {
    Request::get("www.example.com", "/")
}

async fn let_in(client: &Client) {
    until(client, &get(), "let in", |reply| reply.status == 200).await;
}

async fn shut_out(client: &Client, why: &str) {
    wait_for(why, SOON, async || match client.send(&get()).await {
        Err(_) => Ok(()),
        Ok(reply) => anyhow::bail!("{why}: answered {}", reply.status),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_clients_of_the_authority_are_let_in_and_a_revoked_one_no_longer() {
    let stack = stack().await;
    let vault = stack.vault.as_ref().unwrap();
    let (good, serial) = issue(vault, "pki_clients", "good").await;
    let (steady, _) = issue(vault, "pki_clients", "steady").await;
    let (stranger, _) = issue(vault, "pki_other", "stranger").await;
    stack.put("www", &document("require", FROM_PKI)).await;
    let clients = Clients::of(&stack).await;
    let (good, steady) = (clients.with(Some(&good)), clients.with(Some(&steady)));
    let_in(&good).await;
    let_in(&steady).await;
    shut_out(&clients.with(None), "no certificate").await;
    // Of another issuer under the same root.
    shut_out(&clients.with(Some(&stranger)), "a stranger").await;

    // Its sessions could be resumed: they are not, with the new list.
    let load = Load::start(30, steady.clone(), get());
    vault
        .write("pki_clients/revoke", json!({ "serial_number": serial }))
        .await;
    shut_out(&good, "revoked").await;
    let report = load.finish().await;
    report.assert_none_lost();
    let_in(&steady).await;

    // A certificate is no must, a bad one is no good.
    stack.put("www", &document("optional", FROM_PKI)).await;
    let_in(&clients.with(None)).await;
    let_in(&steady).await;
    shut_out(&good, "revoked").await;
    shut_out(&clients.with(Some(&stranger)), "a stranger").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_authority_loses_no_request() {
    let stack = stack().await;
    let vault = stack.vault.as_ref().unwrap();
    let (old, _) = issue(vault, "pki_clients", "old").await;
    stack.put("www", &document("require", FROM_PKI)).await;
    let clients = Clients::of(&stack).await;
    let old = clients.with(Some(&old));
    let_in(&old).await;
    let before = vault.read("pki_clients/config/issuers").await["data"]["default"].clone();
    let load = Load::start(30, old.clone(), get());
    // Both generations are in force for a while.
    intermediate(vault, "pki_clients", "generation 2").await;
    let (new, _) = issue(vault, "pki_clients", "new").await;
    let new = clients.with(Some(&new));
    let_in(&new).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    load.finish().await.assert_none_lost();

    let load = Load::start(30, new.clone(), get());
    let gone = format!("pki_clients/issuer/{}", before.as_str().unwrap());
    vault.expect(Method::DELETE, &gone, Value::Null).await;
    shut_out(&old, "of the authority that is gone").await;
    load.finish().await.assert_none_lost();
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_authorities_keep_the_port_closed_and_known_ones_outlive_vault() {
    let mut stack = stack().await;
    let vault = stack.vault.as_ref().unwrap();
    let (good, _) = issue(vault, "pki_clients", "good").await;
    let authority = vault.read("pki_clients/cert/ca").await["data"]["certificate"].clone();
    let kv = "vault_kv {\n          mount = \"secret\"\n          path  = \"portreeve/clients\"\n        }";
    stack.put("www", &document("require", kv)).await;
    let said = "the listener \"secure\" is not opened: whose client certificates are good is not known";
    stack.agent.process.wait_for_log(said, SOON).await;
    let clients = Clients::of(&stack).await;
    let client = clients.with(Some(&good));
    assert!(client.send(&get()).await.is_err(), "closed");
    let put = json!({ "certificate": authority });
    stack
        .vault
        .as_ref()
        .unwrap()
        .put_kv2("secret", "portreeve/clients", put)
        .await;
    let_in(&client).await;
    // What is no authority is not taken up, what was stays.
    let leaf = json!({ "certificate": good.certificate });
    let vault = stack.vault.as_ref().unwrap();
    vault.put_kv2("secret", "portreeve/clients", leaf).await;
    stack.agent.process.wait_for_log("is no authority", SOON).await;
    let_in(&client).await;
    let anybody = clients.with(None);
    shut_out(&anybody, "no certificate").await;

    // Vault away, and the agent starts anew: the same clients, and nobody else.
    stack.vault.as_mut().unwrap().kill();
    stack.agent.kill();
    let start = stack.agent.process.log_length();
    stack.agent.process.start_again();
    stack
        .agent
        .process
        .wait_for_log_after(start, "Envoy connected", SOON)
        .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(client.send(&get()).await.unwrap().status, 200);
    assert!(anybody.send(&get()).await.is_err(), "no certificate");
}

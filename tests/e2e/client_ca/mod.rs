//! Mutual TLS with authorities and revocations from Vault, with the shipped policies alone: who is let in, who is not,
//! and that a change of either loses no request of anybody else.

mod lists;

use hyper::Method;
use serde_json::{Value, json};

use crate::stack::{Options, SOON, Stack, until};
use crate::support::client::{Client, Failure, Request};
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

fn from_kv(path: &str) -> String {
    format!("vault_kv {{\n          mount = \"secret\"\n          path  = \"portreeve/{path}\"\n        }}")
}

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

async fn stack(state_of_the_world: bool) -> Stack {
    let stack = Stack::start(Options {
        vault: true,
        state_of_the_world,
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

/// For polls: a request that hangs is asked again, not waited for until the end of all patience.
fn impatient(client: &Client) -> Client {
    client.clone().timeout(SOON / 4)
}

/// The port is open, and the handshake is refused.
async fn shut_out(client: &Client, why: &str) {
    let client = impatient(client);
    wait_for(why, SOON, async || match client.send(&get()).await {
        Err(Failure::Tls(_) | Failure::Reset(_)) => Ok(()),
        other => anyhow::bail!("{why}: {other:?}"),
    })
    .await;
}

async fn closed(client: &Client, why: &str) {
    let client = impatient(client);
    wait_for(why, SOON, async || match client.send(&get()).await {
        Err(Failure::Refused) => Ok(()),
        other => anyhow::bail!("{why}: {other:?}"),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_clients_of_the_authority_are_let_in_and_a_revoked_one_no_longer_delta() {
    only_clients_of_the_authority_are_let_in_and_a_revoked_one_no_longer(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_clients_of_the_authority_are_let_in_and_a_revoked_one_no_longer_state_of_the_world() {
    only_clients_of_the_authority_are_let_in_and_a_revoked_one_no_longer(true).await;
}

async fn only_clients_of_the_authority_are_let_in_and_a_revoked_one_no_longer(state_of_the_world: bool) {
    let stack = stack(state_of_the_world).await;
    let vault = stack.vault.as_ref().unwrap();
    let (good, serial) = issue(vault, "pki_clients", "good").await;
    let (steady, _) = issue(vault, "pki_clients", "steady").await;
    let (stranger, _) = issue(vault, "pki_other", "stranger").await;
    stack.put("www", &document("required", FROM_PKI)).await;
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
    let stack = stack(false).await;
    let vault = stack.vault.as_ref().unwrap();
    let (old, _) = issue(vault, "pki_clients", "old").await;
    stack.put("www", &document("required", FROM_PKI)).await;
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
    load.finish().await.assert_none_lost();

    let load = Load::start(30, new.clone(), get());
    let gone = format!("pki_clients/issuer/{}", before.as_str().unwrap());
    vault.expect(Method::DELETE, &gone, Value::Null).await;
    shut_out(&old, "of the authority that is gone").await;
    load.finish().await.assert_none_lost();
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_authorities_keep_the_port_closed_and_known_ones_outlive_vault() {
    let mut stack = stack(false).await;
    let vault = stack.vault.as_ref().unwrap();
    let (good, _) = issue(vault, "pki_clients", "good").await;
    let authority = vault.read("pki_clients/cert/ca").await["data"]["certificate"].clone();
    stack.put("www", &document("required", &from_kv("clients"))).await;
    let said = "the listener \"secure\" is not opened, as the authorities of its clients are not known";
    stack.agent.process.wait_for_log(said, SOON).await;
    let clients = Clients::of(&stack).await;
    let client = clients.with(Some(&good));
    closed(&client, "authorities that are not there").await;
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
    // Nothing is published before the source was asked; Envoy goes on meanwhile.
    stack
        .agent
        .process
        .wait_for_log_after(start, "certificate not refreshed", SOON)
        .await;
    let_in(&client).await;
    shut_out(&anybody, "no certificate").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_of_the_authorities_loses_no_request_and_a_bad_one_lets_in_nobody() {
    let stack = stack(false).await;
    let vault = stack.vault.as_ref().unwrap();
    let (client, _) = issue(vault, "pki_clients", "client").await;
    let (other, _) = issue(vault, "pki_other", "other").await;
    let authority = async |mount: &str| {
        let answer = vault.read(&format!("{mount}/cert/ca")).await;
        answer["data"]["certificate"].as_str().unwrap().to_owned()
    };
    let (one, two) = (authority("pki_clients").await, authority("pki_other").await);
    vault
        .put_kv2("secret", "portreeve/one", json!({ "certificate": one }))
        .await;
    let both = json!({ "certificate": format!("{one}\n{two}") });
    vault.put_kv2("secret", "portreeve/both", both).await;
    stack.put("www", &document("required", &from_kv("one"))).await;
    let clients = Clients::of(&stack).await;
    let (client, other) = (clients.with(Some(&client)), clients.with(Some(&other)));
    let_in(&client).await;
    shut_out(&other, "of another authority").await;

    let load = Load::start(30, client.clone(), get());
    stack.put("www", &document("required", &from_kv("both"))).await;
    let_in(&other).await;
    load.finish().await.assert_none_lost();

    // The path holds nothing: whom it would let in is not known, and who was let in before is not either.
    stack.put("www", &document("required", &from_kv("nothing"))).await;
    closed(&client, "authorities that are not there").await;
    let status = stack
        .agent
        .api(Method::GET, "/v1/status", "")
        .await
        .unwrap()
        .text();
    assert!(
        status.contains("client_ca/edge/secure") && status.contains("listener-withheld"),
        "{status}"
    );
    stack.put("www", &document("required", &from_kv("one"))).await;
    let_in(&client).await;
    shut_out(&other, "of another authority").await;
}

/// What a listener asked for before an edit may have been taken back since: it does not come back from memory.
#[tokio::test(flavor = "multi_thread")]
async fn authorities_that_went_meanwhile_do_not_come_back_with_an_edit() {
    let stack = stack(false).await;
    let vault = stack.vault.as_ref().unwrap();
    let (client, _) = issue(vault, "pki_clients", "client").await;
    let (other, _) = issue(vault, "pki_other", "other").await;
    for (mount, path) in [("pki_clients", "one"), ("pki_other", "two")] {
        let authority = vault.read(&format!("{mount}/cert/ca")).await["data"]["certificate"].clone();
        let secret = json!({ "certificate": authority });
        vault
            .put_kv2("secret", &format!("portreeve/{path}"), secret)
            .await;
    }
    let clients = Clients::of(&stack).await;
    let (client, other) = (clients.with(Some(&client)), clients.with(Some(&other)));
    stack.put("www", &document("required", &from_kv("one"))).await;
    let_in(&client).await;
    stack.put("www", &document("required", &from_kv("two"))).await;
    let_in(&other).await;
    shut_out(&client, "of the authority before the edit").await;

    let gone = "secret/metadata/portreeve/one";
    vault.expect(Method::DELETE, gone, Value::Null).await;
    stack.put("www", &document("required", &from_kv("one"))).await;
    closed(&client, "authorities that went meanwhile").await;
    closed(&other, "nobody is let in").await;
    let status = stack
        .agent
        .api(Method::GET, "/v1/status", "")
        .await
        .unwrap()
        .text();
    assert!(status.contains("listener-withheld"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn backends_are_told_whose_certificate_it_was_and_never_what_the_client_says() {
    let stack = stack(false).await;
    let vault = stack.vault.as_ref().unwrap();
    let backend = crate::support::backend::Backend::start("one").await;
    stack.register("orders", &backend).await;
    let (client, _) = issue(vault, "pki_clients", "client.example").await;
    let forwarding = |forward: bool| {
        let text = document("required", FROM_PKI).replace(
            "direct_response {\n      status = 200\n      body   = \"let in\"\n    }",
            "backend \"consul\" \"orders\" {}",
        );
        text.replace("mode = \"required\"", &format!("forward_client_cert = {forward}"))
    };
    let client = Clients::of(&stack).await.with(Some(&client));
    let forged = get().header("x-forwarded-client-cert", "Subject=\"CN=forged\"");
    let told = |reply: &crate::support::client::Reply| {
        let headers = &reply.json()["headers"];
        headers["x-forwarded-client-cert"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    stack.put("www", &forwarding(true)).await;
    let reply = until(&client, &forged, "the header", |reply| {
        reply.status == 200 && !told(reply).is_empty()
    })
    .await;
    let said = told(&reply);
    assert!(
        said.contains("Subject=\"CN=client.example\"") && said.contains("DNS=client.example"),
        "{said}"
    );
    assert!(said.contains("Hash=") && !said.contains("forged"), "{said}");
    stack.put("www", &forwarding(false)).await;
    until(&client, &forged, "no header", |reply| {
        reply.status == 200 && told(reply).is_empty()
    })
    .await;
}

//! Tokens and client certificates that somebody gives the agent: their end is told before it hurts, as metric, in `status`
//! and in the log, and is over with their successors. Consul's token: `rights`. What logins show: `login`, `vault_tokens`.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use hyper::Method;
use serde_json::{Value, json};

use crate::stack::{Options, Stack};
use crate::support::agent::Agent;
use crate::support::consul::Consul;
use crate::support::nomad::NomadContract;
use crate::support::pki::{Ca, Pair};
use crate::support::ports::free_port;
use crate::support::vault::Vault;
use crate::support::{scratch_directory, wait_for};

const CONSUL: &str = r#"
key_prefix "portreeve/config/" { policy = "read" }
service_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }
"#;

const MESH: &str = r#"
service "edge-gw" { policy = "write" }
service_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }
"#;

/// Files are looked at every 10 s where nothing is asked.
const TAKEN_UP: Duration = Duration::from_secs(60);

/// When the credential ends, by the metric.
async fn end(agent: &Agent, credential: &str) -> anyhow::Result<Option<i64>> {
    let metrics = agent.api(Method::GET, "/metrics", "").await?.ok()?.text();
    let name = format!("portreeve_credential_expiry_timestamp_seconds{{credential=\"{credential}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
    Ok(value.map(str::parse::<f64>).transpose()?.map(|end| end as i64))
}

async fn until_it_ends_at(agent: &Agent, credential: &str, expected: Option<i64>) {
    wait_for(&format!("the metric of the {credential}"), TAKEN_UP, async || {
        let end = end(agent, credential).await?;
        ensure!(end == expected, "{end:?} in place of {expected:?}");
        Ok(())
    })
    .await;
}

/// What `status` says of a source.
async fn note(agent: &Agent, source: &str) -> anyhow::Result<String> {
    let status = agent.api(Method::GET, "/v1/status", "").await?.ok()?.json();
    let mut sources = status["sources"].as_array().into_iter().flatten();
    let found = sources.find(|found| found["name"] == source);
    Ok(found.map_or_else(String::new, Value::to_string))
}

/// The line of the log, which says which one, from when on it is over, and what to do.
async fn told(agent: &Agent, what: &str, limit: Duration, parts: &[&str]) {
    let line = wait_for(&format!("{what} to be told"), limit, async || {
        let log = agent.process.log();
        let mut lines = log.lines().filter(|line| line.contains("WARN"));
        let line = lines.find(|line| parts.iter().all(|part| line.contains(part)));
        line.map(str::to_owned)
            .ok_or_else(|| anyhow::anyhow!("no {parts:?} in:\n{log}"))
    })
    .await;
    println!("{}", line.trim());
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_for_vault_nomad_and_the_mesh_are_told_before_they_end() {
    let directory = scratch_directory("tokens");
    let file = |name: &str| directory.path().join(name);
    let nomad = NomadContract::start("lasting").await;
    std::fs::write(file("nomad-token"), "lasting").unwrap();
    // Until the right one is there the agent logs nothing in.
    std::fs::write(file("vault-token"), "s.none").unwrap();
    let stack = Stack::start(Options {
        consul_policy: Some(CONSUL.to_owned()),
        mesh_policy: Some(MESH.to_owned()),
        vault: true,
        vault_login: Some(format!("token_file = {:?}", file("vault-token"))),
        more: format!(
            "nomad {{\n  address    = \"unix://{}\"\n  token_file = {:?}\n}}\n",
            nomad.socket.display(),
            file("nomad-token")
        ),
        ..Options::default()
    })
    .await;
    let agent = &stack.agent;
    let vault = stack.vault.as_ref().unwrap();
    let vault_token = async |ttl: &str| {
        let token = json!({ "policies": ["default"], "ttl": ttl, "renewable": false, "no_parent": true });
        let token = vault.write("auth/token/create", token).await["auth"].clone();
        let accessor = json!({ "accessor": token["accessor"] });
        let found = vault.write("auth/token/lookup-accessor", accessor).await;
        let end = humantime::parse_rfc3339(found["data"]["expire_time"].as_str().unwrap()).unwrap();
        let end = end.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
        (token["client_token"].as_str().unwrap().to_owned(), end)
    };
    let mesh_file = stack.data.parent().unwrap().join("mesh-token");
    let (_backend, request) = stack.shop().await;

    // Nomad's is in its last third when it is given, the others come to it: Consul grants a minute at least, and Vault
    // makes no token that is older than new.
    let nomad_end = nomad.set_token_for("short", Duration::from_secs(5 * 3600), Duration::from_secs(3600));
    std::fs::write(file("nomad-token"), "short").unwrap();
    let (token, vault_end) = vault_token("90s").await;
    std::fs::write(file("vault-token"), token).unwrap();
    let mesh = stack
        .consul
        .create_token_for("mesh-short", MESH, Some("60s"))
        .await;
    let read = stack
        .consul
        .expect(Method::GET, &format!("/v1/acl/token/{}", mesh.accessor), "")
        .await;
    let mesh_end = humantime::parse_rfc3339(read["ExpirationTime"].as_str().unwrap()).unwrap();
    let mesh_end = mesh_end.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    std::fs::write(&mesh_file, &mesh.secret).unwrap();

    until_it_ends_at(agent, "nomad token", Some(nomad_end as i64)).await;
    until_it_ends_at(agent, "mesh token", Some(mesh_end)).await;
    wait_for("the metric of the vault token", TAKEN_UP, async || {
        // Vault tells how many whole seconds are left.
        let end = end(agent, "vault token").await?.unwrap_or_default();
        ensure!((end - vault_end).abs() <= 2, "{end} in place of {vault_end}");
        Ok(())
    })
    .await;
    told(
        agent,
        "Nomad's token",
        TAKEN_UP,
        &["a credential ends soon", "the Nomad token ends at", "nomad-token"],
    )
    .await;
    let mesh_told = ["a credential ends soon", "the Consul token ends at", "mesh-token"];
    told(agent, "the mesh's token", 2 * TAKEN_UP, &mesh_told).await;
    let vault_told = ["a credential ends soon", "the Vault token ends at", "vault-token"];
    told(agent, "Vault's token", 3 * TAKEN_UP, &vault_told).await;
    let said = note(agent, "vault").await.unwrap();
    assert!(said.contains("cannot be renewed"), "{said}");
    for source in ["nomad credentials", "mesh credentials"] {
        let said = note(agent, source).await.unwrap();
        assert!(said.contains("nobody has replaced it"), "{said}");
    }

    // Their successors, which end late or never.
    nomad.set_token("another");
    std::fs::write(file("nomad-token"), "another").unwrap();
    let (token, vault_end) = vault_token("10h").await;
    std::fs::write(file("vault-token"), token).unwrap();
    let mesh = stack.consul.create_token("mesh-next", MESH).await;
    std::fs::write(&mesh_file, &mesh.secret).unwrap();
    until_it_ends_at(agent, "nomad token", None).await;
    until_it_ends_at(agent, "mesh token", None).await;
    wait_for("the end of the warnings", TAKEN_UP, async || {
        let end = end(agent, "vault token").await?.unwrap_or_default();
        ensure!((end - vault_end).abs() <= 2, "{end} in place of {vault_end}");
        let said = note(agent, "vault").await?;
        ensure!(
            !said.contains("ends at") && said.contains("\"ok\":true"),
            "{said}"
        );
        for source in ["nomad credentials", "mesh credentials"] {
            let said = note(agent, source).await?;
            ensure!(said.is_empty(), "{said}");
        }
        Ok(())
    })
    .await;
    assert_eq!(stack.client().send(&request).await.unwrap().status, 200);
}

/// The identity that a login shows, which its issuer leaves to its end and then renews. `sign` gives one by its beginning and
/// its end.
pub async fn an_identity_is_told_before_it_ends(
    agent: &Agent,
    (product, source): (&str, &str),
    file: &Path,
    sign: impl Fn(i64, i64) -> String,
) {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
    let credential = format!("{} login identity", product.to_lowercase());
    // As Nomad and Kubernetes do it.
    let put = |start: i64, end: i64| {
        let next = file.with_extension("next");
        std::fs::write(&next, sign(start, end)).unwrap();
        std::fs::rename(&next, file).unwrap();
        end
    };
    let logs_in = format!("with which the agent logs in to {product}");
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    let until_noted = async |verb: Option<&str>| {
        wait_for(&format!("the note {verb:?}"), TAKEN_UP, async || {
            let said = note(agent, source).await?;
            let fits = match verb {
                Some(verb) => said.contains(&logs_in) && said.contains(&format!("{product}, {verb} at ")),
                None => !said.contains(&logs_in),
            };
            ensure!(fits && said.contains("\"ok\":true"), "{said}");
            Ok(())
        })
        .await;
    };
    // Four fifths are over: an issuer may take as long.
    let early = put(now - 8000, now + 2000);
    until_it_ends_at(agent, &credential, Some(early)).await;
    until_noted(None).await;
    let late = put(now - 9200, now + 800);
    until_it_ends_at(agent, &credential, Some(late)).await;
    until_noted(Some("ends")).await;
    let parts = [
        "a credential ends soon",
        &logs_in,
        &name,
        "its issuer does not renew it",
    ];
    told(agent, "its end", TAKEN_UP, &parts).await;
    let ended = put(now - 10_000, now - 10);
    until_it_ends_at(agent, &credential, Some(ended)).await;
    until_noted(Some("ended")).await;
    told(
        agent,
        "that it has ended",
        TAKEN_UP,
        &["a credential has ended", &logs_in, &name],
    )
    .await;
    let fresh = put(now, now + 3600);
    until_it_ends_at(agent, &credential, Some(fresh)).await;
    until_noted(None).await;
    let status = agent.api(Method::GET, "/v1/status", "").await.unwrap().text();
    let identity = std::fs::read_to_string(file).unwrap();
    assert!(!status.contains(&identity) && !agent.process.log().contains(&identity));
}

/// A file without a token stands in the status, is read again by itself, and makes nobody use another token.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_file_without_a_token_is_told_of_until_there_is_one() {
    let consul = Consul::start_with_acl().await;
    let token = consul.create_token("edge", CONSUL).await.secret;
    let launch = Agent::prepare();
    let file = launch.file("token", "");
    let settings = format!(
        "gateways = [\"edge\"]\ndata_dir = {:?}\n\nconsul {{\n  address    = \"{}\"\n  token_file = {file:?}\n}}\n",
        launch.directory().join("data"),
        consul.address()
    );
    let config = launch.file("agent.hcl", &settings);
    let socket = launch.api().to_owned();
    let mut agent = launch
        .arg("agent")
        .arg("-config")
        .arg(&config)
        .arg(format!("-api-socket={}", socket.display()))
        .env("CONSUL_HTTP_TOKEN", consul.token().unwrap())
        .start();
    let until = async |agent: &Agent, what: &str, said: &str| {
        wait_for(what, TAKEN_UP, async || {
            let note = note(agent, "consul credentials").await?;
            match said {
                "" => ensure!(note.is_empty(), "{note}"),
                said => ensure!(note.contains(said), "{note}"),
            }
            Ok(note)
        })
        .await
    };
    let note = until(&agent, "a file without a token", "holds no token").await;
    assert!(
        note.contains("there is no token") && note.contains("\"ok\":false"),
        "{note}"
    );
    agent.wait_for_log("no-token").await;
    std::fs::write(&file, &token).unwrap();
    until(&agent, "the token", "").await;
    agent.wait_ready().await;
    std::fs::write(&file, " \n").unwrap();
    let note = until(&agent, "a file that is empty", "holds no token").await;
    assert!(note.contains("the token from before is used on"), "{note}");
    std::fs::write(&file, &token).unwrap();
    until(&agent, "the token again", "").await;
    agent.terminate();
}

fn write(directory: &Path, name: &str, pair: &Pair) {
    std::fs::write(directory.join(format!("{name}.pem")), &pair.certificate).unwrap();
    std::fs::write(directory.join(format!("{name}.key")), &pair.key).unwrap();
}

/// Consul, Vault and Nomad let in nobody without a certificate of their authority.
#[tokio::test(flavor = "multi_thread")]
async fn client_certificates_are_told_before_they_end() {
    let directory = scratch_directory("identities");
    let at = |name: &str| directory.path().join(name);
    let authority = Ca::new("stack");
    std::fs::write(at("ca.pem"), &authority.certificate).unwrap();
    let server = authority.issue(&["server.dc1.consul", "127.0.0.1"]);
    write(directory.path(), "server", &server);
    // In the last third of their lives.
    let hour = Duration::from_secs(3600);
    let old = |name: &str, past: u32, left: u32| {
        let client = format!("{name}-client");
        let pair = authority.issue_between(&[&client], past * hour, left * hour);
        write(directory.path(), &client, &pair);
        pair
    };
    let (old_consul, old_vault, old_nomad) = (old("consul", 5, 1), old("vault", 9, 2), old("nomad", 7, 3));
    let (consul_tls, vault_tls) = (free_port(), free_port());
    let vault = Vault::start_with(&[json!({
        "address": format!("127.0.0.1:{vault_tls}"),
        "tls_cert_file": at("server.pem"),
        "tls_key_file": at("server.key"),
        "tls_client_ca_file": at("ca.pem"),
        "tls_require_and_verify_client_cert": true,
    })])
    .await;
    std::fs::write(at("vault-token"), &vault.root_token).unwrap();
    let (nomad, nomad_tls) = NomadContract::start_tls("t", server.server_config_for(&authority)).await;
    // Its token, too: both are told.
    let nomad_token_end = nomad.set_token_for("t", 5 * hour, hour);
    std::fs::write(at("nomad-token"), "t").unwrap();
    let tls = |name: &str| {
        format!(
            "ca_file = {:?}\n  client_cert = {:?}\n  client_key = {:?}\n",
            at("ca.pem"),
            at(&format!("{name}.pem")),
            at(&format!("{name}.key"))
        )
    };
    let stack = Stack::start(Options {
        consul_settings: Some(json!({
            "ports": { "https": consul_tls },
            "ca_file": at("ca.pem"), "cert_file": at("server.pem"), "key_file": at("server.key"),
            "verify_incoming_https": true,
        })),
        consul_block: Some(format!(
            "address = \"https://127.0.0.1:{consul_tls}\"\n  tls_server_name = \"server.dc1.consul\"\n  {}",
            tls("consul-client")
        )),
        more: format!(
            "vault {{\n  address = \"https://127.0.0.1:{vault_tls}\"\n  token_file = {:?}\n  {}}}\n\
             nomad {{\n  address = \"https://127.0.0.1:{nomad_tls}\"\n  token_file = {:?}\n  {}}}\n",
            at("vault-token"),
            tls("vault-client"),
            at("nomad-token"),
            tls("nomad-client")
        ),
        ..Options::default()
    })
    .await;
    let agent = &stack.agent;
    let (_backend, request) = stack.shop().await;

    let pairs = [
        ("consul", "consul credentials", "Consul", &old_consul),
        ("vault", "vault", "Vault", &old_vault),
        ("nomad", "nomad credentials", "Nomad", &old_nomad),
    ];
    for (name, source, product, pair) in pairs {
        until_it_ends_at(
            agent,
            &format!("{name} client certificate"),
            Some(pair.not_after()),
        )
        .await;
        let says = format!("the client certificate for {product} ends at");
        let parts = ["a credential ends soon", &says, &format!("{name}-client.pem")];
        told(agent, &format!("{product}'s certificate"), TAKEN_UP, &parts).await;
        wait_for("its note in the status", TAKEN_UP, async || {
            let said = note(agent, source).await?;
            ensure!(
                said.contains(&says) && said.contains("nobody has replaced it"),
                "{said}"
            );
            ensure!(said.contains("\"ok\":true"), "it still works: {said}");
            Ok(())
        })
        .await;
    }

    until_it_ends_at(agent, "nomad token", Some(nomad_token_end as i64)).await;
    let parts = ["a credential ends soon", "the Nomad token ends at", "nomad-token"];
    told(agent, "Nomad's token", TAKEN_UP, &parts).await;
    let said = note(agent, "nomad credentials").await.unwrap();
    let both = [
        "the Nomad token ends at",
        "the client certificate for Nomad ends at",
    ];
    assert!(both.iter().all(|part| said.contains(part)), "{said}");

    // Their successors.
    nomad.set_token("lasting");
    std::fs::write(at("nomad-token"), "lasting").unwrap();
    for (name, source, product, _) in pairs {
        let next = authority.issue(&[&format!("{name}-client")]);
        write(directory.path(), &format!("{name}-client"), &next);
        until_it_ends_at(
            agent,
            &format!("{name} client certificate"),
            Some(next.not_after()),
        )
        .await;
        wait_for("the end of the warning", TAKEN_UP, async || {
            let said = note(agent, source).await?;
            ensure!(!said.contains("nobody has replaced it"), "{product}: {said}");
            ensure!(said.contains("\"ok\":true"), "{product}: {said}");
            Ok(())
        })
        .await;
    }
    until_it_ends_at(agent, "nomad token", None).await;
    assert_eq!(stack.client().send(&request).await.unwrap().status, 200);
}

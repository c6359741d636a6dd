//! The connections to Consul and Nomad: whom the agent trusts there, and whom it shows itself as, rotates, and nothing is
//! restarted but the server. Vault's: `tests/vault/rotation.rs`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
use serde_json::json;
use tempfile::TempDir;

use crate::stack::{GATEWAY, Options, Stack, route};
use crate::support::backend::Backend;
use crate::support::client::Request;
use crate::support::load::Load;
use crate::support::nomad::NomadContract;
use crate::support::pki::{Ca, Pair};
use crate::support::ports::free_port;
use crate::support::{scratch_directory, wait_for};

/// Files are looked at when something is asked, and who gets no answer asks up to half a minute later.
const TAKEN_UP: Duration = Duration::from_secs(120);

/// The names that the server's certificate has.
const SERVER: [&str; 2] = ["server.dc1.consul", "127.0.0.1"];

enum Source {
    Consul,
    Nomad(NomadContract),
}

/// A gateway whose instances of `orders` are in Consul or in Nomad, which lets in nobody without a certificate.
struct World {
    stack: Stack,
    source: Source,
    files: TempDir,
}

fn put(directory: &Path, name: &str, text: &str) -> PathBuf {
    let (path, next) = (directory.join(name), directory.join(format!("{name}.next")));
    // As renewal tools do: a new file over the old one.
    std::fs::write(&next, text).unwrap();
    std::fs::rename(&next, &path).unwrap();
    path
}

/// What the settings say of the agent's side of the connection.
fn trusting(directory: &Path, authority: &Ca, own: &Pair) -> String {
    format!(
        "ca_file = {:?}\n  client_cert = {:?}\n  client_key = {:?}\n  tls_server_name = {:?}\n",
        put(directory, "ca.pem", &authority.certificate),
        put(directory, "client.pem", &own.certificate),
        put(directory, "client.key", &own.key),
        SERVER[0],
    )
}

impl World {
    async fn with_consul(servers: &Ca, clients: &Ca) -> World {
        let files = scratch_directory("consul-tls");
        let at = files.path();
        let (port, server) = (free_port(), servers.issue(&SERVER));
        let consul_settings = json!({
            "ports": { "https": port },
            "ca_file": put(at, "clients.pem", &clients.certificate),
            "cert_file": put(at, "server.pem", &server.certificate),
            "key_file": put(at, "server.key", &server.key),
            "verify_incoming_https": true,
        });
        let trusting = trusting(at, servers, &clients.issue(&["agent"]));
        let stack = Stack::start(Options {
            consul_settings: Some(consul_settings),
            consul_block: Some(format!("address = \"https://127.0.0.1:{port}\"\n  {trusting}")),
            ..Options::default()
        })
        .await;
        let source = Source::Consul;
        World { stack, source, files }
    }

    async fn with_nomad(servers: &Ca, clients: &Ca) -> World {
        let files = scratch_directory("nomad-tls");
        let server = servers.issue(&SERVER).server_config_for(clients);
        let (nomad, port) = NomadContract::start_tls("t", server).await;
        let token = put(files.path(), "token", "t");
        let trusting = trusting(files.path(), servers, &clients.issue(&["agent"]));
        let stack = Stack::start(Options {
            more: format!(
                "nomad {{\n  address = \"https://127.0.0.1:{port}\"\n  token_file = {token:?}\n  {trusting}}}\n"
            ),
            ..Options::default()
        })
        .await;
        let source = Source::Nomad(nomad);
        World { stack, source, files }
    }

    fn replace(&self, name: &str, text: &str) {
        put(self.files.path(), name, text);
    }

    /// The server again, on its port, with another certificate and other clients let in. No connection of before is left.
    async fn serve_as(&mut self, servers: &Ca, clients: &Ca) {
        let server = servers.issue(&SERVER);
        match &self.source {
            Source::Consul => {
                self.replace("clients.pem", &clients.certificate);
                self.replace("server.pem", &server.certificate);
                self.replace("server.key", &server.key);
                self.stack.consul.restart().await;
            }
            Source::Nomad(nomad) => nomad.restart_tls(server.server_config_for(clients)).await,
        }
    }

    async fn register(&self, backend: &Backend) {
        match &self.source {
            Source::Consul => self.stack.register("orders", backend).await,
            Source::Nomad(nomad) => nomad.register("default", "orders", backend.port),
        }
    }

    async fn put_route(&self) {
        let to_consul = route("shop", "shop.example.com", "orders");
        let document = match &self.source {
            Source::Consul => to_consul,
            Source::Nomad(_) => {
                let to_upstream = to_consul.replace("\"consul\"", "\"upstream\"");
                format!("{to_upstream}\nupstream \"orders\" {{\n  nomad {{}}\n}}\n")
            }
        };
        self.stack.put("gateway", GATEWAY).await;
        self.stack.put("shop", &document).await;
    }

    fn name(&self) -> &'static str {
        match &self.source {
            Source::Consul => "Consul",
            Source::Nomad(_) => "Nomad",
        }
    }

    async fn until_served_by(&self, name: &str) {
        let request = Request::get("shop.example.com", "/");
        wait_for(&format!("{name} to serve"), TAKEN_UP, async || {
            let reply = self.stack.client().send(&request).await;
            let reply = reply.map_err(|failure| anyhow::anyhow!("{failure}"))?;
            let seen = reply.backend();
            anyhow::ensure!(seen == Some(name), "{} of {seen:?}", reply.status);
            Ok(())
        })
        .await;
    }

    async fn nobody_served_by(&self, name: &str) {
        let request = Request::get("shop.example.com", "/");
        for _ in 0..20 {
            let reply = self.stack.client().send(&request).await.unwrap();
            assert_eq!(reply.status, 200);
            assert_ne!(reply.backend(), Some(name));
        }
    }

    /// What `status` says of the server is this, or nothing where there are no words of it.
    async fn until_told(&self, words: &[&str]) {
        let address = format!("{} at https://", self.name());
        wait_for(&format!("{words:?} of {address}"), TAKEN_UP, async || {
            let status = self.stack.agent.api(Method::GET, "/v1/status", "").await?.ok()?;
            let status = status.text();
            anyhow::ensure!(status.contains(&address) != words.is_empty(), "{status}");
            anyhow::ensure!(words.iter().all(|word| status.contains(word)), "{status}");
            Ok(())
        })
        .await;
    }
}

async fn everything_rotates(mut world: World, servers: &Ca, clients: &Ca) {
    let (one, two, three) = (
        Backend::start("one").await,
        Backend::start("two").await,
        Backend::start("three").await,
    );
    world.register(&one).await;
    world.put_route().await;
    world.until_served_by("one").await;
    let agent = world.stack.agent.process.pid();
    let load = Load::start(50, world.stack.client(), Request::get("shop.example.com", "/"));

    // Its certificate is of an authority that the agent does not know yet: not believed, and what was known serves on.
    let next_servers = Ca::new("next servers");
    world.serve_as(&next_servers, clients).await;
    world.until_told(&["invalid peer certificate"]).await;
    world.register(&two).await;
    // What holds no authority is not taken up; the right one is.
    let start = world.stack.agent.process.log_length();
    world.replace("ca.pem", "nothing");
    let unusable = format!("TLS files for {} unusable", world.name());
    let log = &mut world.stack.agent.process;
    log.wait_for_log_after(start, &unusable, TAKEN_UP).await;
    world.nobody_served_by("two").await;
    world.replace("ca.pem", &next_servers.certificate);
    world.until_served_by("two").await;
    world.until_told(&[]).await;

    // It lets in those of another authority alone: the agent's own pair is replaced, the key before the certificate.
    let next_clients = Ca::new("next clients");
    let start = world.stack.agent.process.log_length();
    world.serve_as(&next_servers, &next_clients).await;
    world.until_told(&["did not answer"]).await;
    world.register(&three).await;
    let own = next_clients.issue(&["agent"]);
    world.replace("client.key", &own.key);
    let log = &mut world.stack.agent.process;
    log.wait_for_log_after(start, &unusable, TAKEN_UP).await;
    world.nobody_served_by("three").await;
    world.replace("client.pem", &own.certificate);
    world.until_served_by("three").await;
    world.until_told(&[]).await;

    // The authority of before is no longer one: a server of its is somebody else.
    world.serve_as(servers, &next_clients).await;
    world.until_told(&["invalid peer certificate"]).await;
    load.finish().await.assert_none_lost();
    assert_eq!(world.stack.agent.process.pid(), agent);
    world.stack.agent.process.check_running().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_under_another_authority_and_for_another_client_certificate_is_followed() {
    let (servers, clients) = (Ca::new("servers"), Ca::new("clients"));
    let world = World::with_consul(&servers, &clients).await;
    everything_rotates(world, &servers, &clients).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nomad_under_another_authority_and_for_another_client_certificate_is_followed() {
    let (servers, clients) = (Ca::new("servers"), Ca::new("clients"));
    let world = World::with_nomad(&servers, &clients).await;
    everything_rotates(world, &servers, &clients).await;
}

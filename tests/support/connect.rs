//! Consul's mesh: its own sidecar proxy and the entries that steer it.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use super::consul::Consul;
use super::process::{Launch, Process};
use super::{program, wait_for};

impl Consul {
    /// Consul's own proxy for a service that was registered with `"Connect": {"SidecarService": {"Port":
    /// ...}}`: it accepts
    /// mesh connections on that port and passes them to the service.
    pub fn start_sidecar(&self, service_id: &str) -> Process {
        let name = format!("sidecar-{service_id}");
        let launch = Launch::new(&name, program("consul"), self.directory.path());
        let launch = launch.args([
            "connect",
            "proxy",
            "-sidecar-for",
            service_id,
            "-http-addr",
            &self.address(),
        ]);
        launch
            .env("CONSUL_HTTP_TOKEN", self.token().unwrap_or_default())
            .start()
    }

    /// Returns once the catalog says that the sidecar listens: until then an instance comes and goes.
    pub async fn sidecar_passes(&self, service: &str, service_id: &str) {
        let path = format!("/v1/health/checks/{service}-sidecar-proxy");
        let id = format!("{service_id}-sidecar-proxy");
        // Consul writes a check's result to its disk before it tells it: on a busy one that takes its time.
        wait_for("a sidecar that listens", Duration::from_secs(60), async || {
            let found = self.call(Method::GET, &path, "").await?.ok()?.json();
            let checks = found.as_array().into_iter().flatten();
            let mut checks = checks.filter(|check| check["ServiceID"] == *id).peekable();
            anyhow::ensure!(checks.peek().is_some(), "{found}");
            anyhow::ensure!(checks.all(|check| check["Status"] == "passing"), "{found}");
            Ok(())
        })
        .await;
    }

    /// An instance with a sidecar that listens on `sidecar_port`. `more` is laid over the definition.
    pub async fn register_meshed(&self, name: &str, id: &str, port: u16, sidecar_port: u16, more: Value) {
        let mut definition = super::consul::service(name, id, port);
        definition["Connect"] = json!({ "SidecarService": {
            "Port": sidecar_port,
            "Checks": [
                { "Name": "listening", "TCP": format!("127.0.0.1:{sidecar_port}"), "Interval": "1s" },
                { "Name": "instance", "AliasService": id },
            ],
        } });
        for (key, value) in more.as_object().into_iter().flatten() {
            definition[key] = value.clone();
        }
        self.register(&definition).await;
        self.set_check(&format!("service:{id}"), "passing").await;
    }

    /// Allows or denies, in place of what there was.
    pub async fn intention(&self, source: &str, destination: &str, action: &str) -> String {
        let found = self.expect(Method::GET, "/v1/connect/intentions", "").await;
        let known = found.as_array().into_iter().flatten().find(|intention| {
            intention["SourceName"] == source && intention["DestinationName"] == destination
        });
        let body = json!({ "SourceName": source, "DestinationName": destination, "SourceType": "consul", "Action": action });
        match known.and_then(|intention| intention["ID"].as_str()) {
            Some(id) => {
                self.expect(
                    Method::PUT,
                    &format!("/v1/connect/intentions/{id}"),
                    body.to_string(),
                )
                .await;
                id.to_owned()
            }
            None => {
                let made = self
                    .expect(Method::POST, "/v1/connect/intentions", body.to_string())
                    .await;
                made["ID"].as_str().expect("an intention's id").to_owned()
            }
        }
    }

    /// Gives the mesh another authority. The old one stays trusted until its leafs have ended.
    pub async fn rotate_ca(&self) {
        let roots = self.expect(Method::GET, "/v1/agent/connect/ca/roots", "").await;
        let domain = roots["TrustDomain"].as_str().expect("a trust domain");
        let ca = super::pki::mesh_authority(domain);
        let config = json!({ "Provider": "consul", "Config": {
            "PrivateKey": ca.key, "RootCert": ca.certificate, "LeafCertTTL": "72h",
        } });
        self.expect(Method::PUT, "/v1/connect/ca/configuration", config.to_string())
            .await;
    }

    /// A config entry such as `service-resolver`.
    pub async fn config_entry(&self, entry: &Value) {
        self.expect(Method::PUT, "/v1/config", entry.to_string()).await;
    }
}

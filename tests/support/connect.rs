//! Consul's mesh: its own sidecar proxy and the entries that steer it.

use hyper::Method;
use serde_json::Value;

use super::consul::Consul;
use super::process::{Launch, Process};
use super::program;

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

    /// A config entry such as `service-resolver`.
    pub async fn config_entry(&self, entry: &Value) {
        self.expect(Method::PUT, "/v1/config", entry.to_string()).await;
    }
}

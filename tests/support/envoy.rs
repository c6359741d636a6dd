//! A real Envoy, and its admin interface over a unix socket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use hyper::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::{Answer, over_socket};
use super::process::{Launch, Process};
use super::{START_LIMIT, program, scratch_directory, wait_for};

pub struct Envoy {
    pub process: Process,
    pub admin: EnvoyAdmin,
    _directory: TempDir,
}

impl Envoy {
    /// Starts from a bootstrap; its admin interface, if it names none, becomes a unix socket in the scratch
    /// directory.
    /// Does not wait: an Envoy on xDS is ready once its server has answered.
    pub fn start(bootstrap: &Value) -> Envoy {
        Envoy::start_program(program("envoy"), bootstrap, 2)
    }

    /// With so many worker threads instead of two.
    pub fn start_with_workers(bootstrap: &Value, workers: usize) -> Envoy {
        Envoy::start_program(program("envoy"), bootstrap, workers)
    }

    /// The Envoy that `tests/setup.sh envoy <version>` fetched, e.g. `"1.36"`.
    pub fn start_version(version: &str, bootstrap: &Value) -> Envoy {
        let fetched = format!("target/tools/envoy-{version}/envoy");
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join(fetched);
        assert!(
            program.is_file(),
            "no Envoy {version}: run tests/setup.sh envoy {version}"
        );
        Envoy::start_program(program, bootstrap, 2)
    }

    /// From a bootstrap file in JSON whose admin interface is a unix socket.
    pub fn start_file(path: &Path) -> Envoy {
        let text =
            std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Envoy::start(&serde_json::from_str(&text).expect("a bootstrap in JSON"))
    }

    fn start_program(program: PathBuf, bootstrap: &Value, workers: usize) -> Envoy {
        let directory = scratch_directory("envoy");
        let mut bootstrap = bootstrap.clone();
        if bootstrap["admin"].is_null() {
            let socket = directory.path().join("admin.sock");
            bootstrap["admin"] = json!({ "address": { "pipe": { "path": socket, "mode": 0o600 } } });
        }
        let socket = bootstrap["admin"]["address"]["pipe"]["path"]
            .as_str()
            .expect("an admin socket")
            .into();
        let file = directory.path().join("bootstrap.json");
        std::fs::write(&file, bootstrap.to_string()).expect("envoy's bootstrap");
        let launch = Launch::new("envoy", program, directory.path())
            .arg("-c")
            .arg(&file);
        let launch = launch.args([
            "--disable-hot-restart",
            "--concurrency",
            &workers.to_string(),
            "--log-level",
            "info",
        ]);
        Envoy {
            process: launch.start(),
            admin: EnvoyAdmin { socket },
            _directory: directory,
        }
    }

    /// Waits until it is LIVE: all of its first configuration has arrived.
    pub async fn wait_ready(&mut self) {
        wait_for("envoy to be ready", START_LIMIT, async || {
            self.process.check_running()?;
            self.admin.ready().await
        })
        .await;
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    pub async fn restart(&mut self) {
        self.process.start_again();
        self.wait_ready().await;
    }
}

/// Any Envoy's admin interface, whoever started that Envoy.
#[derive(Clone, Debug)]
pub struct EnvoyAdmin {
    pub socket: PathBuf,
}

impl EnvoyAdmin {
    pub async fn get(&self, path: &str) -> Result<Answer> {
        over_socket(&self.socket, Method::GET, path, "").await?.ok()
    }

    pub async fn post(&self, path: &str) -> Result<Answer> {
        over_socket(&self.socket, Method::POST, path, "").await?.ok()
    }

    pub async fn ready(&self) -> Result<()> {
        let answer = over_socket(&self.socket, Method::GET, "/ready", "").await?;
        ensure!(answer.status == 200, "it is {}", answer.text().trim());
        Ok(())
    }

    async fn json(&self, path: &str) -> Value {
        self.get(path)
            .await
            .unwrap_or_else(|error| panic!("envoy's {path}: {error:#}"))
            .json()
    }

    /// Everything, endpoints too.
    pub async fn config_dump(&self) -> Value {
        self.json("/config_dump?include_eds").await
    }

    /// Per cluster: its hosts, their health and their statistics.
    pub async fn clusters(&self) -> Value {
        self.json("/clusters?format=json").await
    }

    pub async fn listeners(&self) -> Value {
        self.json("/listeners?format=json").await
    }

    /// The certificates in use.
    pub async fn certs(&self) -> Value {
        self.json("/certs").await
    }

    /// Counters and gauges whose name matches a regular expression.
    pub async fn stats(&self, filter: &str) -> BTreeMap<String, u64> {
        let escaped: String = filter.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let stats = self.json(&format!("/stats?format=json&filter={escaped}")).await;
        let one = |entry: &Value| Some((entry["name"].as_str()?.to_owned(), entry["value"].as_u64()?));
        stats["stats"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(one)
            .collect()
    }

    /// One counter or gauge; 0 where Envoy has none of that name yet.
    pub async fn stat(&self, name: &str) -> u64 {
        let exact = format!("^{}$", name.replace('.', "\\."));
        self.stats(&exact).await.get(name).copied().unwrap_or(0)
    }
}

//! One Envoy with a static listener, in a directory of its own, and nothing left of it at the end.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use portreeve::envoy::bootstrap::{Bootstrap, XdsEndpoint};
use portreeve::envoy_process::{Handle, Settings, Status, start_or_adopt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};

use super::ports::free_port;

/// Where an agent that is this test executable, run again with one test, finds its gateway.
pub const DIRECTORY: &str = "PORTREEVE_TEST_AGENT_DIRECTORY";
pub const PORT: &str = "PORTREEVE_TEST_AGENT_PORT";

pub struct Gateway {
    pub directory: TempDir,
    pub port: u16,
}

impl Gateway {
    pub fn new() -> Self {
        // Short: unix socket paths have 107 bytes.
        let directory = tempfile::Builder::new().prefix("pr-").tempdir_in("/tmp").unwrap();
        Self {
            directory,
            port: free_port(),
        }
    }

    pub fn settings(&self) -> Settings {
        settings(self.directory.path(), self.port)
    }

    pub async fn start(&self) -> Handle {
        start_or_adopt(self.settings()).await.unwrap()
    }

    /// The pids of the Envoys in this directory, as /proc has them: not as the supervisor believes.
    pub fn envoys(&self) -> Vec<u32> {
        envoys(self.directory.path())
    }

    pub async fn get(&self, path: &str) -> std::io::Result<String> {
        get(self.port, path, "").await
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let left = self.envoys();
        for pid in &left {
            signal(*pid, "KILL");
        }
    }
}

pub fn settings(directory: &Path, port: u16) -> Settings {
    let run = directory.join("run");
    let xds = XdsEndpoint::Unix(directory.join("no-xds.sock"));
    let mut bootstrap = Bootstrap::new("test", "edge", xds, &run.join("admin.sock"));
    // Nobody serves xDS here.
    bootstrap.initial_fetch_timeout = Duration::from_millis(100);
    bootstrap.static_listeners = vec![listener(port)];
    let mut settings = Settings::new(run, bootstrap);
    settings.binary = std::env::var_os("PORTREEVE_TEST_ENVOY").map(PathBuf::from);
    settings.concurrency = Some(2);
    settings.drain_time = Duration::from_secs(2);
    settings.finish_time = Duration::from_secs(2);
    settings
}

/// Where CI runs, nothing may be left out unseen.
pub fn not_checked(why: &str) {
    println!("not checked: {why}");
    assert_ne!(
        std::env::var("CI").as_deref(),
        Ok("true"),
        "CI must check this: {why}"
    );
}

/// Held by the tests that send a thousand requests a second or measure milliseconds: two at once on two cores would measure
/// each other.
pub async fn alone() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::const_new(());
    MACHINE.lock().await
}

/// Every supported Envoy, as `make envoys` fetches them; or those that `PORTREEVE_TEST_ENVOYS` names, separated by colons.
pub fn all_envoys() -> Vec<PathBuf> {
    let all: Vec<PathBuf> = match std::env::var_os("PORTREEVE_TEST_ENVOYS") {
        Some(named) => std::env::split_paths(&named).collect(),
        None => ["1.36", "1.37", "1.38", "1.39", "1.40"]
            .map(|version| Path::new(TOOLS).join(format!("envoy-{version}/envoy")))
            .into(),
    };
    for path in &all {
        assert!(path.is_file(), "no Envoy at {path:?}: run make envoys");
    }
    all
}

const TOOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools");

/// Answers 200 at once, or as late as the header `x-envoy-fault-delay-request` says, in milliseconds.
fn listener(port: u16) -> Value {
    let http = "type.googleapis.com/envoy.extensions.filters";
    json!({
        "name": "web",
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } },
        "filter_chains": [{ "filters": [{
            "name": "http",
            "typed_config": {
                "@type": format!("{http}.network.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": "web",
                "http_filters": [
                    { "name": "fault", "typed_config": {
                        "@type": format!("{http}.http.fault.v3.HTTPFault"),
                        "delay": { "header_delay": {}, "percentage": { "numerator": 100 } },
                    } },
                    { "name": "router", "typed_config": { "@type": format!("{http}.http.router.v3.Router") } },
                ],
                "route_config": { "virtual_hosts": [{
                    "name": "all", "domains": ["*"],
                    "routes": [{ "match": { "prefix": "/" },
                        "direct_response": { "status": 200, "body": { "inline_string": "served" } } }],
                }] },
            },
        }] }],
    })
}

/// One request on a connection of its own. The response with its head.
pub async fn get(port: u16, path: &str, headers: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n{headers}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut response = Vec::new();
    // Not to the end of the stream: Envoy leaves closing to the client for a second.
    while !response.ends_with(b"served") && stream.read_buf(&mut response).await? > 0 {}
    Ok(String::from_utf8_lossy(&response).into_owned())
}

pub fn is_served(response: &std::io::Result<String>) -> bool {
    response
        .as_ref()
        .is_ok_and(|text| text.starts_with("HTTP/1.1 200") && text.ends_with("served"))
}

pub fn envoys(directory: &Path) -> Vec<u32> {
    let bootstrap = directory.join("run/bootstrap.json");
    let bootstrap = bootstrap.to_str().unwrap();
    let mut pids: Vec<u32> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            String::from_utf8_lossy(&cmdline).contains(bootstrap) && exe.ends_with("envoy")
        })
        .collect();
    pids.sort_unstable();
    pids
}

pub fn signal(pid: u32, name: &str) {
    let _ = std::process::Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status();
}

/// Waits for a status that the condition maps to something.
pub async fn wait_for<T>(handle: &Handle, what: &str, mut condition: impl FnMut(&Status) -> Option<T>) -> T {
    let mut status = handle.status();
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            if let Some(found) = condition(&status.borrow_and_update()) {
                return found;
            }
            status.changed().await.unwrap();
        }
    });
    match waited.await {
        Ok(found) => found,
        Err(_) => panic!("no {what}: {:?}", handle.status().borrow().clone()),
    }
}

pub async fn wait_until_running(handle: &Handle) -> portreeve::envoy_process::Running {
    wait_for(handle, "running Envoy", |status| match status {
        Status::Running(running) => Some(running.clone()),
        _ => None,
    })
    .await
}

pub async fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

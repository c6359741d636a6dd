//! A stock Envoy as a child process, and HTTP spoken by hand.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use portreeve::xds::Variant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinHandle;

use crate::harness::PATIENCE;

/// Ends with the test.
pub struct EnvoyProcess {
    child: Child,
    admin: PathBuf,
    log: PathBuf,
}

impl EnvoyProcess {
    pub fn start(folder: &Path, socket: &Path, variant: Variant) -> Self {
        let (admin, log, bootstrap) = (
            folder.join("admin.sock"),
            folder.join("envoy.log"),
            folder.join("bootstrap.json"),
        );
        let api_type = match variant {
            Variant::Delta => "DELTA_GRPC",
            Variant::StateOfTheWorld => "GRPC",
        };
        let text = serde_json::json!({
            "node": { "id": "real-envoy", "cluster": "edge" },
            "admin": { "address": { "pipe": { "path": admin, "mode": 0o600 } } },
            "dynamic_resources": {
                "ads_config": {
                    "api_type": api_type,
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": true,
                    "grpc_services": [{ "envoy_grpc": {
                        "cluster_name": "portreeve",
                        "retry_policy": { "retry_back_off": { "base_interval": "0.1s", "max_interval": "0.5s" } },
                    } }],
                },
                "cds_config": { "ads": {}, "resource_api_version": "V3" },
                "lds_config": { "ads": {}, "resource_api_version": "V3" },
            },
            "static_resources": { "clusters": [{
                "name": "portreeve",
                "connect_timeout": "1s",
                "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": { "http2_protocol_options": {} },
                } },
                "load_assignment": { "cluster_name": "portreeve", "endpoints": [{ "lb_endpoints": [
                    { "endpoint": { "address": { "pipe": { "path": socket } } } },
                ] }] },
            }] },
        });
        std::fs::write(&bootstrap, text.to_string()).unwrap();
        let output = std::fs::File::create(&log).unwrap();
        let child = Command::new(binary())
            .args([
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--log-level",
                "info",
                "-c",
            ])
            .arg(&bootstrap)
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .unwrap();
        Self { child, admin, log }
    }

    pub async fn stat(&self, name: &str) -> u64 {
        let mut stream = UnixStream::connect(&self.admin).await.unwrap();
        let request =
            format!("GET /stats?filter={name} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .trim()
            .parse()
            .unwrap()
    }
}

impl Drop for EnvoyProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "Envoy said:\n{}",
                lines[lines.len().saturating_sub(40)..].join("\n")
            );
        }
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Missing is a failure, not a skip: what is proven here cannot be proven otherwise.
fn binary() -> PathBuf {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin/envoy");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&path)
        .map(|folder| folder.join("envoy"))
        .chain([fetched]);
    candidates
        .into_iter()
        .find(|file| file.is_file())
        .expect("no envoy on PATH or in target/tools/bin")
}

/// Answers every request with its name; `/slow` after 1.5 s.
pub struct Backend {
    pub port: u16,
    _serving: AbortOnDrop,
}

impl Backend {
    pub async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, name));
            }
        });
        Self {
            port,
            _serving: AbortOnDrop(serving),
        }
    }
}

async fn answer(mut stream: TcpStream, name: &str) {
    let mut buffer = Vec::new();
    loop {
        let mut part = [0; 4096];
        match stream.read(&mut part).await {
            Ok(0) | Err(_) => return,
            Ok(length) => buffer.extend_from_slice(&part[..length]),
        }
        if buffer.ends_with(b"\r\n\r\n") {
            if buffer.starts_with(b"GET /slow") {
                tokio::time::sleep(Duration::from_millis(1500)).await;
            }
            buffer.clear();
            let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
            if stream.write_all(text.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Status and body; 0 when there is no connection.
pub async fn get(port: u16, host: &str, path: &str) -> (u16, String) {
    let attempt = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes())
            .await?;
        // Not to the end of the stream: after a reply of its own, Envoy keeps it open for a second.
        let mut bytes = Vec::new();
        while !is_complete(&bytes) && stream.read_buf(&mut bytes).await? > 0 {}
        std::io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let Ok(text) = attempt.await else {
        return (0, String::new());
    };
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or(0);
    let body = text
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .unwrap_or_default();
    (status, body)
}

fn is_complete(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    length
        .and_then(|length| length.parse().ok())
        .is_some_and(|length: usize| body.len() >= length)
}

/// Asks again until the answer is as wanted; how long that took.
pub async fn get_until(port: u16, host: &str, path: &str, status: u16, body: &str) -> Duration {
    let started = Instant::now();
    loop {
        let got = get(port, host, path).await;
        if got.0 == status && got.1.contains(body) {
            return started.elapsed();
        }
        assert!(
            started.elapsed() < PATIENCE,
            "{host}{path}: got {got:?}, want {status} {body:?}"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Sends requests all the time and counts those not answered with 200.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    sending: JoinHandle<Vec<String>>,
    pub sent: Arc<AtomicUsize>,
}

impl Traffic {
    pub fn start(port: u16, host: &'static str) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let sending = tokio::spawn({
            let (stop, sent) = (stop.clone(), sent.clone());
            async move {
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let got = get(port, host, "/").await;
                    sent.fetch_add(1, Ordering::Relaxed);
                    if got.0 != 200 {
                        failed.push(format!("{got:?}"));
                    }
                }
                failed
            }
        });
        Self { stop, sending, sent }
    }

    pub async fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.sending.await.unwrap();
        (self.sent.load(Ordering::Relaxed), failed)
    }
}

//! Envoy's admin API over its unix socket.
//!
//! One connection per call: calls are rare, and after a hot restart an old connection would reach the old process.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The admin API shares Envoy's main thread with configuration updates: 10,000 clusters block it for seconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Talks to the admin API at one socket, whoever listens there.
#[derive(Clone, Debug)]
pub struct AdminClient {
    socket: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("cannot connect to Envoy's admin socket {socket}")]
    Connect { socket: PathBuf, source: io::Error },
    #[error("Envoy's admin API did not answer {path} within {} s", CALL_TIMEOUT.as_secs())]
    Timeout { path: String },
    #[error("Envoy's admin API broke off {path}")]
    Transport { path: String, source: hyper::Error },
    #[error("Envoy's admin API answered {path} with {status}: {body}")]
    Status {
        path: String,
        status: StatusCode,
        body: String,
    },
    #[error("Envoy's admin API answered {path} with something unexpected")]
    Body { path: String, source: serde_json::Error },
    #[error("{path} cannot be a request path")]
    Path { path: String, source: http::Error },
}

/// What listeners do when asked to drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// Stay reachable, ask every connection to close. Never ends by itself.
    Gentle,
    /// Close the listeners now; connections stay until their requests end.
    CloseListeners,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServerState {
    Live,
    Draining,
    PreInitializing,
    Initializing,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ServerInfo {
    /// `<commit>/<version>/<state>/<build>/<tls library>`
    pub version: String,
    pub state: ServerState,
    /// Two Envoys can hand over to each other if and only if these are equal.
    pub hot_restart_version: String,
    pub command_line_options: CommandLine,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct CommandLine {
    /// A 64-bit number, hence a string in protojson.
    pub base_id: String,
    #[serde(default)]
    pub restart_epoch: u32,
}

impl ServerInfo {
    /// Whether this is the process started with these numbers, and not its parent behind the same socket.
    pub(super) fn is(&self, base_id: u32, epoch: u32) -> bool {
        let line = &self.command_line_options;
        line.base_id.parse() == Ok(base_id) && line.restart_epoch == epoch
    }
}

impl AdminClient {
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Whether Envoy has its configuration and serves.
    pub async fn ready(&self) -> Result<bool, AdminError> {
        Ok(self.call(Method::GET, "/ready").await?.0 == StatusCode::OK)
    }

    pub async fn server_info(&self) -> Result<ServerInfo, AdminError> {
        self.json("/server_info").await
    }

    /// Counters and gauges whose names match the regular expression.
    pub async fn stats(&self, filter: &str) -> Result<BTreeMap<String, u64>, AdminError> {
        #[derive(Deserialize)]
        struct Stats {
            stats: Vec<Stat>,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Stat {
            Number { name: String, value: u64 },
            Other(serde::de::IgnoredAny),
        }
        let filter: String = url::form_urlencoded::byte_serialize(filter.as_bytes()).collect();
        let stats: Stats = self
            .json(&format!("/stats?format=json&usedonly&filter={filter}"))
            .await?;
        Ok(stats
            .stats
            .into_iter()
            .filter_map(|stat| match stat {
                Stat::Number { name, value } => Some((name, value)),
                Stat::Other(_) => None,
            })
            .collect())
    }

    /// All used stats in Prometheus' text format. (Unused ones are four fifths of the bytes.)
    pub async fn prometheus(&self) -> Result<Bytes, AdminError> {
        self.ok(Method::GET, "/stats/prometheus?usedonly").await
    }

    /// The configuration as Envoy holds it. Some filters print their credentials here: not for showing as it is.
    pub async fn config_dump(&self) -> Result<serde_json::Value, AdminError> {
        self.json("/config_dump?include_eds").await
    }

    pub async fn drain_listeners(&self, drain: Drain) -> Result<(), AdminError> {
        let path = match drain {
            Drain::Gentle => "/drain_listeners?graceful&skip_exit",
            Drain::CloseListeners => "/drain_listeners",
        };
        self.ok(Method::POST, path).await.map(drop)
    }

    /// Requests that clients of our listeners still wait for, the admin API's own not counted.
    pub async fn active_requests(&self) -> Result<u64, AdminError> {
        let stats = self.stats(r"^http\..*\.downstream_rq_active$").await?;
        Ok(stats
            .iter()
            .filter(|(name, _)| !name.starts_with("http.admin."))
            .map(|(_, value)| value)
            .sum())
    }

    async fn json<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, AdminError> {
        let body = self.ok(Method::GET, path).await?;
        serde_json::from_slice(&body).map_err(|source| AdminError::Body {
            path: path.to_owned(),
            source,
        })
    }

    async fn ok(&self, method: Method, path: &str) -> Result<Bytes, AdminError> {
        match self.call(method, path).await? {
            (StatusCode::OK, body) => Ok(body),
            (status, body) => Err(AdminError::Status {
                path: path.to_owned(),
                status,
                body: String::from_utf8_lossy(&body).into_owned(),
            }),
        }
    }

    async fn call(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), AdminError> {
        match timeout(CALL_TIMEOUT, self.exchange(method, path)).await {
            Ok(result) => result,
            Err(_) => Err(AdminError::Timeout {
                path: path.to_owned(),
            }),
        }
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), AdminError> {
        let transport = |source| AdminError::Transport {
            path: path.to_owned(),
            source,
        };
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| AdminError::Connect {
                socket: self.socket.clone(),
                source,
            })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(transport)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "envoy-admin")
            .body(Empty::<Bytes>::new())
            .map_err(|source| AdminError::Path {
                path: path.to_owned(),
                source,
            })?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok((status, response.into_body().collect().await?.to_bytes()))
        };
        // The connection is driven here and not in a task: dropped with the call, nothing to clean up. It may end
        // first, when Envoy closes after the last byte; then the exchange has all it needs.
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            result = &mut exchange => result.map_err(transport),
            _ = connection => exchange.await.map_err(transport),
        }
    }
}

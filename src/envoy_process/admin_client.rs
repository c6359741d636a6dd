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
    #[error("Envoy's admin API did not answer within the time that is left")]
    Late,
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

impl AdminError {
    /// Nobody listens there, and nobody will: Envoy opens it once, when it starts.
    pub(super) fn is_absent(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(self, Self::Connect { source, .. } if matches!(source.kind(), ConnectionRefused | NotFound))
    }
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
    /// Worker threads.
    #[serde(default)]
    pub concurrency: u32,
}

impl ServerInfo {
    /// Whether this is the process started with these numbers, and not its parent behind the same socket.
    pub(super) fn is(&self, base_id: u32, epoch: u32) -> bool {
        let line = &self.command_line_options;
        line.base_id.parse() == Ok(base_id) && line.restart_epoch == epoch
    }
}

/// The admin API's own not counted: no listener of ours counts under its name.
fn in_use(stats: &BTreeMap<String, u64>) -> u64 {
    let sum = |of: &str, what: &str| -> u64 {
        let is_counted = |name: &str| {
            let rest = name.strip_prefix(of).filter(|rest| rest.ends_with(what));
            // A listener's workers have their own counts of what is counted by it.
            rest.is_some_and(|rest| !rest.starts_with("admin.") && !rest.contains(".worker_"))
        };
        let counted = stats.iter().filter(|(name, _)| is_counted(name));
        counted.map(|(_, value)| value).sum()
    };
    let connections = sum("listener.", ".downstream_cx_active");
    let of_http = sum("http.", ".downstream_cx_active");
    sum("http.", ".downstream_rq_active") + connections.saturating_sub(of_http)
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

    /// Listeners with a `health_check_path` answer 503 there from now on.
    pub async fn fail_health_checks(&self) -> Result<(), AdminError> {
        self.ok(Method::POST, "/healthcheck/fail").await.map(drop)
    }

    /// Requests that clients of our listeners still wait for, and connections that carry no HTTP.
    pub async fn active_requests(&self) -> Result<u64, AdminError> {
        let stats = self
            .stats(r"^(http|listener)\..*\.downstream_(rq|cx)_active$")
            .await?;
        Ok(in_use(&stats))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_connections_without_http_are_in_use() {
        let stats = |all: &[(&str, u64)]| {
            all.iter()
                .map(|(name, value)| ((*name).to_owned(), *value))
                .collect()
        };
        assert_eq!(in_use(&BTreeMap::new()), 0);
        let idle = [
            ("http.admin.downstream_cx_active", 1),
            ("http.admin.downstream_rq_active", 1),
            ("http.web.downstream_cx_active", 3),
            ("http.web.downstream_rq_active", 0),
            ("listener.admin.downstream_cx_active", 1),
            ("listener.127.0.0.1_80.downstream_cx_active", 3),
            ("listener.127.0.0.1_80.worker_0.downstream_cx_active", 3),
        ];
        assert_eq!(in_use(&stats(&idle)), 0, "kept connections wait for nothing");
        let busy = [
            ("http.portreeve/admin.downstream_cx_active", 2),
            ("http.portreeve/admin.downstream_rq_active", 5),
            ("listener.[__1]_80.downstream_cx_active", 2),
            ("listener.127.0.0.1_5432.downstream_cx_active", 7),
        ];
        assert_eq!(in_use(&stats(&busy)), 12);
    }
}

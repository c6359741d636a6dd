//! An HTTP server inside the test: it says who it is and what it was asked. HTTP/1.1 and HTTP/2 without TLS
//! on one port.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::ports::free_port;

/// How a backend answers. A request may override it with the headers `x-test-status` and `x-test-delay`
/// (milliseconds). One with `x-test-held` waits for [`Backend::release`].
#[derive(Clone, Debug)]
pub struct Behaviour {
    pub status: u16,
    pub delay: Duration,
    pub headers: Vec<(String, String)>,
    /// In place of the echo.
    pub body: Option<Bytes>,
}

impl Default for Behaviour {
    fn default() -> Behaviour {
        Behaviour {
            status: 200,
            delay: Duration::ZERO,
            headers: Vec::new(),
            body: None,
        }
    }
}

pub struct Backend {
    pub name: String,
    pub port: u16,
    state: Arc<State>,
    server: Option<JoinHandle<()>>,
}

struct State {
    name: String,
    behaviour: Mutex<Behaviour>,
    requests: AtomicU64,
    connections: AtomicU64,
    held: AtomicU64,
    released: watch::Sender<bool>,
    tls: Option<TlsAcceptor>,
}

impl Backend {
    pub async fn start(name: &str) -> Backend {
        Backend::start_on(name, free_port(), None).await
    }

    /// With TLS; ALPN is what `config` says.
    pub async fn start_tls(name: &str, config: Arc<rustls::ServerConfig>) -> Backend {
        Backend::start_on(name, free_port(), Some(config)).await
    }

    pub async fn start_on(name: &str, port: u16, tls: Option<Arc<rustls::ServerConfig>>) -> Backend {
        let state = State {
            name: name.to_owned(),
            behaviour: Mutex::default(),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            held: AtomicU64::new(0),
            released: watch::Sender::new(false),
            tls: tls.map(TlsAcceptor::from),
        };
        let mut backend = Backend {
            name: name.to_owned(),
            port,
            state: Arc::new(state),
            server: None,
        };
        backend.restart().await;
        backend
    }

    /// Closes the port and every connection, in the middle of whatever they are at.
    pub async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            server.await.ok();
        }
    }

    pub async fn restart(&mut self) {
        self.stop().await;
        let listener = listen(self.port)
            .await
            .unwrap_or_else(|error| panic!("backend {} on port {}: {error}", self.name, self.port));
        self.server = Some(tokio::spawn(serve(listener, self.state.clone())));
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *self.state.behaviour.lock().unwrap() = behaviour;
    }

    /// How many requests have come in.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::Relaxed)
    }

    /// How many connections have come in.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// How many requests are held here.
    pub fn held(&self) -> u64 {
        self.state.held.load(Ordering::Relaxed)
    }

    /// Answers what is held, now and later.
    pub fn release(&self) {
        self.state.released.send_replace(true);
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

/// A child that another test is just starting holds a port that was open here, until it is another program.
async fn listen(port: u16) -> std::io::Result<TcpListener> {
    let patience = Instant::now() + Duration::from_secs(5);
    loop {
        match TcpListener::bind(("127.0.0.1", port)).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < patience => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            bound => return bound,
        }
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new(); // dropped with this task, and all connections with it
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        stream.set_nodelay(true).ok();
        state.connections.fetch_add(1, Ordering::Relaxed);
        let state = state.clone();
        connections.spawn(async move {
            match state.tls.clone() {
                None => serve_connection(stream, state).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve_connection(stream, state).await;
                    }
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve_connection(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, state: Arc<State>) {
    let service = service_fn(|request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(answer(request, &state).await) }
    });
    auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
        .ok();
}

fn has_good_host(parts: &http::request::Parts) -> bool {
    let host = parts.headers.get("host").map(http::HeaderValue::as_bytes);
    let authority = parts
        .uri
        .authority()
        .map(|authority| authority.as_str().as_bytes());
    let is_good = |byte: &u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(byte);
    host.or(authority).is_none_or(|host| host.iter().all(is_good))
}

async fn answer(request: Request<Incoming>, state: &State) -> Response<Full<Bytes>> {
    state.requests.fetch_add(1, Ordering::Relaxed);
    let behaviour = state.behaviour.lock().unwrap().clone();
    let (parts, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    let asked = |name: &str| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
    };
    if parts.headers.contains_key("x-test-held") {
        state.held.fetch_add(1, Ordering::Relaxed);
        state
            .released
            .subscribe()
            .wait_for(|released| *released)
            .await
            .ok();
        state.held.fetch_sub(1, Ordering::Relaxed);
    }
    tokio::time::sleep(asked("x-test-delay").map_or(behaviour.delay, Duration::from_millis)).await;
    let echo = json!({
        "backend": state.name,
        "method": parts.method.as_str(),
        "path": parts.uri.path(),
        "query": parts.uri.query(),
        "authority": parts.uri.authority().map(|authority| authority.as_str()),
        "version": format!("{:?}", parts.version),
        "headers": headers_as_json(&parts.headers),
        "body": String::from_utf8_lossy(&body),
    });
    let status = asked("x-test-status").map_or(behaviour.status, |status| status as u16);
    // As Go's server, nginx and others have it.
    let status = if has_good_host(&parts) { status } else { 400 };
    let mut response = Response::builder()
        .status(status)
        .header("x-backend", &state.name);
    if behaviour.body.is_none() {
        response = response.header("content-type", "application/json");
    }
    for (name, value) in &behaviour.headers {
        response = response.header(name, value);
    }
    response
        .body(Full::new(
            behaviour.body.unwrap_or_else(|| echo.to_string().into()),
        ))
        .expect("a response")
}

/// Several values of one name are joined with ", ".
fn headers_as_json(headers: &HeaderMap) -> Value {
    let join = |name| {
        let values = headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        Value::from(values.collect::<Vec<_>>().join(", "))
    };
    headers
        .keys()
        .map(|name| (name.as_str().to_owned(), join(name)))
        .collect::<Map<_, _>>()
        .into()
}

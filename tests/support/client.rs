//! An HTTP client that lets a test choose the connection, the host, SNI and certificates, and names what
//! went wrong.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Bytes;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::connection::{Connection, closes};
pub use super::failure::Failure;
use super::http::install_tls_provider;
pub use super::message::{Reply, Request};
use super::pki::{Pair, parse_certificates};

/// Where requests go, and how. Clones share the kept connections.
#[derive(Clone)]
pub struct Client {
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    sni: Option<String>,
    keep: bool,
    http2: bool,
    timeout: Duration,
    idle: Arc<Mutex<Vec<Connection>>>,
}

/// What a request without a reply may have waited for.
const STEPS: [&str; 3] = ["connection", "TLS handshake", "answer"];

impl Client {
    /// To 127.0.0.1, a new connection for each request.
    pub fn http(port: u16) -> Client {
        let timeout = Duration::from_secs(15);
        Client {
            port,
            tls: None,
            sni: None,
            keep: false,
            http2: false,
            timeout,
            idle: Arc::default(),
        }
    }

    /// Trusts these root certificates (PEM) only. SNI is each request's host unless [`Client::sni`] says
    /// otherwise.
    pub fn https(port: u16, roots: &str) -> Client {
        Client::https_as(port, roots, None)
    }

    /// With a client certificate.
    pub fn https_as(port: u16, roots: &str, identity: Option<&Pair>) -> Client {
        install_tls_provider();
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(parse_certificates(roots));
        let builder = ClientConfig::builder().with_root_certificates(store);
        let config = match identity.map(Pair::parsed) {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder
                .with_client_auth_cert(chain, key)
                .expect("a client certificate"),
        };
        Client {
            tls: Some(Arc::new(config)),
            ..Client::http(port)
        }
    }

    /// Keeps connections and uses them again, as browsers and proxies do.
    pub fn keep_alive(mut self) -> Client {
        self.keep = true;
        self.idle = Arc::default();
        self
    }

    /// Speaks HTTP/2, one request at a time on a connection. Of a client for https.
    pub fn http2(mut self) -> Client {
        let config = self.tls.as_deref().expect("a client for https");
        let mut config = config.clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        self.tls = Some(Arc::new(config));
        self.http2 = true;
        self.idle = Arc::default();
        self
    }

    pub fn is_https(&self) -> bool {
        self.tls.is_some()
    }

    pub fn sni(mut self, name: &str) -> Client {
        self.sni = Some(name.to_owned());
        self.idle = Arc::default();
        self
    }

    /// For the whole of one exchange.
    pub fn timeout(mut self, timeout: Duration) -> Client {
        self.timeout = timeout;
        self
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// GET; panics if there is no reply.
    pub async fn get(&self, host: &str, path: &str) -> Reply {
        let reply = self.send(&Request::get(host, path)).await;
        reply.unwrap_or_else(|failure| panic!("GET {host}{path} on port {}: {failure}", self.port))
    }

    pub async fn send(&self, request: &Request) -> Result<Reply, Failure> {
        let step = AtomicUsize::new(0);
        let reply = tokio::time::timeout(self.timeout, self.exchange(request, &step)).await;
        reply.unwrap_or_else(|_elapsed| {
            let missing = STEPS[step.into_inner()];
            eprintln!(
                "{}, port {}: no {missing} in {:?}",
                request.host, self.port, self.timeout
            );
            Err(Failure::Timeout)
        })
    }

    async fn exchange(&self, request: &Request, step: &AtomicUsize) -> Result<Reply, Failure> {
        let (mut connection, kept) = match self.take_idle().await {
            Some(connection) => (connection, true),
            None => (self.connect(&request.host, step).await?, false),
        };
        step.store(2, Relaxed);
        let response = connection.send(request, kept).await?;
        let (parts, body) = response.into_parts();
        let body = body
            .collect()
            .await
            .map_err(|error| Failure::of(&error))?
            .to_bytes();
        let certificate = connection.certificate.clone();
        if self.keep && !closes(&parts.headers) {
            self.idle.lock().unwrap().push(connection);
        }
        Ok(Reply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
            certificate,
        })
    }

    async fn take_idle(&self) -> Option<Connection> {
        loop {
            let mut connection = self.idle.lock().unwrap().pop()?;
            if connection.takes_another().await {
                return Some(connection);
            }
        }
    }

    async fn connect(&self, host: &str, step: &AtomicUsize) -> Result<Connection, Failure> {
        let stream = self.tcp().await?;
        step.store(1, Relaxed);
        let Some(config) = &self.tls else {
            return Connection::start(stream, None, false).await;
        };
        let name = self.server_name(host)?;
        let stream = TlsConnector::from(config.clone())
            .connect(name, stream)
            .await
            .map_err(|error| Failure::of(&error))?;
        let certificates = stream.get_ref().1.peer_certificates();
        let leaf = certificates
            .and_then(|chain| chain.first())
            .map(|leaf| Bytes::copy_from_slice(leaf));
        Connection::start(stream, leaf, self.http2).await
    }

    async fn tcp(&self) -> Result<TcpStream, Failure> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))
            .await
            .map_err(|error| Failure::of(&error))?;
        stream.set_nodelay(true).ok();
        Ok(stream)
    }

    fn server_name(&self, host: &str) -> Result<ServerName<'static>, Failure> {
        let name = self
            .sni
            .as_deref()
            .unwrap_or_else(|| host.split(':').next().unwrap_or_default());
        ServerName::try_from(name.to_owned()).map_err(|error| Failure::Other(format!("{name:?}: {error}")))
    }

    /// Sends these bytes on a connection of its own and returns all that comes back until the server closes
    /// or is silent
    /// for a second.
    pub async fn raw(&self, bytes: &[u8]) -> Result<String, Failure> {
        let stream = self.tcp().await?;
        match &self.tls {
            None => raw_exchange(stream, bytes).await,
            Some(config) => {
                let name = self.server_name("localhost")?;
                let connected = TlsConnector::from(config.clone()).connect(name, stream).await;
                raw_exchange(connected.map_err(|error| Failure::of(&error))?, bytes).await
            }
        }
    }
}

async fn raw_exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    bytes: &[u8],
) -> Result<String, Failure> {
    stream
        .write_all(bytes)
        .await
        .map_err(|error| Failure::of(&error))?;
    let mut received = Vec::new();
    let mut buffer = [0; 8192];
    while let Ok(read) = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut buffer)).await {
        match read {
            Ok(0) => break,
            Ok(count) => received.extend_from_slice(&buffer[..count]),
            Err(_) if !received.is_empty() => break,
            Err(error) => return Err(Failure::of(&error)),
        }
    }
    Ok(String::from_utf8_lossy(&received).into_owned())
}

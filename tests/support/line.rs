//! The line between an agent and Consul, which can go bad: it counts what is asked, and answers late, wrongly or not at all. To
//! Vault it counts alone. Over TLS it speaks HTTP/2, as Consul does.
//!
//! Who is not there behind it is not there in front of it either: connections end, and new ones are closed at once.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderValue, TRANSFER_ENCODING};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::http::install_tls_provider;
use super::pki::Ca;

/// What the line does to each request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    None,
    /// Every answer comes this much later.
    Late(Duration),
    /// Every request gets this status from the line itself, with a text like Consul's.
    Status(u16),
    /// Connections are taken, and nothing is ever read or answered: a network that drops packets.
    Silent,
    /// A Consul restored from an older snapshot: what waits is cut off, and indexes are lower than they were by this much.
    IndexGoesBack(u64),
    /// A poll that waits is cut off after this long, without an answer: by a proxy with a time limit of its own, or by Consul. Over
    /// TLS its stream is reset, and the connection stays.
    Cut(Duration),
}

pub struct Line {
    port: u16,
    to: AtomicU16,
    trouble: watch::Sender<Trouble>,
    asked: AtomicU64,
    /// The most requests of any one second, and the second that is being counted: its number, and its requests.
    busiest: Mutex<(u64, u64, u64)>,
    begun: std::time::Instant,
    client: reqwest::Client,
    server: Mutex<Option<JoinHandle<()>>>,
    tls: Option<Tls>,
    /// All connections end.
    hung_up: watch::Sender<()>,
}

struct Tls {
    acceptor: TlsAcceptor,
    /// The certificate of who vouches for it, PEM.
    authority: String,
}

/// Nothing is answered, and the stream or connection ends.
#[derive(Debug)]
struct Gone;

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the line is cut")
    }
}

impl std::error::Error for Gone {}

type Answered = Result<Response<Full<Bytes>>, Gone>;

impl Line {
    pub async fn start() -> Arc<Line> {
        Line::start_with(None).await
    }

    pub async fn start_tls() -> Arc<Line> {
        let ca = Ca::new("line");
        let mut config = (*ca.issue(&["127.0.0.1"]).server_config()).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tls = Tls {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            authority: ca.certificate,
        };
        Line::start_with(Some(tls)).await
    }

    async fn start_with(tls: Option<Tls>) -> Arc<Line> {
        install_tls_provider();
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port for the line");
        let line = Arc::new(Line {
            port: listener.local_addr().expect("the line's address").port(),
            to: AtomicU16::new(0),
            trouble: watch::Sender::new(Trouble::None),
            asked: AtomicU64::new(0),
            busiest: Mutex::default(),
            begun: std::time::Instant::now(),
            client: reqwest::Client::builder()
                .no_proxy()
                .build()
                .expect("an HTTP client"),
            server: Mutex::new(None),
            tls,
            hung_up: watch::Sender::new(()),
        });
        // Weak: the line ends with whoever holds it.
        let of = Arc::downgrade(&line);
        let server = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let Some(line) = of.upgrade() else { return };
                connections.spawn(serve(stream, line));
                while connections.try_join_next().is_some() {}
            }
        });
        *line.server.lock().unwrap() = Some(server);
        line
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Of Consul, as the agent's settings have it.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address())
    }

    /// Who vouches for it, PEM, if it speaks TLS.
    pub fn authority(&self) -> Option<&str> {
        self.tls.as_ref().map(|tls| tls.authority.as_str())
    }

    pub fn lead_to(&self, port: u16) {
        self.to.store(port, Ordering::Relaxed);
    }

    /// From now on, and for what waits for an answer now.
    pub fn go(&self, trouble: Trouble) {
        self.trouble.send_replace(trouble);
    }

    /// Requests since the start.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// The most requests within one second since the last call.
    pub fn busiest_second(&self) -> u64 {
        let mut busiest = self.busiest.lock().unwrap();
        std::mem::take(&mut *busiest).0
    }

    fn count(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let second = self.begun.elapsed().as_secs();
        let mut busiest = self.busiest.lock().unwrap();
        let (most, counted, requests) = &mut *busiest;
        if *counted != second {
            (*counted, *requests) = (second, 0);
        }
        *requests += 1;
        *most = (*most).max(*requests);
    }

    async fn answer(&self, request: Request<Incoming>) -> Answered {
        self.count();
        let mut trouble = self.trouble.subscribe();
        let lower = match *trouble.borrow() {
            Trouble::IndexGoesBack(by) => by,
            _ => 0,
        };
        let passed = self.pass(request, lower);
        tokio::pin!(passed);
        loop {
            let now = trouble.borrow_and_update().clone();
            match now {
                Trouble::IndexGoesBack(by) if by != lower => {
                    self.hung_up.send_replace(());
                    return Err(Gone);
                }
                Trouble::None => {
                    tokio::select! {
                        answer = &mut passed => return answer,
                        _ = trouble.changed() => {}
                    }
                }
                Trouble::Late(by) => {
                    tokio::select! {
                        // Of a poll, too: what it has to tell is late, not the beginning of its wait.
                        answer = &mut passed => {
                            tokio::select! {
                                () = tokio::time::sleep(by) => {}
                                _ = trouble.changed() => {}
                            }
                            return answer;
                        }
                        _ = trouble.changed() => {}
                    }
                }
                Trouble::Status(status) => {
                    let text = match status {
                        403 => "Permission denied",
                        429 => "Your request was rejected because the rate limit was exceeded",
                        _ => "No cluster leader",
                    };
                    return Ok(own_answer(status, text));
                }
                Trouble::Silent => _ = trouble.changed().await,
                Trouble::IndexGoesBack(_) => {
                    tokio::select! {
                        answer = &mut passed => return answer,
                        _ = trouble.changed() => {}
                    }
                }
                Trouble::Cut(after) => {
                    tokio::select! {
                        answer = &mut passed => return answer,
                        _ = trouble.changed() => {}
                        () = tokio::time::sleep(after) => return Err(Gone),
                    }
                }
            }
        }
    }

    /// Something went wrong behind the line. If nobody is there any more, everybody in front of it notices.
    async fn gone(&self) -> Gone {
        if !self.is_answered().await {
            self.hung_up.send_replace(());
        }
        Gone
    }

    async fn is_answered(&self) -> bool {
        let to = ("127.0.0.1", self.to.load(Ordering::Relaxed));
        TcpStream::connect(to).await.is_ok()
    }

    async fn pass(&self, request: Request<Incoming>, lower: u64) -> Answered {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let path = with_index(path, |index| index + lower);
        let url = format!("http://127.0.0.1:{}{path}", self.to.load(Ordering::Relaxed));
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Gone)?.to_bytes();
        let mut headers = parts.headers;
        headers.remove(TRANSFER_ENCODING);
        let sent = self.client.request(parts.method, url).headers(headers).body(body);
        let Ok(answer) = sent.send().await else {
            return Err(self.gone().await);
        };
        let (status, mut headers) = (answer.status(), answer.headers().clone());
        headers.remove(TRANSFER_ENCODING);
        let index = headers
            .get("x-consul-index")
            .and_then(|index| index.to_str().ok()?.parse().ok());
        if let Some(index) = index.filter(|_| lower > 0) {
            let index: u64 = index;
            headers.insert(
                "x-consul-index",
                HeaderValue::from(index.saturating_sub(lower).max(1)),
            );
        }
        let Ok(body) = answer.bytes().await else {
            return Err(self.gone().await);
        };
        let mut answer = Response::new(Full::new(body));
        *answer.status_mut() = status;
        *answer.headers_mut() = headers;
        Ok(answer)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(server) = self.server.lock().unwrap().take() {
            server.abort();
        }
    }
}

async fn serve(stream: TcpStream, line: Arc<Line>) {
    let (mut hung_up, mut trouble) = (line.hung_up.subscribe(), line.trouble.subscribe());
    // Whoever looks again and again meanwhile asks, too: it counts.
    if *trouble.borrow() == Trouble::Silent {
        line.count();
    } else if !line.is_answered().await {
        line.count();
        return;
    }
    let spoken = speak(stream, line);
    tokio::pin!(spoken);
    loop {
        let is_silent = *trouble.borrow_and_update() == Trouble::Silent;
        tokio::select! {
            // Else nobody reads, shakes hands or answers a ping.
            () = &mut spoken, if !is_silent => return,
            _ = hung_up.changed() => return,
            _ = trouble.changed() => {}
        }
    }
}

async fn speak(stream: TcpStream, line: Arc<Line>) {
    let of = line.clone();
    let service = service_fn(move |request| {
        let line = of.clone();
        async move { line.answer(request).await }
    });
    // An agent that is killed leaves its connections half done.
    let Some(tls) = &line.tls else {
        _ = http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await;
        return;
    };
    let Ok(stream) = tls.acceptor.accept(stream).await else {
        return;
    };
    _ = http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// The path with another `index`, where there is one that is not 0: 0 asks for the present state.
fn with_index(path: &str, change: impl Fn(u64) -> u64) -> String {
    let Some((before, rest)) = path.split_once("index=") else {
        return path.to_owned();
    };
    let (index, after) = rest.split_at(rest.find('&').unwrap_or(rest.len()));
    match index.parse() {
        Ok(0) | Err(_) => path.to_owned(),
        Ok(index) => format!("{before}index={}{after}", change(index)),
    }
}

fn own_answer(status: u16, text: &str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(text.to_owned())));
    *answer.status_mut() = StatusCode::from_u16(status).expect("a status");
    answer
}

//! The line between an agent and Consul, which can go bad: it counts what is asked, and answers late, wrongly or not at all. To
//! Vault it counts alone.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderValue, TRANSFER_ENCODING};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::http::install_tls_provider;

/// What the line does to each request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    None,
    /// Every answer comes this much later.
    Late(Duration),
    /// Every request gets this status from the line itself, with a text like Consul's.
    Status(u16),
    /// Connections are taken, and nothing is ever answered: a network that drops packets.
    Silent,
    /// A Consul restored from an older snapshot: what waits is cut off, and indexes are lower than they were by this much.
    IndexGoesBack(u64),
    /// A poll that waits is cut off after this long, without an answer: a proxy with a time limit of its own.
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
}

impl Line {
    pub async fn start() -> Arc<Line> {
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

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
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
                    return own_answer(502, "connection reset by peer");
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
                    return own_answer(status, text);
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
                        () = tokio::time::sleep(after) => return own_answer(504, "upstream request timeout"),
                    }
                }
            }
        }
    }

    async fn pass(&self, request: Request<Incoming>, lower: u64) -> Response<Full<Bytes>> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let path = with_index(path, |index| index + lower);
        let url = format!("http://127.0.0.1:{}{path}", self.to.load(Ordering::Relaxed));
        let (parts, body) = request.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return own_answer(502, &error.to_string()),
        };
        let mut headers = parts.headers;
        headers.remove(TRANSFER_ENCODING);
        let sent = self.client.request(parts.method, url).headers(headers).body(body);
        let answer = match sent.send().await {
            Ok(answer) => answer,
            Err(error) => return own_answer(502, &error.to_string()),
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
        match answer.bytes().await {
            Ok(body) => {
                let mut answer = Response::new(Full::new(body));
                *answer.status_mut() = status;
                *answer.headers_mut() = headers;
                answer
            }
            Err(error) => own_answer(502, &error.to_string()),
        }
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
    let service = service_fn(|request| {
        let line = line.clone();
        async move { Ok::<_, Infallible>(line.answer(request).await) }
    });
    // An agent that is killed leaves its connections half done.
    _ = http1::Builder::new()
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

//! Long polls over HTTP/2 against a server that plays what the real Consul does only when it ends, restarts or sits behind a
//! proxy.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use imbl::OrdMap;
use portreeve::model::{Redacted, ServiceQuery};
use portreeve::sources::agent_api::{ApiAddress, Product};
use portreeve::sources::consul::{ConsulClient, ConsulSettings, ServiceWatcher, WatchTiming};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::server::{Running, quick};
use crate::transport::{LONG, authority, issue};

/// What becomes of the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// As Consul has it: at once if the index is another, else when it changes.
    Answered,
    /// Turned away unread, as by a server that is about to end.
    Refused,
    /// The connection ends under it.
    Cut,
    /// Answered, and the server says that it takes no more on this connection.
    Last,
    /// The answer ends in its middle.
    Half,
}

#[derive(Debug)]
struct Played {
    index: watch::Sender<u64>,
    fates: Mutex<Vec<Fate>>,
    asked: Mutex<Vec<(usize, String, HeaderMap)>>,
    connections: Mutex<usize>,
}

struct Server {
    played: Arc<Played>,
    client: ConsulClient,
    _files: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(protocol: &str) -> Self {
        let files = tempfile::tempdir().unwrap();
        issue(files.path(), &authority(files.path()), "server.dc1.consul", LONG);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap());
        let played = Arc::new(Played {
            index: watch::Sender::new(1),
            fates: Mutex::default(),
            asked: Mutex::default(),
            connections: Mutex::default(),
        });
        let acceptor = acceptor(files.path(), protocol);
        let mut tasks = JoinSet::new();
        let (state, is_http_2) = (played.clone(), protocol == "h2");
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let number = {
                    let mut count = state.connections.lock().unwrap();
                    *count += 1;
                    *count
                };
                let (state, acceptor) = (state.clone(), acceptor.clone());
                if is_http_2 {
                    connections.spawn(http_2(stream, acceptor, state, number));
                } else {
                    connections.spawn(http_1(stream, acceptor, state, number));
                }
            }
        });
        let client = ConsulClient::new(&ConsulSettings {
            address: ApiAddress::parse(Product::Consul, &address, false).unwrap(),
            ca_file: Some(files.path().join("ca.pem")),
            tls_server_name: Some("server.dc1.consul".to_owned()),
            token: Some(Redacted::new("played".to_owned())),
            http_auth: Some(("user".to_owned(), Redacted::new("pass".to_owned()))),
            ..ConsulSettings::default()
        })
        .unwrap();
        Self {
            played,
            client,
            _files: files,
            _tasks: tasks,
        }
    }

    /// For the requests that come next, in this order.
    fn plan(&self, fates: &[Fate]) {
        *self.played.fates.lock().unwrap() = fates.iter().rev().copied().collect();
    }

    /// How many instances the service has, from now on.
    fn change(&self, instances: u64) {
        self.played.index.send_replace(instances);
    }

    fn watch(&self, timing: WatchTiming) -> (Running, ServiceWatcher) {
        let (mut running, sender) = Running::new();
        let (watcher, task) = ServiceWatcher::new(self.client.clone(), sender);
        running
            .tasks
            .spawn(task.with_timing(timing).run(running.cancel.clone()));
        let interest = (ServiceQuery::named("web"), 0u64);
        watcher.set_interests([interest].into_iter().collect::<OrdMap<_, _>>());
        (running, watcher)
    }

    fn connections(&self) -> usize {
        *self.played.connections.lock().unwrap()
    }

    fn asked(&self) -> Vec<(usize, String, HeaderMap)> {
        self.played.asked.lock().unwrap().clone()
    }

    /// Until the poll that follows an answer has come.
    async fn until_polled(&self, requests: usize) {
        while self.asked().len() < requests {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Played {
    fn fate(&self) -> Fate {
        self.fates.lock().unwrap().pop().unwrap_or(Fate::Answered)
    }

    /// As many instances as the index says.
    async fn answer(&self, path: &str) -> (u64, Bytes) {
        let known = path.split("index=").nth(1);
        let known = known.and_then(|after| after.split('&').next()?.parse::<u64>().ok());
        let mut index = self.index.subscribe();
        let index = *index.wait_for(|index| known != Some(*index)).await.unwrap();
        let rows: Vec<String> = (0..index)
            .map(|at| {
                format!(
                    r#"{{"Node":{{"Node":"n","Address":"127.0.0.1"}},"Service":{{"ID":"web-{at}","Service":"web","Address":"127.0.0.1","Port":{}}},"Checks":[]}}"#,
                    at + 1
                )
            })
            .collect();
        (index, Bytes::from(format!("[{}]", rows.join(","))))
    }
}

fn acceptor(files: &Path, protocol: &str) -> TlsAcceptor {
    let chain = CertificateDer::from_pem_file(files.join("server.dc1.consul.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(files.join("server.dc1.consul.key")).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .unwrap();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Arc::new(config).into()
}

async fn http_2(stream: TcpStream, acceptor: TlsAcceptor, played: Arc<Played>, number: usize) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    let mut answers = JoinSet::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        note(&played, number, &request);
        match played.fate() {
            Fate::Cut => return,
            Fate::Refused => respond.send_reset(Reason::REFUSED_STREAM),
            fate => {
                answers.spawn(answer(request.uri().to_string(), respond, played.clone(), fate));
                if fate == Fate::Last {
                    connection.graceful_shutdown();
                }
            }
        }
    }
}

fn note(played: &Played, number: usize, request: &Request<h2::RecvStream>) {
    let (path, headers) = (request.uri().to_string(), request.headers().clone());
    played.asked.lock().unwrap().push((number, path, headers));
}

async fn answer(path: String, mut respond: SendResponse<Bytes>, played: Arc<Played>, fate: Fate) {
    let (index, body) = played.answer(&path).await;
    let head = Response::builder().header("x-consul-index", index);
    let Ok(mut stream) = respond.send_response(head.body(()).unwrap(), false) else {
        return;
    };
    if fate == Fate::Half {
        let _ = stream.send_data(body.slice(..body.len() / 2), false);
        return stream.send_reset(Reason::INTERNAL_ERROR);
    }
    let _ = stream.send_data(body, true);
}

async fn http_1(stream: TcpStream, acceptor: TlsAcceptor, played: Arc<Played>, number: usize) {
    let Ok(mut stream) = acceptor.accept(stream).await else {
        return;
    };
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if !matches!(stream.read_buf(&mut head).await, Ok(read) if read > 0) {
            return;
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    played
        .asked
        .lock()
        .unwrap()
        .push((number, path.clone(), HeaderMap::new()));
    let (index, body) = played.answer(&path).await;
    let head = format!(
        "HTTP/1.1 200 OK\r\nX-Consul-Index: {index}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(&body).await;
    let _ = stream.shutdown().await;
}

/// Nothing is tried again in the time of a test.
fn patient() -> WatchTiming {
    WatchTiming {
        retry: (Duration::from_secs(600), Duration::from_secs(600)),
        ..quick()
    }
}

async fn instances(running: &mut Running) -> usize {
    running.service().await.result.unwrap().len()
}

#[tokio::test]
async fn a_poll_carries_what_every_request_does() {
    let server = Server::start("h2").await;
    let (mut running, _watcher) = server.watch(quick());
    assert_eq!(instances(&mut running).await, 1);
    server.until_polled(2).await;
    server.change(2);
    assert_eq!(instances(&mut running).await, 2);
    let asked = server.asked();
    assert!(
        asked[1]
            .1
            .ends_with("/v1/health/service/web?index=1&wait=300000ms"),
        "{}",
        asked[1].1
    );
    assert!(
        asked[1].1.starts_with("https://server.dc1.consul:"),
        "{}",
        asked[1].1
    );
    for (name, value) in [
        ("x-consul-token", "played"),
        ("authorization", "Basic dXNlcjpwYXNz"),
        ("user-agent", concat!("portreeve/", env!("CARGO_PKG_VERSION"))),
    ] {
        assert_eq!(asked[1].2[name], value);
    }
    assert!(server.client.is_multiplexed());
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn what_the_server_never_looked_at_is_sent_once_more_and_is_no_failure() {
    let server = Server::start("h2").await;
    server.plan(&[Fate::Answered, Fate::Refused]);
    let (mut running, watcher) = server.watch(patient());
    assert_eq!(instances(&mut running).await, 1);
    server.until_polled(3).await;
    server.change(2);
    assert_eq!(instances(&mut running).await, 2);
    assert_eq!(watcher.health()[0].1.errors_total, 0);

    // Twice in a row it is one.
    server.plan(&[Fate::Answered, Fate::Refused, Fate::Refused]);
    server.change(3);
    while watcher.health()[0].1.errors_total == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_server_that_takes_leave_is_reached_over_another_connection() {
    let server = Server::start("h2").await;
    server.plan(&[Fate::Answered, Fate::Last]);
    let (mut running, watcher) = server.watch(patient());
    assert_eq!(instances(&mut running).await, 1);
    server.until_polled(2).await;
    // The poll that was under way is answered on the connection that ends.
    server.change(2);
    assert_eq!(instances(&mut running).await, 2);
    server.until_polled(3).await;
    server.change(3);
    assert_eq!(instances(&mut running).await, 3);
    let over: Vec<usize> = server.asked().iter().map(|(number, ..)| *number).collect();
    assert_eq!(over[..3], [1, 1, 2]);
    assert_eq!(watcher.health()[0].1.errors_total, 0);
}

#[tokio::test]
async fn a_connection_that_ends_and_an_answer_that_does_are_asked_for_again() {
    let server = Server::start("h2").await;
    server.plan(&[Fate::Answered, Fate::Cut, Fate::Answered, Fate::Half]);
    let (mut running, watcher) = server.watch(quick());
    assert_eq!(instances(&mut running).await, 1);
    server.until_polled(3).await;
    server.change(2);
    assert_eq!(instances(&mut running).await, 2);
    server.until_polled(4).await;
    server.change(3);
    assert_eq!(instances(&mut running).await, 3);
    assert_eq!(server.connections(), 2);
    assert_eq!(watcher.health()[0].1.errors_total, 2);
}

/// A proxy in front of Consul may have no HTTP/2.
#[tokio::test]
async fn without_http_2_polls_go_as_all_calls_do() {
    let server = Server::start("http/1.1").await;
    let (mut running, watcher) = server.watch(quick());
    assert_eq!(instances(&mut running).await, 1);
    server.until_polled(2).await;
    server.change(2);
    assert_eq!(instances(&mut running).await, 2);
    assert!(!server.client.is_multiplexed());
    assert_eq!(watcher.health()[0].1.errors_total, 0);
}

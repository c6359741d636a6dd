//! A server that answers `/v1/service/<name>`, `/v1/services`, `/v1/var/<path>`, `/v1/event/stream`, `/v1/acl/token/self`
//! and `/v1/acl/policy/<name>` as Nomad 2.0 does, for where no `nomad` is installed.
//!
//! What it holds to: blocking queries on one index for all registrations (any change wakes every watch), `[]` for an
//! unknown service, 404 with an index for an unknown variable, 403 with plain text for a token it does not know,
//! `X-Nomad-Index`, the namespace `default` where none is asked for, and no instances for the namespace `*` in
//! `/v1/service` (state is looked up by the literal name). In `*` of `/v1/services` what the token may not see is left out. The event stream begins with a heartbeat and then sends what it
//! still has from `index` on; to a token without the right it answers 200 and ends, as Nomad does since it takes the
//! connection over. An unknown policy is a 404; one that is written must have the name that it is written to, and is read
//! with what Nomad adds to it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub struct NomadContract {
    pub socket: std::path::PathBuf,
    state: watch::Sender<State>,
    asked: Arc<Mutex<Vec<String>>>,
    connections: Arc<Connections>,
    /// None on a unix socket.
    tls: Option<mpsc::Sender<(TlsAcceptor, oneshot::Sender<()>)>>,
    server: JoinSet<()>,
    _directory: tempfile::TempDir,
}

/// Over TLS alone.
#[derive(Default)]
struct Connections {
    open: AtomicUsize,
    most: AtomicUsize,
}

#[derive(Clone, Default)]
struct State {
    index: u64,
    token: String,
    /// Others, and the one namespace of which each may read the services.
    narrow: BTreeMap<String, String>,
    /// When the token was made and when it ends, RFC 3339; none: it has no end.
    token_life: Option<(String, String)>,
    policies: BTreeMap<String, Value>,
    /// (namespace, path) to the items, and the index of the last change, deletions included.
    variables: BTreeMap<(String, String), (u64, Option<Value>)>,
    /// (namespace, service, id) to the registration.
    registered: BTreeMap<(String, String, String), Value>,
    events: Vec<(u64, Value)>,
    stream: EventStream,
}

/// How the event stream goes. A change ends the streams that run, but for those that began as `Silent`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EventStream {
    #[default]
    Works,
    /// The token lacks the right.
    Refused,
    /// The same before Nomad took the connection over.
    RefusedWith403,
    /// An old Nomad.
    Unknown,
    /// A proxy's page.
    Page,
    /// It begins and ends.
    Cut,
    /// It begins, and nothing follows; not even a heartbeat.
    Silent,
    /// What happens is told behind more bytes than a line may have.
    LongLines,
}

impl State {
    fn event(&mut self, kind: &str, registration: &Value) {
        let event = json!({
            "Topic": "Service", "Type": kind, "Key": registration["ID"], "Namespace": registration["Namespace"],
            "FilterKeys": [registration["JobID"], registration["ServiceName"]], "Index": self.index,
            "Payload": { "Service": registration },
        });
        self.events.push((self.index, event));
    }
}

impl NomadContract {
    /// On a unix socket, as the task API is.
    pub async fn start(token: &str) -> Self {
        let directory = scratch_directory();
        let socket = directory.path().join("api.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let mut nomad = Self::prepare(token, socket, directory);
        let (served, log) = (nomad.state.clone(), nomad.asked.clone());
        nomad.server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, served.clone(), log.clone()));
            }
        });
        nomad
    }

    /// On a port of 127.0.0.1, over TLS.
    pub async fn start_tls(token: &str, config: Arc<rustls::ServerConfig>) -> (Self, u16) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let mut nomad = Self::prepare(token, Default::default(), scratch_directory());
        let (sender, mut restarts) = mpsc::channel::<(TlsAcceptor, oneshot::Sender<()>)>(1);
        nomad.tls = Some(sender);
        let (served, log) = (nomad.state.clone(), nomad.asked.clone());
        let (counted, mut acceptor) = (nomad.connections.clone(), TlsAcceptor::from(config));
        nomad.server.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    Some((next, done)) = restarts.recv() => {
                        acceptor = next;
                        connections.shutdown().await;
                        counted.open.store(0, Ordering::Relaxed);
                        let _ = done.send(());
                        continue;
                    }
                };
                let Ok((stream, _)) = accepted else { return };
                let acceptor = acceptor.clone();
                let (state, log, counted) = (served.clone(), log.clone(), counted.clone());
                let open = counted.open.fetch_add(1, Ordering::Relaxed) + 1;
                counted.most.fetch_max(open, Ordering::Relaxed);
                connections.spawn(async move {
                    // Who is refused knows it.
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, state, log).await;
                    }
                    counted.open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        (nomad, port)
    }

    /// With another certificate, or for other clients: no connection of before is left.
    pub async fn restart_tls(&self, config: Arc<rustls::ServerConfig>) {
        let (done, restarted) = oneshot::channel();
        let restarts = self.tls.as_ref().expect("a server over TLS");
        let sent = restarts.send((TlsAcceptor::from(config), done)).await;
        sent.expect("the server runs");
        restarted.await.expect("the server restarts");
    }

    fn prepare(token: &str, socket: std::path::PathBuf, directory: tempfile::TempDir) -> Self {
        let state = State {
            index: 10,
            token: token.to_owned(),
            ..State::default()
        };
        Self {
            socket,
            state: watch::Sender::new(state),
            asked: Arc::default(),
            connections: Arc::default(),
            tls: None,
            server: JoinSet::new(),
            _directory: directory,
        }
    }

    pub fn register(&self, namespace: &str, service: &str, port: u16) {
        self.change(|state| {
            let id = format!("_nomad-task-{port}-group-{service}");
            let registration = json!({
                "ID": id, "ServiceName": service, "Namespace": namespace, "NodeID": "74", "Datacenter": "dc1",
                "JobID": service, "AllocID": "17", "Tags": ["v1"], "Address": "127.0.0.1", "Port": port,
                "CreateIndex": state.index, "ModifyIndex": state.index,
            });
            state.event("ServiceRegistration", &registration);
            state
                .registered
                .insert((namespace.to_owned(), service.to_owned(), id), registration);
        });
    }

    pub fn deregister(&self, namespace: &str, service: &str, port: u16) {
        self.change(|state| {
            let id = format!("_nomad-task-{port}-group-{service}");
            let key = (namespace.to_owned(), service.to_owned(), id);
            if let Some(registration) = state.registered.remove(&key) {
                state.event("ServiceDeregistration", &registration);
            }
        });
    }

    /// None: deleted.
    pub fn set_variable(&self, namespace: &str, path: &str, items: Option<Value>) {
        self.change(|state| {
            let key = (namespace.to_owned(), path.to_owned());
            state.variables.insert(key, (state.index, items));
        });
    }

    pub fn set_token(&self, token: &str) {
        self.change(|state| {
            state.token = token.to_owned();
            state.token_life = None;
        });
    }

    /// One more token, that may read the services of one namespace.
    pub fn add_token(&self, token: &str, namespace: &str) {
        self.change(|state| drop(state.narrow.insert(token.to_owned(), namespace.to_owned())));
    }

    /// The same token loses what it may see beyond one namespace; None: it has all rights again. No index moves, as none does
    /// in Nomad when a policy is changed.
    pub fn narrow_token(&self, token: &str, to: Option<&str>) {
        self.state.send_modify(|state| match to {
            Some(namespace) => drop(state.narrow.insert(token.to_owned(), namespace.to_owned())),
            None => drop(state.narrow.remove(token)),
        });
    }

    /// Another token, which was made so long ago and ends so long from now. Returns its end, in Unix seconds.
    pub fn set_token_for(&self, token: &str, past: Duration, validity: Duration) -> u64 {
        let now = std::time::UNIX_EPOCH.elapsed().expect("the time");
        let at = |time: Duration| {
            let time = std::time::UNIX_EPOCH + Duration::from_secs(time.as_secs());
            humantime::format_rfc3339(time).to_string()
        };
        self.change(|state| {
            state.token = token.to_owned();
            state.token_life = Some((at(now - past), at(now + validity)));
        });
        (now + validity).as_secs()
    }

    /// A policy as it was last written.
    pub fn policy(&self, name: &str) -> Option<Value> {
        self.state.borrow().policies.get(name).cloned()
    }

    /// As by somebody's hand.
    pub fn set_policy(&self, name: &str, policy: Value) {
        self.change(|state| drop(state.policies.insert(name.to_owned(), policy)));
    }

    pub fn set_event_stream(&self, stream: EventStream) {
        self.change(|state| state.stream = stream);
    }

    /// The queries of the event streams that were asked for, in order.
    pub fn event_streams(&self) -> Vec<String> {
        let asked = self.asked();
        let queries = asked
            .iter()
            .filter_map(|path| path.strip_prefix("/v1/event/stream?"));
        queries.map(str::to_owned).collect()
    }

    /// How many there were at once, at most.
    pub fn most_connections(&self) -> usize {
        self.connections.most.load(Ordering::Relaxed)
    }

    /// Paths with queries, in the order asked.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(|state| {
            state.index += 1;
            change(state);
        });
    }
}

async fn serve<S>(stream: S, state: watch::Sender<State>, log: Arc<Mutex<Vec<String>>>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| answer(request, state.clone(), log.clone()));
    // The end of a connection is the client's business.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    request: Request<Incoming>,
    served: watch::Sender<State>,
    log: Arc<Mutex<Vec<String>>>,
) -> Result<Response<Body>, Infallible> {
    let mut state = served.subscribe();
    log.lock().unwrap().push(request.uri().to_string());
    let query: BTreeMap<String, String> =
        url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes())
            .into_owned()
            .collect();
    let token = request
        .headers()
        .get("x-nomad-token")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let only = state.borrow().narrow.get(&token).cloned();
    if token != state.borrow().token && only.is_none() {
        return Ok(reply(403, 0, "Permission denied".into()));
    }
    if request.uri().path() == "/v1/event/stream" {
        return Ok(events(state, &query));
    }
    if request.uri().path() == "/v1/acl/token/self" {
        let now = state.borrow().clone();
        let (made, ends) = now.token_life.unzip();
        let made = made.unwrap_or_else(|| "2026-01-01T00:00:00.5Z".to_owned());
        let mut token = json!({ "AccessorID": "a", "Name": "agent", "Type": "client", "CreateTime": made });
        if let Some(ends) = ends {
            token["ExpirationTime"] = ends.into();
        }
        return Ok(reply(200, now.index, token.to_string()));
    }
    if let Some(name) = request.uri().path().strip_prefix("/v1/acl/policy/") {
        let name = name.to_owned();
        return Ok(policy(request, &name, &served).await);
    }
    let index: u64 = query.get("index").and_then(|text| text.parse().ok()).unwrap_or(0);
    let wait = query
        .get("wait")
        .and_then(|text| text.strip_suffix("ms")?.parse().ok());
    let moved = state.wait_for(|state| state.index > index);
    // A poll that runs out is answered with what is.
    let _ = tokio::time::timeout(Duration::from_millis(wait.unwrap_or(0)), moved).await;
    let now = state.borrow().clone();
    let namespace = query.get("namespace").map_or("default", String::as_str);
    let may_see = |namespace: &str| only.as_ref().is_none_or(|only| only == namespace);
    if namespace != "*" && !may_see(namespace) {
        return Ok(reply(403, 0, "Permission denied".into()));
    }
    if let Some(path) = request.uri().path().strip_prefix("/v1/var/") {
        let key = (namespace.to_owned(), path.to_owned());
        return Ok(match now.variables.get(&key) {
            Some((index, Some(items))) => {
                let variable = json!({
                    "Namespace": namespace, "Path": path, "CreateIndex": index, "ModifyIndex": index, "Items": items,
                });
                reply(200, now.index, variable.to_string())
            }
            _ => reply(404, now.index, "variable not found".into()),
        });
    }
    let body = match request.uri().path().strip_prefix("/v1/service/") {
        Some(name) => {
            let found = now
                .registered
                .iter()
                .filter(|((ns, service, _), _)| ns == namespace && service == name);
            Value::from(found.map(|(_, value)| value.clone()).collect::<Vec<_>>())
        }
        None => {
            let mut by_namespace: BTreeMap<&str, BTreeMap<&str, Value>> = BTreeMap::new();
            for (ns, service, _) in now.registered.keys() {
                if (namespace == "*" && may_see(ns)) || ns == namespace {
                    let listed = json!({ "ServiceName": service, "Tags": ["v1"] });
                    by_namespace.entry(ns).or_default().insert(service, listed);
                }
            }
            by_namespace
                .into_iter()
                .map(|(ns, services)| json!({ "Namespace": ns, "Services": services.into_values().collect::<Vec<_>>() }))
                .collect()
        }
    };
    Ok(reply(200, now.index, body.to_string()))
}

async fn policy(request: Request<Incoming>, name: &str, state: &watch::Sender<State>) -> Response<Body> {
    if request.method() == hyper::Method::GET {
        let now = state.borrow().clone();
        return match now.policies.get(name) {
            Some(policy) => reply(200, now.index, policy.to_string()),
            None => reply(404, now.index, "ACL policy not found".into()),
        };
    }
    let body = request.into_body().collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let Ok(mut policy) = serde_json::from_slice::<Value>(&body) else {
        return reply(400, 0, "not JSON".into());
    };
    if policy["Name"] != name {
        return reply(400, 0, "ACL policy name does not match request path".into());
    }
    state.send_modify(|state| {
        state.index += 1;
        policy["Hash"] = "8lPo".into();
        policy["CreateIndex"] = state.index.into();
        policy["ModifyIndex"] = state.index.into();
        // It has these whether or not they were written.
        for part in ["Group", "Task"] {
            if policy["JobACL"].is_object() && policy["JobACL"][part].is_null() {
                policy["JobACL"][part] = "".into();
            }
        }
        state.policies.insert(name.to_owned(), policy);
    });
    reply(200, state.borrow().index, String::new())
}

/// Of its own, so that suites that start no programs have it, too. Its path is short: it holds a socket.
fn scratch_directory() -> tempfile::TempDir {
    let made = tempfile::Builder::new().prefix("pr-nomad-").tempdir();
    made.expect("a scratch directory")
}

type Body = BoxBody<Bytes, Infallible>;

fn reply(status: u16, index: u64, body: String) -> Response<Body> {
    let response = Response::builder().status(status).header("x-nomad-index", index);
    response
        .body(Full::new(body.into()).boxed())
        .expect("a response of known parts")
}

fn events(state: watch::Receiver<State>, query: &BTreeMap<String, String>) -> Response<Body> {
    if query.get("topic").is_none_or(|topic| topic != "Service:*") {
        return reply(403, 0, "all topics need a management token".into());
    }
    let mode = state.borrow().stream;
    match mode {
        EventStream::Refused => return reply(200, 0, String::new()),
        EventStream::RefusedWith403 => return reply(403, 0, "Permission denied".into()),
        EventStream::Unknown => return reply(404, 0, String::new()),
        EventStream::Page => return reply(200, 0, "<!doctype html>\n<html></html>\n".into()),
        EventStream::Cut => return reply(200, 0, "{}\n".into()),
        EventStream::Works | EventStream::Silent | EventStream::LongLines => {}
    }
    let namespace = query
        .get("namespace")
        .map_or("default", String::as_str)
        .to_owned();
    let from = query.get("index").and_then(|text| text.parse().ok()).unwrap_or(0);
    let begun = futures::stream::once(async { Ok(Frame::data(Bytes::from_static(b"{}\n"))) });
    let more = futures::stream::unfold((state, from), move |(mut state, from)| {
        let namespace = namespace.clone();
        async move {
            let (index, event) = {
                let is_due = |now: &State| match now.stream {
                    _ if mode == EventStream::Silent => false,
                    now_is if now_is == mode => next_event(now, from, &namespace).is_some(),
                    _ => true,
                };
                let now = state.wait_for(is_due).await.ok()?;
                if now.stream != mode {
                    return None;
                }
                next_event(&now, from, &namespace)?
            };
            let mut text = json!({ "Index": index, "Events": [event] }).to_string();
            if mode == EventStream::LongLines {
                text.insert_str(1, &" ".repeat(2 * 1024 * 1024));
            }
            text.push('\n');
            Some((Ok(Frame::data(Bytes::from(text))), (state, index + 1)))
        }
    });
    let body = StreamBody::new(futures::StreamExt::chain(begun, more));
    Response::new(BodyExt::boxed(body))
}

fn next_event(state: &State, from: u64, namespace: &str) -> Option<(u64, Value)> {
    let mut events = state.events.iter();
    let found = events
        .find(|(index, event)| *index >= from && (namespace == "*" || event["Namespace"] == *namespace));
    found.cloned()
}

//! A server that gives the answers kept in `answers/`: Consul of versions that cannot be run here. It keeps the contract of
//! blocking queries: a poll with the index of the present answer waits until another answer is put in its place. It may stand
//! before a real Consul, which is asked whatever no answer is kept for.
#![allow(dead_code, reason = "each suite uses a part of it")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const CERTIFICATE: &str = include_str!("../golden/test-only.pem");
const KEY: &str = include_str!("../golden/test-only.key");

#[derive(Clone, Debug)]
pub struct Answer {
    status: u64,
    index: Option<u64>,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    /// `answers/<name>.json`.
    pub fn kept(name: &str) -> Self {
        Self::kept_with(name, CERTIFICATE, KEY)
    }

    /// The same with another certificate in it, for what is said of the days that a certificate has left: those cannot be
    /// kept.
    pub fn kept_with(name: &str, certificate: &str, key: &str) -> Self {
        let path = format!("{}/tests/consul/answers/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let kept: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        for said in ["source", "version"] {
            assert!(
                kept[said].as_str().is_some_and(|text| !text.is_empty()),
                "{name}: no {said}"
            );
        }
        let body = match &kept["body"] {
            Value::String(text) => text.clone(),
            json => json.to_string(),
        };
        let as_json = |pem: &str| pem.replace('\n', "\\n");
        Self {
            status: kept["status"].as_u64().unwrap(),
            index: kept["index"].as_u64(),
            headers: kept["headers"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()))
                .collect(),
            body: body
                .replace("{{certificate}}", &as_json(certificate))
                .replace("{{key}}", &as_json(key)),
        }
    }

    pub fn at(self, index: u64) -> Self {
        Self {
            index: Some(index),
            ..self
        }
    }

    /// The same with another text in it.
    pub fn with(self, from: &str, to: &str) -> Self {
        assert!(self.body.contains(from), "the answer does not hold {from:?}");
        Self {
            body: self.body.replace(from, to),
            ..self
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// By path.
    standing: BTreeMap<String, Answer>,
    /// Given once each, before the standing one.
    first: BTreeMap<String, VecDeque<Answer>>,
    /// Polls that wait end after so long, without a byte.
    cut: Option<Duration>,
    /// Path and query of every request.
    asked: Vec<String>,
    behind: Behind,
}

/// Who answers what no answer is kept for.
#[derive(Clone, Debug, Default)]
enum Behind {
    /// Nobody: 404.
    #[default]
    Nobody,
    /// Its address is not known yet.
    Awaited,
    At(String),
}

pub struct AnsweringServer {
    pub address: String,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

impl AnsweringServer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let mut tasks = JoinSet::new();
        let shared = state.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, shared.clone()));
            }
        });
        Self {
            address,
            state,
            _tasks: tasks,
        }
    }

    /// Before a Consul that is yet to start: requests for it wait until [`AnsweringServer::stand_before`].
    pub async fn start_before_another() -> Self {
        let server = Self::start().await;
        server.state.lock().unwrap().behind = Behind::Awaited;
        server
    }

    pub fn stand_before(&self, address: String) {
        self.state.lock().unwrap().behind = Behind::At(address);
    }

    pub fn put(&self, path: &str, answer: Answer) {
        let mut state = self.state.lock().unwrap();
        state.standing.insert(path.to_owned(), answer);
    }

    pub fn put_first(&self, path: &str, answer: Answer) {
        let mut state = self.state.lock().unwrap();
        state.first.entry(path.to_owned()).or_default().push_back(answer);
    }

    pub fn cut_polls_after(&self, cut: Duration) {
        self.state.lock().unwrap().cut = Some(cut);
    }

    /// Requests for this path so far, with their queries.
    pub fn asked(&self, path: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let is_it = |asked: &&String| asked.split('?').next() == Some(path);
        state.asked.iter().filter(is_it).cloned().collect()
    }
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if !matches!(stream.read_buf(&mut head).await, Ok(read) if read > 0) {
            return;
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let asked = text.split(' ').nth(1).unwrap_or_default().to_owned();
    let (path, query) = asked.split_once('?').unwrap_or((&asked, ""));
    let index: Option<u64> = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("index="))
        .and_then(|index| index.parse().ok());
    state.lock().unwrap().asked.push(asked.clone());
    let begin = tokio::time::Instant::now();
    let turn = |state: &Mutex<State>| {
        let mut state = state.lock().unwrap();
        let first = state.first.get_mut(path).and_then(VecDeque::pop_front);
        let standing = state.standing.get(path).cloned();
        let is_cut = state.cut.is_some_and(|cut| begin.elapsed() >= cut);
        match (first, standing) {
            (Some(first), _) => Turn::Answer(first),
            (None, Some(standing)) if index.is_none() || standing.index != index => Turn::Answer(standing),
            (None, Some(_)) if is_cut => Turn::Cut,
            (None, Some(_)) => Turn::Wait,
            (None, None) => match &state.behind {
                Behind::At(address) => Turn::PassOn(address.clone()),
                Behind::Awaited => Turn::Wait,
                Behind::Nobody => Turn::Answer(Answer {
                    status: 404,
                    index: None,
                    headers: Vec::new(),
                    body: String::new(),
                }),
            },
        }
    };
    loop {
        match turn(&state) {
            Turn::Answer(answer) => return write(&mut stream, &answer).await,
            Turn::PassOn(address) => return pass_on(stream, head, &address).await,
            Turn::Cut => return,
            Turn::Wait => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// One request to a connection, so that the next one is looked at here again.
async fn pass_on(mut client: TcpStream, mut head: Vec<u8>, address: &str) {
    let end = head.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    head.splice(end..end, *b"\r\nConnection: close");
    let Ok(mut consul) = TcpStream::connect(address).await else {
        return;
    };
    if consul.write_all(&head).await.is_ok() {
        // Either side may hang up, as it may without us.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut consul).await;
    }
}

enum Turn {
    Answer(Answer),
    PassOn(String),
    Wait,
    Cut,
}

pub async fn write(stream: &mut TcpStream, answer: &Answer) {
    let mut text = format!("HTTP/1.1 {} X\r\n", answer.status);
    if let Some(index) = answer.index {
        text.push_str(&format!("X-Consul-Index: {index}\r\n"));
    }
    for (name, value) in &answer.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!(
        "Content-Length: {}\r\nConnection: close\r\n\r\n{}",
        answer.body.len(),
        answer.body
    ));
    // A client that has gone has heard enough.
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
}

//! Requests without rest over kept connections, and a backend that answers them: both do as little as there can be done,
//! so that the machine is Envoy's, whose CPU is what counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::clock::{cpu_of_process, microseconds};
use crate::report::Report;

/// Enough that Envoy always has a request to read: a single one would measure how a core wakes.
const CONNECTIONS: usize = 16;
/// No two requests in a row are neighbours; prime, so that every one has its turn.
const STRIDE: usize = 7919;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Whole requests as they go over the wire.
pub type Requests = Arc<[Vec<u8>]>;

pub fn requests<'a>(paths: impl IntoIterator<Item = (&'a str, String)>) -> Requests {
    let whole = paths
        .into_iter()
        .map(|(host, path)| format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n").into_bytes());
    whole.collect()
}

/// One side of a comparison: kept connections to one Envoy, and what is asked there.
pub struct Load {
    envoy: u32,
    connections: Vec<TcpStream>,
    requests: Requests,
    answers: usize,
    cpu: Duration,
    /// The first answer that was not 200.
    wrong: Option<String>,
}

/// Turns that the sides of one round take, there and back: what else the machine does lasts longer than one of them.
const TURNS: usize = 10;

/// CPU that a request costs Envoy on each side, in microseconds, over so much time for each.
pub async fn beside<const SIDES: usize>(
    sides: &mut [Load; SIDES],
    time: Duration,
    report: &mut Report,
) -> [f64; SIDES] {
    for side in sides.iter_mut() {
        (side.answers, side.cpu) = (0, Duration::ZERO);
    }
    for turn in 0..TURNS {
        for at in 0..SIDES {
            let at = if turn % 2 == 0 { at } else { SIDES - 1 - at };
            sides[at].run(time / TURNS as u32).await;
        }
    }
    sides.each_mut().map(|side| {
        if let Some(wrong) = side.wrong.take() {
            report.fail(format!("a request without fault is answered {wrong:?}"));
        }
        microseconds(side.cpu) / side.answers as f64
    })
}

impl Load {
    /// To the Envoy with this process number and port.
    pub async fn open(envoy: u32, port: u16, requests: Requests) -> Load {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            let connection = TcpStream::connect(("127.0.0.1", port)).await;
            let connection = connection.expect("an Envoy that listens");
            connection.set_nodelay(true).expect("a connection");
            connections.push(connection);
        }
        Load {
            envoy,
            connections,
            requests,
            answers: 0,
            cpu: Duration::ZERO,
            wrong: None,
        }
    }

    /// Every connection sends the next request once the one before is answered.
    async fn run(&mut self, time: Duration) {
        let before = cpu_of_process(self.envoy);
        let mut clients = JoinSet::new();
        for (number, connection) in self.connections.drain(..).enumerate() {
            // Another turn goes on elsewhere: all requests have theirs.
            let first = number * self.requests.len() / CONNECTIONS + self.answers;
            clients.spawn(ask(connection, self.requests.clone(), first, time));
        }
        for (connection, answered, other) in clients.join_all().await {
            self.connections.push(connection);
            self.answers += answered;
            self.wrong = self.wrong.take().or(other);
        }
        self.cpu += cpu_of_process(self.envoy) - before;
    }
}

async fn ask(
    mut connection: TcpStream,
    requests: Requests,
    first: usize,
    time: Duration,
) -> (TcpStream, usize, Option<String>) {
    let (mut at, mut answered, mut wrong) = (first % requests.len(), 0, None);
    let mut buffer = Vec::with_capacity(4096);
    let started = Instant::now();
    while started.elapsed() < time {
        connection.write_all(&requests[at]).await.expect("a connection");
        buffer.clear();
        let mut length = None;
        while length.is_none_or(|length| buffer.len() < length) {
            let read = connection.read_buf(&mut buffer).await.expect("an answer");
            assert!(read > 0, "Envoy closed a connection");
            length = length.or_else(|| length_of(&buffer));
        }
        answered += 1;
        if !buffer.starts_with(b"HTTP/1.1 200") && wrong.is_none() {
            wrong = Some(String::from_utf8_lossy(&buffer).into_owned());
        }
        at = (at + STRIDE) % requests.len();
    }
    (connection, answered, wrong)
}

/// Of head and body, once the head is there.
fn length_of(answer: &[u8]) -> Option<usize> {
    let head = head_of(answer)?;
    let text = std::str::from_utf8(&answer[..head]).expect("a head");
    let body = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    Some(head + body.map_or(0, |length| length.parse().expect("a length")))
}

fn head_of(message: &[u8]) -> Option<usize> {
    let end = message.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(end + 4)
}

/// Answers every request with the same two bytes.
pub struct Backend {
    pub port: u16,
    serving: JoinHandle<()>,
}

impl Backend {
    pub async fn start() -> Backend {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let serving = tokio::spawn(async move {
            // Dropped with this task, and all connections with it.
            let mut connections = JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                connections.spawn(answer(connection));
            }
        });
        Backend { port, serving }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(mut connection: TcpStream) {
    connection.set_nodelay(true).ok();
    let mut buffer = Vec::with_capacity(4096);
    while connection.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
        while let Some(head) = head_of(&buffer) {
            buffer.drain(..head);
            if connection.write_all(ANSWER).await.is_err() {
                return;
            }
        }
    }
}

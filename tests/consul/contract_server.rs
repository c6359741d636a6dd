//! A server that answers long polls from a script: all that the real Consul does only on its bad days.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::answering::Answer;

/// What the next listing meets.
#[derive(Clone, Debug)]
pub enum Step {
    /// Status, index header, body.
    Answer(u16, Option<&'static str>, String),
    /// One of `answers/`.
    Kept(Answer),
    /// The connection ends after so many milliseconds, without a byte.
    CutAfter(u64),
    /// Half of an answer, then the end.
    CutInBody(u64, String),
    /// Waits, then goes on to the next step.
    Hold(u64),
}

pub struct ContractServer {
    pub address: String,
    script: Arc<Mutex<VecDeque<Step>>>,
    asked: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl ContractServer {
    pub async fn start(steps: impl IntoIterator<Item = Step>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let script = Arc::new(Mutex::new(steps.into_iter().collect::<VecDeque<_>>()));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let (steps, log) = (script.clone(), asked.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, steps.clone(), log.clone()));
            }
        });
        Self {
            address,
            script,
            asked,
            _tasks: tasks,
        }
    }

    pub fn add(&self, step: Step) {
        self.script.lock().unwrap().push_back(step);
    }

    /// The listings asked for so far: path and query.
    pub fn listings(&self) -> Vec<String> {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .filter(|asked| is_listing(asked))
            .cloned()
            .collect()
    }
}

fn is_listing(asked: &str) -> bool {
    asked.contains("recurse") || asked.contains("/health/")
}

async fn serve(mut stream: TcpStream, script: Arc<Mutex<VecDeque<Step>>>, log: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if !matches!(stream.read_buf(&mut head).await, Ok(read) if read > 0) {
            return;
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let asked = head.split(' ').nth(1).unwrap_or_default().to_owned();
    log.lock().unwrap().push(asked.clone());
    if !is_listing(&asked) {
        // A probe: the right is there, the thing is not.
        return answer(&mut stream, 404, Some("1"), "").await;
    }
    loop {
        let step = script.lock().unwrap().pop_front();
        match step {
            // A poll that nothing ends.
            None => tokio::time::sleep(Duration::from_millis(20)).await,
            Some(Step::Hold(millis)) => tokio::time::sleep(Duration::from_millis(millis)).await,
            Some(Step::CutAfter(millis)) => return tokio::time::sleep(Duration::from_millis(millis)).await,
            Some(Step::CutInBody(index, body)) => {
                let text = format!(
                    "HTTP/1.1 200 OK\r\nX-Consul-Index: {index}\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(text.as_bytes()).await;
                let _ = stream.write_all(&body.as_bytes()[..body.len() / 2]).await;
                return;
            }
            Some(Step::Answer(status, index, body)) => {
                return answer(&mut stream, status, index, &body).await;
            }
            Some(Step::Kept(kept)) => return crate::answering::write(&mut stream, &kept).await,
        }
    }
}

async fn answer(stream: &mut TcpStream, status: u16, index: Option<&str>, body: &str) {
    let index = index
        .map(|index| format!("X-Consul-Index: {index}\r\n"))
        .unwrap_or_default();
    let text = format!(
        "HTTP/1.1 {status} X\r\n{index}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
}

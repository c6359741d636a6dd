//! What many services cost Consul: connections are bounded, each service is asked once and then waited on, and one change
//! asks about one service. Counted between the agent and Consul.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::stack::{GATEWAY, Options, Stack, until};
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::wait_for;

const CATALOG: &str = "\ncatalog {\n  default_host = \"{service}.apps.example.com\"\n}\n";

/// How soon so many services are served on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Stands between the agent and Consul, and counts.
struct Counter {
    port: u16,
    consul: Arc<OnceLock<u16>>,
    counts: Arc<Counts>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Counts {
    open: AtomicUsize,
    most_open: AtomicUsize,
    /// Method and path of each request, without its query.
    asked: Mutex<Vec<String>>,
}

impl Counter {
    /// Nobody gets through before [`Counter::open`].
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (consul, counts) = (Arc::new(OnceLock::new()), Arc::new(Counts::default()));
        let mut tasks = JoinSet::new();
        let (target, counting) = (consul.clone(), counts.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                if let Some(port) = target.get() {
                    connections.spawn(connect(stream, *port, counting.clone()));
                }
            }
        });
        Self {
            port,
            consul,
            counts,
            _tasks: tasks,
        }
    }

    fn open(&self, consul: u16) {
        self.consul.set(consul).unwrap();
    }

    fn most_open(&self) -> usize {
        self.counts.most_open.load(Ordering::Relaxed)
    }

    /// How often each path was asked for, since so many requests.
    fn asked_after(&self, before: usize) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for asked in &self.counts.asked.lock().unwrap()[before..] {
            *counts.entry(asked.clone()).or_default() += 1;
        }
        counts
    }

    fn requests(&self) -> usize {
        self.counts.asked.lock().unwrap().len()
    }
}

async fn connect(client: TcpStream, consul: u16, counts: Arc<Counts>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", consul)).await else {
        return;
    };
    let open = counts.open.fetch_add(1, Ordering::Relaxed) + 1;
    counts.most_open.fetch_max(open, Ordering::Relaxed);
    let ((from_agent, to_agent), (from_consul, to_consul)) = (client.into_split(), server.into_split());
    // Either end that closes ends both.
    tokio::select! {
        () = copy(from_agent, to_consul, Some(&counts)) => {}
        () = copy(from_consul, to_agent, None) => {}
    }
    counts.open.fetch_sub(1, Ordering::Relaxed);
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, counts: Option<&Counts>) {
    let (mut buffer, mut line) = (vec![0; 16 * 1024], Vec::new());
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if let Some(counts) = counts {
            for byte in &buffer[..read] {
                if *byte != b'\n' {
                    line.push(*byte);
                    continue;
                }
                let text = String::from_utf8_lossy(&line);
                let request = text.trim_end().strip_suffix(" HTTP/1.1");
                // A body before it ends without a line's end.
                let request = request.and_then(|text| text.get(text.find("GET /").or(text.find("PUT /"))?..));
                if let Some(asked) = request {
                    let path = asked.split('?').next().unwrap().to_owned();
                    counts.asked.lock().unwrap().push(path);
                }
                line.clear();
            }
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

fn name(number: usize) -> String {
    format!("service-{number:03}")
}

fn of_service(number: usize) -> String {
    format!("GET /v1/health/service/{}", name(number))
}

/// On a node of its own, so that no agent of Consul looks after the entries.
async fn register(stack: &Stack, services: std::ops::Range<usize>, backend: &Backend) {
    let node = json!({ "Node": "elsewhere", "Address": "127.0.0.1" });
    stack.consul.catalog_register(&node).await;
    let operations: Vec<Value> = services
        .map(|number| {
            let service = json!({
                "ID": name(number), "Service": name(number), "Tags": ["portreeve"],
                "Address": "127.0.0.1", "Port": backend.port,
            });
            json!({ "Service": { "Verb": "set", "Node": "elsewhere", "Service": service } })
        })
        .collect();
    for part in operations.chunks(64) {
        stack.consul.txn(Value::from(part.to_vec())).await;
    }
}

/// So many services that were there before the agent was.
async fn serving(services: usize, more: &str) -> (Stack, Counter, Backend) {
    let counter = Counter::start().await;
    let consul = format!("address = \"127.0.0.1:{}\"\n  {more}", counter.port);
    let stack = Stack::start(Options {
        consul_block: Some(consul),
        more: CATALOG.to_owned(),
        ..Options::default()
    })
    .await;
    let backend = Backend::start("one").await;
    register(&stack, 0..services, &backend).await;
    stack.put("gateway", GATEWAY).await;
    counter.open(stack.consul.port);
    let client = stack.client().keep_alive();
    for number in 0..services {
        served(&client, number).await;
    }
    (stack, counter, backend)
}

async fn served(client: &Client, number: usize) {
    let request = Request::get(&format!("{}.apps.example.com", name(number)), "/");
    wait_for(&name(number), PATIENCE, async || {
        let reply = client.send(&request).await;
        let reply = reply.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        anyhow::ensure!(reply.status == 200, "{}", reply.status);
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_in_a_large_catalog_asks_about_one_service() {
    const SERVICES: usize = 120;
    let (stack, counter, backend) = serving(SERVICES, "").await;
    // Each has a connection. It is read, and asked again for what comes next; twice more if an answer was lost.
    wait_for("every service to be waited on", PATIENCE, async || {
        let asked = counter.asked_after(0);
        let missing =
            (0..SERVICES).find(|number| asked.get(&of_service(*number)).is_none_or(|count| *count < 2));
        anyhow::ensure!(missing.is_none(), "{missing:?}");
        Ok(())
    })
    .await;
    let asked = counter.asked_after(0);
    for number in 0..SERVICES {
        assert!(asked[&of_service(number)] <= 3, "{asked:#?}");
    }
    let all: usize = asked.values().sum();
    assert!(all <= 3 * SERVICES + 40, "{all} requests: {asked:#?}");
    assert!(counter.most_open() <= SERVICES + 20, "{}", counter.most_open());

    // A service comes, another one moves: nobody else is asked about.
    let before = counter.requests();
    register(&stack, SERVICES..SERVICES + 1, &backend).await;
    served(&stack.client(), SERVICES).await;
    let two = Backend::start("two").await;
    register(&stack, 7..8, &two).await;
    let moved = Request::get(&format!("{}.apps.example.com", name(7)), "/");
    until(&stack.client(), &moved, "the other instance", |reply| {
        reply.backend() == Some("two")
    })
    .await;
    let asked = counter.asked_after(before);
    println!("asked for after two changes: {asked:#?}");
    let services: BTreeSet<&String> = asked
        .keys()
        .filter(|path| path.contains("/health/service/"))
        .collect();
    assert_eq!(services, BTreeSet::from([&of_service(SERVICES), &of_service(7)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_services_the_connections_to_consul_are_bounded() {
    const PLACES: usize = 40;
    let (stack, counter, _backend) = serving(300, &format!("max_connections = {PLACES}")).await;
    let asked = counter.asked_after(0);
    assert!((0..300).all(|number| asked.contains_key(&of_service(number))));
    // Beside the places: those that take turns share eight, and documents, names and status have a few.
    let most = counter.most_open();
    println!("{most} connections at most");
    assert!(most <= PLACES + 20, "{most} connections");
    // What has no place is said, with the way out.
    let status = stack
        .agent
        .api(Method::GET, "/v1/status", "")
        .await
        .unwrap()
        .text();
    assert!(status.contains("where watches share connections"), "{status}");
}

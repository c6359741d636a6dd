//! Catalog and KV as newer Consul has them: several ports of one service, and keys that are refused.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use imbl::OrdMap;
use portreeve::model::{ProblemKind, Redacted, ServiceQuery};
use portreeve::sources::agent_api::{ApiAddress, Product};
use portreeve::sources::consul::{
    ConsulClient, ConsulSettings, DocumentsWatch, LeaderElection, LeaderSettings, ServiceWatcher, TxnWrite,
};
use portreeve::translate::Compiler;
use regex::Regex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::answering::{Answer, AnsweringServer};
use crate::server::{Running, Server, quick};
use crate::world;

fn client(address: &str) -> ConsulClient {
    let address = ApiAddress::parse(Product::Consul, address, false).unwrap();
    ConsulClient::new(&ConsulSettings {
        address,
        token: Some(Redacted::new("played".to_owned())),
        ..ConsulSettings::default()
    })
    .unwrap()
}

fn watching(server: &AnsweringServer, queries: OrdMap<ServiceQuery, u64>) -> (Running, ServiceWatcher) {
    let (mut running, sender) = Running::new();
    let (watcher, task) = ServiceWatcher::new(client(&server.address), sender);
    watcher.set_interests(queries);
    running
        .tasks
        .spawn(task.with_timing(quick()).run(running.cancel.clone()));
    (running, watcher)
}

#[tokio::test]
async fn each_of_several_ports_is_known_by_its_name() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let server = AnsweringServer::start().await;
    server.put(
        "/v1/health/service/web",
        Answer::kept("health-service-multi-port"),
    );
    let (mut running, _watcher) = watching(&server, OrdMap::unit(ServiceQuery::named("web"), 0));
    let instances = running.service().await.result.unwrap();
    // The default port is the port, as one that was registered alone is.
    let ports: Vec<(&str, u16)> = instances.iter().map(|one| (&*one.address, one.port)).collect();
    assert_eq!(ports, [("10.0.0.1", 8080), ("10.0.0.2", 8081)]);
    let named: Vec<(&str, u16)> = instances[0]
        .ports
        .iter()
        .map(|(name, port)| (&**name, *port))
        .collect();
    assert_eq!(named, [("admin", 9000), ("http", 8080)]);
    assert!(instances[1].ports.is_empty());

    // A default that moves to another port is news like a port that moves.
    let moved = Answer::kept("health-service-multi-port")
        .with(
            "\"name\":\"http\",\"port\":8080",
            "\"name\":\"http\",\"port\":8090",
        )
        .at(8);
    server.put("/v1/health/service/web", moved);
    let instances = running.service().await.result.unwrap();
    assert_eq!(
        (instances[0].port, instances[0].ports.get("http")),
        (8090, Some(&8090))
    );
}

/// Since 1.10 health is served from a stream: no word of a leader or of its age, and now and then an error that means nothing.
#[tokio::test]
async fn a_stream_that_ends_behind_a_query_costs_nothing() {
    const PATH: &str = "/v1/health/service/web";
    let _ = rustls::crypto::ring::default_provider().install_default();
    let server = AnsweringServer::start().await;
    server.put(PATH, Answer::kept("health-service-multi-port"));
    let (mut running, _watcher) = watching(&server, OrdMap::unit(ServiceQuery::named("web"), 0));
    assert_eq!(running.service().await.result.unwrap().len(), 2);
    server.put(PATH, Answer::kept("health-service-stream-cancelled"));
    // It does not stand for "no instances".
    let problem = running.service().await.result.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::Unavailable, "{problem}");
    assert!(problem.message.contains("context canceled"), "{problem}");
    let moved = Answer::kept("health-service-multi-port")
        .with("\"port\":8080", "\"port\":8090")
        .at(9);
    server.put(PATH, moved);
    assert_eq!(running.service().await.result.unwrap()[0].port, 8090);
}

/// Consul CE refuses both, so that nothing may be sent that no document says.
#[tokio::test]
async fn a_namespace_and_a_partition_are_asked_for_where_a_document_says_so() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let server = AnsweringServer::start().await;
    for name in ["web", "plain"] {
        let path = format!("/v1/health/service/{name}");
        server.put(&path, Answer::kept("health-service-multi-port"));
    }
    let document = r#"
upstream "web" {
  consul {
    namespace = "shop"
    partition = "edge"
  }
}

upstream "plain" {
  consul {}
}

gateway "edge" {
  listener "web" { port = 8080 }
}

http_route "both" {
  gateways  = ["edge"]
  hostnames = ["www.example.com"]

  rule "all" {
    backend "upstream" "web" {}
    backend "upstream" "plain" {}
  }
}
"#;
    let mut snapshot = world::empty();
    world::put(&mut snapshot, [world::file("web.hcl", document)]);
    let compiler = Compiler::compile("edge", world::settings(), &snapshot);
    let asked = compiler.services().into_iter().map(|query| (query, 0u64));
    let (mut running, _watcher) = watching(&server, asked.collect());
    for _ in 0..2 {
        running.service().await.result.unwrap();
    }
    for asked in server.asked("/v1/health/service/web") {
        assert!(
            asked.contains("ns=shop") && asked.contains("partition=edge"),
            "{asked}"
        );
    }
    let plain = server.asked("/v1/health/service/plain");
    assert!(!plain.is_empty());
    for asked in plain {
        assert!(!asked.contains("ns=") && !asked.contains("partition="), "{asked}");
    }
}

/// A real Consul behind a door that refuses keys as 1.21.5 does.
struct Strict {
    address: String,
    refused: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Strict {
    async fn start(consul: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let refused = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let log = refused.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(pass_on(stream, consul, log.clone()));
            }
        });
        Self {
            address,
            refused,
            _tasks: tasks,
        }
    }

    fn refused(&self) -> Vec<String> {
        self.refused.lock().unwrap().clone()
    }
}

/// One request, so that the next one is looked at too.
async fn pass_on(mut client: TcpStream, consul: u16, refused: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    let end = loop {
        if let Some(at) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if !matches!(client.read_buf(&mut head).await, Ok(read) if read > 0) {
            return;
        }
    };
    let text = String::from_utf8_lossy(&head[..end]).into_owned();
    let length = text
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length:")?
                .trim()
                .parse()
                .ok()
        })
        .unwrap_or(0);
    while head.len() < end + length {
        if !matches!(client.read_buf(&mut head).await, Ok(read) if read > 0) {
            return;
        }
    }
    let asked = text.split(' ').nth(1).unwrap_or_default();
    if let Some(key) = keys(asked, &head[end..]).into_iter().find(|key| !is_taken(key)) {
        refused.lock().unwrap().push(key);
        let answer = Answer::kept("kv-key-refused");
        crate::answering::write(&mut client, &answer).await;
        return;
    }
    let mut server = TcpStream::connect(("127.0.0.1", consul)).await.unwrap();
    let closing = text.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    let _ = server.write_all(closing.as_bytes()).await;
    let _ = server.write_all(&head[end..]).await;
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}

/// The keys that a request names.
fn keys(asked: &str, body: &[u8]) -> Vec<String> {
    let path = asked.split('?').next().unwrap_or_default();
    if let Some(key) = path.strip_prefix("/v1/kv/") {
        return vec![key.to_owned()];
    }
    if path != "/v1/txn" {
        return Vec::new();
    }
    let operations: serde_json::Value = serde_json::from_slice(body).unwrap();
    let operations = operations.as_array().into_iter().flatten();
    operations
        .filter_map(|operation| Some(operation["KV"]["Key"].as_str()?.to_owned()))
        .collect()
}

/// An escaped character is one that the pattern does not have.
fn is_taken(key: &str) -> bool {
    let pattern = Regex::new(r"^[a-zA-Z0-9,_./\-?&=]+$").unwrap();
    let file = Regex::new(r"\.(json|txt|html|js|css|log|zip)$").unwrap();
    pattern.is_match(key) && !key.contains("..") && !file.is_match(key)
}

#[tokio::test]
async fn keys_that_some_consul_refuses_are_never_asked_for() {
    let server = Server::start().await;
    for key in ["good", "team/b"] {
        server.put(&format!("kv/portreeve/config/{key}"), key).await;
    }
    // Written before the upgrade.
    let odd = ["cr%C3%A8me", "web.json", "two%20words"];
    for key in odd {
        server.put(&format!("kv/portreeve/config/{key}"), "x").await;
    }
    let strict = Strict::start(server.port).await;
    let (mut running, sender) = Running::new();
    let watch = DocumentsWatch::new(client(&strict.address), "portreeve/config", sender);
    running
        .tasks
        .spawn(watch.with_timing(quick()).run(running.cancel.clone()));
    let update = running.documents().await;
    let mut ids: Vec<&str> = update
        .changed
        .iter()
        .map(|document| document.id.as_str())
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, ["portreeve/config/good", "portreeve/config/team/b"]);
    let problem = update.problem.unwrap();
    assert!(
        problem.message.contains("not allowed in a key") || problem.message.contains("no file extension"),
        "{problem}"
    );

    // One goes, and with it a good one, which is looked for by its key; then the others.
    server.delete("kv/portreeve/config/team/b").await;
    let update = running.documents().await;
    assert_eq!(update.removed.len(), 1);
    assert!(update.problem.is_some(), "the odd ones are still there");
    for key in odd {
        server.delete(&format!("kv/portreeve/config/{key}")).await;
    }
    while running.documents().await.problem.is_some() {}

    // Everything else that the agent asks of KV.
    let mut tasks = JoinSet::new();
    let cancel = CancellationToken::new();
    let settings = LeaderSettings::new("portreeve/leader", "node-1");
    let (election, mut leadership) = LeaderElection::new(client(&strict.address), settings);
    tasks.spawn(election.run(cancel.clone()));
    while !leadership.is_leader() {
        let change = tokio::time::timeout(Duration::from_secs(40), leadership.changed()).await;
        change.expect("a leader").unwrap();
    }
    let status = TxnWrite::Set {
        key: "portreeve/status/all".to_owned(),
        value: "x".into(),
    };
    leadership.write(&[status]).await.unwrap();
    assert!(
        client(&strict.address)
            .put_cas("portreeve/accepted/shop", "x", 0)
            .await
            .unwrap()
    );
    assert_eq!(
        client(&strict.address)
            .read_tree("portreeve/accepted/")
            .await
            .unwrap()
            .len(),
        1
    );
    cancel.cancel();
    while tasks.join_next().await.is_some() {}
    assert_eq!(strict.refused(), [""; 0]);

    // The door does refuse.
    let answer = reqwest::get(format!("http://{}/v1/kv/cr%C3%A8me", strict.address))
        .await
        .unwrap();
    assert_eq!(answer.status(), 500);
    assert_eq!(strict.refused(), ["cr%C3%A8me"]);
}

//! A prefix with so many documents that what changed is read in parts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use portreeve::model::{DocumentId, DocumentsUpdate};
use portreeve::sources::agent_api::{ApiAddress, Product};
use portreeve::sources::consul::{ConsulClient, ConsulSettings, DocumentsWatch, TxnWrite, list_documents};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::server::{Running, Server, quick};

const PREFIX: &str = "portreeve/config/";
const DOCUMENTS: usize = 2_500;

/// What everybody believes who heard every update.
#[derive(Default)]
struct Believed(BTreeMap<String, String>);

impl Believed {
    fn hear(&mut self, update: &DocumentsUpdate) {
        for document in &update.changed {
            self.0.insert(name(&document.id), document.text.to_string());
        }
        for id in &update.removed {
            self.0.remove(&name(id));
        }
    }

    async fn hear_until(&mut self, running: &mut Running, key: &str, text: &str) -> DocumentsUpdate {
        loop {
            let update = running.documents().await;
            assert!(update.problem.is_none(), "{update:?}");
            self.hear(&update);
            if self.0.get(key).is_some_and(|believed| believed == text) {
                return update;
            }
        }
    }
}

fn name(id: &DocumentId) -> String {
    id.as_str().strip_prefix(PREFIX).unwrap().to_owned()
}

fn set(key: &str, value: &str) -> TxnWrite {
    TxnWrite::Set {
        key: format!("{PREFIX}{key}"),
        value: value.to_owned().into(),
    }
}

/// The way to Consul, on which what Consul sends is counted.
struct Meter {
    port: u16,
    received: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Meter {
    async fn before(server: &Server) -> Meter {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let received = Arc::new(AtomicU64::new(0));
        let (count, consul) = (received.clone(), server.port);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((ours, _)) = listener.accept().await {
                let theirs = TcpStream::connect(("127.0.0.1", consul)).await.unwrap();
                connections.spawn(pass(ours, theirs, count.clone()));
            }
        });
        Meter {
            port,
            received,
            _tasks: tasks,
        }
    }

    fn client(&self, token: Option<&str>, server: &Server) -> ConsulClient {
        let address = ApiAddress::parse(Product::Consul, &format!("127.0.0.1:{}", self.port), false).unwrap();
        ConsulClient::new(&ConsulSettings {
            address,
            ..server.settings(token)
        })
        .unwrap()
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

async fn pass(ours: TcpStream, theirs: TcpStream, count: Arc<AtomicU64>) {
    let (mut from_agent, mut to_agent) = ours.into_split();
    let (mut from_consul, mut to_consul) = theirs.into_split();
    let asked = tokio::spawn(async move { tokio::io::copy(&mut from_agent, &mut to_consul).await });
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from_consul.read(&mut buffer).await {
        count.fetch_add(length as u64, Ordering::Relaxed);
        if to_agent.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
    asked.abort();
}

/// Many documents of a size that documents have, and the watch past its first answer.
async fn settled(server: &Server, client: ConsulClient) -> (Running, Believed) {
    let root = server.client(Some(crate::server::ROOT));
    let names: Vec<String> = (0..DOCUMENTS).map(|at| format!("routes/shop-{at:04}")).collect();
    for names in names.chunks(60) {
        let writes: Vec<TxnWrite> = names.iter().map(|name| set(name, &text_of(name))).collect();
        root.txn(&writes).await.unwrap();
    }
    let (mut running, sender) = Running::new();
    let watch = DocumentsWatch::new(client, "portreeve/config", sender).with_timing(quick());
    running.tasks.spawn(watch.run(running.cancel.clone()));
    let first = running.documents().await;
    assert_eq!(first.changed.len(), DOCUMENTS);
    assert!(first.complete && first.problem.is_none());
    let mut believed = Believed::default();
    believed.hear(&first);
    (running, believed)
}

fn text_of(name: &str) -> String {
    format!("# {name}{}", " of a size that documents have".repeat(16))
}

#[tokio::test]
async fn one_change_among_many_is_read_with_its_neighbours_only() {
    let server = Server::start().await;
    let meter = Meter::before(&server).await;
    let (mut running, mut believed) = settled(&server, meter.client(None, &server)).await;
    let whole = meter.received();
    let root = server.client(None);
    // The first poll after the first answer.
    root.txn(&[set("routes/shop-0500", "first")]).await.unwrap();
    believed
        .hear_until(&mut running, "routes/shop-0500", "first")
        .await;

    let before = meter.received();
    root.txn(&[set("routes/shop-0123", "other")]).await.unwrap();
    let update = believed
        .hear_until(&mut running, "routes/shop-0123", "other")
        .await;
    assert_eq!((update.changed.len(), update.removed.len()), (1, 0));
    let change = meter.received() - before;
    assert!(change < whole / 4, "{change} bytes for one of {whole}");

    // A name that none of the others begins like, in one transaction with one that was there, and a name that others
    // begin with.
    root.txn(&[
        set("another", "new"),
        set("routes/shop-0123", "again"),
        set("routes/shop-", "short"),
    ])
    .await
    .unwrap();
    let update = believed
        .hear_until(&mut running, "routes/shop-0123", "again")
        .await;
    let names: Vec<String> = update.changed.iter().map(|document| name(&document.id)).collect();
    assert_eq!(names, ["another", "routes/shop-", "routes/shop-0123"]);

    // Consul's UI makes such keys; then the same name again, which moves nothing.
    server.put(&format!("kv/{PREFIX}routes/folder/"), "").await;
    server.put(&format!("kv/{PREFIX}another"), "new").await;
    running.quiet_for(500).await;

    // Deleted, and deleted and there again.
    let delete = |key: &str| TxnWrite::Delete {
        key: format!("{PREFIX}{key}"),
    };
    root.txn(&[delete("another"), set("routes/shop-2499", "with it")])
        .await
        .unwrap();
    let update = believed
        .hear_until(&mut running, "routes/shop-2499", "with it")
        .await;
    assert_eq!((update.changed.len(), update.removed.len()), (1, 1));
    root.txn(&[
        delete("routes/shop-0007"),
        set("routes/shop-0007", "there again"),
        set("routes/shop-0008", "changed"),
    ])
    .await
    .unwrap();
    let update = believed
        .hear_until(&mut running, "routes/shop-0008", "changed")
        .await;
    assert_eq!((update.changed.len(), update.removed.len()), (2, 0));

    // What is no document is told by its name, and told until it is gone.
    server.put(&format!("kv/{PREFIX}routes/shop-0001.hcl"), "x").await;
    let update = running.documents().await;
    let problem = update.problem.expect("a problem").message;
    assert!(
        problem.contains("routes/shop-0001.hcl: a document's key has no file extension"),
        "{problem}"
    );
    server.delete(&format!("kv/{PREFIX}routes/shop-0001.hcl")).await;
    assert!(running.documents().await.problem.is_none());
}

/// Two documents at the two ends of the listing are always written together, while others are written all the time.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_over_two_shards_is_applied_whole() {
    let server = Server::start().await;
    let meter = Meter::before(&server).await;
    let (mut running, mut believed) = settled(&server, meter.client(None, &server)).await;
    let whole = meter.received();
    let ends = ["routes/shop-0000", "routes/shop-2499"];
    let quiet = server.client(None);
    for round in 0..20 {
        let text = format!("quiet {round}");
        quiet.txn(&ends.map(|end| set(end, &text))).await.unwrap();
        let update = believed.hear_until(&mut running, ends[0], &text).await;
        let names: Vec<String> = update.changed.iter().map(|document| name(&document.id)).collect();
        assert_eq!(names, ends);
    }
    let read = meter.received() - whole;
    assert!(read < 20 * whole / 3, "{read} bytes for 20 of {whole}");

    // One that is new, in the middle, and one at the end.
    for round in 0..10 {
        let (new, text) = (format!("routes/shop-1200-{round}"), format!("new {round}"));
        quiet.txn(&[set(&new, &text), set(ends[1], &text)]).await.unwrap();
        let update = believed.hear_until(&mut running, ends[1], &text).await;
        let names: Vec<String> = update.changed.iter().map(|document| name(&document.id)).collect();
        assert_eq!(names, [&*new, ends[1]]);
    }
    let read = meter.received() - whole;
    assert!(read < 30 * whole / 3, "{read} bytes for 30 of {whole}");

    let rounds = 100;
    let (pairs, others) = (server.client(None), server.client(None));
    let mut writers = JoinSet::new();
    writers.spawn(async move {
        for round in 0..=rounds {
            let text = format!("round {round}");
            let new = format!("routes/shop-1300-{round}");
            let [first, last] = ends.map(|end| set(end, &text));
            pairs.txn(&[first, set(&new, &text), last]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(round * 7 % 61)).await;
        }
    });
    writers.spawn(async move {
        for at in 0..rounds {
            let key = format!("routes/shop-{:04}", 1 + at * 37 % 900);
            others.txn(&[set(&key, &format!("write {at}"))]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(at * 13 % 71)).await;
        }
    });
    while believed.0[ends[1]] != format!("round {rounds}") {
        let update = running.documents().await;
        believed.hear(&update);
        assert!(
            update.removed.is_empty() && update.problem.is_none(),
            "{update:?}"
        );
        let texts = ends.map(|end| &believed.0[end]);
        assert_eq!(texts[0], texts[1]);
        if let Some(round) = texts[0].strip_prefix("round ") {
            assert!(
                believed.0.contains_key(&format!("routes/shop-1300-{round}")),
                "{round}"
            );
        }
    }
    writers.join_all().await;
    // Everything that was written is known, too.
    let listed = list_documents(&server.client(None), "portreeve/config")
        .await
        .unwrap();
    let listed: BTreeMap<String, String> = listed
        .documents
        .iter()
        .map(|document| (name(&document.id), document.text.to_string()))
        .collect();
    while believed.0 != listed {
        believed.hear(&running.documents().await);
    }
}

#[tokio::test]
async fn lost_rights_over_a_part_keep_it() {
    let server = Server::start_with_acls().await;
    let read = "key_prefix \"portreeve/config/\" { policy = \"read\" }";
    server.policy("reader", read).await;
    let (_, token) = server.token("reader").await;
    let (mut running, _) = settled(&server, server.client(Some(&token))).await;
    server
        .policy(
            "reader",
            &format!("{read}\nkey_prefix \"portreeve/config/routes/shop-05\" {{ policy = \"deny\" }}"),
        )
        .await;
    // Consul settles a poll's rights when it begins: the first write ends the poll that saw everything.
    server.put(&format!("kv/{PREFIX}routes/shop-0000"), "1").await;
    let mut update = running.documents().await;
    while update.problem.is_none() {
        assert!(update.removed.is_empty());
        server
            .put(&format!("kv/{PREFIX}routes/shop-0001"), update.changed.len())
            .await;
        update = running.documents().await;
    }
    assert!(update.removed.is_empty(), "{:?}", update.removed);
    let problem = update.problem.unwrap().message;
    assert!(
        problem.contains("100 documents vanished because the token may no longer read"),
        "{problem}"
    );

    server.policy("reader", read).await;
    while running.documents().await.problem.is_some() {}
}

/// Versions fall, and the index goes on rising: only a part that is older than what was seen in it gives it away.
#[tokio::test]
async fn what_a_restored_snapshot_took_back_is_taken_back() {
    let server = Server::start().await;
    let (mut running, mut believed) = settled(&server, server.client(None)).await;
    let root = server.client(None);
    let url = format!("http://127.0.0.1:{}/v1/snapshot", server.port);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let saved = http.get(&url).send().await.unwrap().bytes().await.unwrap();
    root.txn(&[set("routes/shop-0042", "a mistake")]).await.unwrap();
    believed
        .hear_until(&mut running, "routes/shop-0042", "a mistake")
        .await;
    let restored = http.put(&url).body(saved).send().await.unwrap();
    assert!(restored.status().is_success(), "{restored:?}");
    let wanted = text_of("routes/shop-0042");
    root.txn(&[set("routes/shop-2400", "after it")]).await.unwrap();
    while believed.0["routes/shop-0042"] != wanted || believed.0["routes/shop-2400"] != "after it" {
        believed.hear(&running.documents().await);
    }
}

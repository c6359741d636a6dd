//! plan and apply against a real Consul.

use std::path::Path;

use serde_json::{Value, json};

use crate::run::{Outcome, portreeve, write};
use crate::support::consul::Consul;
use crate::support::scratch_directory;

pub const EDGE: &str = "gateway \"edge\" {\n  listener \"web\" { port = 8080 }\n}\n";

pub fn route(name: &str, upstream: &str) -> String {
    format!(
        "http_route \"{name}\" {{\n  gateways  = [\"edge\"]\n  hostnames = [\"{name}.example.com\"]\n\n  rule \"all\" {{\n    backend \"upstream\" \"{upstream}\" {{}}\n  }}\n}}\n"
    )
}

pub fn upstream(name: &str, port: u16) -> String {
    format!("upstream \"{name}\" {{\n  static {{ addresses = [\"10.0.0.1:{port}\"] }}\n}}\n")
}

pub struct Bench {
    pub consul: Consul,
    directory: tempfile::TempDir,
}

impl Bench {
    pub async fn start() -> Self {
        Self {
            consul: Consul::start().await,
            directory: scratch_directory("apply"),
        }
    }

    pub fn run(&self, arguments: &[&str]) -> Outcome {
        let address = format!("-consul-address={}", self.consul.address());
        let all: Vec<&str> = arguments.iter().copied().chain([address.as_str()]).collect();
        portreeve(self.directory.path(), &all)
    }

    pub fn file(&self, path: &str, text: &str) {
        write(self.directory.path(), &[(path, text)]);
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plan_and_apply() {
    let bench = Bench::start().await;
    bench.file("conf/edge.hcl", EDGE);
    bench.file(
        "conf/teams/a/shop.hcl",
        &(route("shop", "shop") + &upstream("shop", 80)),
    );
    insta::assert_snapshot!("plan_create", bench.run(&["plan", "conf"]).shown(&[]));
    let refused = bench.run(&["apply", "conf"]);
    assert!(
        refused.code == 1 && refused.error.contains("-auto-approve"),
        "{}",
        refused.shown(&[])
    );
    assert_eq!(
        bench.consul.keys("portreeve").await,
        Vec::<String>::new(),
        "nothing without consent"
    );
    let applied = bench.run(&["apply", "conf", "-auto-approve"]);
    assert_eq!(applied.code, 0, "{}", applied.shown(&[]));
    assert_eq!(
        bench.consul.keys("portreeve").await,
        ["portreeve/config/edge", "portreeve/config/teams/a/shop"]
    );
    assert_eq!(
        bench.consul.get("portreeve/config/edge").await.as_deref(),
        Some(EDGE)
    );
    let nothing = bench.run(&["plan", "conf"]);
    assert_eq!(
        (nothing.code, nothing.out.as_str()),
        (0, "Plan: 0 to create, 0 to update, 0 to delete, 2 unchanged.\n")
    );
    assert!(
        bench
            .run(&["apply", "conf", "-y"])
            .out
            .ends_with("Nothing to do.\n")
    );

    // A change of one object of two; a key without a file is left alone until -prune.
    bench.file(
        "conf/teams/a/shop.hcl",
        &(route("shop", "shop") + &upstream("shop", 81)),
    );
    bench
        .consul
        .put("portreeve/config/stray", upstream("stray", 1))
        .await;
    insta::assert_snapshot!("plan_update", bench.run(&["plan", "conf"]).shown(&[]));
    let planned: Value = serde_json::from_str(&bench.run(&["plan", "conf", "-json", "-prune"]).out).unwrap();
    let actions: Vec<&Value> = planned["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| &change["action"])
        .collect();
    assert_eq!(actions, ["update", "delete"]);
    assert_eq!(
        planned["changes"][0]["objects"],
        json!([{ "action": "update", "kind": "upstream", "name": "shop" }])
    );
    let applied = bench.run(&["apply", "conf", "-y", "-prune"]);
    assert_eq!(applied.code, 0, "{}", applied.shown(&[]));
    assert_eq!(bench.consul.get("portreeve/config/stray").await, None);

    // A prefix of one's own.
    assert_eq!(bench.run(&["plan", "conf", "-prefix=other"]).code, 1);
}

/// What would not hold together is refused before anything is written; what was bad before is not held against it.
#[tokio::test(flavor = "multi_thread")]
async fn refuses_what_does_not_validate() {
    let bench = Bench::start().await;
    bench.consul.put("portreeve/config/edge", EDGE).await;
    bench.consul.put("portreeve/config/broken", "nonsense {").await;
    bench
        .consul
        .put(
            "portreeve/config/shop",
            route("shop", "shop") + &upstream("shop", 80),
        )
        .await;
    bench.file("conf/new.hcl", &route("new", "shpo"));
    insta::assert_snapshot!("plan_invalid", bench.run(&["plan", "conf"]).shown(&[]));
    let refused = bench.run(&["apply", "conf", "-y"]);
    assert_eq!(refused.code, 1, "{}", refused.shown(&[]));
    assert_eq!(bench.consul.get("portreeve/config/new").await, None);

    // In the tree as it will be, the reference is found, and the broken neighbour is not ours.
    bench.file("conf/new.hcl", &route("new", "shop"));
    assert_eq!(bench.run(&["apply", "conf", "-y"]).code, 0);

    // Pruning what others use is refused, too.
    bench.file("conf/edge.hcl", EDGE);
    bench.file("conf/broken.hcl", "");
    let pruned = bench.run(&["apply", "conf", "-y", "-prune"]);
    assert_eq!(pruned.code, 1, "{}", pruned.shown(&[]));
    assert!(
        pruned.out.contains("no document declares the upstream \"shop\""),
        "{}",
        pruned.out
    );
    assert!(bench.consul.get("portreeve/config/shop").await.is_some());

    // What agents may refuse by their settings is said.
    bench.file(
        "local/a.hcl",
        "upstream \"local\" {\n  static { addresses = [\"127.0.0.1:80\"] }\n}\n",
    );
    let warned = bench.run(&["plan", "local"]);
    assert_eq!(warned.code, 1);
    assert!(warned.out.contains("warning[not-allowed]"), "{}", warned.out);
    assert!(warned.error.contains("not checked"), "{}", warned.error);
    assert!(
        !bench.run(&["plan", "conf"]).error.contains("not checked"),
        "nothing there is bounded"
    );

    // With the agents' settings it is known: refused, or in order.
    bench.file(
        "strict.hcl",
        "kv_documents {\n  vault_paths = [\"secret/edge/\"]\n}\n",
    );
    bench.file("open.hcl", "kv_documents {\n  allow_loopback = true\n}\n");
    let refused = bench.run(&["apply", "local", "-y", "-config=strict.hcl"]);
    assert!(
        refused.code == 1 && refused.out.contains("error[not-allowed]"),
        "{}",
        refused.shown(&[])
    );
    assert_eq!(bench.consul.get("portreeve/config/a").await, None);
    let planned = bench.run(&["plan", "local", "-config=open.hcl"]);
    assert!(
        planned.code == 1 && !planned.out.contains("not-allowed") && planned.error.is_empty(),
        "{}",
        planned.shown(&[])
    );
    bench.file(
        "secret/c.hcl",
        "certificate \"c\" {\n  vault_kv {\n    mount = \"secret\"\n    path  = \"other/c\"\n  }\n}\n",
    );
    assert!(
        bench.run(&["plan", "secret"]).error.contains("not checked"),
        "some agents' settings refuse it"
    );
    let refused = bench.run(&["plan", "secret", "-config=strict.hcl"]);
    assert!(
        refused.code == 255 && refused.out.contains("error[not-allowed]"),
        "{}",
        refused.shown(&[])
    );
    bench.file(
        "variable/v.hcl",
        "certificate \"v\" {\n  nomad_variable { path = \"shop/v\" }\n}\n",
    );
    let noted = bench.run(&["plan", "variable"]).error;
    assert!(
        noted.contains("Nomad variables") && noted.contains("not checked"),
        "{noted}"
    );
    bench.file(
        "own.hcl",
        "kv_documents {\n  nomad_variables = [\"nomad/jobs/portreeve\"]\n}\n",
    );
    let refused = bench.run(&["plan", "variable", "-config=own.hcl"]);
    assert!(
        refused.code == 255 && refused.out.contains("error[not-allowed]"),
        "{}",
        refused.shown(&[])
    );

    // Where they name the gateways, what others show is for others to allow.
    let settings =
        |gateway: &str| format!("gateways = [\"{gateway}\"]\nkv_documents {{\n  nomad_variables = []\n}}\n");
    bench.file("edge.hcl", &settings("edge"));
    bench.file("inner.hcl", &settings("inner"));
    bench.file(
        "variable/inner.hcl",
        "gateway \"inner\" {\n  listener \"secure\" {\n    port     = 8443\n    protocol = \"https\"\n    tls { certificates = [\"v\"] }\n  }\n}\n",
    );
    let planned = bench.run(&["plan", "variable", "-config=edge.hcl"]);
    assert!(
        planned.code == 1 && !planned.out.contains("error") && planned.error.is_empty(),
        "{}",
        planned.shown(&[])
    );
    let refused = bench.run(&["plan", "variable", "-config=inner.hcl"]);
    assert!(
        refused.code == 255 && refused.out.contains("error[not-allowed]"),
        "{}",
        refused.shown(&[])
    );
}

/// What somebody put into a document's place is named, and mended as any other change is.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_takes_the_place_of_what_is_no_document() {
    let bench = Bench::start().await;
    bench.file("conf/shop.hcl", &upstream("shop", 80));
    for key in ["portreeve/config/shop", "portreeve/config/stray"] {
        bench.consul.put(key, vec![0xff, 0xfe]).await;
    }
    let planned = bench.run(&["plan", "conf", "-prune"]);
    assert!(
        planned
            .out
            .contains("Plan: 0 to create, 1 to update, 0 to delete, 0 unchanged."),
        "{}",
        planned.shown(&[])
    );
    assert!(
        planned
            .error
            .contains("portreeve/config/shop is no document: not UTF-8"),
        "{}",
        planned.error
    );
    let applied = bench.run(&["apply", "conf", "-y", "-prune"]);
    assert_eq!(applied.code, 0, "{}", applied.shown(&[]));
    assert_eq!(
        bench.consul.get("portreeve/config/shop").await,
        Some(upstream("shop", 80))
    );
    assert_eq!(
        bench.consul.keys("portreeve/config").await.len(),
        2,
        "what no file names is left alone"
    );
    assert_eq!(bench.run(&["plan", "conf"]).code, 0);
}

/// Somebody else's write between our read and our write: nothing is written, theirs stays.
#[tokio::test(flavor = "multi_thread")]
async fn lost_compare_and_set() {
    use portreeve::sources::consul::{ConsulClient, ConsulSettings, TxnWrite};
    let bench = Bench::start().await;
    bench.file("conf/a.hcl", &upstream("a", 1));
    bench.file("conf/b.hcl", &upstream("b", 1));
    // The race itself: a proxy stands between us and Consul, and writes before it hands the transaction on.
    let proxy = RacingProxy::start(bench.consul.address()).await;
    let address = format!("-consul-address={}", proxy.address);
    let directory = bench.path().to_owned();
    let outcome =
        tokio::task::spawn_blocking(move || portreeve(&directory, &["apply", "conf", "-y", &address]))
            .await
            .unwrap();
    assert_eq!(outcome.code, 1, "{}", outcome.shown(&[]));
    insta::assert_snapshot!("lost_cas", outcome.error);
    assert_eq!(
        bench.consul.get("portreeve/config/b").await.as_deref(),
        Some("# theirs")
    );
    assert_eq!(
        bench.consul.get("portreeve/config/a").await,
        None,
        "nothing half done"
    );
    // The client says the same of a single stale index.
    let settings =
        ConsulSettings::from_env(|name| (name == "CONSUL_HTTP_ADDR").then(|| bench.consul.address()))
            .unwrap();
    let client = ConsulClient::new(&settings).unwrap();
    let write = TxnWrite::Cas {
        key: "portreeve/config/b".to_owned(),
        value: "ours".into(),
        index: 1,
    };
    assert!(client.txn(&[write]).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_one_transaction() {
    let bench = Bench::start().await;
    for index in 0..65 {
        bench.file(
            &format!("conf/u{index:02}.hcl"),
            &upstream(&format!("u{index:02}"), 1000 + index),
        );
    }
    let refused = bench.run(&["apply", "conf", "-y"]);
    insta::assert_snapshot!("too_many", refused.error);
    assert_eq!(refused.code, 1);
    assert_eq!(bench.consul.keys("portreeve").await, Vec::<String>::new());
    let applied = bench.run(&["apply", "conf", "-y", "-batched"]);
    assert_eq!(applied.code, 0, "{}", applied.shown(&[]));
    assert_eq!(applied.out.matches("Transaction of").count(), 2);
    assert_eq!(bench.consul.keys("portreeve").await.len(), 65);

    // By size: three documents of 200 KiB are 800 KiB of JSON.
    let comment = format!("# {}\n", "x".repeat(200 * 1024));
    for index in 0..3 {
        bench.file(
            &format!("large/l{index}.hcl"),
            &(comment.clone() + &upstream(&format!("l{index}"), 1)),
        );
    }
    assert_eq!(bench.run(&["apply", "large", "-y"]).code, 1);
    let applied = bench.run(&["apply", "large", "-y", "-batched"]);
    assert_eq!(applied.code, 0, "{}", applied.shown(&[]));
    bench.file("huge/h.hcl", &format!("# {}\n", "x".repeat(400 * 1024)));
    let refused = bench.run(&["apply", "huge", "-y", "-batched"]);
    assert!(
        refused.code == 1 && refused.error.contains("too large"),
        "{}",
        refused.error
    );
}

/// What stands between us and Consul ends while a transaction is answered: it is written, and nobody says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_told_with_what_is_known() {
    let bench = Bench::start().await;
    for index in 0..130 {
        let name = format!("u{index:03}");
        bench.file(&format!("conf/{name}.hcl"), &upstream(&name, 1000 + index));
    }
    for (nth, known) in [
        (
            2,
            "64 of 130 changes are written; of the next 64, one transaction, it is not known",
        ),
        // All but the last two stand by then.
        (1, "it is not known whether the transaction is written"),
    ] {
        let proxy = CuttingProxy::start(bench.consul.address(), nth).await;
        let address = format!("-consul-address={}", proxy.address);
        let directory = bench.path().to_owned();
        let outcome = tokio::task::spawn_blocking(move || {
            portreeve(&directory, &["apply", "conf", "-y", "-batched", &address])
        })
        .await
        .unwrap();
        assert_eq!(outcome.code, 1, "{}", outcome.shown(&[]));
        assert!(outcome.error.contains(known), "{}", outcome.error);
        assert!(
            !outcome.error.contains("the rest is not"),
            "that is not known: {}",
            outcome.error
        );
        assert_eq!(outcome.error.contains("the last 2 are not written"), nth == 2);
        let keys = if nth == 2 { 128 } else { 130 };
        assert_eq!(bench.consul.keys("portreeve").await.len(), keys);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_away_or_refusing() {
    let directory = scratch_directory("apply");
    write(directory.path(), &[("conf/a.hcl", EDGE)]);
    let outcome = portreeve(directory.path(), &["plan", "conf", "-consul-address=127.0.0.1:1"]);
    insta::assert_snapshot!("consul_away", outcome.shown(&[]));
    let consul = Consul::start_with_acl().await;
    let address = format!("-consul-address={}", consul.address());
    for command in ["plan", "apply"] {
        let outcome = portreeve(directory.path(), &[command, "conf", &address]);
        assert_eq!(outcome.code, if command == "plan" { 255 } else { 1 });
        assert!(
            outcome.error.contains("403") && outcome.error.contains("key_prefix"),
            "{}",
            outcome.error
        );
    }
}

/// Passes bytes on, and puts a key of its own before the first transaction.
struct RacingProxy {
    address: String,
}

impl RacingProxy {
    async fn start(consul: String) -> Self {
        use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
        use tokio::net::{TcpListener, TcpStream};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let consul = consul.clone();
                tokio::spawn(async move {
                    let server = TcpStream::connect(&consul).await.unwrap();
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    tokio::spawn(async move { copy(&mut from_server, &mut to_client).await });
                    let mut buffer = vec![0; 64 * 1024];
                    while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
                        if buffer[..read].windows(7).any(|window| window == b"/v1/txn") {
                            let theirs = crate::support::http::api_client()
                                .put(format!("http://{consul}/v1/kv/portreeve/config/b"))
                                .body("# theirs");
                            theirs.send().await.unwrap();
                        }
                        if to_server.write_all(&buffer[..read]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address }
    }
}

/// Passes bytes on, and ends the connection in place of the answer to one transaction.
struct CuttingProxy {
    address: String,
}

impl CuttingProxy {
    async fn start(consul: String, nth: usize) -> Self {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicUsize, Ordering};

        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        use tokio::net::{TcpListener, TcpStream};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let transactions = Arc::new(AtomicUsize::new(0));
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (consul, transactions) = (consul.clone(), transactions.clone());
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(&consul).await.unwrap();
                    let (mut asked, mut answered) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
                    let mut is_last = false;
                    loop {
                        tokio::select! {
                            Ok(read @ 1..) = client.read(&mut asked) => {
                                let is_transaction = asked[..read].windows(7).any(|window| window == b"/v1/txn");
                                if is_transaction {
                                    is_last = transactions.fetch_add(1, Ordering::SeqCst) + 1 == nth;
                                }
                                server.write_all(&asked[..read]).await.unwrap();
                            }
                            Ok(read @ 1..) = server.read(&mut answered) => {
                                if is_last {
                                    return;
                                }
                                client.write_all(&answered[..read]).await.unwrap();
                            }
                            else => return,
                        }
                    }
                });
            }
        });
        Self { address }
    }
}

/// `head`, or `grep -q`: what is to be done is done, and the exit code says how it went.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_leaves_changes_nothing() {
    let bench = Bench::start().await;
    bench.file("conf/edge.hcl", EDGE);
    let remark = "# a long difference to show\n".repeat(4_000);
    bench.file(
        "conf/shop.hcl",
        &(remark + &route("shop", "shop") + &upstream("shop", 80)),
    );
    let program = env!("CARGO_BIN_EXE_portreeve");
    let address = bench.consul.address();
    let ends_with = |command: &str| {
        let script = format!(
            "set -o pipefail; {program} {command} conf -consul-address={address} | true; echo ${{PIPESTATUS[0]}}"
        );
        let output = std::process::Command::new("bash")
            .args(["-c", &script])
            .current_dir(bench.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.to_lowercase().contains("pipe"), "{command}: {said}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(ends_with("plan"), "1", "there are changes");
    assert_eq!(ends_with("apply -y"), "0");
    assert_eq!(
        bench.consul.keys("portreeve/config").await,
        ["portreeve/config/edge", "portreeve/config/shop"]
    );
    assert_eq!(ends_with("plan"), "0");
}

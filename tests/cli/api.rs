//! The API over its real sockets, with a view built by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::Method;
use portreeve::admin::{Api, Listener, Recorder, ServeError};
use portreeve::config::{Config, Permissions};
use portreeve::envoy::ResourceKind;
use portreeve::hcl::Limits;
use portreeve::model::{
    CertificateMaterial, CertificateUpdate, Document, DocumentId, DocumentsUpdate, Health, Instance,
    Observation, Redacted, ServiceQuery, ServiceUpdate, Shared, Weights,
};
use portreeve::pipeline::{GatewayView, KeyWishes, View};
use portreeve::snapshot::Snapshot;
use portreeve::status::SourceReading;
use portreeve::translate::{Compiler, Settings};
use portreeve::xds::Streams;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::run::{Outcome, portreeve};
use crate::support::http::{Answer, over_socket};
use crate::support::scratch_directory;

const DOCUMENT: &str = r#"gateway "edge" {
  listener "web" { port = 8080 }

  listener "secure" {
    port     = 8443
    protocol = "https"

    tls { certificates = ["www"] }
  }
}

certificate "www" {
  vault_kv {
    mount = "secret"
    path  = "edge/www"
  }
}

http_route "shop" {
  gateways  = ["edge"]
  hostnames = ["shop.example.com"]

  rule "orders" {
    backend "consul" "orders" {}
  }
}

http_route "lost" {
  gateways  = ["nowhere"]
  hostnames = ["lost.example.com"]

  rule "all" {
    backend "upstream" "nobody" {}
  }
}
"#;

fn document(key: &str, order: u64, text: &str) -> Document {
    Document {
        id: DocumentId::Kv(format!("portreeve/config/{key}").into()),
        text: text.into(),
        order,
        version: order + 100,
    }
}

fn documents(documents: Vec<Document>) -> Observation {
    let mut update = DocumentsUpdate::from_source("kv");
    update.changed = documents;
    update.complete = true;
    Observation::Documents(update)
}

/// A gateway with a service and a certificate; one document is bad and its last good version in service, one never
/// was good.
pub fn view(published: bool) -> View {
    let config = Config::new(Permissions::default(), Limits::default());
    let mut snapshot = Snapshot::new(config, BTreeSet::from(["kv".into()]));
    snapshot.apply(documents(vec![
        document("edge", 1, DOCUMENT),
        document("fallen", 2, "policy \"p\" { timeout = \"1s\" }\n"),
        document("never", 3, "policy \"q\" {\n  tiemout = \"1s\"\n}\n"),
    ]));
    snapshot.apply(documents(vec![document(
        "fallen",
        2,
        "policy \"p\" { timeout = 1 }\n",
    )]));
    snapshot.apply(Observation::Service(ServiceUpdate {
        query: ServiceQuery::named("orders"),
        result: Ok(Arc::new([
            instance("a", Health::Passing),
            instance("b", Health::Critical),
        ])),
    }));
    let www = snapshot.config.certificate("www").unwrap().query.clone().unwrap();
    snapshot.apply(Observation::Certificate(CertificateUpdate {
        query: www,
        result: Ok(Arc::new(CertificateMaterial {
            chain: "-----BEGIN CERTIFICATE-----".into(),
            private_key: Some(Arc::new(Redacted::new("s3cret-key".to_owned()))),
            serial: "01:02".into(),
            names: vec!["shop.example.com".into()],
            not_before: 0,
            not_after: 4_000_000_000,
            crl: None,
        })),
    }));
    let settings = Settings {
        bind_address: "127.0.0.1".parse().unwrap(),
        hold_pending: false,
        same_node: Default::default(),
    };
    let gateways = vec![GatewayView {
        name: "edge".into(),
        compiler: Compiler::compile("edge", settings, &snapshot),
        published_at: published.then(|| UNIX_EPOCH + Duration::from_secs(1_800_000_000)),
        withheld: Vec::new(),
        waiting_for: if published {
            Vec::new()
        } else {
            vec!["service orders".to_owned()]
        },
    }];
    View {
        snapshot,
        gateways,
        revision: 7,
        stale: false,
    }
}

fn instance(id: &str, health: Health) -> Instance {
    Instance {
        node: "n1".into(),
        id: id.into(),
        destination: None,
        created: 0,
        address: "10.0.0.1".into(),
        port: 80,
        ports: Shared::default(),
        tells_ports_apart: false,
        health,
        weights: Weights::default(),
        tags: Shared::default(),
        meta: Shared::default(),
    }
}

struct Served {
    socket: PathBuf,
    view: watch::Sender<Arc<View>>,
    refreshed: Arc<AtomicUsize>,
    recorder: Recorder,
    stop: CancellationToken,
    directory: tempfile::TempDir,
}

async fn serve(published: bool) -> Served {
    let directory = scratch_directory("api");
    let socket = directory.path().join("api.sock");
    let (sender, view) = watch::channel(Arc::new(view(published)));
    let refreshed = Arc::new(AtomicUsize::new(0));
    let (stop, recorder) = (CancellationToken::new(), Recorder::new());
    let counter = refreshed.clone();
    let api = Api {
        node: "node-1".into(),
        version: "0.0.0".into(),
        started_at: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        view,
        streams: Streams::default(),
        envoys: BTreeMap::new(),
        wanted: KeyWishes::default(),
        readings: Arc::new(|| {
            vec![
                SourceReading::new("kv portreeve/config", true, Some(Duration::from_millis(1500)))
                    .counted(10, 1),
                SourceReading::new("service orders", true, Some(Duration::from_secs(2))).counted(3, 0),
                SourceReading::new("service x", false, None).counted(4, 4),
                SourceReading::new("directory /a\"}\nevil 1", false, None).counted(1, 1),
            ]
        }),
        refresh: Arc::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        }),
        recorder: recorder.clone(),
    };
    let listener = Listener::unix(&socket).await.unwrap();
    tokio::spawn(listener.serve(api, stop.clone()));
    Served {
        socket,
        view: sender,
        refreshed,
        recorder,
        stop,
        directory,
    }
}

impl Served {
    async fn get(&self, path: &str) -> Answer {
        over_socket(&self.socket, Method::GET, path, "").await.unwrap()
    }

    /// The CLI against this API, off this runtime's threads.
    async fn cli(&self, arguments: &[&str]) -> Outcome {
        let socket = format!("-api-socket={}", self.socket.display());
        let all: Vec<String> = arguments
            .iter()
            .map(|one| (*one).to_owned())
            .chain([socket])
            .collect();
        let directory = self.directory.path().to_owned();
        let run = move || portreeve(&directory, &all.iter().map(String::as_str).collect::<Vec<_>>());
        tokio::task::spawn_blocking(run).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness() {
    let served = serve(false).await;
    let answer = served.get("/v1/ready").await;
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.json(),
        json!({ "ready": false, "missing": ["gateway \"edge\": service orders"], "stale": false })
    );
    assert_eq!(served.get("/ready").await.status, 503);
    assert_eq!(served.cli(&["status"]).await.code, 1);
    served.view.send_replace(Arc::new(view(true)));
    assert_eq!(served.get("/ready").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn status() {
    let served = serve(true).await;
    let answer = served.get("/v1/status").await;
    insta::assert_json_snapshot!("status_json", answer.json());
    let shown = served.cli(&["status"]).await;
    insta::assert_snapshot!("status_tables", shown.shown(&[]));
    let json: Value = serde_json::from_str(&served.cli(&["status", "-json"]).await.out).unwrap();
    assert_eq!(json["documents"], answer.json()["documents"]);
    assert_eq!(
        served.cli(&["proxy", "status"]).await.out,
        "No Envoy is connected.\n"
    );
}

/// A page of a large one has the trouble, and says what it leaves out.
#[tokio::test(flavor = "multi_thread")]
async fn status_in_part() {
    let served = serve(true).await;
    let whole = served.get("/v1/status").await.json();
    let part = served.get("/v1/status?limit=1").await.json();
    assert_eq!(part["counts"], whole["counts"]);
    assert_eq!(part["counts"]["documents"], json!({ "total": 3, "troubled": 2 }));
    assert_eq!(whole["documents"][0]["phase"], "in_service");
    assert_eq!(part["documents"].as_array().unwrap().len(), 1);
    assert_eq!(part["documents"][0]["phase"], "last_good");
    assert_eq!(part["gateways"], whole["gateways"]);
    let bad = served.get("/v1/status?limit=none").await;
    assert_eq!(bad.status, 400);
    assert_eq!(
        bad.json()["error"]["message"],
        "limit=\"none\" is not a whole number from 1 on"
    );

    let shown = served.cli(&["status", "-limit", "1"]).await;
    insta::assert_snapshot!("status_in_part", shown.shown(&[]));
    let json = served.cli(&["status", "-json", "-limit", "1"]).await;
    let json: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json["documents"], part["documents"]);
    let zero = served.cli(&["status", "-limit", "0"]).await;
    assert!(
        zero.code == 1 && zero.error.contains("0 is not in 1.."),
        "{}",
        zero.shown(&[])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_and_diagnostics() {
    let served = serve(true).await;
    let documents = served.get("/v1/documents").await.json();
    let phases: Vec<&Value> = documents
        .as_array()
        .unwrap()
        .iter()
        .map(|document| &document["phase"])
        .collect();
    assert_eq!(phases, ["in_service", "last_good", "out_of_service"]);
    assert_eq!(documents[0]["text"], DOCUMENT);
    assert_eq!(
        documents[1]["text_in_service"],
        "policy \"p\" { timeout = \"1s\" }\n"
    );
    let one = served.get("/v1/documents?document=portreeve/config/edge").await;
    assert_eq!(one.json().as_array().unwrap().len(), 1);
    assert_eq!(served.get("/v1/documents?document=x").await.status, 404);
    let codes: Vec<String> = served
        .get("/v1/diagnostics")
        .await
        .json()
        .as_array()
        .unwrap()
        .iter()
        .map(|diagnostic| diagnostic["code"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(codes, ["unknown-key", "invalid-value", "not-attached"]);
    // plan compares with what a running agent has.
    crate::run::write(served.directory.path(), &[("conf/edge.hcl", DOCUMENT)]);
    let plan = served.cli(&["plan", "-agent", "conf/edge.hcl"]).await;
    assert_eq!(
        plan.code,
        255,
        "the document has an unattached route: {}",
        plan.shown(&[])
    );
    let attached = DOCUMENT
        .replace("nowhere", "edge")
        .replace("upstream\" \"nobody", "consul\" \"x");
    crate::run::write(served.directory.path(), &[("conf/edge.hcl", &attached)]);
    let plan = served.cli(&["plan", "-agent", "conf/edge.hcl"]).await;
    assert_eq!(plan.code, 1, "{}", plan.shown(&[]));
    assert!(plan.out.contains("~ http_route \"lost\""), "{}", plan.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn explains() {
    let served = serve(true).await;
    let by_get = served
        .get("/v1/explain?url=http%3A%2F%2Fshop.example.com%2F&header=x-a:1")
        .await;
    let body = json!({ "url": "http://shop.example.com/", "headers": [["x-a", "1"]] }).to_string();
    let by_post = over_socket(&served.socket, Method::POST, "/v1/explain", body)
        .await
        .unwrap();
    assert_eq!(by_get.json(), by_post.json());
    assert_eq!(
        by_get.json()[0]["endpoints"],
        json!([["consul/orders", ["10.0.0.1:80"]]])
    );
    let shown = served.cli(&["explain", "GET", "http://shop.example.com/"]).await;
    insta::assert_snapshot!("explain_live", shown.shown(&[]));
    assert_eq!(served.get("/v1/explain").await.status, 400);
    let bad = over_socket(&served.socket, Method::POST, "/v1/explain", "{\"ulr\": 1}")
        .await
        .unwrap();
    assert_eq!(bad.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_without_secrets() {
    let served = serve(true).await;
    let answer = served.get("/v1/resources").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["secrets"].as_array().unwrap().len(), 1);
    for path in ["/v1/resources", "/v1/status", "/v1/documents", "/v1/metrics"] {
        assert!(
            !served.get(path).await.text().contains("s3cret"),
            "{path} shows a private key"
        );
    }
    let one = served
        .get("/v1/resources?gateway=edge&kind=cluster&name=consul/orders")
        .await
        .json();
    assert_eq!(one["clusters"][0]["name"], "consul/orders");
    let wrong = served.get("/v1/resources?kind=clutser").await;
    assert_eq!(wrong.status, 400);
    assert_eq!(served.get("/v1/resources?gateway=x").await.status, 404);
    let shown = served.cli(&["proxy", "config", "-kind=cluster"]).await;
    assert!(shown.out.contains("consul/orders"), "{}", shown.shown(&[]));
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics() {
    let served = serve(true).await;
    served.recorder.published(Duration::from_millis(3));
    served.recorder.refused(&"edge".into(), ResourceKind::Listener);
    served.recorder.envoy_started(&"edge".into());
    let text = served.get("/metrics").await.text();
    insta::assert_snapshot!("metrics", text);
    let reference = portreeve::admin::metrics_reference();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let name = if kind == "counter" {
            format!("{name}_total")
        } else {
            name.to_owned()
        };
        assert!(
            reference.contains(&format!("| `{name}` | {kind} |")),
            "{name} is not in metrics.md"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands() {
    let served = serve(true).await;
    let refreshed = served.cli(&["refresh"]).await;
    assert_eq!((refreshed.code, served.refreshed.load(Ordering::Relaxed)), (0, 1));
    let restart = served.cli(&["envoy", "restart"]).await;
    insta::assert_snapshot!("restart_without_envoy", restart.shown(&[]));
    let dump = served.cli(&["proxy", "config", "-dump"]).await;
    assert_eq!(dump.code, 1, "{}", dump.shown(&[]));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_paths_methods_and_sizes() {
    let served = serve(true).await;
    let unknown = served.get("/v1/statsu").await;
    assert_eq!(unknown.status, 404);
    assert_eq!(unknown.json()["error"]["fix"], "did you mean /v1/status?");
    let method = over_socket(&served.socket, Method::POST, "/v1/status", "")
        .await
        .unwrap();
    assert_eq!(method.status, 405);
    assert_eq!(method.json()["error"]["fix"], "use GET");
    let parameter = served.get("/v1/resources?gatway=edge").await;
    assert_eq!(parameter.json()["error"]["fix"], "did you mean \"gateway\"?");
    let large = over_socket(&served.socket, Method::POST, "/v1/explain", vec![b' '; 65 * 1024])
        .await
        .unwrap();
    assert_eq!(large.status, 413);
}

/// Every path of the OpenAPI document answers, and what it says of parameters is true.
#[tokio::test(flavor = "multi_thread")]
async fn openapi_is_complete() {
    let served = serve(true).await;
    let document = served.get("/v1/openapi.json").await.json();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 12, "{paths:?}");
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().unwrap() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let answer = over_socket(&served.socket, method.clone(), path, "{}")
                .await
                .unwrap();
            let status = answer.status.as_u16().to_string();
            assert!(
                operation["responses"].get(&status).is_some() || status == "400",
                "{method} {path} answers {status}, which is not listed"
            );
        }
    }
    let reference = portreeve::admin::api_reference();
    for path in paths.keys() {
        assert!(
            reference.contains(&format!(" {path}\n")),
            "{path} is not in api.md"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets() {
    let served = serve(true).await;
    assert_eq!(
        std::fs::metadata(&served.socket).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(matches!(
        Listener::unix(&served.socket).await,
        Err(ServeError::InUse { .. })
    ));
    // An idle connection does not hold up the stop, and the file goes with the listener.
    let _idle = tokio::net::UnixStream::connect(&served.socket).await.unwrap();
    served.stop.cancel();
    let deadline = SystemTime::now() + Duration::from_secs(5);
    while served.socket.exists() {
        assert!(SystemTime::now() < deadline, "the socket's file stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A killed agent's file is taken over; a file that is no socket is not.
    let stale = served.directory.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    Listener::unix(&stale).await.unwrap();
    let file = served.directory.path().join("file");
    std::fs::write(&file, "kept").unwrap();
    assert!(matches!(
        Listener::unix(&file).await,
        Err(ServeError::NotASocket { .. })
    ));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
    let everywhere = "0.0.0.0:0".parse().unwrap();
    assert!(matches!(
        Listener::tcp(everywhere).await,
        Err(ServeError::NotLoopback(_))
    ));
}

/// The port has no authentication: it shows readiness and metrics, nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn the_port_shows_little() {
    let served = serve(true).await;
    let (_, view) = watch::channel(served.view.borrow().clone());
    let api = Api {
        node: "n".into(),
        version: "0".into(),
        started_at: UNIX_EPOCH,
        view,
        streams: Streams::default(),
        envoys: BTreeMap::new(),
        wanted: KeyWishes::default(),
        readings: Arc::new(Vec::new),
        refresh: Arc::new(|| {}),
        recorder: Recorder::new(),
    };
    let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.tcp_address().unwrap();
    tokio::spawn(listener.serve(api, served.stop.clone()));
    let client = crate::support::http::api_client();
    for (path, status) in [
        ("/ready", 200),
        ("/v1/ready", 200),
        ("/metrics", 200),
        ("/v1/metrics", 200),
        ("/v1/status", 404),
        ("/v1/documents", 404),
        ("/v1/refresh", 404),
        ("/v1/openapi.json", 404),
    ] {
        let answer = client
            .get(format!("http://{address}{path}"))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), status, "{path}");
    }
}

//! The conformance suite for HTTP/2 against our server, on the socket and on the port with TLS. No package has the program:
//! it is built by hand (docs/contributing/testing.md) and named by `H2SPEC_BIN`; without it this says so.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use portreeve::envoy::ResourceKind::Cluster;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::process::Command;
use tokio_rustls::TlsConnector;

use crate::harness::{Served, publisher, set_of};
use crate::mutual_tls::{Authority, Pair, Port, dns};

const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// What fails on every gRPC server that answers at once: a status without a message is one HEADERS frame, where h2spec waits
/// for DATA; and a stream that is over when the next one comes does not count as concurrent. The last one passes where the
/// streams happen to be slower than h2spec. Our own tests: every stream reads on while its answers are under way, and
/// `streams_beyond_the_limit_wait` counts streams that stay.
const EXPECTED: [&str; 3] = [
    "generic/2: Sends a WINDOW_UPDATE frame on half-closed (remote) stream",
    "generic/2: Sends a PRIORITY frame on half-closed (remote) stream",
    "http2/5.1.2: Sends HEADERS frames that causes their advertised concurrent stream limit to be exceeded",
];

#[tokio::test(flavor = "multi_thread")]
async fn h2spec_finds_nothing_of_ours() {
    let Some(program) = std::env::var_os("H2SPEC_BIN").map(PathBuf::from) else {
        eprintln!("h2spec: absent: H2SPEC_BIN names no program");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (_publisher, receiver) = publisher(Some(set_of(&[(Cluster, "a", "1")])));
    let served = Served::start(folder.path(), receiver.clone()).await;
    let address = relay(To::Socket(served.socket.clone())).await;
    holds(&program, folder.path(), "the socket", address).await;
    served.end().await;

    let port = Port::serve_edge(receiver).await;
    let own = port.clients.issue(vec![dns("edge.example")]);
    let address = relay(To::Tls(port.address, connector(&own, &port.servers))).await;
    holds(&program, folder.path(), "the port with TLS", address).await;
    port.end().await;
}

/// Runs it, and compares what failed.
async fn holds(program: &Path, folder: &Path, what: &str, address: SocketAddr) {
    let report = folder.join("report.xml");
    let output = Command::new(program)
        .args([
            "--strict",
            "--path",
            METHOD,
            "--port",
            &address.port().to_string(),
        ])
        .arg("--junit-report")
        .arg(&report)
        .output()
        .await
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    let summary = shown.lines().last().unwrap_or_default();
    eprintln!("h2spec, {what}: {summary}");
    let failed = failed(&std::fs::read_to_string(&report).unwrap());
    for case in &failed {
        eprintln!("h2spec, {what}: failed: {case}");
    }
    let expected = BTreeSet::from(EXPECTED.map(str::to_owned));
    let own: Vec<_> = failed.difference(&expected).collect();
    assert!(own.is_empty() && shown.contains("147 tests"), "{own:#?}\n{shown}");
}

/// The failed cases of its report, with their sections.
fn failed(report: &str) -> BTreeSet<String> {
    let mut failed = BTreeSet::new();
    let mut case = String::new();
    for line in report.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("<testcase package=\"") {
            let (package, rest) = rest.split_once("\" classname=\"").unwrap();
            case = format!("{package}: {}", rest.split_once('"').unwrap().0);
        }
        if line.contains("<failure") || line.contains("<error") {
            failed.insert(case.clone());
        }
    }
    failed
}

/// What h2spec cannot reach by itself: it knows ports alone, and shows no certificate.
#[derive(Clone)]
enum To {
    Socket(PathBuf),
    Tls(SocketAddr, TlsConnector),
}

fn connector(own: &Pair, servers: &Authority) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(servers.pem().as_bytes()).unwrap())
        .unwrap();
    let certificate = CertificateDer::from_pem_slice(own.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(own.private_key.as_bytes()).unwrap();
    let mut config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// A port that leads there.
async fn relay(to: To) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(pass(stream, to.clone()));
        }
    });
    address
}

/// How a connection ends is what some cases are about: either end sees it.
async fn pass(mut stream: TcpStream, to: To) -> std::io::Result<()> {
    match to {
        To::Socket(path) => {
            let mut other = UnixStream::connect(path).await?;
            tokio::io::copy_bidirectional(&mut stream, &mut other).await?;
        }
        To::Tls(address, connector) => {
            let name = "agent.example".try_into().expect("a name");
            let other = TcpStream::connect(address).await?;
            let mut other = connector.connect(name, other).await?;
            tokio::io::copy_bidirectional(&mut stream, &mut other).await?;
        }
    }
    Ok(())
}

#[test]
fn a_failed_case_is_read_from_the_report() {
    let report = "<testsuite name=\"a\" errors=\"1\">\n<testcase package=\"http2/5.1\" classname=\"Sends &#34;a&#34;\" \
                  time=\"1\"></testcase>\n<testcase package=\"http2/5.2\" classname=\"Sends b\" time=\"1\">\n<error>x\n</error>\n";
    assert_eq!(failed(report), BTreeSet::from(["http2/5.2: Sends b".to_owned()]));
}

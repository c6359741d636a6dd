//! Mutual TLS: the client certificate decides about the gateway.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use portreeve::envoy::ResourceKind::Cluster;
use portreeve::envoy::ResourceSet;
use portreeve::model::Redacted;
use portreeve::xds::{
    Event, Gateways, Identities, Identity, Limits, ListenError, Peer, RefusedReason, San, Server,
    TcpSettings, TlsSettings,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::pki_types::pem::PemObject as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Status};

use crate::harness::{Client, PATIENCE, ask, names, node, publisher, set_of};

pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

pub struct Pair {
    pub certificate: String,
    pub private_key: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
        }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn issue(&self, names: Vec<SanType>) -> Pair {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        // By default it is named as the authority is, and would pass for its own.
        params.distinguished_name.push(DnType::CommonName, "leaf");
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Pair {
            certificate: certificate.pem(),
            private_key: key.serialize_pem(),
        }
    }
}

pub fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

pub fn tls_settings(clients: &Authority, servers: &Authority, identities: Vec<Identity>) -> TlsSettings {
    let own = servers.issue(vec![dns("agent.example")]);
    TlsSettings {
        client_ca: clients.pem().into(),
        certificate: own.certificate.into(),
        private_key: Arc::new(Redacted::new(own.private_key)),
        identities: Identities(identities),
    }
}

pub fn identity(san: San, gateways: &[&str]) -> Identity {
    Identity {
        san,
        gateways: gateways.iter().map(|name| (*name).into()).collect(),
    }
}

async fn connect(
    address: std::net::SocketAddr,
    servers: &Authority,
    own: Option<&Pair>,
) -> Result<Channel, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(servers.pem()))
        .domain_name("agent.example");
    if let Some(pair) = own {
        tls = tls.identity(tonic::transport::Identity::from_pem(
            &pair.certificate,
            &pair.private_key,
        ));
    }
    Endpoint::from_shared(format!("https://{address}"))?
        .tls_config(tls)?
        .connect()
        .await
}

async fn first_answer(channel: Channel, cluster: &str) -> Result<Vec<String>, Status> {
    let mut client = Client::open(channel, node(cluster), ask(Cluster, &[])).await?;
    let response = client.next().await?;
    Ok(names(&response).into_iter().map(str::to_owned).collect())
}

#[tokio::test]
async fn the_certificate_decides() {
    _ = rustls::crypto::ring::default_provider().install_default();
    let (clients, servers, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let identities = vec![
        identity(San::Uri("spiffe://example/edge".into()), &["edge"]),
        identity(San::Dns("both.example".into()), &["edge", "inner"]),
    ];
    let (change_tls, tls) = watch::channel(Arc::new(tls_settings(&clients, &servers, identities)));
    let gateways = Gateways::default();
    let (_edge, receiver) = publisher(Some(set_of(&[(Cluster, "of-edge", "1")])));
    gateways.insert("edge", receiver);
    let (_inner, receiver) = publisher(Some(set_of(&[(Cluster, "of-inner", "1")])));
    gateways.insert("inner", receiver);
    let (server, mut events) = Server::new(gateways, Limits::default(), 64);
    let listener = TcpSettings {
        address: ([127, 0, 0, 1], 0).into(),
        tls,
    }
    .bind()
    .await
    .unwrap();
    let address = listener.tcp_address().unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn({
        let (server, stop) = (server.clone(), stop.clone());
        async move { server.serve(listener, stop).await }
    });

    // By URI: the only gateway of the certificate, asked for or not.
    let edge = clients.issue(vec![uri("spiffe://example/edge")]);
    for cluster in ["edge", ""] {
        let channel = connect(address, &servers, Some(&edge)).await.unwrap();
        assert_eq!(first_answer(channel, cluster).await.unwrap(), ["of-edge"]);
    }
    // Another node's gateway.
    let channel = connect(address, &servers, Some(&edge)).await.unwrap();
    let status = first_answer(channel, "inner").await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(
        status.message().contains("inner") && status.message().contains("edge"),
        "{status:?}"
    );

    // By DNS name: two gateways, so it must say which.
    let both = clients.issue(vec![dns("Both.example")]);
    for (cluster, expected) in [("edge", Some("of-edge")), ("inner", Some("of-inner")), ("", None)] {
        let channel = connect(address, &servers, Some(&both)).await.unwrap();
        let answer = first_answer(channel, cluster).await;
        assert_eq!(
            answer.ok().map(|names| names[0].clone()).as_deref(),
            expected,
            "{cluster:?}"
        );
    }

    // Without a certificate, and with one that no line lists: a status that says so.
    for (own, says) in [
        (None, "no client certificate"),
        (Some(clients.issue(vec![dns("other.example")])), "other.example"),
    ] {
        let channel = connect(address, &servers, own.as_ref()).await.unwrap();
        let status = first_answer(channel, "edge").await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains(says), "{status:?}");
    }

    // Signed by somebody else: no connection.
    let forged = strangers.issue(vec![uri("spiffe://example/edge")]);
    let answer = match connect(address, &servers, Some(&forged)).await {
        Ok(channel) => first_answer(channel, "edge")
            .await
            .map_err(|status| status.to_string()),
        Err(error) => Err(error.to_string()),
    };
    assert!(answer.is_err());
    let mut identity_refusals = 0;
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(300), events.recv()).await {
        if let Event::Refused {
            peer,
            reason: RefusedReason::Identity,
            ..
        } = event
        {
            assert!(matches!(&*peer, Peer::Tls { .. }));
            identity_refusals += 1;
        }
    }
    assert_eq!(identity_refusals, 3);

    // An open stream whose line leaves the table ends with it.
    let channel = connect(address, &servers, Some(&edge)).await.unwrap();
    let mut open = Client::open(channel, node("edge"), ask(Cluster, &[]))
        .await
        .unwrap();
    open.next().await.unwrap();
    change_tls.send_modify(|settings| {
        let mut other = (**settings).clone();
        other.identities.0.remove(0);
        *settings = Arc::new(other);
    });
    assert_eq!(open.next().await.unwrap_err().code(), Code::Unauthenticated);

    // The settings change while the port stays open: other clients, another table. What is unusable is not taken.
    change_tls.send_modify(|settings| {
        let mut broken = (**settings).clone();
        broken.certificate = "no PEM".into();
        *settings = Arc::new(broken);
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let renewed = tls_settings(
        &strangers,
        &servers,
        vec![identity(San::Uri("spiffe://example/edge".into()), &["inner"])],
    );
    change_tls.send_replace(Arc::new(renewed));
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let answer = match connect(address, &servers, Some(&forged)).await {
            Ok(channel) => first_answer(channel, "").await.ok(),
            Err(_) => None,
        };
        match answer {
            Some(names) => break assert_eq!(names, ["of-inner"]),
            None => assert!(std::time::Instant::now() < deadline),
        }
    }
    stop.cancel();
    serving.await.unwrap();
}

/// Sockets from an address of their own, each of which has said this and says no more.
async fn half_said(to: SocketAddr, from: u8, count: usize, said: &[u8]) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for _ in 0..count {
        let mut stream = connect_from(from, to).await;
        stream.write_all(said).await.unwrap();
        all.push(stream);
    }
    all
}

async fn connect_from(from: u8, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, from], 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// An Envoy without a certificate, which says nothing more after its handshake.
async fn stranger(from: u8, to: SocketAddr, servers: &Authority) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = connect_from(from, to).await;
    let name = "agent.example".try_into().expect("a name");
    TlsConnector::from(without_certificate(servers))
        .connect(name, stream)
        .await
}

fn without_certificate(servers: &Authority) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    let pem = servers.pem();
    let root = rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    roots.add(root).unwrap();
    let mut config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// The first message of a TLS client.
fn hello(servers: &Authority) -> Vec<u8> {
    let name = "agent.example".try_into().unwrap();
    let mut client = rustls::ClientConnection::new(without_certificate(servers), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// A port with TLS that serves the gateway `edge` to who shows the name `edge.example`.
pub struct Port {
    pub address: SocketAddr,
    pub clients: Authority,
    pub servers: Authority,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    _settings: watch::Sender<Arc<TlsSettings>>,
    _events: mpsc::Receiver<Event>,
}

impl Port {
    pub async fn serve_edge(resources: watch::Receiver<Option<Arc<ResourceSet>>>) -> Self {
        _ = rustls::crypto::ring::default_provider().install_default();
        let (clients, servers) = (Authority::new(), Authority::new());
        let identities = vec![identity(San::Dns("edge.example".into()), &["edge"])];
        let (settings, tls) = watch::channel(Arc::new(tls_settings(&clients, &servers, identities)));
        let gateways = Gateways::default();
        gateways.insert("edge", resources);
        let (server, events) = Server::new(gateways, Limits::default(), 4096);
        let address = ([127, 0, 0, 1], 0).into();
        let listener = TcpSettings { address, tls }.bind().await.unwrap();
        let address = listener.tcp_address().unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn({
            let stop = stop.clone();
            async move { server.serve(listener, stop).await }
        });
        Self {
            address,
            clients,
            servers,
            stop,
            serving,
            _settings: settings,
            _events: events,
        }
    }

    pub async fn end(self) {
        self.stop.cancel();
        self.serving.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_go_on_shaking_hands_holds_up_nobody() {
    let (_edge, receiver) = publisher(Some(set_of(&[(Cluster, "of-edge", "1")])));
    let port = Port::serve_edge(receiver).await;
    let (address, clients, servers) = (port.address, &port.clients, &port.servers);
    let edge = clients.issue(vec![dns("edge.example")]);
    let whole = hello(servers);
    for (from, said) in [(2, &whole[..1]), (3, &whole[..whole.len() - 1]), (4, &whole[..])] {
        // Given up only after 10 s: it tells whether they were waited for.
        let mut oldest = TcpStream::connect(address).await.unwrap();
        oldest.write_all(&whole[..1]).await.unwrap();
        // More than handshakes are made at a time.
        let silent = half_said(address, from, 300, said).await;
        let answer = async {
            let channel = connect(address, servers, Some(&edge)).await.unwrap();
            first_answer(channel, "edge").await.unwrap()
        };
        let mut nothing = [0];
        tokio::select! {
            names = answer => assert_eq!(names, ["of-edge"]),
            _ = oldest.read(&mut nothing) => panic!("{} bytes of a first message shut the port", said.len()),
        }
        drop(silent);
    }
    port.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_have_nothing_keeps_its_place_and_is_let_go() {
    let (_edge, receiver) = publisher(Some(set_of(&[(Cluster, "of-edge", "1")])));
    let port = Port::serve_edge(receiver).await;
    let (address, servers) = (port.address, &port.servers);
    // Both ends of each connection are this process's.
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < 4096) {
        let current = Some(limit.maximum.map_or(4096, |most| most.min(4096)));
        setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
    }

    // All places of one address. A part of them with a handshake: all would take a slow machine as long as the first ones last.
    let mut strangers = Vec::new();
    for _ in 0..100 {
        strangers.push(stranger(5, address, servers).await.unwrap());
    }
    let silent = half_said(address, 5, 412, b"").await;
    assert!(stranger(5, address, servers).await.is_err(), "one more is let in");
    let edge = port.clients.issue(vec![dns("edge.example")]);
    let channel = connect(address, servers, Some(&edge)).await.unwrap();
    assert_eq!(first_answer(channel, "edge").await.unwrap(), ["of-edge"]);

    // Without a word of TLS: an error as well as an end.
    let mut said = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, strangers[0].read_to_end(&mut said)).await;
    assert!(ended.is_ok(), "the oldest is still served");
    stranger(5, address, servers).await.expect("its place is free");
    drop((strangers, silent));
    port.end().await;
}

#[tokio::test]
async fn unusable_settings_are_an_error_at_the_start() {
    let (clients, servers) = (Authority::new(), Authority::new());
    let good = tls_settings(&clients, &servers, Vec::new());
    for broken in [
        TlsSettings {
            client_ca: "".into(),
            ..good.clone()
        },
        TlsSettings {
            certificate: "no PEM".into(),
            ..good.clone()
        },
        TlsSettings {
            private_key: tls_settings(&clients, &servers, Vec::new()).private_key,
            ..good.clone()
        },
    ] {
        let tls = watch::channel(Arc::new(broken)).1;
        let error = TcpSettings {
            address: ([127, 0, 0, 1], 0).into(),
            tls,
        }
        .bind()
        .await
        .err()
        .unwrap();
        assert!(matches!(error, ListenError::Tls { .. }), "{error:?}");
    }
}

//! What a TLS client may speak: versions, ALPN, SNI.

use std::sync::Arc;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion, version};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::stack::{Options, Stack, until};
use crate::support::client::{Client, Request};
use crate::support::pki::parse_certificates;

const HOST: &str = "www.example.com";

const DOCUMENT: &str = r#"
gateway "edge" {
  listener "usual" {
    port     = $HTTPS
    protocol = "https"
    tls { certificates = ["www"] }
  }

  listener "newest" {
    port     = $HTTP
    protocol = "https"
    tls {
      certificates = ["www"]
      min_version  = "1.3"
    }
  }
}

certificate "www" {
  vault_pki {
    mount       = "pki_int"
    role        = "edge"
    common_name = "www.example.com"
  }
}

http_route "www" {
  gateways  = ["edge"]
  hostnames = ["www.example.com"]

  rule "all" {
    direct_response {
      status = 200
      body   = "secure"
    }
  }
}
"#;

struct Dialer {
    roots: String,
    versions: Vec<&'static SupportedProtocolVersion>,
    alpn: Vec<&'static str>,
    sni: bool,
}

impl Dialer {
    async fn dial(&self, port: u16) -> std::io::Result<TlsStream<TcpStream>> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(parse_certificates(&self.roots));
        let mut config = ClientConfig::builder_with_protocol_versions(&self.versions)
            .with_root_certificates(store)
            .with_no_client_auth();
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config.enable_sni = self.sni;
        let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
        let mut stream = TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from(HOST).unwrap(), tcp)
            .await?;
        // TLS 1.3 lets a client think it is done before the server has refused it.
        stream.flush().await?;
        Ok(stream)
    }

    async fn version(&self, port: u16) -> Option<ProtocolVersion> {
        self.dial(port).await.ok()?.get_ref().1.protocol_version()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_versions_alpn_and_clients_without_sni() {
    let stack = Stack::start(Options {
        vault: true,
        ..Options::default()
    })
    .await;
    stack.put("www", DOCUMENT).await;
    let root = stack.vault.as_ref().unwrap().read("pki_int/cert/ca").await;
    let roots = root["data"]["certificate"].as_str().unwrap().to_owned();
    let (usual, newest) = (stack.https, stack.http);
    for port in [usual, newest] {
        let client = Client::https(port, &roots);
        until(&client, &Request::get(HOST, "/"), "https", |reply| {
            reply.status == 200
        })
        .await;
    }
    let dialer = |versions: &[&'static SupportedProtocolVersion], alpn: &[&'static str], sni: bool| Dialer {
        roots: roots.clone(),
        versions: versions.to_vec(),
        alpn: alpn.to_vec(),
        sni,
    };

    // Versions.
    let both = dialer(&[&version::TLS12, &version::TLS13], &[], true);
    let old = dialer(&[&version::TLS12], &[], true);
    assert_eq!(both.version(usual).await, Some(ProtocolVersion::TLSv1_3));
    assert_eq!(old.version(usual).await, Some(ProtocolVersion::TLSv1_2));
    assert_eq!(both.version(newest).await, Some(ProtocolVersion::TLSv1_3));
    let refused = old.dial(newest).await.expect_err("1.2 where 1.3 is the oldest");
    assert!(format!("{refused:?}").contains("ProtocolVersion"), "{refused:?}");
    for (name, wire) in [("1.0", 1), ("1.1", 2), ("1.2", 3)] {
        let alert = hello(usual, wire).await;
        // Fatal (2) protocol_version (70). 1.2 shows that the greeting as such is in order.
        let is_refused = alert.starts_with(&[21, 3]) && alert.ends_with(&[2, 70]);
        assert_eq!(is_refused, wire < 3, "TLS {name}: {alert:?}");
        if wire == 3 {
            assert_eq!(alert.first(), Some(&22), "a handshake: {alert:?}");
        }
    }

    // ALPN: h2 before http/1.1, whatever the client's order; either alone; no offer means HTTP/1.1.
    for (offer, taken) in [
        (&["http/1.1", "h2"][..], Some("h2")),
        (&["h2"], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&[], None),
    ] {
        let stream = dialer(&[&version::TLS12, &version::TLS13], offer, true)
            .dial(usual)
            .await
            .unwrap();
        let agreed = stream.get_ref().1.alpn_protocol().map(String::from_utf8_lossy);
        assert_eq!(agreed.as_deref(), taken, "{offer:?}");
        if taken == Some("h2") {
            assert_eq!(over_h2(stream).await, (200, "secure".to_owned()));
        }
    }

    // A client that names nobody.
    let silent = dialer(&[&version::TLS12, &version::TLS13], &[], false)
        .dial(usual)
        .await;
    assert!(silent.is_err(), "no SNI, no certificate");
}

async fn over_h2(stream: TlsStream<TcpStream>) -> (u16, String) {
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get(format!("https://{HOST}/"));
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let reply = sender.send_request(request).await.unwrap();
    let status = reply.status().as_u16();
    let body = reply.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// Greets by hand as a client whose newest version is `0x03`, `minor`: no library at hand speaks the old ones. Returns
/// the first record of the answer.
async fn hello(port: u16, minor: u8) -> Vec<u8> {
    let sized = |bytes: Vec<u8>| [(bytes.len() as u16).to_be_bytes().to_vec(), bytes].concat();
    let extension = |number: u16, body: Vec<u8>| [number.to_be_bytes().to_vec(), sized(body)].concat();
    let name = [vec![0], sized(HOST.as_bytes().to_vec())].concat();
    let mut extensions = vec![
        extension(0, sized(name)),
        extension(10, sized(vec![0, 29, 0, 23])),
        extension(11, vec![1, 0]),
    ];
    if minor == 3 {
        // ECDSA with SHA-256.
        extensions.push(extension(13, sized(vec![4, 3])));
    }
    // ECDHE-ECDSA with AES: of TLS 1.0, and of 1.2.
    let suites = vec![0xc0, 0x09, 0xc0, 0x0a, 0xc0, 0x2b];
    let body = [
        vec![3, minor],
        vec![7; 32],
        vec![0],
        sized(suites),
        vec![1, 0],
        sized(extensions.concat()),
    ]
    .concat();
    let length = (body.len() as u32).to_be_bytes()[1..].to_vec();
    let record = [vec![22, 3, 1], sized([vec![1], length, body].concat())].concat();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(&record).await.unwrap();
    let mut head = [0; 5];
    stream.read_exact(&mut head).await.unwrap();
    let mut rest = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
    stream.read_exact(&mut rest).await.unwrap();
    [head.to_vec(), rest].concat()
}

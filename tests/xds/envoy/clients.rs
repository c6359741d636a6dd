//! A listener that asks clients for certificates, and Envoy not told yet whose are good.

use std::io::{Error, Result};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::process::Backend;
use super::resources::{asking_listener, authorities, eds_cluster, endpoints, routes};
use super::{BOTH, Gateway, SECOND};
use crate::harness::PATIENCE;
use crate::mutual_tls::{Authority, Pair, dns};
use crate::ports::free_port;

/// The status line, of a client with this certificate or none.
async fn get(port: u16, server: &Authority, identity: Option<&Pair>) -> Result<String> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(server.pem().as_bytes()).unwrap())
        .unwrap();
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(pair.private_key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from("a.example").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let request = "GET / HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    answer
        .lines()
        .next()
        .map(str::to_owned)
        .ok_or_else(|| Error::other("closed"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authorities_that_never_come_let_in_nobody() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    for variant in BOTH {
        let (server, clients) = (Authority::new(), Authority::new());
        let shown = server.issue(vec![dns("a.example")]);
        let good = clients.issue(vec![dns("client.example")]);
        let (backend, port) = (Backend::start("one").await, free_port());
        let mut gateway = Gateway::start(
            variant,
            vec![
                eds_cluster("shop", SECOND),
                endpoints("shop", backend.port),
                asking_listener("web", port, &shown.certificate, &shown.private_key),
                routes("web", "shop"),
            ],
        )
        .await;
        // Envoy stops waiting for them, and opens the port.
        let opens = async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(SECOND / 10).await;
            }
        };
        tokio::time::timeout(PATIENCE, opens)
            .await
            .expect("the port opens");
        for identity in [None, Some(&good)] {
            let answer = get(port, &server, identity).await;
            assert!(
                answer.is_err(),
                "{variant:?}: let in without authorities: {answer:?}"
            );
        }
        gateway.publish(vec![authorities("clients", &clients.pem())], &[]);
        let is_let_in = async {
            while !get(port, &server, Some(&good))
                .await
                .is_ok_and(|line| line.contains("200"))
            {
                tokio::time::sleep(SECOND / 10).await;
            }
        };
        tokio::time::timeout(PATIENCE, is_let_in)
            .await
            .expect("a good client is let in");
        assert!(
            get(port, &server, None).await.is_err(),
            "{variant:?}: no certificate"
        );
        gateway.served.end().await;
    }
}

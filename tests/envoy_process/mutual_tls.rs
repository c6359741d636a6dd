//! Towards a remote agent: Envoy shows its certificate, checks the server's name, and takes up renewed files.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use portreeve::envoy::bootstrap::{ServerName, XdsEndpoint, XdsTls};
use portreeve::envoy_process::{StopMode, start_or_adopt};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::gateway::Gateway;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    // Else all certificates have rcgen's default subject, and the leaf looks self-signed.
    params
        .distinguished_name
        .push(DnType::CommonName, "test authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Certificate and key as PEM.
fn issue(authority: &Authority, name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    (
        params.signed_by(&key, authority).unwrap().pem(),
        key.serialize_pem(),
    )
}

/// As a renewal must be done: both files are replaced by a rename.
fn install(directory: &Path, (certificate, key): (String, String)) {
    for (name, content) in [("key.pem", key), ("cert.pem", certificate)] {
        let new = directory.join(format!("{name}.new"));
        std::fs::write(&new, content).unwrap();
        std::fs::rename(new, directory.join(name)).unwrap();
    }
}

/// Accepts connections, tells which client came or why a handshake failed, and hangs up.
fn serve(listener: TcpListener, config: ServerConfig) -> mpsc::UnboundedReceiver<Result<Vec<u8>, String>> {
    let (seen, receiver) = mpsc::unbounded_channel();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let result = match acceptor.accept(stream).await {
                Ok(stream) => {
                    let connection = stream.get_ref().1;
                    assert_eq!(connection.alpn_protocol(), Some(&b"h2"[..]));
                    assert_eq!(
                        connection.protocol_version(),
                        Some(rustls::ProtocolVersion::TLSv1_3)
                    );
                    Ok(connection.peer_certificates().unwrap()[0].to_vec())
                }
                Err(error) => Err(error.to_string()),
            };
            if seen.send(result).is_err() {
                return;
            }
        }
    });
    receiver
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewed_certificates_are_taken_up_and_a_wrong_server_is_refused() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let gateway = Gateway::new();
    let authority = authority();
    let (server_certificate, server_key) = issue(&authority, "agent.example.com");
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(server_certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(server_key.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut clients = serve(listener, config);

    let files = gateway.directory.path().join("tls");
    std::fs::create_dir(&files).unwrap();
    std::fs::write(files.join("ca.pem"), authority.pem()).unwrap();
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
    let first = issue(&authority, "node-1");
    let first_der = der(&first.0);
    install(&files, first);

    let mut settings = gateway.settings();
    let tls = |name: &str| XdsTls {
        ca_file: files.join("ca.pem"),
        certificate_file: files.join("cert.pem"),
        key_file: files.join("key.pem"),
        server_name: ServerName::Dns(name.to_owned()),
        sds_directory: gateway.directory.path().join("run"),
    };
    let endpoint = |name| XdsEndpoint::Tcp {
        address: "127.0.0.1".to_owned(),
        port,
        tls: tls(name),
    };
    settings.bootstrap.xds = endpoint("agent.example.com");
    let handle = start_or_adopt(settings.clone()).await.unwrap();
    let wait = Duration::from_secs(20);
    let seen = tokio::time::timeout(wait, clients.recv())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(seen, first_der);

    let second = issue(&authority, "node-1");
    let second_der = der(&second.0);
    install(&files, second);
    // The server hangs up each time, Envoy comes again within a second.
    let renewed = tokio::time::timeout(wait, async {
        while clients.recv().await.unwrap().ok().as_ref() != Some(&second_der) {}
    });
    renewed.await.expect("the renewed certificate is shown");
    handle.stop(StopMode::Now).await;

    settings.bootstrap.xds = endpoint("someone-else.example.com");
    while clients.try_recv().is_ok() {}
    let handle = start_or_adopt(settings).await.unwrap();
    let refused = tokio::time::timeout(wait, clients.recv()).await.unwrap().unwrap();
    println!("a server with another name: {refused:?}");
    let stats = handle
        .admin()
        .stats("^cluster.portreeve_xds.ssl.fail_verify_san$")
        .await
        .unwrap();
    assert!(stats.values().sum::<u64>() >= 1, "{stats:?}");
    handle.stop(StopMode::Now).await;
}

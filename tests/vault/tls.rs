//! Whom the client trusts, over real TLS on loopback.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::response::Json;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use portreeve::model::{KvVersion, ProblemKind};
use portreeve::sources::vault::{SettingsError, VaultClient, VaultFault, VaultSettings};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::rig::token;

/// A server whose certificate is for `vault.service.consul` only; its address and its authority's PEM.
async fn server() -> (SocketAddr, String) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = authority.self_signed(&authority_key).unwrap().pem();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["vault.service.consul".to_owned()]).unwrap();
    let leaf = leaf
        .signed_by(&key, &Issuer::from_params(&authority, &authority_key))
        .unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().fallback(|| async {
        Json(json!({"data": {"ttl": 0, "data": {"a": "x"}, "metadata": {"version": 1}}}))
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, service) = (acceptor.clone(), TowerToHyperService::new(app.clone()));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (address, pem)
}

async fn read(change: impl FnOnce(&mut VaultSettings), address: SocketAddr) -> Result<(), VaultFault> {
    let mut settings = VaultSettings::new(format!("https://{address}"), token("t"));
    change(&mut settings);
    let (client, session) = VaultClient::new(settings).unwrap();
    tokio::spawn(session.run(CancellationToken::new()));
    client.read_kv(KvVersion::V2, "secret", "www").await.map(drop)
}

#[tokio::test]
async fn a_server_without_tls_is_told_as_such() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new()).await });
    let _ = rustls::crypto::ring::default_provider().install_default();
    let fault = read(|_| {}, address).await.unwrap_err();
    let problem = fault.problem();
    assert!(
        problem.message.contains("the server there answers without TLS"),
        "{problem:?}"
    );
    assert!(
        problem
            .fix
            .unwrap()
            .starts_with("Write http:// in Vault's address")
    );
}

#[tokio::test]
async fn only_the_right_name_under_the_right_authority() {
    let (address, pem) = server().await;
    let (_, other_pem) = server().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, &pem).unwrap();
    let name = Some("vault.service.consul".to_owned());

    read(
        |settings| (settings.ca_file, settings.tls_server_name) = (Some(file.clone()), name.clone()),
        address,
    )
    .await
    .unwrap();
    let directory = Some(directory.path().to_owned());
    read(
        |settings| (settings.ca_path, settings.tls_server_name) = (directory, name.clone()),
        address,
    )
    .await
    .unwrap();
    read(|settings| settings.tls_skip_verify = true, address)
        .await
        .unwrap();

    let wrong_name = read(|settings| settings.ca_pem = Some(pem.clone()), address)
        .await
        .unwrap_err();
    let wrong_authority = read(
        |settings| (settings.ca_pem, settings.tls_server_name) = (Some(other_pem), name),
        address,
    )
    .await
    .unwrap_err();
    for (fault, expected) in [
        (wrong_name, "not valid for name"),
        (wrong_authority, "invalid peer certificate"),
    ] {
        assert_eq!(fault.kind(), ProblemKind::Unavailable);
        assert!(fault.to_string().contains(expected), "{fault}");
        assert!(fault.problem().fix.is_some_and(|fix| fix.contains("ca_file")));
    }
}

#[test]
fn unusable_trust_is_told_at_the_start() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let build = |change: fn(&mut VaultSettings)| {
        let mut settings = VaultSettings::new("https://127.0.0.1:1", token("t"));
        change(&mut settings);
        VaultClient::new(settings).err().unwrap()
    };
    let absent = build(|settings| settings.ca_file = Some(PathBuf::from("/absent/ca.pem")));
    assert!(matches!(absent, SettingsError::File { .. }), "{absent}");
    let empty = build(|settings| settings.ca_pem = Some("hello".to_owned()));
    assert!(matches!(empty, SettingsError::Pem { .. }), "{empty}");
    let half = build(|settings| settings.client_cert = Some(PathBuf::from("/absent/cert.pem")));
    assert_eq!(half, SettingsError::ClientCertificateHalf);
}

//! Ways to reach Consul: unix socket, TLS with names and client certificates, HTTP/2, a wrong address.

use std::collections::BTreeSet;
use std::time::Duration;

use imbl::OrdMap;
use portreeve::model::{ProblemKind, Redacted, ServiceQuery};
use portreeve::sources::agent_api::{ApiAddress, Product};
use portreeve::sources::consul::{ConsulClient, ConsulSettings, ServiceWatcher, service_names};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};

use crate::server::{Running, Server, quick};

#[tokio::test]
async fn unix_socket() {
    let server = Server::start_with(
        false,
        "addresses { http = \"127.0.0.1 unix://{dir}/consul.sock\" }",
    )
    .await;
    let socket = format!("unix://{}/consul.sock", server.path().display());
    let settings = ConsulSettings {
        address: ApiAddress::parse(Product::Consul, &socket, false).unwrap(),
        ..Default::default()
    };
    let client = ConsulClient::new(&settings).unwrap();
    assert!(client.put_cas("a", "1", 0).await.unwrap());
    assert!(client.read_key("a").await.unwrap().is_some());
    assert_eq!(
        service_names(&client).await.unwrap(),
        ["consul".into()],
        "not by way of rs-consul"
    );
}

/// Short-lived agent certificates: the pair that was read at the start ends, and its successor is taken up.
#[tokio::test]
async fn a_rotated_client_certificate_is_taken_up_without_a_restart() {
    let material = tempfile::tempdir().unwrap();
    let ca = authority(material.path());
    issue(material.path(), &ca, "server.dc1.consul", LONG);
    let path = |name: &str| material.path().join(name);
    let extra = format!(
        "ca_file = \"{0}/ca.pem\"\ncert_file = \"{0}/server.dc1.consul.pem\"\nkey_file = \"{0}/server.dc1.consul.key\"\n\
         verify_incoming_https = true",
        material.path().display()
    );
    let mut server = Server::start_with(false, &extra).await;
    // Not before the server is there: its start takes seconds of this life.
    issue(material.path(), &ca, "client", Duration::from_secs(8));
    let client = ConsulClient::new(&ConsulSettings {
        address: ApiAddress::parse(
            Product::Consul,
            &format!("https://127.0.0.1:{}", server.https_port),
            false,
        )
        .unwrap(),
        ca_file: Some(path("ca.pem")),
        client_cert: Some(path("client.pem")),
        client_key: Some(path("client.key")),
        tls_server_name: Some("server.dc1.consul".to_owned()),
        ..Default::default()
    })
    .unwrap();
    assert!(client.put_cas("a", "1", 0).await.unwrap());

    // No connection of before is left, and the pair ends.
    tokio::time::sleep(Duration::from_secs(9)).await;
    server.restart().await;
    let error = client.read_key("a").await.expect_err("an expired certificate");
    assert_eq!(error.kind(), ProblemKind::Unavailable, "{error}");

    // Half of a rotation: the new certificate beside the old key.
    let old_key = std::fs::read(path("client.key")).unwrap();
    issue(material.path(), &ca, "client", LONG);
    let new_key = std::fs::read(path("client.key")).unwrap();
    std::fs::write(path("client.key"), old_key).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(client.read_key("a").await.is_err(), "the pair does not fit");

    // The other half.
    std::fs::write(path("next"), new_key).unwrap();
    std::fs::rename(path("next"), path("client.key")).unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while let Err(error) = client.read_key("a").await {
        assert!(tokio::time::Instant::now() < deadline, "never taken up: {error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A CA, a server certificate for `server.dc1.consul` alone, and a client certificate.
fn certificates(directory: &std::path::Path) {
    let ca = authority(directory);
    for name in ["server.dc1.consul", "client"] {
        issue(directory, &ca, name, LONG);
    }
}

pub const LONG: Duration = Duration::from_secs(24 * 3600);

pub type Authority = CertifiedIssuer<'static, KeyPair>;

pub fn authority(directory: &std::path::Path) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(directory.join("ca.pem"), ca.pem()).unwrap();
    ca
}

pub fn issue(directory: &std::path::Path, ca: &Authority, name: &str, life: Duration) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_after = date_time_ymd(1970, 1, 1) + (std::time::UNIX_EPOCH.elapsed().unwrap() + life);
    let certificate = params.signed_by(&key, ca).unwrap();
    std::fs::write(directory.join(format!("{name}.pem")), certificate.pem()).unwrap();
    std::fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

#[tokio::test]
async fn tls_verifies_and_http_2_carries_hundreds_of_watches_past_the_connection_limit() {
    let material = tempfile::tempdir().unwrap();
    certificates(material.path());
    let path = |name: &str| material.path().join(name);
    let extra = format!(
        "ca_file = \"{0}/ca.pem\"\ncert_file = \"{0}/server.dc1.consul.pem\"\nkey_file = \"{0}/server.dc1.consul.key\"\n\
         verify_incoming_https = true\nlimits {{ http_max_conns_per_client = 20 }}",
        material.path().display()
    );
    let server = Server::start_with(false, &extra).await;
    let good = ConsulSettings {
        address: ApiAddress::parse(
            Product::Consul,
            &format!("https://127.0.0.1:{}", server.https_port),
            false,
        )
        .unwrap(),
        ca_file: Some(path("ca.pem")),
        client_cert: Some(path("client.pem")),
        client_key: Some(path("client.key")),
        tls_server_name: Some("server.dc1.consul".to_owned()),
        ..Default::default()
    };
    let client = ConsulClient::new(&good).unwrap();
    assert!(client.put_cas("a", "1", 0).await.unwrap());
    assert!(client.is_multiplexed());

    let unverified = ConsulSettings {
        tls_server_name: None,
        ..good.clone()
    };
    let error = ConsulClient::new(&unverified)
        .unwrap()
        .read_key("a")
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ProblemKind::Unavailable, "{error}");
    assert!(error.to_string().to_lowercase().contains("cert"), "{error}");
    let fix = error.problem().fix.unwrap();
    assert!(
        fix.contains("tls_server_name") && fix.contains("CONSUL_CACERT"),
        "{fix}"
    );
    let skipped = ConsulSettings {
        tls_skip_verify: true,
        ..unverified
    };
    assert!(
        ConsulClient::new(&skipped)
            .unwrap()
            .read_key("a")
            .await
            .unwrap()
            .is_some()
    );
    let nameless = ConsulSettings {
        client_cert: None,
        client_key: None,
        ..good.clone()
    };
    assert!(ConsulClient::new(&nameless).unwrap().read_key("a").await.is_err());

    // 400 long polls on an agent that grants 20 connections, with only 10 places over HTTP/1.
    let names: Vec<String> = (0..400).map(|n| format!("s{n:03}")).collect();
    for name in &names {
        server.register(name, name, 1).await;
    }
    let (mut running, sender) = Running::new();
    let (watcher, task) = ServiceWatcher::new(client, sender);
    running.tasks.spawn(
        task.with_timing(quick())
            .with_connections(10, Duration::from_secs(1))
            .run(running.cancel.clone()),
    );
    watcher.set_interests(
        names
            .iter()
            .map(|name| (ServiceQuery::named(name), 0u64))
            .collect::<OrdMap<_, _>>(),
    );
    let mut seen = BTreeSet::new();
    while seen.len() < 400 {
        let update = running.service().await;
        if update.result.unwrap().len() == 1 {
            seen.insert(update.query);
        }
    }
    for name in ["s000", "s399"] {
        server.register(name, "more", 2).await;
        let update = running.service().await;
        assert_eq!((&*update.query.name, update.result.unwrap().len()), (name, 2));
    }
}

#[tokio::test]
async fn a_wrong_address_and_a_proxy_in_the_environment() {
    let settings = ConsulSettings {
        address: ApiAddress::parse(Product::Consul, "127.0.0.1:1", false).unwrap(),
        token: Some(Redacted::new("s3cret".to_owned())),
        ..Default::default()
    };
    let error = ConsulClient::new(&settings)
        .unwrap()
        .read_key("a")
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "Consul at http://127.0.0.1:1 did not answer GET /v1/kv/a: Connection refused (os error 111)"
    );
    let problem = error.problem();
    assert_eq!(problem.kind, ProblemKind::Unavailable);
    assert!(problem.fix.unwrap().contains("CONSUL_HTTP_ADDR"));
    assert!(!format!("{error:?}").contains("s3cret"));
}

/// Consul's HTTP port, written as https.
#[tokio::test]
async fn a_server_without_tls_is_told_as_such() {
    let server = Server::start().await;
    let address = format!("https://127.0.0.1:{}", server.port);
    let settings = ConsulSettings {
        address: ApiAddress::parse(Product::Consul, &address, false).unwrap(),
        ..Default::default()
    };
    let client = ConsulClient::new(&settings).unwrap();
    let error = client.read_key("a").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("Consul at {address} did not answer GET /v1/kv/a: the server there answers without TLS")
    );
    let fix = error.problem().fix.unwrap();
    assert!(
        fix.starts_with("write http:// in its address (CONSUL_HTTP_ADDR)"),
        "{fix}"
    );
}

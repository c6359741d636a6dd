//! What one server in a test never does: standby redirects, quotas, consistency misses, odd answers.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::response::Response;
use portreeve::model::{KvVersion, ProblemKind};
use portreeve::sources::certificates::CertificateSettings;
use portreeve::sources::vault::{VaultClient, VaultFault, VaultSettings};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::rig::{Rig, app_role, kv, pki, self_signed, token};

type Seen = Arc<Mutex<Vec<(String, Option<String>, Option<String>, bool)>>>;

/// Answers each path by `answer(path, how often it was asked before)`; remembers path, token, namespace, marker.
async fn mock(answer: impl Fn(&str, usize) -> Response + Clone + Send + Sync + 'static) -> (String, Seen) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let seen = Seen::default();
    let remembered = seen.clone();
    let app = Router::new().fallback(move |request: Request| {
        let header = |name: &str| Some(request.headers().get(name)?.to_str().ok()?.to_owned());
        let path = request.uri().path().to_owned();
        let mut seen = remembered.lock().unwrap();
        let before = seen.iter().filter(|(earlier, ..)| *earlier == path).count();
        let marked = header("X-Vault-Request").as_deref() == Some("true");
        seen.push((
            path.clone(),
            header("X-Vault-Token"),
            header("X-Vault-Namespace"),
            marked,
        ));
        drop(seen);
        let response = match path.as_str() {
            "/v1/auth/token/lookup-self" => body(200, json!({"data": {"ttl": 0, "renewable": false}})),
            _ => answer(&path, before),
        };
        async move { response }
    });
    (serve(app).await, seen)
}

async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

fn body(status: u16, value: serde_json::Value) -> Response {
    Response::builder()
        .status(status)
        .body(Body::from(value.to_string()))
        .unwrap()
}

fn redirect(location: &str) -> Response {
    Response::builder()
        .status(307)
        .header("Location", location)
        .body(Body::empty())
        .unwrap()
}

fn secret() -> Response {
    // `warnings` as some servers and documents show it; a null lease.
    body(
        200,
        json!({"warnings": "", "lease_id": null, "data": {"data": {"certificate": "x"}, "metadata": {"version": 3}}}),
    )
}

fn client(address: &str) -> VaultClient {
    let mut settings = VaultSettings::new(address, token("s.token"));
    settings.namespace = Some("team/a".to_owned());
    let (client, session) = VaultClient::new(settings).unwrap();
    tokio::spawn(session.run(CancellationToken::new()));
    client
}

async fn read(client: &VaultClient) -> Result<(), VaultFault> {
    client
        .read_kv(KvVersion::V2, "secret", "www")
        .await
        .map(|secret| {
            assert_eq!(secret.text("certificate").unwrap().expose(), "x");
        })
}

#[tokio::test]
async fn a_standby_is_followed_once_with_all_headers() {
    let (active, seen) = mock(|_, _| secret()).await;
    let location = format!("{active}/v1/secret/data/www");
    let (standby, _) = mock(move |_, _| redirect(&location)).await;
    read(&client(&standby)).await.unwrap();
    let seen = seen.lock().unwrap().clone();
    let expected = (
        "/v1/secret/data/www".to_owned(),
        Some("s.token".to_owned()),
        Some("team/a".to_owned()),
        true,
    );
    assert_eq!(seen, [expected]);

    let (again, _) = mock(|path, _| redirect(path)).await;
    let fault = read(&client(&again)).await.unwrap_err();
    assert_eq!(fault.kind(), ProblemKind::Unavailable);
    assert!(fault.to_string().contains("redirects again"), "{fault}");
}

#[tokio::test]
async fn misses_and_quotas_are_tried_again_shortly() {
    for status in [412, 429, 500, 502] {
        let (address, seen) = mock(move |_, before| match before {
            0 => Response::builder()
                .status(status)
                .header("Retry-After", "1")
                .body(Body::empty())
                .unwrap(),
            _ => secret(),
        })
        .await;
        let started = Instant::now();
        read(&client(&address)).await.unwrap();
        if status == 429 {
            assert!(
                started.elapsed() >= Duration::from_secs(1),
                "Retry-After is kept to"
            );
        }
        assert_eq!(
            seen.lock()
                .unwrap()
                .iter()
                .filter(|(path, ..)| path.ends_with("www"))
                .count(),
            2
        );
    }
    let (address, seen) = mock(|_, _| body(429, json!({"errors": ["quota"]}))).await;
    let fault = read(&client(&address)).await.unwrap_err();
    assert_eq!(fault.kind(), ProblemKind::Unavailable);
    assert_eq!(
        seen.lock()
            .unwrap()
            .iter()
            .filter(|(path, ..)| path.ends_with("www"))
            .count(),
        3
    );
}

#[tokio::test]
async fn an_issue_is_never_repeated_after_a_lost_answer() {
    let (address, seen) = mock(|_, _| body(500, json!({"errors": ["storage"]}))).await;
    let client = client(&address);
    let request = portreeve::sources::vault::SignRequest {
        mount: "pki",
        role: "edge",
        issuer: None,
        csr: "csr",
        common_name: "a",
        alt_names: &[],
        ip_sans: &[],
        ttl: None,
    };
    let fault = client.sign(&request).await.err().unwrap();
    assert!(fault.may_have_happened());
    assert_eq!(
        seen.lock()
            .unwrap()
            .iter()
            .filter(|(path, ..)| path.ends_with("sign/edge"))
            .count(),
        1
    );
}

/// With the intervals of the product, and a certificate to ask for.
fn asking(address: &str, store: &std::path::Path) -> Rig {
    let mut rig = Rig::with(address, token("s.token"), store, CertificateSettings::default());
    rig.watch(&[&pki("www.example.com", 600)]);
    rig
}

/// While nobody leads Vault's cluster, as after its restart.
fn nobody_active() -> serde_json::Value {
    json!({"errors": ["local node not active but active cluster node not found"]})
}

#[tokio::test]
async fn an_issue_that_no_active_server_saw_is_asked_for_again_at_once() {
    let (address, seen) = mock(|path, _| match path.ends_with("sign/edge") {
        true => body(500, nobody_active()),
        false => body(200, json!({})),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = asking(&address, directory.path());
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Unavailable);
    let asked = || {
        let seen = seen.lock().unwrap();
        seen.iter()
            .filter(|(path, ..)| path.ends_with("sign/edge"))
            .count()
    };
    let often = async {
        while asked() < 3 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), often)
        .await
        .expect("more requests than one a minute");
    rig.stop().await;
}

/// A key costs a second of one core at RSA's worst, and an election may take many requests.
#[tokio::test]
async fn what_no_active_server_saw_is_asked_for_again_with_the_same_key() {
    let requests: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = requests.clone();
    let app = Router::new().fallback(move |request: Request| {
        let seen = seen.clone();
        async move {
            let path = request.uri().path().to_owned();
            let sent = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
            if path.ends_with("sign/edge") {
                let sent: serde_json::Value = serde_json::from_slice(&sent).unwrap();
                seen.lock()
                    .unwrap()
                    .push(sent["csr"].as_str().unwrap().to_owned());
                return body(500, nobody_active());
            }
            body(200, json!({"data": {"ttl": 0, "renewable": false}}))
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let rig = asking(&serve(app).await, directory.path());
    let thrice = async {
        while requests.lock().unwrap().len() < 3 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), thrice).await;
    waited.expect("three requests");
    rig.stop().await;
    let requests = requests.lock().unwrap();
    assert!(requests.iter().all(|request| *request == requests[0]));
}

/// A role that has other policies than the token, or is gone, is a failure of Vault's own to it.
#[tokio::test]
async fn a_token_that_is_not_renewed_for_good_is_replaced_before_it_ends() {
    for (status, said) in [
        (500, "policies have changed, not renewing"),
        (400, "role not found"),
    ] {
        let logins: Arc<AtomicU64> = Arc::default();
        let counted = logins.clone();
        let app = Router::new().fallback(move |request: Request| {
            let answer = match request.uri().path() {
                "/v1/auth/approle/login" => {
                    counted.fetch_add(1, Ordering::Relaxed);
                    let auth = json!({"client_token": "s.token", "lease_duration": 6, "renewable": true});
                    body(200, json!({"auth": auth}))
                }
                "/v1/auth/token/renew-self" => body(status, json!({"errors": [said]})),
                "/v1/sys/health" => body(200, json!({})),
                _ => body(403, json!({"errors": ["permission denied"]})),
            };
            async move { answer }
        });
        let _ = rustls::crypto::ring::default_provider().install_default();
        let settings = VaultSettings::new(serve(app).await, app_role("role", "secret"));
        let (client, session) = VaultClient::new(settings).unwrap();
        let cancel = CancellationToken::new();
        let session = tokio::spawn(session.run(cancel.clone()));
        let twice = async {
            while logins.load(Ordering::Relaxed) < 2 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), twice).await;
        assert!(waited.is_ok(), "{said}: {:?}", client.status());
        cancel.cancel();
        session.await.unwrap();
    }
}

/// One address, two servers behind it: a connection stays with the one that it was made to.
#[tokio::test]
async fn a_server_that_says_that_it_is_sealed_is_left_for_another_connection() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let first: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
    let app = Router::new().fallback(move |ConnectInfo(peer): ConnectInfo<SocketAddr>| {
        let is_first = *first.lock().unwrap().get_or_insert(peer) == peer;
        async move {
            match is_first {
                true => body(503, json!({"errors": ["Vault is sealed"], "sealed": true})),
                false => body(200, json!({"data": {"ttl": 0, "renewable": false}})),
            }
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let client = client(&address);
    let failed = Instant::now();
    assert!(client.read_kv(KvVersion::V1, "kv", "a").await.is_err());
    let served = async {
        while client.read_kv(KvVersion::V1, "kv", "a").await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), served).await;
    assert!(waited.is_ok(), "after {:?}", failed.elapsed());
}

/// A standby answers that it is well, and has nobody to pass a request on to.
#[tokio::test]
async fn a_cluster_without_a_leader_is_asked_for_nothing_until_it_has_one() {
    let leader = Arc::new(Mutex::new(""));
    let elected = leader.clone();
    let (address, seen) = mock(move |path, _| match path {
        "/v1/sys/health" => body(429, json!({})),
        "/v1/sys/leader" => {
            let address = *elected.lock().unwrap();
            body(
                200,
                json!({"ha_enabled": true, "is_self": false, "leader_address": address}),
            )
        }
        _ if path.ends_with("sign/edge") => body(500, nobody_active()),
        _ => body(200, json!({})),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let mut rig = asking(&address, directory.path());
    assert_eq!(rig.problem().await.kind, ProblemKind::Unavailable);
    let asked = |path: &str| {
        let seen = seen.lock().unwrap();
        seen.iter().filter(|(asked, ..)| asked.ends_with(path)).count()
    };
    let until = async |path: &str, times: usize| {
        let often = async {
            while asked(path) < times {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), often).await;
        assert!(waited.is_ok(), "{path}: {} times", asked(path));
    };
    until("sys/leader", 4).await;
    assert_eq!(asked("sign/edge"), 1);
    *leader.lock().unwrap() = "https://10.0.0.1:8200";
    until("sign/edge", 3).await;
    rig.stop().await;
}

#[tokio::test]
async fn each_state_of_a_server_has_its_kind() {
    let deleted =
        json!({"data": {"data": null, "metadata": {"version": 4, "deletion_time": "2026-01-01T00:00:00Z"}}});
    let cases = [
        (
            503,
            json!({"errors": ["Vault is sealed"]}),
            ProblemKind::Unavailable,
            "sealed",
        ),
        (473, json!({}), ProblemKind::Unavailable, "standby"),
        (
            500,
            nobody_active(),
            ProblemKind::Unavailable,
            "no server of its cluster is active",
        ),
        (
            503,
            json!({"errors": ["no active Vault instance found"]}),
            ProblemKind::Unavailable,
            "no server of its cluster is active",
        ),
        (501, json!({}), ProblemKind::Unavailable, "not initialised"),
        (
            404,
            json!({"errors": []}),
            ProblemKind::NotFound,
            "nothing at this path",
        ),
        (
            404,
            deleted,
            ProblemKind::Deleted,
            "version 4 of the secret is deleted",
        ),
        (
            400,
            json!({"errors": ["bad"]}),
            ProblemKind::Refused,
            "refused (400): bad",
        ),
        (405, json!({"errors": []}), ProblemKind::Refused, "refused (405)"),
        (
            403,
            json!({"errors": ["permission denied"]}),
            ProblemKind::MissingPermission,
            "www: permission denied",
        ),
        (
            200,
            json!("<html>"),
            ProblemKind::Invalid,
            "not what Vault answers",
        ),
        (
            200,
            json!({"data": {"data": {"a": "x".repeat(2_000_000)}}}),
            ProblemKind::Limit,
            "larger than 1024 KiB",
        ),
    ];
    for (status, answer, kind, expected) in cases {
        let (address, _) = mock(move |_, _| body(status, answer.clone())).await;
        let fault = read(&client(&address)).await.unwrap_err();
        assert_eq!(fault.kind(), kind, "{fault}");
        assert!(fault.to_string().contains(expected), "{fault}");
        assert!(
            fault
                .to_string()
                .contains(&format!("GET {address}/v1/secret/data/www")),
            "{fault}"
        );
        assert!(fault.problem().fix.is_some());
    }
}

#[tokio::test]
async fn a_unix_socket_is_an_address() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let app = Router::new().fallback(|request: Request| async move {
        match request.uri().path() {
            "/v1/secret/data/www" => secret(),
            _ => body(200, json!({"data": {"ttl": 0}})),
        }
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    read(&client(&format!("unix://{}", path.display())))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_attempt_is_written_down_before_it_is_sent() {
    let issues = Arc::new(Mutex::new(0));
    let counted = issues.clone();
    let app = Router::new().fallback(move |request: Request| {
        let issue = request.uri().path().ends_with("/sign/edge");
        *counted.lock().unwrap() += usize::from(issue);
        async move {
            if issue {
                // The answer never comes: the agent dies first.
                std::future::pending::<()>().await;
            }
            body(200, json!({"data": {"ttl": 0}}))
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let directory = tempfile::tempdir().unwrap();
    for _ in 0..5 {
        let rig = asking(&address, directory.path());
        // The first may take long to make its key and to write.
        let asked = async {
            while *issues.lock().unwrap() == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), asked)
            .await
            .expect("a request");
        tokio::time::sleep(Duration::from_millis(400)).await;
        rig.stop().await;
    }
    assert_eq!(
        *issues.lock().unwrap(),
        1,
        "five starts within a minute, one request"
    );
    // Whoever starts within that minute is told, and waits for no first word.
    let mut rig = asking(&address, directory.path());
    let problem = rig.problem().await;
    assert_eq!(problem.kind, ProblemKind::Limit);
    let said = "it was asked for shortly before this agent started";
    assert!(problem.message.contains(said), "{problem:?}");
    rig.stop().await;
}

/// The certificate and key of KV version 2 leave Vault when there is a new version, not at each poll.
#[tokio::test]
async fn polls_of_an_unchanged_secret_read_no_data() {
    let version = Arc::new(AtomicU64::new(1));
    let current = version.clone();
    let pairs = ["one.example", "two.example"].map(|name| self_signed(name, 5));
    let (address, seen) = mock(move |path, _| {
        let version = current.load(Ordering::SeqCst);
        let (certificate, key) = &pairs[version as usize - 1];
        let data = json!({"certificate": certificate, "private_key": key});
        match path {
            "/v1/secret/metadata/www" => body(
                200,
                json!({"data": {"current_version": version, "versions": {version.to_string(): {}}}}),
            ),
            _ => body(
                200,
                json!({"data": {"data": data, "metadata": {"version": version}}}),
            ),
        }
    })
    .await;
    let asked = |path: &str| {
        let seen = seen.lock().unwrap();
        seen.iter().filter(|(asked, ..)| asked == path).count()
    };
    let directory = tempfile::tempdir().unwrap();
    let often = CertificateSettings {
        kv_poll: Duration::from_millis(20),
        ..super::rig::fast()
    };
    let mut rig = Rig::with(&address, token("s.token"), directory.path(), often);
    rig.watch(&[&kv(KvVersion::V2, "secret", "www")]);
    for (number, name) in [(1, "one.example"), (2, "two.example")] {
        version.store(number, Ordering::SeqCst);
        assert_eq!(rig.material().await.names[0].as_ref(), name);
        let before = asked("/v1/secret/metadata/www");
        let ten_polls = async {
            while asked("/v1/secret/metadata/www") < before + 10 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), ten_polls)
            .await
            .expect("ten polls");
        assert_eq!(asked("/v1/secret/data/www"), number as usize);
    }
    rig.stop().await;
}

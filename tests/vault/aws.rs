//! The AWS login against a contract server: OpenBao has no such method. The server does what Vault and STS do together:
//! it takes the signed request apart and verifies the signature by the rules of Signature Version 4, with code of its
//! own that shares nothing with the signer, checked against AWS's published example first.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portreeve::model::{KvVersion, ProblemKind, Redacted};
use portreeve::sources::vault::{AwsKeySource, AwsKeys, AwsLogin, VaultAuth};
use rsa::sha2::{Digest, Sha256};
use serde_json::{Value, json};

use super::rig::{Rig, kv, self_signed};

const ACCESS: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// HMAC by its definition (RFC 2104), so that nothing is shared with the signer's.
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut block = [0_u8; 64];
    block[..key.len()].copy_from_slice(key);
    let inner: Vec<u8> = block
        .iter()
        .map(|byte| byte ^ 0x36)
        .chain(message.iter().copied())
        .collect();
    let outer: Vec<u8> = block
        .iter()
        .map(|byte| byte ^ 0x5c)
        .chain(Sha256::digest(inner))
        .collect();
    Sha256::digest(outer).to_vec()
}

/// The signature that a request must carry.
fn signature(
    method: &str,
    path: &str,
    query: &str,
    headers: &[(String, String)],
    body: &[u8],
    scope: &str,
    date: &str,
) -> String {
    let lines: String = headers
        .iter()
        .map(|(name, value)| format!("{name}:{value}\n"))
        .collect();
    let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
    let canonical = [
        method,
        path,
        query,
        &lines,
        &names.join(";"),
        &hex(&Sha256::digest(body)),
    ]
    .join("\n");
    let to_sign = ["AWS4-HMAC-SHA256", date, scope, &hex(&Sha256::digest(canonical))].join("\n");
    let mut key = format!("AWS4{SECRET}").into_bytes();
    for part in scope.split('/') {
        // The key is at most 64 bytes long, as `hmac` wants it: AWS4 and forty characters, then hashes.
        key = hmac(&key, part.as_bytes());
    }
    hex(&hmac(&key, to_sign.as_bytes()))
}

/// "get-vanilla" of AWS's Signature Version 4 test suite.
#[test]
fn the_verifier_agrees_with_the_published_example() {
    let headers = [
        ("host".to_owned(), "example.amazonaws.com".to_owned()),
        ("x-amz-date".to_owned(), "20150830T123600Z".to_owned()),
    ];
    assert_eq!(
        signature(
            "GET",
            "/",
            "",
            &headers,
            b"",
            "20150830/us-east-1/service/aws4_request",
            "20150830T123600Z"
        ),
        "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
    );
}

/// What Vault and STS find wrong with a login, or None.
fn judge(login: &Value, server_id: &str, session: Option<&str>) -> Option<String> {
    let decode = |name: &str| {
        let text = login[name].as_str().unwrap_or_default();
        String::from_utf8(STANDARD.decode(text).ok()?).ok()
    };
    if login["role"] != "edge" || login["iam_http_request_method"] != "POST" {
        return Some("role or method".to_owned());
    }
    let url = decode("iam_request_url")?;
    if url != "https://sts.eu-central-1.amazonaws.com/" {
        return Some(format!("url {url}"));
    }
    let body = decode("iam_request_body")?;
    if body != "Action=GetCallerIdentity&Version=2011-06-15" {
        return Some(format!("body {body}"));
    }
    let headers: BTreeMap<String, Vec<String>> =
        serde_json::from_str(&decode("iam_request_headers")?).ok()?;
    let headers: BTreeMap<String, String> = headers
        .into_iter()
        .map(|(name, values)| (name.to_ascii_lowercase(), values.join(",")))
        .collect();
    let authorization = headers.get("authorization")?.clone();
    let rest = authorization.strip_prefix("AWS4-HMAC-SHA256 ")?;
    let parts: BTreeMap<&str, &str> = rest.split(", ").filter_map(|part| part.split_once('=')).collect();
    let (access, scope) = parts["Credential"].split_once('/')?;
    if access != ACCESS {
        return Some(format!("unknown access key {access}"));
    }
    let date = headers.get("x-amz-date")?;
    let seconds = humantime::parse_rfc3339(&format!(
        "{}-{}-{}T{}:{}:{}Z",
        &date[..4],
        &date[4..6],
        &date[6..8],
        &date[9..11],
        &date[11..13],
        &date[13..15]
    ));
    if seconds.ok()?.elapsed().ok()?.as_secs() > 300
        || scope != format!("{}/eu-central-1/sts/aws4_request", &date[..8])
    {
        return Some(format!("date {date} or scope {scope}"));
    }
    let signed: Vec<(String, String)> = parts["SignedHeaders"]
        .split(';')
        .map(|name| (name.to_owned(), headers.get(name).cloned().unwrap_or_default()))
        .collect();
    // A header that is not signed could be anybody's.
    let mut wanted = vec!["host", "x-amz-date", "x-vault-aws-iam-server-id"];
    wanted.extend(session.map(|_| "x-amz-security-token"));
    for wanted in wanted {
        if !signed.iter().any(|(name, _)| name == wanted) {
            return Some(format!("{wanted} is not signed"));
        }
    }
    if headers.get("x-vault-aws-iam-server-id").map(String::as_str) != Some(server_id) {
        return Some("signed for another Vault".to_owned());
    }
    if headers.get("x-amz-security-token").map(String::as_str) != session {
        return Some("another session".to_owned());
    }
    let expected = signature("POST", "/", "", &signed, body.as_bytes(), scope, date);
    (parts["Signature"] != expected).then(|| "the signature does not match".to_owned())
}

struct Contract {
    address: String,
    session: Arc<Mutex<Option<String>>>,
}

/// A Vault with an aws mount, and an instance metadata service.
async fn contract() -> Contract {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let session = Arc::new(Mutex::new(None::<String>));
    let expected = session.clone();
    let (certificate, key) = self_signed("one.example", 5);
    let app = Router::new().fallback(move |request: Request| {
        let (expected, certificate, key) = (expected.clone(), certificate.clone(), key.clone());
        async move { answer(request, &expected, certificate, key).await }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    Contract { address, session }
}

async fn answer(
    request: Request,
    session: &Mutex<Option<String>>,
    certificate: String,
    key: String,
) -> Response {
    let path = request.uri().path().to_owned();
    let (token, metadata) = {
        let header = |name: &str| {
            let value = request.headers().get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        (header("X-Vault-Token"), header("X-aws-ec2-metadata-token"))
    };
    let denied = || {
        (
            axum::http::StatusCode::FORBIDDEN,
            axum::Json(json!({"errors": ["permission denied"]})),
        )
            .into_response()
    };
    match path.as_str() {
        "/v1/auth/aws/login" => {
            let body = axum::body::to_bytes(request.into_body(), 64 * 1024)
                .await
                .unwrap();
            let login: Value = serde_json::from_slice(&body).unwrap();
            let session = session.lock().unwrap().clone();
            match judge(&login, "vault.example.com", session.as_deref()) {
                None => axum::Json(
                    json!({"auth": {"client_token": "s.aws", "lease_duration": 3600, "renewable": true}}),
                )
                .into_response(),
                Some(wrong) => (
                    axum::http::StatusCode::BAD_REQUEST,
                    axum::Json(json!({"errors": [wrong]})),
                )
                    .into_response(),
            }
        }
        "/latest/api/token" => "imds".into_response(),
        "/latest/meta-data/iam/security-credentials/" if metadata.as_deref() == Some("imds") => {
            "edge-role".into_response()
        }
        "/latest/meta-data/iam/security-credentials/edge-role" if metadata.as_deref() == Some("imds") => {
            let keys = json!({"AccessKeyId": ACCESS, "SecretAccessKey": SECRET, "Token": "instance-session"});
            axum::Json(keys).into_response()
        }
        _ if token.as_deref() != Some("s.aws") => denied(),
        "/v1/auth/token/lookup-self" => {
            axum::Json(json!({"data": {"ttl": 3600, "creation_ttl": 3600, "renewable": true}}))
                .into_response()
        }
        "/v1/secret/metadata/www" => {
            axum::Json(json!({"data": {"current_version": 1, "versions": {"1": {}}}})).into_response()
        }
        "/v1/secret/data/www" => {
            let fields = json!({"certificate": certificate, "private_key": key});
            axum::Json(json!({"data": {"data": fields, "metadata": {"version": 1}}})).into_response()
        }
        _ => axum::Json(json!({"data": {}})).into_response(),
    }
}

fn login(keys: AwsKeySource, server_id: &str) -> VaultAuth {
    VaultAuth::Aws(AwsLogin {
        mount: "aws".to_owned(),
        role: "edge".to_owned(),
        region: Some("eu-central-1".to_owned()),
        server_id: Some(server_id.to_owned()),
        keys,
    })
}

fn given(secret: &str) -> AwsKeySource {
    AwsKeySource::Given(Arc::new(AwsKeys {
        access_key: ACCESS.to_owned(),
        secret_key: Redacted::new(secret.to_owned()),
        session_token: None,
    }))
}

#[tokio::test]
async fn a_signed_identity_logs_in() {
    let vault = contract().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("credentials");
    let profile = format!(
        "[edge]\naws_access_key_id = {ACCESS}\naws_secret_access_key = {SECRET}\naws_session_token = file-session\n"
    );
    std::fs::write(&file, profile).unwrap();
    let sources = [
        (given(SECRET), None),
        (
            AwsKeySource::File {
                path: file,
                profile: "edge".to_owned(),
            },
            Some("file-session"),
        ),
        (
            AwsKeySource::Metadata {
                endpoint: vault.address.clone(),
            },
            Some("instance-session"),
        ),
    ];
    for (keys, session) in sources {
        *vault.session.lock().unwrap() = session.map(str::to_owned);
        let mut rig = Rig::start(&vault.address, login(keys, "vault.example.com"), directory.path());
        rig.watch(&[&kv(KvVersion::V2, "secret", "www")]);
        rig.material().await;
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_wrong_secret_or_another_vault_is_refused() {
    let vault = contract().await;
    let directory = tempfile::tempdir().unwrap();
    let absent = AwsKeySource::File {
        path: directory.path().join("absent"),
        profile: "edge".to_owned(),
    };
    for (auth, expected) in [
        (
            login(given("another-secret"), "vault.example.com"),
            "the signature does not match",
        ),
        (
            login(given(SECRET), "elsewhere.example.com"),
            "signed for another Vault",
        ),
        (
            login(absent, "vault.example.com"),
            "absent cannot be used (No such file",
        ),
    ] {
        let mut rig = Rig::start(&vault.address, auth, directory.path());
        rig.watch(&[&kv(KvVersion::V2, "secret", "www")]);
        let problem = rig.problem().await;
        assert_eq!(problem.kind, ProblemKind::Forbidden);
        assert!(problem.message.contains(expected), "{problem}");
        assert!(!problem.message.contains("secret_key") && !problem.message.contains("another-secret"));
        rig.stop().await;
    }
}

//! A Kubernetes cluster, as far as Vault asks it: whose is this service account's token?

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Json;
use axum::routing::post;
use serde_json::{Value, json};

/// The one call of the Kubernetes API that Vault makes: whose token is this? It knows one.
pub struct Reviewer {
    pub address: String,
    pub known: Arc<Mutex<String>>,
}

pub async fn token_reviewer() -> Reviewer {
    let known = Arc::new(Mutex::new(String::new()));
    let knows = known.clone();
    let review = move |Json(review): Json<Value>| {
        let token = review["spec"]["token"].as_str().unwrap_or_default();
        let status = if *knows.lock().unwrap() == token {
            json!({"authenticated": true, "user": {
                "username": "system:serviceaccount:gateways:portreeve", "uid": "1",
                "groups": ["system:serviceaccounts", "system:authenticated"]}})
        } else {
            json!({"authenticated": false, "error": "invalid bearer token"})
        };
        let answer =
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status});
        async move { (axum::http::StatusCode::CREATED, Json(answer)) }
    };
    let app = Router::new().route("/apis/authentication.k8s.io/v1/tokenreviews", post(review));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    Reviewer { address, known }
}

/// As a cluster makes them: Vault reads the claims itself, and has the signature judged by the cluster.
pub fn service_account_token(signature: &str) -> String {
    use base64::Engine as _;
    let encode = |value: Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string());
    let header = encode(json!({"alg": "RS256", "typ": "JWT"}));
    let claims = encode(json!({
        "iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:gateways:portreeve",
        "kubernetes.io/serviceaccount/namespace": "gateways",
        "kubernetes.io/serviceaccount/service-account.name": "portreeve",
        "kubernetes.io/serviceaccount/service-account.uid": "1",
        "kubernetes.io/serviceaccount/secret.name": "portreeve-token",
    }));
    let signature = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(signature);
    format!("{header}.{claims}.{signature}")
}

//! Stands before a real OpenBao and lets every request through but those of a path that is shut: they fail, or are never
//! answered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use tokio::sync::watch;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shut {
    /// Answered with 500.
    Fails,
    NeverAnswers,
}

pub struct Gate {
    pub address: String,
    shut: Arc<Mutex<BTreeMap<String, Shut>>>,
    /// How many requests wait for an answer that does not come.
    hanging: watch::Sender<usize>,
}

impl Gate {
    pub async fn before(server: &str) -> Self {
        let shut: Arc<Mutex<BTreeMap<String, Shut>>> = Arc::default();
        let hanging = watch::Sender::new(0);
        let (rules, count, server) = (shut.clone(), hanging.clone(), server.to_owned());
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let app = Router::new().fallback(move |request: Request| {
            let rule = rules.lock().unwrap().get(request.uri().path()).copied();
            let (client, server, count) = (client.clone(), server.clone(), count.clone());
            async move {
                match rule {
                    None => forward(&client, &server, request).await,
                    Some(Shut::Fails) => answer(500, r#"{"errors": ["shut"]}"#),
                    Some(Shut::NeverAnswers) => {
                        count.send_modify(|count| *count += 1);
                        std::future::pending().await
                    }
                }
            }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self {
            address,
            shut,
            hanging,
        }
    }

    pub fn shut(&self, path: &str, how: Shut) {
        self.shut.lock().unwrap().insert(format!("/v1/{path}"), how);
    }

    /// How many such requests there were.
    pub fn hanging(&self) -> usize {
        *self.hanging.borrow()
    }

    /// Until a request of a path that never answers has come.
    pub async fn hangs(&self) {
        let mut hanging = self.hanging.subscribe();
        let came = hanging.wait_for(|hanging| *hanging > 0);
        tokio::time::timeout(std::time::Duration::from_secs(60), came)
            .await
            .expect("a request that is not answered")
            .unwrap();
    }
}

async fn forward(client: &reqwest::Client, server: &str, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let mut headers = parts.headers;
    headers.remove("host");
    let sent = client
        .request(parts.method, format!("{server}{}", parts.uri))
        .headers(headers)
        .body(body)
        .send()
        .await;
    match sent {
        Ok(from) => answer(from.status().as_u16(), from.bytes().await.unwrap_or_default()),
        Err(_) => answer(502, ""),
    }
}

fn answer(status: u16, body: impl Into<Body>) -> Response {
    Response::builder().status(status).body(body.into()).unwrap()
}

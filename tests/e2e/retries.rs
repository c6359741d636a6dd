//! What is tried again and what is not: no request that may have taken effect, unless somebody says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

use crate::stack::{GATEWAY, Options, Stack};
use crate::support::backend::{Backend, Behaviour};
use crate::support::client::Request;

const HOST: &str = "app.example.com";

/// A server that takes a request and hangs up without a word, or hangs until the other side does.
struct HangsUp {
    port: u16,
    requests: Arc<AtomicU64>,
}

impl HangsUp {
    async fn start(at_once: bool) -> HangsUp {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(AtomicU64::new(0));
        let counted = requests.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let counted = counted.clone();
                tokio::spawn(async move {
                    let mut seen = Vec::new();
                    let mut buffer = [0; 4096];
                    while !seen.windows(4).any(|window| window == b"\r\n\r\n") {
                        match socket.read(&mut buffer).await {
                            Ok(count @ 1..) => seen.extend_from_slice(&buffer[..count]),
                            _ => return,
                        }
                    }
                    counted.fetch_add(1, Ordering::Relaxed);
                    while !at_once && matches!(socket.read(&mut buffer).await, Ok(1..)) {}
                });
            }
        });
        HangsUp { port, requests }
    }

    fn taken(&self) -> u64 {
        self.requests.swap(0, Ordering::Relaxed)
    }
}

fn document(port: u16) -> String {
    let rule = |name: &str, backend: &str, retry: &str| {
        format!(
            "  rule \"{name}\" {{\n    match {{ path_prefix = \"/{name}\" }}\n{retry}    backend {backend} {{}}\n  }}\n\n"
        )
    };
    let again = |on: &str, more: &str| {
        format!("    retry {{\n      attempts = 2\n      on       = [{on}]\n{more}    }}\n")
    };
    let app = "\"consul\" \"app\"";
    let breaks = "\"upstream\" \"breaks\"";
    let rules = [
        rule("5xx", app, &again("\"5xx\"", "")),
        rule("anyway", app, &again("\"5xx\"", "      non_idempotent = true\n")),
        rule("reset-default", breaks, ""),
        rule("reset", breaks, &again("\"reset\", \"5xx\"", "")),
        rule(
            "once",
            breaks,
            "    retry {\n      per_try_timeout = \"300ms\"\n    }\n",
        ),
        rule(
            "bounded",
            breaks,
            &again("\"connect-failure\"", "      per_try_timeout = \"300ms\"\n"),
        ),
        rule("plain", app, ""),
    ];
    format!(
        "{GATEWAY}\nupstream \"breaks\" {{\n  static {{ addresses = [\"127.0.0.1:{port}\"] }}\n}}\n\n\
         http_route \"app\" {{\n  gateways  = [\"edge\"]\n  hostnames = [\"{HOST}\"]\n\n{}}}\n",
        rules.concat()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_may_have_taken_effect_is_not_repeated() {
    let stack = Stack::start(Options::default()).await;
    let backend = Backend::start("app").await;
    let broken = HangsUp::start(true).await;
    stack.register("app", &backend).await;
    stack.put("edge", &document(broken.port)).await;
    stack
        .until(&Request::get(HOST, "/plain"), "the routes", |reply| {
            reply.status == 200
        })
        .await;
    let client = stack.client();
    backend.behave(Behaviour {
        status: 500,
        ..Behaviour::default()
    });
    let asked = async |request: Request| {
        let before = backend.requests();
        let status = client.send(&request).await.unwrap().status;
        assert_eq!(status, 500);
        backend.requests() - before
    };
    let post = |path: &str| Request::post(HOST, path, "order");
    assert_eq!(
        asked(Request::get(HOST, "/5xx")).await,
        3,
        "a GET, and two tries more"
    );
    assert_eq!(asked(post("/5xx")).await, 1, "a POST, once");
    assert_eq!(
        asked(post("/anyway")).await,
        3,
        "a POST where the document says so"
    );
    assert_eq!(asked(Request::get(HOST, "/plain")).await, 1, "no retry block");

    // The connection ends after the request was read: nobody knows what came of it.
    let cut = async |request: Request| {
        let reply = client.send(&request).await.unwrap();
        assert_eq!(reply.status, 503);
        // Also of the last of several tries.
        assert_eq!(
            reply.header("x-portreeve-reason"),
            Some("upstream-connection-closed")
        );
        broken.taken()
    };
    assert_eq!(
        cut(Request::get(HOST, "/reset")).await,
        3,
        "a GET, and two tries more"
    );
    assert_eq!(cut(post("/reset")).await, 1, "a POST, once");
    assert_eq!(cut(Request::get(HOST, "/reset-default")).await, 1);
    assert_eq!(cut(post("/reset-default")).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_try_over_its_time_is_repeated() {
    let stack = Stack::start(Options::default()).await;
    let backend = Backend::start("app").await;
    let silent = HangsUp::start(false).await;
    stack.register("app", &backend).await;
    stack.put("edge", &document(silent.port)).await;
    stack
        .until(&Request::get(HOST, "/plain"), "the routes", |reply| {
            reply.status == 200
        })
        .await;
    let client = stack.client();
    let tries = async |request: Request| {
        let reply = client.send(&request).await.unwrap();
        assert_eq!(reply.status, 504);
        assert_eq!(reply.header("x-portreeve-reason"), Some("timeout"));
        silent.taken()
    };
    assert_eq!(tries(Request::get(HOST, "/once")).await, 2);
    assert_eq!(tries(Request::post(HOST, "/once", "order")).await, 1, "a POST");
    assert_eq!(
        tries(Request::get(HOST, "/bounded")).await,
        1,
        "nothing in `on` takes it for a failure"
    );
    let warned = stack.agent.api(hyper::Method::GET, "/v1/diagnostics", "").await;
    let warned = warned.unwrap().text();
    assert!(
        warned.contains("no-effect") && warned.contains("is not repeated"),
        "{warned}"
    );
}

/// An instance that is gone before the catalog says so refuses connections, while an upload is already coming in.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_reaches_another_instance_where_one_refuses() {
    let stack = Stack::start(Options::default()).await;
    let backend = Backend::start("app").await;
    let mut gone = Backend::start("gone").await;
    for instance in [&backend, &gone] {
        stack.register("app", instance).await;
    }
    stack.put("edge", &document(gone.port)).await;
    let ready = Request::get(HOST, "/plain");
    stack
        .until(&ready, "both", |reply| reply.backend() == Some("gone"))
        .await;
    gone.stop().await;
    let client = stack.client();
    // Also where a block asks for more, which an upload must not have: it has what is safe.
    for (path, kib) in [("/plain", 16), ("/plain", 64), ("/plain", 250), ("/5xx", 64)] {
        for upload in 0..40 {
            let request = Request::post(HOST, path, "x".repeat(kib * 1024));
            let reply = client.send(&request).await.unwrap();
            assert_eq!(
                reply.status, 200,
                "upload {upload} of {kib} KiB: {:?}",
                reply.headers
            );
        }
    }
}

//! Requests that no honest client sends: refused by Envoy as it is set up here, before a backend sees anything of them.

use crate::stack::{GATEWAY, Options, Stack, route};
use crate::support::backend::Backend;
use crate::support::client::Request;

/// What is sent, with `\n` for the end of a line, and the status that it gets.
const REQUESTS: &[(&str, &str, u16)] = &[
    ("no Host", "GET / HTTP/1.1\n\n", 400),
    (
        "two Hosts",
        "GET / HTTP/1.1\nHost: shop.example.com\nHost: other.example.com\n\n",
        404,
    ),
    (
        "a Host with a space",
        "GET / HTTP/1.1\nHost: shop.example.com x\n\n",
        400,
    ),
    (
        "a Host with a control character",
        "GET / HTTP/1.1\nHost: shop\u{1}.example.com\n\n",
        400,
    ),
    (
        "a Host with a user in front",
        "GET / HTTP/1.1\nHost: root@shop.example.com\n\n",
        404,
    ),
    (
        "another host in the request line than in Host",
        "GET http://other.example.com/ HTTP/1.1\nHost: shop.example.com\n\n",
        404,
    ),
    (
        "a length and chunks",
        "POST / HTTP/1.1\nHost: shop.example.com\nContent-Length: 4\nTransfer-Encoding: chunked\n\n0\n\nGET / HTTP/1.1\nHost: shop.example.com\n\n",
        400,
    ),
    (
        "two lengths",
        "POST / HTTP/1.1\nHost: shop.example.com\nContent-Length: 4\nContent-Length: 40\n\nGET / HTTP/1.1\nHost: shop.example.com\n\n",
        400,
    ),
    (
        "a length below zero",
        "POST / HTTP/1.1\nHost: shop.example.com\nContent-Length: -1\n\n",
        400,
    ),
    (
        "a length that is no number",
        "POST / HTTP/1.1\nHost: shop.example.com\nContent-Length: 0x10\n\n",
        400,
    ),
    (
        "an encoding that nobody knows",
        "POST / HTTP/1.1\nHost: shop.example.com\nTransfer-Encoding: xchunked\n\n0\n\n",
        501,
    ),
    (
        "chunks within another encoding",
        "POST / HTTP/1.1\nHost: shop.example.com\nTransfer-Encoding: chunked, identity\n\n0\n\n",
        501,
    ),
    (
        "a space before a header's colon",
        "POST / HTTP/1.1\nHost: shop.example.com\nContent-Length : 5\n\nhello",
        400,
    ),
    (
        "a NUL in a header",
        "GET / HTTP/1.1\nHost: shop.example.com\nx-a: a\0b\n\n",
        400,
    ),
    (
        "a header name with a bracket",
        "GET / HTTP/1.1\nHost: shop.example.com\nx(a): 1\n\n",
        400,
    ),
    (
        "a header without a name",
        "GET / HTTP/1.1\nHost: shop.example.com\n: 1\n\n",
        400,
    ),
    (
        "a control character in the path",
        "GET /\u{1} HTTP/1.1\nHost: shop.example.com\n\n",
        400,
    ),
    (
        "a NUL in the path",
        "GET /a\0b HTTP/1.1\nHost: shop.example.com\n\n",
        400,
    ),
    (
        "a fragment in the path",
        "GET /x#/../admin HTTP/1.1\nHost: shop.example.com\n\n",
        400,
    ),
    (
        "a version that does not exist",
        "GET / HTTP/9.9\nHost: shop.example.com\n\n",
        426,
    ),
    ("no version", "GET /\n\n", 426),
    (
        "a tunnel",
        "CONNECT shop.example.com:443 HTTP/1.1\nHost: shop.example.com:443\n\n",
        404,
    ),
    ("no HTTP", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\n\n", 400),
];

#[tokio::test(flavor = "multi_thread")]
async fn hostile_requests_reach_no_backend() {
    let stack = Stack::start(Options::default()).await;
    let backend = Backend::start("one").await;
    stack.register("orders", &backend).await;
    stack.put("gateway", GATEWAY).await;
    stack
        .put("shop", &route("shop", "shop.example.com", "orders"))
        .await;
    let request = Request::get("shop.example.com", "/");
    stack
        .until(&request, "the route", |reply| reply.status == 200)
        .await;
    let before = backend.requests();
    let mut wrong = Vec::new();
    for (what, text, status) in REQUESTS {
        let bytes = text.replace('\n', "\r\n");
        let answer = stack.client().raw(bytes.as_bytes()).await.unwrap();
        let first = answer.lines().next().unwrap_or_default();
        println!("{what}: {first}");
        if !first.starts_with(&format!("HTTP/1.1 {status} ")) {
            wrong.push(format!("{what}: {first}"));
        }
        // What was sent behind it is not taken for a request of its own.
        if answer.matches("HTTP/1.1 ").count() != 1 {
            wrong.push(format!("{what}: more than one answer: {answer}"));
        }
        if backend.requests() != before {
            wrong.push(format!("{what}: reached the backend"));
            break;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    stack
        .until(&request, "an honest request", |reply| reply.status == 200)
        .await;
}

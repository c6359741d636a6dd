//! Streams that live longer than Envoy's 15 s default for a whole request.

use std::time::Duration;

use futures::StreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{HeaderMap, HeaderValue};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::stack::{GATEWAY, Options, Stack, until};
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};

/// Server-sent events, an upgraded connection, and a gRPC call that streams in both directions. Meanwhile everything around
/// them changes.
#[tokio::test(flavor = "multi_thread")]
async fn long_streams_and_websockets_outlive_envoys_default() {
    let stack = Stack::start(Options::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(slow_server(socket));
        }
    });
    let service = serde_json::json!({ "ID": "slow", "Name": "slow", "Address": "127.0.0.1", "Port": port });
    stack.consul.register(&service).await;
    stack.put("gateway", GATEWAY).await;
    stack
        .put("slow", &crate::stack::route("slow", "slow.example.com", "slow"))
        .await;
    let grpc_port = grpc_server().await;
    stack
        .put("grpc", &GRPC.replace("$PORT", &grpc_port.to_string()))
        .await;
    stack
        .until(
            &Request::get("grpc.example.com", "/ping"),
            "the gRPC route",
            |reply| reply.status == 200,
        )
        .await;
    stack
        .until(&Request::get("slow.example.com", "/ping"), "the route", |reply| {
            reply.status == 200
        })
        .await;
    let events = talk(
        stack.http,
        "GET /events HTTP/1.1\r\nHost: slow.example.com\r\n\r\n",
        b"",
    );
    let websocket = talk(
        stack.http,
        "GET /ws HTTP/1.1\r\nHost: slow.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n\r\n",
        b"hello",
    );
    let (events, websocket, call, ()) = tokio::join!(events, websocket, grpc(stack.http), changes(&stack));
    call.unwrap();
    assert!(events.contains("event 17"), "the stream was cut: {events}");
    assert!(
        websocket.starts_with("HTTP/1.1 101") && websocket.contains("hello"),
        "{websocket}"
    );
}

/// The routes of the streams are edited, another instance joins, a listener opens beside theirs.
async fn changes(stack: &Stack) {
    tokio::time::sleep(Duration::from_secs(2)).await;
    let edited = crate::stack::route("slow", "slow.example.com", "slow").replace(
        "  rule \"all\" {",
        "  response_headers {\n    set = { \"x-edited\" = \"yes\" }\n  }\n\n  rule \"all\" {",
    );
    stack.put("slow", &edited).await;
    let other = Backend::start("other").await;
    stack.register("slow", &other).await;
    let two = "gateway \"edge\" {\n  listener \"web\" {\n    port = $HTTP\n  }\n\n  listener \"more\" {\n    port = $HTTPS\n  }\n}\n";
    stack.put("gateway", two).await;
    let ping = Request::get("slow.example.com", "/ping");
    until(&Client::http(stack.https), &ping, "the new listener", |reply| {
        reply.header("x-edited") == Some("yes") && reply.backend() == Some("other")
    })
    .await;
    stack.deregister("slow", &other).await;
}

/// Sends, and reads until the server's last word at 17 s.
async fn talk(port: u16, request: &str, body: &[u8]) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    let mut sent = body.is_empty();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(25);
    while !seen.contains("event 17") {
        let read = tokio::time::timeout_at(deadline, socket.read(&mut buffer)).await;
        let Ok(Ok(count @ 1..)) = read else { break };
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        if !sent && seen.contains("\r\n\r\n") {
            sent = true;
            socket.write_all(body).await.unwrap();
        }
    }
    seen
}

async fn slow_server(mut socket: TcpStream) {
    let mut buffer = [0; 4096];
    let count = socket.read(&mut buffer).await.unwrap_or(0);
    let request = String::from_utf8_lossy(&buffer[..count]).into_owned();
    if request.contains("/ping") {
        let _ = socket
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await;
        return;
    }
    let websocket = request.contains("/ws");
    let head: &[u8] = if websocket {
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    } else {
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    };
    if socket.write_all(head).await.is_err() {
        return;
    }
    if websocket {
        let count = socket.read(&mut buffer).await.unwrap_or(0);
        let _ = socket.write_all(&buffer[..count]).await;
    }
    for number in 1..=17 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if socket
            .write_all(format!("event {number}\n").as_bytes())
            .await
            .is_err()
        {
            return;
        }
    }
}

const GRPC: &str = r#"
upstream "grpc" {
  protocol = "http2"
  static { addresses = ["127.0.0.1:$PORT"] }
}

http_route "grpc" {
  gateways  = ["edge"]
  hostnames = ["grpc.example.com"]

  rule "all" {
    backend "upstream" "grpc" {}
  }
}
"#;

type Frames = std::pin::Pin<Box<dyn futures::Stream<Item = Result<Frame<Bytes>, hyper::Error>> + Send>>;

/// Answers every message with one, one a second, and ends with a gRPC status when the caller has ended.
async fn grpc_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = hyper::service::service_fn(async |request: hyper::Request<Incoming>| {
                assert_eq!(request.version(), hyper::Version::HTTP_2);
                let mut incoming = request.into_body().into_data_stream();
                let frames: Frames = Box::pin(async_stream::stream! {
                    while let Some(Ok(message)) = incoming.next().await {
                        yield Ok(Frame::data(message));
                    }
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static("0"));
                    yield Ok(Frame::trailers(trailers));
                });
                let response = hyper::Response::builder().header("content-type", "application/grpc");
                Ok::<_, std::convert::Infallible>(response.body(StreamBody::new(frames)).unwrap())
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(socket), service),
            );
        }
    });
    port
}

/// One call of 17 messages in each direction, one a second.
async fn grpc(port: u16) -> anyhow::Result<()> {
    let socket = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await?;
    tokio::spawn(connection);
    let messages: Frames = Box::pin(async_stream::stream! {
        for number in 1..=17 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            yield Ok(Frame::data(format!("message {number};").into()));
        }
    });
    let request = hyper::Request::post("http://grpc.example.com/shop.Orders/Watch")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(messages))?;
    let response = sender.send_request(request).await?;
    anyhow::ensure!(response.status() == 200, "{response:?}");
    let body = response.into_body().collect().await?;
    let trailers = body.trailers().cloned();
    let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    anyhow::ensure!(text.matches("message").count() == 17, "the call was cut: {text}");
    let status = trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
    anyhow::ensure!(status.is_some_and(|status| status == "0"), "{trailers:?}");
    Ok(())
}

//! How long a slow client may take, and whom X-Forwarded-For is believed from.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::stack::{Options, Stack};
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};

const DOCUMENT: &str = r#"
gateway "edge" {
  listener "patient" {
    port = $HTTP
  }

  listener "strict" {
    port                    = $HTTPS
    request_headers_timeout = "500ms"
    idle_timeout            = "1s"
    stream_idle_timeout     = "1s"
    trusted_proxies         = 1
  }
}

http_route "app" {
  gateways  = ["edge"]
  hostnames = ["app.example.com"]

  rule "office" {
    match { path_prefix = "/office" }
    client_ip {
      allow = ["10.0.0.0/8"]
    }
    backend "consul" "app" {}
  }

  rule "report" {
    match { path_prefix = "/report" }
    timeout = "20s"
    backend "consul" "app" {}
  }

  rule "app" {
    backend "consul" "app" {}
  }
}
"#;

/// Longer than anything on this page takes.
const LONG: Duration = Duration::from_secs(30);

struct Slow(TcpStream);

impl Slow {
    async fn connect(port: u16) -> Slow {
        Slow(TcpStream::connect(("127.0.0.1", port)).await.unwrap())
    }

    async fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// Everything until the other side closes.
    async fn rest(&mut self) -> String {
        let mut seen = Vec::new();
        tokio::time::timeout(LONG, self.0.read_to_end(&mut seen))
            .await
            .expect("the connection to be closed")
            .ok();
        String::from_utf8_lossy(&seen).into_owned()
    }

    /// One answer, which names its length.
    async fn answer(&mut self) -> String {
        let mut seen = String::new();
        let mut buffer = [0; 4096];
        loop {
            if let Some((head, body)) = seen.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| {
                    line.to_lowercase()
                        .strip_prefix("content-length:")?
                        .trim()
                        .parse()
                        .ok()
                });
                if body.len() >= length.unwrap_or(0) {
                    return seen;
                }
            }
            let read = tokio::time::timeout(LONG, self.0.read(&mut buffer)).await;
            let count = read.expect("an answer").expect("an open connection");
            assert!(count > 0, "closed after {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }
}

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n";

/// Each against a listener of defaults at the same time: what is cut there serves on here.
#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_cut_off_where_the_listener_says_so() {
    let stack = Stack::start(Options::default()).await;
    let backend = Backend::start("app").await;
    stack.register("app", &backend).await;
    stack.put("edge", DOCUMENT).await;
    let request = Request::get("app.example.com", "/");
    stack
        .until(&request, "the route", |reply| reply.status == 200)
        .await;
    let (patient, strict) = (stack.http, stack.https);
    let strict_client = Client::http(strict);
    crate::stack::until(&strict_client, &request, "the strict listener", |reply| {
        reply.status == 200
    })
    .await;

    // Headers that do not end.
    let (mut slow, mut cut) = (Slow::connect(patient).await, Slow::connect(strict).await);
    for connection in [&mut slow, &mut cut] {
        connection
            .say("GET / HTTP/1.1\r\nHost: app.example.com\r\n")
            .await;
    }
    let said = cut.rest().await;
    assert!(said.starts_with("HTTP/1.1 408"), "{said:?}");
    slow.say("\r\n").await;
    assert!(slow.answer().await.starts_with("HTTP/1.1 200"));

    // A connection without requests.
    let (mut slow, mut cut) = (Slow::connect(patient).await, Slow::connect(strict).await);
    for connection in [&mut slow, &mut cut] {
        connection.say(REQUEST).await;
        assert!(connection.answer().await.starts_with("HTTP/1.1 200"));
    }
    assert_eq!(cut.rest().await, "", "closed without a word");
    slow.say(REQUEST).await;
    assert!(slow.answer().await.starts_with("HTTP/1.1 200"));

    // A request on which nobody says anything.
    let late = request.clone().header("x-test-delay", "4000");
    let (kept, given_up) = (stack.client(), strict_client.clone());
    let (kept, given_up) = tokio::join!(kept.send(&late), given_up.send(&late));
    assert_eq!(kept.unwrap().status, 200);
    let given_up = given_up.unwrap();
    assert_eq!(given_up.status, 504, "{given_up:?}");
    // A rule that lets a request take longer means it.
    let report = Request::get("app.example.com", "/report").header("x-test-delay", "4000");
    assert_eq!(strict_client.send(&report).await.unwrap().status, 200);
    // The same while the client is the one that owes.
    let mut half = Slow::connect(strict).await;
    half.say("POST / HTTP/1.1\r\nHost: app.example.com\r\nContent-Length: 10\r\n\r\nhalf")
        .await;
    let said = half.rest().await;
    assert!(said.starts_with("HTTP/1.1 408"), "{said:?}");

    // One proxy of ours: it appended the last entry, whatever the client had written before it.
    let office =
        |entries: &str| Request::get("app.example.com", "/office").header("x-forwarded-for", entries);
    for (entries, expected) in [
        ("198.51.100.9, 10.1.2.3", 200),
        ("10.1.2.3, 198.51.100.9", 403),
        ("10.1.2.3, 10.1.2.3, 198.51.100.9", 403),
        ("10.1.2.3", 200),
    ] {
        let reply = strict_client.send(&office(entries)).await.unwrap();
        assert_eq!(reply.status, expected, "behind one proxy: {entries}");
        let reply = stack.client().send(&office(entries)).await.unwrap();
        assert_eq!(reply.status, 403, "behind none: {entries}");
    }
    let seen = strict_client
        .send(
            &Request::get("app.example.com", "/")
                .header("x-forwarded-for", "10.9.9.9, 198.51.100.9")
                .header("x-forwarded-host", "shown.example.com"),
        )
        .await
        .unwrap()
        .json();
    let told = seen["headers"]["x-forwarded-for"].as_str().unwrap();
    let told: Vec<&str> = told.split(',').map(str::trim).collect();
    assert_eq!(
        (&told[..2], told.len()),
        (&["10.9.9.9", "198.51.100.9"][..], 3),
        "the backend sees who told what, our proxy's address last: {seen}"
    );
    assert_eq!(
        seen["headers"]["x-forwarded-host"], "shown.example.com",
        "our proxy's word"
    );
}

//! What a `health_check` takes for healthy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::nomad::{until_all, upstream};
use crate::stack::{GATEWAY, Options, SOON, Stack, route};
use crate::support::backend::{Backend, Behaviour};
use crate::support::client::{Client, Request};
use crate::support::load::Load;
use crate::support::wait_for;

#[tokio::test(flavor = "multi_thread")]
async fn a_health_check_by_path_leaves_out_who_answers_wrongly() {
    let stack = Stack::start(Options::default()).await;
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    stack.put("gateway", GATEWAY).await;
    let addresses = format!(
        "  static {{\n    addresses = [\"127.0.0.1:{}\", \"127.0.0.1:{}\"]\n  }}\n  health_check {{\n    path     = \"/healthz\"\n    host     = \"orders.internal\"\n    interval = \"500ms\"\n  }}",
        one.port, two.port
    );
    stack.put("shop", &upstream("shop", &addresses)).await;
    let request = Request::get("shop.example.com", "/");
    stack
        .until(&request, "both", |reply| reply.backend() == Some("two"))
        .await;
    let failing = Behaviour {
        status: 500,
        ..Behaviour::default()
    };
    two.behave(failing.clone());
    until_all(&stack, &request, "the failing one to be left out", |reply| {
        reply.status == 200
    })
    .await;
    one.behave(failing);
    let closed = stack
        .until(&request, "none to be left", |reply| reply.status == 503)
        .await;
    assert_eq!(closed.header("x-portreeve-reason"), Some("no-healthy-instance"));

    // Without a host of its own it has one that servers take.
    one.behave(Behaviour::default());
    let addresses = addresses.replace("    host     = \"orders.internal\"\n", "");
    let plain = upstream("shop", &addresses).replace("shop", "plain");
    stack.put("plain", &plain).await;
    let request = Request::get("plain.example.com", "/");
    stack
        .until(&request, "a check that is answered", |reply| {
            reply.backend() == Some("one")
        })
        .await;
}

/// Answers checks with 204, one of them with 500, and requests with 200.
struct Stumbles {
    port: u16,
    checks: Arc<AtomicU64>,
}

/// The check that fails: Envoy has taken the instance for healthy before.
const STUMBLE: u64 = 4;

impl Stumbles {
    async fn start() -> Stumbles {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let checks = Arc::new(AtomicU64::new(0));
        let counted = checks.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(answer(socket, counted.clone()));
            }
        });
        Stumbles { port, checks }
    }
}

async fn answer(mut socket: TcpStream, checks: Arc<AtomicU64>) {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = socket.read(&mut buffer).await {
        seen.extend_from_slice(&buffer[..count]);
        if !seen.ends_with(b"\r\n\r\n") {
            continue;
        }
        let said = match seen.starts_with(b"GET /healthz ") {
            true if checks.fetch_add(1, Ordering::Relaxed) + 1 == STUMBLE => {
                "500 Internal Server Error\r\nContent-Length: 0"
            }
            true => "204 No Content",
            false => "200 OK\r\nContent-Length: 0",
        };
        let said = format!("HTTP/1.1 {said}\r\n\r\n");
        if socket.write_all(said.as_bytes()).await.is_err() {
            return;
        }
        seen.clear();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_2xx_is_healthy_and_one_failure_is_below_the_threshold() {
    let stack = Stack::start(Options::default()).await;
    let instance = Stumbles::start().await;
    stack.put("gateway", GATEWAY).await;
    let checked = format!(
        "  static {{\n    addresses = [\"127.0.0.1:{}\"]\n  }}\n  health_check {{\n    path                = \"/healthz\"\n    \
         interval            = \"500ms\"\n    unhealthy_threshold = 3\n  }}",
        instance.port
    );
    stack.put("shop", &upstream("shop", &checked)).await;
    let request = Request::get("shop.example.com", "/");
    stack
        .until(&request, "a healthy instance", |reply| reply.status == 200)
        .await;
    let client = stack.client();
    wait_for("checks after the one that failed", SOON, async || {
        let reply = client.send(&request).await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
        let checks = instance.checks.load(Ordering::Relaxed);
        anyhow::ensure!(checks >= STUMBLE + 3, "{checks} checks");
        Ok(())
    })
    .await;
}

/// A route to this upstream, and the upstream, in one document.
fn checked(upstream: &str, service: &str, check: &str) -> String {
    format!(
        "{}\nupstream \"{upstream}\" {{\n  consul {{\n    service = \"{service}\"\n  }}\n  health_check {{\n    path    = \"/healthz\"\n    {check}\n  }}\n}}\n",
        route("shop", "shop.example.com", "orders").replace(
            "backend \"consul\" \"orders\"",
            &format!("backend \"upstream\" \"{upstream}\"")
        )
    )
}

fn slow(delay: Duration) -> Behaviour {
    Behaviour {
        delay,
        ..Behaviour::default()
    }
}

async fn moves_once_checked(state_of_the_world: bool) {
    let stack = Stack::start(Options {
        state_of_the_world,
        ..Options::default()
    })
    .await;
    let (_one, shop) = stack.shop().await;
    let (two, hangs) = (Backend::start("two").await, Backend::start("hangs").await);
    hangs.behave(slow(Duration::from_secs(3600)));
    for backend in [&two, &hangs] {
        stack.register("checked", backend).await;
    }
    let loads = [stack.client(), Client::http(stack.http).keep_alive()]
        .map(|client| Load::start(100, client, shop.clone()));
    // Longer than a route waits for a cluster without checks.
    stack
        .put("shop", &checked("checked", "checked", "timeout = \"3s\""))
        .await;
    stack
        .until(&shop, "the new upstream", |reply| reply.backend() == Some("two"))
        .await;
    for load in loads {
        let report = load.finish().await;
        println!("{report}");
        report.assert_none_lost();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_moves_to_a_new_upstream_once_its_instances_were_checked() {
    moves_once_checked(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_moves_to_a_new_upstream_once_its_instances_were_checked_in_the_state_of_the_world() {
    moves_once_checked(true).await;
}

/// All instances of a checked upstream are replaced: by an edit, and by a deployment.
#[tokio::test(flavor = "multi_thread")]
async fn instances_that_are_replaced_at_once_serve_until_the_new_ones_were_checked() {
    let stack = Stack::start(Options::default()).await;
    let (_one, shop) = stack.shop().await;
    let (blue, green) = (Backend::start("blue").await, Backend::start("green").await);
    stack.register("blue", &blue).await;
    stack.register("green", &green).await;
    let colour = |name| checked("colour", name, "timeout = \"3s\"");
    stack.put("shop", &colour("blue")).await;
    stack
        .until(&shop, "blue", |reply| reply.backend() == Some("blue"))
        .await;
    let loads = [stack.client(), Client::http(stack.http).keep_alive()]
        .map(|client| Load::start(100, client, shop.clone()));
    for (name, backend, delay) in [
        ("green", &green, 0),
        ("blue", &blue, 0),
        ("green", &green, 700),
        ("blue", &blue, 700),
    ] {
        backend.behave(slow(Duration::from_millis(delay)));
        stack.put("shop", &colour(name)).await;
        stack
            .until(&shop, name, |reply| reply.backend() == Some(name))
            .await;
        // The others go, and with them what stood in for the new ones.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // Less overlap than a check takes.
    let next = Backend::start("next").await;
    next.behave(slow(Duration::from_millis(700)));
    stack.register("blue", &next).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    stack.deregister("blue", &blue).await;
    stack
        .until(&shop, "the next one", |reply| reply.backend() == Some("next"))
        .await;
    for load in loads {
        let report = load.finish().await;
        println!("{report}");
        report.assert_none_lost();
    }
    // What stood in does not serve for good.
    let stays = wait_for("the former instance to be gone", SOON, async || {
        let endpoints = stack
            .agent
            .api(Method::GET, "/v1/resources?gateway=edge&kind=endpoint", "")
            .await?;
        let text = endpoints.ok()?.text().to_owned();
        anyhow::ensure!(!text.contains(&blue.port.to_string()), "{text}");
        Ok(())
    });
    stays.await;
}

/// Two upstreams exchange their services in the change in which two routes exchange their upstreams: nobody may stand in
/// for the other.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_stands_in_under_a_route_that_comes_for_other_instances() {
    let stack = Stack::start(Options::default()).await;
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    stack.register("one", &one).await;
    stack.register("two", &two).await;
    stack.put("gateway", GATEWAY).await;
    let document = |upstreams: [&str; 2]| {
        let [of_one, of_two] = upstreams;
        checked(of_one, "one", "")
            + &checked(of_two, "two", "")
                .replace("\"shop\"", "\"next\"")
                .replace("shop.example.com", "next.example.com")
    };
    stack.put("both", &document(["left", "right"])).await;
    let (shop, next) = (
        Request::get("shop.example.com", "/"),
        Request::get("next.example.com", "/"),
    );
    stack
        .until(&shop, "one", |reply| reply.backend() == Some("one"))
        .await;
    stack
        .until(&next, "two", |reply| reply.backend() == Some("two"))
        .await;
    // As long as a check takes, somebody would stand in.
    for backend in [&one, &two] {
        backend.behave(slow(Duration::from_millis(300)));
    }
    let load = Load::start(50, stack.client(), shop.clone());
    stack.put("both", &document(["right", "left"])).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    stack
        .until(&next, "two again", |reply| reply.backend() == Some("two"))
        .await;
    let report = load.finish().await;
    println!("{report}");
    let others = report.backends.get("two").copied().unwrap_or_default();
    // Envoy takes endpoints and routes one after the other.
    assert!(others <= 3, "{report}");
}

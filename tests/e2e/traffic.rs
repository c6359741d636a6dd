//! The harness itself: its client names every fault between it and a backend, and its load counts them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::backend::{Backend, Behaviour};
use crate::support::client::{Client, Failure, Request};
use crate::support::envoy::Envoy;
use crate::support::load::{Load, Report};
use crate::support::pki::{Ca, Pair};
use crate::support::ports::free_port;
use crate::support::wait_for;

/// One listener on `port`, plain or with a certificate, before one backend.
fn static_bootstrap(port: u16, backend: u16, certificate: Option<&Pair>) -> Value {
    const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions";
    let address = |port: u16| json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": "backend" } });
    let router = format!("{EXTENSIONS}.filters.http.router.v3.Router");
    let manager = json!({
        "@type": format!("{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "web",
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [route] }] },
        "http_filters": [{ "name": "router", "typed_config": { "@type": router } }],
    });
    let mut chain = json!({ "filters": [{ "name": "http", "typed_config": manager }] });
    if let Some(pair) = certificate {
        let certificate = json!({
            "certificate_chain": { "inline_string": pair.certificate },
            "private_key": { "inline_string": pair.key },
        });
        let context = json!({
            "@type": format!("{EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext"),
            "common_tls_context": { "tls_certificates": [certificate] },
        });
        chain["transport_socket"] = json!({ "name": "tls", "typed_config": context });
    }
    let endpoint = json!({ "endpoint": { "address": address(backend) } });
    json!({
        "static_resources": {
            "listeners": [{ "name": "web", "address": address(port), "filter_chains": [chain] }],
            "clusters": [{
                "name": "backend", "type": "STATIC", "connect_timeout": "1s",
                "load_assignment": { "cluster_name": "backend", "endpoints": [{ "lb_endpoints": [endpoint] }] },
            }],
        },
    })
}

/// Enough of a fault to be told from chance, however slow the machine is.
async fn until_both_count(loads: [&Load; 2], of: fn(&Report) -> Option<u64>) {
    let limit = Duration::from_secs(15);
    wait_for("both loads to meet the fault", limit, async || {
        for load in loads {
            let report = load.so_far();
            anyhow::ensure!(of(&report) > Some(30), "{report}");
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_proxies_and_a_load_counts_its_faults() {
    let mut backend = Backend::start("one").await;
    let ca = Ca::new("test ca");
    let pair = ca.issue(&["shop.example.com"]);
    let (port, tls_port) = (free_port(), free_port());
    let mut envoy = Envoy::start(&static_bootstrap(port, backend.port, None));
    let mut tls = Envoy::start(&static_bootstrap(tls_port, backend.port, Some(&pair)));
    envoy.wait_ready().await;
    tls.wait_ready().await;
    let client = Client::http(port);
    let reply = client
        .send(
            &Request::post("shop.example.com", "/a%2Fb?x=1", "hello")
                .header("x-many", "1")
                .header("x-many", "2"),
        )
        .await
        .unwrap();
    let echo = reply.json();
    assert_eq!(
        (reply.status, reply.backend(), &echo["path"], &echo["body"]),
        (200, Some("one"), &json!("/a%2Fb"), &json!("hello"))
    );
    assert_eq!(echo["headers"]["host"], "shop.example.com");
    let raw = client
        .raw(b"GET /\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    assert!(raw.starts_with("HTTP/1.1 400"), "{raw}");
    let secure = Client::https(tls_port, &ca.certificate);
    let reply = secure.get("shop.example.com", "/").await;
    assert_eq!(reply.certificate.as_deref().unwrap(), &*pair.parsed().0[0]);
    assert!(matches!(
        secure.send(&Request::get("other.example.com", "/")).await,
        Err(Failure::Tls(_))
    ));
    assert_eq!(
        secure
            .clone()
            .sni("shop.example.com")
            .get("other.example.com", "/")
            .await
            .status,
        200
    );
    let untrusting = Client::https(tls_port, &Ca::new("else").certificate);
    assert!(matches!(
        untrusting.send(&Request::get("shop.example.com", "/")).await,
        Err(Failure::Tls(_))
    ));
    assert_eq!(
        Client::http(free_port())
            .send(&Request::get("x", "/"))
            .await
            .unwrap_err(),
        Failure::Refused
    );
    let slow = client.clone().timeout(Duration::from_millis(100));
    assert_eq!(
        slow.send(&Request::get("x", "/").header("x-test-delay", "1000"))
            .await
            .unwrap_err(),
        Failure::Timeout
    );
    assert_eq!(
        client
            .send(&Request::get("x", "/").header("x-test-status", "418"))
            .await
            .unwrap()
            .status,
        418
    );
    backend.behave(Behaviour {
        status: 202,
        body: Some("plain".into()),
        ..Behaviour::default()
    });
    assert_eq!(client.get("x", "/").await.text(), "plain");
    backend.behave(Behaviour::default());

    let report = Load::start(500, client.clone().keep_alive(), Request::get("shop", "/"))
        .run_for(Duration::from_secs(3))
        .await;
    report.assert_none_lost();
    let report = Load::start(
        300,
        Client::https(tls_port, &ca.certificate),
        Request::get("shop.example.com", "/"),
    )
    .run_for(Duration::from_secs(2))
    .await;
    report.assert_none_lost();
    assert!(envoy.admin.stat("http.web.downstream_rq_total").await > 1400);
    assert!(envoy.admin.config_dump().await["configs"].is_array());
    assert!(envoy.admin.clusters().await["cluster_statuses"].is_array());
    envoy.admin.listeners().await;
    tls.admin.certs().await;

    let load = Load::start(200, client.clone(), Request::get("shop", "/"));
    let kept = Load::start(200, client.clone().keep_alive(), Request::get("shop", "/"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    backend.stop().await;
    until_both_count([&load, &kept], |report| report.wrong_status.get(&503).copied()).await;
    backend.restart().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    envoy.kill();
    until_both_count([&load, &kept], |report| report.failed.get("refused").copied()).await;
    envoy.restart().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (report, kept) = (load.finish().await, kept.finish().await);
    assert!(
        report.wrong_status[&503] > 30 && report.failed["refused"] > 30,
        "{report}"
    );
    assert!(
        kept.wrong_status[&503] > 30 && kept.failed["refused"] > 30,
        "{kept}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_speaks_tls_and_http2() {
    let ca = Ca::new("ca");
    let backend = Backend::start_tls(
        "t",
        ca.issue(&["t.example.com", "127.0.0.1", "spiffe://dc1/t"])
            .server_config(),
    )
    .await;
    assert_eq!(
        Client::https(backend.port, &ca.certificate)
            .get("t.example.com", "/x")
            .await
            .backend(),
        Some("t")
    );
    let plain = Backend::start("h2").await;
    crate::support::http::install_tls_provider();
    let h2 = reqwest::Client::builder()
        .no_proxy()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let echo: Value = h2
        .get(format!("http://{}/q", plain.address()))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(echo["version"], "HTTP/2.0");
}

//! The network between the agent and Consul loses every packet: Consul is in a network of its own, at the end of a link.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::course::{Course, PLAIN_RULE};
use crate::support::network::{self, FarNetwork};
use crate::support::pki::Ca;
use crate::support::ports::free_port;
use crate::support::scratch_directory;
use crate::support::stack::Options;

#[tokio::test(flavor = "multi_thread")]
async fn consul_partitioned() {
    if !network::is_own() {
        return in_own_network("consul_partitioned", "partitions::consul_partitioned");
    }
    let link = Arc::new(FarNetwork::join().await);
    let options = Options {
        consul_network: Some(link.clone()),
        ..Options::default()
    };
    partitioned(Course::begin_with("consul_partitioned", options).await, &link).await;
}

/// Over TLS all polls are lost with a few connections.
#[tokio::test(flavor = "multi_thread")]
async fn consul_partitioned_https() {
    if !network::is_own() {
        return in_own_network("consul_partitioned_https", "partitions::consul_partitioned_https");
    }
    let link = Arc::new(FarNetwork::join().await);
    let directory = scratch_directory("partition");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("a file of Consul's");
        path
    };
    let (ca, https) = (Ca::new("consul"), free_port());
    let own = ca.issue(&[FarNetwork::ADDRESS]);
    let ca_file = file("ca.pem", &ca.certificate);
    let options = Options {
        consul_network: Some(link.clone()),
        consul_settings: Some(json!({
            "ports": { "https": https },
            "cert_file": file("consul.pem", &own.certificate),
            "key_file": file("consul.key", &own.key),
        })),
        consul_block: Some(format!(
            "address = \"https://{}:{https}\"\n  ca_file = {ca_file:?}",
            FarNetwork::ADDRESS
        )),
        ..Options::default()
    };
    partitioned(
        Course::begin_with("consul_partitioned_https", options).await,
        &link,
    )
    .await;
}

/// One change is written on the other side while nobody can see it, another when the link is back.
async fn partitioned(mut course: Course, link: &FarNetwork) {
    let (begun, made) = (Instant::now(), course.requests_made().await);
    assert!(made > 0.0, "nothing is counted");
    for _ in 0..course.rounds(1) {
        link.cut();
        assert_packets_vanish(&course.stack.consul.address()).await;
        course.lasts(500).await;
        let before = course.served_epoch().await;
        course.change_there(PLAIN_RULE, link);
        // No longer in the long form: the longer it lasts, the rarer the kernel sends again what was lost.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(course.served_epoch().await, before, "the link is cut");
        link.mend();
        course.recovers().await;
        course.lasts(300).await;
        course.change(PLAIN_RULE).await;
        course.recovers().await;
    }
    if crate::summary::is_long() {
        // So long that the polls are given up. A try to connect that was begun before its end may take 5 s: not held to the bar.
        let start = course.log_length();
        link.cut();
        course.change_there(PLAIN_RULE, link);
        course.silence_is_told_since(start, &["did not answer"]).await;
        link.mend();
        course.is_served().await;
    }
    let made = course.requests_made().await - made;
    course.asked_past_the_line(made / begun.elapsed().as_secs_f64());
    course.end().await;
}

/// Nobody answers, not even that nobody is there. In time the kernel gives up by itself.
async fn assert_packets_vanish(address: &str) {
    let connecting = tokio::net::TcpStream::connect(address);
    match tokio::time::timeout(Duration::from_millis(500), connecting).await {
        Err(_) => {}
        Ok(Err(error)) => assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error}"),
        Ok(Ok(_)) => panic!("{address} answers over a link that is cut"),
    }
}

/// Not played where this machine does not let us. Where CI runs that is a failure.
fn in_own_network(fault: &str, test: &str) {
    match network::lacking() {
        None => println!("{}", network::run_within(test)),
        Some(reason) => {
            let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
            println!("{fault}: not played: {reason}");
            assert!(!ci, "CI must play this");
        }
    }
}

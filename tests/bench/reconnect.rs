//! Many Envoys come back at once while nothing has changed, to the server that they left and to a new process in its
//! place: what is sent to them, and what it costs the server.
//!
//! That nothing is sent shows only in order: after the storm two endpoints change one after the other, each stream has to
//! hear of both, and everything that it was sent besides is counted.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use portreeve::envoy::ResourceKind;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::Plan;
use crate::ads_client::{AdsClient, Held};
use crate::child::Child;
use crate::clock::microseconds;
use crate::report::Report;
use crate::support::scratch_directory;

/// Client to meter.
enum Heard {
    /// The first, whole state has arrived: so many bytes of resources.
    Whole(usize),
    /// The stream is open anew.
    Back,
    /// An endpoint that changed has arrived.
    Change,
    /// Both have, and so many bytes of resources besides.
    Besides(usize),
}

struct Storm {
    bytes: usize,
    cpu: Duration,
}

pub fn run(plan: &Plan, report: &mut Report) {
    let runtime = crate::runtime();
    let (streams, clusters) = if plan.quick { (200, 100) } else { (1_000, 1_000) };
    report.add("reconnect_streams", "streams", streams as f64);
    report.add("reconnect_clusters", "clusters", clusters as f64);
    for _ in 0..plan.rounds {
        let (first, restarted, same) = runtime.block_on(storms(streams, clusters));
        report.add("reconnect_first_bytes", "bytes", first as f64);
        for (storm, label, server) in [
            (same, "", "to the server"),
            (restarted, "_restarted", "to a server in its place"),
        ] {
            report.add(&format!("reconnect_bytes{label}"), "bytes", storm.bytes as f64);
            report.add(
                &format!("reconnect_us_per_stream{label}"),
                "us CPU",
                microseconds(storm.cpu) / streams as f64,
            );
            if storm.bytes > 0 {
                report.fail(format!(
                    "{} bytes of resources sent to Envoys that came back {server} and held all of them",
                    storm.bytes
                ));
            }
        }
    }
}

/// What all streams were sent at first, and both storms.
async fn storms(streams: usize, clusters: usize) -> (usize, Storm, Storm) {
    let directory = scratch_directory("reconnect");
    let socket = directory.path().join("ads.sock");
    let services = clusters.to_string();
    let arguments = ["--serve-ads", socket.to_str().expect("a path"), &services];
    let child = Child::start(&arguments).await;
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let (order, orders) = watch::channel(());
    let opening = Arc::new(Semaphore::new(16));
    let mut clients = JoinSet::new();
    for _ in 0..streams {
        let client = client(
            socket.clone(),
            clusters,
            heard.clone(),
            opening.clone(),
            orders.clone(),
        );
        clients.spawn(client);
    }
    let mut first = 0;
    for _ in 0..streams {
        match next(&mut hearing).await {
            Heard::Whole(bytes) => first += bytes,
            _ => panic!("a stream is ahead"),
        }
    }
    // The new process is made of the same documents and answers.
    child.end().await;
    let mut child = Child::start(&arguments).await;
    let restarted = storm(&mut child, &order, &mut hearing, streams, 1).await;
    let same = storm(&mut child, &order, &mut hearing, streams, 3).await;
    child.end().await;
    (first, restarted, same)
}

async fn storm(
    child: &mut Child,
    order: &watch::Sender<()>,
    hearing: &mut mpsc::UnboundedReceiver<Heard>,
    streams: usize,
    edition: usize,
) -> Storm {
    until_still(child).await;
    let before = child.ask("cpu").await;
    order.send_replace(());
    for _ in 0..streams {
        assert!(matches!(next(hearing).await, Heard::Back), "a stream is ahead");
    }
    let cpu = until_still(child).await - before;
    let mut bytes = 0;
    for change in [edition, edition + 1] {
        child.ask(&change.to_string()).await;
        for _ in 0..streams {
            assert!(matches!(next(hearing).await, Heard::Change), "a stream is ahead");
        }
        until_still(child).await;
    }
    order.send_replace(());
    for _ in 0..streams {
        match next(hearing).await {
            Heard::Besides(besides) => bytes += besides,
            _ => panic!("a stream is ahead"),
        }
    }
    Storm { bytes, cpu }
}

/// Until the server has nothing left to do; its CPU time then.
async fn until_still(child: &mut Child) -> Duration {
    let mut before = child.ask("cpu").await;
    for _ in 0..400 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = child.ask("cpu").await;
        if now - before < Duration::from_millis(1) {
            return now;
        }
        before = now;
    }
    panic!("the server does not come to rest");
}

async fn client(
    socket: PathBuf,
    clusters: usize,
    heard: mpsc::UnboundedSender<Heard>,
    opening: Arc<Semaphore>,
    mut orders: watch::Receiver<()>,
) {
    let say = |what| heard.send(what).expect("a meter");
    let permit = opening.acquire().await.expect("never closed");
    let mut stream = AdsClient::open(&socket, Held::new()).await;
    let mut bytes = 0;
    while !stream.holds(clusters) {
        bytes += stream.next().await.bytes();
    }
    drop(permit);
    say(Heard::Whole(bytes));
    while orders.changed().await.is_ok() {
        stream = AdsClient::open(&socket, stream.into_held()).await;
        say(Heard::Back);
        let (mut changes, mut besides) = (0, 0);
        loop {
            let told = tokio::select! {
                // What has arrived counts before the end does.
                biased;
                told = stream.next() => told,
                order = orders.changed() => match order {
                    Ok(()) => break,
                    Err(_) => return,
                },
            };
            besides += told.other_bytes;
            for (kind, bytes) in told.news {
                if kind == ResourceKind::Endpoint && changes < 2 {
                    changes += 1;
                    say(Heard::Change);
                } else {
                    besides += bytes;
                }
            }
        }
        say(Heard::Besides(besides));
    }
}

async fn next(hearing: &mut mpsc::UnboundedReceiver<Heard>) -> Heard {
    let heard = tokio::time::timeout(Duration::from_secs(120), hearing.recv()).await;
    heard.expect("every stream hears in time").expect("clients")
}

//! An open-loop load: requests leave at a fixed rate whatever becomes of them, and every one is accounted
//! for.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval};

use super::client::{Client, Failure, Reply, Request};

/// A connection whose first packet was lost is tried again after a second: what takes so long is worth to be known one by one.
const SLOW: Duration = Duration::from_millis(500);

/// What became of the requests. `sent` is the sum of all the others.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub sent: u64,
    /// Answered with an expected status.
    pub ok: u64,
    /// Answered with another one.
    pub wrong_status: BTreeMap<u16, u64>,
    /// Not answered, by [`Failure::kind`].
    pub failed: BTreeMap<&'static str, u64>,
    /// By [`super::backend::Backend`] name, of those that were answered.
    pub backends: BTreeMap<String, u64>,
    /// All that were not answered.
    pub failures: Vec<Failed>,
    /// The first few of each kind of failure, and when since the start.
    pub first: Vec<String>,
    /// Those that took longer than [`SLOW`], answered or not: when they were due, and how long.
    pub slow: Vec<(Duration, Duration)>,
    /// From the moment a request was due, not from when it left: a stall counts in full.
    latencies: Vec<Duration>,
}

/// One request without an answer. Times are since the load's start.
#[derive(Clone, Debug)]
pub struct Failed {
    pub kind: &'static str,
    /// When it was to leave.
    pub due: Duration,
    pub after: Duration,
}

pub struct Load {
    stop: Arc<AtomicBool>,
    report: Arc<Mutex<Report>>,
    sender: JoinHandle<()>,
}

impl Load {
    /// `rate` requests a second until [`Load::finish`]. Only status 200 is expected.
    pub fn start(rate: u32, client: Client, request: Request) -> Load {
        Load::start_expecting(rate, client, request, |reply| reply.status == 200)
    }

    pub fn start_expecting(
        rate: u32,
        client: Client,
        request: Request,
        expected: fn(&Reply) -> bool,
    ) -> Load {
        let (stop, report) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(Mutex::new(Report::default())),
        );
        let sending = send(rate, client, request, expected, stop.clone(), report.clone());
        Load {
            sender: tokio::spawn(sending),
            stop,
            report,
        }
    }

    pub fn so_far(&self) -> Report {
        self.report.lock().unwrap().clone()
    }

    /// How many requests have an end so far.
    pub fn sent(&self) -> u64 {
        self.report.lock().unwrap().sent
    }

    /// How many of them had no expected answer.
    pub fn lost(&self) -> u64 {
        self.report.lock().unwrap().lost()
    }

    /// How many answers came from the backend of this name so far.
    pub fn answered_by(&self, backend: &str) -> u64 {
        let report = self.report.lock().unwrap();
        report.backends.get(backend).copied().unwrap_or_default()
    }

    /// Lets it run for `duration`, then finishes it.
    pub async fn run_for(self, duration: Duration) -> Report {
        tokio::time::sleep(duration).await;
        self.finish().await
    }

    /// Sends no more, waits for the answers that are still due, and reports.
    pub async fn finish(mut self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        (&mut self.sender).await.expect("the load's sender");
        self.so_far()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.sender.abort();
    }
}

async fn send(
    rate: u32,
    client: Client,
    request: Request,
    expected: fn(&Reply) -> bool,
    stop: Arc<AtomicBool>,
    report: Arc<Mutex<Report>>,
) {
    let started = Instant::now();
    let request = Arc::new(request);
    let mut ticks = interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut under_way = JoinSet::new();
    while !stop.load(Ordering::Relaxed) {
        let due = ticks.tick().await.into_std();
        let (client, request, report) = (client.clone(), request.clone(), report.clone());
        under_way.spawn(async move {
            let outcome = client.send(&request).await;
            let mut report = report.lock().unwrap();
            report.count(
                outcome,
                expected,
                due.saturating_duration_since(started),
                due.elapsed(),
            );
        });
        while under_way.try_join_next().is_some() {}
    }
    while under_way.join_next().await.is_some() {}
}

impl Report {
    fn count(
        &mut self,
        outcome: Result<Reply, Failure>,
        expected: fn(&Reply) -> bool,
        at: Duration,
        latency: Duration,
    ) {
        self.sent += 1;
        self.latencies.push(latency);
        if latency > SLOW {
            self.slow.push((at, latency));
        }
        let (so_many, problem) = match outcome {
            Ok(reply) => {
                if let Some(backend) = reply.backend() {
                    *self.backends.entry(backend.to_owned()).or_default() += 1;
                }
                if expected(&reply) {
                    self.ok += 1;
                    return;
                }
                let so_many = self.wrong_status.entry(reply.status).or_default();
                *so_many += 1;
                let text: String = reply.text().chars().take(200).collect();
                (*so_many, format!("status {}: {text}", reply.status))
            }
            Err(failure) => {
                let so_many = self.failed.entry(failure.kind()).or_default();
                *so_many += 1;
                self.failures.push(Failed {
                    kind: failure.kind(),
                    due: at,
                    after: latency,
                });
                (*so_many, failure.to_string())
            }
        };
        if so_many <= 3 {
            self.first.push(format!(
                "at {:.3} s, after {latency:.1?}: {problem}",
                at.as_secs_f64()
            ));
        }
    }

    /// Every request without an expected answer. A stale kept connection counts: see
    /// [`Report::lost_but_stale`].
    pub fn lost(&self) -> u64 {
        self.sent - self.ok
    }

    /// The same without [`Failure::Stale`], the one failure after which clients send a request again by
    /// themselves.
    pub fn lost_but_stale(&self) -> u64 {
        self.lost() - self.failed.get(Failure::Stale.kind()).copied().unwrap_or(0)
    }

    /// The latency that this share of all requests stayed within, e.g. 0.99; 1.0 is the slowest.
    pub fn latency(&self, share: f64) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let index = (sorted.len() as f64 * share).ceil() as usize;
        sorted
            .get(index.clamp(1, sorted.len().max(1)) - 1)
            .copied()
            .unwrap_or_default()
    }

    #[track_caller]
    pub fn assert_none_lost(&self) {
        assert!(self.sent > 0, "no request was sent");
        assert!(self.lost() == 0, "requests were lost: {self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sent, {} ok, wrong status {:?}, ",
            self.sent, self.ok, self.wrong_status
        )?;
        write!(f, "failed {:?}, backends {:?}; ", self.failed, self.backends)?;
        write!(
            f,
            "p50 {:.1?}, p99 {:.1?}, ",
            self.latency(0.5),
            self.latency(0.99)
        )?;
        write!(f, "slowest {:.1?}", self.latency(1.0))?;
        self.first.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

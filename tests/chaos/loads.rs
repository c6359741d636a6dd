//! What a course sends: most requests on connections of their own, some on connections that are kept, and a few over which
//! their backend takes a second. Each kind has an account of its own.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::summary::is_long;
use crate::support::client::{Client, Failure, Request};
use crate::support::load::{Failed, Load, Report};

/// So long a backend takes over a slow request. Half of the stacks' drain time: what is under way on a listener or an Envoy
/// that makes way has an end in time. A connection that was kept may begin one late in that time, so these have their own.
pub const SLOW: Duration = Duration::from_secs(1);

/// So long an instance that was taken out goes on for what it still has.
pub const DRAIN: Duration = Duration::from_secs(2);

/// Two clocks, each read on a busy machine.
const SLACK: Duration = Duration::from_millis(100);

pub struct Loads {
    fresh: Load,
    kept: Load,
    /// On kept connections too, by HTTP/2, where there is https.
    http2: Option<Load>,
    slow: Load,
}

/// What became of the requests of one kind. `sent` is the sum of those that were answered and all the others.
#[derive(Clone, Debug, Default)]
pub struct Account {
    pub sent: u64,
    pub failed: u64,
    /// Failed and allowed to, by reason.
    pub excused: Map<String, Value>,
    /// Sent on a kept connection that the server closed before the first byte of an answer, or of which it said by HTTP/2 that it
    /// did not take them up. Nobody can announce that to a client whose request is on its way: clients send such a request again by
    /// themselves, this one does not.
    pub stale: u64,
    /// Without the time that the backend was told to take.
    pub worst: Duration,
}

/// When an Envoy was killed, was gone, and when the next one answered. Between the first two the kernel still takes
/// connections for it.
#[derive(Clone, Copy)]
pub struct WithoutEnvoy {
    pub killed: Duration,
    pub gone: Duration,
    pub open: Duration,
}

impl Loads {
    /// So many requests a second on new connections, and the others beside.
    pub fn start(rate: u32, client: Client, request: Request) -> Loads {
        let (kept_rate, slow_rate) = if is_long() { (30, 2) } else { (10, 1) };
        let takes = SLOW.as_millis().to_string();
        let slow = request.clone().header("x-test-delay", &takes);
        Loads {
            kept: Load::start(kept_rate, client.clone().keep_alive(), request.clone()),
            http2: client.is_https().then(|| {
                let client = client.clone().http2().keep_alive();
                Load::start(kept_rate, client, request.clone())
            }),
            slow: Load::start(slow_rate, client.clone(), slow),
            fresh: Load::start(rate, client, request),
        }
    }

    /// Requests on new connections.
    pub fn sent(&self) -> u64 {
        self.fresh.sent()
    }

    /// Requests of all kinds without an expected answer so far, the excused and the stale with them.
    pub fn lost(&self) -> u64 {
        let http2 = self.http2.as_ref().map_or(0, Load::lost);
        self.fresh.lost() + self.kept.lost() + http2 + self.slow.lost()
    }

    /// Those on new connections that the backend of this name answered.
    pub fn answered_by(&self, backend: &str) -> u64 {
        self.fresh.answered_by(backend)
    }

    /// Sends no more, waits for the answers that are still due, and closes the accounts.
    pub async fn finish(self, without_envoy: &[WithoutEnvoy]) -> Vec<(&'static str, Account)> {
        let Loads {
            fresh,
            kept,
            http2,
            slow,
        } = self;
        let http2 = async {
            match http2 {
                Some(load) => Some(load.finish().await),
                None => None,
            }
        };
        let (fresh, kept, http2, slow) = tokio::join!(fresh.finish(), kept.finish(), http2, slow.finish());
        let mut reports = vec![
            ("fresh", fresh, Duration::ZERO),
            ("kept", kept, Duration::ZERO),
            ("slow", slow, SLOW),
        ];
        reports.extend(http2.map(|report| ("http2", report, Duration::ZERO)));
        let accounts = reports.into_iter().map(|(kind, report, takes)| {
            let account = Account::of(&report, without_envoy, takes);
            if account.failed > 0 || account.stale > 0 {
                println!("{kind}: {report}");
            }
            (kind, account)
        });
        accounts.collect()
    }
}

impl Account {
    fn of(report: &Report, without_envoy: &[WithoutEnvoy], takes: Duration) -> Account {
        let mut account = Account {
            sent: report.sent,
            worst: report.latency(1.0).saturating_sub(takes),
            ..Account::default()
        };
        for failed in &report.failures {
            if let Some(reason) = excuse(failed, without_envoy) {
                let before = account.excused.get(reason).and_then(Value::as_u64).unwrap_or(0);
                account.excused.insert(reason.to_owned(), json!(before + 1));
            } else if failed.kind == Failure::Stale.kind() {
                account.stale += 1;
            }
        }
        account.failed = report.lost() - account.excused_in_all() - account.stale;
        account
    }

    pub fn excused_in_all(&self) -> u64 {
        self.excused.values().filter_map(Value::as_u64).sum()
    }

    pub fn shown(&self) -> Value {
        json!({
            "sent": self.sent,
            "failed": self.failed,
            "excused": self.excused_in_all(),
            "stale_connections": self.stale,
            "worst_ms": self.worst.as_secs_f64() * 1e3,
        })
    }
}

/// Those that were in flight on an Envoy when it was killed, and those that came while there was none.
fn excuse(failed: &Failed, without_envoy: &[WithoutEnvoy]) -> Option<&'static str> {
    let ended_before = |time: Duration| failed.due + failed.after + SLACK < time;
    let is_in_flight =
        |window: &WithoutEnvoy| failed.due <= window.gone + SLACK && !ended_before(window.killed);
    let is_refused =
        |window: &WithoutEnvoy| failed.due <= window.open + SLACK && !ended_before(window.killed);
    match failed.kind {
        // On a kept connection what was in flight looks as if it had been idle.
        "reset" | "stale connection" if without_envoy.iter().any(is_in_flight) => {
            Some("in flight on the killed Envoy")
        }
        "refused" if without_envoy.iter().any(is_refused) => Some("no Envoy process"),
        _ => None,
    }
}

#[test]
fn a_stale_connection_is_excused_by_a_kill_alone() {
    let at = Duration::from_secs;
    let killed = WithoutEnvoy {
        killed: at(10),
        gone: at(11),
        open: at(13),
    };
    let failed = |kind, due| Failed {
        kind,
        due: at(due),
        after: Duration::from_millis(10),
    };
    let in_flight = Some("in flight on the killed Envoy");
    assert_eq!(excuse(&failed("stale connection", 10), &[killed]), in_flight);
    assert_eq!(excuse(&failed("reset", 11), &[killed]), in_flight);
    assert_eq!(excuse(&failed("stale connection", 5), &[killed]), None);
    assert_eq!(excuse(&failed("reset", 12), &[killed]), None);
    assert_eq!(
        excuse(&failed("refused", 12), &[killed]),
        Some("no Envoy process")
    );
    assert_eq!(excuse(&failed("refused", 12), &[]), None);

    let mut report = Report::default();
    (report.sent, report.ok) = (5, 2);
    report.failures = vec![
        failed("reset", 5),
        failed("stale connection", 5),
        failed("stale connection", 10),
    ];
    let account = Account::of(&report, &[killed], Duration::ZERO);
    assert_eq!(
        (account.failed, account.stale, account.excused_in_all()),
        (1, 1, 1)
    );
}

//! What the agent takes of the machine while things go wrong.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::support::process::memory_kib;

/// What /proc counts in, on every Linux there is.
const TICKS_PER_SECOND: f64 = 100.0;

/// Work that goes on without an end shows over so long; a start, or a burst of news, is over by then.
const WINDOW: Duration = Duration::from_secs(5);

/// Adds up over all the processes that the agent is in turn.
pub struct Observer {
    pid: Arc<AtomicU32>,
    task: JoinHandle<()>,
    used: Arc<Mutex<Used>>,
}

impl Observer {
    pub fn of(pid: u32) -> Observer {
        let pid = Arc::new(AtomicU32::new(pid));
        let used = Arc::new(Mutex::new(Used::default()));
        let begun = Instant::now();
        let (watched, account) = (pid.clone(), used.clone());
        let task = tokio::spawn(async move {
            let mut last = (0, 0);
            loop {
                let now = watched.load(Ordering::Relaxed);
                let mut more = 0;
                if let Some(used) = cpu_ticks(now) {
                    // Another process begins with nothing; the first one's start is not the fault's.
                    let before = if last.0 == now {
                        last.1
                    } else if last.0 == 0 {
                        used
                    } else {
                        0
                    };
                    more = used.saturating_sub(before);
                    last = (now, used);
                }
                // While none runs the time goes on all the same.
                account.lock().unwrap().note(begun.elapsed(), more);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Observer { pid, task, used }
    }

    pub fn follow(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// The share of one core since the start.
    pub fn cpu(&self) -> f64 {
        self.used.lock().unwrap().share()
    }

    /// The share of one core in the [`WINDOW`] with the most; in all, where it has not been so long.
    pub fn busiest_cpu(&self) -> f64 {
        let used = self.used.lock().unwrap();
        used.busiest.unwrap_or_else(|| used.share())
    }

    /// What it took since the start.
    pub fn cpu_time(&self) -> Duration {
        let (_, ticks) = self.used.lock().unwrap().last();
        Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND)
    }

    /// Resident memory now; 0 when it does not run.
    pub fn memory_kib(&self) -> u64 {
        memory_kib(self.pid())
    }

    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }
}

/// How many files a process has open.
pub fn open_files(pid: u32) -> u64 {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |files| files.count() as u64)
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What was used so far, and when.
#[derive(Default)]
struct Used {
    /// Since the start, and all ticks until then. The first is a [`WINDOW`] ago, or the start.
    samples: VecDeque<(Duration, u64)>,
    busiest: Option<f64>,
}

impl Used {
    fn note(&mut self, at: Duration, more: u64) {
        let (_, before) = self.last();
        self.samples.push_back((at, before + more));
        while self.samples.get(1).is_some_and(|(next, _)| *next + WINDOW <= at) {
            self.samples.pop_front();
        }
        let (from, start) = self.samples[0];
        if at - from >= WINDOW {
            let share = share_of(before + more - start, at - from);
            self.busiest = Some(self.busiest.unwrap_or_default().max(share));
        }
    }

    fn last(&self) -> (Duration, u64) {
        self.samples.back().copied().unwrap_or_default()
    }

    fn share(&self) -> f64 {
        let (at, ticks) = self.last();
        share_of(ticks, at)
    }
}

fn share_of(ticks: u64, time: Duration) -> f64 {
    ticks as f64 / TICKS_PER_SECOND / time.as_secs_f64().max(0.001)
}

/// User and system time of a process.
fn cpu_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold blanks.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

#[test]
fn a_busy_while_shows_however_long_it_is_quiet_around() {
    let mut used = Used::default();
    for tenth in 0..600 {
        // A whole core from second 20 to second 24, a start of a second at 40.
        let busy = (200..240).contains(&tenth) || (400..410).contains(&tenth);
        used.note(Duration::from_millis(tenth * 100), if busy { 10 } else { 0 });
    }
    assert_eq!(used.busiest, Some(0.8));
    assert!((0.08..0.09).contains(&used.share()), "{}", used.share());

    let mut short = Used::default();
    short.note(Duration::ZERO, 0);
    short.note(Duration::from_secs(2), 100);
    assert_eq!((short.busiest, short.share()), (None, 0.5));
}

//! How long changes take to be served: which were written, and which of them requests meet.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::support::client::{Client, Reply, Request};

/// Between two looks while a change is due.
const PAUSE: Duration = Duration::from_millis(10);

pub struct Epochs {
    due: Arc<Mutex<Due>>,
    looking: JoinHandle<()>,
}

#[derive(Default)]
struct Due {
    /// In the order of their writes.
    written: VecDeque<(u32, Instant)>,
    longest: Option<Duration>,
}

impl Epochs {
    /// Looks with requests of its own, which nobody counts, and with none while every change is served.
    pub fn watch(client: Client) -> Epochs {
        let due = Arc::new(Mutex::new(Due::default()));
        let request = request();
        let watched = due.clone();
        let looking = tokio::spawn(async move {
            loop {
                tokio::time::sleep(PAUSE).await;
                if watched.lock().unwrap().written.is_empty() {
                    continue;
                }
                if let Ok(reply) = client.send(&request).await
                    && let Some(epoch) = epoch_of(&reply)
                {
                    watched.lock().unwrap().met(epoch, Instant::now());
                }
            }
        });
        Epochs { due, looking }
    }

    /// To be called before the write: what is measured begins with it.
    pub fn written(&self, epoch: u32) {
        self.due
            .lock()
            .unwrap()
            .written
            .push_back((epoch, Instant::now()));
    }

    /// Whether a change that was written is not served yet.
    pub fn is_due(&self) -> bool {
        !self.due.lock().unwrap().written.is_empty()
    }

    /// Another kind of change was not served for so long.
    pub fn note(&self, stale: Duration) {
        let mut due = self.due.lock().unwrap();
        due.longest = due.longest.max(Some(stale));
    }

    /// From the write of a change to the first request that met it or a later one: the longest of all.
    pub fn longest(&self) -> Option<Duration> {
        self.due.lock().unwrap().longest
    }
}

impl Drop for Epochs {
    fn drop(&mut self) {
        self.looking.abort();
    }
}

impl Due {
    fn met(&mut self, epoch: u32, now: Instant) {
        let Some(at) = self.written.iter().position(|(written, _)| *written == epoch) else {
            return;
        };
        for (_, written) in self.written.drain(..=at) {
            self.longest = self.longest.max(Some(now - written));
        }
    }
}

/// Whose answer says of which change it is.
pub fn request() -> Request {
    Request::get("shop.example.com", "/")
}

pub fn epoch_of(reply: &Reply) -> Option<u32> {
    reply.headers.get("x-epoch")?.to_str().ok()?.parse().ok()
}

#[test]
fn a_change_is_stale_from_its_own_write_on() {
    let begun = Instant::now();
    let at = |ms| begun + Duration::from_millis(ms);
    let mut due = Due::default();
    due.written.extend([(1, at(0)), (2, at(100)), (3, at(200))]);
    due.met(1, at(30));
    assert_eq!(due.longest, Some(Duration::from_millis(30)));
    // An older state again, and one that nobody wrote.
    due.met(1, at(150));
    due.met(9, at(160));
    assert_eq!(
        (due.longest, due.written.len()),
        (Some(Duration::from_millis(30)), 2)
    );
    // The second was never seen: it is as old as the third is new.
    due.met(3, at(220));
    assert_eq!(
        (due.longest, due.written.len()),
        (Some(Duration::from_millis(120)), 0)
    );
}

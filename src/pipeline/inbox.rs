//! From the pipeline to the thread that writes the agent's state: the newest write of each entry, however long the disk
//! hangs.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use super::store::Write;

/// By table and key.
pub(super) type Waiting = BTreeMap<(&'static str, String), Write>;

pub(super) fn new() -> (Outbox, Arc<Inbox>) {
    let inbox = Arc::new(Inbox::default());
    (Outbox(inbox.clone()), inbox)
}

/// Dropped with the last store: the writer ends when it has written what is there.
pub(super) struct Outbox(Arc<Inbox>);

impl Outbox {
    pub(super) fn send(&self, entry: (&'static str, String), write: Write) {
        let mut content = self.0.lock();
        if content.has_ended {
            return;
        }
        content.writes.insert(entry, write);
        drop(content);
        self.0.news.notify_one();
    }

    /// Returns when everything sent so far was written, or never will be.
    pub(super) fn flush(&self) {
        let (done, wait) = mpsc::channel();
        {
            let mut content = self.0.lock();
            // An ended writer answers nobody.
            if content.has_ended {
                return;
            }
            content.flushes.push(done);
        }
        self.0.news.notify_one();
        // An error: it ended before it came to this.
        let _ = wait.recv();
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.news.notify_one();
    }
}

/// What the writer has not taken up yet.
#[derive(Default)]
pub(super) struct Inbox {
    content: Mutex<Content>,
    news: Condvar,
}

#[derive(Default)]
struct Content {
    /// The newest for each entry: however long the disk hangs, it does not grow beyond what there is to write.
    writes: Waiting,
    flushes: Vec<mpsc::Sender<()>>,
    is_closed: bool,
    /// The writer is gone.
    has_ended: bool,
}

impl Content {
    fn is_idle(&mut self) -> bool {
        self.writes.is_empty() && self.flushes.is_empty() && !self.is_closed
    }
}

impl Inbox {
    /// Held by the writer for as long as it lives.
    pub(super) fn ending(&self) -> Ending<'_> {
        Ending(self)
    }

    #[cfg(test)]
    pub(super) fn has_ended(&self) -> bool {
        self.lock().has_ended
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        // Whole after each statement, whatever a panicking holder was about to do.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something, or this long. None: nothing will come any more.
    pub(super) fn take(&self, limit: Option<Duration>) -> Option<(Waiting, Vec<mpsc::Sender<()>>)> {
        let content = self.lock();
        let mut content = match limit {
            None => self
                .news
                .wait_while(content, Content::is_idle)
                .unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                let waited = self.news.wait_timeout_while(content, limit, Content::is_idle);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        let taken = (
            std::mem::take(&mut content.writes),
            std::mem::take(&mut content.flushes),
        );
        let is_over = content.is_closed && taken.0.is_empty() && taken.1.is_empty();
        (!is_over).then_some(taken)
    }
}

/// However the writer ends, nobody waits for it any more.
pub(super) struct Ending<'a>(&'a Inbox);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let mut content = self.0.lock();
        content.has_ended = true;
        content.flushes.clear();
        content.writes.clear();
        if std::thread::panicking() {
            tracing::error!(
                "what saves the agent's state has failed: nothing is saved any more; report it, and restart the agent"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In time that no machine is too slow for, and never if nobody answers.
    fn flushes(outbox: &Arc<Outbox>) -> bool {
        let (done, wait) = mpsc::channel();
        let outbox = outbox.clone();
        std::thread::spawn(move || {
            outbox.flush();
            let _ = done.send(());
        });
        wait.recv_timeout(Duration::from_secs(20)).is_ok()
    }

    #[test]
    fn nobody_waits_for_a_writer_that_has_failed() {
        let (outbox, inbox) = new();
        let outbox = Arc::new(outbox);
        let writer = std::thread::spawn({
            let inbox = inbox.clone();
            move || {
                let _ending = inbox.ending();
                let waiting = inbox.content.lock().unwrap();
                // With somebody waiting who was not taken up, as after a panic between two rounds.
                let waiting = inbox
                    .news
                    .wait_while(waiting, |content| content.flushes.is_empty())
                    .unwrap();
                drop(waiting);
                panic!("as a bug would");
            }
        });
        assert!(flushes(&outbox), "it waits for the writer for ever");
        assert!(writer.join().is_err());
        assert!(flushes(&outbox), "it waits for a writer that is gone");
        outbox.send(("documents", "a".to_owned()), Write::DocumentGone("a".to_owned()));
        assert!(inbox.lock().writes.is_empty(), "nobody will ever take it");
    }
}

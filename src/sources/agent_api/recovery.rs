//! What the watches of one client know together of its server.
//!
//! Each waits longer after each failure, and a refusal (403) long, because rights that are missing somebody must grant. But a
//! server that was away, or a token that was unknown, concerns all of them: while nobody is answered one of them looks once
//! a second, each in turn, and the first that is answered calls the others. So changes flow again soon after the
//! server's return, however long it was away and however many watches there are. A pause that the server names, or asks for by
//! 429, is kept.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use crate::sources::retry::jittered;

#[derive(Debug)]
pub(super) struct Recovery {
    /// Good answers since the start.
    answers: AtomicU64,
    /// A watch that had failed was answered.
    mended: watch::Sender<()>,
    turn: Mutex<()>,
}

impl Default for Recovery {
    fn default() -> Self {
        Self {
            answers: AtomicU64::new(0),
            mended: watch::Sender::new(()),
            turn: Mutex::new(()),
        }
    }
}

/// When a watch began to fail.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failing {
    answers: u64,
}

/// How one watch hears of the others.
#[derive(Debug)]
pub(super) struct Ear {
    mended: watch::Receiver<()>,
    called: Option<Instant>,
}

impl Ear {
    /// What was said before the next request is no news to whoever makes it.
    pub(super) fn listen(&mut self) {
        self.mended.mark_unchanged();
    }

    /// Ends when it is called. A call that comes too soon after the last one is obeyed later: a server that comes and goes
    /// is not asked by all of them each time.
    async fn called(&mut self) {
        if self.mended.changed().await.is_err() {
            return std::future::pending().await;
        }
        if let Some(last) = self.called {
            tokio::time::sleep_until(last + CALL).await;
        }
        self.called = Some(Instant::now());
        // Not all at once.
        tokio::time::sleep(jittered(SPREAD)).await;
    }
}

impl Recovery {
    pub(super) fn ear(&self) -> Ear {
        Ear {
            mended: self.mended.subscribe(),
            called: None,
        }
    }

    /// A watch was answered; `had_failed` says whether its last poll was not.
    pub(super) fn answered(&self, had_failed: bool) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        if had_failed {
            self.mended.send_replace(());
        }
    }

    pub(super) fn begin(&self) -> Failing {
        Failing {
            answers: self.answers.load(Ordering::Relaxed),
        }
    }

    /// Ends when it is worth trying again before one's own time: somebody else who had failed was answered, or nobody was
    /// since `since`, and it is this one's turn to look.
    pub(super) async fn due(&self, since: Failing, ear: &mut Ear) {
        // Where the server serves others, what is missing is this one's own.
        let is_nobody_answered = || self.answers.load(Ordering::Relaxed) == since.answers;
        let turn = async {
            if is_nobody_answered() {
                {
                    let _turn = self.turn.lock().await;
                    if is_nobody_answered() {
                        tokio::time::sleep(jittered(LOOK)).await;
                    }
                }
                if is_nobody_answered() {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = ear.called() => {}
            () = turn => {}
        }
    }
}

/// Means, give or take a half.
const LOOK: Duration = Duration::from_millis(700);
const SPREAD: Duration = Duration::from_millis(200);

/// How often one obeys at the most.
const CALL: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn while_nobody_is_answered_one_of_all_looks_about_once_a_second() {
        let recovery = Arc::new(Recovery::default());
        let since = recovery.begin();
        let looks = Arc::new(AtomicU64::new(0));
        for _ in 0..1000 {
            let (recovery, looks) = (recovery.clone(), looks.clone());
            tokio::spawn(async move {
                let mut ear = recovery.ear();
                loop {
                    recovery.due(since, &mut ear).await;
                    looks.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let begun = Instant::now();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let looks = looks.load(Ordering::Relaxed);
        let most = begun.elapsed().as_millis() / (LOOK / 2).as_millis() + 1;
        assert!(looks >= 1 && u128::from(looks) <= most, "{looks} looks");
    }

    #[tokio::test]
    async fn who_is_answered_calls_the_others() {
        let recovery = Arc::new(Recovery::default());
        let since = recovery.begin();
        let waiting: Vec<_> = (0..100)
            .map(|_| {
                let recovery = recovery.clone();
                let mut ear = recovery.ear();
                tokio::spawn(async move { recovery.due(since, &mut ear).await })
            })
            .collect();
        // By turns alone it would take a minute and more.
        recovery.answered(true);
        let all = async {
            for waiting in waiting {
                waiting.await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(20), all).await.unwrap();
    }

    /// The server was back while one's own last try was still under way, and the try failed.
    #[tokio::test]
    async fn a_call_in_the_middle_of_a_try_is_heard_after_it() {
        let recovery = Recovery::default();
        let since = recovery.begin();
        let mut ear = recovery.ear();
        ear.listen();
        recovery.answered(true);
        let due = recovery.due(since, &mut ear);
        tokio::time::timeout(Duration::from_secs(20), due).await.unwrap();
    }

    #[tokio::test]
    async fn a_refusal_of_ones_own_is_not_looked_at_so_often() {
        let recovery = Recovery::default();
        let since = recovery.begin();
        recovery.answered(false);
        let mut ear = recovery.ear();
        let due = tokio::time::timeout(LOOK * 3, recovery.due(since, &mut ear));
        assert!(due.await.is_err());
    }
}

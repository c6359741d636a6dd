//! Several futures in one task, each polled when it was woken and not whenever another was.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::task::{Context, Wake, Waker};

use futures::task::AtomicWaker;

pub(super) const STREAMS: usize = 0;
pub(super) const CONNECTION: usize = 1;
pub(super) const STOP: usize = 2;

/// Who of them wants to be polled. Within a turn that is a note for the turn, outside it wakes the task.
pub(super) struct Turn {
    wanted: [AtomicBool; 3],
    is_running: AtomicBool,
    task: AtomicWaker,
}

impl Default for Turn {
    fn default() -> Self {
        Self {
            wanted: [const { AtomicBool::new(true) }; 3],
            is_running: AtomicBool::new(false),
            task: AtomicWaker::new(),
        }
    }
}

impl Turn {
    pub(super) fn waker(self: Arc<Self>, whose: usize) -> Waker {
        Arc::new(Half { turn: self, whose }).into()
    }

    /// Polled with `context`.
    pub(super) fn begin(&self, context: &Context<'_>) {
        self.task.register(context.waker());
        self.is_running.store(true, SeqCst);
    }

    /// To be polled now.
    pub(super) fn takes(&self, whose: usize) -> bool {
        self.wanted[whose].swap(false, SeqCst)
    }

    pub(super) fn ask(&self, whose: usize) {
        self.wanted[whose].store(true, SeqCst);
    }

    /// Nobody asked since. Whoever asks from here on wakes the task.
    pub(super) fn is_over(&self) -> bool {
        self.is_running.store(false, SeqCst);
        let is_over = !self.wanted.iter().any(|wanted| wanted.load(SeqCst));
        if !is_over {
            self.is_running.store(true, SeqCst);
        }
        is_over
    }

    /// Somebody may still want to be polled: another turn, after other tasks.
    pub(super) fn give_up(&self, context: &Context<'_>) {
        self.is_running.store(false, SeqCst);
        context.waker().wake_by_ref();
    }
}

struct Half {
    turn: Arc<Turn>,
    whose: usize,
}

impl Wake for Half {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.turn.ask(self.whose);
        // Asked first, then looked: a turn that ends looks after it has said so, and one of both sees the other.
        if !self.turn.is_running.load(SeqCst) {
            self.turn.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;
    use std::task::Poll;
    use std::time::{Duration, Instant};

    use super::*;

    const TIMES: usize = 20_000;

    /// Whoever asks waits until it was seen: one wake that is lost, and nothing moves any more. Alone, too: another's wake
    /// would make up for it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nobody_who_asks_is_forgotten() {
        ask(&[STREAMS]).await;
        ask(&[STREAMS, CONNECTION]).await;
    }

    async fn ask(askers: &'static [usize]) {
        let turn = Arc::new(Turn::default());
        let (asked, seen): (Arc<[AtomicUsize; 2]>, Arc<[AtomicUsize; 2]>) = Default::default();
        let threads: Vec<_> = askers
            .iter()
            .map(|whose| {
                let (waker, asked, seen) = (turn.clone().waker(*whose), asked.clone(), seen.clone());
                std::thread::spawn(move || {
                    let started = Instant::now();
                    for time in 1..=TIMES {
                        asked[*whose].store(time, SeqCst);
                        waker.wake_by_ref();
                        while seen[*whose].load(SeqCst) < time {
                            assert!(started.elapsed() < Duration::from_secs(60), "forgotten at {time}");
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let turns = tokio::spawn(poll_fn(move |context| {
            turn.begin(context);
            for _ in 0..3 {
                for whose in [STREAMS, CONNECTION, STOP] {
                    if turn.takes(whose) && askers.contains(&whose) {
                        seen[whose].store(asked[whose].load(SeqCst), SeqCst);
                    }
                }
                if askers.iter().all(|whose| seen[*whose].load(SeqCst) == TIMES) {
                    return Poll::Ready(());
                }
                if turn.is_over() {
                    return Poll::Pending;
                }
            }
            turn.give_up(context);
            Poll::Pending
        }));
        let joined = tokio::task::spawn_blocking(|| threads.into_iter().all(|thread| thread.join().is_ok()));
        assert!(joined.await.unwrap());
        turns.await.unwrap();
    }
}

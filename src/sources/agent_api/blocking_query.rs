//! Blocking queries, the same in Consul and Nomad: the whole contract in one place, as a pure state machine. The loop that drives
//! it is [`super::poll_loop`].
//!
//! In: what each poll came to ([`Polled`]). Out: how to poll next ([`Next`], [`WatchState::poll`]). The rules, each of
//! which was an outage somewhere: an index that falls is forgotten; index 0 and a missing index are never looped on; an
//! equal index is a poll that ran out; waking is not changing (whoever takes the answer compares content); a poll cut in
//! the middle is benign; 403 keeps what is known; nothing spins.

use std::future::Future;
use std::time::Duration;

use super::budget::Pass;
use super::call::{Blocking, Call};
use super::client::Answer;
use super::error::{ApiError, TransportFailure};
use super::settings::{ApiAddress, LONGEST_RETRY};
use crate::model::Problem;
use crate::sources::retry::{Intervals, jittered};

pub(in crate::sources) use super::poll_loop::{READ_TIMEOUT, keep_watching, watch};

/// The figures of the contract. Tests shrink them; nobody else should need to.
#[derive(Clone, Debug)]
pub struct WatchTiming {
    /// How long Consul may hold a poll. Its default is 5 min, its most 10 min.
    pub wait: Duration,
    /// The first wait after a failure or a cut: the watch shows itself healthy soon, without reading everything again, and a
    /// server that has lost its past shows its lower index now rather than when a whole poll runs out.
    pub recovery_wait: Duration,
    /// The waits while an answer is not believed, or lacks a part that was refused: restored rights do not wake a poll.
    pub doubt_wait: (Duration, Duration),
    /// Between polls of an endpoint that sends no index.
    pub poll_interval: Duration,
    /// First and longest interval between tries while it does not answer, each give or take a half.
    pub retry: (Duration, Duration),
    /// The longest interval while it answers and refuses: what is missing, somebody must grant.
    pub refused: Duration,
    /// A poll that ends below this is a failure; one cut later was a server or proxy that does not like long polls.
    pub benign_cut: Duration,
    /// Two cuts in a row at about one age above this lower the wait.
    pub habitual_cut: Duration,
    /// Answers without news at once, then one per period: what a watch costs that wakes for nothing.
    pub pace: (u32, Duration),
    /// The same for answers that bring news. A deployment of tens of instances is not slowed; what changes for ever is
    /// read in steps, each with the newest state.
    pub news_pace: (u32, Duration),
    /// A stream of events that says nothing for so long, not even that it lives, is dead.
    pub stream_silence: Duration,
    /// First and longest interval between tries while a stream is not to be had. The first is also the longest while it is
    /// merely lost.
    pub stream_refused: (Duration, Duration),
}

impl Default for WatchTiming {
    fn default() -> Self {
        Self {
            wait: Duration::from_secs(300),
            recovery_wait: Duration::from_secs(1),
            doubt_wait: (Duration::from_secs(5), Duration::from_secs(60)),
            poll_interval: Duration::from_secs(10),
            retry: (Duration::from_millis(250), LONGEST_RETRY),
            refused: Duration::from_secs(30),
            benign_cut: Duration::from_secs(1),
            // Late Consul 1.2x builds cut at 30 s, nginx at 60 s; nothing known cuts below this.
            habitual_cut: Duration::from_secs(10),
            pace: (4, Duration::from_millis(250)),
            news_pace: (50, Duration::from_millis(100)),
            // Nomad sends a heartbeat every 30 s at the latest.
            stream_silence: Duration::from_secs(75),
            stream_refused: (Duration::from_secs(30), Duration::from_secs(600)),
        }
    }
}

impl WatchTiming {
    /// As is right for this address.
    pub fn towards(address: &ApiAddress) -> Self {
        let usual = Self::default();
        Self {
            retry: (usual.retry.0, address.longest_retry()),
            ..usual
        }
    }
}

/// What one poll came to.
#[derive(Debug)]
pub(in crate::sources) enum Polled {
    /// Read, understood, and handed on if it differs.
    Taken { index: Option<u64> },
    /// The same, but for a part that the token may not see.
    Partial { index: Option<u64> },
    /// Read and understood, and not believed.
    Doubted { index: Option<u64> },
    /// 200, and not what it should be.
    Unreadable,
    Refused {
        status: u16,
        retry_after: Option<Duration>,
    },
    Lost {
        failure: TransportFailure,
        after: Duration,
    },
}

/// What to do before the next poll.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::sources) struct Next {
    pub(in crate::sources) after: Duration,
    /// Something moved; an equal index is only a poll that ran out.
    pub(in crate::sources) woken: bool,
    /// The failure is worth telling: it repeats, or it will not mend by waiting.
    pub(in crate::sources) tell: bool,
    /// The pause is to be kept, whoever else is answered: the server named it, or has enough of requests.
    pub(in crate::sources) is_kept: bool,
}

/// The memory of one watch. It belongs to one endpoint with its arguments; indexes are never shared.
#[derive(Debug)]
pub(in crate::sources) struct WatchState<'a> {
    timing: &'a WatchTiming,
    /// 0: none yet, or forgotten.
    index: u64,
    /// As lowered for a server that cuts long polls.
    wait: Duration,
    /// Of the next poll alone, for what was wrong with the last: it failed, was cut, or is not believed whole.
    next_wait: Option<Duration>,
    last_cut: Option<Duration>,
    /// In a row, the last poll being one of them. Whoever answers next may be another process.
    cuts: u8,
    /// Answers since `wait` was lowered.
    answers: u8,
    failures: u32,
    /// None: what was answered last was whole. Most are, at all times.
    trouble: Option<Box<Trouble>>,
    doubting: bool,
    partial: bool,
}

/// How long a watch waits that did not get what it asked for.
#[derive(Debug)]
struct Trouble {
    retries: Intervals,
    refusals: Intervals,
    doubt_waits: Intervals,
}

impl<'a> WatchState<'a> {
    pub(in crate::sources) fn new(timing: &'a WatchTiming) -> Self {
        Self {
            index: 0,
            wait: timing.wait,
            next_wait: None,
            last_cut: None,
            cuts: 0,
            answers: 0,
            failures: 0,
            trouble: None,
            doubting: false,
            partial: false,
            timing,
        }
    }

    fn trouble(&mut self) -> &mut Trouble {
        let timing = self.timing;
        self.trouble.get_or_insert_with(|| {
            Box::new(Trouble {
                retries: Intervals::new(timing.retry.0, timing.retry.1),
                refusals: Intervals::new(timing.retry.0, timing.refused),
                doubt_waits: Intervals::new(timing.doubt_wait.0, timing.doubt_wait.1),
            })
        })
    }

    /// None: ask for an answer at once.
    pub(in crate::sources) fn poll(&self) -> Option<Blocking> {
        (self.index > 0).then(|| Blocking {
            index: self.index,
            wait: self.next_wait.unwrap_or(self.wait),
        })
    }

    /// The answer cannot be told from an older one by its version numbers alone: the server may have lost its past.
    pub(in crate::sources) fn must_compare_whole(&self, index: Option<u64>) -> bool {
        let is_another = self.cuts > 0 && index != Some(self.index);
        self.failures > 0 || self.doubting || is_another || index.is_none_or(|index| index < self.index)
    }

    /// What was answered is no answer to what is asked next.
    pub(super) fn forget(&mut self) {
        self.index = 0;
    }

    /// A new token may be all that was missing.
    pub(in crate::sources) fn is_troubled(&self) -> bool {
        self.doubting || self.partial || self.failures > 0
    }

    pub(in crate::sources) fn is_failing(&self) -> bool {
        self.failures > 0
    }

    pub(in crate::sources) fn on_answer(&mut self, polled: &Polled) -> Next {
        match polled {
            Polled::Taken { index } | Polled::Partial { index } => {
                self.settle();
                self.doubting = false;
                self.partial = matches!(polled, Polled::Partial { .. });
                let next = self.advance(*index);
                if self.partial {
                    // As long as any refusal is waited out, at most.
                    let wait = self.trouble().doubt_waits.next_interval();
                    self.next_wait = Some(wait.min(self.timing.refused));
                } else {
                    self.trouble = None;
                }
                next
            }
            Polled::Doubted { index } => {
                self.settle();
                self.doubting = true;
                let next = self.advance(*index);
                let wait = self.trouble().doubt_waits.next_interval();
                self.next_wait = Some(wait);
                // Without an index there is no poll to hold the wait.
                let after = if self.index == 0 {
                    wait
                } else {
                    self.trouble().retries.next_interval()
                };
                Next {
                    after: after.max(next.after),
                    tell: true,
                    ..next
                }
            }
            // The index stays: the next answer may be whole.
            Polled::Unreadable => self.fail(None, true),
            Polled::Refused { status, retry_after } => match status {
                401 | 403 => {
                    let pause = self.trouble().refusals.next_interval();
                    self.fail(Some(pause), true)
                }
                // Bounded: a header must not silence a watch for a day.
                429 | 500.. => {
                    let named = retry_after.map(|after| after.min(self.timing.wait));
                    Next {
                        is_kept: named.is_some() || *status == 429,
                        ..self.fail(named, self.failures > 0)
                    }
                }
                // A request that Consul will not take stays as it is until the configuration changes.
                _ => Next {
                    is_kept: true,
                    ..self.fail(Some(self.timing.refused), true)
                },
            },
            Polled::Lost { failure, after } => self.on_lost(*failure, *after),
        }
    }

    fn on_lost(&mut self, failure: TransportFailure, after: Duration) -> Next {
        if failure != TransportFailure::Cut || after < self.timing.benign_cut {
            // A first failure is mostly a restart; the second says so. One that hangs before it ever answered is none, and who
            // starts waits for it.
            let hangs = failure == TransportFailure::TimedOut && self.index == 0;
            return self.fail(None, hangs || self.failures > 0);
        }
        self.cuts = self.cuts.saturating_add(1);
        if self.cuts >= CUTS {
            // The polls since the first were asked to end before, and nothing came.
            return self.fail(None, true);
        }
        let habitual = after >= self.timing.habitual_cut;
        if let Some(last) = self
            .last_cut
            .filter(|last| habitual && last.abs_diff(after) <= after / 10)
        {
            // 5/6 leaves room for the server's own jitter of 1/16: 30 s become 25 s.
            self.wait = last.min(after) * 5 / 6;
            self.answers = 0;
            tracing::info!(wait = ?self.wait, cut_after = ?after, "long polls are cut, shorter ones for a while");
        }
        if habitual || self.next_wait.is_none() {
            self.last_cut = habitual.then_some(after);
        }
        // A connection that ends cuts thousands of polls at once, and each of these brings its answer whole: not all at once.
        let brief = jittered(self.timing.recovery_wait * 4);
        // Whoever cuts sooner than that leaves room for an answer still.
        self.next_wait = Some(brief.min(self.wait).min(after * 5 / 6));
        Next {
            after: jittered(self.timing.retry.0),
            ..Next::default()
        }
    }

    fn settle(&mut self) {
        self.failures = 0;
        if let Some(trouble) = &mut self.trouble {
            trouble.retries.reset();
            trouble.refusals.reset();
        }
        let waited = self.next_wait.take().unwrap_or(self.wait);
        // That a poll was answered which would have ended before it says nothing about a cut.
        self.last_cut = self.last_cut.filter(|cut| waited < *cut);
        self.cuts = 0;
        self.lengthen();
    }

    /// Two restarts may look like a habit. Where it is one, one more cut shows it, which loses nothing.
    fn lengthen(&mut self) {
        if self.wait == self.timing.wait {
            return;
        }
        self.answers = self.answers.saturating_add(1);
        if self.answers >= SHORT_POLLS {
            self.wait = self.timing.wait;
            self.answers = 0;
        }
    }

    fn advance(&mut self, index: Option<u64>) -> Next {
        match index {
            None => {
                self.index = 0;
                Next {
                    after: jittered(self.timing.poll_interval),
                    ..Next::default()
                }
            }
            Some(index) if index < self.index => {
                self.index = 0;
                Next {
                    woken: true,
                    ..Next::default()
                }
            }
            Some(index) => {
                let woken = index != self.index;
                self.index = index;
                Next {
                    woken,
                    ..Next::default()
                }
            }
        }
    }

    fn fail(&mut self, at_least: Option<Duration>, tell: bool) -> Next {
        self.failures += 1;
        self.last_cut = None;
        self.next_wait = Some(self.timing.recovery_wait);
        if self.failures > FORGET_AFTER {
            self.index = 0;
        }
        Next {
            after: self
                .trouble()
                .retries
                .next_interval()
                .max(at_least.unwrap_or_default()),
            tell,
            ..Next::default()
        }
    }
}

/// One endpoint under watch: what to ask and what to do with the answer.
pub(in crate::sources) trait Watched: Send + Sync {
    /// Made several times for one poll: the same each time until something is taken or told.
    fn call(&self) -> Call;

    /// Whether its answers say when to ask again. Else it is asked at an interval.
    fn is_waited_for(&self) -> bool {
        true
    }

    /// Its answers leave out what the token may not see, without a word: what another token may see is asked for at once,
    /// and not when something changes.
    fn shows_rights(&self) -> bool {
        false
    }

    /// Answers without news: so many at once, then one per period.
    fn pace(&self, timing: &WatchTiming) -> (u32, Duration) {
        timing.pace
    }

    /// Waits for a place among the connections.
    fn admit(&mut self, first: bool) -> impl Future<Output = Pass> + Send;

    /// Ends when something said, since the watch was last admitted, that there may be news: it ends the turn of a watch
    /// without a place. It decides when to read, never what.
    fn hinted(&mut self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// Compares, guards, hands on.
    fn take(
        &mut self,
        answer: Answer,
        context: Context,
    ) -> impl Future<Output = Result<Verdict, ApiError>> + Send;

    /// Tells a problem; what was handed on before stands.
    fn tell(&mut self, problem: Problem) -> impl Future<Output = Result<(), Closed>> + Send;
}

/// What the state knows about an answer before it is read.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::sources) struct Context {
    pub(in crate::sources) compare_whole: bool,
    /// The answer was waited for, and may show the rights of minutes ago: Consul settles them when a KV poll begins;
    /// a health poll that ran out gives what was computed at its beginning.
    pub(in crate::sources) waited: bool,
}

#[derive(Debug)]
pub(in crate::sources) enum Verdict {
    Taken {
        /// It differs from the last one.
        news: bool,
    },
    /// Taken, and told with what was refused of it: that is asked for again before long.
    Partial {
        news: bool,
    },
    Doubted(Problem),
    Closed,
}

/// Nobody listens any more.
#[derive(Debug)]
pub(in crate::sources) struct Closed;

/// Failures in a row after which the index is worth less than a fresh read.
const FORGET_AFTER: u32 = 5;

/// In a row, with no answer between: no habit of cutting long polls, but a server that answers nobody.
const CUTS: u8 = 3;

/// Before it is tried again whether long polls are cut.
const SHORT_POLLS: u8 = 100;

#[cfg(test)]
#[path = "blocking_query_tests.rs"]
mod tests;

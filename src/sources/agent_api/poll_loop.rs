//! The loop of a blocking query: asks, hands on what came, rests, asks again.
//!
//! Ten thousand of these wait at all times, so what is not needed while an answer is awaited is not held meanwhile: it is
//! boxed, and made when it is needed.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::blocking_query::{Closed, Context, Polled, Verdict, WatchState, WatchTiming, Watched};
use super::client::{Answer, ApiClient};
use super::error::ApiError;
use super::recovery::{Ear, Failing};
use crate::sources::SourceHealth;
use crate::sources::retry::TokenBucket;

/// Keeps a watch from spinning, whatever the server does. The rest before a poll loses nothing: a poll answers at once
/// with the newest state when something happened meanwhile.
struct Pace {
    idle: TokenBucket,
    news: TokenBucket,
}

impl Pace {
    fn of(watched: &impl Watched, timing: &WatchTiming) -> Self {
        let (burst, period) = watched.pace(timing);
        Self {
            idle: TokenBucket::new(burst, period),
            news: TokenBucket::new(timing.news_pace.0, timing.news_pace.1),
        }
    }

    /// How long to rest after a poll.
    fn after(&mut self, news: bool) -> Duration {
        if news { self.news.take() } else { self.idle.take() }
    }
}

/// Watches until nobody listens. What is large is borrowed: ten thousand may wait in all that they hold.
pub(in crate::sources) async fn keep_watching<W: Watched>(
    client: &ApiClient,
    watched: &mut W,
    timing: &WatchTiming,
    health: &SourceHealth,
) {
    let Closed = drive(client, watched, timing, health).await;
}

/// The same, until cancelled.
pub(in crate::sources) async fn watch<W: Watched>(
    client: &ApiClient,
    watched: &mut W,
    timing: &WatchTiming,
    health: &SourceHealth,
    cancel: &CancellationToken,
) {
    let run = drive(client, watched, timing, health);
    tokio::select! {
        () = cancel.cancelled() => {}
        Closed = run => {}
    }
}

async fn drive<W: Watched>(
    client: &ApiClient,
    watched: &mut W,
    timing: &WatchTiming,
    health: &SourceHealth,
) -> Closed {
    let mut memory = Memory {
        client,
        health,
        state: WatchState::new(timing),
        pace: Pace::of(watched, timing),
        ear: client.recovery().ear(),
        first: true,
        failing: None,
    };
    let mut token = client.token().changes();
    let mut seated = true;
    loop {
        let pass = watched.admit(memory.first).await;
        if watched.shows_rights() && token.has_changed().is_ok_and(|changed| changed) {
            memory.state.forget();
        }
        token.mark_unchanged();
        // A watch that just got a place looks once more at once, to say so; then it waits.
        let blocking = if pass.may_block && seated {
            memory.state.poll()
        } else {
            None
        };
        seated = pass.may_block;
        let asked = || {
            let call = watched.call().blocking(blocking);
            match blocking {
                Some(_) => call,
                None => call.timeout(READ_TIMEOUT),
            }
        };
        health.requested();
        memory.ear.listen();
        let started = Instant::now();
        let answer = tokio::select! {
            answer = client.call_on(pass.lane, &asked) => Some(answer),
            // A poll that was asked with a token in trouble is not worth waiting for.
            () = async { Box::pin(another_token(client, &mut token)).await }, if memory.state.is_troubled() || watched.shows_rights() => None,
        };
        // Over HTTP/2 there is a place for everyone: the next turn takes one.
        let rest = if client.is_multiplexed() {
            Duration::ZERO
        } else {
            pass.rest
        };
        drop(pass);
        let poll = Poll {
            answer,
            waited: blocking.is_some(),
            started,
            rest,
        };
        if let Err(closed) = Box::pin(memory.after(poll, watched, &mut token)).await {
            return closed;
        }
    }
}

/// What a watch keeps from one poll to the next.
struct Memory<'a> {
    client: &'a ApiClient,
    health: &'a SourceHealth,
    state: WatchState<'a>,
    pace: Pace,
    ear: Ear,
    /// No answer came yet.
    first: bool,
    /// Since when it gets no answer.
    failing: Option<Failing>,
}

/// A poll that is over.
struct Poll {
    /// None: another token came before one did.
    answer: Option<Result<Answer, ApiError>>,
    /// It was asked to wait.
    waited: bool,
    started: Instant,
    /// At least, before the next.
    rest: Duration,
}

impl Memory<'_> {
    /// Hands on what a poll brought, and rests. Err: nobody listens any more. A function of its own: what waits for an answer would have room for all that this
    /// needs.
    async fn after<W: Watched, T>(
        &mut self,
        poll: Poll,
        watched: &mut W,
        token: &mut tokio::sync::watch::Receiver<T>,
    ) -> Result<(), Closed> {
        let Some(answer) = poll.answer else {
            if watched.shows_rights() {
                self.state.forget();
            }
            tokio::time::sleep(self.pace.after(false)).await;
            return Ok(());
        };
        let mut news = false;
        let outcome = match answer {
            Ok(answer) => {
                let index = answer.index.filter(|_| watched.is_waited_for());
                let context = Context {
                    compare_whole: self.first || self.state.must_compare_whole(index),
                    waited: poll.waited,
                };
                self.first = false;
                match Box::pin(watched.take(answer, context)).await {
                    Ok(Verdict::Taken { news: differs }) => {
                        news = differs;
                        Ok((Polled::Taken { index }, None))
                    }
                    Ok(Verdict::Partial { news: differs }) => {
                        news = differs;
                        Ok((Polled::Partial { index }, None))
                    }
                    Ok(Verdict::Doubted(problem)) => Ok((Polled::Doubted { index }, Some(problem))),
                    Ok(Verdict::Closed) => return Err(Closed),
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        };
        let (polled, problem) = match outcome {
            Ok(outcome) => outcome,
            Err(error) => (polled_of(&error, poll.started.elapsed()), Some(error.problem())),
        };
        let next = self.state.on_answer(&polled);
        match &problem {
            None => {
                self.client.recovery().answered(self.failing.take().is_some());
                self.health.succeeded(next.woken);
            }
            Some(problem) => {
                // A doubted answer is one.
                self.failing = (self.state.is_failing() && !next.is_kept)
                    .then(|| self.failing.unwrap_or_else(|| self.client.recovery().begin()));
                self.health.failed();
                tracing::debug!(%problem, retry_in = ?next.after, "watch");
            }
        }
        if let (Some(problem), true) = (problem, next.tell) {
            Box::pin(watched.tell(problem)).await?;
        }
        // No hint shortens what keeps a watch from spinning.
        let least = next.after.max(self.pace.after(news));
        let rest = poll.rest.max(least);
        if rest.is_zero() {
            return Ok(());
        }
        let rests = Rest {
            whole: rest,
            least,
            troubled: self.state.is_troubled(),
            failing: self.failing,
        };
        if Box::pin(rests.over(self.client, watched, token, &mut self.ear)).await && watched.shows_rights() {
            self.state.forget();
        }
        Ok(())
    }
}

/// What lies between two polls.
struct Rest {
    whole: Duration,
    /// However soon a hint comes.
    least: Duration,
    troubled: bool,
    /// Since when it gets no answer.
    failing: Option<Failing>,
}

impl Rest {
    /// Whether another token ended it.
    async fn over<W: Watched, T>(
        self,
        client: &ApiClient,
        watched: &mut W,
        token: &mut tokio::sync::watch::Receiver<T>,
        ear: &mut Ear,
    ) -> bool {
        let hinted = async {
            tokio::time::sleep(self.least).await;
            watched.hinted().await;
        };
        let mended = async {
            match self.failing {
                Some(since) => client.recovery().due(since, ear).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            is_new = rest_or_new_token(self.whole, client, token, self.troubled) => is_new,
            () = hinted, if self.whole > self.least => false,
            () = mended => false,
        }
    }
}

/// Sleeps; in trouble, another token ends the sleep. Whether it did.
async fn rest_or_new_token<T>(
    rest: Duration,
    client: &ApiClient,
    token: &mut tokio::sync::watch::Receiver<T>,
    troubled: bool,
) -> bool {
    if !troubled || (client.token().file().is_none() && client.login_status().is_none()) {
        tokio::time::sleep(rest).await;
        return false;
    }
    tokio::select! {
        () = tokio::time::sleep(rest) => false,
        () = another_token(client, token) => true,
    }
}

/// Ends when there is another token. Its file is looked at meanwhile: who waits makes no request, before which it would be.
async fn another_token<T>(client: &ApiClient, token: &mut tokio::sync::watch::Receiver<T>) {
    let look = async {
        loop {
            tokio::time::sleep(TOKEN_LOOK).await;
            client.token().refresh(false).await;
        }
    };
    tokio::select! {
        true = changed(token) => {}
        () = look => {}
    }
}

async fn changed<T>(token: &mut tokio::sync::watch::Receiver<T>) -> bool {
    token.changed().await.is_ok()
}

fn polled_of(error: &ApiError, after: Duration) -> Polled {
    match error {
        ApiError::Status {
            status, retry_after, ..
        } => Polled::Refused {
            status: *status,
            retry_after: *retry_after,
        },
        ApiError::Transport { failure, .. } => Polled::Lost {
            failure: *failure,
            after,
        },
        ApiError::Unreadable { .. } | ApiError::TooLarge { .. } => Polled::Unreadable,
        // A call that cannot even be made is like one that Consul will never take.
        _ => Polled::Refused {
            status: 400,
            retry_after: None,
        },
    }
}

/// For answers that are not waited for: 64 MiB from an agent beside us, with room for a busy one.
pub(in crate::sources) const READ_TIMEOUT: Duration = Duration::from_secs(60);

const TOKEN_LOOK: Duration = Duration::from_millis(500);

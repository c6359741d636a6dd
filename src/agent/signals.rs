//! Signals as events.
//!
//! SIGHUP means reload. SIGINT and SIGTERM mean leave in order; the second of them means leave at once. SIGPIPE is
//! ignored by Rust's runtime already.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalEvent {
    /// Read settings, tokens and certificates again.
    Reload,
    /// Leave in order: drain, flush, end.
    Terminate,
    /// Asked a second time: end now, whatever is under way.
    Abort,
}

/// The agent's signals, in the order of arrival.
#[derive(Debug)]
pub struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
    terminating: bool,
}

impl Signals {
    /// From now on the signals no longer end the process. Install before telling anyone that the agent is ready: an
    /// early SIGHUP would kill it.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            terminating: false,
        })
    }

    /// Waits for the next one. May be cancelled.
    pub async fn next(&mut self) -> SignalEvent {
        loop {
            // In this order: when both wait, leaving goes before reloading. Several signals of one kind that arrive
            // together are one; that is how the kernel delivers them.
            tokio::select! {
                biased;
                Some(()) = self.terminate.recv() => return self.leave("SIGTERM"),
                Some(()) = self.interrupt.recv() => return self.leave("SIGINT"),
                Some(()) = self.hangup.recv() => {
                    if self.terminating {
                        continue;
                    }
                    tracing::info!(signal = "SIGHUP", "caught signal, reloading");
                    return SignalEvent::Reload;
                }
                // The runtime is ending.
                else => std::future::pending().await,
            }
        }
    }

    /// Waits for one that does not mean reload. May be cancelled.
    pub async fn told_to_leave(&mut self) {
        while self.next().await == SignalEvent::Reload {}
    }

    fn leave(&mut self, signal: &'static str) -> SignalEvent {
        if std::mem::replace(&mut self.terminating, true) {
            tracing::warn!(signal, "caught a second signal, ending at once");
            return SignalEvent::Abort;
        }
        tracing::info!(signal, "caught signal, leaving; once more to end at once");
        SignalEvent::Terminate
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal as Kind, getpid, kill_process};

    use super::*;

    #[tokio::test]
    async fn the_second_request_to_leave_is_an_abort() {
        let mut signals = Signals::install().unwrap();
        for (sent, seen) in [
            (Kind::HUP, SignalEvent::Reload),
            (Kind::TERM, SignalEvent::Terminate),
            (Kind::INT, SignalEvent::Abort),
        ] {
            kill_process(getpid(), sent).unwrap();
            assert_eq!(signals.next().await, seen);
        }
    }
}

//! Told to drain in the middle of a restart: first one of the two must be the one that serves and can be drained.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::handle::Command;
use super::stop::StopMode;
use super::supervise::{Event, LOOK_INTERVAL, Supervisor};

/// A hot restart takes a second, and its configuration. With `drain_time`, `finish_time` and `kill_after` as they are by
/// default this makes 40 s: systemd's unit grants 45.
const HAND_OVER: Duration = Duration::from_secs(5);

impl Supervisor {
    /// Brings a restart to its end, this way or that. Returns how Envoy is to be stopped then: a second stop may say
    /// that there is no time.
    pub(super) async fn settle_restart(&mut self) -> StopMode {
        let until = Instant::now() + HAND_OVER;
        loop {
            if self.current.is_none() {
                // Only what was to leave is left: nothing follows it, so that it is drained as it is.
                self.go_on_with_old();
            }
            // One that is spoiled has no admin API: it can be asked for nothing.
            if self.current.as_ref().is_none_or(|current| current.spoiled) {
                break;
            }
            // It may serve by now; then the others retire.
            self.look().await;
            let (Some(current), Some(old)) = (&mut self.current, self.others.last()) else {
                break;
            };
            let is_hot = current.process.base_id == old.process.base_id;
            // The parent of a hot restart has given its admin API away: it leaves when its child serves, or is cut.
            if is_hot && Instant::now() < until {
                if let Some(mode) = self.wait_for_newcomer().await {
                    return mode;
                }
                continue;
            }
            let (pid, next_pid) = (old.process.pid(), current.process.pid());
            if is_hot {
                tracing::warn!(
                    pid,
                    next_pid,
                    waited = ?HAND_OVER,
                    "the new Envoy does not serve in time, and the old one cannot be drained any more: its connections are cut"
                );
            } else {
                tracing::info!(
                    pid,
                    next_pid,
                    "ending the new Envoy, which does not serve yet: the old one is drained"
                );
            }
            // Who asked for the restart is told that the supervisor ends, not that the newcomer failed.
            self.pending_restart = None;
            let exit = current.process.kill().await;
            self.on_exit(exit).await;
        }
        StopMode::Drain
    }

    /// Until something happens, or it is time to look again. A stop that cannot wait is returned.
    async fn wait_for_newcomer(&mut self) -> Option<StopMode> {
        match self.next_event().await {
            Some(Event::Exited(exit)) => self.on_exit(exit).await,
            Some(Event::Retired(base_id)) => self.on_retired(base_id),
            Some(Event::Command(Some(Command::Stop { mode, reply }))) => {
                self.stop_replies.push(reply);
                return (mode == StopMode::Now).then_some(mode);
            }
            // Their replies go with them, which says that the supervisor ends.
            Some(Event::Wake | Event::Checked(_) | Event::Command(Some(Command::Restart { .. }))) => {}
            // Nobody listens any more, now and at every further call. Envoy is drained all the same.
            Some(Event::Command(None)) | None => sleep(LOOK_INTERVAL).await,
        }
        None
    }
}

//! From one Envoy to the next: begin, hand over, or go on with the old one.

use std::error::Error as StdError;
use std::time::Duration;

use tokio::time::Instant;

use super::admin_client::AdminClient;
use super::error::RestartError;
use super::handle::{RestartReply, Status};
use super::launch::Launch;
use super::listening_sockets::has_open_port;
use super::planned_restart::{self, RestartMethod, previous_admin_socket};
use super::process::{Exit, Process};
use super::settings::Settings;
use super::stop;
use super::supervise::{Checked, Current, LOOK_INTERVAL, LOOK_INTERVAL_SLOW, PendingRestart, Supervisor};

/// How much longer than announced the parent of a hot restart may live.
const PARENT_GRACE: Duration = Duration::from_secs(10);

impl Supervisor {
    pub(super) fn retire_others(&mut self) {
        let Some(current_base_id) = self.current.as_ref().map(|current| current.process.base_id) else {
            return;
        };
        for other in self.others.drain(..) {
            self.leaving.push(other.process.identity);
            let settings = self.settings.clone();
            let mut process = other.process;
            let successor = self.status.subscribe();
            let admin = AdminClient::new(&previous_admin_socket(&settings.bootstrap.admin_socket));
            self.retiring.spawn(async move {
                let base_id = process.base_id;
                if base_id == current_base_id {
                    // The parent of a hot restart drains and ends by itself.
                    let limit = settings.parent_shutdown_time() + PARENT_GRACE;
                    if process.exited_within(limit).await.is_none() {
                        tracing::warn!(pid = process.pid(), "the former Envoy does not end, ending it");
                        process.terminate(settings.kill_after).await;
                    }
                } else {
                    stop::drain_and_end(&mut process, &admin, &settings, Some(successor)).await;
                }
                tracing::info!(pid = process.pid(), "the former Envoy has ended");
                base_id
            });
        }
    }

    pub(super) fn on_retired(&mut self, base_id: u32) {
        // A hot restart's parent shares the base id, and what belongs to it, with the current one.
        if self
            .current
            .as_ref()
            .is_none_or(|current| current.process.base_id != base_id)
        {
            self.runtime.remove_leftovers(base_id);
            let _ = std::fs::remove_file(previous_admin_socket(&self.settings.bootstrap.admin_socket));
        }
    }

    pub(super) fn go_on_with_old(&mut self) {
        let Some(old) = self.others.pop() else { return };
        planned_restart::restore_admin(&self.settings.bootstrap.admin_socket);
        let (spoiled, live) = (old.spoiled, old.live);
        let (pid, epoch, adopted) = (old.process.pid(), old.process.epoch, old.adopted);
        self.current = Some(old);
        self.save_record();
        if spoiled {
            // It has no admin API to ask. It served before, and has its ports still.
            self.wake_at = Some(Instant::now() + LOOK_INTERVAL);
            self.show_running(None);
        } else {
            self.wake_at = Some(Instant::now());
            if !live {
                self.status.send_replace(Status::Starting { pid, epoch, adopted });
            }
        }
    }

    /// The successor to whom the last of the others was handing over has ended. As soon as its workers ran it told that one to
    /// close its ports, and it may have come so far.
    pub(super) fn spoil_old(&mut self) {
        let Some(old) = self.others.last_mut() else { return };
        old.spoiled = true;
        // Where its files may not be seen (file capabilities) the worst is assumed. One Envoy too many costs little, ports that
        // stay closed cost all.
        old.leaving |= !has_open_port(old.process.pid()).unwrap_or(false);
    }

    /// It closes its ports a moment after a successor, since dead, told it to.
    pub(super) fn look_at_ports(&mut self) {
        let Some(pid) = self.current.as_ref().map(|current| current.process.pid()) else {
            return;
        };
        match has_open_port(pid) {
            Ok(true) => self.wake_at = Some(Instant::now() + LOOK_INTERVAL_SLOW),
            // `spoil_old` has judged, and there is no more to see.
            Err(_) => self.wake_at = None,
            Ok(false) => {
                tracing::error!(
                    pid,
                    "Envoy has closed its ports for another that ended, starting a new one"
                );
                let mut old = self.current.take();
                old.iter_mut().for_each(|old| old.leaving = true);
                self.others.extend(old);
                self.save_record();
                self.back_off("its ports were closed for another Envoy, which ended".to_owned());
            }
        }
    }

    /// Tells who asked for a restart that the newcomer has ended.
    pub(super) fn answer_restart(&mut self, exit: Exit, last_lines: String, old_goes_on: bool) {
        let expired = std::mem::take(&mut self.expired);
        let Some(pending) = self.pending_restart.take() else {
            return;
        };
        let error = if !old_goes_on {
            RestartError::NoneLeft {
                exit: exit.to_string(),
                last_lines,
            }
        } else if expired {
            RestartError::NotReady {
                seconds: pending.launch.settings.takeover_deadline.as_secs(),
            }
        } else {
            RestartError::Died {
                exit: exit.to_string(),
                last_lines,
            }
        };
        let _ = pending.reply.send(Err(error));
    }

    /// Prepares and validates it beside all else.
    pub(super) fn check_successor(&mut self, settings: Option<Settings>, reply: RestartReply) {
        if let Some(error) = self.why_not_now() {
            tracing::error!(error = &error as &dyn StdError, "cannot replace Envoy");
            let _ = reply.send(Err(error));
            return;
        }
        let settings = settings.unwrap_or_else(|| self.settings.clone());
        let runtime = self.runtime.clone();
        self.checking.spawn(async move {
            let checked = async {
                let launch = Launch::prepare(settings, runtime).await?;
                launch.validate().await?;
                Ok(launch)
            };
            Checked {
                launch: checked.await,
                reply,
            }
        });
    }

    fn why_not_now(&self) -> Option<RestartError> {
        if !self.others.is_empty() || !self.checking.is_empty() {
            return Some(RestartError::UnderWay);
        }
        if !self.retiring.is_empty() {
            return Some(RestartError::StillDraining);
        }
        match &self.current {
            None => Some(RestartError::NotRunning),
            // It refuses to hand over, and is lost for later attempts. One that is spoiled served before; one that has not
            // answered for so long never may, and serves all the same if it was adopted.
            Some(current)
                if !current.live
                    && !current.spoiled
                    && current.since.elapsed() < self.settings.takeover_deadline =>
            {
                Some(RestartError::NotLive)
            }
            Some(_) => None,
        }
    }

    pub(super) async fn begin_restart(&mut self, checked: Checked) {
        let Checked { launch, reply } = checked;
        match self.start_successor(launch).await {
            Ok((launch, method, process)) => {
                let Some(old) = self.current.take() else { return };
                let (pid, next_pid) = (old.process.pid(), process.pid());
                tracing::info!(pid, next_pid, %method, "replacing Envoy");
                self.others.push(old);
                self.current = Some(Current::started(process, &launch));
                self.deadline = Some(Instant::now() + launch.settings.takeover_deadline);
                self.pending_restart = Some(PendingRestart {
                    method,
                    launch,
                    reply,
                });
                self.save_record();
                self.status.send_replace(Status::Replacing { pid, next_pid });
                self.wake_at = Some(Instant::now() + LOOK_INTERVAL);
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn StdError, "cannot replace Envoy");
                let _ = reply.send(Err(error));
            }
        }
    }

    async fn start_successor(
        &mut self,
        launch: Result<Launch, RestartError>,
    ) -> Result<(Launch, RestartMethod, Process), RestartError> {
        let launch = launch?;
        // It may have ended meanwhile, and the next one may be starting.
        if let Some(error) = self.why_not_now() {
            return Err(error);
        }
        let Some(current) = &self.current else {
            return Err(RestartError::NotRunning);
        };
        let cannot_hand_over = match (current.spoiled, current.live) {
            (true, _) => Some("a hot restart of this Envoy failed before"),
            (false, false) => Some("the running Envoy has not said that it is up"),
            (false, true) => None,
        };
        let method = planned_restart::choose(&self.admin, &current.process, &launch, cannot_hand_over).await;
        let process = planned_restart::start(&launch, &current.process, &method).await?;
        Ok((launch, method, process))
    }
}

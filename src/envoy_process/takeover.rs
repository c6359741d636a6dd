//! The first thing a supervisor does: look for an Envoy that a former agent left, before starting one.

use std::error::Error as StdError;
use std::time::Duration;

use tokio::time::Instant;

use super::error::Error;
use super::handle::{Running, Status};
use super::identity::{Identity, find_envoys, find_run};
use super::launch::{Launch, bootstrap_hash};
use super::planned_restart;
use super::process::Process;
use super::record::{Holder, Record, RuntimeDirectory};
use super::steering;
use super::supervise::{Current, LOOK_INTERVAL, Supervisor};

impl Supervisor {
    /// Without the lock nothing is started. An Envoy of `portreeve envoy run` is ended by whoever started it: the agent, which
    /// serves it, waits for that.
    pub(super) async fn begin(&mut self, patience: Duration) -> Result<(), Error> {
        let lock = self.runtime.lock_within(patience, Holder::Agent).await;
        let taken = match (&lock, find_run(&self.runtime.bootstrap())) {
            // Of an older version: the lock is let go again.
            (Ok(_), Some(pid)) => Err(self.runtime.taken_by_run(pid)),
            _ => lock,
        };
        match taken {
            Ok(lock) => self.lock = Some(lock),
            Err(error @ Error::TakenByRun { .. }) => {
                self.wait_for_other(&error);
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        self.runtime.forget_last_run();
        let record = self.runtime.load();
        self.take_over_or_start(record).await
    }

    fn wait_for_other(&mut self, error: &Error) {
        let reason = error.to_string();
        let waiting = Status::Waiting { reason };
        if *self.status.borrow() != waiting {
            tracing::warn!("no Envoy is started beside another: {error}");
            self.status.send_replace(waiting);
        }
        self.wake_at = Some(Instant::now() + LOOK_INTERVAL);
    }

    async fn take_over_or_start(&mut self, record: Option<Record>) -> Result<(), Error> {
        let prepared = Launch::prepare(self.settings.clone(), self.runtime.clone()).await;
        let found = find_envoys(&self.runtime.bootstrap());
        for envoy in &found {
            let status = self.runtime.status(envoy.base_id, envoy.epoch);
            let process =
                Process::open(envoy.identity, envoy.base_id, envoy.epoch, status).map_err(|source| {
                    Error::Watch {
                        pid: envoy.identity.pid,
                        source,
                    }
                })?;
            if process.has_ended() {
                continue;
            }
            let known = record
                .as_ref()
                .filter(|record| record.identity == process.identity);
            let bootstrap = match known {
                Some(record) => record.bootstrap.clone(),
                // The file on disk is the one the last process was started with.
                None => hash_on_disk(&self.runtime),
            };
            tracing::info!(
                pid = process.pid(),
                epoch = process.epoch,
                base_id = process.base_id,
                recorded = known.is_some(),
                "taking over the Envoy that a former agent left running"
            );
            let arguments = envoy.arguments.clone();
            self.others.push(Current::adopted(process, bootstrap, arguments));
        }
        let leaving = record
            .as_ref()
            .filter(|record| record.leaving)
            .and_then(|record| {
                let mut others = self.others.iter();
                others.position(|other| other.process.identity == record.identity)
            });
        // Those before it were on their way out already.
        let and_before = leaving.map_or(0, |place| place + 1);
        let named = record.iter().flat_map(|record| &record.others_leaving);
        let named: Vec<Identity> = named.copied().collect();
        for (place, other) in self.others.iter_mut().enumerate() {
            other.leaving = place < and_before || named.contains(&other.process.identity);
        }
        self.mark_spoiled(record.as_ref());
        if self.others.last().is_some_and(|newest| !newest.leaving) {
            match prepared {
                Ok(launch) => self.launch = Some(launch),
                // It serves: that the next one could not be started is a warning, not an end.
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn StdError,
                        "the running Envoy serves on, but with these settings another could not be started"
                    );
                }
            }
            self.promote_newest();
            return Ok(());
        }
        if let Some(leaving) = self.others.last() {
            // Its drain was cut short by our death: it may refuse clients. Replace it, then end it.
            tracing::info!(
                pid = leaving.process.pid(),
                "the Envoy left behind was draining, replacing it"
            );
            planned_restart::keep_admin_reachable(&self.settings.bootstrap.admin_socket);
        } else if let Some(record) = &record {
            self.runtime.remove_leftovers(record.base_id);
        }
        let launch = prepared?;
        self.start(launch).await
    }

    /// An Envoy that lost its admin API under a former agent, or has since, answers no more under this one.
    fn mark_spoiled(&mut self, record: Option<&Record>) {
        let Some(record) = record else { return };
        for other in &mut self.others {
            other.spoiled = record.spoiled.contains(&other.process.identity);
        }
        // Its successor has ended while nobody was there to see it.
        let newest = self.others.last().map(|newest| &newest.process);
        if newest.is_some_and(|newest| record.is_of_successor_of(newest.base_id, newest.epoch)) {
            self.spoil_old();
        }
    }

    /// Makes the newest of the others current.
    fn promote_newest(&mut self) {
        let Some(current) = self.others.pop() else { return };
        // Two or more: the former agent died in the middle of a restart.
        self.deadline = Some(Instant::now() + self.settings.takeover_deadline);
        steering::end_at(current.process.pid());
        let (pid, epoch, adopted) = (current.process.pid(), current.process.epoch, current.adopted);
        let spoiled = current.spoiled;
        self.current = Some(current);
        self.save_record();
        self.wake_at = Some(Instant::now());
        if spoiled {
            // It served before. Whether it has its ports still is all that can be asked.
            self.show_running(None);
            self.tell_if_outdated();
        } else {
            self.status.send_replace(Status::Starting { pid, epoch, adopted });
        }
    }

    /// Once, when it is taken over: a restart of the agent alone does not change what Envoy was started with.
    pub(super) fn tell_if_outdated(&self) {
        if let Status::Running(Running {
            pid,
            adopted: true,
            outdated: Some(why),
            ..
        }) = &*self.status.borrow()
        {
            tracing::warn!(pid, %why, fix = "portreeve envoy restart", "a restart of Envoy is due");
        }
    }
}

fn hash_on_disk(runtime: &RuntimeDirectory) -> String {
    let bytes = std::fs::read(runtime.bootstrap()).unwrap_or_default();
    serde_json::from_slice(&bytes)
        .map(|value| bootstrap_hash(&value))
        .unwrap_or_default()
}

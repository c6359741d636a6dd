//! The task that owns the Envoy: one state machine for start, takeover, crash, planned restart and stop.
//!
//! A takeover after our own death and a planned restart are the same situation: a newest process that may not serve
//! yet, and older ones that still do. The newest becomes live: the others retire. It dies before: the next older one
//! is current again.

use std::error::Error as StdError;
use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::admin_client::{AdminClient, ServerInfo, ServerState};
use super::binary::Version;
use super::error::{Error, RestartError};
use super::handle::{Command, Handle, RestartReply, Running, Status};
use super::identity::{Identity, boot_id, find_envoys};
use super::launch::{Launch, new_base_id};
use super::log_tail::LogTail;
use super::planned_restart::RestartMethod;
use super::process::{Exit, Process};
use super::record::{LOCK_PATIENCE, Lock, Record, RuntimeDirectory};
use super::settings::Settings;
use super::stop::{self, StopMode};

/// A crash costs 0.1 s and the start itself; one that cannot start is tried every 10 s.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LAST: Duration = Duration::from_secs(10);
/// After so long a run the next crash is a new story.
const GOOD_RUN: Duration = Duration::from_secs(60);
/// How often a starting Envoy is asked whether it serves: its fastest start takes 0.5 s.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// The same for one that has been starting for `SLOW_START`: it waits for its xDS server, or has no admin API.
pub(super) const LOOK_INTERVAL_SLOW: Duration = Duration::from_secs(1);
const SLOW_START: Duration = Duration::from_secs(20);
/// One look. Its main thread may be busy with configuration for seconds; then the next look will do.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// Takes over the Envoy that a former agent left in this runtime directory, or starts one. Returns as soon as there is
/// a process, or knows that an Envoy of somebody else's is to be waited for; whether it serves is told by the status.
pub async fn start_or_adopt(settings: Settings) -> Result<Handle, Error> {
    let runtime = RuntimeDirectory::open(&settings.runtime_directory)?;
    let tail = LogTail::new(&runtime.log(), settings.log_limit_bytes);
    let admin = AdminClient::new(&settings.bootstrap.admin_socket);
    let bootstrap = runtime.bootstrap();
    let (commands, command_receiver) = mpsc::channel(8);
    let (status, status_receiver) = watch::channel(Status::Stopped);
    let mut supervisor = Supervisor {
        lock: None,
        settings,
        runtime,
        admin: admin.clone(),
        tail,
        status,
        commands: command_receiver,
        launch: None,
        current: None,
        others: Vec::new(),
        retiring: JoinSet::new(),
        leaving: Vec::new(),
        checking: JoinSet::new(),
        pending_restart: None,
        deadline: None,
        expired: false,
        wake_at: None,
        restarts: restart_delays(),
        attempt: 0,
        stop_replies: Vec::new(),
    };
    supervisor.begin(LOCK_PATIENCE).await?;
    tokio::spawn(supervisor.run());
    Ok(Handle {
        commands,
        status: status_receiver,
        admin,
        bootstrap,
    })
}

pub(super) struct Supervisor {
    /// None while an Envoy of `portreeve envoy run` has the directory.
    pub(super) lock: Option<Lock>,
    pub(super) settings: Settings,
    pub(super) runtime: RuntimeDirectory,
    pub(super) admin: AdminClient,
    pub(super) tail: LogTail,
    pub(super) status: watch::Sender<Status>,
    pub(super) commands: mpsc::Receiver<Command>,
    /// What the current process was, or will be, started with. None: its binary was not found.
    pub(super) launch: Option<Launch>,
    /// The newest process.
    pub(super) current: Option<Current>,
    /// Older ones that serve until the newest is live.
    pub(super) others: Vec<Current>,
    /// Older ones after that: on their way out.
    pub(super) retiring: JoinSet<u32>,
    /// Those, and who came before them.
    pub(super) leaving: Vec<Identity>,
    /// The successor that is being checked: that takes up to a minute, in which the current one may end.
    pub(super) checking: JoinSet<Checked>,
    pub(super) pending_restart: Option<PendingRestart>,
    /// Until when the newest must serve while older ones wait for it.
    pub(super) deadline: Option<Instant>,
    /// The newest was ended because it did not.
    pub(super) expired: bool,
    /// When to look at a starting Envoy, or to start the next one.
    pub(super) wake_at: Option<Instant>,
    pub(super) restarts: ExponentialBackoff,
    pub(super) attempt: u32,
    /// Who asked for an end while one was under way.
    pub(super) stop_replies: Vec<oneshot::Sender<()>>,
}

pub(super) struct Current {
    pub(super) process: Process,
    pub(super) adopted: bool,
    pub(super) bootstrap: String,
    /// Its command line ends with these, or is these.
    pub(super) arguments: Vec<String>,
    pub(super) since: Instant,
    pub(super) live: bool,
    /// A hot restart from this process failed: it has no admin API any more and can hand over nothing.
    pub(super) spoiled: bool,
    /// It turns clients away: it stays until another serves, and is never again the one that is to serve.
    pub(super) leaving: bool,
}

/// What may take the current one's place, and who asked for it.
pub(super) struct Checked {
    pub(super) launch: Result<Launch, RestartError>,
    pub(super) reply: RestartReply,
}

pub(super) struct PendingRestart {
    pub(super) method: RestartMethod,
    pub(super) launch: Launch,
    pub(super) reply: RestartReply,
}

pub(super) enum Event {
    Exited(Exit),
    Retired(u32),
    Checked(Box<Checked>),
    Wake,
    Command(Option<Command>),
}

impl Supervisor {
    async fn run(mut self) {
        let follow = tokio::spawn(self.tail.clone().follow());
        while let Some(event) = self.next_event().await {
            match event {
                Event::Exited(exit) => self.on_exit(exit).await,
                Event::Retired(base_id) => self.on_retired(base_id),
                Event::Wake if self.current.is_some() => self.look().await,
                Event::Wake => self.start_again().await,
                Event::Command(Some(Command::Restart { settings, reply })) => {
                    self.check_successor(settings.map(|settings| *settings), reply);
                }
                Event::Checked(checked) => self.begin_restart(*checked).await,
                Event::Command(Some(Command::Stop { mode, reply })) => {
                    self.stop(mode).await;
                    self.tail.catch_up();
                    follow.abort();
                    // The lock must be free when the caller goes on, for example to exec a new agent.
                    let mut replies = std::mem::take(&mut self.stop_replies);
                    replies.push(reply);
                    drop(self);
                    for reply in replies {
                        // Whoever no longer waits does not care.
                        let _ = reply.send(());
                    }
                    return;
                }
                Event::Command(None) => break,
            }
        }
        self.stop(StopMode::LeaveRunning).await;
        follow.abort();
    }

    pub(super) async fn next_event(&mut self) -> Option<Event> {
        let exited = async {
            match &mut self.current {
                Some(current) => current.process.exited().await,
                None => std::future::pending().await,
            }
        };
        let wake = async {
            match self.wake_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        Some(tokio::select! {
            exit = exited => Event::Exited(exit),
            Some(result) = self.retiring.join_next(), if !self.retiring.is_empty() => match result {
                Ok(base_id) => Event::Retired(base_id),
                // A panic there is a bug of ours; the process is then found again by the next agent.
                Err(_) => Event::Retired(0),
            },
            Some(Ok(checked)) = self.checking.join_next(), if !self.checking.is_empty() => {
                Event::Checked(Box::new(checked))
            }
            () = wake => Event::Wake,
            command = self.commands.recv() => Event::Command(command),
        })
    }

    /// Starts the first process of a new line.
    pub(super) async fn start(&mut self, launch: Launch) -> Result<(), Error> {
        launch.write_bootstrap()?;
        let process = launch.spawn(new_base_id(), 0).await?;
        tracing::info!(
            pid = process.pid(),
            binary = %launch.binary.path.display(),
            version = %launch.binary.version,
            "started Envoy"
        );
        self.status.send_replace(Status::Starting {
            pid: process.pid(),
            epoch: 0,
            adopted: false,
        });
        self.current = Some(Current::started(process, &launch));
        self.launch = Some(launch);
        self.save_record();
        self.wake_at = Some(Instant::now() + LOOK_INTERVAL);
        Ok(())
    }

    async fn start_again(&mut self) {
        self.wake_at = None;
        let started = match self.lock {
            Some(_) => self.start_anew().await,
            None => self.begin(Duration::ZERO).await,
        };
        if let Err(error) = started {
            tracing::error!(error = &error as &dyn StdError, "cannot start Envoy");
            self.back_off(error.to_string());
        }
    }

    async fn start_anew(&mut self) -> Result<(), Error> {
        let launch = match self.launch.take() {
            Some(launch) if launch.binary.is_unchanged() => launch,
            _ => Launch::prepare(self.settings.clone(), self.runtime.clone()).await?,
        };
        self.start(launch).await
    }

    pub(super) fn back_off(&mut self, reason: String) {
        let retry_in = self.restarts.next_backoff().unwrap_or(BACKOFF_LAST);
        self.attempt += 1;
        self.wake_at = Some(Instant::now() + retry_in);
        self.status.send_replace(Status::Backoff {
            reason,
            attempt: self.attempt,
            retry_in,
        });
    }

    /// Asks a starting Envoy whether it serves.
    pub(super) async fn look(&mut self) {
        let Some(current) = &mut self.current else { return };
        if current.spoiled {
            return self.look_at_ports();
        }
        let answer = match timeout(LOOK_TIMEOUT, self.admin.server_info()).await {
            Ok(Ok(info)) if info.is(current.process.base_id, current.process.epoch) => Some(info),
            // Not up yet, busy, or its parent answers.
            _ => None,
        };
        match answer {
            Some(info) if matches!(info.state, ServerState::Live | ServerState::Draining) => {
                self.on_live(&info)
            }
            _ => {
                let slow = current.since.elapsed() >= SLOW_START;
                let pause = if slow { LOOK_INTERVAL_SLOW } else { LOOK_INTERVAL };
                self.wake_at = Some(Instant::now() + pause);
                let can_go_back = self.others.last().is_some_and(|old| !old.leaving);
                if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) && can_go_back {
                    self.deadline = None;
                    self.expired = true;
                    // Its end is an event like any other; then the old one is current again.
                    current.process.kill().await;
                }
            }
        }
    }

    fn on_live(&mut self, info: &ServerInfo) {
        self.wake_at = None;
        self.deadline = None;
        let Some(current) = &mut self.current else { return };
        current.live = true;
        tracing::info!(
            pid = current.process.pid(),
            epoch = current.process.epoch,
            "Envoy serves"
        );
        if let Some(pending) = self.pending_restart.take() {
            self.settings = pending.launch.settings.clone();
            self.launch = Some(pending.launch);
            // A caller that has gone away does not change what was done.
            let _ = pending.reply.send(Ok(pending.method));
        }
        self.show_running(Version::from_build(&info.version));
        self.tell_if_outdated();
        self.retire_others();
        self.save_record();
    }

    pub(super) fn show_running(&mut self, version: Option<Version>) {
        let Some(current) = &self.current else { return };
        let outdated = if current.spoiled {
            Some("its admin API was lost in a failed restart".to_owned())
        } else {
            self.launch
                .as_ref()
                .and_then(|launch| outdated(launch, current, version))
        };
        self.status.send_replace(Status::Running(Running {
            pid: current.process.pid(),
            epoch: current.process.epoch,
            adopted: current.adopted,
            version,
            outdated,
        }));
    }

    pub(super) async fn on_exit(&mut self, exit: Exit) {
        let Some(ended) = self.current.take() else { return };
        let last_lines = self.tail.take_last_lines();
        let (pid, base_id) = (ended.process.pid(), ended.process.base_id);
        self.others.retain(|other| other.process.identity.is_alive());
        let was_hot = self
            .others
            .last()
            .is_some_and(|other| other.process.base_id == base_id);
        if was_hot {
            self.spoil_old();
        } else {
            self.runtime.remove_leftovers(base_id);
        }
        if self.others.last().is_some_and(|old| !old.leaving) {
            tracing::error!(pid, %exit, last_lines, "the new Envoy ended before it served, the old one goes on");
            self.go_on_with_old();
            self.answer_restart(exit, last_lines, true);
            return;
        }
        tracing::error!(pid, %exit, ran_for = ?ended.since.elapsed(), last_lines, "Envoy ended, starting it again");
        if ended.since.elapsed() >= GOOD_RUN {
            self.restarts.reset();
            self.attempt = 0;
        }
        self.answer_restart(exit, last_lines.clone(), false);
        self.save_record();
        self.back_off(match last_lines.as_str() {
            "" => exit.to_string(),
            lines => format!("{exit}: {lines}"),
        });
    }

    async fn stop(&mut self, mode: StopMode) {
        if mode == StopMode::LeaveRunning {
            // The next agent goes on with those that were about to leave.
            self.retiring.abort_all();
            match &self.current {
                Some(current) => {
                    let pid = current.process.pid();
                    tracing::info!(pid, "leaving Envoy running");
                    self.status.send_replace(Status::LeftRunning { pid });
                }
                None => {
                    self.status.send_replace(Status::Stopped);
                }
            }
            return;
        }
        self.checking.abort_all();
        let mode = match mode {
            StopMode::Drain if !self.others.is_empty() => self.settle_restart().await,
            mode => mode,
        };
        if mode == StopMode::Drain && !self.retiring.is_empty() && !self.is_served() {
            return self.stop_former().await;
        }
        if let Some(mut current) = self.current.take() {
            current.leaving = true;
            self.save_record_of(&current);
            self.status.send_replace(Status::Stopping {
                pid: current.process.pid(),
            });
            let exit = match mode {
                StopMode::Drain => self.drain_or_obey(&mut current.process).await,
                _ => current.process.terminate(self.settings.kill_after).await,
            };
            tracing::info!(pid = current.process.pid(), %exit, "Envoy stopped");
            self.others.push(current);
        }
        self.end_all().await;
    }

    fn is_served(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.live)
    }

    /// What serves is a former Envoy, which waits for one that does in its place.
    async fn stop_former(&mut self) {
        if let Some(mut current) = self.current.take() {
            current.process.terminate(self.settings.kill_after).await;
        }
        let former = find_envoys(&self.runtime.bootstrap());
        let pid = former.last().map_or(0, |envoy| envoy.identity.pid);
        tracing::info!(pid, "the former Envoy still serves, and is drained");
        // It hears of it, and waits no longer.
        self.status.send_replace(Status::Stopping { pid });
        tokio::select! {
            () = async { while self.retiring.join_next().await.is_some() {} } => {}
            () = told_to_hurry(&mut self.commands, &mut self.stop_replies) => {}
        }
        self.end_all().await;
    }

    async fn end_all(&mut self) {
        // Those that were about to leave have no successor any more.
        self.retiring.shutdown().await;
        for other in find_envoys(&self.runtime.bootstrap()) {
            let status = self.runtime.status(other.base_id, other.epoch);
            if let Ok(mut process) = Process::open(other.identity, other.base_id, other.epoch, status) {
                process.terminate(self.settings.kill_after).await;
            }
            self.runtime.remove_leftovers(other.base_id);
        }
        for other in self.others.drain(..) {
            self.runtime.remove_leftovers(other.process.base_id);
        }
        self.status.send_replace(Status::Stopped);
    }

    /// Drains, unless the next command says that there is no time for it.
    async fn drain_or_obey(&mut self, process: &mut Process) -> Exit {
        let drained = tokio::select! {
            exit = stop::drain_and_end(process, &self.admin, &self.settings, None) => Some(exit),
            () = told_to_hurry(&mut self.commands, &mut self.stop_replies) => None,
        };
        match drained {
            Some(exit) => exit,
            None => process.terminate(self.settings.kill_after).await,
        }
    }

    /// Of the one that serves, or will. Else of one that a following agent must replace.
    pub(super) fn save_record(&self) {
        if let Some(newest) = self.current.as_ref().or(self.others.last()) {
            self.save_record_of(newest);
        }
    }

    fn save_record_of(&self, current: &Current) {
        let of_others = self.others.iter().filter(|other| other.leaving);
        let leaving = of_others.map(|other| other.process.identity);
        let leaving = leaving.chain(self.leaving.iter().copied());
        let spoiled = self.others.iter().chain([current]).filter(|envoy| envoy.spoiled);
        let record = Record {
            boot_id: boot_id(),
            identity: current.process.identity,
            base_id: current.process.base_id,
            epoch: current.process.epoch,
            bootstrap: current.bootstrap.clone(),
            leaving: current.leaving,
            others_leaving: leaving.filter(|identity| identity.is_alive()).collect(),
            spoiled: spoiled.map(|envoy| envoy.process.identity).collect(),
        };
        if let Err(error) = self.runtime.save(&record) {
            // The process table still shows it to the next agent.
            tracing::warn!(error = &error as &dyn StdError, "cannot record Envoy");
        }
    }
}

async fn told_to_hurry(commands: &mut mpsc::Receiver<Command>, replies: &mut Vec<oneshot::Sender<()>>) {
    loop {
        match commands.recv().await {
            Some(Command::Stop { mode, reply }) => {
                replies.push(reply);
                if mode == StopMode::Now {
                    return;
                }
            }
            Some(Command::Restart { reply, .. }) => {
                let _ = reply.send(Err(RestartError::NotRunning));
            }
            None => std::future::pending().await,
        }
    }
}

impl Current {
    pub(super) fn started(process: Process, launch: &Launch) -> Self {
        Self::new(process, launch.bootstrap_hash(), launch.common_arguments())
    }

    pub(super) fn adopted(process: Process, bootstrap: String, arguments: Vec<String>) -> Self {
        Self {
            adopted: true,
            ..Self::new(process, bootstrap, arguments)
        }
    }

    fn new(process: Process, bootstrap: String, arguments: Vec<String>) -> Self {
        Self {
            process,
            adopted: false,
            bootstrap,
            arguments,
            since: Instant::now(),
            live: false,
            spoiled: false,
            leaving: false,
        }
    }
}

fn outdated(launch: &Launch, current: &Current, version: Option<Version>) -> Option<String> {
    if launch.bootstrap_hash() != current.bootstrap {
        return Some("it runs with another bootstrap".to_owned());
    }
    if let Some(changed) = launch.changed_arguments(&current.arguments) {
        return Some(format!("it was started with {changed}"));
    }
    let new = launch.binary.version;
    version
        .filter(|old| *old != new)
        .map(|old| format!("it runs {old}, the binary is {new}"))
}

fn restart_delays() -> ExponentialBackoff {
    ExponentialBackoff {
        current_interval: BACKOFF_FIRST,
        initial_interval: BACKOFF_FIRST,
        // One Envoy, one machine: nothing to spread.
        randomization_factor: 0.0,
        multiplier: 2.0,
        max_interval: BACKOFF_LAST,
        max_elapsed_time: None,
        ..ExponentialBackoff::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_delays_grow_to_ten_seconds_and_never_end() {
        let mut delays = restart_delays();
        let shown: Vec<u128> = (0..9)
            .filter_map(|_| delays.next_backoff())
            .map(|delay| delay.as_millis())
            .collect();
        assert_eq!(shown, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    }
}

//! How an Envoy leaves: gently, at once, or not at all.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::admin_client::{AdminClient, AdminError, Drain};
use super::handle::Status;
use super::process::{Exit, Process};
use super::settings::Settings;
use super::steering::{self, Ages, Steering};

/// What becomes of Envoy when the supervisor ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Ask clients to leave, wait, finish what runs, end.
    Drain,
    /// SIGTERM at once.
    Now,
    /// It serves on without us; the next agent takes it over.
    LeaveRunning,
}

/// Often enough that the last request's end is not waited out, rare enough to be free.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Where the Envoy is told that follows one which leaves, on the same ports. It may be another by the time that matters.
pub(super) type Successor = watch::Receiver<Status>;

/// Drains, then ends the process. Three phases, because one of them alone loses requests: while clients are asked to
/// leave the ports stay open for those that have not heard; then the ports close and running requests finish; then
/// SIGTERM.
pub(super) async fn drain_and_end(
    process: &mut Process,
    admin: &AdminClient,
    settings: &Settings,
    successor: Option<Successor>,
) -> Exit {
    let pid = process.pid();
    let successor = successor.filter(|_| !hands_waiting_connections_over());
    let then = match &successor {
        Some(_) => blocking(move || steering::ages(pid).unwrap_or_default()).await,
        None => Ages::new(),
    };
    tracing::info!(pid, drain_time = ?settings.drain_time, "draining Envoy");
    let drained = admin.drain_listeners(Drain::Gentle).await;
    if drained.is_ok()
        && let Some(exit) = process.exited_within(settings.drain_time).await
    {
        return exit;
    }
    let next = successor.and_then(|successor| successor.borrow().serving_pid());
    let steering = match next {
        Some(next) => blocking(move || Steering::begin(pid, next, &then)).await,
        None => Steering::default(),
    };
    if !steering.is_empty()
        && let Some(exit) = process.exited_within(steering::SETTLE_TIME).await
    {
        return exit;
    }
    steering.choose_one_new();
    if let Err(error) = drained {
        tracing::warn!(
            pid,
            error = &error as &dyn std::error::Error,
            "cannot drain Envoy, ending it at once"
        );
        return process.terminate(settings.kill_after).await;
    }
    finish(process, admin, settings, steering).await
}

async fn blocking<T: Default + Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

/// Linux 5.14 and newer can give connections that wait at a socket that closes to another one, and it is off by default.
fn hands_waiting_connections_over() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req").is_ok_and(|value| value.trim() == "1")
}

/// The same three phases for an Envoy that somebody else keeps, and will end: it is still there afterwards. Returns how
/// many requests were still running.
pub async fn drain(
    admin: &AdminClient,
    drain_time: Duration,
    finish_time: Duration,
) -> Result<u64, AdminError> {
    admin.drain_listeners(Drain::Gentle).await?;
    sleep(drain_time).await;
    admin.drain_listeners(Drain::CloseListeners).await?;
    idle(admin, finish_time).await
}

/// Closes the ports, waits for running requests, ends the process.
async fn finish(process: &mut Process, admin: &AdminClient, settings: &Settings, steering: Steering) -> Exit {
    if admin.drain_listeners(Drain::CloseListeners).await.is_ok() {
        steering.until_closed().await;
        drop(steering);
        tokio::select! {
            exit = process.exited() => return exit,
            waited = idle(admin, settings.finish_time) => match waited {
                Ok(0) => {}
                Ok(left) => tracing::warn!(pid = process.pid(), requests = left, "requests outlast the drain time, they are cut"),
                Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "cannot count running requests"),
            },
        }
        return process.terminate(settings.kill_after).await;
    }
    // The ports close with it: until then they are the successor's.
    let exit = process.terminate(settings.kill_after).await;
    drop(steering);
    exit
}

/// Waits until no request runs, and returns how many still do at the deadline.
async fn idle(admin: &AdminClient, limit: Duration) -> Result<u64, AdminError> {
    let deadline = Instant::now() + limit;
    loop {
        let active = admin.active_requests().await?;
        if active == 0 || Instant::now() >= deadline {
            return Ok(active);
        }
        sleep(LOOK_INTERVAL).await;
    }
}

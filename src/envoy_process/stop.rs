//! How an Envoy leaves: gently, at once, or not at all.

use std::error::Error as StdError;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

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

/// Between two tries of a call that came to nothing.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// One that died once is not believed before it has served for so long.
const STEADY: Duration = Duration::from_secs(5);

/// Where the Envoy is told that follows one which leaves, on the same ports. It may be another by the time that matters.
pub(super) type Successor = watch::Receiver<Status>;

/// Drains, then ends the process. Three phases, because one of them alone loses requests: while clients are asked to
/// leave the ports stay open for those that have not heard; then the ports close and running requests finish; then
/// SIGTERM. With a successor the ports stay open until that one serves.
pub(super) async fn drain_and_end(
    process: &mut Process,
    admin: &AdminClient,
    settings: &Settings,
    successor: Option<Successor>,
) -> Exit {
    let pid = process.pid();
    let is_steered = successor.is_some() && !hands_waiting_connections_over();
    let ages = move || steering::ages(pid).unwrap_or_default();
    let mut then = match is_steered {
        true => blocking(ages).await,
        false => Ages::new(),
    };
    let first = successor
        .as_ref()
        .and_then(|successor| successor.borrow().serving_pid());
    tracing::info!(pid, drain_time = ?settings.drain_time, "draining Envoy");
    let closing = Instant::now() + settings.drain_time;
    let asked = async {
        let told = tell(admin, Drain::Gentle, closing);
        match successor {
            // Who follows on the same ports is asked as well: nobody has to send requests elsewhere.
            Some(_) => told.await,
            None => tokio::join!(told, leave_balancers(admin, closing)).0,
        }
    };
    let asked = tokio::select! {
        exit = process.exited() => return exit,
        asked = asked => asked,
    };
    if let Err(error) = asked {
        if successor.is_none() {
            tracing::warn!(
                pid,
                error = &error as &dyn StdError,
                "cannot drain Envoy, ending it at once: requests are cut"
            );
            return process.terminate(settings.kill_after).await;
        }
        tracing::warn!(
            pid,
            error = &error as &dyn StdError,
            "cannot ask the clients of the former Envoy to leave, it has its time all the same"
        );
    }
    if let Some(exit) = process.exited_within(left_until(closing)).await {
        return exit;
    }
    let mut steering = Steering::default();
    if let Some(mut successor) = successor {
        let first = first.filter(|_| !successor.has_changed().unwrap_or(true));
        let mut served = first.filter(|_| successor.borrow().is_running());
        loop {
            if served.is_none() {
                tracing::warn!(
                    pid,
                    "the new Envoy does not serve: the former one keeps its ports until one does"
                );
                served = tokio::select! {
                    exit = process.exited() => return exit,
                    served = one_that_serves(&mut successor) => served,
                };
                then = blocking(ages).await;
            }
            // Nobody follows any more.
            let Some(next) = served else { break };
            if is_steered {
                let ages = std::mem::take(&mut then);
                steering = blocking(move || Steering::begin(pid, next, &ages)).await;
            }
            if !steering.is_empty()
                && let Some(exit) = process.exited_within(steering::SETTLE_TIME).await
            {
                return exit;
            }
            if successor.borrow().serving_pid() == Some(next) {
                break;
            }
            steering = Steering::default();
            served = None;
        }
    }
    finish(process, admin, settings, steering).await
}

/// One that has served for a while: it may die again as soon as it has the clients. None: the supervisor stops.
async fn one_that_serves(successor: &mut Successor) -> Option<u32> {
    loop {
        // Its other end is gone with the supervisor, which ends this, too.
        let status = successor.wait_for(|status| status.is_running() || status.is_over());
        let pid = status.await.ok()?.serving_pid()?;
        let is_other = |status: &Status| status.serving_pid() != Some(pid);
        if timeout(STEADY, successor.wait_for(is_other)).await.is_err() {
            return Some(pid);
        }
    }
}

/// Load balancers in front hear that they are to send requests elsewhere, and have the drain time for it. Without that
/// the drain is as good as it can be.
async fn leave_balancers(admin: &AdminClient, until: Instant) {
    if let Err(error) = persist(until, || admin.fail_health_checks()).await {
        tracing::debug!(error = &error as &dyn StdError, "health checks do not fail");
    }
}

async fn tell(admin: &AdminClient, drain: Drain, until: Instant) -> Result<(), AdminError> {
    persist(until, || admin.drain_listeners(drain)).await
}

/// Again and again until then: its main thread may be busy with configuration for seconds.
async fn persist<F>(until: Instant, call: impl Fn() -> F) -> Result<(), AdminError>
where
    F: Future<Output = Result<(), AdminError>>,
{
    loop {
        match in_time(until, call()).await {
            Err(error) if !error.is_absent() && Instant::now() + RETRY_INTERVAL < until => {
                tracing::debug!(error = &error as &dyn StdError, "trying again");
                sleep(RETRY_INTERVAL).await;
            }
            done => return done,
        }
    }
}

/// A call may take longer than there is time.
async fn in_time<T>(
    until: Instant,
    call: impl Future<Output = Result<T, AdminError>>,
) -> Result<T, AdminError> {
    let late = || Err(AdminError::Late);
    timeout_at(until, call).await.unwrap_or_else(|_| late())
}

fn left_until(instant: Instant) -> Duration {
    instant.saturating_duration_since(Instant::now())
}

async fn blocking<T: Default + Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

/// Linux 5.14 and newer can give connections that wait at a socket that closes to another one, and it is off by default.
pub(super) fn hands_waiting_connections_over() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req").is_ok_and(|value| value.trim() == "1")
}

/// The same three phases for an Envoy that somebody else keeps, and will end: it is still there afterwards. Returns how
/// many requests were still running.
pub async fn drain(
    admin: &AdminClient,
    drain_time: Duration,
    finish_time: Duration,
) -> Result<u64, AdminError> {
    let closing = Instant::now() + drain_time;
    let (told, ()) = tokio::join!(
        tell(admin, Drain::Gentle, closing),
        leave_balancers(admin, closing)
    );
    told?;
    sleep_until(closing).await;
    let end = Instant::now() + finish_time;
    tell(admin, Drain::CloseListeners, end).await?;
    idle(admin, end).await
}

/// Closes the ports, waits for running requests, ends the process.
async fn finish(
    process: &mut Process,
    admin: &AdminClient,
    settings: &Settings,
    mut steering: Steering,
) -> Exit {
    let pid = process.pid();
    let end = Instant::now() + settings.finish_time;
    steering.choose_one_new();
    let closed = tokio::select! {
        exit = process.exited() => return exit,
        closed = tell(admin, Drain::CloseListeners, end) => closed,
    };
    if let Err(error) = closed {
        tracing::warn!(
            pid,
            error = &error as &dyn StdError,
            "cannot close Envoy's ports before it ends: requests that take longer are cut"
        );
        steering.choose_any_new();
        if let Some(exit) = process.exited_within(left_until(end)).await {
            return exit;
        }
        steering.choose_one_new();
        // The ports close with it: until then they are the successor's.
        let exit = process.terminate(settings.kill_after).await;
        drop(steering);
        return exit;
    }
    steering.until_closed().await;
    drop(steering);
    tokio::select! {
        exit = process.exited() => return exit,
        waited = idle(admin, end) => match waited {
            Ok(0) => {}
            Ok(left) => tracing::warn!(pid, requests = left, "requests, or connections without HTTP, outlast the drain time: they are cut"),
            Err(error) => tracing::warn!(
                pid,
                error = &error as &dyn StdError,
                "cannot count running requests: those that still run are cut"
            ),
        },
    }
    process.terminate(settings.kill_after).await
}

/// Waits until no request runs, and no connection that carries no HTTP. Returns how many still do at the deadline.
async fn idle(admin: &AdminClient, deadline: Instant) -> Result<u64, AdminError> {
    loop {
        let active = in_time(deadline, admin.active_requests()).await;
        let is_over = match &active {
            Ok(active) => *active == 0,
            Err(error) => error.is_absent(),
        };
        if is_over || Instant::now() >= deadline {
            return active;
        }
        sleep(LOOK_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::{Child, Command};

    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;

    use super::super::handle::Running;
    use super::super::identity::Identity;
    use super::*;
    use crate::envoy::bootstrap::{Bootstrap, XdsEndpoint};

    /// Something to end, and where its admin API would be.
    fn leaving() -> (Child, Process, Settings, TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let identity = Identity::of(child.id()).unwrap();
        let status = directory.path().join("status");
        let process = Process::open(identity, 1, 0, status).unwrap();
        let xds = XdsEndpoint::Unix(directory.path().join("xds.sock"));
        let bootstrap = Bootstrap::new("node", "edge", xds, &directory.path().join("admin.sock"));
        let mut settings = Settings::new(directory.path().to_owned(), bootstrap);
        settings.drain_time = Duration::from_secs(2);
        settings.finish_time = Duration::from_secs(1);
        (child, process, settings, directory)
    }

    /// Breaks off the first of every two alike. What was asked, in the order of arrival.
    async fn unreliable_admin(listener: UnixListener, calls: usize) -> Vec<String> {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        let mut asked = Vec::new();
        while asked.len() < calls {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut head).await.unwrap() > 0);
            }
            let head = String::from_utf8(head).unwrap();
            let path = head.split(' ').nth(1).unwrap().to_owned();
            asked.push(path.clone());
            let alike = asked.iter().filter(|earlier| **earlier == path);
            if alike.count() % 2 == 0 {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"stats\":[]}";
                stream.write_all(answer).await.unwrap();
            }
        }
        asked
    }

    #[tokio::test]
    async fn a_call_that_is_broken_off_is_made_again() {
        let (mut child, mut process, settings, _directory) = leaving();
        let socket = &settings.bootstrap.admin_socket;
        let asked = tokio::spawn(unreliable_admin(UnixListener::bind(socket).unwrap(), 8));
        drain_and_end(&mut process, &AdminClient::new(socket), &settings, None).await;
        child.wait().unwrap();
        let asked = timeout(Duration::from_secs(5), asked).await.expect("more calls");
        let mut asked = asked.unwrap();
        let (gentle, close) = ("/drain_listeners?graceful&skip_exit", "/drain_listeners");
        // At the same time as the first.
        let fail = "/healthcheck/fail";
        asked[..4].sort();
        assert_eq!(asked[..6], [gentle, gentle, fail, fail, close, close]);
        assert!(
            asked[6].starts_with("/stats?") && asked[6] == asked[7],
            "{asked:?}"
        );
    }

    #[tokio::test]
    async fn what_cannot_be_told_has_its_time_where_another_serves() {
        for is_followed in [false, true] {
            let (mut child, mut process, settings, _directory) = leaving();
            let (_status, successor) = watch::channel(Status::Running(Running {
                pid: std::process::id(),
                epoch: 0,
                adopted: false,
                version: None,
                outdated: None,
            }));
            let admin = AdminClient::new(&settings.bootstrap.admin_socket);
            let start = Instant::now();
            drain_and_end(&mut process, &admin, &settings, is_followed.then_some(successor)).await;
            child.wait().unwrap();
            let had_its_time = start.elapsed() >= settings.drain_time + settings.finish_time;
            assert_eq!(had_its_time, is_followed, "{:?}", start.elapsed());
        }
    }
}

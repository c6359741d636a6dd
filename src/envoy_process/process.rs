//! One Envoy process: signals, and how it ends.
//!
//! Envoy is never our child (see `launch`), so it is watched through a pidfd: readable the moment it is dead, and a
//! signal sent through it reaches this process or none. How it ended is known to its parent, which writes it down.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, timeout};

use super::identity::Identity;

/// For kernels and sandboxes without pidfd_open (before Linux 5.3, old seccomp profiles). Death is promised to be
/// noticed within 100 ms.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How long to wait for the exit status. Its writer only has to wake up: a millisecond, and on a machine with much more
/// to do than it can do, hundreds. Only where the writer was killed, too, is all of it spent.
const STATUS_PATIENCE: Duration = Duration::from_secs(1);
const STATUS_INTERVAL: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Process {
    pub identity: Identity,
    pub base_id: u32,
    pub epoch: u32,
    status_file: PathBuf,
    watch: Watch,
    /// When the end was first seen.
    ended_at: Option<Instant>,
}

#[derive(Debug)]
enum Watch {
    Pidfd(AsyncFd<OwnedFd>),
    Poll,
    Ended,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// The writer of the status was killed with it.
    Unknown,
}

impl Exit {
    /// Reads a shell's status: 128 and more is a signal. Envoy itself ends with 0 or 1.
    fn from_status(text: &str) -> Option<Self> {
        match text.trim().parse().ok()? {
            status @ 129..=192 => Some(Self::Signal(status - 128)),
            status => Some(Self::Code(status)),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}{}", signal_meaning(*signal)),
            Self::Unknown => f.write_str("exit reason unknown"),
        }
    }
}

fn signal_meaning(signal: i32) -> &'static str {
    match signal {
        6 => " (SIGABRT: it ended itself on an internal error)",
        7 => " (SIGBUS)",
        9 => " (SIGKILL: by an operator or for lack of memory, see the kernel log)",
        11 => " (SIGSEGV)",
        15 => " (SIGTERM)",
        _ => "",
    }
}

impl Process {
    /// Holds on to a process, also to one that is dead already.
    pub fn open(identity: Identity, base_id: u32, epoch: u32, status_file: PathBuf) -> io::Result<Self> {
        let watch = match Pid::from_raw(identity.pid.cast_signed()) {
            None => Watch::Ended,
            Some(pid) => match rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) {
                Ok(fd) => Watch::Pidfd(watched(fd)?),
                Err(rustix::io::Errno::SRCH) => Watch::Ended,
                Err(_) => Watch::Poll,
            },
        };
        // Only now does the descriptor hold on to the right one: before it was opened the pid may have been reused.
        let watch = if identity.is_alive() { watch } else { Watch::Ended };
        Ok(Self {
            identity,
            base_id,
            epoch,
            status_file,
            watch,
            ended_at: None,
        })
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.watch, Watch::Ended) || !self.identity.is_alive()
    }

    pub fn pid(&self) -> u32 {
        self.identity.pid
    }

    /// Waits for the end. May be cancelled and called again, also after the end.
    pub async fn exited(&mut self) -> Exit {
        match &mut self.watch {
            Watch::Pidfd(fd) => match fd.readable().await {
                // The kernel has no other event for a pidfd than death.
                Ok(mut guard) => guard.retain_ready(),
                Err(_) => poll_until_dead(self.identity).await,
            },
            Watch::Poll => poll_until_dead(self.identity).await,
            Watch::Ended => {}
        }
        // Not from this call on: while Envoy starts, a call is given up after 50 ms and made again.
        let patience = *self.ended_at.get_or_insert_with(Instant::now) + STATUS_PATIENCE;
        loop {
            let status = std::fs::read_to_string(&self.status_file).unwrap_or_default();
            // A whole line: the writer may be between making the file and filling it.
            if let Some(exit) = status.strip_suffix('\n').and_then(Exit::from_status) {
                return exit;
            }
            if Instant::now() >= patience {
                return Exit::Unknown;
            }
            sleep(STATUS_INTERVAL).await;
        }
    }

    pub async fn exited_within(&mut self, limit: Duration) -> Option<Exit> {
        timeout(limit, self.exited()).await.ok()
    }

    /// Sends a signal to this process and no other. One that is dead already is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let sent = match &self.watch {
            Watch::Pidfd(fd) => rustix::process::pidfd_send_signal(fd.get_ref(), signal),
            Watch::Poll if self.identity.is_alive() => match Pid::from_raw(self.identity.pid.cast_signed()) {
                Some(pid) => rustix::process::kill_process(pid, signal),
                None => Ok(()),
            },
            Watch::Poll | Watch::Ended => Ok(()),
        };
        match sent {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// SIGTERM, then SIGKILL for one that does not listen.
    pub async fn terminate(&mut self, kill_after: Duration) -> Exit {
        self.send(Signal::TERM);
        if let Some(exit) = self.exited_within(kill_after).await {
            return exit;
        }
        tracing::warn!(pid = self.pid(), "Envoy did not end on SIGTERM, killing it");
        self.kill().await
    }

    pub async fn kill(&mut self) -> Exit {
        self.send(Signal::KILL);
        self.exited().await
    }

    fn send(&self, signal: Signal) {
        if let Err(error) = self.signal(signal) {
            tracing::error!(pid = self.pid(), ?signal, %error, "cannot signal Envoy");
        }
    }
}

#[expect(
    deprecated,
    reason = "deprecated because a type may hand out a descriptor that it does not keep; OwnedFd keeps its one until it \
              is dropped. The replacement is an unsafe fn, and this crate forbids unsafe code."
)]
fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

async fn poll_until_dead(identity: Identity) {
    while identity.is_alive() {
        sleep(POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> (std::process::Child, Process, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let identity = Identity::of(child.id()).unwrap();
        let process = Process::open(identity, 1, 0, directory.path().join("status")).unwrap();
        (child, process, directory)
    }

    #[tokio::test]
    async fn is_woken_by_the_death_of_a_foreign_process() {
        let (mut child, mut process, directory) = sleeper();
        // The kernel tells of it: nothing is asked again and again.
        assert!(matches!(process.watch, Watch::Pidfd(_)), "{process:?}");
        assert!(process.exited_within(Duration::from_millis(50)).await.is_none());
        std::fs::write(directory.path().join("status"), "137\n").unwrap();
        assert_eq!(process.kill().await, Exit::Signal(9));
        // Again, as a cancelled wait would.
        assert_eq!(process.exited().await, Exit::Signal(9));
        process.signal(Signal::TERM).unwrap();
        child.wait().unwrap();
        let identity = process.identity;
        assert!(
            Process::open(identity, 1, 0, directory.path().join("status"))
                .unwrap()
                .has_ended()
        );
    }

    #[tokio::test]
    async fn does_not_wait_for_a_status_that_nobody_writes() {
        let (mut child, mut process, _directory) = sleeper();
        let end = timeout(Duration::from_secs(30), process.terminate(Duration::from_secs(5))).await;
        assert_eq!(end, Ok(Exit::Unknown));
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_status_is_waited_for_once_however_often_the_wait_is_given_up() {
        let (mut child, mut process, _directory) = sleeper();
        child.kill().unwrap();
        child.wait().unwrap();
        let start = Instant::now();
        let exit = loop {
            if let Some(exit) = process.exited_within(Duration::from_millis(50)).await {
                break exit;
            }
            assert!(start.elapsed() < 20 * STATUS_PATIENCE);
        };
        assert_eq!(exit, Exit::Unknown);
    }

    #[test]
    fn reads_a_shells_status() {
        assert_eq!(Exit::from_status("0"), Some(Exit::Code(0)));
        assert_eq!(Exit::from_status("127"), Some(Exit::Code(127)));
        assert_eq!(Exit::from_status("139"), Some(Exit::Signal(11)));
        assert_eq!(Exit::from_status(""), None);
    }
}

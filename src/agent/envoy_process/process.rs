//! One Envoy process: a child of ours, or one that a former agent started.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Child;
use tokio::time::{sleep, timeout};

use super::identity::Identity;

/// For kernels and sandboxes without pidfd_open (before Linux 5.3, old seccomp profiles). Death is promised to be
/// noticed within 100 ms.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct Process {
    pub identity: Identity,
    pub base_id: u32,
    pub epoch: u32,
    watch: Watch,
}

#[derive(Debug)]
enum Watch {
    /// Ours: must be reaped, tells its exit code.
    Child(Box<Child>),
    /// Not ours: readable once it is dead, tells nothing else.
    Pidfd(AsyncFd<OwnedFd>),
    Poll,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// It was not our child: only its parent is told.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}{}", signal_meaning(*signal)),
            Self::Unknown => f.write_str("exit reason unknown, it was started by a former agent"),
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
    pub fn from_child(child: Child, base_id: u32, epoch: u32) -> io::Result<Self> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "it ended at once");
        let pid = child.id().ok_or_else(gone)?;
        // An unreaped child keeps its pid, so that even a dead one has an identity to be recorded and waited for.
        let identity = Identity::of(pid).unwrap_or(Identity { pid, start_time: 0 });
        Ok(Self {
            identity,
            base_id,
            epoch,
            watch: Watch::Child(Box::new(child)),
        })
    }

    /// Takes over a living process. None if it died meanwhile.
    pub fn adopt(identity: Identity, base_id: u32, epoch: u32) -> io::Result<Option<Self>> {
        let Some(pid) = Pid::from_raw(identity.pid.cast_signed()) else {
            return Ok(None);
        };
        let watch = match rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(fd) => Watch::Pidfd(watched(fd)?),
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(_) => Watch::Poll,
        };
        // Only now does the descriptor hold on to the right one: before it was opened the pid may have been reused.
        Ok(identity.is_alive().then_some(Self {
            identity,
            base_id,
            epoch,
            watch,
        }))
    }

    pub fn pid(&self) -> u32 {
        self.identity.pid
    }

    /// Waits for the end. May be cancelled and called again, also after the end.
    pub async fn exited(&mut self) -> Exit {
        match &mut self.watch {
            Watch::Child(child) => match child.wait().await {
                Ok(status) => match (status.code(), status.signal()) {
                    (Some(code), _) => Exit::Code(code),
                    (None, Some(signal)) => Exit::Signal(signal),
                    (None, None) => Exit::Unknown,
                },
                Err(_) => Exit::Unknown,
            },
            Watch::Pidfd(fd) => {
                // Readiness is only a hint, and the kernel has no other event for a pidfd than death.
                match fd.readable().await {
                    Ok(mut guard) => guard.retain_ready(),
                    Err(_) => poll_until_dead(self.identity).await,
                }
                Exit::Unknown
            }
            Watch::Poll => {
                poll_until_dead(self.identity).await;
                Exit::Unknown
            }
        }
    }

    pub async fn exited_within(&mut self, limit: Duration) -> Option<Exit> {
        timeout(limit, self.exited()).await.ok()
    }

    /// Sends a signal to this process and no other. One that is dead already is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let sent = match &self.watch {
            Watch::Pidfd(fd) => rustix::process::pidfd_send_signal(fd.get_ref(), signal),
            // A child's pid is ours until it is reaped, and `id` is None after that.
            Watch::Child(child) => match child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
                Some(pid) => rustix::process::kill_process(pid, signal),
                None => Ok(()),
            },
            Watch::Poll if self.identity.is_alive() => match Pid::from_raw(self.identity.pid.cast_signed()) {
                Some(pid) => rustix::process::kill_process(pid, signal),
                None => Ok(()),
            },
            Watch::Poll => Ok(()),
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
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn notices_the_death_of_a_foreign_process_at_once() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let identity = Identity::of(child.id()).unwrap();
        let mut adopted = Process::adopt(identity, 1, 0).unwrap().unwrap();
        assert!(adopted.exited_within(Duration::from_millis(50)).await.is_none());
        let killed_at = Instant::now();
        assert_eq!(adopted.kill().await, Exit::Unknown);
        assert!(
            killed_at.elapsed() < Duration::from_millis(100),
            "{:?}",
            killed_at.elapsed()
        );
        // Again, as a cancelled wait would.
        assert_eq!(adopted.exited().await, Exit::Unknown);
        adopted.signal(Signal::TERM).unwrap();
        child.wait().unwrap();
        assert!(Process::adopt(identity, 1, 0).unwrap().is_none());
    }

    #[tokio::test]
    async fn a_child_tells_how_it_ended() {
        let child = tokio::process::Command::new("sh")
            .args(["-c", "exit 3"])
            .spawn()
            .unwrap();
        let mut process = Process::from_child(child, 1, 0).unwrap();
        assert_eq!(process.exited().await, Exit::Code(3));
        assert_eq!(process.exited().await, Exit::Code(3));
        let child = tokio::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut process = Process::from_child(child, 1, 0).unwrap();
        assert_eq!(process.terminate(Duration::from_secs(5)).await, Exit::Signal(15));
    }
}

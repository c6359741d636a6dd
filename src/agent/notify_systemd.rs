//! Tells systemd how the agent fares (`Type=notify`, `Type=notify-reload`).
//!
//! Input: the value of NOTIFY_SOCKET. Output: one datagram for each state. Without the variable everything is a no-op:
//! the agent runs the same under Nomad, in a container or by hand.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::time::{ClockId, clock_gettime};

/// The way to the service manager, if there is one.
#[derive(Debug)]
pub struct ServiceManager {
    target: Option<(UnixDatagram, SocketAddr)>,
}

impl ServiceManager {
    /// `socket` is the value of NOTIFY_SOCKET. One that cannot be used is told once and ignored after that.
    pub fn new(socket: Option<OsString>) -> Self {
        let Some(socket) = socket.filter(|socket| !socket.is_empty()) else {
            return Self { target: None };
        };
        match connect(&socket) {
            Ok(target) => Self { target: Some(target) },
            Err(error) => {
                tracing::warn!(socket = %socket.to_string_lossy(), %error, "cannot reach the service manager");
                Self { target: None }
            }
        }
    }

    /// Start or reload is done: the agent answers.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}\n", one_line(status)));
    }

    /// A reload begins. `ready` must follow. The time lets systemd tell this reload from an earlier one.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let microseconds = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}\n"));
    }

    pub fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={}\n", one_line(status)));
    }

    /// The line that `systemctl status` shows.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}\n", one_line(status)));
    }

    fn send(&self, message: &str) {
        let Some((socket, address)) = &self.target else {
            return;
        };
        if let Err(error) = socket.send_to_addr(message.as_bytes(), address) {
            // The manager restarts at times; the agent must not care.
            tracing::debug!(%error, "cannot notify the service manager");
        }
    }
}

fn connect(socket: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(socket)?,
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "neither a path nor an abstract name",
            ));
        }
    };
    let datagram = UnixDatagram::unbound()?;
    // A full queue must not stop the agent.
    datagram.set_nonblocking(true)?;
    Ok((datagram, address))
}

/// A line feed would begin another assignment.
fn one_line(text: &str) -> String {
    text.replace(|character: char| character.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn speaks_over_a_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let manager = ServiceManager::new(Some(path.into()));
        manager.ready("serving\nMAINPID=1");
        assert_eq!(received(&systemd), "READY=1\nSTATUS=serving MAINPID=1\n");
        manager.reloading();
        let message = received(&systemd);
        let time = message
            .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
            .unwrap()
            .trim();
        assert!(time.parse::<u64>().unwrap() > 0);
        manager.stopping("bye");
        assert_eq!(received(&systemd), "STOPPING=1\nSTATUS=bye\n");
    }

    #[test]
    fn speaks_over_an_abstract_socket() {
        let name = format!("portreeve-test-{}", std::process::id());
        let systemd = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        ServiceManager::new(Some(format!("@{name}").into())).status("3 gateways");
        assert_eq!(received(&systemd), "STATUS=3 gateways\n");
    }

    #[test]
    fn is_silent_without_a_manager() {
        ServiceManager::new(None).ready("x");
        ServiceManager::new(Some("relative".into())).ready("x");
        ServiceManager::new(Some("/nowhere/notify".into())).ready("x");
    }
}

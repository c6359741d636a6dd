//! Keeps new connections away from an Envoy that is about to close its ports, while another listens there too.
//!
//! The kernel deals new connections out over all sockets that listen on a port, and one that closes resets what waits in
//! its queue. Envoy closes each port on every worker thread in turn, milliseconds apart on a busy machine, and has
//! stopped accepting before. So the kernel is told first whom to choose: a classic BPF program at the group of sockets
//! answers with a place in it (SO_ATTACH_REUSEPORT_CBPF, Linux 4.5), and needs no privilege but a descriptor of one of
//! them. That is borrowed from the successor (pidfd_getfd, Linux 5.6: the right to trace it, which a process has over
//! its descendants, and mostly over those of its own user).
//!
//! Places are dealt out in the order in which sockets began to listen, and the last one moves into the place of one that
//! closes. Hence the successor's sockets are behind the old ones, wherever the table, which lists by age, says so.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::libc::{sock_filter, sock_fprog};
use nix::sys::socket::{setsockopt, sockopt::AttachReusePortCbpf};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use tokio::time::{Instant, sleep};

use super::listening_sockets::{Listening, listening, sockets_of};

/// From the first new connection that goes elsewhere to the closing of the ports: handshakes that the old Envoy began are
/// over by then, one lost packet's first repetition included, and it has accepted them.
pub(super) const SETTLE_TIME: Duration = Duration::from_millis(1500);

/// How long the old Envoy's sockets may take to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// New connections go to the successor, at each port where both listen, until this is dropped.
#[derive(Debug, Default)]
pub(super) struct Steering {
    groups: Vec<Group>,
}

/// The sockets at one address.
#[derive(Debug)]
struct Group {
    address: SocketAddr,
    /// Those of the old Envoy, in the first places.
    old: Vec<u64>,
    /// How many are behind them.
    new: u32,
    /// One of the successor's: what is attached to it holds for all.
    member: OwnedFd,
}

impl Steering {
    /// Blocking: it reads /proc. Where it cannot be done that is said, and connections are dealt out to both as before.
    pub fn begin(old: u32, successor: u32) -> Self {
        let of_old: Vec<u64> = sockets_of(old).map(|(_, inode)| inode).collect();
        let of_new: BTreeMap<u64, i32> = sockets_of(successor)
            .map(|(descriptor, inode)| (inode, descriptor))
            .collect();
        let of_new_inodes: Vec<u64> = of_new.keys().copied().collect();
        let steering = Self::between(&of_old, &of_new_inodes, |inode| {
            let descriptor = of_new.get(&inode).ok_or(io::ErrorKind::NotFound)?;
            borrow(successor, *descriptor, inode)
        });
        steering.choose_any_new();
        steering
    }

    fn between(old: &[u64], new: &[u64], member: impl Fn(u64) -> io::Result<OwnedFd>) -> Self {
        let table = listening();
        let mut addresses: Vec<SocketAddr> = table.iter().map(|socket| socket.address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let mut groups = Vec::new();
        for address in addresses {
            let here = table.iter().filter(|socket| socket.address == address);
            match places(here, old, new) {
                Ok(None) => {}
                Ok(Some([old, new])) => match member(new[0]) {
                    Ok(member) => groups.push(Group {
                        address,
                        old,
                        new: u32::try_from(new.len()).unwrap_or(u32::MAX),
                        member,
                    }),
                    Err(error) => tell(
                        address,
                        &format!("the new Envoy's socket cannot be borrowed: {error}"),
                    ),
                },
                Err(reason) => tell(address, reason),
            }
        }
        Self { groups }
    }

    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// All of the successor's sockets in turn.
    fn choose_any_new(&self) {
        for group in &self.groups {
            group.attach(&[
                filter(LOAD_ANCILLARY, RANDOM),
                filter(MODULO, group.new),
                filter(ADD, group.first_new()),
                filter(RETURN_RESULT, 0),
            ]);
        }
    }

    /// The one socket of the successor whose place is right while those before it close, one after the other. Not for long:
    /// it is one worker's.
    pub fn choose_one_new(&self) {
        for group in &self.groups {
            group.attach(&[filter(RETURN_CONSTANT, group.first_new())]);
        }
    }

    /// Waits until the old Envoy listens no more at any of the addresses.
    pub async fn until_closed(&self) {
        let deadline = Instant::now() + CLOSE_LIMIT;
        let listens = |socket: &Listening| {
            let mut groups = self.groups.iter();
            groups.any(|group| group.address == socket.address && group.old.contains(&socket.inode))
        };
        while !self.is_empty() && Instant::now() < deadline && listening().iter().any(listens) {
            sleep(LOOK_INTERVAL).await;
        }
    }
}

impl Drop for Steering {
    /// A place that there is not: the kernel chooses by itself. So it does after an agent that was killed before this, once the
    /// old sockets are closed, unless the successor has more workers than the old Envoy.
    fn drop(&mut self) {
        for group in &self.groups {
            group.attach(&[filter(RETURN_CONSTANT, u32::MAX)]);
        }
    }
}

impl Group {
    fn first_new(&self) -> u32 {
        u32::try_from(self.old.len()).unwrap_or(u32::MAX)
    }

    fn attach(&self, program: &[sock_filter]) {
        let mut program = program.to_vec();
        let program = sock_fprog {
            len: u16::try_from(program.len()).unwrap_or(0),
            filter: program.as_mut_ptr(),
        };
        if let Err(error) = setsockopt(&self.member, AttachReusePortCbpf, &program) {
            tell(
                self.address,
                &format!("the kernel does not take the choice: {error}"),
            );
        }
    }
}

// linux/bpf_common.h and linux/filter.h
const LOAD_ANCILLARY: u16 = 0x20;
const RANDOM: u32 = 0xffff_f000 + 56;
const MODULO: u16 = 0x94;
const ADD: u16 = 0x04;
const RETURN_RESULT: u16 = 0x16;
const RETURN_CONSTANT: u16 = 0x06;

fn filter(code: u16, k: u32) -> sock_filter {
    sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

fn tell(address: SocketAddr, reason: &str) {
    tracing::info!(
        %address,
        reason,
        fix = "sysctl -w net.ipv4.tcp_migrate_req=1",
        "connections that wait at the old Envoy when it closes this port may be reset: new ones cannot be kept away from it"
    );
}

/// Which sockets of one address are whose, if both listen there. The kernel's table has the newest first for IPv4, last
/// for IPv6.
fn places<'a>(
    here: impl Iterator<Item = &'a Listening>,
    old: &[u64],
    new: &[u64],
) -> Result<Option<[Vec<u64>; 2]>, &'static str> {
    let mut by_age: Vec<&Listening> = here.collect();
    if by_age.first().is_some_and(|socket| socket.address.is_ipv4()) {
        by_age.reverse();
    }
    let of = |all: &[u64]| -> Vec<u64> {
        let those = by_age.iter().map(|socket| socket.inode);
        those.filter(|inode| all.contains(inode)).collect()
    };
    let (old, new) = (of(old), of(new));
    // A hot restart's two have the same sockets.
    if old.is_empty() || new.is_empty() || old.iter().any(|inode| new.contains(inode)) {
        return Ok(None);
    }
    if old.len() + new.len() != by_age.len() {
        return Err("another process listens there, too");
    }
    let first = by_age.iter().take(old.len());
    if first.map(|socket| socket.inode).ne(old.iter().copied()) {
        return Err("both opened it while both ran");
    }
    Ok(Some([old, new]))
}

/// Another process's socket.
fn borrow(process: u32, descriptor: i32, inode: u64) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(process.cast_signed()).ok_or(io::ErrorKind::NotFound)?;
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let socket = rustix::process::pidfd_getfd(process, descriptor, PidfdGetfdFlags::empty())?;
    // The number may be another file's by now, or the process another.
    if rustix::fs::fstat(&socket)?.st_ino != inode {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use rustix::net::{AddressFamily, SocketType, bind, listen, socket, sockopt};

    use super::*;

    fn listener(at: SocketAddr) -> TcpListener {
        let family = if at.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let opened = socket(family, SocketType::STREAM, None).unwrap();
        sockopt::set_socket_reuseport(&opened, true).unwrap();
        bind(&opened, &at).unwrap();
        listen(&opened, 128).unwrap();
        let opened = TcpListener::from(opened);
        opened.set_nonblocking(true).unwrap();
        opened
    }

    fn inode(socket: &TcpListener) -> u64 {
        rustix::fs::fstat(socket).unwrap().st_ino
    }

    fn inodes(sockets: &[TcpListener]) -> Vec<u64> {
        sockets.iter().map(inode).collect()
    }

    /// How many connections wait, which are taken.
    fn waiting(socket: &TcpListener) -> usize {
        let mut found = 0;
        loop {
            match socket.accept() {
                Ok(_) => found += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return found,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Connects and tells how many came to each.
    fn dealt(count: usize, at: SocketAddr, sockets: &[&TcpListener]) -> Vec<usize> {
        let _kept: Vec<TcpStream> = (0..count).map(|_| TcpStream::connect(at).unwrap()).collect();
        sockets.iter().map(|socket| waiting(socket)).collect()
    }

    fn steers_at(any_port: &str) {
        let first = listener(any_port.parse().unwrap());
        let at = first.local_addr().unwrap();
        let mut old = vec![first, listener(at), listener(at)];
        let new = [listener(at), listener(at), listener(at)];
        let all: Vec<&TcpListener> = old.iter().chain(&new).collect();
        assert!(
            dealt(300, at, &all).iter().all(|count| *count > 0),
            "to all by itself"
        );

        let member = |wanted: u64| {
            let found = new.iter().find(|socket| inode(socket) == wanted).unwrap();
            found.as_fd().try_clone_to_owned()
        };
        let steering = Steering::between(&inodes(&old), &inodes(&new), member);
        assert_eq!(steering.groups.len(), 1);
        steering.choose_any_new();
        let counts = dealt(300, at, &all);
        assert_eq!(counts[..3], [0, 0, 0], "{counts:?}");
        assert!(counts[3..].iter().all(|count| *count > 50), "{counts:?}");

        // In whatever order they close, none of the others of the old Envoy gets one.
        steering.choose_one_new();
        old.swap(0, 1);
        while !old.is_empty() {
            let counts = dealt(100, at, &old.iter().collect::<Vec<_>>());
            assert_eq!(counts.iter().sum::<usize>(), 0, "{counts:?}");
            let counts: Vec<usize> = new.iter().map(waiting).collect();
            assert_eq!(counts.iter().sum::<usize>(), 100, "{counts:?}");
            old.pop();
        }
        drop(steering);
        let counts = dealt(300, at, &new.iter().collect::<Vec<_>>());
        assert!(counts.iter().all(|count| *count > 50), "{counts:?}");
    }

    #[test]
    fn new_connections_go_to_the_successor_alone() {
        steers_at("127.0.0.1:0");
    }

    #[test]
    fn so_they_do_over_ipv6() {
        steers_at("[::1]:0");
    }

    #[test]
    fn a_group_of_unknown_order_is_left_alone() {
        let at = |inode: u64, address: &str| Listening {
            address: address.parse().unwrap(),
            inode,
        };
        let four = |order: [u64; 4]| order.map(|inode| at(inode, "127.0.0.1:80"));
        let six = |order: [u64; 4]| order.map(|inode| at(inode, "[::1]:80"));
        let found = |here: &[Listening]| places(here.iter(), &[1, 2], &[3, 4]);
        assert_eq!(found(&four([4, 3, 2, 1])), Ok(Some([vec![1, 2], vec![3, 4]])));
        assert_eq!(found(&six([2, 1, 4, 3])), Ok(Some([vec![2, 1], vec![4, 3]])));
        let mixed = Err("both opened it while both ran");
        assert_eq!(found(&four([4, 2, 3, 1])), mixed);
        assert_eq!(found(&four([1, 2, 3, 4])), mixed);
        assert_eq!(found(&six([3, 1, 2, 4])), mixed);
        assert_eq!(
            found(&four([5, 4, 2, 1])),
            Err("another process listens there, too")
        );
        assert_eq!(
            found(&[at(1, "[::1]:80"), at(2, "[::1]:80")]),
            Ok(None),
            "only one listens"
        );
        assert_eq!(
            places(four([4, 3, 2, 1]).iter(), &[1, 2], &[1, 2]),
            Ok(None),
            "handed over"
        );
    }
}

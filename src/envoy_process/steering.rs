//! Keeps new connections away from an Envoy that is about to close its ports, while another listens there too.
//!
//! The kernel deals new connections out over all sockets that listen on a port, and one that closes resets what waits in
//! its queue. Envoy closes each port on every worker thread in turn, milliseconds apart on a busy machine, and has
//! stopped accepting before. So the kernel is told first whom to choose: a classic BPF program at the group of sockets
//! answers with a place in it (SO_ATTACH_REUSEPORT_CBPF, for TCP since Linux 4.6), and needs no privilege but a descriptor
//! of one of them. That is borrowed from the successor (pidfd_getfd, Linux 5.6: the right to trace it, which a process has
//! over its descendants, and mostly over those of its own user).
//!
//! Places are dealt out in the order in which sockets began to listen, and the last one moves into the place of one that
//! closes. Hence the successor's sockets are behind the old ones, wherever the table, which lists by age, says so, and no
//! socket of the port closed since both listen.

use std::collections::{BTreeMap, BTreeSet};
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

/// The kernel's table takes several reads, and sockets come and go between them: it is believed when two are equal.
const READS: usize = 5;

/// The sockets of each address in the order of their age, as far as anything of the old Envoy's is among them.
pub(super) type Ages = BTreeMap<SocketAddr, Vec<u64>>;

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
    member: Member,
}

/// A socket of the successor: what is attached to it holds for all of its port. Borrowed for a moment each time: a copy
/// that is kept would listen on when the successor does not.
#[derive(Debug)]
struct Member {
    process: u32,
    descriptor: i32,
    inode: u64,
}

/// What the ports of an Envoy look like when its successor serves. Blocking: it reads /proc, as all here does.
pub(super) fn ages(old: u32) -> io::Result<Ages> {
    let of_old: BTreeSet<u64> = sockets_of(old)?.map(|(_, inode)| inode).collect();
    let mut by_age = believed_table();
    by_age.retain(|_, inodes| inodes.iter().any(|inode| of_old.contains(inode)));
    Ok(by_age)
}

impl Steering {
    /// Where it cannot be done that is said, and connections are dealt out to both as before. `then` is what `ages` said
    /// when the successor had just begun to serve.
    pub fn begin(old: u32, successor: u32, then: &Ages) -> Self {
        match Self::between(old, successor, then) {
            Ok(mut steering) => {
                steering.choose_any_new();
                steering
            }
            Err(error) => {
                let reason = format!("the open files of one of the two cannot be seen: {error}");
                tell(None, &reason);
                Self::default()
            }
        }
    }

    fn between(old: u32, successor: u32, then: &Ages) -> io::Result<Self> {
        let of_old: BTreeSet<u64> = sockets_of(old)?.map(|(_, inode)| inode).collect();
        let of_new: BTreeMap<u64, i32> = sockets_of(successor)?
            .map(|(descriptor, inode)| (inode, descriptor))
            .collect();
        // Every Envoy has some: that of its admin API.
        if of_old.is_empty() || of_new.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut groups = Vec::new();
        for (address, by_age) in believed_table() {
            let [old, new] = match places(&by_age, then.get(&address), &of_old, &of_new) {
                Ok(Some(both)) => both,
                Ok(None) => continue,
                Err(reason) => {
                    tell(Some(address), reason);
                    continue;
                }
            };
            let first = new.first().and_then(|inode| Some((*inode, *of_new.get(inode)?)));
            let Some((inode, descriptor)) = first else {
                continue;
            };
            groups.push(Group {
                address,
                old,
                new: u32::try_from(new.len()).unwrap_or(u32::MAX),
                member: Member {
                    process: successor,
                    descriptor,
                    inode,
                },
            });
        }
        Ok(Self { groups })
    }

    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// All of the successor's sockets in turn. Groups that do not take it are left alone.
    pub fn choose_any_new(&mut self) {
        self.groups.retain(|group| {
            group.attach(&[
                filter(LOAD_ANCILLARY, RANDOM),
                filter(MODULO, group.new),
                filter(ADD, group.first_new()),
                filter(RETURN_RESULT, 0),
            ])
        });
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
    fn drop(&mut self) {
        for group in &self.groups {
            group.attach(&KERNELS_CHOICE);
        }
    }
}

/// Takes away what an agent left at the ports of an Envoy when it was killed in the middle. What cannot be reached was
/// not steered either.
pub(super) fn end_at(envoy: u32) {
    let listen: BTreeSet<u64> = listening().iter().map(|socket| socket.inode).collect();
    for (descriptor, inode) in sockets_of(envoy).into_iter().flatten() {
        if listen.contains(&inode)
            && let Ok(socket) = borrow(envoy, descriptor, inode)
        {
            // Refused where the port is nobody's to share, as the admin API's.
            let _ = attach(&socket, &KERNELS_CHOICE);
        }
    }
}

impl Group {
    fn first_new(&self) -> u32 {
        u32::try_from(self.old.len()).unwrap_or(u32::MAX)
    }

    /// Whether it is attached now.
    fn attach(&self, program: &[sock_filter]) -> bool {
        let Member {
            process,
            descriptor,
            inode,
        } = self.member;
        let attached = borrow(process, descriptor, inode).and_then(|socket| attach(&socket, program));
        if let Err(error) = &attached {
            let reason =
                format!("the new Envoy's socket cannot be borrowed, or does not take the choice: {error}");
            tell(Some(self.address), &reason);
        }
        attached.is_ok()
    }
}

fn attach(socket: &OwnedFd, program: &[sock_filter]) -> io::Result<()> {
    let mut program = program.to_vec();
    let program = sock_fprog {
        len: u16::try_from(program.len()).unwrap_or(0),
        filter: program.as_mut_ptr(),
    };
    Ok(setsockopt(socket, AttachReusePortCbpf, &program)?)
}

// linux/bpf_common.h and linux/filter.h
const LOAD_ANCILLARY: u16 = 0x20;
const RANDOM: u32 = 0xffff_f000 + 56;
const MODULO: u16 = 0x94;
const ADD: u16 = 0x04;
const RETURN_RESULT: u16 = 0x16;
const RETURN_CONSTANT: u16 = 0x06;

/// A place that there is not: the kernel chooses by itself.
const KERNELS_CHOICE: [sock_filter; 1] = [filter(RETURN_CONSTANT, u32::MAX)];

const fn filter(code: u16, k: u32) -> sock_filter {
    sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

fn tell(address: Option<SocketAddr>, reason: &str) {
    tracing::info!(
        address = address.map(tracing::field::display),
        reason,
        fix = "sysctl -w net.ipv4.tcp_migrate_req=1",
        "connections that wait at the old Envoy when it closes its ports may be reset: new ones cannot be kept away from it"
    );
}

fn believed_table() -> Ages {
    let mut table = by_age(listening());
    for _ in 1..READS {
        let again = by_age(listening());
        if again == table {
            break;
        }
        table = again;
    }
    table
}

/// The kernel's table has the newest first for IPv4, last for IPv6.
fn by_age(table: Vec<Listening>) -> Ages {
    let mut ages = Ages::new();
    for socket in table {
        ages.entry(socket.address).or_default().push(socket.inode);
    }
    for (_, inodes) in ages.iter_mut().filter(|(address, _)| address.is_ipv4()) {
        inodes.reverse();
    }
    ages
}

/// Which sockets of one address are whose, if both listen there.
fn places(
    by_age: &[u64],
    then: Option<&Vec<u64>>,
    of_old: &BTreeSet<u64>,
    of_new: &BTreeMap<u64, i32>,
) -> Result<Option<[Vec<u64>; 2]>, &'static str> {
    let all = by_age.iter().copied();
    let old: Vec<u64> = all.clone().filter(|inode| of_old.contains(inode)).collect();
    let new: Vec<u64> = all.filter(|inode| of_new.contains_key(inode)).collect();
    // A hot restart's two have the same sockets.
    if old.is_empty() || new.is_empty() || old.iter().any(|inode| new.contains(inode)) {
        return Ok(None);
    }
    if old.len() + new.len() != by_age.len() {
        return Err("another process listens there, too");
    }
    if then.is_none_or(|then| then != by_age) {
        return Err("somebody opened or closed the port meanwhile");
    }
    if !by_age.starts_with(&old) {
        return Err("both opened it while both ran");
    }
    // While the old ones close, a place behind them is to be there until the last one is gone.
    if new.len() < old.len() {
        return Err("the new Envoy has fewer workers");
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
    use std::os::fd::AsRawFd;
    use std::process::Command;
    use std::sync::{Mutex, PoisonError};

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
        listen(&opened, 1024).unwrap();
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

    fn steering(old: &[TcpListener], new: &[TcpListener]) -> Steering {
        let at = old[0].local_addr().unwrap();
        let of_new: BTreeMap<u64, i32> = new
            .iter()
            .map(|socket| (inode(socket), socket.as_raw_fd()))
            .collect();
        let table = believed_table();
        let found = places(
            &table[&at],
            table.get(&at),
            &inodes(old).into_iter().collect(),
            &of_new,
        );
        let [old, new] = found.unwrap().unwrap();
        Steering {
            groups: vec![Group {
                address: at,
                old,
                new: u32::try_from(new.len()).unwrap(),
                member: Member {
                    process: std::process::id(),
                    descriptor: of_new[&new[0]],
                    inode: new[0],
                },
            }],
        }
    }

    /// What is taken away is taken from all sockets of the process: it is not to be those of a test beside it.
    static ALONE: Mutex<()> = Mutex::new(());

    fn steers_at(any_port: &str, old_workers: usize, new_workers: usize) {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let first = listener(any_port.parse().unwrap());
        let at = first.local_addr().unwrap();
        let mut old = vec![first];
        old.extend((1..old_workers).map(|_| listener(at)));
        let new: Vec<TcpListener> = (0..new_workers).map(|_| listener(at)).collect();
        let all: Vec<&TcpListener> = old.iter().chain(&new).collect();
        assert!(
            dealt(300, at, &all).iter().all(|count| *count > 0),
            "to all by itself"
        );

        let mut steering = steering(&old, &new);
        steering.choose_any_new();
        assert_eq!(steering.groups.len(), 1);
        let counts = dealt(300, at, &all);
        let (to_old, to_new) = counts.split_at(old_workers);
        assert_eq!(to_old.iter().sum::<usize>(), 0, "{counts:?}");
        assert!(to_new.iter().all(|count| *count > 20), "{counts:?}");

        // In whatever order they close, none of the others of the old Envoy gets one.
        steering.choose_one_new();
        if old_workers > 1 {
            old.swap(0, 1);
        }
        while !old.is_empty() {
            let counts = dealt(100, at, &old.iter().collect::<Vec<_>>());
            assert_eq!(counts.iter().sum::<usize>(), 0, "{counts:?}");
            let counts: Vec<usize> = new.iter().map(waiting).collect();
            assert_eq!(counts.iter().sum::<usize>(), 100, "{counts:?}");
            old.pop();
        }
        drop(steering);
        let counts = dealt(300, at, &new.iter().collect::<Vec<_>>());
        assert!(counts.iter().all(|count| *count > 20), "{counts:?}");
    }

    #[test]
    fn new_connections_go_to_the_successor_alone() {
        steers_at("127.0.0.1:0", 3, 3);
    }

    #[test]
    fn so_they_do_over_ipv6() {
        steers_at("[::1]:0", 3, 3);
    }

    #[test]
    fn so_they_do_where_the_successor_has_more_workers() {
        steers_at("127.0.0.1:0", 2, 5);
        steers_at("127.0.0.1:0", 1, 2);
    }

    /// An agent that was killed in the middle leaves its choice behind.
    #[test]
    fn what_a_killed_agent_left_is_taken_away() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let first = listener("127.0.0.1:0".parse().unwrap());
        let at = first.local_addr().unwrap();
        let (old, new) = ([first], [listener(at), listener(at), listener(at)]);
        let left = steering(&old, &new);
        left.choose_one_new();
        std::mem::forget(left);
        drop(old);
        let all: Vec<&TcpListener> = new.iter().collect();
        let counts = dealt(100, at, &all);
        assert_eq!(counts.iter().max(), Some(&100), "to one for ever: {counts:?}");
        end_at(std::process::id());
        let counts = dealt(300, at, &all);
        assert!(counts.iter().all(|count| *count > 20), "{counts:?}");
    }

    /// A child of ours, as Envoy is: it has a listening socket for its input.
    #[test]
    fn a_childs_socket_is_borrowed_and_no_other_file() {
        let socket = listener("127.0.0.1:0".parse().unwrap());
        let (at, wanted) = (socket.local_addr().unwrap(), inode(&socket));
        let mut sleep = Command::new("sleep");
        let mut child = sleep.arg("60").stdin(OwnedFd::from(socket)).spawn().unwrap();
        let found: Vec<(i32, u64)> = sockets_of(child.id()).unwrap().collect();
        assert!(found.contains(&(0, wanted)), "{found:?}");
        assert!(ages(child.id()).unwrap().contains_key(&at));
        match borrow(child.id(), 0, wanted) {
            Ok(borrowed) => attach(&borrowed, &KERNELS_CHOICE).unwrap(),
            // A sandbox, like Docker's by default.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
        assert!(borrow(child.id(), 0, wanted + 1).is_err());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(sockets_of(child.id()).is_err());
    }

    #[test]
    fn a_group_of_unknown_order_is_left_alone() {
        let (old, new) = (BTreeSet::from([1, 2]), BTreeMap::from([(3, 0), (4, 0)]));
        let found = |by_age: &[u64]| places(by_age, Some(&by_age.to_vec()), &old, &new);
        assert_eq!(found(&[1, 2, 3, 4]), Ok(Some([vec![1, 2], vec![3, 4]])));
        assert_eq!(found(&[2, 1, 4, 3]), Ok(Some([vec![2, 1], vec![4, 3]])));
        let mixed = Err("both opened it while both ran");
        assert_eq!(found(&[1, 3, 2, 4]), mixed);
        assert_eq!(found(&[3, 4, 1, 2]), mixed);
        assert_eq!(found(&[1, 2, 4, 5]), Err("another process listens there, too"));
        assert_eq!(found(&[1, 2]), Ok(None), "only one listens");
        assert_eq!(found(&[1, 2, 3]), Err("the new Envoy has fewer workers"));
        let both = BTreeMap::from([(1, 0), (2, 0)]);
        assert_eq!(places(&[1, 2], None, &old, &both), Ok(None), "handed over");
        let meanwhile = Err("somebody opened or closed the port meanwhile");
        assert_eq!(
            places(&[1, 2, 3, 4], Some(&vec![9, 1, 2, 3, 4]), &old, &new),
            meanwhile
        );
        assert_eq!(places(&[1, 2, 3, 4], None, &old, &new), meanwhile);
    }

    #[test]
    fn ages_are_told_from_the_order_of_the_table() {
        let at = |address: &str, inode: u64| Listening {
            address: address.parse().unwrap(),
            inode,
        };
        let table = vec![
            at("127.0.0.1:80", 2),
            at("[::1]:80", 3),
            at("127.0.0.1:80", 1),
            at("[::1]:80", 4),
        ];
        let ages = by_age(table);
        assert_eq!(ages[&"127.0.0.1:80".parse().unwrap()], [1, 2]);
        assert_eq!(ages[&"[::1]:80".parse().unwrap()], [3, 4]);
    }
}

//! Who else listens where our Envoys listen.
//!
//! Envoy binds with SO_REUSEPORT, because two of ours overlap during a planned restart. The price: another Envoy of the
//! same user binds the same port without an error, and the kernel deals connections out between the two. The kernel's
//! table of listening sockets shows it; whose they are is found as `ss -p` does, by the links of `/proc/<pid>/fd`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::handle::Handle;
use super::identity::{Identity, find_envoys};

/// A port of ours on which somebody else listens too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortSharer {
    /// Where our Envoy listens.
    pub ours: SocketAddr,
    /// Where the other one does: the same, or one address of "any".
    pub theirs: SocketAddr,
    /// Process id and name; None where the kernel does not tell this user.
    pub holder: Option<(u32, String)>,
}

/// Looks at the table and remembers whose socket is whose. Blocking: it reads /proc.
#[derive(Debug)]
pub struct PortWatch {
    bootstraps: Vec<PathBuf>,
    owners: BTreeMap<u64, Owner>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    Ours,
    Other {
        identity: Identity,
        name: String,
    },
    /// Nobody whose open files this user may see.
    Hidden,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listening {
    address: SocketAddr,
    inode: u64,
}

impl PortWatch {
    /// All of these are ours: those of one agent share no port, whatever they were started for.
    pub fn new(envoys: &[Handle]) -> Self {
        Self {
            bootstraps: envoys.iter().map(|envoy| envoy.bootstrap.clone()).collect(),
            owners: BTreeMap::new(),
        }
    }

    /// Those of the addresses on which one of our Envoys listens, and somebody else too. An Envoy of ours whose files
    /// cannot be looked at (it has file capabilities) counts as not listening: nothing is said of its ports.
    pub fn look(&mut self, wanted: &BTreeSet<SocketAddr>) -> Vec<PortSharer> {
        let near = |sockets: Vec<Listening>| -> Vec<Listening> {
            let concerns = |socket: &Listening| wanted.iter().any(|ours| takes_from(socket.address, *ours));
            sockets.into_iter().filter(concerns).collect()
        };
        let sockets = near(listening());
        self.forget(&sockets);
        if sockets
            .iter()
            .any(|socket| !self.owners.contains_key(&socket.inode))
        {
            self.learn(&sockets);
        }
        // What was closed meanwhile had an owner that could not be found any more.
        let sockets: Vec<Listening> = if self.owners.values().any(|owner| *owner == Owner::Hidden) {
            let still = near(listening());
            sockets
                .into_iter()
                .filter(|socket| still.contains(socket))
                .collect()
        } else {
            sockets
        };
        shared(wanted, &sockets, &self.owners)
    }

    fn forget(&mut self, sockets: &[Listening]) {
        self.owners.retain(|inode, owner| {
            let stands = sockets.iter().any(|socket| socket.inode == *inode);
            // A socket is handed from one Envoy to the next in a hot restart.
            stands && !matches!(owner, Owner::Other { identity, .. } if !identity.is_alive())
        });
    }

    fn learn(&mut self, sockets: &[Listening]) {
        let mut unknown: BTreeSet<u64> = sockets.iter().map(|socket| socket.inode).collect();
        unknown.retain(|inode| !self.owners.contains_key(inode));
        let ours = self
            .bootstraps
            .iter()
            .flat_map(|bootstrap| find_envoys(bootstrap));
        let ours: Vec<u32> = ours.map(|envoy| envoy.identity.pid).collect();
        for pid in &ours {
            for inode in sockets_of(*pid) {
                if unknown.remove(&inode) {
                    self.owners.insert(inode, Owner::Ours);
                }
            }
        }
        for pid in processes() {
            if unknown.is_empty() {
                return;
            }
            let Some(identity) = Identity::of(pid).filter(|_| !ours.contains(&pid)) else {
                continue;
            };
            for inode in sockets_of(pid) {
                if unknown.remove(&inode) {
                    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                    let name = name.trim().to_owned();
                    self.owners.insert(inode, Owner::Other { identity, name });
                }
            }
        }
        self.owners
            .extend(unknown.into_iter().map(|inode| (inode, Owner::Hidden)));
    }
}

/// Whether a socket at `theirs` gets connections that are meant for `ours`. A nearer address wins over "any".
fn takes_from(theirs: SocketAddr, ours: SocketAddr) -> bool {
    theirs == ours
        || (theirs.port() == ours.port()
            && ours.ip().is_unspecified()
            && theirs.ip().is_ipv4() == ours.ip().is_ipv4())
}

fn shared(
    wanted: &BTreeSet<SocketAddr>,
    sockets: &[Listening],
    owners: &BTreeMap<u64, Owner>,
) -> Vec<PortSharer> {
    let owner = |socket: &Listening| owners.get(&socket.inode);
    let is_ours = |socket: &Listening| owner(socket) == Some(&Owner::Ours);
    let mut found = BTreeSet::new();
    for ours in wanted {
        if !sockets
            .iter()
            .any(|socket| socket.address == *ours && is_ours(socket))
        {
            continue;
        }
        let others = sockets
            .iter()
            .filter(|socket| takes_from(socket.address, *ours) && !is_ours(socket));
        found.extend(others.map(|socket| PortSharer {
            ours: *ours,
            theirs: socket.address,
            holder: match owner(socket) {
                Some(Owner::Other { identity, name }) => Some((identity.pid, name.clone())),
                _ => None,
            },
        }));
    }
    found.into_iter().collect()
}

fn listening() -> Vec<Listening> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|table| File::open(table).ok())
        .flat_map(|file| listening_of(BufReader::new(file)))
        .collect()
}

/// The kernel writes the listening sockets first. A busy machine has a hundred thousand others, which are not read.
fn listening_of(table: impl BufRead) -> Vec<Listening> {
    let lines = table.lines().skip(1).map_while(Result::ok);
    lines.map_while(|line| parse_line(&line)).collect()
}

/// None: not a listening socket.
fn parse_line(line: &str) -> Option<Listening> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (address, port) = fields.get(1)?.split_once(':')?;
    // TCP_LISTEN
    if *fields.get(3)? != "0A" {
        return None;
    }
    let ip = match address.len() {
        8 => IpAddr::from(Ipv4Addr::from(
            u32::from_str_radix(address, 16).ok()?.to_ne_bytes(),
        )),
        32 => {
            // Four words, each in the machine's order.
            let mut bytes = [0; 16];
            for (index, word) in bytes.chunks_exact_mut(4).enumerate() {
                let digits = address.get(index * 8..index * 8 + 8)?;
                word.copy_from_slice(&u32::from_str_radix(digits, 16).ok()?.to_ne_bytes());
            }
            IpAddr::from(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(Listening {
        address: SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?),
        inode: fields.get(9)?.parse().ok()?,
    })
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Inodes of the sockets that a process has open, as far as this user may see them.
fn sockets_of(pid: u32) -> impl Iterator<Item = u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    entries.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        inode.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn reads_the_table_up_to_the_first_connection() {
        let table = "  sl  local_address ...\n\
            \x20  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 426 1 0 100 0 0 10 0\n\
            \x20  1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0  0  0 7 1 0\n\
            \x20  2: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 9 1 0\n\
            \x20  3: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 10 1 0\n";
        let found = listening_of(table.as_bytes());
        let shown: Vec<_> = found
            .iter()
            .map(|socket| (socket.address, socket.inode))
            .collect();
        assert_eq!(
            shown,
            [(address("127.0.0.1:8080"), 426), (address("[::1]:80"), 7)]
        );
    }

    #[test]
    fn only_what_takes_connections_away_is_shared() {
        let all = [
            ("127.0.0.1:80", 1),
            ("127.0.0.1:80", 2),
            ("0.0.0.0:81", 3),
            ("127.0.0.1:81", 4),
            ("127.0.0.1:82", 5),
            ("0.0.0.0:82", 6),
            ("127.0.0.1:83", 7),
        ];
        let sockets: Vec<Listening> = all
            .iter()
            .map(|(at, inode)| Listening {
                address: address(at),
                inode: *inode,
            })
            .collect();
        let owners = BTreeMap::from([
            (1, Owner::Ours),
            (2, Owner::Hidden),
            (3, Owner::Ours),
            (4, Owner::Hidden),
            (5, Owner::Ours),
            (6, Owner::Hidden),
            (7, Owner::Hidden),
        ]);
        let wanted = ["127.0.0.1:80", "0.0.0.0:81", "127.0.0.1:82", "127.0.0.1:83"].map(address);
        let found = shared(&wanted.into(), &sockets, &owners);
        let shown: Vec<_> = found.iter().map(|port| (port.ours, port.theirs)).collect();
        assert_eq!(
            shown,
            [
                (address("0.0.0.0:81"), address("127.0.0.1:81")),
                (address("127.0.0.1:80"), address("127.0.0.1:80")),
            ],
            "82: the nearer address is ours; 83: ours does not listen"
        );
    }

    /// The kernel's own table, and its own links: this process is not one of ours.
    #[test]
    fn finds_who_listens() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = socket.local_addr().unwrap();
        let mut watch = PortWatch::new(&[]);
        assert!(watch.look(&BTreeSet::from([here])).is_empty(), "nothing of ours");
        let owners: Vec<&Owner> = watch.owners.values().collect();
        assert!(
            matches!(owners[..], [Owner::Other { identity, .. }] if identity.pid == std::process::id()),
            "{owners:?}"
        );
        drop(socket);
        // A child that another test is just starting holds the socket, too, until it is another program.
        let patience = Instant::now() + Duration::from_secs(5);
        while !watch.owners.is_empty() {
            assert!(Instant::now() < patience, "{:?}", watch.owners);
            std::thread::sleep(Duration::from_millis(5));
            watch.look(&BTreeSet::from([here]));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Another kernel's table, or none.
        #[test]
        fn fuzz_tables_of_sockets(line in "[0-9A-Fa-f:é ]{0,80}|\\PC{0,60}", head in "[ ]*0: [0-9A-F]{8}:[0-9A-F]{4} 0:0 0A .{0,30}") {
            for table in [format!("sl\n{line}\n"), format!("sl\n{head}{line}\n")] {
                for socket in listening_of(table.as_bytes()) {
                    prop_assert!(table.contains(&socket.inode.to_string()), "{table}");
                }
            }
        }
    }
}

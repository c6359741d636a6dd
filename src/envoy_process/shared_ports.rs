//! Who else listens where our Envoys listen.
//!
//! Envoy binds with SO_REUSEPORT, because two of ours overlap during a planned restart. The price: another Envoy of the
//! same user binds the same port without an error, and the kernel deals connections out between the two. The kernel's
//! table of listening sockets shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::handle::Handle;
use super::identity::{Identity, find_envoys};
use super::listening_sockets::{Listening, listening, processes, sockets_of};

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
            for (_, inode) in sockets_of(*pid).into_iter().flatten() {
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
            for (_, inode) in sockets_of(pid).into_iter().flatten() {
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
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
}

//! Who is at the other end, and which gateway it may have. `node.id` plays no part: anybody can write one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use super::event::RefusedReason;
use super::tls::TlsSettings;

/// Who connected, as far as the connection proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    Unix { uid: u32, pid: Option<i32> },
    Tls { address: SocketAddr, sans: Vec<San> },
}

/// A subject alternative name of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum San {
    Dns(Arc<str>),
    Uri(Arc<str>),
}

/// The gateways somebody may be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayAccess {
    All,
    Only(BTreeSet<Arc<str>>),
}

/// One line of the table from client certificates to gateways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub san: San,
    pub gateways: BTreeSet<Arc<str>>,
}

/// The whole table. A certificate with several listed names gets the gateways of all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identities(pub Vec<Identity>);

/// The rules of one listener.
#[derive(Clone, Debug)]
pub enum Access {
    Unix {
        /// Beside our own uid and root, which get all of `gateways`.
        uids: BTreeMap<u32, GatewayAccess>,
        gateways: GatewayAccess,
    },
    Tls(watch::Receiver<Arc<TlsSettings>>),
}

#[derive(Debug)]
pub(super) struct Denied {
    pub(super) reason: RefusedReason,
    pub(super) message: String,
}

impl Peer {
    /// The same for each connection of one client: without its port or process.
    pub fn identity(&self) -> String {
        match self {
            Self::Unix { uid, .. } => format!("uid {uid}"),
            Self::Tls { address, sans } => {
                let names: Vec<String> = sans.iter().map(San::to_string).collect();
                format!("{} {}", address.ip(), names.join(" "))
            }
        }
    }
}

impl Access {
    /// Decides by the connection alone, before anything is read from it.
    pub(super) fn admit(&self, peer: &Peer) -> Result<GatewayAccess, Denied> {
        match (self, peer) {
            (Self::Unix { uids, gateways }, Peer::Unix { uid, .. }) => {
                let own = rustix::process::geteuid().as_raw();
                if *uid == own || *uid == 0 {
                    return Ok(gateways.clone());
                }
                uids.get(uid).cloned().ok_or_else(|| {
                    Denied::identity(format!(
                        "uid {uid} may not use this socket: run Envoy as uid {own}, or list {uid} in the settings (xds)"
                    ))
                })
            }
            (Self::Tls(settings), Peer::Tls { sans, .. }) => {
                if sans.is_empty() {
                    return Err(Denied::identity(
                        "no client certificate with a DNS or URI name was presented: set one in Envoy's xDS cluster".into(),
                    ));
                }
                let permitted = settings.borrow().identities.permitted(sans);
                if permitted.is_empty() {
                    let shown: Vec<String> = sans.iter().map(San::to_string).collect();
                    return Err(Denied::identity(format!(
                        "no gateway is open to a certificate for {}",
                        shown.join(", ")
                    )));
                }
                Ok(GatewayAccess::Only(permitted))
            }
            _ => Err(Denied::identity("a peer of another kind of listener".into())),
        }
    }

    /// Whether this peer may still have this gateway, by the settings of now.
    pub(super) fn still_admits(&self, peer: &Peer, gateway: &str) -> Result<(), Denied> {
        self.admit(peer)?.choose(gateway).map(|_| ())
    }

    /// Settings that may change while a stream is open.
    pub(super) fn settings(&self) -> Option<watch::Receiver<Arc<TlsSettings>>> {
        match self {
            Self::Unix { .. } => None,
            Self::Tls(settings) => Some(settings.clone()),
        }
    }
}

impl GatewayAccess {
    /// The gateway for an Envoy whose `node.cluster` is this (empty: not set).
    pub(super) fn choose(&self, asked: &str) -> Result<Arc<str>, Denied> {
        let not_permitted = |message| {
            Err(Denied {
                reason: RefusedReason::GatewayNotPermitted,
                message,
            })
        };
        match self {
            Self::All if asked.is_empty() => {
                not_permitted("node.cluster is empty: set it to the name of the gateway".into())
            }
            Self::All => Ok(asked.into()),
            Self::Only(names) => match (names.get(asked), names.first()) {
                (Some(name), _) => Ok(name.clone()),
                (None, Some(only)) if asked.is_empty() && names.len() == 1 => Ok(only.clone()),
                _ => not_permitted(format!(
                    "gateway {asked:?} (node.cluster) is not open to this peer: it may have {}",
                    list(names)
                )),
            },
        }
    }
}

impl Identities {
    fn permitted(&self, sans: &[San]) -> BTreeSet<Arc<str>> {
        let listed = self
            .0
            .iter()
            .filter(|identity| sans.iter().any(|san| san.is_same(&identity.san)));
        listed
            .flat_map(|identity| identity.gateways.iter().cloned())
            .collect()
    }
}

impl San {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dns(one), Self::Dns(other)) => one.eq_ignore_ascii_case(other),
            (Self::Uri(one), Self::Uri(other)) => one == other,
            _ => false,
        }
    }
}

impl Denied {
    fn identity(message: String) -> Self {
        Self {
            reason: RefusedReason::Identity,
            message,
        }
    }
}

impl fmt::Display for San {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "DNS:{name}"),
            Self::Uri(uri) => write!(f, "URI:{uri}"),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { uid, pid: Some(pid) } => write!(f, "uid {uid}, pid {pid}"),
            Self::Unix { uid, pid: None } => write!(f, "uid {uid}"),
            Self::Tls { address, sans } => {
                write!(f, "{address}")?;
                sans.iter().try_for_each(|san| write!(f, " {san}"))
            }
        }
    }
}

fn list(names: &BTreeSet<Arc<str>>) -> String {
    match names.len() {
        0 => "none".into(),
        _ => names
            .iter()
            .map(|name| format!("{name:?}"))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_for_listed_uids_and_gateways() {
        let access = Access::Unix {
            uids: BTreeMap::from([(4242, GatewayAccess::Only(BTreeSet::from(["edge".into()])))]),
            gateways: GatewayAccess::Only(BTreeSet::from(["edge".into(), "inner".into()])),
        };
        let own = rustix::process::geteuid().as_raw();
        for uid in [own, 0] {
            let permitted = access.admit(&Peer::Unix { uid, pid: None }).unwrap();
            assert_eq!(&*permitted.choose("inner").unwrap(), "inner");
        }
        {
            let uid = 4242;
            let permitted = access.admit(&Peer::Unix { uid, pid: None }).unwrap();
            assert_eq!(&*permitted.choose("edge").unwrap(), "edge");
            assert_eq!(&*permitted.choose("").unwrap(), "edge");
            let denied = permitted.choose("inner").unwrap_err();
            assert_eq!(denied.reason, RefusedReason::GatewayNotPermitted);
        }
        let denied = access
            .admit(&Peer::Unix {
                uid: 4343,
                pid: Some(7),
            })
            .unwrap_err();
        assert_eq!(denied.reason, RefusedReason::Identity);
        assert!(denied.message.contains("4343"));
    }

    #[test]
    fn a_socket_for_all_needs_a_name() {
        assert_eq!(&*GatewayAccess::All.choose("any").unwrap(), "any");
        assert!(GatewayAccess::All.choose("").is_err());
        assert!(GatewayAccess::Only(BTreeSet::new()).choose("").is_err());
    }
}

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::board::timestamp;
use crate::envoy::ResourceKind;
use crate::xds::{Peer, RefusedClients, RefusedReason, StreamView, Variant};

/// One connected Envoy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EnvoyStatus {
    pub stream: u64,
    /// Envoy's `node.id`: a label, no identity.
    pub node: String,
    pub gateway: String,
    /// Who it is, as far as its connection proves it.
    pub peer: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `delta` or `sotw`.
    pub variant: String,
    pub connected_at: String,
    /// Nothing is on its way, refused or missing.
    pub settled: bool,
    pub kinds: Vec<KindStatus>,
}

/// One kind of resource on one stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KindStatus {
    pub kind: ResourceKind,
    /// Envoy asked for this kind.
    pub subscribed: bool,
    pub acknowledged: usize,
    /// Sent and not acknowledged, or waiting to be sent.
    pub pending: usize,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedResource>,
    /// Needed, and nobody here holds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wanted: Vec<String>,
}

/// One resource that this Envoy does not take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefusedResource {
    pub name: String,
    pub version: String,
    pub message: String,
}

/// Clients of the xDS port or socket that were given nothing, since the agent started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RefusedClientsStatus {
    /// By reason.
    pub counts: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<RefusedClientStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefusedClientStatus {
    pub at: String,
    pub peer: String,
    /// Its `node.id`, where it came as far as that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    pub reason: String,
    pub message: String,
}

impl RefusedClientsStatus {
    pub fn of(refused: &RefusedClients) -> Self {
        let count = |reason: RefusedReason| (reason.as_str().to_owned(), refused.count(reason));
        Self {
            counts: RefusedReason::ALL.into_iter().map(count).collect(),
            last: refused.last().map(|last| RefusedClientStatus {
                at: timestamp(last.at),
                peer: last.peer.to_string(),
                node: last.node.map(|node| node.to_string()),
                reason: last.reason.as_str().to_owned(),
                message: last.message.to_string(),
            }),
        }
    }

    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }
}

impl EnvoyStatus {
    pub fn of(stream: &StreamView) -> Self {
        Self {
            stream: stream.id.0,
            node: stream.node.to_string(),
            gateway: stream.gateway.to_string(),
            peer: peer(&stream.peer),
            version: stream.envoy_version.as_deref().map(str::to_owned),
            variant: match stream.variant {
                Variant::Delta => "delta",
                Variant::StateOfTheWorld => "sotw",
            }
            .to_owned(),
            connected_at: timestamp(stream.connected_at),
            settled: stream.is_settled(),
            kinds: ResourceKind::ALL
                .into_iter()
                .map(|kind| kind_status(stream, kind))
                .collect(),
        }
    }

    pub fn pending(&self) -> usize {
        self.kinds.iter().map(|kind| kind.pending).sum()
    }

    pub fn refused(&self) -> impl Iterator<Item = (ResourceKind, &RefusedResource)> {
        self.kinds
            .iter()
            .flat_map(|kind| kind.refused.iter().map(|refused| (kind.kind, refused)))
    }
}

fn kind_status(stream: &StreamView, kind: ResourceKind) -> KindStatus {
    let view = stream.kind(kind);
    let mut wanted: BTreeSet<&Arc<str>> = view.wanted.iter().collect();
    if kind == ResourceKind::Secret {
        // What is not given to Envoy for lack of them, it does not ask for.
        wanted.extend(stream.withheld.iter().flat_map(|withheld| &*withheld.lacks));
    }
    KindStatus {
        kind,
        subscribed: view.subscribed,
        acknowledged: stream.acked.of_kind(kind).len(),
        pending: view.pending,
        refused: view
            .refused
            .iter()
            .map(|(name, refusal)| RefusedResource {
                name: name.to_string(),
                version: refusal.version.to_string(),
                message: refusal.message.to_string(),
            })
            .collect(),
        wanted: wanted.into_iter().map(ToString::to_string).collect(),
    }
}

fn peer(peer: &Peer) -> String {
    match peer {
        Peer::Unix { uid, pid: Some(pid) } => format!("socket, uid {uid}, pid {pid}"),
        Peer::Unix { uid, pid: None } => format!("socket, uid {uid}"),
        Peer::Tls { address, sans } => {
            let names: Vec<String> = sans.iter().map(ToString::to_string).collect();
            format!("{address}, {}", names.join(", "))
        }
    }
}

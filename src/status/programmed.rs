use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::envoy::{ResourceChange, ResourceKind, ResourceSet};
use crate::model::DocumentId;
use crate::pipeline::View;
use crate::xds::StreamView;

/// How many Envoys run with the current version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programmed {
    pub acknowledged: usize,
    /// Envoys connected for the gateways that the document has a part in.
    pub of: usize,
}

impl Programmed {
    pub fn is_complete(self) -> bool {
        self.acknowledged == self.of
    }
}

impl std::fmt::Display for Programmed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.acknowledged, self.of)
    }
}

/// Per document. A document whose text makes no resource of a gateway has no part in it.
///
/// Costs one look at each resource, and per Envoy what its acknowledged set differs in.
pub(super) fn programmed(view: &View, streams: &[StreamView]) -> BTreeMap<DocumentId, Programmed> {
    let mut all: BTreeMap<DocumentId, Programmed> = BTreeMap::new();
    for gateway in &view.gateways {
        let current = gateway.compiler.resources();
        let documents = documents_of(current);
        let behind: Vec<BTreeSet<DocumentId>> = of_gateway(streams, &gateway.name)
            .map(|stream| behind(current, stream))
            .collect();
        for document in documents {
            let acknowledged = behind.iter().filter(|behind| !behind.contains(document)).count();
            let entry = all.entry(document.clone()).or_default();
            entry.acknowledged += acknowledged;
            entry.of += behind.len();
        }
    }
    all
}

/// Envoys of one gateway that run with everything as compiled.
pub(super) fn settled(current: &ResourceSet, streams: &[StreamView], gateway: &str) -> Programmed {
    let is_current = |stream: &&StreamView| {
        stream.is_settled()
            && ResourceKind::ALL
                .iter()
                .filter(|kind| stream.asks_for(**kind))
                .all(|kind| {
                    current
                        .changes_that_count_since(&stream.acked, *kind)
                        .next()
                        .is_none()
                })
    };
    Programmed {
        acknowledged: of_gateway(streams, gateway).filter(is_current).count(),
        of: of_gateway(streams, gateway).count(),
    }
}

fn of_gateway<'a>(streams: &'a [StreamView], gateway: &'a str) -> impl Iterator<Item = &'a StreamView> + 'a {
    streams.iter().filter(move |stream| *stream.gateway == *gateway)
}

fn documents_of(set: &ResourceSet) -> BTreeSet<&DocumentId> {
    let resources = ResourceKind::ALL
        .into_iter()
        .flat_map(|kind| set.of_kind(kind).values());
    resources.flat_map(|resource| resource.origins.iter()).collect()
}

/// The documents of which this Envoy lacks something.
fn behind(current: &ResourceSet, stream: &StreamView) -> BTreeSet<DocumentId> {
    let acknowledged = &stream.acked;
    let mut documents = BTreeSet::new();
    for kind in ResourceKind::ALL
        .into_iter()
        .filter(|kind| stream.asks_for(*kind))
    {
        for change in current.changes_that_count_since(acknowledged, kind) {
            let resource = match change {
                ResourceChange::Set(resource) => Some(resource),
                // The former version knows its documents; one of them let it go.
                ResourceChange::Removed(name) => acknowledged.get(kind, &name).map(Arc::clone),
            };
            documents.extend(
                resource
                    .iter()
                    .flat_map(|resource| resource.origins.iter().cloned()),
            );
        }
    }
    documents
}

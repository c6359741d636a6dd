//! What a former run left on the disk, whatever became of it there: read, resolved and compiled.

use std::sync::Arc;

use super::withheld::{Withheld, WithheldResource};
use crate::config::{Config, Permissions, Quarantine};
use crate::envoy::render;
use crate::fuzz::Target;
use crate::hcl::Limits;
use crate::model::mesh::{Chain, ChainQuery, MeshLeaf, MeshRoots};
use crate::model::{Document, Instance, ServiceQuery};
use crate::snapshot::Snapshot;
use crate::translate::{Compiler, Settings};

pub(crate) const TARGETS: &[Target] = &[Target {
    name: "saved_state",
    input: "the agent's own state on disk: documents, endpoints, chains, identities, what Envoy refused",
    run: saved_state,
}];

/// An entry a line, after a letter that says of which table.
fn saved_state(input: &[u8]) {
    let mut snapshot = Snapshot::new(
        Config::new(Permissions::default(), Limits::default()),
        Default::default(),
    );
    let (mut documents, mut confirmed, mut withheld) = (Vec::new(), Vec::new(), Vec::new());
    let (mut leaf, mut roots) = (None, None);
    // As the store reads them: what does not decode is left out.
    for line in input.split(|byte| *byte == b'\n') {
        let Some((table, entry)) = line.split_first() else {
            continue;
        };
        match table {
            b'd' => documents.extend(serde_json::from_slice::<Document>(entry).ok()),
            b'c' => confirmed.extend(serde_json::from_slice::<Document>(entry).ok()),
            b's' => {
                if let Ok((query, instances)) = serde_json::from_slice::<(ServiceQuery, Vec<Instance>)>(entry)
                {
                    snapshot.restore_service(query, instances.into());
                }
            }
            b'h' => {
                if let Ok((query, chain)) = serde_json::from_slice::<(ChainQuery, Chain)>(entry) {
                    snapshot.restore_chain(query, Arc::new(chain));
                }
            }
            b'q' => {
                if let Ok(quarantine) = serde_json::from_slice::<Quarantine>(entry) {
                    snapshot.restore_quarantine(quarantine);
                }
            }
            b'w' => withheld.extend(serde_json::from_slice::<WithheldResource>(entry).ok()),
            b'l' => leaf = serde_json::from_slice::<MeshLeaf>(entry).ok().or(leaf),
            b'r' => roots = serde_json::from_slice::<MeshRoots>(entry).ok().or(roots),
            _ => {}
        }
    }
    snapshot.restore_documents(confirmed, documents);
    if let (Some(leaf), Some(roots)) = (leaf, roots) {
        snapshot.restore_mesh(Arc::new(leaf), Arc::new(roots));
    }
    let settings = Settings {
        bind_address: std::net::IpAddr::from([127, 0, 0, 1]),
        hold_pending: true,
        same_node: Default::default(),
    };
    let mut compiler = Compiler::new("edge", settings);
    compiler.rebuild(&snapshot);
    let mut set = compiler.resources().clone();
    Withheld::restored(withheld).apply(&mut set);
    render(&set);
    compiler.stop_waiting(&snapshot);
    render(compiler.resources());
}

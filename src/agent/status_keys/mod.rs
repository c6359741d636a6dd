//! What this agent tells the others through Consul KV. Serving needs none of it, and nothing here can harm it.
//!
//! ```text
//!  View, Streams ──> node key    <prefix>/status/nodes/<node>   one writer each, gone with its session
//!                └─> leader      <prefix>/leader                elected; adds up, and keeps accepted texts
//!                      ├─> <prefix>/status/summary, <prefix>/status/node_count
//!                      └─> <prefix>/accepted/<document>
//!  pipeline ── DocumentId ──> accepted ── Observation ──> pipeline
//! ```

mod accepted;
mod leader;
mod node;
mod pace;
mod rights;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::model::{DocumentId, Observation};
use crate::pipeline::View;
use crate::sources::consul::{ConsulClient, SessionBehavior, SessionKeeper, SessionSettings};
use crate::status::{NodeReport, Status};
use crate::xds::{StreamView, Streams};

pub(super) struct StatusKeys {
    pub client: ConsulClient,
    /// Without a slash at its end.
    pub prefix: String,
    /// This agent's documents stand below the prefix. Else it knows nothing of those that are accepted there.
    pub reads_documents: bool,
    pub node: String,
    pub version: &'static str,
    pub view: watch::Receiver<Arc<View>>,
    pub streams: Streams,
    pub observations: mpsc::Sender<Observation>,
}

/// What the tasks share.
struct Shared {
    keys: StatusKeys,
    /// Nodes that write status keys, as far as known: the more there are, the slower each writes.
    nodes: AtomicUsize,
}

impl StatusKeys {
    /// Ends when told to stop. A task that dies is told about and missed, nothing more.
    pub async fn run(self, wanted: mpsc::UnboundedReceiver<DocumentId>, stop: CancellationToken) {
        let shared = Arc::new(Shared {
            keys: self,
            nodes: AtomicUsize::new(1),
        });
        let mut settings = SessionSettings::new(
            format!("portreeve node {}", shared.keys.node),
            SessionBehavior::Delete,
        );
        // The key is no lock: nobody else may want it.
        settings.lock_delay = std::time::Duration::ZERO;
        let keeper = SessionKeeper::new(shared.keys.client.clone(), settings);
        let (key, session) = (keeper.key(), keeper.session());
        let mut tasks = JoinSet::new();
        tasks.spawn(accepted::answer(shared.clone(), wanted, stop.clone()));
        tasks.spawn(keeper.run(stop.clone()));
        tasks.spawn(node::write(shared.clone(), key, session.clone(), stop.clone()));
        tasks.spawn(leader::lead(shared, session, stop.clone()));
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a task that writes status to Consul KV failed, which is a bug: please report it; its keys are not written until the agent restarts; serving is not affected");
            }
        }
        stop.cancelled().await;
    }
}

impl Shared {
    /// `<prefix>/<path>`.
    fn key(&self, path: &str) -> String {
        format!("{}/{path}", self.keys.prefix)
    }

    /// Looks at every object, so off the threads that serve.
    async fn report(&self, view: Arc<View>, streams: Vec<StreamView>) -> Option<NodeReport> {
        let (node, version) = (self.keys.node.clone(), self.keys.version);
        let made = tokio::task::spawn_blocking(move || {
            let status = Status::of(&view, &streams, Vec::new(), std::time::SystemTime::now());
            NodeReport::of(&status, &node, version)
        });
        made.await
            .inspect_err(|error| tracing::error!(%error, "no status could be made"))
            .ok()
    }
}

/// A node's name as a part of a key: what Consul's keys do not take becomes `_`.
fn key_part(name: &str) -> String {
    let part: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "_-.".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    match part.replace("..", "__").as_str() {
        "" | "." => "_".to_owned(),
        part => part.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::key_part;

    #[test]
    fn a_node_name_is_one_part_of_a_key() {
        for (name, part) in [
            ("web-1.dc", "web-1.dc"),
            ("a/b c", "a_b_c"),
            ("..", "__"),
            (".", "_"),
            ("", "_"),
        ] {
            assert_eq!(key_part(name), part);
        }
    }
}

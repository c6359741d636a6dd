//! What one agent does for all: it adds the nodes' keys up, and keeps the accepted texts.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::accepted::AcceptedKeeper;
use super::rights::Trouble;
use super::{Shared, pace};
use crate::sources::consul::{
    ConsulError, FencedWriteError, LeaderElection, LeaderSettings, Leadership, TxnWrite,
};
use crate::status::{NodeReport, Summary};

pub(super) async fn lead(
    shared: Arc<Shared>,
    mut session: watch::Receiver<Option<Arc<str>>>,
    stop: CancellationToken,
) {
    tokio::select! {
        () = stop.cancelled() => return,
        // Without the right to sessions there is no election either; said once is enough.
        found = session.wait_for(Option::is_some) => if found.is_err() { return },
    }
    let settings = LeaderSettings::new(shared.key("leader"), shared.keys.node.clone());
    let (election, leadership) = LeaderElection::new(shared.keys.client.clone(), settings);
    tokio::join!(election.run(stop.clone()), async {
        tokio::select! {
            () = stop.cancelled() => {}
            () = serve(&shared, leadership) => {}
        }
    });
}

async fn serve(shared: &Shared, mut leadership: Leadership) {
    let mut trouble = Trouble::with("the summary of all nodes is not written to Consul KV");
    let mut accepted_trouble = Trouble::with("accepted documents are not kept in Consul KV");
    let rule = format!("key_prefix {:?} {{ policy = \"write\" }}", shared.key("status/"));
    let accepted_rule = format!(
        "key_prefix {:?} {{ policy = \"write\" }}",
        shared.key("accepted/")
    );
    loop {
        while !leadership.is_leader() {
            if leadership.changed().await.is_none() {
                return;
            }
        }
        let mut written: Option<Summary> = None;
        let mut accepted = AcceptedKeeper::new(shared.key(""));
        while leadership.is_leader() {
            let mut pause = Duration::ZERO;
            match add_up(shared, &leadership, &mut written).await {
                Ok(()) | Err(FencedWriteError::NotLeader) => trouble.over(),
                Err(FencedWriteError::Consul(error)) => pause = trouble.failed(&error, &rule),
            }
            if shared.keys.reads_documents {
                let view = shared.keys.view.borrow().clone();
                match accepted.keep(&shared.keys.client, &leadership, &view).await {
                    Ok(()) | Err(FencedWriteError::NotLeader) => accepted_trouble.over(),
                    Err(FencedWriteError::Consul(error)) => {
                        accepted_trouble.failed(&error, &accepted_rule);
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pace::pause(shared.nodes.load(Ordering::Relaxed)).await;
        }
    }
}

async fn add_up(
    shared: &Shared,
    leadership: &Leadership,
    written: &mut Option<Summary>,
) -> Result<(), FencedWriteError> {
    let entries = shared
        .keys
        .client
        .read_tree(&shared.key("status/nodes/"))
        .await
        .map_err(FencedWriteError::Consul)?;
    let reports: Vec<NodeReport> = entries
        .iter()
        .filter_map(|entry| serde_json::from_slice(&entry.value).ok())
        .collect();
    shared.nodes.store(entries.len().max(1), Ordering::Relaxed);
    let summary = Summary::of(&shared.keys.node, &reports, entries.len() - reports.len());
    if written.as_ref() == Some(&summary) {
        return Ok(());
    }
    let key = shared.key("status/summary");
    let value = serde_json::to_vec(&summary).map_err(|error| ConsulError::NotSent {
        asked: format!("PUT {key}"),
        reason: error.to_string(),
    })?;
    let writes = [
        TxnWrite::Set {
            key,
            value: value.into(),
        },
        TxnWrite::Set {
            key: shared.key("status/node_count"),
            value: entries.len().to_string().into(),
        },
    ];
    leadership.write(&writes).await?;
    *written = Some(summary);
    Ok(())
}

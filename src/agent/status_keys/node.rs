//! The key of this node: written when what it says has changed, gone when the agent is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::rights::Trouble;
use super::{Shared, key_part, pace};
use crate::pipeline::View;
use crate::sources::consul::SessionKey;
use crate::sources::retry::jittered;
use crate::status::{NodeReport, Signature};

/// Before the first write: the first publication is usually done by then.
const FIRST: Duration = Duration::from_secs(2);
/// What changes by time alone (certificates near their end) is seen this late.
const LOOK_ANYWAY: Duration = Duration::from_secs(600);
/// An agent that was killed holds its key until its session expires.
const HELD_BY_ANOTHER: Duration = Duration::from_secs(90);

pub(super) async fn write(
    shared: Arc<Shared>,
    key: SessionKey,
    session: watch::Receiver<Option<Arc<str>>>,
    stop: CancellationToken,
) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = write_on_change(&shared, &key, session) => {}
    }
}

/// What stands in KV, and what it was made from.
struct Written {
    session: Arc<str>,
    view: Arc<View>,
    signature: Signature,
    made_at: Instant,
    report: NodeReport,
}

async fn write_on_change(
    shared: &Shared,
    session_key: &SessionKey,
    mut session: watch::Receiver<Option<Arc<str>>>,
) {
    let key = shared.key(&format!("status/nodes/{}", key_part(&shared.keys.node)));
    let rule = format!("key_prefix {:?} {{ policy = \"write\" }}", shared.key("status/"));
    let mut trouble = Trouble::with("the status of this node is not written to Consul KV");
    let mut refused_since: Option<Instant> = None;
    let mut written: Option<Written> = None;
    let mut spread_for: Option<Arc<str>> = None;
    tokio::time::sleep(jittered(FIRST)).await;
    loop {
        let current = match session.wait_for(Option::is_some).await {
            Ok(current) => current.clone(),
            // The keeper is gone: the agent stops.
            Err(_) => return,
        };
        let Some(current) = current else { continue };
        // Many nodes get a session at one time: when all start, and when Consul is back.
        if spread_for.as_ref() != Some(&current) {
            spread_for = Some(current);
            learn_how_many(shared).await;
            pace::spread(shared.nodes.load(Ordering::Relaxed)).await;
            continue;
        }
        if let Some(next) = look(shared, written.as_ref(), current).await {
            match serde_json::to_vec(&next.report) {
                Err(error) => tracing::error!(%error, "the status of this node cannot be written"),
                Ok(value) => match session_key.write_session_key(&key, value).await {
                    Ok(true) => {
                        trouble.over();
                        refused_since = None;
                        written = Some(next);
                    }
                    Ok(false) => {
                        let since = *refused_since.get_or_insert_with(Instant::now);
                        if since.elapsed() > HELD_BY_ANOTHER {
                            refused_since = Some(Instant::now() + Duration::from_secs(3600));
                            tracing::warn!(%key, "another agent holds this node's status key; give each agent a node_name of its own");
                        }
                    }
                    Err(error) => tokio::time::sleep(trouble.failed(&error, &rule)).await,
                },
            }
        }
        learn_how_many(shared).await;
        pace::pause(shared.nodes.load(Ordering::Relaxed)).await;
    }
}

/// None: nothing new to say.
async fn look(shared: &Shared, written: Option<&Written>, session: Arc<str>) -> Option<Written> {
    let view = shared.keys.view.borrow().clone();
    let streams = shared.keys.streams.snapshot();
    let signature = Signature::of(&view, &streams);
    let same_session = written.filter(|written| written.session == session);
    let unchanged = |written: &Written| {
        Arc::ptr_eq(&written.view, &view)
            && written.signature == signature
            && signature.is_settled()
            && written.made_at.elapsed() < LOOK_ANYWAY
    };
    if same_session.is_some_and(unchanged) {
        return None;
    }
    let report = shared.report(view.clone(), streams).await?;
    if same_session.is_some_and(|written| written.report == report) {
        return None;
    }
    Some(Written {
        session,
        view,
        signature,
        made_at: Instant::now(),
        report,
    })
}

/// The leader counts; until it has, each node takes itself for the only one.
async fn learn_how_many(shared: &Shared) {
    let Ok(Some(entry)) = shared
        .keys
        .client
        .read_key(&shared.key("status/node_count"))
        .await
    else {
        return;
    };
    if let Some(count) = std::str::from_utf8(&entry.value)
        .ok()
        .and_then(|text| text.trim().parse().ok())
    {
        // Whoever may write the key must not be able to silence the nodes.
        shared
            .nodes
            .store(std::cmp::min(count, MOST_NODES), Ordering::Relaxed);
    }
}

/// At this many a node writes every ten minutes.
const MOST_NODES: usize = 30_000;

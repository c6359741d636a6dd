use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::chain::ChainWatch;
use super::identity::{IDENTITY_WAIT, LeafLife, LeafWatch, RootsWatch};
use super::intention::IntentionWatch;
use super::intention_source::Source;
use crate::model::mesh::{ChainQuery, IntentionQuery, Interest, MeshLeaf};
use crate::model::{Needed, Observation, Problem};
use crate::sources::agent_api::blocking_query::{WatchTiming, watch};
use crate::sources::agent_api::budget::Budget;
use crate::sources::certificates::WallClock;
use crate::sources::consul::client::ConsulClient;
use crate::sources::{HealthReading, SourceHealth};

type Healths = Arc<Mutex<BTreeMap<Interest, SourceHealth>>>;

/// Says what of the mesh to watch, from anywhere.
#[derive(Clone, Debug)]
pub struct MeshWatcher {
    interests: channel::Sender<Needed<Interest>>,
    health: Healths,
    service: Arc<str>,
    leaf: Arc<Mutex<Option<LeafLife>>>,
}

/// The gateway's own certificate in the mesh, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafReading {
    /// When it ends, in Unix seconds.
    pub ends: i64,
    /// Its end is near and no other has come, whatever kept it.
    pub warning: Option<Problem>,
}

/// Watches; to be run by whoever owns the agent's tasks.
#[derive(Debug)]
pub struct MeshWatcherTask {
    client: ConsulClient,
    /// With the token that may ask for the leaf.
    mesh_client: ConsulClient,
    service: Arc<str>,
    budget: Arc<Budget>,
    observations: mpsc::Sender<Observation>,
    interests: channel::Receiver<Needed<Interest>>,
    health: Healths,
    leaf: Arc<Mutex<Option<LeafLife>>>,
    timing: WatchTiming,
}

impl MeshWatcher {
    /// `service` is who the gateway is in the mesh; `mesh_client` may ask for its certificate.
    pub fn new(
        client: ConsulClient,
        mesh_client: ConsulClient,
        service: Arc<str>,
        observations: mpsc::Sender<Observation>,
    ) -> (Self, MeshWatcherTask) {
        let (sender, interests) = channel::channel(OrdMap::new());
        let health = Healths::default();
        let leaf = Arc::new(Mutex::new(None));
        let task = MeshWatcherTask {
            budget: Budget::new(client.api(), CONNECTIONS, TURN),
            timing: WatchTiming::towards(&client.settings().address),
            client,
            mesh_client,
            service: service.clone(),
            observations,
            interests,
            health: health.clone(),
            leaf: leaf.clone(),
        };
        let watcher = Self {
            interests: sender,
            health,
            service,
            leaf,
        };
        (watcher, task)
    }

    /// The certificate from before a restart: its end is known though Consul has not answered yet.
    pub fn with_known(self, leaf: Option<&MeshLeaf>) -> Self {
        if let Some(leaf) = leaf.filter(|leaf| leaf.service == self.service) {
            let known = Some(LeafLife::of(&leaf.material));
            *self.leaf.lock().unwrap_or_else(PoisonError::into_inner) = known;
        }
        self
    }

    /// Replaces what is watched: new interests start, missing ones stop, those wanted anew start over, the others are not
    /// disturbed.
    pub fn set_interests(&self, interests: Needed<Interest>) {
        self.interests.send_if_modified(|current| {
            let differs = current.diff(&interests).next().is_some();
            if differs {
                *current = interests;
            }
            differs
        });
    }

    /// The certificate that Consul gave last, before a restart if it has given none since. Its end nears while Consul is away, too, or refuses.
    pub fn leaf(&self, now: i64) -> Option<LeafReading> {
        let life = (*self.leaf.lock().unwrap_or_else(PoisonError::into_inner))?;
        Some(LeafReading {
            ends: life.not_after,
            warning: life.remark(&self.service, now),
        })
    }

    /// The freshness of every watch that runs now.
    pub fn health(&self) -> Vec<(Interest, HealthReading)> {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        health
            .iter()
            .map(|(interest, health)| (interest.clone(), health.reading()))
            .collect()
    }
}

impl MeshWatcherTask {
    pub fn with_timing(mut self, timing: WatchTiming) -> Self {
        self.timing = timing;
        self
    }

    /// Ends when cancelled, or when every [`MeshWatcher`] is gone.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut running: BTreeMap<Interest, CancellationToken> = BTreeMap::new();
        let mut tasks: JoinSet<()> = JoinSet::new();
        let mut known: Needed<Interest> = OrdMap::new();
        loop {
            let wanted = self.interests.borrow_and_update().clone();
            for item in known.diff(&wanted) {
                let (ended, begun) = match item {
                    DiffItem::Remove(interest, _) => (Some(interest), None),
                    DiffItem::Update { old, new } => (Some(old.0), Some(new.0)),
                    DiffItem::Add(interest, _) => (None, Some(interest)),
                };
                if let Some(interest) = ended {
                    if let Some(stop) = running.remove(interest) {
                        stop.cancel();
                    }
                    self.health_of_all().remove(interest);
                }
                if let Some(interest) = begun {
                    let stop = cancel.child_token();
                    self.start(interest, &stop, &mut tasks);
                    running.insert(interest.clone(), stop);
                }
            }
            known = wanted;
            tokio::select! {
                () = cancel.cancelled() => break,
                changed = self.interests.changed() => if changed.is_err() { break },
                Some(ended) = tasks.join_next() => if let Err(error) = ended {
                    // Which one is not known; all are started again, as losing one silently would be worse.
                    tracing::error!(%error, "a mesh watch panicked, starting all mesh watches again");
                    running.values().for_each(CancellationToken::cancel);
                    running.clear();
                    known = OrdMap::new();
                    tokio::time::sleep(RESTART).await;
                },
            }
        }
        // Dropping the set aborts what still runs.
    }

    fn start(&self, interest: &Interest, stop: &CancellationToken, tasks: &mut JoinSet<()>) {
        let health = SourceHealth::default();
        self.health_of_all().insert(interest.clone(), health.clone());
        let (client, timing, stop) = (self.client.clone(), self.timing.clone(), stop.clone());
        let observations = self.observations.clone();
        match interest {
            // Instances are another watcher's.
            Interest::Service(_) => {}
            Interest::Chain(query) => {
                let mut watched =
                    ChainWatch::new(ChainQuery::clone(query), self.budget.claim(), observations);
                tasks.spawn(async move { watch(&client, &mut watched, &timing, &health, &stop).await });
            }
            Interest::Intention(query) => {
                let mut watched = IntentionWatch {
                    client: client.clone(),
                    source: Source::new(&self.service, &self.client, query),
                    query: IntentionQuery::clone(query),
                    claim: self.budget.claim(),
                    observations,
                    known: None,
                    told: None,
                };
                let timing = WatchTiming {
                    poll_interval: timing.poll_interval.min(INTENTION_POLL),
                    ..timing
                };
                tasks.spawn(async move { watch(&client, &mut watched, &timing, &health, &stop).await });
            }
            Interest::Mesh => self.start_identity(&health, &stop, tasks),
        }
    }

    fn start_identity(&self, health: &SourceHealth, stop: &CancellationToken, tasks: &mut JoinSet<()>) {
        let timing = WatchTiming {
            wait: self.timing.wait.min(IDENTITY_WAIT),
            ..self.timing.clone()
        };
        let mut roots = RootsWatch {
            observations: self.observations.clone(),
            known: None,
            told: None,
        };
        let mut leaf = LeafWatch {
            client: self.mesh_client.clone(),
            service: self.service.clone(),
            clock: WallClock::default(),
            observations: self.observations.clone(),
            known: None,
            life: self.leaf.clone(),
            told: None,
        };
        let (client, stop_roots, timing_roots) = (self.mesh_client.clone(), stop.clone(), timing.clone());
        // The leaf's is the one that can be refused: its pulse is shown.
        tasks.spawn(async move {
            let pulse = SourceHealth::default();
            watch(&client, &mut roots, &timing_roots, &pulse, &stop_roots).await;
        });
        let (client, stop, health) = (self.mesh_client.clone(), stop.clone(), health.clone());
        tasks.spawn(async move { watch(&client, &mut leaf, &timing, &health, &stop).await });
    }

    fn health_of_all(&self) -> std::sync::MutexGuard<'_, BTreeMap<Interest, SourceHealth>> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Beside the 150 of the services, out of the 200 that Consul grants one client.
const CONNECTIONS: usize = 30;

/// How often a watch without a connection of its own looks, while few are in that place.
const TURN: Duration = Duration::from_secs(5);

/// Between looks at the intentions of one destination, where Consul has no index for them.
const INTENTION_POLL: Duration = Duration::from_secs(3);

/// After a panic, so that a poisonous answer cannot spin.
const RESTART: Duration = Duration::from_secs(1);

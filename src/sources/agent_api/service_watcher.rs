//! One blocking query per service that a route uses, started and stopped as routes change.
//!
//! In: the set of [`ServiceQuery`]s. Out: whatever each product's own watch sends.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use tokio::sync::watch as channel;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::blocking_query::{WatchTiming, Watched, keep_watching};
use super::budget::{Budget, Claim};
use super::client::ApiClient;
use crate::model::{Needed, ServiceQuery};
use crate::sources::{HealthReading, SourceHealth};

/// A product's catalog of services.
pub(in crate::sources) trait ServiceSource: Send + Sync + 'static {
    type Watch: Watched + 'static;

    fn client(&self) -> ApiClient;

    /// How many long polls may hold an HTTP/1 connection.
    fn connections(&self) -> usize;

    fn timing(&self) -> WatchTiming;

    /// `connections` is what the budget allows, for messages.
    fn watch(&self, query: ServiceQuery, claim: Claim, connections: usize) -> Self::Watch;

    /// What runs beside the watches, for as long as they do. They go on without it.
    fn beside(&self, _timing: WatchTiming, _cancel: CancellationToken) -> Option<Beside> {
        None
    }
}

pub(in crate::sources) type Beside = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Says what to watch, from anywhere.
#[derive(Clone, Debug)]
pub struct ServiceWatcher {
    interests: channel::Sender<Needed<ServiceQuery>>,
    health: Arc<Mutex<BTreeMap<ServiceQuery, SourceHealth>>>,
}

/// Watches; to be run by whoever owns the agent's tasks.
pub struct ServiceWatcherTask {
    client: ApiClient,
    start: Box<dyn Fn(One) -> Running + Send + Sync>,
    beside: Box<dyn Fn(WatchTiming, CancellationToken) -> Option<Beside> + Send + Sync>,
    interests: channel::Receiver<Needed<ServiceQuery>>,
    health: Arc<Mutex<BTreeMap<ServiceQuery, SourceHealth>>>,
    timing: Arc<WatchTiming>,
    connections: usize,
    turn: Duration,
}

/// What a watch is started with.
struct One {
    query: ServiceQuery,
    claim: Claim,
    connections: usize,
    timing: Arc<WatchTiming>,
    health: SourceHealth,
}

type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

impl ServiceWatcher {
    pub(in crate::sources) fn of<S: ServiceSource>(source: S) -> (Self, ServiceWatcherTask) {
        let (sender, interests) = channel::channel(OrdMap::new());
        let health = Arc::default();
        let source = Arc::new(source);
        let starting = source.clone();
        let task = ServiceWatcherTask {
            connections: source.connections(),
            timing: Arc::new(source.timing()),
            client: source.client(),
            start: Box::new(move |one: One| {
                let mut watched = starting.watch(one.query, one.claim, one.connections);
                let client = starting.client();
                Box::pin(async move { keep_watching(&client, &mut watched, &one.timing, &one.health).await })
            }),
            beside: Box::new(move |timing, cancel| source.beside(timing, cancel)),
            interests,
            health: Arc::clone(&health),
            turn: TURN,
        };
        (
            Self {
                interests: sender,
                health,
            },
            task,
        )
    }

    /// Replaces what is watched: new queries start, missing ones stop, those wanted anew start over, the others are not
    /// disturbed.
    pub fn set_interests(&self, interests: Needed<ServiceQuery>) {
        self.interests.send_if_modified(|current| {
            let differs = current.diff(&interests).next().is_some();
            if differs {
                *current = interests;
            }
            differs
        });
    }

    /// The freshness of every watch that runs now.
    pub fn health(&self) -> Vec<(ServiceQuery, HealthReading)> {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        health
            .iter()
            .map(|(query, health)| (query.clone(), health.reading()))
            .collect()
    }
}

impl ServiceWatcherTask {
    pub fn with_timing(mut self, timing: WatchTiming) -> Self {
        self.timing = Arc::new(timing);
        self
    }

    /// How many long polls may hold an HTTP/1 connection, and how often the others look.
    pub fn with_connections(mut self, connections: usize, turn: Duration) -> Self {
        self.connections = connections;
        self.turn = turn;
        self
    }

    /// Ends when cancelled, or when every [`ServiceWatcher`] is gone.
    pub async fn run(mut self, cancel: CancellationToken) {
        let budget = Budget::new(self.client.clone(), self.connections, self.turn);
        let mut running: BTreeMap<ServiceQuery, AbortHandle> = BTreeMap::new();
        let mut tasks = JoinSet::new();
        let mut known: Needed<ServiceQuery> = OrdMap::new();
        let mut beside = JoinSet::new();
        if let Some(task) = (self.beside)((*self.timing).clone(), cancel.child_token()) {
            beside.spawn(task);
        }
        loop {
            let wanted = self.interests.borrow_and_update().clone();
            for item in known.diff(&wanted) {
                let (ended, begun) = match item {
                    DiffItem::Remove(query, _) => (Some(query), None),
                    DiffItem::Update { old, new } => (Some(old.0), Some(new.0)),
                    DiffItem::Add(query, _) => (None, Some(query)),
                };
                if let Some(query) = ended {
                    if let Some(stop) = running.remove(query) {
                        stop.abort();
                        tracing::debug!(%query, "service watch stopped");
                    }
                    self.health_of_all(|health| health.remove(query));
                }
                if let Some(query) = begun {
                    running.insert(query.clone(), tasks.spawn(self.one(query.clone(), &budget)));
                }
            }
            known = wanted;
            tokio::select! {
                () = cancel.cancelled() => break,
                changed = self.interests.changed() => if changed.is_err() { break },
                Some(ended) = tasks.join_next() => match ended {
                    Ok(()) => tracing::debug!("a service watch ended: nobody takes observations"),
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => {
                        // Which one is not known; all are started again, as losing one silently would be worse.
                        tracing::error!(%error, "a service watch panicked, starting all service watches again");
                        running.values().for_each(AbortHandle::abort);
                        running.clear();
                        known = OrdMap::new();
                        self.health_of_all(BTreeMap::clear);
                        tokio::select! {
                            () = cancel.cancelled() => break,
                            () = tokio::time::sleep(RESTART) => {}
                        }
                    }
                },
                Some(Err(error)) = beside.join_next() => {
                    tracing::error!(%error, "a helper task of the service watches failed, which is a bug: please report it; they go on, perhaps slower, until the agent is restarted");
                }
            }
        }
        // Dropping the sets aborts what still runs.
    }

    fn one(&self, query: ServiceQuery, budget: &Arc<Budget>) -> Running {
        let health = SourceHealth::default();
        self.health_of_all(|all| all.insert(query.clone(), health.clone()));
        (self.start)(One {
            claim: match &query.narrowing().datacenter {
                None => budget.claim(),
                Some(place) => budget.claim_in(place),
            },
            query,
            connections: budget.limit(),
            timing: self.timing.clone(),
            health,
        })
    }

    /// Ten thousand watches wait at all times. The allocator rounds one up to this size, and above it to a fifth more.
    #[cfg(test)]
    pub(in crate::sources) fn assert_small_while_it_waits(&self, query: ServiceQuery) {
        let budget = Budget::new(self.client.clone(), self.connections, self.turn);
        let size = size_of_val(&*self.one(query, &budget));
        assert!(size <= 1280, "{size} bytes");
    }

    fn health_of_all<T>(&self, change: impl FnOnce(&mut BTreeMap<ServiceQuery, SourceHealth>) -> T) -> T {
        change(&mut self.health.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How often a watch without a connection of its own looks, while few are in that place.
const TURN: Duration = Duration::from_secs(10);

/// After a panic, so that a poisonous answer cannot spin.
const RESTART: Duration = Duration::from_secs(1);

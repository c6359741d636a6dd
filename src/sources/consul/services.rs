//! Instances of services: one blocking query per service that a route uses, started and stopped as routes change.
//!
//! In: the set of [`ServiceQuery`]s. Out: one [`ServiceUpdate`] per change. Consul hides what a token may not see and
//! answers `[]`, so an instance that vanishes is doubted, by two reads that answer 403 to lost rights and nothing else:
//! `/v1/config/service-defaults/<name>` (needs service:read, says 404 if there is no such entry) and
//! `/v1/coordinate/node/<node>` (needs node:read, says 404 for a node without coordinates). Found on 1.8.7.
//!
//! Not detectable before Consul 1.11 (which marks filtered answers): rights lost for some nodes only, where the agent has
//! coordinates switched off; there only the loss of all nodes is seen, by an empty list of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use imbl::OrdSet;
use imbl::ordset::DiffItem;
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::ConsulError;
use super::blocking_query::{Closed, Context, Verdict, WatchTiming, Watched, watch};
use super::budget::{Budget, Claim, Pass};
use super::call::{Call, Scope};
use super::client::{Answer, ConsulClient};
use super::health_answer::{self, INSTANCES};
use crate::model::{Instance, Lookup, Observation, Problem, ProblemKind, ServiceQuery, ServiceUpdate};
use crate::sources::{HealthReading, SourceHealth};

/// Says what to watch, from anywhere.
#[derive(Clone, Debug)]
pub struct ServiceWatcher {
    interests: channel::Sender<OrdSet<ServiceQuery>>,
    health: Arc<Mutex<BTreeMap<ServiceQuery, SourceHealth>>>,
}

/// Watches; to be run by whoever owns the agent's tasks.
#[derive(Debug)]
pub struct ServiceWatcherTask {
    client: ConsulClient,
    observations: mpsc::Sender<Observation>,
    interests: channel::Receiver<OrdSet<ServiceQuery>>,
    health: Arc<Mutex<BTreeMap<ServiceQuery, SourceHealth>>>,
    timing: WatchTiming,
    connections: usize,
    turn: Duration,
}

impl ServiceWatcher {
    pub fn new(client: ConsulClient, observations: mpsc::Sender<Observation>) -> (Self, ServiceWatcherTask) {
        let (sender, interests) = channel::channel(OrdSet::new());
        let health = Arc::default();
        let settings = client.settings();
        let task = ServiceWatcherTask {
            observations,
            interests,
            health: Arc::clone(&health),
            timing: WatchTiming::towards(&settings.address),
            connections: settings.max_connections.unwrap_or(CONNECTIONS),
            turn: TURN,
            client,
        };
        (
            Self {
                interests: sender,
                health,
            },
            task,
        )
    }

    /// Replaces what is watched: new queries start, missing ones stop, the others are not disturbed.
    pub fn set_interests(&self, interests: OrdSet<ServiceQuery>) {
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
        self.timing = timing;
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
        let budget = Budget::new(self.client.api(), self.connections, self.turn);
        let mut running: BTreeMap<ServiceQuery, CancellationToken> = BTreeMap::new();
        let mut tasks: JoinSet<ServiceQuery> = JoinSet::new();
        let mut known: OrdSet<ServiceQuery> = OrdSet::new();
        loop {
            let wanted = self.interests.borrow_and_update().clone();
            for item in known.diff(&wanted) {
                match item {
                    DiffItem::Remove(query) => {
                        if let Some(stop) = running.remove(query) {
                            stop.cancel();
                        }
                        self.health_of_all(|health| health.remove(query));
                    }
                    DiffItem::Add(query) => {
                        let stop = cancel.child_token();
                        tasks.spawn(self.one(query.clone(), &budget, stop.clone()));
                        running.insert(query.clone(), stop);
                    }
                }
            }
            known = wanted;
            tokio::select! {
                () = cancel.cancelled() => break,
                changed = self.interests.changed() => if changed.is_err() { break },
                Some(ended) = tasks.join_next() => match ended {
                    // Stopped on purpose, or nobody takes observations: both are ends.
                    Ok(query) => tracing::debug!(%query, "service watch ended"),
                    Err(error) => {
                        // Which one is not known; all are started again, as losing one silently would be worse.
                        tracing::error!(%error, "a service watch panicked, starting all service watches again");
                        running.values().for_each(CancellationToken::cancel);
                        running.clear();
                        known = OrdSet::new();
                        tokio::time::sleep(RESTART).await;
                    }
                },
            }
        }
        // Dropping the set aborts what still runs.
    }

    fn one(
        &self,
        query: ServiceQuery,
        budget: &Arc<Budget>,
        stop: CancellationToken,
    ) -> impl Future<Output = ServiceQuery> + Send + 'static {
        let health = SourceHealth::default();
        self.health_of_all(|all| all.insert(query.clone(), health.clone()));
        let timing = self.timing.clone();
        let client = self.client.clone();
        let mut watched = Watch {
            client: client.clone(),
            scope: scope_of(&query),
            claim: budget.claim(),
            connections: budget.limit(),
            query,
            observations: self.observations.clone(),
            believed: None,
            filtered: false,
            index: 0,
            wiped: false,
            told: None,
        };
        async move {
            watch(&client, &mut watched, timing, &health, &stop).await;
            watched.query
        }
    }

    fn health_of_all<T>(&self, change: impl FnOnce(&mut BTreeMap<ServiceQuery, SourceHealth>) -> T) -> T {
        change(&mut self.health.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The watch of one service.
struct Watch {
    client: ConsulClient,
    scope: Scope,
    claim: Claim,
    connections: usize,
    query: ServiceQuery,
    observations: mpsc::Sender<Observation>,
    /// None: nothing believed yet, so nothing said. An empty list is something else.
    believed: Option<Arc<[Instance]>>,
    /// The last believed answer was already marked as filtered: this token never saw all.
    filtered: bool,
    /// Of the last answer that was believed.
    index: u64,
    /// Consul came back without its state: so it stays until an instance is seen.
    wiped: bool,
    /// The problem that the receiver believes in.
    told: Option<Problem>,
}

impl Watched for Watch {
    fn call(&self) -> Call {
        let endpoint = match self.query.lookup {
            Lookup::Service | Lookup::MeshGateway | Lookup::MeshGatewayWan => "health/service",
            Lookup::Connect => "health/connect",
        };
        let call = Call::get(endpoint)
            .segment(&self.query.name)
            .scope(self.scope.clone())
            .max_body(ANSWER_BYTES)
            .needs(self.rule());
        match &self.query.filter {
            Some(filter) => call.query("filter", filter),
            None => call,
        }
    }

    async fn admit(&mut self, first: bool) -> Pass {
        self.claim.admit(first).await
    }

    async fn take(&mut self, mut answer: Answer, context: Context) -> Result<Verdict, ConsulError> {
        let mut instances = health_answer::parse(&answer.body, self.query.lookup)
            .map_err(|error| answer.unreadable(error))?;
        if context.waited && self.lacks_something(&instances.list) {
            // A poll that ran out shows the rights of its beginning, the probes show those of now: rights that came
            // back meanwhile would pass for an end of all instances. So look again first.
            answer = self.client.probe(self.call()).await?;
            instances = health_answer::parse(&answer.body, self.query.lookup)
                .map_err(|error| answer.unreadable(error))?;
        }
        if let Some(problem) = self.doubt(&instances.list, answer.filtered_by_acls).await? {
            return Ok(Verdict::Doubted(problem));
        }
        if let Some(problem) = self.lost_state(&instances.list, answer.index) {
            return Ok(Verdict::Doubted(problem));
        }
        self.filtered = answer.filtered_by_acls;
        self.index = answer.index.unwrap_or(0);
        let problem = self.remark(instances.cut, instances.unusable);
        Ok(match self.publish(instances.list, problem).await {
            Ok(news) => Verdict::Taken { news },
            Err(Closed) => Verdict::Closed,
        })
    }

    async fn tell(&mut self, problem: Problem) -> Result<(), Closed> {
        if self.told.as_ref() == Some(&problem) {
            return Ok(());
        }
        self.told = Some(problem.clone());
        self.send(Err(problem)).await
    }
}

impl Watch {
    /// Is what vanished really gone? Asked for nodes of which no instance is left to see, and for the service when none
    /// is left at all, the first answer included: `[]` to a token without rights is not "no instances".
    async fn doubt(&self, now: &[Instance], filtered: bool) -> Result<Option<Problem>, ConsulError> {
        if !self.lacks_something(now) {
            return Ok(None);
        }
        let lost_nodes = self.lost_nodes(now);
        if filtered && (now.is_empty() || !self.filtered) {
            return Ok(Some(self.hidden()));
        }
        if now.is_empty()
            && let Some(problem) = self.probe_service().await?
        {
            return Ok(Some(problem));
        }
        if self.believed.is_none() {
            return self.probe_any_node().await;
        }
        for node in spread(&lost_nodes) {
            if let Some(problem) = self.probe_node(node).await? {
                return Ok(Some(problem));
            }
        }
        Ok(None)
    }

    fn lacks_something(&self, now: &[Instance]) -> bool {
        (self.believed.is_none() && now.is_empty()) || !self.lost_nodes(now).is_empty()
    }

    /// Nodes that had an instance and show none now, sorted.
    fn lost_nodes(&self, now: &[Instance]) -> Vec<&Arc<str>> {
        let before = self.believed.as_deref().unwrap_or_default();
        let visible: BTreeSet<&Arc<str>> = now.iter().map(|instance| &instance.node).collect();
        let mut lost: Vec<&Arc<str>> = before.iter().map(|instance| &instance.node).collect();
        lost.retain(|node| !visible.contains(node));
        lost.dedup();
        lost
    }

    async fn probe_service(&self) -> Result<Option<Problem>, ConsulError> {
        let call = Call::get("config/service-defaults").segment(&self.query.name);
        let rule = format!("service {:?} {{ policy = \"read\" }}", self.query.name);
        self.probe(call.scope(self.scope.clone()).needs(rule)).await
    }

    async fn probe_node(&self, node: &str) -> Result<Option<Problem>, ConsulError> {
        let call = Call::get("coordinate/node")
            .segment(node)
            .scope(self.scope.clone())
            .needs(NODE_RULE);
        match self.probe(call).await {
            Err(error) if error.status() == Some(401) => self.probe_all_nodes().await,
            probed => probed,
        }
    }

    /// No node is known to ask about: a name that no rule grants but the broad one, then the list of all nodes.
    async fn probe_any_node(&self) -> Result<Option<Problem>, ConsulError> {
        match self.probe_node(UNREGISTERED_NODE).await? {
            Some(_) => self.probe_all_nodes().await,
            None => Ok(None),
        }
    }

    /// The list of all nodes is never empty to a token that may see any of them. Larger than the other probes, so only
    /// where they cannot say: no node is known, or coordinates are off.
    async fn probe_all_nodes(&self) -> Result<Option<Problem>, ConsulError> {
        let call = Call::get("catalog/nodes")
            .scope(self.scope.clone())
            .max_body(ANSWER_BYTES)
            .needs(NODE_RULE);
        let answer = self.client.probe(call).await?;
        // An array of anything longer than `[]` has an element.
        let sees_none = answer.body.trim_ascii().len() <= 2;
        Ok(sees_none.then(|| {
            let message = format!(
                "Consul at {} shows the token no node, and so no instance of {}; what was known is kept",
                self.client.address(),
                self.query
            );
            Problem::new(ProblemKind::Forbidden, message).with_fix(format!("grant the token: {NODE_RULE}"))
        }))
    }

    /// Only 403 means lost rights; 404 is "no such entry". Anything else (an agent that cannot say) leaves the question
    /// open, and so the answer unbelieved.
    async fn probe(&self, call: Call) -> Result<Option<Problem>, ConsulError> {
        match self.client.probe(call.not_found_is_answer()).await {
            Ok(_) => Ok(None),
            Err(error) if error.status() == Some(403) => Ok(Some(self.lost_rights(&error))),
            Err(error) => Err(error),
        }
    }

    fn lost_rights(&self, error: &ConsulError) -> Problem {
        let problem = error.problem();
        let message = match self.believed.as_deref().map(<[Instance]>::len) {
            Some(count) if count > 0 => {
                format!(
                    "instances of {} vanished because the token may no longer read them; kept. {problem}",
                    self.query
                )
            }
            _ => format!("the token may not see instances of {}. {problem}", self.query),
        };
        Problem {
            message: message.into(),
            ..problem
        }
    }

    /// The end of the last instance moves the index on; only a Consul that lost its state has less past and no instance.
    fn lost_state(&mut self, now: &[Instance], index: Option<u64>) -> Option<Problem> {
        let is_end = now.is_empty() && self.believed.as_ref().is_some_and(|known| !known.is_empty());
        self.wiped = is_end && (self.wiped || index.is_some_and(|index| index < self.index));
        if !self.wiped {
            return None;
        }
        let message = format!(
            "Consul at {} knows no instance of {} any more and its index fell below {}: it seems to have lost its state; \
             the last known instances are kept",
            self.client.address(),
            self.query,
            self.index
        );
        let fix = "restore Consul, or register the service again; one instance is enough";
        Some(Problem::new(ProblemKind::Invalid, message).with_fix(fix))
    }

    fn hidden(&self) -> Problem {
        let message = format!(
            "Consul at {} hides instances of {} from the token; the last known ones are kept",
            self.client.address(),
            self.query
        );
        Problem::new(ProblemKind::Forbidden, message).with_fix(format!("grant the token: {}", self.rule()))
    }

    fn rule(&self) -> String {
        format!(
            "service {:?} {{ policy = \"read\" }} and {NODE_RULE}",
            self.query.name
        )
    }

    /// What is worth saying beside an answer that is taken.
    fn remark(&self, cut: usize, unusable: usize) -> Option<Problem> {
        let (query, address) = (&self.query, self.client.address());
        if cut > 0 {
            let message = format!(
                "Consul at {address} has {} instances of {query}; the first {INSTANCES} are taken",
                INSTANCES + cut
            );
            return Some(Problem::new(ProblemKind::Limit, message));
        }
        if unusable > 0 {
            let message = format!(
                "{unusable} registered instances of {query} at {address} have no usable name, address or port; left out"
            );
            return Some(
                Problem::new(ProblemKind::Invalid, message)
                    .with_fix("register them with an address and a port up to 65535"),
            );
        }
        let turn = self.claim.turn()?;
        let message = format!(
            "more services are watched than the {} connections that are used at Consul at {address}; {query} is read every {} s",
            self.connections,
            turn.as_secs_f32().round()
        );
        let fix =
            "use Consul's HTTPS port, where watches share connections (CONSUL_HTTP_ADDR=https://…:8501)";
        Some(Problem::new(ProblemKind::Limit, message).with_fix(fix))
    }

    /// Sends what the receiver does not know: the instances if they differ or end a problem, then the problem, if any.
    /// Whether the instances differ.
    async fn publish(&mut self, instances: Vec<Instance>, problem: Option<Problem>) -> Result<bool, Closed> {
        let same = self.believed.as_deref() == Some(&instances[..]);
        if same && self.told == problem {
            return Ok(false);
        }
        let shared: Arc<[Instance]> = match &self.believed {
            Some(known) if same => known.clone(),
            _ => instances.into(),
        };
        self.believed = Some(shared.clone());
        self.told = problem.clone();
        self.send(Ok(shared)).await?;
        if let Some(problem) = problem {
            self.send(Err(problem)).await?;
        }
        Ok(!same)
    }

    async fn send(&self, result: Result<Arc<[Instance]>, Problem>) -> Result<(), Closed> {
        let update = ServiceUpdate {
            query: self.query.clone(),
            result,
        };
        self.observations
            .send(Observation::Service(update))
            .await
            .map_err(|_| Closed)
    }
}

fn scope_of(query: &ServiceQuery) -> Scope {
    Scope::default()
        .with("dc", query.datacenter.as_ref())
        .with("ns", query.namespace.as_ref())
        .with("partition", query.partition.as_ref())
}

/// A few nodes from all over the list: rules on nodes are mostly prefixes, and the list is sorted.
fn spread<'a>(nodes: &'a [&'a Arc<str>]) -> impl Iterator<Item = &'a str> {
    nodes
        .iter()
        .step_by(nodes.len().div_ceil(NODES_ASKED).max(1))
        .map(|node| &***node)
}

/// Consul grants one client 200 (`limits.http_max_conns_per_client`); the rest is for calls and other programs.
const CONNECTIONS: usize = 150;

/// How often a watch without a connection of its own looks, while few are in that place.
const TURN: Duration = Duration::from_secs(10);

/// 10,000 instances at some 2 KiB each, with room for many checks.
const ANSWER_BYTES: usize = 64 * 1024 * 1024;

const NODES_ASKED: usize = 4;

/// After a panic, so that a poisonous answer cannot spin.
const RESTART: Duration = Duration::from_secs(1);

const NODE_RULE: &str = "node_prefix \"\" { policy = \"read\" }";

/// Never registered; only asked about.
const UNREGISTERED_NODE: &str = "portreeve-asks-for-node-read";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_nodes_are_asked_about() {
        let nodes: Vec<Arc<str>> = (0..100).map(|n| format!("n{n:03}").into()).collect();
        let refs: Vec<&Arc<str>> = nodes.iter().collect();
        assert_eq!(
            spread(&refs).collect::<Vec<_>>(),
            ["n000", "n025", "n050", "n075"]
        );
        assert_eq!(spread(&refs[..2]).count(), 2);
    }
}

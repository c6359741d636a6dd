//! Instances of services: one blocking query per service that a route uses, started and stopped as routes change.
//!
//! In: the set of [`ServiceQuery`]s. Out: one [`ServiceUpdate`] per change. Consul hides what a token may not see and
//! answers `[]`, so an instance that vanishes is doubted, by two reads that answer 403 to lost rights and nothing else:
//! `/v1/config/service-defaults/<name>` (needs service:read, says 404 if there is no such entry) and
//! `/v1/coordinate/node/<node>` (needs node:read, says 404 for a node without coordinates). Found on 1.8.7.
//!
//! Not detectable before Consul 1.11 (which marks filtered answers): rights lost for some nodes only, where the agent has
//! coordinates switched off; there only the loss of all nodes is seen, by an empty list of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::ConsulError;
use super::blocking_query::{Closed, Context, READ_TIMEOUT, Verdict, WatchTiming, Watched};
use super::budget::{Claim, Pass};
use super::call::{Call, Scope};
use super::client::{Answer, ConsulClient};
use super::health_answer::{self, INSTANCES, Instances};
use super::{ServiceWatcher, ServiceWatcherTask};
use crate::model::{Instance, Lookup, Observation, Problem, ProblemKind, ServiceQuery, ServiceUpdate};
use crate::sources::agent_api::ApiClient;
use crate::sources::agent_api::service_watcher::ServiceSource;

/// The catalog of one Consul, as a [`ServiceWatcher`] watches it.
struct ConsulServices {
    client: ConsulClient,
    observations: mpsc::Sender<Observation>,
    /// Services may expose themselves, which they ask for by tags and metadata. Nobody else reads these.
    keeps_labels: bool,
}

impl ServiceWatcher {
    pub fn new(client: ConsulClient, observations: mpsc::Sender<Observation>) -> (Self, ServiceWatcherTask) {
        Self::of(ConsulServices {
            client,
            observations,
            keeps_labels: false,
        })
    }

    /// With what services ask to be exposed by.
    pub fn with_labels(
        client: ConsulClient,
        observations: mpsc::Sender<Observation>,
    ) -> (Self, ServiceWatcherTask) {
        Self::of(ConsulServices {
            client,
            observations,
            keeps_labels: true,
        })
    }
}

impl ServiceSource for ConsulServices {
    type Watch = Watch;

    fn client(&self) -> ApiClient {
        self.client.api()
    }

    fn connections(&self) -> usize {
        self.client.settings().max_connections.unwrap_or(CONNECTIONS)
    }

    fn timing(&self) -> WatchTiming {
        WatchTiming {
            poll_interval: PREPARED_QUERY,
            ..WatchTiming::towards(&self.client.settings().address)
        }
    }

    fn watch(&self, query: ServiceQuery, claim: Claim, connections: usize) -> Watch {
        Watch {
            client: self.client.clone(),
            scope: scope_of(&query),
            // A service exposes itself under its name alone.
            keeps_labels: self.keeps_labels && query == ServiceQuery::named(&query.name),
            claim,
            connections,
            query,
            observations: self.observations.clone(),
            believed: None,
            filtered: false,
            index: 0,
            wiped: false,
            told: None,
            asked_for: None,
        }
    }
}

/// The watch of one service.
struct Watch {
    client: ConsulClient,
    scope: Scope,
    claim: Claim,
    connections: usize,
    query: ServiceQuery,
    keeps_labels: bool,
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
    /// By a prepared query: the service.
    asked_for: Option<Arc<str>>,
}

impl Watched for Watch {
    fn call(&self) -> Call {
        let endpoint = match self.query.lookup {
            Lookup::Service | Lookup::MeshGateway | Lookup::MeshGatewayWan => "health/service",
            Lookup::Connect => "health/connect",
            Lookup::PreparedQuery => {
                return Call::get("query")
                    .segment(&self.query.name)
                    .segment("execute")
                    .scope(self.scope.clone())
                    .max_body(ANSWER_BYTES)
                    .not_found_is_answer();
            }
            // Never given to this watcher.
            Lookup::Nomad | Lookup::Sidecar => "health/service",
        };
        let call = Call::get(endpoint)
            .segment(&self.query.name)
            .scope(self.scope.clone())
            .max_body(ANSWER_BYTES)
            .needs(self.rule());
        match &self.query.narrowing().filter {
            Some(filter) => call.query("filter", filter),
            None => call,
        }
    }

    fn is_waited_for(&self) -> bool {
        self.query.lookup != Lookup::PreparedQuery
    }

    async fn admit(&mut self, first: bool) -> Pass {
        self.claim.admit(first).await
    }

    async fn take(&mut self, mut answer: Answer, _: Context) -> Result<Verdict, ConsulError> {
        if !answer.found {
            return Ok(Verdict::Doubted(self.no_such_query()));
        }
        if self.query.lookup == Lookup::PreparedQuery {
            self.asked_for = health_answer::service_of_query(&answer.body);
        }
        let mut instances = self.parse(&answer)?;
        if self.lacks_something(&instances.list) {
            if let Some(problem) = self.doubt(&instances.list, answer.filtered_by_acls).await? {
                return Ok(Verdict::Doubted(problem));
            }
            // The answer shows the rights of its own time, which for a poll may be long ago, and the probes those of now:
            // rights that came back in between would pass for an end of all instances. So what lacks must lack twice.
            let first = instances;
            answer = self.client.probe(self.call()).await?;
            instances = self.parse(&answer)?;
            if (instances != first || answer.filtered_by_acls)
                && let Some(problem) = self.doubt(&instances.list, answer.filtered_by_acls).await?
            {
                return Ok(Verdict::Doubted(problem));
            }
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

    fn parse(&self, answer: &Answer) -> Result<Instances, ConsulError> {
        let mut found = health_answer::parse(&answer.body, self.query.lookup)
            .map_err(|error| answer.unreadable(error))?;
        if !self.keeps_labels {
            found.list.iter_mut().for_each(Instance::forget_labels);
        }
        Ok(found)
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
        let service = self.service();
        let call = Call::get("config/service-defaults").segment(service);
        let rule = format!("service {service:?} {{ policy = \"read\" }}");
        self.probe(call.scope(self.scope.clone()).needs(rule)).await
    }

    async fn probe_node(&self, node: &str) -> Result<Option<Problem>, ConsulError> {
        let call = Call::get("coordinate/node")
            .segment(node)
            .scope(self.scope.clone())
            .needs(NODE_RULE);
        match self.probe(call).await {
            // Coordinates are off, or kept from everybody.
            Err(error) if error.status() == Some(401) || error.kind() == ProblemKind::Blocked => {
                self.probe_all_nodes().await
            }
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
            .timeout(READ_TIMEOUT)
            .needs(NODE_RULE);
        let answer = self.client.probe(call).await?;
        // An array of anything longer than `[]` has an element.
        let sees_none = answer.body.trim_ascii().len() <= 2;
        Ok(sees_none.then(|| {
            let message = format!(
                "Consul at {} shows {} no node, and so no instance of {}; what was known is kept",
                self.client.address(),
                self.client.asker(),
                self.query
            );
            self.client.unseen(message, NODE_RULE, &self.scope)
        }))
    }

    /// Only 403 of the ACLs means lost rights; 404 is "no such entry". Anything else (an agent that cannot say) leaves the question
    /// open, and so the answer unbelieved.
    async fn probe(&self, call: Call) -> Result<Option<Problem>, ConsulError> {
        match self.client.probe(call.not_found_is_answer()).await {
            Ok(_) => Ok(None),
            Err(error) if error.is_lack_of_rights() => Ok(Some(self.lost_rights(&error))),
            Err(error) => Err(error),
        }
    }

    fn lost_rights(&self, error: &ConsulError) -> Problem {
        let problem = error.problem();
        let asker = self.client.asker();
        let message = match self.believed.as_deref().map(<[Instance]>::len) {
            Some(count) if count > 0 => {
                format!(
                    "instances of {} vanished because {asker} may no longer read them; kept. {problem}",
                    self.query
                )
            }
            _ => format!("{asker} may not see instances of {}. {problem}", self.query),
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
            "Consul at {} hides instances of {} from {}; the last known ones are kept",
            self.client.address(),
            self.query,
            self.client.asker().trim_end_matches(',')
        );
        self.client.unseen(message, &self.rule(), &self.scope)
    }

    fn rule(&self) -> String {
        format!(
            "service {:?} {{ policy = \"read\" }} and {NODE_RULE}",
            self.service()
        )
    }

    fn service(&self) -> &str {
        self.asked_for.as_deref().unwrap_or(&self.query.name)
    }

    fn no_such_query(&self) -> Problem {
        let kept = match &self.believed {
            Some(_) => "; what it found last is kept",
            None => "",
        };
        let message = format!(
            "Consul at {} has no prepared query {:?}{kept}",
            self.client.address(),
            self.query.name
        );
        Problem::new(ProblemKind::NotFound, message)
            .with_fix("create it (/v1/query), or correct `prepared_query` of the upstream")
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
    let narrowing = query.narrowing();
    Scope::default()
        .with("dc", narrowing.datacenter.as_ref())
        .with("ns", narrowing.namespace.as_ref())
        .with("partition", narrowing.partition.as_ref())
}

/// A few nodes from all over the list: rules on nodes are mostly prefixes, and the list is sorted.
fn spread<'a>(nodes: &'a [&'a Arc<str>]) -> impl Iterator<Item = &'a str> {
    nodes
        .iter()
        .step_by(nodes.len().div_ceil(NODES_ASKED).max(1))
        .map(|node| &***node)
}

/// Between two executions of a prepared query, give or take a half.
const PREPARED_QUERY: Duration = Duration::from_secs(5);

/// Consul grants one client 200 (`limits.http_max_conns_per_client`); the rest is for calls and other programs.
const CONNECTIONS: usize = 150;

/// 10,000 instances at some 2 KiB each, with room for many checks.
const ANSWER_BYTES: usize = 64 * 1024 * 1024;

const NODES_ASKED: usize = 4;

const NODE_RULE: &str = "node_prefix \"\" { policy = \"read\" }";

/// Never registered; only asked about.
const UNREGISTERED_NODE: &str = "portreeve-asks-for-node-read";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::consul::ConsulSettings;

    #[test]
    fn a_watch_is_small_while_it_waits() {
        let settings = ConsulSettings::from_env(|_| None).unwrap();
        let client = ConsulClient::new(&settings).unwrap();
        let (_watcher, task) = ServiceWatcher::new(client, mpsc::channel(1).0);
        task.assert_small_while_it_waits(ServiceQuery::named("web"));
    }

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

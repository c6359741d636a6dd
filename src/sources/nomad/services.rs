//! Instances of Nomad's native services: one blocking query per service that a route uses.
//!
//! Lost rights are a 403 here, never an empty list, so an instance that vanishes is believed. In the namespace `*`
//! they are not: there the list of services is watched, which leaves out what the token may not see. So a namespace that
//! vanishes from it is asked for by its name: what answers 403 then is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::answer::{self, INSTANCES, Instances, NAMESPACES};
use super::client::NomadClient;
use super::event_stream;
use super::hints::{Hints, Place, Waiter};
use super::settings::{DEFAULT_NAMESPACE, EVERY_NAMESPACE};
use crate::model::{Instance, Observation, Problem, ProblemKind, ServiceQuery, ServiceUpdate};
use crate::sources::agent_api::blocking_query::{Closed, Context, Verdict, Watched};
use crate::sources::agent_api::budget::{Claim, Pass};
use crate::sources::agent_api::call::{Call, Scope};
use crate::sources::agent_api::client::Answer;
use crate::sources::agent_api::service_watcher::{Beside, ServiceSource};
use crate::sources::agent_api::{ApiClient, ApiError, ServiceWatcher, ServiceWatcherTask, WatchTiming};

/// The services of one Nomad, as a [`ServiceWatcher`] watches them.
struct NomadServices {
    client: NomadClient,
    observations: mpsc::Sender<Observation>,
    hints: Hints,
}

impl ServiceWatcher {
    pub fn of_nomad(
        client: NomadClient,
        observations: mpsc::Sender<Observation>,
    ) -> (Self, ServiceWatcherTask) {
        Self::of(NomadServices {
            client,
            observations,
            hints: Hints::new(),
        })
    }
}

impl ServiceSource for NomadServices {
    type Watch = Watch;

    fn client(&self) -> ApiClient {
        self.client.api()
    }

    fn connections(&self) -> usize {
        CONNECTIONS
    }

    fn timing(&self) -> WatchTiming {
        WatchTiming::towards(self.client.target())
    }

    fn watch(&self, query: ServiceQuery, claim: Claim, connections: usize) -> Watch {
        Watch {
            client: self.client.clone(),
            claim,
            connections,
            query,
            observations: self.observations.clone(),
            known: None,
            by_namespace: BTreeMap::new(),
            namespaces_cut: 0,
            told: None,
            hints: self.hints.clone(),
            waiter: None,
        }
    }

    fn beside(&self, timing: WatchTiming, cancel: CancellationToken) -> Option<Beside> {
        let (client, hints) = (self.client.clone(), self.hints.clone());
        Some(Box::pin(event_stream::follow(client, hints, timing, cancel)))
    }
}

/// The watch of one service.
struct Watch {
    client: NomadClient,
    claim: Claim,
    connections: usize,
    query: ServiceQuery,
    observations: mpsc::Sender<Observation>,
    known: Option<Arc<[Instance]>>,
    /// Of `*`: what each namespace had that had any.
    by_namespace: BTreeMap<Arc<str>, Instances>,
    /// Namespaces beyond those that are taken.
    namespaces_cut: usize,
    /// The problem that the receiver believes in.
    told: Option<Problem>,
    hints: Hints,
    /// While it has no place.
    waiter: Option<Waiter>,
}

impl Watched for Watch {
    fn call(&self) -> Call {
        if self.everywhere() {
            return Call::get("services")
                .scope(self.scope(Some(EVERY_NAMESPACE)))
                .max_body(ANSWER_BYTES)
                .needs(read_rule(EVERY_NAMESPACE));
        }
        self.of_namespace(self.query.narrowing().namespace.as_deref())
    }

    fn shows_rights(&self) -> bool {
        self.everywhere()
    }

    fn pace(&self, timing: &WatchTiming) -> (u32, Duration) {
        let (burst, period) = timing.pace;
        match self.everywhere() {
            true => (burst, period * EVERYWHERE_IS_SLOWER),
            false => (burst, period),
        }
    }

    async fn admit(&mut self, first: bool) -> Pass {
        let pass = self.claim.admit(first).await;
        match &mut self.waiter {
            _ if self.claim.turn().is_none() => self.waiter = None,
            Some(waiter) => waiter.reads(),
            None => self.waiter = Some(self.hints.wait(&self.query.name, self.place())),
        }
        pass
    }

    async fn hinted(&mut self) {
        match &mut self.waiter {
            Some(waiter) => waiter.named().await,
            None => std::future::pending().await,
        }
    }

    async fn take(&mut self, answer: Answer, _context: Context) -> Result<Verdict, ApiError> {
        let (found, refused) = if self.everywhere() {
            self.of_all_namespaces(&answer).await?
        } else {
            let found = answer::parse(&answer.body).map_err(|error| answer.unreadable(error))?;
            (found, None)
        };
        // A right that is given back moves nothing in the list that is waited for.
        let is_partial = refused.is_some();
        let problem = refused.or_else(|| self.remark(&found));
        Ok(match self.publish(found.list, problem).await {
            Ok(news) if is_partial => Verdict::Partial { news },
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
    fn everywhere(&self) -> bool {
        self.query.narrowing().namespace.as_deref() == Some(EVERY_NAMESPACE)
    }

    fn place(&self) -> Place {
        let named = self.query.narrowing().namespace.as_deref();
        let own = || self.client.namespace().unwrap_or(DEFAULT_NAMESPACE);
        Place {
            region: self.query.narrowing().datacenter.clone(),
            namespace: named.unwrap_or_else(own).into(),
        }
    }

    fn scope(&self, namespace: Option<&str>) -> Scope {
        Scope::default()
            .with("region", self.query.narrowing().datacenter.as_ref())
            .with("namespace", namespace)
    }

    fn of_namespace(&self, namespace: Option<&str>) -> Call {
        let asked = namespace.or(self.client.namespace());
        let call = Call::get("service")
            .segment(&self.query.name)
            .scope(self.scope(namespace))
            .max_body(ANSWER_BYTES)
            .needs(read_rule(asked.unwrap_or(DEFAULT_NAMESPACE)));
        match &self.query.narrowing().filter {
            Some(filter) => call.query("filter", filter),
            None => call,
        }
    }

    /// The list is watched, the instances are read: `/v1/service` takes one namespace only. With the first refusal, of
    /// which what was known before is kept.
    async fn of_all_namespaces(&mut self, listed: &Answer) -> Result<(Instances, Option<Problem>), ApiError> {
        let (listed, cut) = answer::namespaces_of(&listed.body, &self.query.name)
            .map_err(|error| listed.unreadable(error))?;
        self.namespaces_cut = cut;
        let known = self.by_namespace.keys().cloned();
        let all: BTreeSet<Arc<str>> = listed.into_iter().chain(known).collect();
        let mut refused = None;
        for namespace in all {
            let found = match self.client.probe(self.of_namespace(Some(&namespace))).await {
                Ok(answer) => answer::parse(&answer.body).map_err(|error| answer.unreadable(error))?,
                Err(error) if matches!(error.kind(), ProblemKind::Forbidden | ProblemKind::NoToken) => {
                    refused.get_or_insert_with(|| error.problem());
                    continue;
                }
                Err(error) => return Err(error),
            };
            if found == Instances::default() {
                self.by_namespace.remove(&namespace);
            } else {
                self.by_namespace.insert(namespace, found);
            }
        }
        let mut together = Instances::default();
        for found in self.by_namespace.values() {
            together.list.extend(found.list.iter().cloned());
            together.unusable += found.unusable;
            together.cut += found.cut;
        }
        together.list.sort();
        Ok((together, refused))
    }

    /// What is worth saying beside an answer that is taken.
    fn remark(&self, found: &Instances) -> Option<Problem> {
        let (query, address) = (&self.query, self.client.address());
        if found.cut > 0 {
            let message = format!(
                "Nomad at {address} has {} instances of {query}; the first {INSTANCES} are taken",
                INSTANCES + found.cut
            );
            return Some(Problem::new(ProblemKind::Limit, message));
        }
        if self.namespaces_cut > 0 {
            let message = format!(
                "{query} is registered in {} namespaces of Nomad at {address}; those in the first {NAMESPACES} are taken",
                NAMESPACES + self.namespaces_cut
            );
            let fix = "name the namespaces that are meant, each in an upstream of its own";
            return Some(Problem::new(ProblemKind::Limit, message).with_fix(fix));
        }
        if found.unusable > 0 {
            let message = format!(
                "{} registered instances of {query} at {address} have no usable address or port; left out",
                found.unusable
            );
            return Some(Problem::new(ProblemKind::Invalid, message));
        }
        let turn = self.claim.turn()?;
        let message = format!(
            "more services are watched than the {} connections that are used at Nomad at {address}; {query} is read every {} s",
            self.connections,
            turn.as_secs_f32().round()
        );
        // Nomad's own port speaks HTTP/1.1 alone, over TLS too.
        let fix = "while Nomad's event stream names what changes, for which the token needs read-job, they are prompt all the same";
        Some(Problem::new(ProblemKind::Limit, message).with_fix(fix))
    }

    /// Sends what the receiver does not know: the instances if they differ or end a problem, then the problem, if any.
    /// Whether the instances differ.
    async fn publish(&mut self, instances: Vec<Instance>, problem: Option<Problem>) -> Result<bool, Closed> {
        let same = self.known.as_deref() == Some(&instances[..]);
        if same && self.told == problem {
            return Ok(false);
        }
        let shared: Arc<[Instance]> = match &self.known {
            Some(known) if same => known.clone(),
            _ => instances.into(),
        };
        self.known = Some(shared.clone());
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

/// Nomad grants one client 100 (`limits.http_max_conns_per_client`); the rest is for calls and other programs.
const CONNECTIONS: usize = 70;

/// 10,000 instances at some 500 bytes each, with room for many tags.
const ANSWER_BYTES: usize = 32 * 1024 * 1024;

/// The list of all services moves with any of them, and each time every namespace of this one is read.
const EVERYWHERE_IS_SLOWER: u32 = 4;

/// What a token needs for the services of a namespace.
pub(super) fn read_rule(namespace: &str) -> String {
    format!("namespace \"{namespace}\" {{ capabilities = [\"read-job\"] }}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Lookup, Narrowing};
    use crate::sources::agent_api::budget::Budget;
    use crate::sources::nomad::NomadSettings;

    #[test]
    fn a_watch_is_small_while_it_waits() {
        let settings = NomadSettings::from_env(|_| None).unwrap();
        let client = NomadClient::new(&settings).unwrap();
        let (_watcher, task) = ServiceWatcher::of_nomad(client, mpsc::channel(1).0);
        task.assert_small_while_it_waits(ServiceQuery::named("web"));
    }

    #[tokio::test]
    async fn a_watch_of_every_namespace_wakes_less_often() {
        let settings = NomadSettings::from_env(|_| None).unwrap();
        let client = NomadClient::new(&settings).unwrap();
        let budget = Budget::new(client.api(), 1, Duration::from_secs(1));
        let source = NomadServices {
            client,
            observations: mpsc::channel(1).0,
            hints: Hints::new(),
        };
        let timing = WatchTiming::default();
        let pace = |namespace: &str| {
            let narrowing = Narrowing {
                namespace: Some(namespace.into()),
                ..Narrowing::default()
            };
            let query = ServiceQuery::new(Lookup::Service, "web".into(), narrowing);
            source.watch(query, budget.claim(), 1).pace(&timing)
        };
        assert_eq!(pace("shop"), timing.pace);
        assert_eq!(pace(EVERY_NAMESPACE), (timing.pace.0, Duration::from_secs(1)));
    }
}

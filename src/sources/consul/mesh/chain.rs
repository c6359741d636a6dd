use std::sync::Arc;

use tokio::sync::mpsc;

use crate::model::mesh::{Chain, ChainQuery};
use crate::model::{ChainUpdate, Observation, Problem, ProblemKind};
use crate::sources::agent_api::blocking_query::{Closed, Context, Verdict, Watched};
use crate::sources::agent_api::budget::{Claim, Pass};
use crate::sources::agent_api::call::{Call, Scope};
use crate::sources::consul::ConsulError;
use crate::sources::consul::client::Answer;

use super::chain_answer;

/// The watch of one discovery chain. Consul wakes it for writes that have nothing to do with it: content decides.
pub(super) struct ChainWatch {
    pub(super) query: ChainQuery,
    pub(super) claim: Claim,
    pub(super) observations: mpsc::Sender<Observation>,
    known: Option<Arc<Chain>>,
    /// Of the last answer that was believed.
    index: u64,
    /// Consul came back without its state: so it stays until the chain has entries as before.
    wiped: bool,
    told: Option<Problem>,
}

impl ChainWatch {
    pub(super) fn new(query: ChainQuery, claim: Claim, observations: mpsc::Sender<Observation>) -> Self {
        Self {
            query,
            claim,
            observations,
            known: None,
            index: 0,
            wiped: false,
            told: None,
        }
    }

    /// An entry that is deleted moves the index on; only a Consul that lost its state has less past and no entry. Its services
    /// register themselves again, and then it says of each that it speaks TCP.
    fn lost_state(&mut self, now: &Chain, answer: &Answer) -> Option<Problem> {
        let is_end = self
            .known
            .as_ref()
            .is_some_and(|known| now.lacks_entries_of(known));
        let fell = answer.index.is_some_and(|index| index < self.index);
        self.wiped = is_end && (self.wiped || fell);
        self.wiped.then(|| {
            let service = &self.query.service;
            let message = format!(
                "Consul at {} knows no config entry of {service:?} any more and its index fell below {}: it seems to have \
                 lost its state; the last known discovery chain is kept",
                answer.server.address, self.index
            );
            let fix = "restore Consul, or write the config entries again; if they are to be gone, start the agent again";
            Problem::new(ProblemKind::Invalid, message).with_fix(fix)
        })
    }

    async fn send(&self, result: Result<Arc<Chain>, Problem>) -> Result<(), Closed> {
        let query = self.query.clone();
        let update = Observation::Chain(ChainUpdate { query, result });
        self.observations.send(update).await.map_err(|_| Closed)
    }
}

impl Watched for ChainWatch {
    fn call(&self) -> Call {
        let call = Call::get("discovery-chain")
            .segment(&self.query.service)
            .scope(
                Scope::default()
                    .with("ns", self.query.namespace.as_ref())
                    .with("partition", self.query.partition.as_ref()),
            )
            .max_body(CHAIN_BYTES)
            .needs(format!(
                "service {:?} {{ policy = \"read\" }}",
                self.query.service
            ));
        // Our own servers compile it, as if for the other datacenter: the entries are the same everywhere.
        match &self.query.datacenter {
            Some(datacenter) => call.query("compile-dc", datacenter),
            None => call,
        }
    }

    async fn admit(&mut self, first: bool) -> Pass {
        self.claim.admit(first).await
    }

    async fn take(&mut self, answer: Answer, _: Context) -> Result<Verdict, ConsulError> {
        let chain = chain_answer::parse(&answer.body).map_err(|reason| answer.unreadable(reason))?;
        if let Some(problem) = self.lost_state(&chain, &answer) {
            return Ok(Verdict::Doubted(problem));
        }
        self.index = answer.index.unwrap_or(0);
        if self.told.is_none() && self.known.as_deref() == Some(&chain) {
            return Ok(Verdict::Taken { news: false });
        }
        let chain = Arc::new(chain);
        self.known = Some(chain.clone());
        self.told = None;
        Ok(match self.send(Ok(chain)).await {
            Ok(()) => Verdict::Taken { news: true },
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

/// Thousands of routes at some hundred bytes each.
const CHAIN_BYTES: usize = 4 * 1024 * 1024;

use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::mpsc;

use super::intention_answer;
use super::intention_source::Source;
use crate::model::mesh::{Intention, IntentionQuery, IntentionRule};
use crate::model::{IntentionUpdate, Observation, Problem};
use crate::sources::agent_api::blocking_query::{Closed, Context, Verdict, Watched};
use crate::sources::agent_api::budget::{Claim, Pass};
use crate::sources::agent_api::call::{Call, Scope};
use crate::sources::consul::ConsulError;
use crate::sources::consul::client::{Answer, ConsulClient};

/// What the destination's proxy will say to us. Consul before 1.9 sends no index here: it is polled then.
pub(super) struct IntentionWatch {
    pub(super) client: ConsulClient,
    pub(super) source: Source,
    pub(super) query: IntentionQuery,
    pub(super) claim: Claim,
    pub(super) observations: mpsc::Sender<Observation>,
    pub(super) known: Option<Arc<Intention>>,
    pub(super) told: Option<Problem>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    allowed: bool,
}

impl IntentionWatch {
    fn scope(&self) -> Scope {
        Scope::default()
            .with("ns", self.query.namespace.as_ref())
            .with("partition", self.query.partition.as_ref())
    }

    fn rule(&self) -> String {
        format!("service {:?} {{ policy = \"read\" }}", self.query.destination)
    }

    /// Consul's own verdict, over plain TCP. Where no intention is about us the default decides, which only Consul knows.
    async fn checked(&self) -> Result<IntentionRule, ConsulError> {
        for source in self.source.all_towards(&self.query) {
            let call = Call::get("connect/intentions/check")
                .query("source", source)
                .query("destination", &self.query.destination)
                .scope(self.scope())
                .needs(self.rule());
            let check: Check = self.client.call(call).await?.json()?;
            if check.allowed {
                return Ok(IntentionRule::Allow);
            }
        }
        Ok(IntentionRule::Deny)
    }

    async fn send(&self, result: Result<Arc<Intention>, Problem>) -> Result<(), Closed> {
        let query = self.query.clone();
        let update = Observation::Intention(IntentionUpdate { query, result });
        self.observations.send(update).await.map_err(|_| Closed)
    }
}

impl Watched for IntentionWatch {
    fn call(&self) -> Call {
        Call::get("connect/intentions/match")
            .query("by", "destination")
            .query("name", &self.query.destination)
            .scope(self.scope())
            .max_body(INTENTIONS_BYTES)
            .needs(self.rule())
    }

    async fn admit(&mut self, first: bool) -> Pass {
        self.claim.admit(first).await
    }

    async fn take(&mut self, answer: Answer, _: Context) -> Result<Verdict, ConsulError> {
        let deciding = intention_answer::parse(&answer.body, &self.source)
            .map_err(|reason| answer.unreadable(reason))?;
        let (by, rule) = match deciding {
            // A denial takes the gateway's connections away: only if Consul itself says the same. Where it is a guess whose
            // intention this is, permissions are asked about, too: for connections that are not HTTP they are a denial.
            Some((_, rule))
                if (rule == IntentionRule::Deny
                    || self.source.is_guessed && rule != IntentionRule::Allow)
                    && self.checked().await? == IntentionRule::Allow =>
            {
                (None, IntentionRule::Allow)
            }
            Some((by, rule)) => (Some(by), rule),
            None => (None, self.checked().await?),
        };
        let intention = Intention {
            source: self.source.name.clone(),
            destination: self.query.destination.clone(),
            rule,
            by,
        };
        if self.told.is_none() && self.known.as_deref() == Some(&intention) {
            return Ok(Verdict::Taken { news: false });
        }
        let intention = Arc::new(intention);
        self.known = Some(intention.clone());
        self.told = None;
        Ok(match self.send(Ok(intention)).await {
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

const INTENTIONS_BYTES: usize = 4 * 1024 * 1024;

//! Which services ask to be exposed: one blocking query on the catalog's list of names and tags.
//!
//! The list wakes on every registration and costs one small read then; what each service asks for comes with its
//! instances, whose watch its endpoints need anyway. Names that vanish are doubted as instances are: the list leaves
//! out what the token may not see.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ConsulError;
use super::blocking_query::{Closed, Context, Verdict, WatchTiming, Watched, watch};
use super::budget::Pass;
use super::call::Call;
use super::client::{Answer, ConsulClient};
use crate::model::{ExposedUpdate, Observation, OptIn, Problem, ProblemKind};
use crate::sources::SourceHealth;

pub struct ExposedWatch {
    client: ConsulClient,
    opt_in: OptIn,
    observations: mpsc::Sender<Observation>,
    health: SourceHealth,
    timing: WatchTiming,
    /// None: the list has not been read yet.
    known: Option<BTreeSet<Arc<str>>>,
    told: Option<Problem>,
}

impl ExposedWatch {
    pub fn new(client: ConsulClient, opt_in: OptIn, observations: mpsc::Sender<Observation>) -> Self {
        Self {
            client,
            opt_in,
            observations,
            health: SourceHealth::default(),
            timing: WatchTiming::default(),
            known: None,
            told: None,
        }
    }

    pub fn health(&self) -> SourceHealth {
        self.health.clone()
    }

    pub async fn run(mut self, cancel: CancellationToken) {
        let (client, timing, health) = (self.client.clone(), self.timing.clone(), self.health.clone());
        watch(&client, &mut self, timing, &health, &cancel).await;
    }

    /// Names that ask, and whether some were left out over the bound.
    fn asking(&self, answer: &Answer) -> Result<(BTreeSet<Arc<str>>, usize), ConsulError> {
        #[derive(Deserialize)]
        struct Services<'a>(#[serde(borrow)] BTreeMap<Cow<'a, str>, Option<Vec<Cow<'a, str>>>>);
        let Services(listed) =
            serde_json::from_slice(&answer.body).map_err(|error| answer.unreadable(error))?;
        let mut asking: BTreeSet<Arc<str>> = listed
            .iter()
            .filter(|(name, tags)| {
                name.len() <= NAME_BYTES && self.opt_in.may_ask(name, tags.iter().flatten())
            })
            .map(|(name, _)| Arc::from(&**name))
            .collect();
        let over = asking.len().saturating_sub(SERVICES);
        while asking.len() > SERVICES {
            asking.pop_last();
        }
        Ok((asking, over))
    }

    /// Of a few of the names that vanished: may the token still see them?
    async fn doubt(&self, gone: &[&Arc<str>], filtered: bool) -> Result<Option<Problem>, ConsulError> {
        if gone.is_empty() && !(self.known.is_none() && filtered) {
            return Ok(None);
        }
        for name in gone.iter().step_by(gone.len().div_ceil(NAMES_ASKED).max(1)) {
            let call = Call::get("config/service-defaults")
                .segment(name)
                .needs(format!("service {name:?} {{ policy = \"read\" }}"))
                .not_found_is_answer();
            match self.client.probe(call).await {
                Ok(_) => {}
                Err(error) if error.status() == Some(403) => {
                    let problem = error.problem();
                    let message = format!(
                        "the service {name:?} vanished from the catalog because the token may no longer read it; its routes are kept. {problem}"
                    );
                    return Ok(Some(Problem {
                        message: message.into(),
                        ..problem
                    }));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    async fn send(&self, update: ExposedUpdate) -> Result<(), Closed> {
        self.observations
            .send(Observation::Exposed(update))
            .await
            .map_err(|_| Closed)
    }
}

impl Watched for ExposedWatch {
    fn call(&self) -> Call {
        Call::get("catalog/services").max_body(LIST_BYTES).needs(RULE)
    }

    async fn admit(&mut self, _first: bool) -> Pass {
        Pass::granted()
    }

    async fn take(&mut self, answer: Answer, _context: Context) -> Result<Verdict, ConsulError> {
        let (asking, over) = self.asking(&answer)?;
        let none = BTreeSet::new();
        let known = self.known.as_ref().unwrap_or(&none);
        let gone: Vec<&Arc<str>> = known.difference(&asking).collect();
        if let Some(problem) = self.doubt(&gone, answer.filtered_by_acls).await? {
            return Ok(Verdict::Doubted(problem));
        }
        let problem = (over > 0).then(|| {
            let message =
                format!("{over} services ask to be exposed beyond the first {SERVICES}; they are left out");
            Problem::new(ProblemKind::Limit, message)
        });
        let update = ExposedUpdate {
            added: asking.difference(known).cloned().collect(),
            removed: gone.into_iter().cloned().collect(),
            problem: None,
        };
        let news = self.known.is_none() || !update.added.is_empty() || !update.removed.is_empty();
        if news || self.told != problem {
            self.known = Some(asking);
            self.told.clone_from(&problem);
            if self.send(update).await.is_err() {
                return Ok(Verdict::Closed);
            }
            if let Some(problem) = problem {
                let beside = ExposedUpdate {
                    problem: Some(problem),
                    ..ExposedUpdate::default()
                };
                if self.send(beside).await.is_err() {
                    return Ok(Verdict::Closed);
                }
            }
        }
        Ok(Verdict::Taken { news })
    }

    async fn tell(&mut self, problem: Problem) -> Result<(), Closed> {
        if self.told.as_ref() == Some(&problem) {
            return Ok(());
        }
        self.told = Some(problem.clone());
        self.send(ExposedUpdate {
            problem: Some(problem),
            ..ExposedUpdate::default()
        })
        .await
    }
}

/// Each has a watch of its own, which takes turns beyond the connections that are granted.
const SERVICES: usize = 10_000;

const NAME_BYTES: usize = 256;

/// 100,000 names with tags.
const LIST_BYTES: usize = 16 * 1024 * 1024;

const NAMES_ASKED: usize = 4;

const RULE: &str = "service_prefix \"\" { policy = \"read\" }";

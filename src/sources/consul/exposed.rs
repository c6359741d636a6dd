//! Which services ask to be exposed: one blocking query on the catalog's list of names and tags.
//!
//! The list wakes on every registration and costs one small read then; what each service asks for comes with its
//! instances, whose watch its endpoints need anyway. Names that vanish are doubted as instances are: the list leaves
//! out what the token may not see, and a Consul that lost its state lists nothing. That holds for what was known before
//! a restart, too. One that is hidden stays, and keeps none of the others.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ConsulError;
use super::blocking_query::{Closed, Context, READ_TIMEOUT, Verdict, WatchTiming, Watched, watch};
use super::budget::Pass;
use super::call::Call;
use super::client::{Answer, ConsulClient};
use crate::model::{Document, ExposedUpdate, Observation, OptIn, Problem, ProblemKind};
use crate::sources::SourceHealth;

pub struct ExposedWatch {
    client: ConsulClient,
    opt_in: OptIn,
    observations: mpsc::Sender<Observation>,
    health: SourceHealth,
    timing: WatchTiming,
    /// Those that ask, as far as they were told; before the first answer, those that a restart found on disk.
    known: BTreeSet<Arc<str>>,
    /// Of those: not in the list since Consul lost its state. What the token may not see is found anew with each list.
    kept: BTreeSet<Arc<str>>,
    /// Of those: the token may not read them, as it was said at that time.
    hidden: BTreeSet<Arc<str>>,
    hidden_at: Option<Instant>,
    hidden_by: Option<Problem>,
    /// Of the last list that was believed; before that, the highest that the disk knows of.
    index: u64,
    /// The list has been read and believed.
    listed: bool,
    told: Option<Problem>,
}

/// What a list comes to.
struct Asking {
    names: BTreeSet<Arc<str>>,
    /// How many more there are than may be.
    over: usize,
    /// How many ask under what is no name.
    misnamed: usize,
    first_misnamed: Option<String>,
    /// How many have a tag that seems to ask, and does not.
    slips: usize,
    /// The first of them, and its tag.
    first_slip: Option<(String, String)>,
}

/// What was found out about names that a list lacks.
#[derive(Default)]
struct Doubt {
    /// Nothing hides them: they have ended, if the next list lacks them, too.
    visible: BTreeSet<Arc<str>>,
    /// The token may not read them.
    hidden: BTreeSet<Arc<str>>,
    /// What Consul said of the first.
    problem: Option<Problem>,
}

/// Consul takes any text for a name. As a part of a URL some lead elsewhere, and no document could name such a service.
fn is_service_name(name: &str) -> bool {
    let is_ok = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=128).contains(&name.len()) && name.bytes().all(is_ok) && !matches!(name, "." | "..")
}

impl ExposedWatch {
    pub fn new(client: ConsulClient, opt_in: OptIn, observations: mpsc::Sender<Observation>) -> Self {
        Self {
            client,
            opt_in,
            observations,
            health: SourceHealth::default(),
            timing: WatchTiming::default(),
            known: BTreeSet::new(),
            kept: BTreeSet::new(),
            hidden: BTreeSet::new(),
            hidden_at: None,
            hidden_by: None,
            index: 0,
            listed: false,
            told: None,
        }
    }

    /// What a restart found on disk: its end is doubted like any other.
    pub fn with_known(mut self, documents: &[Document]) -> Self {
        for document in documents {
            if let Some(service) = document.id.service() {
                self.known.insert(service.into());
                self.index = self.index.max(document.order);
            }
        }
        self
    }

    pub fn with_timing(mut self, timing: WatchTiming) -> Self {
        self.timing = timing;
        self
    }

    pub fn health(&self) -> SourceHealth {
        self.health.clone()
    }

    pub async fn run(mut self, cancel: CancellationToken) {
        let (client, timing, health) = (self.client.clone(), self.timing.clone(), self.health.clone());
        watch(&client, &mut self, &timing, &health, &cancel).await;
    }

    fn asking(&self, answer: &Answer) -> Result<Asking, ConsulError> {
        #[derive(Deserialize)]
        struct Services<'a>(#[serde(borrow)] BTreeMap<Cow<'a, str>, Option<Vec<Cow<'a, str>>>>);
        let Services(listed) =
            serde_json::from_slice(&answer.body).map_err(|error| answer.unreadable(error))?;
        let asks = |(name, tags): &(&Cow<'_, str>, &Option<Vec<Cow<'_, str>>>)| {
            self.opt_in.may_ask(name, tags.iter().flatten())
        };
        let (named, misnamed): (Vec<_>, Vec<_>) = listed
            .iter()
            .filter(asks)
            .map(|(name, _)| &**name)
            .partition(|name| is_service_name(name));
        let mut names: BTreeSet<Arc<str>> = named.into_iter().map(Arc::from).collect();
        let over = names.len().saturating_sub(SERVICES);
        if over > 0 {
            // Whoever registers thousands of names must not take the place of what is served.
            let (known, new): (Vec<_>, Vec<_>) =
                names.into_iter().partition(|name| self.known.contains(name));
            let most = SERVICES.max(known.len());
            names = known.into_iter().chain(new).take(most).collect();
        }
        let mut slips = listed
            .iter()
            .filter(|service| !asks(service))
            .filter_map(|(name, tags)| {
                Some((name, self.opt_in.slip(tags.iter().flatten().map(|tag| &**tag))?))
            });
        let shown = |text: &str| text.chars().take(NAME_SHOWN).collect::<String>();
        let first_slip = slips.next().map(|(name, tag)| (shown(name), shown(tag)));
        let slips = usize::from(first_slip.is_some()) + slips.count();
        Ok(Asking {
            slips,
            first_slip,
            names,
            over,
            misnamed: misnamed.len(),
            first_misnamed: misnamed.first().map(|name| shown(name)),
        })
    }

    /// Known, and in this list no more.
    fn lacking(&self, asking: &Asking) -> BTreeSet<Arc<str>> {
        let here = &asking.names | &self.kept;
        &self.known - &here
    }

    /// Those of them that are worth a question now: registrations wake the list several times a second.
    fn to_ask(&self, lacking: BTreeSet<Arc<str>>) -> BTreeSet<Arc<str>> {
        let asked_lately = |at: Instant| at.elapsed() < self.timing.doubt_wait.0;
        match self.hidden_at.is_some_and(asked_lately) {
            true => &lacking - &self.hidden,
            false => lacking,
        }
    }

    /// Which of the names that the list lacks may the token still see? Each is asked for itself: rights are lost for one
    /// service as for all.
    async fn doubt(&self, lacking: &BTreeSet<Arc<str>>) -> Result<Doubt, ConsulError> {
        let mut doubt = Doubt::default();
        // One that is no name, from the disk of a former version, cannot be asked about.
        let (mut named, misnamed): (Vec<&Arc<str>>, Vec<&Arc<str>>) =
            lacking.iter().partition(|name| is_service_name(name));
        // Where not all are asked, those that were hidden the last time have the last turn.
        named.sort_by_key(|name| self.hidden.contains(*name));
        doubt.visible.extend(misnamed.into_iter().cloned());
        for names in named.chunks(ASKED_TOGETHER) {
            let mut asks = Vec::new();
            for name in names {
                asks.push(self.is_visible(name));
            }
            let answers: Vec<_> = stream::iter(asks).buffered(IN_FLIGHT).try_collect().await?;
            for (name, hidden) in names.iter().zip(answers) {
                match hidden {
                    None => drop(doubt.visible.insert((*name).clone())),
                    Some(problem) => {
                        doubt.hidden.insert((*name).clone());
                        doubt.problem.get_or_insert(problem);
                    }
                }
            }
            // Without rights all may be hidden: they are not asked about one by one each time.
            if !doubt.hidden.is_empty() {
                break;
            }
        }
        Ok(doubt)
    }

    /// None: it is.
    async fn is_visible(&self, name: &str) -> Result<Option<Problem>, ConsulError> {
        let call = Call::get("config/service-defaults")
            .segment(name)
            .needs(format!("service {name:?} {{ policy = \"read\" }}"))
            .not_found_is_answer();
        match self.client.probe(call).await {
            Ok(_) => Ok(None),
            Err(error) if error.is_lack_of_rights() => Ok(Some(error.problem())),
            Err(error) => Err(error),
        }
    }

    fn vanished(&self, hidden: &BTreeSet<Arc<str>>, problem: Problem) -> Option<Problem> {
        let name = hidden.first()?;
        let others = match hidden.len() {
            1 => "; its routes are kept".to_owned(),
            count => format!(", nor {} others; their routes are kept", count - 1),
        };
        let message = format!(
            "the service {name:?} vanished from the catalog because {} may no longer read it{others}. {problem}",
            self.client.asker()
        );
        Some(Problem {
            message: message.into(),
            ..problem
        })
    }

    /// What is worth saying beside a list that is taken.
    fn remark(&self, kept: &BTreeSet<Arc<str>>, asking: &Asking) -> Option<Problem> {
        if let Some(name) = kept.first() {
            let others = match kept.len() {
                1 => String::new(),
                count => format!(" and {} others", count - 1),
            };
            let message = format!(
                "Consul at {} no longer lists the service {name:?}{others}, and its index fell: it seems to have lost its \
                 state; their routes are kept",
                self.client.address()
            );
            let fix = "restore Consul, or register the services again";
            return Some(Problem::new(ProblemKind::Invalid, message).with_fix(fix));
        }
        if let Some(first) = &asking.first_misnamed {
            let others = match asking.misnamed {
                1 => String::new(),
                count => format!(" and {} others like it", count - 1),
            };
            let message = format!(
                "the service {first:?}{others} asks to be exposed, and that is no name here: it is left out"
            );
            let fix = "register it under a name of 1 to 128 letters, digits, '.', '_' and '-'";
            return Some(Problem::new(ProblemKind::Invalid, message).with_fix(fix));
        }
        let over = asking.over;
        if over > 0 {
            let message = format!(
                "{over} services ask to be exposed beyond {SERVICES}; of those that are new they are left out"
            );
            return Some(Problem::new(ProblemKind::Limit, message));
        }
        let (name, tag) = asking.first_slip.as_ref()?;
        let others = match asking.slips {
            1 => String::new(),
            count => format!(" and {} others like it", count - 1),
        };
        let message = format!(
            "the service {name:?}{others} seems to ask to be exposed, and does not: by its tag {tag:?} nothing is exposed"
        );
        let prefix = &self.opt_in.prefix;
        let fix = format!(
            "tag it {prefix}.enable=true, which exposes it, or {prefix}.enable=false, and it is no more spoken of"
        );
        Some(Problem::new(ProblemKind::Invalid, message).with_fix(fix))
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

    async fn take(&mut self, mut answer: Answer, _: Context) -> Result<Verdict, ConsulError> {
        let mut asking = self.asking(&answer)?;
        let mut doubt = Doubt::default();
        let to_ask = self.to_ask(self.lacking(&asking));
        if !to_ask.is_empty() {
            doubt = self.doubt(&to_ask).await?;
            // The list shows the rights of its own time, which for a poll may be long ago, and the questions those of now:
            // rights that came back in between would pass for an end. So what lacks must lack in a later list, too.
            answer = self.client.probe(self.call().timeout(READ_TIMEOUT)).await?;
            asking = self.asking(&answer)?;
        }
        let mut kept = &self.kept - &asking.names;
        let (ended, hidden): (BTreeSet<_>, BTreeSet<_>) = self
            .lacking(&asking)
            .into_iter()
            .partition(|name| doubt.visible.contains(name));
        let index = answer.index.unwrap_or(self.index);
        if index < self.index {
            // What ends in the order of things moves the index on.
            kept.extend(ended);
            kept.extend(hidden.iter().cloned());
        }
        if let Some(problem) = doubt.problem {
            (self.hidden_at, self.hidden_by) = (Some(Instant::now()), Some(problem));
        }
        self.hidden = &(&self.hidden | &doubt.hidden) & &hidden;
        let said = self.hidden_by.clone().filter(|_| !hidden.is_empty());
        let problem = said.and_then(|problem| self.vanished(&hidden, problem));
        let problem = problem.or_else(|| self.remark(&kept, &asking));
        let now = &(&asking.names | &kept) | &hidden;
        // What the token may not see is asked about again before long.
        let taken = |news| match hidden.is_empty() {
            true => Verdict::Taken { news },
            false => Verdict::Partial { news },
        };
        let mut update = ExposedUpdate {
            added: now.difference(&self.known).cloned().collect(),
            removed: self.known.difference(&now).cloned().collect(),
            problem: None,
        };
        if !self.listed {
            // Told again even if the disk knew them: what they say now comes with the answer of their watch.
            update.added = now.iter().cloned().collect();
        }
        let news = !self.listed || !update.added.is_empty() || !update.removed.is_empty();
        (self.kept, self.index) = (kept, index);
        if !news && self.told == problem {
            return Ok(taken(news));
        }
        (self.known, self.listed) = (now, true);
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
        Ok(taken(news))
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

/// Of a name that is none.
const NAME_SHOWN: usize = 64;

/// 100,000 names with tags.
const LIST_BYTES: usize = 16 * 1024 * 1024;

/// Names that vanished, in one go.
const ASKED_TOGETHER: usize = 64;

/// Each has a connection over plain HTTP.
const IN_FLIGHT: usize = 4;

const RULE: &str = "service_prefix \"\" { policy = \"read\" }";

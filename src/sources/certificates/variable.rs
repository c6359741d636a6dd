//! Watches a Nomad variable that holds a chain and a key, by blocking queries: a change is read as soon as Nomad has it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::pem;
use super::publisher::{Closed, Publisher};
use crate::model::{CertificateMaterial, Problem, ProblemKind, Redacted};
use crate::sources::SourceHealth;
use crate::sources::agent_api::blocking_query::{self, Context, Verdict, Watched};
use crate::sources::agent_api::budget::{Budget, Claim, Pass};
use crate::sources::agent_api::call::{Call, Scope};
use crate::sources::agent_api::client::Answer;
use crate::sources::agent_api::{ApiError, WatchTiming};
use crate::sources::nomad::NomadClient;

pub(super) struct VariableQuery<'a> {
    pub(super) namespace: Option<&'a str>,
    pub(super) path: &'a str,
    pub(super) certificate_item: &'a str,
    pub(super) private_key_item: &'a str,
}

/// Nomad, and the connections to it that variables may hold.
pub(super) struct Variables {
    client: NomadClient,
    places: Arc<Budget>,
}

impl Variables {
    pub(super) fn new(client: NomadClient) -> Self {
        let places = Budget::new(client.api(), CONNECTIONS, TURN);
        Self { client, places }
    }
}

/// Returns only when nobody listens any more.
pub(super) async fn watch(
    query: VariableQuery<'_>,
    nomad: &Variables,
    refresh: &Notify,
    publisher: &mut Publisher,
) -> Closed {
    let client = nomad.client.api();
    let timing = WatchTiming::towards(nomad.client.target());
    let mut watch = VariableWatch::new(query, nomad, publisher);
    loop {
        let stop = CancellationToken::new();
        let health = SourceHealth::default();
        let watching = blocking_query::watch(&client, &mut watch, &timing, &health, &stop);
        tokio::select! {
            () = watching => return Closed,
            // Begun anew, it reads at once.
            () = refresh.notified() => {}
        }
    }
}

struct VariableWatch<'a> {
    query: VariableQuery<'a>,
    /// Where it is looked for: the query's, else the agent's own. None: Nomad's default.
    namespace: Option<&'a str>,
    claim: Claim,
    publisher: &'a mut Publisher,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Variable {
    pub(super) items: BTreeMap<String, Item>,
}

#[derive(Deserialize)]
#[serde(from = "String")]
pub(super) struct Item(pub(super) Redacted<String>);

impl From<String> for Item {
    fn from(text: String) -> Self {
        Self(Redacted::new(text))
    }
}

impl<'a> VariableWatch<'a> {
    fn new(query: VariableQuery<'a>, nomad: &'a Variables, publisher: &'a mut Publisher) -> Self {
        Self {
            namespace: query.namespace.or_else(|| nomad.client.namespace()),
            query,
            claim: nomad.places.claim(),
            publisher,
        }
    }

    fn read(&self, answer: &Answer) -> Result<CertificateMaterial, Problem> {
        let place = self.publisher.query().to_string();
        if !answer.found {
            let VariableQuery {
                path,
                certificate_item,
                private_key_item,
                ..
            } = self.query;
            let namespace = self.namespace.unwrap_or(DEFAULT_NAMESPACE);
            return Err(Problem::new(
                ProblemKind::NotFound,
                format!("{place}: Nomad has no such variable in the namespace {namespace:?}"),
            )
            .with_fix(format!(
                "nomad var put -namespace={namespace} {path} {certificate_item}=@www.pem {private_key_item}=@www.key"
            )));
        }
        // What the parser says may quote what it could not read, and that may be a key.
        let variable: Variable = serde_json::from_slice(&answer.body)
            .map_err(|error| {
                answer.unreadable(format!(
                    "no variable (line {}, column {})",
                    error.line(),
                    error.column()
                ))
            })
            .map_err(|error| error.problem())?;
        let item = |name: &str| {
            variable.items.get(name).ok_or_else(|| {
                let names: Vec<String> = variable.items.keys().map(|name| format!("{name:?}")).collect();
                let message = match names.is_empty() {
                    true => format!("{place}: it has no item {name:?}, and no other"),
                    false => format!("{place}: it has no item {name:?}, but {}", names.join(", ")),
                };
                Problem::new(ProblemKind::Invalid, message).with_fix(
                    "store the PEM text under that name, or name the items in the document: `certificate`, `private_key`",
                )
            })
        };
        let (chain, key) = (
            item(self.query.certificate_item)?,
            item(self.query.private_key_item)?,
        );
        pem::parse_served(chain.0.expose(), key.0.expose(), self.publisher.now())
            .map_err(|fault| fault.problem(&place))
    }
}

impl Watched for VariableWatch<'_> {
    fn call(&self) -> Call {
        Call::get("var")
            .key(self.query.path)
            .scope(Scope::default().with("namespace", self.query.namespace))
            .needs(format!(
                "namespace {:?} {{ variables {{ path {:?} {{ capabilities = [\"read\"] }} }} }}",
                self.namespace.unwrap_or(DEFAULT_NAMESPACE),
                self.query.path
            ))
            .not_found_is_answer()
    }

    async fn admit(&mut self, first: bool) -> Pass {
        self.claim.admit(first).await
    }

    async fn take(&mut self, answer: Answer, _context: Context) -> Result<Verdict, ApiError> {
        // What is wrong with it only its owner can mend, and the next answer comes when he does.
        let read = self.read(&answer);
        let (good, told) = (self.publisher.good(), self.publisher.told_problem());
        let same = read
            .as_ref()
            .is_ok_and(|read| good.map(AsRef::as_ref) == Some(read));
        let news = match &read {
            Ok(_) => !same || told.is_some(),
            Err(problem) => told != Some(problem),
        };
        let sent = match read {
            Ok(_) if same => self.publisher.unchanged().await,
            Ok(material) => self.publisher.material(material).await,
            Err(problem) => self.publisher.problem(problem).await,
        };
        Ok(match sent {
            Ok(()) => Verdict::Taken { news },
            Err(Closed) => Verdict::Closed,
        })
    }

    async fn tell(&mut self, problem: Problem) -> Result<(), blocking_query::Closed> {
        self.publisher
            .problem(problem)
            .await
            .map_err(|Closed| blocking_query::Closed)
    }
}

const DEFAULT_NAMESPACE: &str = "default";

/// Nomad grants one client 100 connections (`limits.http_max_conns_per_client`); services may hold 70 of them. More
/// variables than these are looked at in turns.
const CONNECTIONS: usize = 15;

const TURN: Duration = Duration::from_secs(5);

#[cfg(test)]
#[path = "variable_tests.rs"]
mod tests;

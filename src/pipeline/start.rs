//! The first publication of a gateway. "Not known yet" is not "empty", so it waits for all that it is made from; but not for
//! one service that nobody answers for, with closed ports, where no Envoy runs with anything that it could lose.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Pipeline;
use super::gateway::Gateway;
use crate::snapshot::Snapshot;
use crate::translate::{Compiled, Compiler};

/// How long services are waited for once the documents are known, and after each answer. Consul answers in milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// However many answers there are to come.
const PATIENCE_AT_MOST: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Start {
    since: Option<Instant>,
    patience: Option<Instant>,
    is_over: bool,
}

impl Start {
    /// Something was heard, and the documents are known.
    pub fn heard(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        self.patience = Some((now + PATIENCE).min(since + PATIENCE_AT_MOST));
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.patience.filter(|_| !self.is_over)
    }

    /// Whether that was the end of patience.
    pub fn tick(&mut self, now: Instant) -> bool {
        let ends = self.deadline().is_some_and(|at| at <= now);
        self.is_over |= ends;
        ends
    }

    /// `came_with_state`: one of the gateway's Envoys serves with what it was told before.
    pub fn opens_without_services(&self, came_with_state: impl Fn() -> bool) -> bool {
        self.is_over && !came_with_state()
    }
}

impl Pipeline {
    /// What is not known answers 503; what is, serves.
    pub(super) fn open_without_services(&mut self) {
        let opens = |gateway: &Gateway| {
            let streams = || self.streams.of_gateway(gateway.name());
            gateway.published_at.is_none() && !streams().iter().any(|stream| stream.came_with_state)
        };
        let waiting: Vec<&Gateway> = self.gateways.iter().filter(|gateway| opens(gateway)).collect();
        if waiting.is_empty() {
            return;
        }
        let missing = shown(&waiting, &self.snapshot);
        tracing::warn!(%missing, "not all that routes lead to has been heard of: serving without it");
        let names: BTreeSet<Arc<str>> = waiting.iter().map(|gateway| gateway.name().clone()).collect();
        self.release(|gateway, snapshot| match names.contains(gateway.name()) {
            true => gateway.release_all(snapshot),
            false => Compiled::default(),
        });
        self.publish();
    }
}

/// What a gateway's first publication waits for, but for the texts that others accepted.
pub(super) fn missing(
    snapshot: &Snapshot,
    compiler: &Compiler,
    documents_known: bool,
    without_services: bool,
) -> Vec<String> {
    if !documents_known {
        return vec!["the documents".to_owned()];
    }
    let interests = compiler.interests();
    let services = interests
        .iter()
        .filter(|interest| !without_services && !snapshot.answered(interest))
        .map(ToString::to_string);
    let certificates = compiler
        .certificates()
        .values()
        .filter_map(|fetched| fetched.declared.as_ref())
        .filter(|query| !snapshot.certificate_answered(query))
        .map(|query| format!("certificate {query}"));
    services.chain(certificates).collect()
}

/// In words, a few of them.
pub(super) fn shown(gateways: &[&Gateway], snapshot: &Snapshot) -> String {
    let all: Vec<String> = gateways
        .iter()
        .flat_map(|gateway| missing(snapshot, &gateway.compiler, true, false))
        .collect();
    let mut shown = all.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if all.len() > SHOWN {
        shown.push_str(&format!(" and {} more", all.len() - SHOWN));
    }
    shown
}

const SHOWN: usize = 5;

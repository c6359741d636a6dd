//! What Envoy refused on one stream, and how the bad ones are told from the good ones.
//!
//! A refusal covers a whole response. When its message says which resources are bad, that is the proof. Otherwise the
//! candidates are sent apart, half by half, until each bad one was refused alone: about two responses per halving.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::order::{self, FREE_REFUSALS, REFUSAL_DELAY, REFUSAL_DELAY_MAX};
use crate::envoy::{Resource, ResourceKind};

/// One version of one resource that this Envoy does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub version: Arc<str>,
    pub message: Arc<str>,
}

#[derive(Default)]
pub(super) struct Refusals {
    refused: BTreeMap<Arc<str>, Refusal>,
    /// Suspects to send apart from everything else, next first.
    groups: VecDeque<BTreeSet<Arc<str>>>,
    in_a_row: u32,
    not_before: Duration,
}

/// Whom a message accuses.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// Exactly these are bad.
    Proven(Vec<Arc<str>>),
    /// These are named, or nobody is: try them apart.
    Hinted(Vec<Arc<str>>),
}

impl Refusals {
    pub(super) fn all(&self) -> &BTreeMap<Arc<str>, Refusal> {
        &self.refused
    }

    pub(super) fn is_refused(&self, resource: &Resource) -> bool {
        self.refused
            .get(&resource.name)
            .is_some_and(|refusal| refusal.version == resource.version)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.refused.is_empty()
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.refused.remove(name);
    }

    pub(super) fn refuse(&mut self, resource: &Resource, message: &Arc<str>) {
        let refusal = Refusal {
            version: resource.version.clone(),
            message: message.clone(),
        };
        self.refused.insert(resource.name.clone(), refusal);
    }

    /// The suspects to send next, apart from everything else.
    pub(super) fn next_group(&self) -> Option<&BTreeSet<Arc<str>>> {
        self.groups.front()
    }

    pub(super) fn finish_group(&mut self) {
        self.groups.pop_front();
    }

    /// Plans to send the suspects apart: the hinted ones each alone, the others in two halves.
    pub(super) fn suspect(&mut self, candidates: &[Arc<Resource>], hinted: &[Arc<str>]) {
        let hinted: BTreeSet<&Arc<str>> = hinted.iter().collect();
        let rest: Vec<Arc<str>> = candidates
            .iter()
            .map(|resource| resource.name.clone())
            .filter(|name| !hinted.contains(name))
            .collect();
        let groups: Vec<BTreeSet<Arc<str>>> = if hinted.is_empty() {
            let (left, right) = rest.split_at(rest.len() / 2);
            vec![left.iter().cloned().collect(), right.iter().cloned().collect()]
        } else {
            let alone = hinted.into_iter().map(|name| BTreeSet::from([name.clone()]));
            std::iter::once(rest.into_iter().collect()).chain(alone).collect()
        };
        for group in groups.into_iter().rev().filter(|group| !group.is_empty()) {
            self.groups.push_front(group);
        }
    }

    pub(super) fn not_before(&self) -> Duration {
        self.not_before
    }

    pub(super) fn on_accepted(&mut self) {
        self.in_a_row = 0;
    }

    /// Trying suspects apart ends by itself; only refusals outside of it may go on for ever, and are slowed down.
    pub(super) fn on_refused(&mut self, now: Duration) {
        if !self.groups.is_empty() {
            return;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        if self.in_a_row > FREE_REFUSALS {
            let doublings = (self.in_a_row - FREE_REFUSALS - 1).min(8);
            self.not_before = now + (REFUSAL_DELAY * (1 << doublings)).min(REFUSAL_DELAY_MAX);
        }
    }
}

/// Reads Envoy's message. `Error adding/updating cluster(s) a: why, b: why` and the same for listeners (one a line) list
/// every bad resource; any other text may name one by chance, which hints and proves nothing.
pub(super) fn blame(kind: ResourceKind, message: &str, candidates: &[Arc<Resource>]) -> Blame {
    let names = || candidates.iter().map(|resource| resource.name.clone());
    if candidates.len() == 1 {
        return Blame::Proven(names().collect());
    }
    if order::is_blame_complete(kind)
        && let Some((_, listed)) = message
            .split_once("Error adding/updating ")
            .and_then(|(_, rest)| rest.split_once("(s) "))
    {
        let bad: Vec<Arc<str>> = names().filter(|name| is_listed(listed, name)).collect();
        if !bad.is_empty() {
            return Blame::Proven(bad);
        }
    }
    Blame::Hinted(names().filter(|name| is_mentioned(message, name)).collect())
}

/// `name: ` at the start, after `, `, or at the start of a line.
fn is_listed(listed: &str, name: &str) -> bool {
    listed.match_indices(name).any(|(at, _)| {
        let before = &listed[..at];
        let after = &listed[at + name.len()..];
        after.starts_with(": ") && (before.is_empty() || before.ends_with(", ") || before.ends_with('\n'))
    })
}

fn is_mentioned(message: &str, name: &str) -> bool {
    let is_part_of_name = |c: char| c.is_alphanumeric() || "_-./:".contains(c);
    !name.is_empty()
        && message.match_indices(name).any(|(at, _)| {
            let before = message[..at].chars().next_back();
            // A name may end a sentence or stand before a colon.
            let after = message[at + name.len()..]
                .chars()
                .next()
                .filter(|c| !".:".contains(*c));
            !before.is_some_and(is_part_of_name) && !after.is_some_and(is_part_of_name)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(names: &[&str]) -> Vec<Arc<Resource>> {
        names
            .iter()
            .map(|name| Arc::new(Resource::new(ResourceKind::Cluster, (*name).into(), b"x")))
            .collect()
    }

    fn named(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    #[test]
    fn lists_of_bad_resources_prove() {
        let candidates = resources(&["a", "b", "web"]);
        let message = "Error adding/updating cluster(s) a: STRICT_DNS needs an address, web: no such b";
        assert_eq!(
            blame(ResourceKind::Cluster, message, &candidates),
            Blame::Proven(named(&["a", "web"]))
        );
        let message = "Error adding/updating listener(s) web: bad address\nb: bad too";
        assert_eq!(
            blame(ResourceKind::Listener, message, &candidates),
            Blame::Proven(named(&["b", "web"]))
        );
    }

    #[test]
    fn other_texts_only_hint() {
        let candidates = resources(&["shop", "shop-next"]);
        let message =
            "Proto constraint validation failed (ClusterValidationError.Name: too short) in shopping";
        assert_eq!(
            blame(ResourceKind::Cluster, message, &candidates),
            Blame::Hinted(named(&[]))
        );
        let message = "route: unknown cluster 'shop-next'.";
        assert_eq!(
            blame(ResourceKind::Route, message, &candidates),
            Blame::Hinted(named(&["shop-next"]))
        );
        assert_eq!(
            blame(ResourceKind::Route, "bad regex", &candidates[..1]),
            Blame::Proven(named(&["shop"]))
        );
    }

    #[test]
    fn halves_until_alone() {
        let candidates = resources(&["a", "b", "c"]);
        let mut refusals = Refusals::default();
        refusals.suspect(&candidates, &[]);
        let groups: Vec<Vec<&str>> = refusals
            .groups
            .iter()
            .map(|group| group.iter().map(|name| &**name).collect())
            .collect();
        assert_eq!(groups, [vec!["a"], vec!["b", "c"]]);
    }

    #[test]
    fn slows_down_endless_refusals() {
        let mut refusals = Refusals::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            refusals.on_refused(Duration::ZERO);
            waits.push(refusals.not_before().as_millis());
        }
        assert_eq!(waits, [0, 0, 0, 100, 200, 400, 800, 800]);
    }
}

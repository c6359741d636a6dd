//! What Envoy refused on one stream, and how the bad ones are told from the good ones.
//!
//! A refusal covers a whole response. When its message says which resources are bad, that is the proof. Otherwise the
//! candidates are sent apart, half by half, until each bad one was refused alone: about two responses per halving.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::order::{self, FREE_REFUSALS, NODE_RETRY, NODE_RETRY_MAX, REFUSAL_DELAY, REFUSAL_DELAY_MAX};
use crate::envoy::{Resource, ResourceKind};

/// One version of one resource that this Envoy does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub version: Arc<str>,
    /// What Envoy said about this resource.
    pub message: Arc<str>,
    /// Set when the trouble is the node's, not the resource's: it is sent again until Envoy takes it.
    pub retry: Option<Retry>,
}

/// When a refused resource is sent once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    at: Duration,
    tries: u32,
}

/// Whether a refusal is about the node that Envoy runs on: a port that another process has, an address that the node
/// lacks, a port that needs a right. No other text of the document would help, and time may.
pub fn is_of_node(kind: ResourceKind, message: &str) -> bool {
    kind == ResourceKind::Listener && (message.contains("cannot bind") || message.contains("cannot listen"))
}

/// The part of Envoy's message that is about one of the blamed resources.
pub fn said_of(kind: ResourceKind, message: &str, name: &str, blamed: &[Arc<str>]) -> Arc<str> {
    let Some(listed) = listed(kind, message) else {
        return message.into();
    };
    let starts = |name: &str| listed_at(listed, name).next();
    let Some(start) = starts(name) else {
        return message.into();
    };
    let next = blamed
        .iter()
        .filter_map(|other| starts(other))
        .filter(|other| *other > start)
        .min()
        .unwrap_or(listed.len());
    let part = &listed[start + name.len() + 2..next];
    part.trim_end().trim_end_matches(',').into()
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

    /// `message` is what Envoy said about this resource.
    pub(super) fn refuse(&mut self, resource: &Resource, message: Arc<str>, now: Duration) {
        let retry = is_of_node(resource.kind, &message).then(|| {
            let before = self.refused.get(&resource.name);
            let tries = before
                .filter(|refusal| refusal.version == resource.version)
                .and_then(|refusal| refusal.retry)
                .map_or(0, |retry| retry.tries + 1);
            let at = now + (NODE_RETRY * (1 << tries.min(8))).min(NODE_RETRY_MAX);
            Retry { at, tries }
        });
        let refusal = Refusal {
            version: resource.version.clone(),
            message,
            retry,
        };
        self.refused.insert(resource.name.clone(), refusal);
    }

    /// This version was refused because of the node, and its time has come again.
    pub(super) fn is_retried(&self, resource: &Resource, now: Duration) -> bool {
        self.refused.get(&resource.name).is_some_and(|refusal| {
            refusal.version == resource.version && refusal.retry.is_some_and(|retry| retry.at <= now)
        })
    }

    /// What to send once more by now.
    pub(super) fn retries(&self, now: Duration) -> Vec<Arc<str>> {
        let due = |refusal: &Refusal| refusal.retry.is_some_and(|retry| retry.at <= now);
        let names = self.refused.iter().filter(|(_, refusal)| due(refusal));
        names.map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn next_retry(&self) -> Option<Duration> {
        let retries = self.refused.values().filter_map(|refusal| refusal.retry);
        retries.map(|retry| retry.at).min()
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
    if let Some(listed) = listed(kind, message) {
        let bad: Vec<Arc<str>> = names()
            .filter(|name| listed_at(listed, name).next().is_some())
            .collect();
        if !bad.is_empty() {
            return Blame::Proven(bad);
        }
    }
    Blame::Hinted(names().filter(|name| is_mentioned(message, name)).collect())
}

/// The list of bad resources in a message that has one.
fn listed(kind: ResourceKind, message: &str) -> Option<&str> {
    let (_, rest) = message
        .split_once("Error adding/updating ")
        .filter(|_| order::is_blame_complete(kind))?;
    rest.split_once("(s) ").map(|(_, listed)| listed)
}

/// Where `name: ` stands at the start, after `, `, or at the start of a line.
fn listed_at<'a>(listed: &'a str, name: &'a str) -> impl Iterator<Item = usize> + 'a {
    listed.match_indices(name).map(|(at, _)| at).filter(|at| {
        let before = &listed[..*at];
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

/// Envoy may append the refused resource itself, which can be megabytes; what is wrong comes first.
pub(super) fn shorten(kind: ResourceKind, message: &str) -> String {
    const LONGEST: usize = 2048;
    // A secret that breaks a constraint is appended behind it, key and all: "...: value is too short): name: ...".
    let said = match kind {
        ResourceKind::Secret => message.split("): ").next().unwrap_or_default(),
        _ => message,
    };
    if said.contains("PRIVATE KEY") {
        return "the secret was refused (the message held its private key and is not repeated)".to_owned();
    }
    let message = said;
    let mut end = message.len().min(LONGEST);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
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
    fn each_is_told_its_own_part() {
        let blamed = named(&["a", "web"]);
        let said = |kind, message, name| said_of(kind, message, name, &blamed);
        let message = "Error adding/updating cluster(s) a: STRICT_DNS needs an address, web: no such b";
        assert_eq!(
            &*said(ResourceKind::Cluster, message, "a"),
            "STRICT_DNS needs an address"
        );
        assert_eq!(&*said(ResourceKind::Cluster, message, "web"), "no such b");
        let message = "Error adding/updating listener(s) web: cannot bind '0.0.0.0:80': Address already in use\na: bad\n";
        let web = said(ResourceKind::Listener, message, "web");
        assert_eq!(&*web, "cannot bind '0.0.0.0:80': Address already in use");
        assert!(is_of_node(ResourceKind::Listener, &web));
        let other = said(ResourceKind::Listener, message, "a");
        assert!(&*other == "bad" && !is_of_node(ResourceKind::Listener, &other));
        assert_eq!(&*said(ResourceKind::Route, "bad regex", "a"), "bad regex");
    }

    #[test]
    fn what_the_node_is_to_blame_for_is_tried_again_with_pauses() {
        let listener = Resource::new(ResourceKind::Listener, "web".into(), b"x");
        let mut refusals = Refusals::default();
        let mut now = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..6 {
            refusals.refuse(&listener, "cannot bind '0.0.0.0:80'".into(), now);
            assert!(!refusals.is_retried(&listener, now) && refusals.retries(now).is_empty());
            let at = refusals.next_retry().unwrap();
            assert!(refusals.is_retried(&listener, at) && refusals.retries(at).len() == 1);
            pauses.push((at - now).as_millis());
            now = at;
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 5000, 5000]);
        refusals.refuse(&listener, "no such filter".into(), now);
        assert_eq!(refusals.next_retry(), None);
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

    #[test]
    fn a_refused_secret_is_not_repeated() {
        let constraint = "Proto constraint validation failed (SecretValidationError.Name: too short): name: \"www\" \
                          tls_certificate { private_key { inline_string: \"-----BEGIN PRIVATE KEY-----\" } }";
        let said = shorten(ResourceKind::Secret, constraint);
        assert!(
            said.ends_with("too short") && !said.contains("tls_certificate"),
            "{said}"
        );
        let other = shorten(ResourceKind::Secret, "what comes: -----BEGIN EC PRIVATE KEY-----");
        assert!(!other.contains("BEGIN"), "{other}");
        let cluster = shorten(ResourceKind::Cluster, "no such thing (x): name");
        assert_eq!(cluster, "no such thing (x): name");
    }
}

//! Listeners that one Envoy could not serve: it lacks each certificate that they show, and nobody here has the keys.
//!
//! After our restart the keys of some certificates are with those Envoys alone that had them before. An Envoy that has
//! one goes on with it. Another one is not given the listener until a key is here: a closed port tells clients and load
//! balancers what a port that fails every handshake does not. Each stream decides for its own Envoy, so that what one
//! lacks takes nothing from another, in whatever order they connect.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::exchange::Report;
use super::order::GATE_PATIENCE;
use super::subscription::Subscription;
use crate::envoy::{Resource, ResourceKind, ResourceSet};

#[derive(Default)]
pub(super) struct Keyless {
    /// By listener.
    withheld: BTreeMap<Arc<str>, Withheld>,
    /// Since the listeners were first told, or are known from Envoy's own word.
    has_looked: bool,
}

struct Withheld {
    /// Since when Envoy is known to have none. None: it comes back, and may still say what it has.
    since: Option<Duration>,
    lacks: Arc<[Arc<str>]>,
}

/// How a listener stands with its certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Usable,
    /// Not now: Envoy may say that it has one, or one may be issued.
    Awaited,
    /// For this Envoy it is as if it were not there.
    Unusable,
}

impl Keyless {
    /// Looks at the listeners that are to be delivered. `said_by`: until then an Envoy that comes back names what it has.
    pub(super) fn review(
        &mut self,
        subscriptions: &mut [Subscription; 7],
        target: &ResourceSet,
        said_by: Duration,
        now: Duration,
        reports: &mut Vec<Report>,
    ) {
        if !subscriptions[ResourceKind::Listener as usize].reconciled {
            return;
        }
        // Of an Envoy that names its secrets first, what it lacks was news before it said which listeners it has.
        let is_first = !std::mem::replace(&mut self.has_looked, true)
            && subscriptions[ResourceKind::Secret as usize].opened;
        if is_first || reports.iter().any(is_news) {
            doubt_those_told(subscriptions, target, now);
        }
        let secrets = &subscriptions[ResourceKind::Secret as usize];
        let listeners = &subscriptions[ResourceKind::Listener as usize];
        for name in listeners.dirty.keys() {
            let published = target.get(ResourceKind::Listener, name);
            let Some(listener) = published.filter(|listener| lacks_all(secrets, target, listener)) else {
                self.withheld.remove(name);
                continue;
            };
            let told = listeners.told.get(name);
            // With exactly this listener comes the question for its secrets, however late.
            let will_say = told.is_some_and(|told| told.version == listener.version);
            let is_known = secrets.opened || (now >= said_by && !will_say);
            let withheld = self.withheld.entry(name.clone()).or_insert_with(|| Withheld {
                since: None,
                lacks: Arc::default(),
            });
            withheld.lacks = listener.needs_one_of.clone();
            if is_known && withheld.since.is_none() {
                withheld.since = Some(now);
                reports.extend(withheld.lacks.iter().map(|name| Report::Wanted {
                    kind: ResourceKind::Secret,
                    name: name.clone(),
                    lacks: true,
                }));
            }
        }
    }

    /// Secrets changed, here or at Envoy: what is withheld is looked at again.
    pub(super) fn doubt(&self, listeners: &mut Subscription, now: Duration) {
        for name in self.withheld.keys() {
            listeners.mark(name.clone(), now, false);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.withheld.is_empty()
    }

    pub(super) fn standing(&self, listener: &str, now: Duration) -> Standing {
        match self.withheld.get(listener) {
            None => Standing::Usable,
            Some(withheld) if withheld.decided_at().is_none_or(|at| now < at) => Standing::Awaited,
            Some(_) => Standing::Unusable,
        }
    }

    /// Envoy may yet say that it has a certificate for it, or one may be issued.
    pub(super) fn may_wait(
        &self,
        subscriptions: &[Subscription; 7],
        target: &ResourceSet,
        listener: &Resource,
        now: Duration,
    ) -> bool {
        let secrets = &subscriptions[ResourceKind::Secret as usize];
        lacks_all(secrets, target, listener) && self.standing(&listener.name, now) != Standing::Unusable
    }

    /// When the next listener is given up, or was.
    pub(super) fn deadline(&self, now: Duration) -> Option<Duration> {
        let decisions = self.withheld.values().filter_map(Withheld::decided_at);
        decisions.filter(|at| *at > now).min()
    }

    /// Listeners that this Envoy is not given, and the secrets that it lacks.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<[Arc<str>]>)> {
        let known = self.withheld.iter().filter(|(_, it)| it.since.is_some());
        known.map(|(name, withheld)| (name, &withheld.lacks))
    }
}

impl Withheld {
    /// A key that can be issued is here within moments: until then an Envoy that starts up had better wait, and one that
    /// runs the listener keeps it.
    fn decided_at(&self) -> Option<Duration> {
        self.since.map(|since| since + GATE_PATIENCE)
    }
}

/// An Envoy turns out to lack a secret.
fn is_news(report: &Report) -> bool {
    let Report::Wanted { kind, lacks, .. } = report else {
        return false;
    };
    *kind == ResourceKind::Secret && *lacks
}

/// What Envoy runs may be of no use after all.
fn doubt_those_told(subscriptions: &mut [Subscription; 7], target: &ResourceSet, now: Duration) {
    let secrets = &subscriptions[ResourceKind::Secret as usize];
    let listeners = &subscriptions[ResourceKind::Listener as usize];
    let doubtful: Vec<Arc<str>> = target
        .of_kind(ResourceKind::Listener)
        .values()
        .filter(|listener| listeners.told.contains_key(&listener.name))
        .filter(|listener| lacks_all(secrets, target, listener))
        .map(|listener| listener.name.clone())
        .collect();
    for name in doubtful {
        subscriptions[ResourceKind::Listener as usize].mark(name, now, false);
    }
}

fn lacks_all(secrets: &Subscription, target: &ResourceSet, listener: &Resource) -> bool {
    let all = &listener.needs_one_of;
    !all.is_empty() && all.iter().all(|name| secrets.lacks(name, target))
}

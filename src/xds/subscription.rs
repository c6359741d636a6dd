//! What one Envoy asked for, was told, and acknowledged, of one kind. Plain data: time is passed in.
//!
//! `told` and `acked` are maps that share their structure with the published set, so that a stream that is up to date
//! costs a few pointers however much it is subscribed to. A name is subscribed when it is told, when it is in `unheld`,
//! or when the subscription is a wildcard. `dirty` names are those to look at on the next delivery
//! (see [`super::delivery`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;

use super::exchange::{Report, Variant};
use super::order;
use super::refusal::{Blame, Refusals, blame, is_of_node, said_of, shorten};
use crate::envoy::{Resource, ResourceChange, ResourceKind, ResourceSet};

pub(super) type Held = OrdMap<Arc<str>, Arc<Resource>>;

pub(super) struct Subscription {
    pub(super) kind: ResourceKind,
    pub(super) variant: Variant,
    /// A first request has come.
    pub(super) opened: bool,
    /// What Envoy brought along was compared with a complete set.
    pub(super) reconciled: bool,
    /// A response was sent, or none was needed because Envoy had everything.
    pub(super) answered: bool,
    pub(super) wildcard: bool,
    /// Names asked for beside a wildcard; they stay when the wildcard goes.
    pub(super) named_beside: BTreeSet<Arc<str>>,
    pub(super) initial: Initial,
    /// Envoy brought something along from before this stream.
    pub(super) resumed: bool,
    pub(super) told: Held,
    pub(super) acked: Held,
    /// Subscribed by name, and nothing told yet.
    pub(super) unheld: BTreeSet<Arc<str>>,
    pub(super) dirty: BTreeMap<Arc<str>, Dirty>,
    /// State of the world: what Envoy comes back with, in versions that it does not tell. Of secrets alone.
    pub(super) untold: BTreeSet<Arc<str>>,
    /// Only Envoy could hold these bytes and it does not: name to version, each reported once.
    pub(super) wanted: BTreeMap<Arc<str>, Arc<str>>,
    pub(super) refusals: Refusals,
    pub(super) in_flight: VecDeque<InFlight>,
    pub(super) last_nonce: u64,
    /// Some that are gone are kept for connections from before, and are not dirty: there may be ten thousand of them, and for a
    /// minute there is nothing to look at.
    pub(super) has_parked: bool,
    /// When to look again at a removal that waits for who uses it.
    pub(super) next_removal: Option<Duration>,
}

/// What Envoy holds from an earlier stream.
pub(super) enum Initial {
    Nothing,
    Versions(HashMap<String, String>),
    /// State of the world has one version for all.
    Whole(String),
}

#[derive(Clone, Copy)]
pub(super) struct Dirty {
    pub(super) since: Duration,
    /// Answer even when Envoy was told the same before.
    pub(super) forced: bool,
}

pub(super) struct InFlight {
    pub(super) nonce: u64,
    pub(super) sent_at: Duration,
    /// What may be refused: first the fresh ones, then those that are still unanswered from before.
    pub(super) changed: Vec<Arc<Resource>>,
    pub(super) fresh: usize,
    pub(super) removed: Vec<Arc<str>>,
    /// Sent apart from everything else, to find out who is bad.
    pub(super) is_trial: bool,
}

impl InFlight {
    pub(super) fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }

    pub(super) fn fresh(&self) -> &[Arc<Resource>] {
        &self.changed[..self.fresh]
    }

    fn mentions(&self, name: &Arc<str>) -> bool {
        self.changed.iter().any(|resource| resource.name == *name) || self.removed.contains(name)
    }
}

impl Subscription {
    pub(super) fn new(kind: ResourceKind, variant: Variant) -> Self {
        Self {
            kind,
            variant,
            opened: false,
            reconciled: false,
            answered: false,
            wildcard: false,
            named_beside: BTreeSet::new(),
            initial: Initial::Nothing,
            resumed: false,
            told: Held::new(),
            acked: Held::new(),
            unheld: BTreeSet::new(),
            dirty: BTreeMap::new(),
            untold: BTreeSet::new(),
            wanted: BTreeMap::new(),
            refusals: Refusals::default(),
            in_flight: VecDeque::new(),
            last_nonce: 0,
            has_parked: false,
            next_removal: None,
        }
    }

    pub(super) fn name_count(&self) -> usize {
        let told = if self.wildcard {
            // What was given up beside the wildcard is still owed an answer.
            let is_owed =
                |(name, dirty): &(&Arc<str>, &Dirty)| dirty.forced && !self.told.contains_key(*name);
            self.named_beside.len() + self.dirty.iter().filter(is_owed).count()
        } else {
            self.told.len()
        };
        told + self.unheld.len()
    }

    pub(super) fn is_subscribed(&self, name: &str) -> bool {
        self.wildcard || self.told.contains_key(name) || self.unheld.contains(name)
    }

    /// Only an Envoy can have this, and this one has it in no version.
    pub(super) fn lacks(&self, name: &str, target: &ResourceSet) -> bool {
        let published = target.get(self.kind, name);
        published.is_some_and(|resource| resource.is_held_by_envoy())
            && !self.told.contains_key(name)
            && !self.untold.contains(name)
    }

    pub(super) fn open_delta(&mut self, subscribe: &[String], initial: HashMap<String, String>) {
        self.opened = true;
        if !initial.is_empty() {
            self.resumed = true;
            self.initial = Initial::Versions(initial);
        }
        // An empty first request is the older way to say "everything".
        if order::is_wildcard(self.kind) && subscribe.is_empty() {
            self.wildcard = true;
        }
    }

    pub(super) fn open_state_of_the_world(&mut self, names: &[String], version: String) {
        self.opened = true;
        if !version.is_empty() {
            self.resumed = true;
            self.initial = Initial::Whole(version);
        }
        if order::is_wildcard(self.kind) && names.is_empty() {
            self.wildcard = true;
        }
    }

    /// Delta: asking for a name again means "I dropped it, send it again".
    pub(super) fn subscribe(&mut self, name: &str, now: Duration) {
        if name == "*" {
            if !self.wildcard {
                self.wildcard = true;
                self.named_beside = std::mem::take(&mut self.unheld);
                self.named_beside.extend(self.told.keys().cloned());
                self.reconciled = false;
            }
            return;
        }
        let name = self.intern(name);
        if self.wildcard {
            self.named_beside.insert(name.clone());
        } else if !self.told.contains_key(&name) {
            self.unheld.insert(name.clone());
        }
        self.mark(name, now, true);
    }

    pub(super) fn unsubscribe(&mut self, name: &str, now: Duration) {
        if name == "*" {
            if self.wildcard {
                self.wildcard = false;
                let named = std::mem::take(&mut self.named_beside);
                let dropped: Vec<Arc<str>> = self
                    .told
                    .keys()
                    .filter(|name| !named.contains(*name))
                    .cloned()
                    .collect();
                dropped.iter().for_each(|name| self.drop_name(name));
                self.dirty.retain(|name, _| named.contains(name));
                self.unheld = named
                    .into_iter()
                    .filter(|name| !self.told.contains_key(name))
                    .collect();
            }
        } else if self.wildcard {
            self.named_beside.remove(name);
            // Envoy cannot know whether the wildcard covers the name: it must be told.
            let name = self.intern(name);
            self.mark(name, now, true);
        } else {
            self.drop_name(name);
        }
    }

    /// State of the world: the request lists everything wanted.
    pub(super) fn replace_names(&mut self, names: &[String], now: Duration) {
        if self.wildcard && names.is_empty() {
            return;
        }
        if names.iter().any(|name| name == "*") {
            self.subscribe("*", now);
            return;
        }
        let asked: std::collections::HashSet<&str> = names.iter().map(String::as_str).collect();
        self.wildcard = false;
        let dropped: Vec<Arc<str>> = self
            .told
            .keys()
            .chain(&self.unheld)
            .filter(|name| !asked.contains(&***name))
            .cloned()
            .collect();
        dropped.iter().for_each(|name| self.drop_name(name));
        for name in names {
            if !self.told.contains_key(name.as_str()) && !self.unheld.contains(name.as_str()) {
                self.subscribe(name, now);
            }
        }
    }

    /// Envoy asks anew, or no longer: what it brought along of this name does not count.
    pub(super) fn forget_initial(&mut self, name: &str) {
        if let Initial::Versions(versions) = &mut self.initial {
            versions.remove(name);
        }
    }

    /// Envoy asks anew: it no longer has what it brought along. What is still here is sent again; a key is not.
    pub(super) fn forget_dropped(&mut self, name: &str) {
        self.forget_initial(name);
        let is_lost = |told: &Arc<Resource>| self.kind == ResourceKind::Secret && told.is_held_by_envoy();
        if let Some(told) = self.told.get(name).filter(|told| is_lost(told)).cloned() {
            self.acked.remove(name);
            self.forget_told(&told.name);
        }
    }

    /// Compares what Envoy brought along with a complete set, once.
    pub(super) fn reconcile(&mut self, target: &ResourceSet, now: Duration) {
        self.reconciled = true;
        let published = target.of_kind(self.kind);
        match std::mem::replace(&mut self.initial, Initial::Nothing) {
            Initial::Nothing => {}
            Initial::Versions(versions) => {
                self.answered = true;
                self.resume(published, &versions, now);
            }
            Initial::Whole(version) => {
                let desired = self.desired(published);
                // Envoy's version says what it was sent; equal means that it holds exactly this.
                if super::wire::whole_version(&desired) == version {
                    self.answered = true;
                    desired.keys().for_each(|name| _ = self.unheld.remove(name));
                    self.dirty.clear();
                    self.told = desired.clone();
                    self.acked = desired;
                    return;
                }
                if self.kind == ResourceKind::Secret {
                    self.untold.clone_from(&self.unheld);
                }
            }
        }
        if self.wildcard {
            for name in published.keys() {
                if !self.told.contains_key(name) {
                    self.mark(name.clone(), now, false);
                }
            }
        }
    }

    /// The names whose published resource changed since `older`.
    pub(super) fn note_changes(&mut self, target: &ResourceSet, older: &ResourceSet, now: Duration) {
        for change in target.changes_since(older, self.kind) {
            let name = match change {
                ResourceChange::Set(resource) => resource.name.clone(),
                ResourceChange::Removed(name) => name,
            };
            if self.is_subscribed(&name) {
                self.mark(name, now, false);
            }
        }
    }

    /// Settles the response and those before it: Envoy answers in order, and may skip answers while it is busy.
    pub(super) fn acknowledge(&mut self, nonce: u64) -> Vec<InFlight> {
        let settled = self.settle(nonce);
        // Nothing is on its way any more: what was told is what Envoy has, and need not be noted one by one.
        let is_all = !settled.is_empty() && self.in_flight.is_empty();
        for response in &settled {
            if is_all {
                self.accept_told(&response.changed, &response.removed);
            } else {
                self.accept(&response.changed, &response.removed);
            }
            if response.is_trial {
                self.refusals.finish_group();
            }
        }
        if !settled.is_empty() {
            self.refusals.on_accepted();
        }
        if is_all {
            self.acked = self.told.clone();
        }
        settled
    }

    /// Takes back what a refused response told, as far as Envoy did not apply it.
    pub(super) fn refuse(&mut self, nonce: u64, message: &str, now: Duration) -> Vec<Report> {
        let Some(at) = self.in_flight.iter().position(|response| response.nonce == nonce) else {
            return Vec::new();
        };
        let settled: Vec<InFlight> = self.in_flight.drain(..at).collect();
        let mut reports = Vec::new();
        for earlier in settled {
            self.accept(&earlier.changed, &earlier.removed);
            reports.push(Report::Acked {
                kind: self.kind,
                resources: earlier.changed,
                removed: earlier.removed,
            });
        }
        // Not before: while it was under way it was what Envoy was told last, and the earlier ones do not take its place.
        let Some(refused) = self.in_flight.pop_front() else {
            return reports;
        };
        let message: Arc<str> = shorten(self.kind, message).into();
        if refused.is_trial {
            self.refusals.finish_group();
        }
        if refused.changed.is_empty() {
            // A removal cannot be taken back or sent better; asking again would only repeat the refusal.
            self.accept(&[], &refused.removed);
            return reports;
        }
        let (blamed, proven) = match blame(self.kind, &message, &refused.changed) {
            Blame::Proven(names) => (names, true),
            Blame::Hinted(names) => (names, false),
        };
        // Envoy applies the good clusters and listeners of such a response, but does not note their versions. Sent once
        // more without the bad ones, they are acknowledged, and Envoy can tell them on its next stream.
        let is_rest_applied = proven && order::is_blame_complete(self.kind);
        for resource in &refused.changed {
            if proven && blamed.contains(&resource.name) {
                // Told something newer since, with nothing left to look at: nobody would ever forget the refusal.
                if self.take_back(resource) || self.dirty.contains_key(&resource.name) {
                    let said = said_of(self.kind, &message, &resource.name, &blamed);
                    self.refusals.refuse(resource, said, now);
                    if self.has_parked {
                        // Perhaps this is: what is gone is not refused any more.
                        self.mark(resource.name.clone(), now, false);
                    }
                }
                continue;
            }
            if is_rest_applied {
                self.accept(std::slice::from_ref(resource), &[]);
            } else {
                _ = self.take_back(resource);
            }
            self.mark(resource.name.clone(), now, true);
        }
        for name in &refused.removed {
            if self.told.contains_key(name) {
                continue;
            }
            if is_rest_applied {
                self.acked.remove(name);
            } else if let Some(old) = self.acked.get(name) {
                self.told.insert(name.clone(), old.clone());
                self.unheld.remove(name);
            }
            self.mark(name.clone(), now, true);
        }
        if !proven {
            self.refusals.suspect(&refused.changed, &blamed);
        }
        let is_of_node = |name| is_of_node(self.kind, &said_of(self.kind, &message, name, &blamed));
        if !(proven && blamed.iter().all(|name| is_of_node(name))) {
            self.refusals.on_refused(now);
        }
        reports.push(Report::Nacked {
            kind: self.kind,
            candidates: refused.changed,
            blamed,
            proven,
            message,
        });
        reports
    }

    pub(super) fn mark(&mut self, name: Arc<str>, now: Duration, forced: bool) {
        let dirty = self.dirty.entry(name).or_insert(Dirty { since: now, forced });
        dirty.forced |= forced;
    }

    /// Something by such a name is to be sent, or was and is not answered.
    pub(super) fn is_awaited(&self, target: &ResourceSet, is_meant: impl Fn(&str) -> bool) -> bool {
        let is_to_be_sent = |name: &&Arc<str>| {
            let told = self.told.get(*name).map(|told| &told.version);
            target.get(self.kind, name).is_some_and(|published| {
                told != Some(&published.version) && !self.refusals.is_refused(published)
            })
        };
        let unanswered = self
            .in_flight
            .iter()
            .flat_map(|response| response.changed.iter().map(|resource| &resource.name));
        let mut to_be_sent = self.dirty.keys().filter(|name| is_meant(name));
        to_be_sent.any(|name| is_to_be_sent(&name)) || unanswered.into_iter().any(|name| is_meant(name))
    }

    /// Keeps a name that Envoy was told to drop as asked for, unless only the wildcard covered it.
    pub(super) fn forget_told(&mut self, name: &Arc<str>) {
        self.told.remove(name);
        if !self.wildcard {
            self.unheld.insert(name.clone());
        }
    }

    /// Everything subscribed that is published.
    fn desired(&self, published: &Held) -> Held {
        if self.wildcard {
            return published.clone();
        }
        let names = self.told.keys().chain(&self.unheld);
        names
            .filter_map(|name| published.get_key_value(name))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    }

    fn resume(&mut self, published: &Held, versions: &HashMap<String, String>, now: Duration) {
        for (name, version) in versions {
            if !self.is_subscribed(name) {
                continue;
            }
            self.unheld.remove(name.as_str());
            let held = match published.get(name.as_str()) {
                Some(resource) if *resource.version == **version => {
                    self.dirty.remove(name.as_str());
                    resource.clone()
                }
                _ => {
                    let name: Arc<str> = name.as_str().into();
                    self.mark(name.clone(), now, false);
                    Arc::new(Resource::held_by_envoy(self.kind, name, version.clone()))
                }
            };
            self.told.insert(held.name.clone(), held.clone());
            self.acked.insert(held.name.clone(), held);
        }
    }

    fn settle(&mut self, nonce: u64) -> Vec<InFlight> {
        match self.in_flight.iter().position(|response| response.nonce == nonce) {
            Some(at) => self.in_flight.drain(..=at).collect(),
            None => Vec::new(),
        }
    }

    fn accept(&mut self, changed: &[Arc<Resource>], removed: &[Arc<str>]) {
        for resource in changed {
            // Envoy may have unsubscribed meanwhile.
            if self.is_subscribed(&resource.name) {
                self.acked.insert(resource.name.clone(), resource.clone());
            }
        }
        removed.iter().for_each(|name| _ = self.acked.remove(name));
        self.accept_told(changed, removed);
    }

    /// What an answer means for everything but `acked`.
    fn accept_told(&mut self, changed: &[Arc<Resource>], removed: &[Arc<str>]) {
        for resource in changed {
            if self.is_subscribed(&resource.name) {
                if self.refusals.is_refused(resource) {
                    self.refusals.forget(&resource.name);
                }
                self.confirm_told(&resource.name, Some(resource));
            }
        }
        for name in removed {
            self.confirm_told(name, None);
        }
    }

    /// What Envoy answered last is what it has, also when an earlier refusal took it back here meanwhile.
    fn confirm_told(&mut self, name: &Arc<str>, answered: Option<&Arc<Resource>>) {
        let told = self.told.get(name);
        let is_told = told.map(|told| &told.version) == answered.map(|resource| &resource.version);
        if is_told || self.in_flight.iter().any(|later| later.mentions(name)) {
            return;
        }
        match answered {
            Some(resource) => {
                self.unheld.remove(name);
                self.told.insert(name.clone(), resource.clone());
            }
            None => self.forget_told(name),
        }
    }

    /// Back to what Envoy acknowledged, unless (false) it was told something else since.
    fn take_back(&mut self, refused: &Resource) -> bool {
        let name = &refused.name;
        let told = self.told.get(name);
        let is_told = told.is_some_and(|told| told.version == refused.version);
        // An earlier refusal of the same version took it back, and what was acknowledged in between could not be noted: this is
        // the last answer, so that is what Envoy has.
        let is_answered = !self.in_flight.iter().any(|later| later.mentions(name));
        if is_told || is_answered {
            match self.acked.get(name) {
                Some(old) => _ = self.told.insert(name.clone(), old.clone()),
                None => self.forget_told(name),
            }
        }
        is_told
    }

    fn drop_name(&mut self, name: &str) {
        self.told.remove(name);
        self.acked.remove(name);
        self.unheld.remove(name);
        self.untold.remove(name);
        self.dirty.remove(name);
        self.wanted.remove(name);
        self.refusals.forget(name);
    }

    /// The name as this stream holds it already, to not hold it twice.
    fn intern(&self, name: &str) -> Arc<str> {
        self.told
            .get_key_value(name)
            .map(|(name, _)| name.clone())
            .unwrap_or_else(|| name.into())
    }
}

//! The protocol of one stream as plain data: inputs are requests, published sets and the time; outputs are [`Actions`].
//!
//! No IO and no clock, so that text scripts and property tests can play any conversation. `now` is the time since the
//! stream began and never goes back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::delivery::{Hold, Holds};
use super::exchange::{Actions, Asked, Report, Request, Variant};
use super::forms::Forms;
use super::gate::Gates;
use super::in_use::InUse;
use super::invented::Invented;
use super::keyless::{Keyless, Standing};
use super::limits::{Limits, Violation};
use super::order::{self, RECONNECT_SETTLE, REMOVAL_PATIENCE};
use super::refusal::Refusal;
use super::subscription::Subscription;
use crate::envoy::{Resource, ResourceKind, ResourceSet};

pub struct StreamState {
    variant: Variant,
    max_names: usize,
    max_name_bytes: usize,
    invented: Invented,
    subscriptions: [Subscription; 7],
    /// The newest published set. None: not complete yet, so nothing is answered.
    target: Option<ResourceSet>,
    gates: Gates,
    forms: Forms,
    keyless: Keyless,
    /// Clusters sent whose endpoints must follow, even unchanged: Envoy forgets them when a cluster changes and does
    /// not ask again (without this it waits 15 s).
    endpoints_due: BTreeSet<Arc<str>>,
    last_nonce: u64,
    removals_not_before: Duration,
}

impl StreamState {
    pub fn new(variant: Variant, limits: &Limits) -> Self {
        Self {
            variant,
            max_names: limits.names,
            max_name_bytes: limits.name_bytes,
            invented: Invented::new(limits),
            subscriptions: ResourceKind::ALL.map(|kind| Subscription::new(kind, variant)),
            target: None,
            gates: Gates::default(),
            forms: Forms::default(),
            keyless: Keyless::default(),
            endpoints_due: BTreeSet::new(),
            last_nonce: 0,
            removals_not_before: Duration::ZERO,
        }
    }

    pub fn on_request(&mut self, request: Request, now: Duration) -> Result<Actions, Violation> {
        let mut actions = Actions::default();
        self.note_reaction(&request, now);
        let is_current = self.on_answer(&request, &mut actions.reports, now);
        let kind = request.kind;
        let is_first = !self.subscriptions[kind as usize].opened;
        self.invented.note(&request.asked);
        match request.asked {
            Asked::Delta {
                subscribe,
                unsubscribe,
                initial,
            } => {
                let brought = initial.iter().flat_map(|(name, version)| [name, version]);
                self.check_lengths(subscribe.iter().chain(&unsubscribe).chain(brought))?;
                self.check_count(kind, initial.len())?;
                let subscription = &mut self.subscriptions[kind as usize];
                if is_first {
                    subscription.open_delta(&subscribe, initial);
                }
                for name in &unsubscribe {
                    subscription.forget_initial(name);
                    subscription.unsubscribe(name, now);
                }
                for name in &subscribe {
                    if !is_first {
                        subscription.forget_dropped(name);
                    }
                    subscription.subscribe(name, now);
                }
            }
            Asked::StateOfTheWorld { names, version } => {
                self.check_lengths(names.iter().chain([&version]))?;
                let subscription = &mut self.subscriptions[kind as usize];
                if is_first {
                    subscription.open_state_of_the_world(&names, version);
                    subscription.replace_names(&names, now);
                } else if is_current {
                    // A request that answers an older response lists older names; a newer one will follow.
                    subscription.replace_names(&names, now);
                }
            }
        }
        if is_first && self.subscriptions[kind as usize].resumed {
            self.removals_not_before = now + RECONNECT_SETTLE;
        }
        if kind == ResourceKind::Secret {
            self.doubt_withheld(now);
        }
        self.check_count(kind, self.subscriptions[kind as usize].name_count())?;
        self.invented.check(&self.subscriptions, self.target.as_ref())?;
        self.flush(&mut actions, now);
        Ok(actions)
    }

    pub fn on_set(&mut self, set: &ResourceSet, now: Duration) -> Actions {
        let mut actions = Actions::default();
        if let Some(older) = self.target.replace(set.clone()) {
            for subscription in &mut self.subscriptions {
                if subscription.opened && subscription.reconciled {
                    subscription.note_changes(set, &older, now);
                }
            }
            self.gate_new_clusters(set, now);
            let is_changed = |kind| set.changes_since(&older, kind).next().is_some();
            if !self.keyless.is_empty() && is_changed(ResourceKind::Secret) {
                self.doubt_withheld(now);
            }
        }
        self.flush(&mut actions, now);
        actions
    }

    pub fn on_deadline(&mut self, now: Duration) -> Actions {
        let mut actions = Actions::default();
        self.flush(&mut actions, now);
        actions
    }

    /// When to call `on_deadline` if nothing else happens before.
    pub fn deadline(&self, now: Duration) -> Option<Duration> {
        self.target.as_ref()?;
        let is_gate_awaited = self
            .subscriptions
            .iter()
            .any(|subscription| order::is_gated(subscription.kind) && !subscription.dirty.is_empty());
        let gates = self.gates.deadline().filter(|_| is_gate_awaited);
        let settle = Some(self.removals_not_before).filter(|_| {
            self.subscriptions
                .iter()
                .any(|subscription| !subscription.dirty.is_empty())
        });
        let own = self
            .subscriptions
            .iter()
            .filter_map(|subscription| subscription.deadline(now));
        let keyless = self.keyless.deadline(now);
        own.chain(gates)
            .chain(self.forms.deadline(now))
            .chain(settle)
            .chain(keyless)
            .filter(|at| *at > now)
            .min()
    }

    /// The published set that is worked towards.
    pub fn target(&self) -> Option<&ResourceSet> {
        self.target.as_ref()
    }

    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// Envoy brought something along from before this stream.
    pub(super) fn came_with_state(&self) -> bool {
        self.subscriptions.iter().any(|subscription| subscription.resumed)
    }

    pub fn is_subscribed(&self, kind: ResourceKind) -> bool {
        self.subscriptions[kind as usize].opened
    }

    /// What Envoy acknowledged. Shares its structure with the published sets.
    pub fn acked(&self) -> ResourceSet {
        let mut set = ResourceSet::default();
        self.put_acked(&mut set);
        set
    }

    /// Brings an earlier [`Self::acked`] up to date.
    pub(super) fn put_acked(&self, set: &mut ResourceSet) {
        for subscription in &self.subscriptions {
            set.follow_kind(subscription.kind, &subscription.acked);
        }
    }

    /// Resources of this kind that are sent and not acknowledged, or wait to be sent.
    pub fn pending(&self, kind: ResourceKind) -> usize {
        let subscription = &self.subscriptions[kind as usize];
        let in_flight: usize = subscription
            .in_flight
            .iter()
            .map(|response| response.changed.len() + response.removed.len())
            .sum();
        in_flight + subscription.dirty.len() - self.leftover(subscription) + subscription.wanted.len()
    }

    /// What is kept for connections from before: nobody waits for it to go.
    fn leftover(&self, subscription: &Subscription) -> usize {
        let kind = subscription.kind;
        let has_leftovers = !self.forms.is_at_rest() && !self.forms.is_opening();
        let Some(target) = self.target.as_ref().filter(|_| has_leftovers) else {
            return 0;
        };
        // Clusters, endpoints and secrets stay because what is kept needs them.
        let is_needed = matches!(
            kind,
            ResourceKind::Cluster | ResourceKind::Endpoint | ResourceKind::Secret
        );
        let is_left = |name: &&Arc<str>| {
            target.get(kind, name).is_none() && (is_needed || self.forms.holds_removal(kind, name, target))
        };
        subscription.dirty.keys().filter(is_left).count()
    }

    pub fn refused(&self, kind: ResourceKind) -> impl Iterator<Item = (&Arc<str>, &Refusal)> {
        self.subscriptions[kind as usize].refusals.all().iter()
    }

    pub fn wanted(&self, kind: ResourceKind) -> impl Iterator<Item = &Arc<str>> {
        self.subscriptions[kind as usize].wanted.keys()
    }

    /// Listeners that this Envoy is not given because it lacks the secrets beside, whose keys nobody here has.
    pub fn withheld(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<[Arc<str>]>)> {
        self.keyless.all()
    }

    /// An answer to what was sent before a cluster was may have been under way already, and says nothing of that cluster.
    fn note_reaction(&mut self, request: &Request, now: Duration) {
        let in_flight = &self.subscriptions[request.kind as usize].in_flight;
        let is_open = |nonce: &u64| in_flight.iter().any(|response| response.nonce == *nonce);
        self.gates.on_request(request.nonce.filter(is_open), now);
    }

    /// Books an acknowledgement or a refusal. False: it answers a response that is not the latest of its kind.
    fn on_answer(&mut self, request: &Request, reports: &mut Vec<Report>, now: Duration) -> bool {
        let subscription = &mut self.subscriptions[request.kind as usize];
        let Some(nonce) = request.nonce else { return true };
        let is_current = subscription.last_nonce == nonce;
        match &request.error {
            Some(message) => reports.extend(subscription.refuse(nonce, message, now)),
            None => {
                let settled = subscription.acknowledge(nonce);
                self.gates.on_acked(request.kind, &settled);
                let kind = request.kind;
                reports.extend(
                    settled
                        .into_iter()
                        .filter(|response| !response.is_empty())
                        .map(|response| Report::Acked {
                            kind,
                            resources: response.changed,
                            removed: response.removed,
                        }),
                );
            }
        }
        is_current
    }

    fn check_count(&self, kind: ResourceKind, names: usize) -> Result<(), Violation> {
        let limit = self.max_names;
        match names > limit {
            true => Err(Violation::TooManyNames { kind, limit }),
            false => Ok(()),
        }
    }

    fn check_lengths<'a>(&self, names: impl Iterator<Item = &'a String>) -> Result<(), Violation> {
        match names
            .map(String::len)
            .find(|length| *length > self.max_name_bytes)
        {
            Some(length) => Err(Violation::NameTooLong {
                length,
                limit: self.max_name_bytes,
            }),
            None => Ok(()),
        }
    }

    fn doubt_withheld(&mut self, now: Duration) {
        let listeners = &mut self.subscriptions[ResourceKind::Listener as usize];
        self.keyless.doubt(listeners, now);
    }

    fn gate_new_clusters(&mut self, target: &ResourceSet, now: Duration) {
        let clusters = &self.subscriptions[ResourceKind::Cluster as usize];
        for name in clusters.dirty.keys() {
            let published = target.get(ResourceKind::Cluster, name);
            if let Some(cluster) = published.filter(|_| !clusters.told.contains_key(name)) {
                self.gates.add(cluster, now);
            }
        }
    }

    fn flush(&mut self, actions: &mut Actions, now: Duration) {
        let Some(target) = self.target.clone() else { return };
        for kind in ResourceKind::ALL {
            let subscription = &mut self.subscriptions[kind as usize];
            if subscription.opened && !subscription.reconciled {
                subscription.reconcile(&target, now);
                if kind == ResourceKind::Cluster {
                    self.gate_new_clusters(&target, now);
                }
            }
        }
        if !self.gates.is_empty() {
            self.gates.review(
                &target,
                &self.subscriptions[ResourceKind::Cluster as usize].told,
                &self.subscriptions[ResourceKind::Secret as usize].acked,
                now,
            );
        }
        let said_by = self.removals_not_before;
        self.forms.review(
            &self.subscriptions,
            &target,
            &self.gates,
            &self.keyless,
            said_by,
            now,
        );
        if self.forms.take_ended() {
            for subscription in &mut self.subscriptions {
                subscription.unpark(target.of_kind(subscription.kind), now);
            }
        }
        let in_use = InUse::of(
            &self.subscriptions,
            &target,
            &self.forms,
            self.removals_not_before,
        );
        for kind in ResourceKind::ALL {
            if kind == ResourceKind::Endpoint {
                self.send_due_endpoints(now);
            }
            if kind == ResourceKind::Listener {
                let reports = &mut actions.reports;
                self.keyless
                    .review(&mut self.subscriptions, &target, said_by, now, reports);
            }
            let holds = StreamHolds {
                kind,
                gates: &self.gates,
                forms: &self.forms,
                keyless: &self.keyless,
                in_use: &in_use,
                target: &target,
                now,
            };
            let subscription = &mut self.subscriptions[kind as usize];
            let reports = &mut actions.reports;
            let Some(response) = subscription.deliver(&target, &holds, now, &mut self.last_nonce, reports)
            else {
                continue;
            };
            if kind == ResourceKind::Cluster
                && let Some(sent) = subscription.in_flight.back()
            {
                self.gates.on_sent(sent.fresh(), sent.nonce);
                self.endpoints_due
                    .extend(sent.fresh().iter().map(|cluster| cluster.name.clone()));
            }
            if kind == ResourceKind::Listener
                && let Some(sent) = subscription.in_flight.back()
            {
                self.forms.on_sent(sent.fresh(), &sent.removed, now);
            }
            actions.responses.push(response);
        }
    }

    fn send_due_endpoints(&mut self, now: Duration) {
        let endpoints = &mut self.subscriptions[ResourceKind::Endpoint as usize];
        if !endpoints.opened {
            return;
        }
        for name in std::mem::take(&mut self.endpoints_due) {
            if endpoints.is_subscribed(&name) {
                endpoints.mark(name, now, true);
            }
        }
    }
}

struct StreamHolds<'a> {
    kind: ResourceKind,
    gates: &'a Gates,
    forms: &'a Forms,
    keyless: &'a Keyless,
    in_use: &'a InUse,
    target: &'a ResourceSet,
    now: Duration,
}

impl Holds for StreamHolds<'_> {
    fn withholds(&self, resource: &Resource) -> bool {
        order::is_gated(self.kind) && (self.gates.withholds(resource) || self.forms.withholds(resource))
    }

    fn holds_removal(&self, name: &Arc<str>, since: Duration) -> Hold {
        if self.forms.is_drained(self.kind, name, self.target) {
            return Hold::Drained;
        }
        if self.forms.holds_removal(self.kind, name, self.target) {
            // The forms of listeners have their own clock.
            return Hold::Until(since + REMOVAL_PATIENCE);
        }
        self.in_use.holds_removal(self.kind, name, since, self.now)
    }

    fn standing(&self, resource: &Resource) -> Standing {
        match self.kind {
            ResourceKind::Listener => self.keyless.standing(&resource.name, self.now),
            _ => Standing::Usable,
        }
    }
}

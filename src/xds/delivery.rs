//! What of the dirty names goes out now, what waits, and what needs no sending.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::exchange::{Report, Response, Variant};
use super::gate::give_back_room;
use super::handover::Handover;
use super::keyless::Standing;
use super::order::{self, CLUSTER_OVERLAP_MAX};
use super::subscription::{Dirty, InFlight, Subscription};
use crate::envoy::{Resource, ResourceKind, ResourceSet};

/// What the rest of the stream says about one resource of this kind.
pub(super) trait Holds {
    /// It needs something new that is not in place yet.
    fn withholds(&self, resource: &Resource) -> bool;
    /// Something that Envoy still has uses it.
    fn holds_removal(&self, name: &Arc<str>, since: Duration) -> Hold;
    /// Whether this Envoy could do anything with it.
    fn standing(&self, resource: &Resource) -> Standing;
}

/// Whether something stays that is gone here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    No,
    /// It is looked at again then, at the latest.
    Until(Duration),
    /// For connections from before, as long as Envoy drains them.
    Drained,
}

enum Verdict {
    Send(Arc<Resource>),
    Remove,
    Park,
    /// Envoy has this version: nothing to send.
    UpToDate(Arc<Resource>),
    /// Looked at and left as it is, until it changes.
    Leave,
    /// To be looked at again.
    Wait,
}

impl Subscription {
    /// Builds the next response, if there is one, and books it as in flight.
    pub(super) fn deliver(
        &mut self,
        target: &ResourceSet,
        holds: &impl Holds,
        now: Duration,
        last_nonce: &mut u64,
        reports: &mut Vec<Report>,
    ) -> Option<Response> {
        if !self.opened || !self.may_send(now) {
            return None;
        }
        self.next_removal = None;
        for name in self.refusals.retries(now) {
            self.mark(name, now, false);
        }
        loop {
            let trial = self.refusals.next_group();
            let is_trial = trial.is_some();
            let names: Vec<(Arc<str>, Dirty)> = match trial {
                Some(group) => group
                    .iter()
                    .filter_map(|name| self.dirty.get_key_value(name))
                    .map(|(k, v)| (k.clone(), *v))
                    .collect(),
                None => self
                    .dirty
                    .iter()
                    .map(|(name, dirty)| (name.clone(), *dirty))
                    .collect(),
            };
            if self.waits_to_be_whole(target, holds, &names) {
                return None;
            }
            let (mut changed, removed) = self.take(target, holds, &names, now, reports);
            let is_needed = self.is_response_needed(&changed, &removed);
            if !is_needed && is_trial {
                // Its suspects changed meanwhile or wait for something: they are no longer tried apart.
                self.refusals.finish_group();
                continue;
            }
            if !is_needed {
                removed.iter().for_each(|name| _ = self.acked.remove(name));
                if self.in_flight.is_empty() {
                    self.acked = self.told.clone();
                }
                return None;
            }
            let fresh = changed.len();
            self.add_unanswered(&mut changed);
            *last_nonce += 1;
            let response = self.response(*last_nonce, &changed, &removed);
            self.answered = true;
            self.last_nonce = *last_nonce;
            self.in_flight.push_back(InFlight {
                nonce: *last_nonce,
                sent_at: now,
                changed,
                fresh,
                removed,
                is_trial,
            });
            return Some(response);
        }
    }

    /// When to look again although nothing happened. Gates have their own clock.
    pub(super) fn deadline(&self, now: Duration) -> Option<Duration> {
        let retry = self.refusals.next_retry();
        if self.dirty.is_empty() {
            // What is to be sent again waits for the back-off too.
            return retry
                .map(|at| at.max(self.refusals.not_before()))
                .filter(|at| *at > now);
        }
        let overlap = self
            .in_flight
            .back()
            .filter(|_| self.kind == ResourceKind::Cluster && self.in_flight.len() < CLUSTER_OVERLAP_MAX)
            .map(|response| response.sent_at + order::cluster_overlap(self.variant));
        let backed_off = Some(self.refusals.not_before());
        [overlap, self.next_removal, backed_off, retry]
            .into_iter()
            .flatten()
            .filter(|at| *at > now)
            .min()
    }

    fn may_send(&self, now: Duration) -> bool {
        if now < self.refusals.not_before() {
            return false;
        }
        let Some(last) = self.in_flight.back() else {
            return true;
        };
        self.kind == ResourceKind::Cluster
            && self.refusals.next_group().is_none()
            && now >= last.sent_at + order::cluster_overlap(self.variant)
            && self.in_flight.len() < CLUSTER_OVERLAP_MAX
    }

    /// A first state-of-the-world answer deletes what it lacks, so it must not lack what is only withheld: this Envoy may
    /// hold an older version from another stream. A first delta answer must not be empty only for that reason, or
    /// Envoy starts up with nothing.
    fn waits_to_be_whole(
        &self,
        target: &ResourceSet,
        holds: &impl Holds,
        names: &[(Arc<str>, Dirty)],
    ) -> bool {
        if self.answered || !self.wildcard || !order::is_gated(self.kind) || names.is_empty() {
            return false;
        }
        let is_withheld = |name: &Arc<str>| {
            target.get(self.kind, name).is_some_and(|resource| {
                holds.withholds(resource) || holds.standing(resource) == Standing::Awaited
            })
        };
        match self.variant {
            Variant::StateOfTheWorld => names.iter().any(|(name, _)| is_withheld(name)),
            Variant::Delta => names.iter().all(|(name, _)| is_withheld(name)),
        }
    }

    fn take(
        &mut self,
        target: &ResourceSet,
        holds: &impl Holds,
        names: &[(Arc<str>, Dirty)],
        now: Duration,
        reports: &mut Vec<Report>,
    ) -> (Vec<Arc<Resource>>, Vec<Arc<str>>) {
        let mut changed = Vec::new();
        let mut removals = Vec::new();
        let mut told = Vec::new();
        for (name, dirty) in names {
            match self.judge(name, *dirty, target, holds, now, reports) {
                Verdict::Wait => continue,
                Verdict::Leave => {}
                Verdict::Park => self.has_parked = true,
                Verdict::UpToDate(resource) => {
                    self.refusals.forget(name);
                    self.wanted.remove(name);
                    // Envoy has it, but perhaps only told: acknowledged is what an answer says.
                    told.push(resource);
                }
                Verdict::Send(resource) => {
                    self.wanted.remove(name);
                    changed.push(resource);
                }
                Verdict::Remove => {
                    removals.push(name.clone());
                    continue;
                }
            }
            self.dirty.remove(name);
        }
        // Clusters go in a response of their own, so that one refused for a bad cluster removes nothing: Envoy would
        // have done it, and would not say so on its next stream.
        if self.kind == ResourceKind::Cluster && !changed.is_empty() {
            removals.clear();
        }
        let mut asides = Vec::new();
        if self.kind == ResourceKind::Listener {
            (changed, asides) = self.hand_ports_over(changed, &removals, names);
        }
        for resource in &changed {
            self.unheld.remove(&resource.name);
            told.push(resource.clone());
        }
        for name in &removals {
            self.dirty.remove(name);
        }
        removals.append(&mut asides);
        for name in &removals {
            self.refusals.forget(name);
            if self.told.contains_key(name) {
                self.forget_told(name);
            }
        }
        give_back_room(&mut self.dirty);
        if self.unheld.is_empty() {
            self.unheld = BTreeSet::new();
        }
        self.tell(target, told);
        (changed, removals)
    }

    /// What of it can be told now, in its order, and who goes to come again. Those and who waits are looked at again.
    fn hand_ports_over(
        &mut self,
        changed: Vec<Arc<Resource>>,
        removals: &[Arc<str>],
        names: &[(Arc<str>, Dirty)],
    ) -> (Vec<Arc<Resource>>, Vec<Arc<str>>) {
        let is_removed = |name: &Arc<str>| removals.contains(name);
        let plan = Handover::of(changed, &self.told, is_removed, |name| {
            self.dirty.contains_key(name)
        });
        let is_kept = |name: &Arc<str>| {
            plan.asides.contains(name) || plan.waiting.iter().any(|waiting| waiting.name == *name)
        };
        let kept = names.iter().filter(|(name, _)| is_kept(name));
        self.dirty
            .extend(kept.map(|(name, dirty)| (name.clone(), *dirty)));
        (plan.changed, plan.asides)
    }

    /// Notes what is told now. Once that is everything, `told` becomes the published map itself: nothing of its own left in
    /// memory, and the next comparison skips what is shared. An entry of its own, where many streams share a node, would
    /// first copy the node.
    fn tell(&mut self, target: &ResourceSet, resources: Vec<Arc<Resource>>) {
        let published = target.of_kind(self.kind);
        let is_behind =
            self.has_parked || !self.dirty.is_empty() || !self.refusals.is_empty() || !self.wanted.is_empty();
        let is_new = |resource: &&Arc<Resource>| !self.told.contains_key(&resource.name);
        let count = || self.told.len() + resources.iter().filter(is_new).count();
        if !is_behind && count() == published.len() {
            let is_newest = |(name, told): (&Arc<str>, &Arc<Resource>)| {
                let is_told_now = resources.iter().any(|resource| resource.name == *name);
                is_told_now
                    || published
                        .get(name)
                        .is_some_and(|resource| resource.version == told.version)
            };
            debug_assert!(
                self.told.iter().all(is_newest),
                "told something else, and nothing dirty"
            );
            self.told = published.clone();
            return;
        }
        for resource in resources {
            self.told.insert(resource.name.clone(), resource);
        }
    }

    fn judge(
        &mut self,
        name: &Arc<str>,
        dirty: Dirty,
        target: &ResourceSet,
        holds: &impl Holds,
        now: Duration,
        reports: &mut Vec<Report>,
    ) -> Verdict {
        let told = self.told.get(name);
        let published = target.get(self.kind, name);
        let standing = published.map_or(Standing::Usable, |resource| holds.standing(resource));
        if standing == Standing::Awaited {
            return Verdict::Wait;
        }
        let Some(resource) = published.filter(|_| standing == Standing::Usable) else {
            self.wanted.remove(name);
            if told.is_some() {
                match holds.holds_removal(name, dirty.since) {
                    Hold::No => return Verdict::Remove,
                    Hold::Drained if published.is_none() && !dirty.forced => {
                        self.refusals.forget(name);
                        return Verdict::Park;
                    }
                    Hold::Drained => {}
                    Hold::Until(until) => {
                        // What is held for longer has been looked at by then.
                        let ahead = [until].into_iter().filter(|until| *until > now);
                        self.next_removal = self.next_removal.into_iter().chain(ahead).min();
                    }
                }
                if published.is_none() {
                    self.refusals.forget(name);
                }
                return Verdict::Wait;
            }
            self.refusals.forget(name);
            // Asked for and known to be absent: said at once, or Envoy waits for its time-out.
            return if dirty.forced {
                Verdict::Remove
            } else {
                Verdict::Leave
            };
        };
        if !dirty.forced && told.is_some_and(|told| told.version == resource.version) {
            return Verdict::UpToDate(resource.clone());
        }
        if self.refusals.is_retried(resource, now) {
            // It counts as refused until Envoy takes it.
            return Verdict::Send(resource.clone());
        }
        if self.refusals.is_refused(resource) {
            // What asks for an answer gets the last good version; the refused one is never sent again.
            let last_good = told.filter(|told| dirty.forced && !told.is_held_by_envoy());
            return last_good.map_or(Verdict::Leave, |told| Verdict::Send(told.clone()));
        }
        if resource.is_held_by_envoy() {
            let is_news = self
                .wanted
                .insert(name.clone(), resource.version.clone())
                .as_ref()
                != Some(&resource.version);
            if is_news || dirty.forced {
                reports.push(Report::Wanted {
                    kind: self.kind,
                    name: name.clone(),
                    lacks: self.lacks(name, target),
                });
            }
            return Verdict::Leave;
        }
        if holds.withholds(resource) {
            return Verdict::Wait;
        }
        self.refusals.forget(name);
        Verdict::Send(resource.clone())
    }

    /// A response that carries the whole state carries what is still unanswered too, and may be refused for it.
    fn add_unanswered(&self, changed: &mut Vec<Arc<Resource>>) {
        if self.variant == Variant::Delta {
            return;
        }
        // Each of them once: the next response takes over what this one takes over.
        let mut names: HashSet<Arc<str>> = changed.iter().map(|resource| resource.name.clone()).collect();
        let unanswered: Vec<Arc<Resource>> = self
            .in_flight
            .iter()
            .flat_map(|response| &response.changed)
            .filter(|resource| {
                self.told
                    .get(&resource.name)
                    .is_some_and(|told| told.version == resource.version)
            })
            .filter(|resource| names.insert(resource.name.clone()))
            .cloned()
            .collect();
        changed.extend(unanswered);
    }

    fn is_response_needed(&self, changed: &[Arc<Resource>], removed: &[Arc<str>]) -> bool {
        // A wildcard is answered even with nothing, or Envoy never finishes starting.
        let is_first = self.wildcard && !self.answered;
        match self.variant {
            Variant::StateOfTheWorld if !order::is_wildcard(self.kind) => !changed.is_empty(),
            _ => is_first || !changed.is_empty() || !removed.is_empty(),
        }
    }

    fn response(&self, nonce: u64, changed: &[Arc<Resource>], removed: &[Arc<str>]) -> Response {
        let (resources, removed, version) = match self.variant {
            Variant::Delta => (changed.to_vec(), removed.to_vec(), String::new()),
            Variant::StateOfTheWorld => {
                // Clusters, listeners and scopes: what is missing is deleted. Secrets: an update without the secret
                // that a watch waits for can count as an error. Endpoints and routes: missing means unchanged.
                let is_whole = order::is_wildcard(self.kind) || self.kind == ResourceKind::Secret;
                let mut resources: Vec<Arc<Resource>> = if is_whole {
                    self.told
                        .values()
                        .filter(|resource| !resource.is_held_by_envoy())
                        .cloned()
                        .collect()
                } else {
                    changed.to_vec()
                };
                // Who leaves a port comes before who takes it.
                if self.kind == ResourceKind::Listener && !changed.is_sorted_by_key(|resource| &resource.name)
                {
                    let places = changed.iter().enumerate();
                    let places: HashMap<&str, usize> =
                        places.map(|(place, listener)| (&*listener.name, place)).collect();
                    resources.sort_by_key(|listener| places.get(&*listener.name));
                }
                (resources, Vec::new(), super::wire::whole_version(&self.told))
            }
        };
        Response {
            kind: self.kind,
            nonce,
            version,
            resources,
            removed,
        }
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;

    use super::super::service::DiscoveryMessage as _;
    use super::super::{Limits, StreamState};
    use super::*;

    /// Many clusters, one of them changed in each version.
    fn clusters(version: u8) -> ResourceSet {
        let mut set = ResourceSet::default();
        for number in 0..50u8 {
            let changed = number == version % 50;
            let bytes = [8, if changed { version } else { 0 }];
            let name: Arc<str> = format!("c{number}").into();
            set.insert(Arc::new(Resource::new(ResourceKind::Cluster, name, &bytes)));
        }
        set
    }

    #[test]
    fn what_an_envoy_has_is_the_published_map_itself_once_it_has_everything() {
        let mut state = StreamState::new(Variant::StateOfTheWorld, &Limits::default());
        let mut set = clusters(1);
        let first = DiscoveryRequest::default().into_request(ResourceKind::Cluster);
        let mut actions = state.on_request(first, Duration::ZERO).unwrap();
        for version in 1..=3 {
            let bytes = [8, version];
            let changed = Resource::new(ResourceKind::Cluster, "c1".into(), &bytes);
            set.insert(Arc::new(changed));
            actions
                .responses
                .extend(state.on_set(&set, Duration::ZERO).responses);
            let response = actions.responses.pop().unwrap();
            assert!(!state.acked().shares_all(&set), "not answered yet");
            let answer = DiscoveryRequest {
                response_nonce: response.nonce.to_string(),
                version_info: response.version,
                ..DiscoveryRequest::default()
            };
            let answer = answer.into_request(ResourceKind::Cluster);
            assert!(state.on_request(answer, Duration::ZERO).is_ok());
            assert!(state.acked().shares_all(&set), "version {version}");
        }
    }

    #[test]
    fn an_envoy_that_never_answers_is_owed_each_cluster_once() {
        let mut state = StreamState::new(Variant::StateOfTheWorld, &Limits::default());
        let request = DiscoveryRequest::default().into_request(ResourceKind::Cluster);
        assert!(state.on_request(request, Duration::ZERO).is_ok());
        let mut responses = 0;
        for step in 1..=40u8 {
            let now = Duration::from_millis(500) * u32::from(step);
            for actions in [state.on_set(&clusters(step), now), state.on_deadline(now)] {
                responses += actions.responses.len();
                assert!(
                    actions
                        .responses
                        .iter()
                        .all(|response| response.resources.len() <= 50)
                );
            }
            // A later answer settles what an earlier response sent, so each holds all of it: once.
            let owed = state.pending(ResourceKind::Cluster);
            assert!(owed <= 50 * (responses + 1), "{owed} after {step} changes");
        }
        assert!(responses > 20, "{responses} responses");
    }
}

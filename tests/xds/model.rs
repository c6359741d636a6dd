//! Random conversations against a model of Envoy: whatever happens in between, it ends with exactly the published set,
//! never refers to a cluster that it does not have, and always gets endpoints after a changed cluster.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use portreeve::envoy::{Resource, ResourceKind, ResourceRef, ResourceSet};
use portreeve::xds::{Actions, Asked, Limits, Report, Request, Response, StreamState, Variant};
use proptest::prelude::*;

mod found;
mod worlds;

use worlds::*;

/// Versions from here on are refused by the model.
const BAD: u8 = 3;

proptest! {
    #![proptest_config(crate::harness::many_cases())]

    #[test]
    fn delta_ends_with_the_published_set(steps in steps(BAD, 200)) {
        play(Variant::Delta, &steps, Checks { references: true, refusals: false })?;
    }

    #[test]
    fn state_of_the_world_ends_with_the_published_set(steps in steps(BAD, 200)) {
        play(Variant::StateOfTheWorld, &steps, Checks { references: false, refusals: false })?;
    }

    #[test]
    fn refused_resources_do_not_keep_the_others_away(steps in steps(BAD + 1, 3000)) {
        play(Variant::Delta, &steps, Checks { references: false, refusals: true })?;
    }

    #[test]
    fn refused_resources_do_not_keep_the_others_away_in_state_of_the_world(steps in steps(BAD + 1, 3000)) {
        play(Variant::StateOfTheWorld, &steps, Checks { references: false, refusals: true })?;
    }
}

struct Checks {
    /// A route never refers to a cluster that Envoy does not have. Not for state of the world: after a reconnect nobody
    /// knows what Envoy has.
    references: bool,
    refusals: bool,
}

fn play(variant: Variant, steps: &[Step], checks: Checks) -> Result<(), TestCaseError> {
    let mut set = set_of(&World::default());
    let mut envoy = Envoy::new(variant, checks.refusals);
    envoy.connect(None)?;
    let mut is_published = false;
    for step in steps {
        match step {
            Step::Publish(world) => {
                set = update(&set, &set_of(world));
                is_published = true;
                // Gone (or good) and back is a change: it may be tried again, the reason may lie outside of us.
                envoy.proven.retain(|(kind, name, version)| {
                    set.get(*kind, name)
                        .is_some_and(|resource| resource.version == *version)
                });
                envoy.published = set.clone();
                let actions = envoy.server.on_set(&set, envoy.now);
                envoy.receive(actions)?;
            }
            Step::Handle(count) => {
                for _ in 0..*count {
                    envoy.handle_next()?;
                    if checks.references {
                        envoy.check_references()?;
                    }
                }
            }
            Step::Wait(milliseconds) => envoy.wait(Duration::from_millis((*milliseconds).into()))?,
            Step::Reconnect => envoy.connect(is_published.then_some(&set))?,
            Step::Secrets(wanted) => envoy.want_secrets(wanted)?,
        }
        envoy.now += Duration::from_millis(1);
    }
    let actions = envoy.server.on_set(&set, envoy.now);
    envoy.receive(actions)?;
    envoy.settle(checks.references)?;
    envoy.check_final(&set)
}

/// Envoy as far as the protocol goes: it keeps its resources over reconnects, asks for the endpoints of each cluster it
/// gets, and forgets them when the cluster changes.
struct Envoy {
    variant: Variant,
    server: StreamState,
    now: Duration,
    inbox: VecDeque<Response>,
    held: BTreeMap<(ResourceKind, Arc<str>), Arc<Resource>>,
    /// What it would bring along: not updated by a refused response.
    versions: HashMap<ResourceKind, BTreeMap<String, String>>,
    whole_versions: HashMap<ResourceKind, String>,
    nonces: HashMap<ResourceKind, u64>,
    endpoints: BTreeSet<String>,
    endpoints_due: BTreeSet<Arc<str>>,
    secrets: BTreeSet<String>,
    refuses: bool,
    published: ResourceSet,
    proven: BTreeSet<(ResourceKind, Arc<str>, Arc<str>)>,
}

const KINDS: [ResourceKind; 5] = [
    ResourceKind::Cluster,
    ResourceKind::Endpoint,
    ResourceKind::Secret,
    ResourceKind::Listener,
    ResourceKind::ScopedRoute,
];

impl Envoy {
    fn new(variant: Variant, refuses: bool) -> Self {
        Self {
            variant,
            server: StreamState::new(variant, &Limits::default()),
            now: Duration::ZERO,
            inbox: VecDeque::new(),
            held: BTreeMap::new(),
            versions: HashMap::new(),
            whole_versions: HashMap::new(),
            nonces: HashMap::new(),
            endpoints: BTreeSet::new(),
            endpoints_due: BTreeSet::new(),
            secrets: BTreeSet::new(),
            refuses,
            published: ResourceSet::default(),
            proven: BTreeSet::new(),
        }
    }

    fn connect(&mut self, published: Option<&ResourceSet>) -> Result<(), TestCaseError> {
        self.server = StreamState::new(self.variant, &Limits::default());
        self.now = Duration::ZERO;
        self.inbox.clear();
        self.nonces.clear();
        self.proven.clear();
        // A stream that breaks between a cluster and the endpoints that should follow: Envoy uses the ones it remembers,
        // after its time-out.
        self.endpoints_due.clear();
        // The known weakness of state of the world: its version tells what was sent last, not that names dropped and
        // asked for again since were answered. A stream that breaks in between is left out here.
        for kind in [ResourceKind::Endpoint, ResourceKind::Secret] {
            if self
                .names(kind)
                .iter()
                .any(|name| !self.held.contains_key(&(kind, name.as_str().into())))
            {
                self.whole_versions.remove(&kind);
            }
        }
        // Envoy does not note the versions of what it applied of a refused response. It is told again at once; a stream
        // that breaks before that, while the set goes back to the version noted, is left out here.
        for ((kind, name), resource) in self
            .held
            .iter()
            .filter(|((kind, _), _)| *kind == ResourceKind::Cluster)
        {
            let noted = self.versions.entry(*kind).or_default();
            noted
                .entry(name.to_string())
                .and_modify(|version| *version = resource.version.to_string());
        }
        if let Some(set) = published {
            let actions = self.server.on_set(set, self.now);
            self.receive(actions)?;
        }
        for kind in KINDS {
            let names = self.names(kind);
            // Envoy asks for endpoints and secrets only once it needs some, and then on every stream.
            let is_new = !self.versions.contains_key(&kind);
            if matches!(kind, ResourceKind::Endpoint | ResourceKind::Secret) && names.is_empty() && is_new {
                continue;
            }
            let asked = match self.variant {
                Variant::Delta => Asked::Delta {
                    subscribe: names,
                    unsubscribe: Vec::new(),
                    initial: self
                        .versions
                        .get(&kind)
                        .cloned()
                        .unwrap_or_default()
                        .into_iter()
                        .collect(),
                },
                Variant::StateOfTheWorld => Asked::StateOfTheWorld {
                    names,
                    version: self.whole_versions.get(&kind).cloned().unwrap_or_default(),
                },
            };
            self.request(kind, None, None, asked)?;
        }
        Ok(())
    }

    fn names(&self, kind: ResourceKind) -> Vec<String> {
        match kind {
            ResourceKind::Endpoint => self.endpoints.iter().cloned().collect(),
            ResourceKind::Secret => self.secrets.iter().cloned().collect(),
            _ => Vec::new(),
        }
    }

    fn request(
        &mut self,
        kind: ResourceKind,
        nonce: Option<u64>,
        error: Option<String>,
        asked: Asked,
    ) -> Result<(), TestCaseError> {
        let actions = self.server.on_request(
            Request {
                kind,
                nonce,
                error,
                asked,
            },
            self.now,
        );
        self.receive(actions.map_err(|violation| TestCaseError::fail(violation.to_string()))?)
    }

    fn receive(&mut self, actions: Actions) -> Result<(), TestCaseError> {
        for report in actions.reports {
            if let Report::Nacked {
                kind,
                candidates,
                blamed,
                proven: true,
                ..
            } = report
            {
                for resource in candidates
                    .iter()
                    .filter(|resource| blamed.contains(&resource.name))
                {
                    prop_assert!(is_bad(resource), "{resource:?} was blamed and is good");
                    if self
                        .published
                        .get(kind, &resource.name)
                        .is_none_or(|now| now.version != resource.version)
                    {
                        continue;
                    }
                    self.proven
                        .insert((kind, resource.name.clone(), resource.version.clone()));
                }
            }
        }
        for response in actions.responses {
            let waiting = self
                .inbox
                .iter()
                .filter(|waiting| waiting.kind == response.kind)
                .count();
            prop_assert!(
                waiting == 0 || response.kind == ResourceKind::Cluster,
                "two responses of a kind open"
            );
            for resource in &response.resources {
                let key = (response.kind, resource.name.clone(), resource.version.clone());
                prop_assert!(
                    !self.proven.contains(&key),
                    "{resource:?} was refused and is sent again"
                );
            }
            self.inbox.push_back(response);
        }
        Ok(())
    }

    fn handle_next(&mut self) -> Result<(), TestCaseError> {
        let Some(response) = self.inbox.pop_front() else {
            return Ok(());
        };
        let kind = response.kind;
        self.nonces.insert(kind, response.nonce);
        let bad: Vec<&Arc<Resource>> = response
            .resources
            .iter()
            .filter(|resource| self.refuses && is_bad(resource))
            .collect();
        let error = match (&bad[..], kind) {
            ([], _) => None,
            // Clusters of an even version are named and the others applied, as Envoy does; else nothing is said.
            (bad, ResourceKind::Cluster) if response.nonce.is_multiple_of(2) => {
                let listed: Vec<String> = bad
                    .iter()
                    .map(|resource| format!("{}: bad", resource.name))
                    .collect();
                Some(format!("Error adding/updating cluster(s) {}", listed.join(", ")))
            }
            _ => Some("something is wrong".to_owned()),
        };
        let is_applied_in_part = error
            .as_ref()
            .is_some_and(|error| error.starts_with("Error adding"));
        let mut asks = Vec::new();
        if error.is_none() || is_applied_in_part {
            let good: Vec<Arc<Resource>> = response
                .resources
                .iter()
                .filter(|resource| !self.refuses || !is_bad(resource))
                .cloned()
                .collect();
            asks = self.apply(&response, &good);
        }
        if error.is_none() {
            self.whole_versions.insert(kind, response.version.clone());
            let versions = self.versions.entry(kind).or_default();
            for resource in &response.resources {
                if !self.held.contains_key(&(kind, resource.name.clone())) {
                    continue;
                }
                versions.insert(resource.name.to_string(), resource.version.to_string());
            }
            for name in &response.removed {
                versions.remove(&**name);
            }
        }
        let asked = match self.variant {
            Variant::Delta => Asked::Delta {
                subscribe: Vec::new(),
                unsubscribe: Vec::new(),
                initial: HashMap::new(),
            },
            Variant::StateOfTheWorld => Asked::StateOfTheWorld {
                names: self.names(kind),
                version: self.whole_versions.get(&kind).cloned().unwrap_or_default(),
            },
        };
        self.request(kind, Some(response.nonce), error, asked)?;
        self.ask_for_endpoints(asks)
    }

    /// Returns the clusters whose endpoints are new to ask for (true) or not needed any more (false).
    fn apply(&mut self, response: &Response, good: &[Arc<Resource>]) -> Vec<(String, bool)> {
        let kind = response.kind;
        let mut removed: Vec<Arc<str>> = response.removed.clone();
        let is_whole = self.variant == Variant::StateOfTheWorld
            && matches!(
                kind,
                ResourceKind::Cluster | ResourceKind::Listener | ResourceKind::ScopedRoute
            );
        if is_whole {
            let kept: BTreeSet<&Arc<str>> =
                response.resources.iter().map(|resource| &resource.name).collect();
            let held = self
                .held
                .keys()
                .filter(|(other, name)| *other == kind && !kept.contains(name));
            removed.extend(held.map(|(_, name)| name.clone()));
        }
        let mut asks = Vec::new();
        for name in removed {
            self.held.remove(&(kind, name.clone()));
            if kind == ResourceKind::Cluster && self.endpoints.contains(&*name) {
                self.endpoints_due.remove(&name);
                asks.push((name.to_string(), false));
            }
            if kind == ResourceKind::Endpoint {
                self.endpoints_due.remove(&name);
            }
        }
        for resource in good {
            let is_dropped = match kind {
                ResourceKind::Endpoint => !self.endpoints.contains(&*resource.name),
                ResourceKind::Secret => !self.secrets.contains(&*resource.name),
                _ => false,
            };
            if is_dropped {
                continue;
            }
            let old = self.held.insert((kind, resource.name.clone()), resource.clone());
            let is_changed = old.as_ref().is_none_or(|old| old.version != resource.version);
            if kind == ResourceKind::Cluster && is_changed {
                self.endpoints_due.insert(resource.name.clone());
                if !self.endpoints.contains(&*resource.name) {
                    asks.push((resource.name.to_string(), true));
                }
            }
            if kind == ResourceKind::Endpoint {
                self.endpoints_due.remove(&resource.name);
            }
        }
        asks
    }

    fn ask_for_endpoints(&mut self, asks: Vec<(String, bool)>) -> Result<(), TestCaseError> {
        let kind = ResourceKind::Endpoint;
        let (mut subscribe, mut unsubscribe) = (Vec::new(), Vec::new());
        for (name, is_new) in asks {
            if is_new {
                self.endpoints.insert(name.clone());
                subscribe.push(name);
            } else {
                self.endpoints.remove(&name);
                self.held.remove(&(kind, name.as_str().into()));
                self.versions.entry(kind).or_default().remove(&name);
                unsubscribe.push(name);
            }
        }
        if subscribe.is_empty() && unsubscribe.is_empty() {
            Ok(())
        } else {
            self.change_names(kind, subscribe, unsubscribe)
        }
    }

    fn change_names(
        &mut self,
        kind: ResourceKind,
        subscribe: Vec<String>,
        unsubscribe: Vec<String>,
    ) -> Result<(), TestCaseError> {
        let asked = match self.variant {
            Variant::Delta => Asked::Delta {
                subscribe,
                unsubscribe,
                initial: HashMap::new(),
            },
            Variant::StateOfTheWorld => Asked::StateOfTheWorld {
                names: self.names(kind),
                version: self.whole_versions.get(&kind).cloned().unwrap_or_default(),
            },
        };
        let nonce = match self.variant {
            Variant::Delta => None,
            Variant::StateOfTheWorld => self.nonces.get(&kind).copied(),
        };
        self.request(kind, nonce, None, asked)
    }

    fn want_secrets(&mut self, wanted: &BTreeSet<u8>) -> Result<(), TestCaseError> {
        let wanted: BTreeSet<String> = wanted.iter().map(|number| format!("s{number}")).collect();
        let subscribe: Vec<String> = wanted.difference(&self.secrets).cloned().collect();
        let unsubscribe: Vec<String> = self.secrets.difference(&wanted).cloned().collect();
        for name in &unsubscribe {
            self.held.remove(&(ResourceKind::Secret, name.as_str().into()));
            self.versions
                .entry(ResourceKind::Secret)
                .or_default()
                .remove(name);
        }
        self.secrets = wanted;
        if subscribe.is_empty() && unsubscribe.is_empty() {
            return Ok(());
        }
        self.change_names(ResourceKind::Secret, subscribe, unsubscribe)
    }

    fn wait(&mut self, length: Duration) -> Result<(), TestCaseError> {
        let end = self.now + length;
        while let Some(at) = self.server.deadline(self.now).filter(|at| *at <= end) {
            prop_assert!(at > self.now, "a deadline in the past would spin");
            self.now = at;
            let actions = self.server.on_deadline(at);
            self.receive(actions)?;
        }
        self.now = end;
        Ok(())
    }

    fn settle(&mut self, check_references: bool) -> Result<(), TestCaseError> {
        for _ in 0..10_000 {
            if !self.inbox.is_empty() {
                self.handle_next()?;
                if check_references {
                    self.check_references()?;
                }
            } else if let Some(at) = self.server.deadline(self.now) {
                prop_assert!(at > self.now, "a deadline in the past would spin");
                self.now = at;
                let actions = self.server.on_deadline(at);
                self.receive(actions)?;
            } else {
                return Ok(());
            }
        }
        Err(TestCaseError::fail("never comes to rest"))
    }

    fn check_references(&self) -> Result<(), TestCaseError> {
        for resource in self.held.values() {
            for need in resource.needs.iter() {
                prop_assert!(
                    self.held.contains_key(&(need.kind, need.name.clone())),
                    "{resource:?} refers to {:?}, which Envoy does not have",
                    need.name
                );
            }
        }
        Ok(())
    }

    fn check_final(&self, set: &ResourceSet) -> Result<(), TestCaseError> {
        for kind in KINDS {
            for resource in set.of_kind(kind).values() {
                let is_asked = match kind {
                    ResourceKind::Endpoint => self.endpoints.contains(&*resource.name),
                    ResourceKind::Secret => self.secrets.contains(&*resource.name),
                    _ => true,
                };
                let held = self
                    .held
                    .get(&(kind, resource.name.clone()))
                    .map(|held| held.version.clone());
                if self.refuses && is_bad(resource) {
                    prop_assert_ne!(held.as_ref(), Some(&resource.version));
                } else if is_asked {
                    prop_assert_eq!(held.as_ref(), Some(&resource.version), "{:?}", resource);
                }
            }
            // State of the world has no word for "gone" of kinds asked for by name.
            let can_linger = self.variant == Variant::StateOfTheWorld
                && matches!(kind, ResourceKind::Endpoint | ResourceKind::Secret);
            // A cluster that an old route needs stays while the new version of that route is refused.
            let can_linger = can_linger || self.refuses;
            for (_, name) in self
                .held
                .keys()
                .filter(|(other, _)| *other == kind && !can_linger)
            {
                prop_assert!(
                    set.get(kind, name).is_some(),
                    "{kind:?} {name} is gone and was not removed"
                );
            }
        }
        // What Envoy applied of a refused response is not known to have been applied.
        for name in self.endpoints_due.iter().filter(|_| !self.refuses) {
            prop_assert!(
                set.get(ResourceKind::Endpoint, name).is_none(),
                "cluster {name} changed and its endpoints did not follow"
            );
        }
        let acked = self.server.acked();
        for kind in KINDS {
            for (name, refusal) in self.server.refused(kind) {
                let published = set.get(kind, name).map(|resource| &resource.version);
                prop_assert_eq!(
                    published,
                    Some(&refusal.version),
                    "a refusal outlives {:?} {}",
                    kind,
                    name
                );
            }
            for resource in set.of_kind(kind).values().filter(|_| !self.refuses) {
                if self.held.contains_key(&(kind, resource.name.clone())) {
                    let noted = acked.get(kind, &resource.name).map(|noted| &noted.version);
                    prop_assert_eq!(noted, Some(&resource.version), "not acknowledged: {:?}", resource);
                }
            }
            // A version that Envoy brought along is what it says; what it applied of a refused response it does not say.
            for resource in acked
                .of_kind(kind)
                .values()
                .filter(|resource| !resource.is_held_by_envoy())
            {
                let held = self.held.get(&(kind, resource.name.clone()));
                let held = held.map(|held| held.version.clone());
                prop_assert_eq!(
                    held,
                    Some(resource.version.clone()),
                    "acknowledged: {:?}",
                    resource
                );
            }
        }
        Ok(())
    }
}

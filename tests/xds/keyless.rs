//! Random conversations about keys that nobody here has any more: whatever happens, an Envoy ends with the listeners that it
//! can serve and without those that it cannot, and is never told to drop one while it has a key for it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use portreeve::envoy::ResourceKind::{Listener, Secret};
use portreeve::envoy::{Resource, ResourceKind, ResourceSet};
use portreeve::xds::{Actions, Asked, Limits, Request, Response, StreamState, Variant};
use proptest::prelude::*;

/// Secrets: version, and whether only an Envoy can have it. Listeners: version, and the secrets of which each needs one.
#[derive(Clone, Debug, Default)]
struct World {
    secrets: BTreeMap<u8, (u8, bool)>,
    listeners: BTreeMap<u8, (u8, BTreeSet<u8>)>,
}

#[derive(Clone, Debug)]
enum Step {
    Publish(World),
    Handle(u8),
    Wait(u16),
    /// The stream breaks; Envoy comes back with everything, and names its secrets this much later than its listeners.
    Reconnect(u16),
    /// Envoy starts anew, with nothing.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let secrets = proptest::collection::btree_map(0..3u8, (0..3u8, any::<bool>()), 0..4);
    let needs = proptest::collection::btree_set(0..3u8, 0..3);
    let listeners = proptest::collection::btree_map(0..3u8, (0..2u8, needs), 0..4);
    let worlds = (secrets, listeners).prop_map(|(secrets, mut listeners)| {
        // As the translator makes them: no listener names a secret that is not published.
        for (_, needs) in listeners.values_mut() {
            needs.retain(|secret| secrets.contains_key(secret));
        }
        World { secrets, listeners }
    });
    let step = prop_oneof![
        4 => worlds.prop_map(Step::Publish),
        8 => (1..5u8).prop_map(Step::Handle),
        2 => (1..4000u16).prop_map(Step::Wait),
        // Within the second and the two more that it is waited for.
        2 => (0..2900u16).prop_map(Step::Reconnect),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..40)
}

fn set_of(world: &World) -> ResourceSet {
    let mut set = ResourceSet::default();
    for (name, (version, is_held)) in &world.secrets {
        let (name, version): (Arc<str>, String) = (format!("s{name}").into(), version.to_string());
        let secret = match is_held {
            true => Resource::held_by_envoy(Secret, name, version),
            false => Resource::with_version(Secret, name, version.clone(), version.as_bytes()),
        };
        set.insert(Arc::new(secret));
    }
    for (name, (version, needs)) in &world.listeners {
        let needs: Vec<Arc<str>> = needs.iter().map(|secret| format!("s{secret}").into()).collect();
        let version = format!("{version}-{needs:?}");
        let name = format!("l{name}").into();
        let listener = Resource::with_version(Listener, name, version.clone(), version.as_bytes());
        set.insert(Arc::new(listener.needing_one_of(needs.into())));
    }
    set
}

/// Envoy, as far as listeners and their secrets go.
struct Envoy {
    server: StreamState,
    now: Duration,
    inbox: VecDeque<Response>,
    listeners: BTreeMap<Arc<str>, Arc<Resource>>,
    secrets: BTreeMap<Arc<str>, Arc<str>>,
    asked: BTreeSet<Arc<str>>,
    published: Option<ResourceSet>,
}

impl Envoy {
    fn connect(&mut self, gap: Duration) -> Result<(), TestCaseError> {
        self.server = StreamState::new(Variant::Delta, &Limits::default());
        self.now = Duration::ZERO;
        self.inbox.clear();
        if let Some(set) = self.published.clone() {
            let actions = self.server.on_set(&set, self.now);
            self.receive(actions)?;
        }
        let listeners = self.listeners.values();
        let initial = listeners
            .map(|it| (it.name.to_string(), it.version.to_string()))
            .collect();
        self.ask(Listener, Vec::new(), Vec::new(), initial)?;
        self.wait(gap)?;
        if !self.asked.is_empty() {
            let names = self.asked.iter().map(ToString::to_string).collect();
            let secrets = self.secrets.iter();
            let initial = secrets
                .map(|(name, version)| (name.to_string(), version.to_string()))
                .collect();
            self.ask(Secret, names, Vec::new(), initial)?;
        }
        Ok(())
    }

    fn ask(
        &mut self,
        kind: ResourceKind,
        subscribe: Vec<String>,
        unsubscribe: Vec<String>,
        initial: HashMap<String, String>,
    ) -> Result<(), TestCaseError> {
        let asked = Asked::Delta {
            subscribe,
            unsubscribe,
            initial,
        };
        self.request(kind, None, asked)
    }

    fn request(&mut self, kind: ResourceKind, nonce: Option<u64>, asked: Asked) -> Result<(), TestCaseError> {
        let request = Request {
            kind,
            nonce,
            error: None,
            asked,
        };
        let actions = self.server.on_request(request, self.now);
        self.receive(actions.map_err(|violation| TestCaseError::fail(violation.to_string()))?)
    }

    fn receive(&mut self, actions: Actions) -> Result<(), TestCaseError> {
        let published = self.published.clone().unwrap_or_default();
        for response in actions.responses {
            for name in response.removed.iter().filter(|_| response.kind == Listener) {
                let listener = published.get(Listener, name);
                let is_needless = listener.is_some_and(|listener| self.has_one_for(listener));
                prop_assert!(
                    !is_needless,
                    "{name} is taken from an Envoy that has a key for it"
                );
            }
            self.inbox.push_back(response);
        }
        Ok(())
    }

    fn has_one_for(&self, listener: &Resource) -> bool {
        listener
            .needs_one_of
            .iter()
            .any(|secret| self.secrets.contains_key(secret))
    }

    fn handle_next(&mut self) -> Result<(), TestCaseError> {
        let Some(response) = self.inbox.pop_front() else {
            return Ok(());
        };
        for resource in &response.resources {
            let (name, version) = (resource.name.clone(), resource.version.clone());
            match response.kind {
                Listener => _ = self.listeners.insert(name, resource.clone()),
                _ if self.asked.contains(&name) => _ = self.secrets.insert(name, version),
                _ => {}
            }
        }
        for name in &response.removed {
            if response.kind == Listener {
                self.listeners.remove(name);
            } else {
                self.secrets.remove(name);
            }
        }
        let nothing = Asked::Delta {
            subscribe: Vec::new(),
            unsubscribe: Vec::new(),
            initial: HashMap::new(),
        };
        self.request(response.kind, Some(response.nonce), nothing)?;
        let needed = self
            .listeners
            .values()
            .flat_map(|listener| listener.needs_one_of.iter());
        let needed: BTreeSet<Arc<str>> = needed.cloned().collect();
        let names = |names: Vec<&Arc<str>>| names.into_iter().map(ToString::to_string).collect::<Vec<_>>();
        let subscribe = names(needed.difference(&self.asked).collect());
        let unsubscribe = names(self.asked.difference(&needed).collect());
        self.secrets.retain(|name, _| needed.contains(name));
        self.asked = needed;
        if !subscribe.is_empty() || !unsubscribe.is_empty() {
            self.ask(Secret, subscribe, unsubscribe, HashMap::new())?;
        }
        Ok(())
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

    fn settle(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..10_000 {
            if !self.inbox.is_empty() {
                self.handle_next()?;
            } else if let Some(at) = self.server.deadline(self.now) {
                self.wait(at - self.now)?;
            } else {
                return Ok(());
            }
        }
        Err(TestCaseError::fail("never comes to rest"))
    }

    fn check(&self, set: &ResourceSet) -> Result<(), TestCaseError> {
        let withheld: BTreeSet<&Arc<str>> = self.server.withheld().map(|(name, _)| name).collect();
        for listener in set.of_kind(Listener).values() {
            let is_here =
                |secret: &Arc<str>| set.get(Secret, secret).is_some_and(|it| !it.is_held_by_envoy());
            let needs = &listener.needs_one_of;
            let is_usable = needs.is_empty() || needs.iter().any(is_here) || self.has_one_for(listener);
            let held = self.listeners.get(&listener.name).map(|held| &held.version);
            prop_assert_eq!(held, is_usable.then_some(&listener.version), "{:?}", listener);
            prop_assert_eq!(withheld.contains(&listener.name), !is_usable, "{:?}", listener);
        }
        for name in self.listeners.keys() {
            prop_assert!(
                set.get(Listener, name).is_some(),
                "{name} is gone and was not removed"
            );
        }
        for name in &self.asked {
            let published = set.get(Secret, name).filter(|secret| !secret.is_held_by_envoy());
            if let Some(secret) = published {
                prop_assert_eq!(self.secrets.get(name), Some(&secret.version));
            }
        }
        prop_assert_eq!(self.server.pending(Listener), 0, "something waits for ever");
        Ok(())
    }
}

proptest! {
    #![proptest_config(crate::harness::many_cases())]

    #[test]
    fn an_envoy_has_the_listeners_that_it_can_serve(steps in steps()) {
        let mut envoy = Envoy {
            server: StreamState::new(Variant::Delta, &Limits::default()),
            now: Duration::ZERO,
            inbox: VecDeque::new(),
            listeners: BTreeMap::new(),
            secrets: BTreeMap::new(),
            asked: BTreeSet::new(),
            published: None,
        };
        envoy.connect(Duration::ZERO)?;
        for step in &steps {
            match step {
                Step::Publish(world) => {
                    let set = set_of(world);
                    envoy.published = Some(set.clone());
                    let actions = envoy.server.on_set(&set, envoy.now);
                    envoy.receive(actions)?;
                }
                Step::Handle(count) => {
                    for _ in 0..*count {
                        envoy.handle_next()?;
                    }
                }
                Step::Wait(milliseconds) => envoy.wait(Duration::from_millis((*milliseconds).into()))?,
                Step::Reconnect(gap) => envoy.connect(Duration::from_millis((*gap).into()))?,
                Step::Restart => {
                    envoy.listeners.clear();
                    envoy.secrets.clear();
                    envoy.asked.clear();
                    envoy.connect(Duration::ZERO)?;
                }
            }
            envoy.now += Duration::from_millis(1);
        }
        let set = envoy.published.clone().unwrap_or_default();
        let actions = envoy.server.on_set(&set, envoy.now);
        envoy.published = Some(set.clone());
        envoy.receive(actions)?;
        envoy.settle()?;
        envoy.check(&set)?;
    }
}

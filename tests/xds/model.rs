//! Random conversations against a model of Envoy: whatever happens in between, it ends with exactly the published set,
//! never refers to a cluster that it does not have, and always gets endpoints after a changed cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use portreeve::envoy::{Resource, ResourceKind, ResourceRef, ResourceSet};
use portreeve::xds::Variant;
use proptest::prelude::*;

use super::model_envoy::Envoy;

/// What is published: by number, the version of each resource; a route also says which cluster it needs.
#[derive(Clone, Default)]
struct World {
    clusters: BTreeMap<u8, Cluster>,
    routes: BTreeMap<u8, (u8, u8)>,
    secrets: BTreeMap<u8, u8>,
}

struct Flat<'a, V>(&'a BTreeMap<u8, V>);

impl<V: std::fmt::Debug> std::fmt::Debug for Flat<'_, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|(name, value)| {
            let value = format!("{value:?}");
            write!(f, "{name}: {value}; ")
        })
    }
}

#[derive(Clone)]
struct Cluster {
    version: u8,
    /// None: a cluster without endpoints in the set.
    endpoints: Option<u8>,
}

impl std::fmt::Debug for World {
    /// On one line, even where the steps are printed at length.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "clusters")?;
        for (name, cluster) in &self.clusters {
            let endpoints = cluster
                .endpoints
                .map(|version| format!("+{version}"))
                .unwrap_or_default();
            write!(f, " c{name}@{}{endpoints}", cluster.version)?;
        }
        write!(
            f,
            ", routes {:?}, secrets {:?}",
            Flat(&self.routes),
            Flat(&self.secrets)
        )
    }
}

#[derive(Clone, Debug)]
enum Step {
    Publish(World),
    /// Envoy handles this many of the responses that arrived.
    Handle(u8),
    Wait(u16),
    Reconnect,
    Secrets(BTreeSet<u8>),
}

/// Versions from here on are refused by the model.
pub(super) const BAD: u8 = 3;

fn worlds(versions: u8) -> impl Strategy<Value = World> {
    let cluster = (0..versions, proptest::option::weighted(0.8, 0..3u8));
    let clusters = proptest::collection::btree_map(0..5u8, cluster, 0..5);
    let routes = proptest::collection::btree_map(0..4u8, (0..versions, 0..5u8), 0..4);
    let secrets = proptest::collection::btree_map(0..3u8, 0..3u8, 0..3);
    (clusters, routes, secrets).prop_map(|(clusters, routes, secrets)| World {
        routes: routes
            .into_iter()
            .filter(|(_, (_, need))| clusters.contains_key(need))
            .collect(),
        clusters: clusters
            .into_iter()
            .map(|(name, (version, endpoints))| (name, Cluster { version, endpoints }))
            .collect(),
        secrets,
    })
}

fn steps(versions: u8, longest_wait: u16) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => worlds(versions).prop_map(Step::Publish),
        8 => (1..6u8).prop_map(Step::Handle),
        1 => (1..longest_wait).prop_map(Step::Wait),
        1 => Just(Step::Reconnect),
        1 => proptest::collection::btree_set(0..3u8, 0..3).prop_map(Step::Secrets),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

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

fn set_of(world: &World) -> ResourceSet {
    let mut set = ResourceSet::default();
    let mut insert = |kind, name: String, version: String, needs: Vec<ResourceRef>| {
        let resource = Resource::with_version(kind, name.into(), version.clone(), version.as_bytes());
        set.insert(Arc::new(resource.needing(needs.into())));
    };
    for (number, cluster) in &world.clusters {
        insert(
            ResourceKind::Cluster,
            format!("c{number}"),
            cluster.version.to_string(),
            Vec::new(),
        );
        if let Some(version) = cluster.endpoints {
            insert(
                ResourceKind::Endpoint,
                format!("c{number}"),
                version.to_string(),
                Vec::new(),
            );
        }
    }
    for (number, (version, need)) in &world.routes {
        let needs = vec![ResourceRef {
            kind: ResourceKind::Cluster,
            name: format!("c{need}").into(),
        }];
        insert(
            ResourceKind::ScopedRoute,
            format!("r{number}"),
            format!("{version}-c{need}"),
            needs,
        );
    }
    for (number, version) in &world.secrets {
        insert(
            ResourceKind::Secret,
            format!("s{number}"),
            version.to_string(),
            Vec::new(),
        );
    }
    set
}

/// The new set, sharing structure with the old one as the translator's sets do.
fn update(old: &ResourceSet, new: &ResourceSet) -> ResourceSet {
    let mut set = old.clone();
    for kind in ResourceKind::ALL {
        for name in old
            .of_kind(kind)
            .keys()
            .filter(|name| new.get(kind, name).is_none())
        {
            set.remove(kind, name);
        }
        new.of_kind(kind)
            .values()
            .for_each(|resource| _ = set.insert(resource.clone()));
    }
    set
}

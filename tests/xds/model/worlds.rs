//! What the random conversations are about: worlds, steps, and their resources.

use super::*;

/// What is published: by number, the version of each resource; a route also says which cluster it needs.
#[derive(Clone, Default)]
pub(super) struct World {
    pub(super) clusters: BTreeMap<u8, Cluster>,
    pub(super) routes: BTreeMap<u8, (u8, u8)>,
    pub(super) secrets: BTreeMap<u8, u8>,
}

#[derive(Clone)]
pub(super) struct Cluster {
    pub(super) version: u8,
    /// None: a cluster without endpoints in the set.
    pub(super) endpoints: Option<u8>,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Publish(World),
    /// Envoy handles this many of the responses that arrived.
    Handle(u8),
    Wait(u16),
    Reconnect,
    Secrets(BTreeSet<u8>),
}

pub(super) struct Flat<'a, V>(&'a BTreeMap<u8, V>);

impl<V: std::fmt::Debug> std::fmt::Debug for Flat<'_, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|(name, value)| {
            let value = format!("{value:?}");
            write!(f, "{name}: {value}; ")
        })
    }
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

pub(super) fn worlds(versions: u8) -> impl Strategy<Value = World> {
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

pub(super) fn steps(versions: u8, longest_wait: u16) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => worlds(versions).prop_map(Step::Publish),
        8 => (1..6u8).prop_map(Step::Handle),
        1 => (1..longest_wait).prop_map(Step::Wait),
        1 => Just(Step::Reconnect),
        1 => proptest::collection::btree_set(0..3u8, 0..3).prop_map(Step::Secrets),
    ];
    proptest::collection::vec(step, 1..40)
}

pub(super) fn is_bad(resource: &Resource) -> bool {
    resource.version.starts_with(&BAD.to_string()) && resource.kind != ResourceKind::Secret
}

pub(super) fn set_of(world: &World) -> ResourceSet {
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
            format!("l{}/r{number}", number % 2),
            format!("{version}-c{need}"),
            needs,
        );
        // A listener is there as long as something of it is.
        insert(
            ResourceKind::Listener,
            format!("l{}", number % 2),
            "0".to_owned(),
            Vec::new(),
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
pub(super) fn update(old: &ResourceSet, new: &ResourceSet) -> ResourceSet {
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

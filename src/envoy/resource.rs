//! Encoded xDS resources and the persistent set that streams compare.

use std::fmt;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use serde::{Deserialize, Serialize};

use crate::model::DocumentId;

/// The resource types we serve, in the order in which they are pushed (removals go the other way round).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResourceKind {
    Cluster,
    Endpoint,
    Secret,
    Runtime,
    Listener,
    ScopedRoute,
    Route,
}

impl ResourceKind {
    pub const ALL: [Self; 7] = [
        Self::Cluster,
        Self::Endpoint,
        Self::Secret,
        Self::Runtime,
        Self::Listener,
        Self::ScopedRoute,
        Self::Route,
    ];

    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::Runtime => "type.googleapis.com/envoy.service.runtime.v3.Runtime",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::ScopedRoute => "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// What a list of them is called.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Cluster => "clusters",
            Self::Endpoint => "endpoints",
            Self::Secret => "secrets",
            Self::Runtime => "runtimes",
            Self::Listener => "listeners",
            Self::ScopedRoute => "scoped_routes",
            Self::Route => "routes",
        }
    }

    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }
}

/// A reference from one resource to another.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceRef {
    pub kind: ResourceKind,
    pub name: Arc<str>,
}

/// One resource, encoded once and shared by every stream.
#[derive(Clone)]
pub struct Resource {
    pub kind: ResourceKind,
    pub name: Arc<str>,
    /// Derived from the content: equal in every process that publishes the same bytes.
    pub version: Arc<str>,
    body: Body,
    /// What must be in place before Envoy can use this: a route's clusters, a listener's secrets.
    pub needs: Arc<[ResourceRef]>,
    /// Secrets of which Envoy must have one at least: without any, this is better not there at all. A listener's
    /// certificates.
    pub needs_one_of: Arc<[Arc<str>]>,
    /// The address and port of a listener.
    pub binds: Option<Arc<str>>,
    /// Of a cluster whose instances Envoy checks: how long the first check of one may take. Envoy knows the cluster no
    /// earlier, whatever it has been told of its endpoints.
    pub first_check: Option<Duration>,
    /// The documents this was made from: who to tell when Envoy refuses it.
    pub origins: Arc<[DocumentId]>,
}

#[derive(Clone)]
enum Body {
    /// `envoy.service.discovery.v3.Resource` with name, version and body, and where its `Any` lies in it.
    Encoded { delta: Bytes, any: Bytes },
    /// Envoy holds these bytes, we no longer do: a private key from before our restart.
    HeldByEnvoy,
}

impl Resource {
    /// Wraps an encoded message. The version is a hash of its bytes.
    pub fn new(kind: ResourceKind, name: Arc<str>, message: &[u8]) -> Self {
        Self::encoded(kind, name, content_version(message), message)
    }

    /// For secrets, whose version must not be a hash of the key.
    pub fn with_version(kind: ResourceKind, name: Arc<str>, version: String, message: &[u8]) -> Self {
        Self::encoded(kind, name, version.into(), message)
    }

    fn encoded(kind: ResourceKind, name: Arc<str>, version: Arc<str>, message: &[u8]) -> Self {
        let (delta, any) = encode_resource(kind, &name, &version, message);
        Self {
            kind,
            name,
            version,
            body: Body::Encoded { delta, any },
            needs: Arc::default(),
            needs_one_of: Arc::default(),
            binds: None,
            first_check: None,
            origins: Arc::default(),
        }
    }

    pub fn held_by_envoy(kind: ResourceKind, name: Arc<str>, version: String) -> Self {
        let version = version.into();
        Self {
            kind,
            name,
            version,
            body: Body::HeldByEnvoy,
            needs: Arc::default(),
            needs_one_of: Arc::default(),
            binds: None,
            first_check: None,
            origins: Arc::default(),
        }
    }

    pub fn needing(mut self, needs: Arc<[ResourceRef]>) -> Self {
        self.needs = needs;
        self
    }

    pub fn needing_one_of(mut self, secrets: Arc<[Arc<str>]>) -> Self {
        self.needs_one_of = secrets;
        self
    }

    pub fn binding(mut self, address: Arc<str>) -> Self {
        self.binds = Some(address);
        self
    }

    pub fn checked_within(mut self, first_check: Option<Duration>) -> Self {
        self.first_check = first_check;
        self
    }

    /// In order, each once.
    pub fn from_documents(mut self, origins: Arc<[DocumentId]>) -> Self {
        debug_assert!(origins.is_sorted_by(|one, next| one < next), "{origins:?}");
        self.origins = origins;
        self
    }

    /// The encoded `envoy.service.discovery.v3.Resource`, as a delta response carries it. None when only Envoy holds it.
    pub fn delta_bytes(&self) -> Option<&Bytes> {
        match &self.body {
            Body::Encoded { delta, .. } => Some(delta),
            Body::HeldByEnvoy => None,
        }
    }

    /// The encoded `google.protobuf.Any`, as a state-of-the-world response carries it.
    pub fn any_bytes(&self) -> Option<&Bytes> {
        match &self.body {
            Body::Encoded { any, .. } => Some(any),
            Body::HeldByEnvoy => None,
        }
    }

    /// The encoded message itself. None when only Envoy holds it.
    pub fn message(&self) -> Option<Vec<u8>> {
        let any = envoy_types::pb::google::protobuf::Any::decode(self.any_bytes()?.clone()).ok()?;
        Some(any.value)
    }

    pub fn is_held_by_envoy(&self) -> bool {
        matches!(self.body, Body::HeldByEnvoy)
    }
}

impl fmt::Debug for Resource {
    /// Never the bytes: they may hold a private key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} @{}", self.kind, self.name, self.version)
    }
}

impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.name == other.name
            && self.version == other.version
            && self.is_held_by_envoy() == other.is_held_by_envoy()
    }
}

fn content_version(bytes: &[u8]) -> Arc<str> {
    // 64 bits per resource name: a collision would need two versions of one resource to share them.
    blake3::hash(bytes).to_hex()[..16].into()
}

/// Writes `Resource { version = 1, resource = 2 (Any), name = 3 }` by hand, so that the `Any` is a slice of it.
fn encode_resource(kind: ResourceKind, name: &str, version: &str, message: &[u8]) -> (Bytes, Bytes) {
    let url = kind.type_url();
    let any_len = field_len(url.len()) + field_len(message.len());
    let mut buffer =
        BytesMut::with_capacity(any_len + field_len(any_len) - any_len + name.len() + version.len() + 24);
    put_field(&mut buffer, 1, version.as_bytes());
    encode_key(2, WireType::LengthDelimited, &mut buffer);
    encode_varint(any_len as u64, &mut buffer);
    let any_start = buffer.len();
    put_field(&mut buffer, 1, url.as_bytes());
    put_field(&mut buffer, 2, message);
    let any_end = buffer.len();
    put_field(&mut buffer, 3, name.as_bytes());
    let delta = buffer.freeze();
    let any = delta.slice(any_start..any_end);
    (delta, any)
}

fn put_field(buffer: &mut BytesMut, tag: u32, value: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(value.len() as u64, buffer);
    buffer.put_slice(value);
}

fn field_len(value_len: usize) -> usize {
    1 + prost::encoding::encoded_len_varint(value_len as u64) + value_len
}

/// All resources of one gateway. Cloning costs one counter, changing what changes, comparing what differs: and that once
/// for all who compare the same two sets.
#[derive(Clone, Debug, Default)]
pub struct ResourceSet {
    kinds: Arc<Kinds>,
}

#[derive(Debug, Default)]
struct Kinds {
    maps: [OrdMap<Arc<str>, Arc<Resource>>; 7],
    /// How it differs from the first set that it was compared with: for a published one, that is mostly the one before,
    /// and every stream asks.
    since: OnceLock<Since>,
}

impl Clone for Kinds {
    fn clone(&self) -> Self {
        Self {
            maps: self.maps.clone(),
            since: OnceLock::new(),
        }
    }
}

#[derive(Debug)]
struct Since {
    /// Not kept alive: it would keep the one before it, and so on.
    older: Weak<Kinds>,
    /// None: too much to keep beside the sets.
    changes: Option<Box<[(ResourceKind, ResourceChange)]>>,
}

/// A change of more is compared by each stream that is told of it.
const KEPT_CHANGES: usize = 64;

/// What putting a resource into a set did.
#[derive(Clone, Debug)]
pub enum Changed {
    No,
    Yes { before: Option<Arc<Resource>> },
}

/// How one resource differs between two sets.
#[derive(Clone, Debug)]
pub enum ResourceChange {
    Set(Arc<Resource>),
    Removed(Arc<str>),
}

impl ResourceSet {
    pub fn get(&self, kind: ResourceKind, name: &str) -> Option<&Arc<Resource>> {
        self.of_kind(kind).get(name)
    }

    pub fn of_kind(&self, kind: ResourceKind) -> &OrdMap<Arc<str>, Arc<Resource>> {
        &self.kinds.maps[kind as usize]
    }

    fn of_kind_mut(&mut self, kind: ResourceKind) -> &mut OrdMap<Arc<str>, Arc<Resource>> {
        let kinds = Arc::make_mut(&mut self.kinds);
        kinds.since.take();
        &mut kinds.maps[kind as usize]
    }

    /// Keeps the old `Arc` when nothing differs, so that a later comparison sees no change.
    pub fn insert(&mut self, resource: Arc<Resource>) -> bool {
        matches!(self.replace(resource), Changed::Yes { .. })
    }

    /// The same, and tells what was there before.
    pub fn replace(&mut self, resource: Arc<Resource>) -> Changed {
        let known = self.of_kind(resource.kind).get(&resource.name);
        let is_same = known.is_some_and(|old| {
            **old == *resource
                && old.needs == resource.needs
                && old.needs_one_of == resource.needs_one_of
                && old.origins == resource.origins
        });
        if is_same {
            return Changed::No;
        }
        let map = self.of_kind_mut(resource.kind);
        let before = map.insert(resource.name.clone(), resource);
        Changed::Yes { before }
    }

    pub fn remove(&mut self, kind: ResourceKind, name: &str) -> bool {
        self.of_kind(kind).contains_key(name) && self.of_kind_mut(kind).remove(name).is_some()
    }

    /// Takes over a whole map of one kind, sharing its structure.
    pub fn replace_kind(&mut self, kind: ResourceKind, resources: OrdMap<Arc<str>, Arc<Resource>>) {
        *self.of_kind_mut(kind) = resources;
    }

    /// The same, for who keeps up with another: mostly nothing of a kind is new, and this costs one look.
    pub fn follow_kind(&mut self, kind: ResourceKind, resources: &OrdMap<Arc<str>, Arc<Resource>>) {
        if !self.of_kind(kind).ptr_eq(resources) {
            self.replace_kind(kind, resources.clone());
        }
    }

    /// Both are one and the same in memory. False says nothing: equal sets may have been made apart.
    pub fn shares_all(&self, other: &Self) -> bool {
        let mut maps = self.kinds.maps.iter().zip(&other.kinds.maps);
        Arc::ptr_eq(&self.kinds, &other.kinds) || maps.all(|(own, other)| own.ptr_eq(other))
    }

    /// Clones of one another, neither changed since.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.kinds, &other.kinds)
    }

    pub fn len(&self) -> usize {
        self.kinds.maps.iter().map(OrdMap::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What to do to `older` to reach `self`, of one kind, in name order.
    pub fn changes_since<'a>(
        &'a self,
        older: &'a Self,
        kind: ResourceKind,
    ) -> impl Iterator<Item = ResourceChange> + 'a {
        let since = self.kinds.since.get_or_init(|| Since {
            older: Arc::downgrade(&older.kinds),
            changes: self.few_changes_since(older),
        });
        let kept = since
            .changes
            .as_deref()
            .filter(|_| std::ptr::eq(since.older.as_ptr(), Arc::as_ptr(&older.kinds)));
        let compared = kept.is_none().then(|| self.compare(older, kind));
        let of_kind =
            move |(of, change): &'a (ResourceKind, ResourceChange)| (*of == kind).then(|| change.clone());
        kept.into_iter()
            .flatten()
            .filter_map(of_kind)
            .chain(compared.into_iter().flatten())
    }

    fn few_changes_since(&self, older: &Self) -> Option<Box<[(ResourceKind, ResourceChange)]>> {
        let all = ResourceKind::ALL
            .into_iter()
            .flat_map(|kind| self.compare(older, kind).map(move |change| (kind, change)));
        let changes: Vec<_> = all.take(KEPT_CHANGES + 1).collect();
        (changes.len() <= KEPT_CHANGES).then(|| changes.into())
    }

    fn compare<'a>(
        &'a self,
        older: &'a Self,
        kind: ResourceKind,
    ) -> impl Iterator<Item = ResourceChange> + 'a {
        older
            .of_kind(kind)
            .diff(self.of_kind(kind))
            .filter_map(|item| match item {
                DiffItem::Add(_, resource) => Some(ResourceChange::Set(resource.clone())),
                DiffItem::Update {
                    old: (_, old),
                    new: (_, new),
                } => (**old != **new).then(|| ResourceChange::Set(new.clone())),
                DiffItem::Remove(name, _) => Some(ResourceChange::Removed(name.clone())),
            })
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::discovery::v3 as discovery;
    use prost::Message;

    use super::*;

    #[test]
    fn hand_written_encoding_decodes() {
        let resource = Resource::new(ResourceKind::Route, "web".into(), b"body");
        let decoded = discovery::Resource::decode(resource.delta_bytes().unwrap().clone()).unwrap();
        assert_eq!(decoded.name, "web");
        assert_eq!(decoded.version, *resource.version);
        let any = decoded.resource.unwrap();
        assert_eq!(any.type_url, ResourceKind::Route.type_url());
        assert_eq!(any.value, b"body");
        let same =
            envoy_types::pb::google::protobuf::Any::decode(resource.any_bytes().unwrap().clone()).unwrap();
        assert_eq!(same, any);
    }

    #[test]
    fn changes_list_only_what_differs() {
        let mut old = ResourceSet::default();
        for name in ["a", "b", "c"] {
            old.insert(Arc::new(Resource::new(ResourceKind::Cluster, name.into(), b"1")));
        }
        let mut new = old.clone();
        assert!(!new.insert(Arc::new(Resource::new(ResourceKind::Cluster, "a".into(), b"1"))));
        assert!(new.insert(Arc::new(Resource::new(ResourceKind::Cluster, "b".into(), b"2"))));
        new.remove(ResourceKind::Cluster, "c");
        assert_eq!(told(&new, &old), ["+b", "-c"]);
    }

    fn told(newer: &ResourceSet, older: &ResourceSet) -> Vec<String> {
        let changes = newer.changes_since(older, ResourceKind::Cluster);
        let shown = changes.map(|change| match change {
            ResourceChange::Set(resource) => format!("+{}", resource.name),
            ResourceChange::Removed(name) => format!("-{name}"),
        });
        shown.collect()
    }

    #[test]
    fn what_was_compared_before_does_not_answer_for_another_set() {
        let cluster =
            |name: &str, body: &[u8]| Arc::new(Resource::new(ResourceKind::Cluster, name.into(), body));
        let empty = ResourceSet::default();
        let mut one = empty.clone();
        one.insert(cluster("a", b"1"));
        let mut two = one.clone();
        two.insert(cluster("b", b"1"));
        for _ in 0..2 {
            assert_eq!(told(&two, &one), ["+b"]);
            assert_eq!(told(&two, &empty), ["+a", "+b"]);
        }
        // It changes where it lies: nobody else holds it.
        two.insert(cluster("c", b"1"));
        assert_eq!(told(&two, &one), ["+b", "+c"]);
        // More than is kept.
        for number in 0..=KEPT_CHANGES {
            two.insert(cluster(&format!("d{number}"), b"1"));
        }
        for _ in 0..2 {
            assert_eq!(told(&two, &one).len(), KEPT_CHANGES + 3);
        }
        // The older one is gone, and another may lie where it lay.
        let mut newer = two.clone();
        newer.insert(cluster("e", b"1"));
        assert_eq!(told(&newer, &two), ["+e"]);
        drop(two);
        assert_eq!(told(&newer, &newer.clone()), [""; 0]);
        assert_eq!(told(&newer, &one).len(), KEPT_CHANGES + 4);
    }
}

//! All documents together: who owns which name, what is in service, who uses whom.
//!
//! The maps are persistent: a `Config` is cloned in constant time, and a change costs what it touches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use imbl::{OrdMap, OrdSet};

use super::document::ParsedDocument;
use super::objects::{
    BackendTarget, Certificate, Gateway, HttpRoute, Object, ObjectKey, ObjectKind, Policy, RouteRef,
    TcpRoute, Upstream,
};
use super::permissions::Permissions;
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::Limits;
use crate::model::{Document, DocumentId};

/// Who wins a clash: files before KV before the catalog, then Consul's CreateIndex, then the path. The same on every
/// replica.
pub type Rank = (u8, u64, DocumentId);

/// Of a route on a host: its document's rank, its place there, its name.
type Claim = (Rank, usize, Arc<str>);

#[derive(Clone, Debug, Default)]
pub struct Config {
    pub(super) documents: OrdMap<DocumentId, Arc<DocumentState>>,
    /// Every declaration of a name, the holder first.
    claims: OrdMap<ObjectKey, Arc<Vec<(Rank, Object)>>>,
    /// (named, by whom), over the holders.
    users: OrdSet<(ObjectKey, ObjectKey)>,
    /// (destination, route) over the holders: who sends requests or connections there.
    destinations: OrdSet<(BackendTarget, ObjectKey)>,
    /// (gateway, host, route that claims it), by document and by the place in it.
    hosts: OrdSet<(Arc<str>, Arc<str>, Claim)>,
    /// (gateway, listener, TCP route that claims it), in the same order.
    tcp_listeners: OrdSet<(Arc<str>, Arc<str>, Claim)>,
    pub(super) permissions: Arc<Permissions>,
    pub(super) limits: LimitsByValue,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LimitsByValue(pub(super) Limits);

/// One document, with what of it is in service.
#[derive(Clone, Debug)]
pub struct DocumentState {
    /// As it stands in its source.
    pub document: Document,
    /// Why the text as it stands is not in service. Empty: it is.
    pub problems: Arc<[Diagnostic]>,
    /// The last good version.
    pub in_service: Option<Arc<ParsedDocument>>,
    /// The last version that an Envoy acknowledged: what a refused version goes back to.
    pub confirmed: Option<Arc<ParsedDocument>>,
}

impl DocumentState {
    /// What serves is what Envoy last confirmed.
    pub fn is_confirmed(&self) -> bool {
        same(&self.in_service, &self.confirmed)
    }
}

/// A text that Envoy refused. It stays out until the document changes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Quarantine {
    pub document: DocumentId,
    /// Hash of the refused text.
    pub text_hash: String,
    pub diagnostic: Diagnostic,
    /// Objects of other documents that the text names: it is tried again when one of them changes.
    #[serde(default)]
    pub names: BTreeSet<ObjectKey>,
    /// Taken out only because it stood beside the guilty one: it is tried again when the rest serves.
    #[serde(default)]
    pub on_trial: bool,
}

/// What a change did to the objects in service.
#[derive(Clone, Debug, Default)]
pub struct ConfigChange {
    /// Before and after.
    pub objects: BTreeMap<ObjectKey, (Option<Object>, Option<Object>)>,
    pub documents: BTreeSet<DocumentId>,
}

impl ConfigChange {
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.documents.is_empty()
    }

    fn note(&mut self, key: ObjectKey, before: Option<Object>, after: Option<Object>) {
        let entry = self.objects.entry(key).or_insert_with(|| (before, None));
        entry.1 = after;
    }
}

impl Config {
    pub fn new(permissions: Permissions, limits: Limits) -> Self {
        Self {
            permissions: Arc::new(permissions),
            limits: LimitsByValue(limits),
            ..Self::default()
        }
    }

    /// Takes a document as its source has it now. A bad text leaves the last good version in service.
    pub fn upsert(&mut self, document: Document, quarantine: Option<&Quarantine>, change: &mut ConfigChange) {
        let id = document.id.clone();
        let before = self.documents.get(&id).cloned();
        let refused = quarantine.filter(|quarantine| quarantine.text_hash == text_hash(&document.text));
        if let Some(before) = &before
            && before.document.text == document.text
            && before.document.order == document.order
            && refused.is_none()
            && (before.problems.is_empty()
                || before
                    .problems
                    .iter()
                    .all(|problem| problem.code != Code::EnvoyRejected))
        {
            let state = DocumentState {
                document,
                ..(**before).clone()
            };
            self.documents.insert(id, Arc::new(state));
            return;
        }
        change.documents.insert(id.clone());
        let confirmed = before.as_ref().and_then(|state| state.confirmed.clone());
        let last_good = before.as_ref().and_then(|state| state.in_service.clone());
        let (in_service, problems) = match refused {
            Some(quarantine) => {
                // A version that no Envoy ever confirmed is still better than nothing, unless it is the refused one.
                let unconfirmed = last_good
                    .clone()
                    .filter(|parsed| text_hash(&parsed.document.text) != quarantine.text_hash);
                // What one Envoy confirmed stays, whatever another says of it.
                (
                    confirmed.clone().or(unconfirmed),
                    vec![quarantine.diagnostic.clone()],
                )
            }
            None => match self.read(&document, last_good.as_deref()) {
                Ok(parsed) => (Some(parsed), Vec::new()),
                Err(problems) => (last_good.clone(), say_what_stays(problems, last_good.is_some())),
            },
        };
        self.put_in_service(&id, last_good.as_deref(), in_service.as_deref(), change);
        self.documents.insert(
            id,
            Arc::new(DocumentState {
                document,
                problems: problems.into(),
                in_service,
                confirmed,
            }),
        );
    }

    pub fn remove(&mut self, id: &DocumentId, change: &mut ConfigChange) {
        if let Some(state) = self.documents.remove(id) {
            change.documents.insert(id.clone());
            self.put_in_service(id, state.in_service.as_deref(), None, change);
        }
    }

    /// Notes that Envoy runs with what the document says in service. True: that is news.
    pub fn confirm(&mut self, id: &DocumentId) -> bool {
        match self.documents.get(id) {
            Some(state) if state.in_service.is_some() && !state.is_confirmed() => {
                let state = DocumentState {
                    confirmed: state.in_service.clone(),
                    ..(**state).clone()
                };
                self.documents.insert(id.clone(), Arc::new(state));
                true
            }
            _ => false,
        }
    }

    /// Takes the text out of service that Envoy refused; what Envoy last acknowledged comes back.
    pub fn quarantine(&mut self, quarantine: &Quarantine, change: &mut ConfigChange) {
        let Some(state) = self.documents.get(&quarantine.document).cloned() else {
            return;
        };
        let is_refused = |text: &str| text_hash(text) == quarantine.text_hash;
        if is_refused(&state.document.text) {
            self.upsert(state.document.clone(), Some(quarantine), change);
            return;
        }
        // The present text is bad in itself; the refused one is older, and serves in its place.
        let serves = state.in_service.as_ref();
        if serves.is_some_and(|parsed| is_refused(&parsed.document.text)) && !state.is_confirmed() {
            let id = &quarantine.document;
            change.documents.insert(id.clone());
            self.put_in_service(
                id,
                state.in_service.as_deref(),
                state.confirmed.as_deref(),
                change,
            );
            let state = DocumentState {
                in_service: state.confirmed.clone(),
                ..(*state).clone()
            };
            self.documents.insert(id.clone(), Arc::new(state));
        }
    }

    pub(super) fn put_in_service(
        &mut self,
        id: &DocumentId,
        before: Option<&ParsedDocument>,
        after: Option<&ParsedDocument>,
        change: &mut ConfigChange,
    ) {
        let declared = |parsed: Option<&ParsedDocument>| -> BTreeMap<ObjectKey, Object> {
            let objects = parsed.into_iter().flat_map(|parsed| &parsed.objects);
            objects.map(|object| (object.key(), object.clone())).collect()
        };
        let (old_objects, mut new_objects) = (declared(before), declared(after));
        let rank = after.map(|after| rank_of(&after.document));
        let same_rank = rank == before.map(|before| rank_of(&before.document));
        let mut keys: BTreeSet<ObjectKey> = old_objects.keys().cloned().collect();
        keys.extend(new_objects.keys().cloned());
        for key in keys {
            // What stands as it stood costs nothing further: a big document may change in one place.
            if same_rank && old_objects.get(&key) == new_objects.get(&key) {
                continue;
            }
            let old = self.claims.get(&key).cloned();
            let held_before = old.as_deref().and_then(|claims| claims.first()).cloned();
            let mut claims: Vec<(Rank, Object)> = old.as_deref().cloned().unwrap_or_default();
            claims.retain(|(rank, _)| rank.2 != *id);
            if let (Some(rank), Some(object)) = (&rank, new_objects.remove(&key)) {
                claims.push((rank.clone(), object));
            }
            // Nobody takes a name by what may not be used.
            claims.sort_by(|(one, this), (other, that)| {
                (this.is_refused(), one).cmp(&(that.is_refused(), other))
            });
            let held_after = claims.first().cloned();
            if claims.is_empty() {
                self.claims.remove(&key);
            } else {
                self.claims.insert(key.clone(), Arc::new(claims));
            }
            self.index(&key, held_before.as_ref(), held_after.as_ref());
            change.note(
                key,
                held_before.map(|(_, object)| object),
                held_after.map(|(_, object)| object),
            );
        }
    }

    fn index(&mut self, key: &ObjectKey, before: Option<&(Rank, Object)>, after: Option<&(Rank, Object)>) {
        if let Some((_, object)) = before {
            for target in object.references() {
                self.users.remove(&(target, key.clone()));
            }
        }
        if let Some((rank, route, object)) = route_of(before) {
            for backend in route.backends() {
                self.destinations.remove(&(backend.target.clone(), key.clone()));
            }
            let claim = (rank.clone(), object.place(), route.name().clone());
            for (gateway, place) in places(route) {
                self.claimed_by(route).remove(&(gateway, place, claim.clone()));
            }
        }
        if let Some((_, object)) = after {
            for target in object.references() {
                self.users.insert((target, key.clone()));
            }
        }
        if let Some((rank, route, object)) = route_of(after) {
            for backend in route.backends() {
                self.destinations.insert((backend.target.clone(), key.clone()));
            }
            let claim = (rank.clone(), object.place(), route.name().clone());
            for (gateway, place) in places(route) {
                self.claimed_by(route).insert((gateway, place, claim.clone()));
            }
        }
    }

    fn claimed_by(&mut self, route: RouteRef<'_>) -> &mut OrdSet<(Arc<str>, Arc<str>, Claim)> {
        match route {
            RouteRef::Http(_) => &mut self.hosts,
            RouteRef::Tcp(_) => &mut self.tcp_listeners,
        }
    }

    pub fn documents(&self) -> impl Iterator<Item = &Arc<DocumentState>> {
        self.documents.values()
    }

    pub fn document(&self, id: &DocumentId) -> Option<&Arc<DocumentState>> {
        self.documents.get(id)
    }

    pub fn object(&self, key: &ObjectKey) -> Option<&Object> {
        self.claims
            .get(key)
            .and_then(|claims| claims.first())
            .map(|(_, object)| object)
    }

    pub fn gateway(&self, name: &str) -> Option<&Arc<Gateway>> {
        match self.object(&ObjectKey::new(ObjectKind::Gateway, name))? {
            Object::Gateway(gateway) => Some(gateway),
            _ => None,
        }
    }

    pub fn gateways(&self) -> impl Iterator<Item = &Arc<Gateway>> {
        self.of_kind(ObjectKind::Gateway)
            .filter_map(|object| match object {
                Object::Gateway(gateway) => Some(gateway),
                _ => None,
            })
    }

    pub fn certificate(&self, name: &str) -> Option<&Arc<Certificate>> {
        match self.object(&ObjectKey::new(ObjectKind::Certificate, name))? {
            Object::Certificate(certificate) => Some(certificate),
            _ => None,
        }
    }

    pub fn http_route(&self, name: &str) -> Option<&Arc<HttpRoute>> {
        match self.object(&ObjectKey::new(ObjectKind::HttpRoute, name))? {
            Object::HttpRoute(route) => Some(route),
            _ => None,
        }
    }

    pub fn tcp_route(&self, name: &str) -> Option<&Arc<TcpRoute>> {
        match self.object(&ObjectKey::new(ObjectKind::TcpRoute, name))? {
            Object::TcpRoute(route) => Some(route),
            _ => None,
        }
    }

    pub fn upstream(&self, name: &str) -> Option<&Arc<Upstream>> {
        match self.object(&ObjectKey::new(ObjectKind::Upstream, name))? {
            Object::Upstream(upstream) => Some(upstream),
            _ => None,
        }
    }

    pub fn policy(&self, name: &str) -> Option<&Arc<Policy>> {
        match self.object(&ObjectKey::new(ObjectKind::Policy, name))? {
            Object::Policy(policy) => Some(policy),
            _ => None,
        }
    }

    pub fn of_kind(&self, kind: ObjectKind) -> impl Iterator<Item = &Object> {
        let from = ObjectKey {
            kind,
            name: "".into(),
        };
        self.claims
            .range(from..)
            .take_while(move |(key, _)| key.kind == kind)
            .filter_map(|(_, claims)| claims.first().map(|(_, object)| object))
    }

    /// The objects that name this one.
    pub fn users_of<'a>(&'a self, key: &'a ObjectKey) -> impl Iterator<Item = &'a ObjectKey> + 'a {
        let from = (
            key.clone(),
            ObjectKey {
                kind: ObjectKind::Gateway,
                name: "".into(),
            },
        );
        self.users
            .range(from..)
            .take_while(move |(target, _)| target == key)
            .map(|(_, user)| user)
    }

    /// Routes that send requests or connections to a destination, by kind and name.
    pub fn routes_to<'a>(&'a self, target: &'a BackendTarget) -> impl Iterator<Item = RouteRef<'a>> + 'a {
        let first = ObjectKey::new(ObjectKind::Gateway, "");
        self.destinations
            .range((target.clone(), first)..)
            .take_while(move |(used, _)| used == target)
            .filter_map(|(_, key)| self.object(key)?.route())
    }

    /// TCP routes of one listener of one gateway: the first has it.
    pub fn tcp_routes_of(
        &self,
        gateway: &Arc<str>,
        listener: &Arc<str>,
    ) -> impl Iterator<Item = &Arc<TcpRoute>> {
        claims_on(&self.tcp_listeners, gateway, listener).filter_map(|(_, _, name)| self.tcp_route(name))
    }

    /// Routes of one host of one gateway, oldest document first.
    pub fn routes_of_host(
        &self,
        gateway: &Arc<str>,
        host: &Arc<str>,
    ) -> impl Iterator<Item = (&Rank, &Arc<HttpRoute>)> {
        claims_on(&self.hosts, gateway, host)
            .filter_map(|(rank, _, name)| Some((rank, self.http_route(name)?)))
    }

    pub fn hosts_of_gateway<'a>(&'a self, gateway: &'a Arc<str>) -> impl Iterator<Item = &'a Arc<str>> + 'a {
        let mut before = None;
        self.hosts
            .range((gateway.clone(), "".into(), FIRST_CLAIM.clone())..)
            .take_while(move |(name, _, _)| name == gateway)
            .map(|(_, host, _)| host)
            .filter(move |&host| before.replace(host) != Some(host))
    }

    /// Every declaration of a name, the holder first.
    pub fn claims_of(&self, key: &ObjectKey) -> Option<&[(Rank, Object)]> {
        self.claims.get(key).map(|claims| &claims[..])
    }

    pub fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.claims.keys()
    }

    pub(super) fn keys_from(&self, from: ObjectKey) -> impl Iterator<Item = &ObjectKey> {
        self.claims.range(from..).map(|(key, _)| key)
    }

    pub fn permissions(&self) -> &Permissions {
        &self.permissions
    }
}

pub(crate) fn rank_of(document: &Document) -> Rank {
    (
        match document.id {
            DocumentId::File(_) => 0,
            DocumentId::Kv(_) => 1,
            DocumentId::Catalog(_) => 2,
        },
        document.order,
        document.id.clone(),
    )
}

pub fn text_hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
}

fn route_of(held: Option<&(Rank, Object)>) -> Option<(&Rank, RouteRef<'_>, &Object)> {
    let (rank, object) = held?;
    Some((rank, object.route()?, object))
}

/// Sorts before every other.
static FIRST_CLAIM: LazyLock<Claim> = LazyLock::new(|| ((0, 0, DocumentId::File("".into())), 0, "".into()));

/// The claims on one host or listener of one gateway, oldest document first.
fn claims_on<'a>(
    claims: &'a OrdSet<(Arc<str>, Arc<str>, Claim)>,
    gateway: &Arc<str>,
    place: &Arc<str>,
) -> impl Iterator<Item = &'a Claim> + use<'a> {
    let (gateway, place) = (gateway.clone(), place.clone());
    claims
        .range((gateway.clone(), place.clone(), FIRST_CLAIM.clone())..)
        .take_while(move |(of, at, _)| *of == gateway && *at == place)
        .map(|(_, _, claim)| claim)
}

/// What a route claims of each gateway: hosts, or listeners.
fn places(route: RouteRef<'_>) -> Vec<(Arc<str>, Arc<str>)> {
    let of_each: Vec<&Arc<str>> = match route {
        RouteRef::Http(route) => route.hostnames.iter().collect(),
        RouteRef::Tcp(route) => route.listeners.iter().map(|(name, _)| name).collect(),
    };
    let gateways = route.gateways().iter();
    gateways
        .flat_map(|(gateway, _)| of_each.iter().map(|place| (gateway.clone(), (*place).clone())))
        .collect()
}

fn same(one: &Option<Arc<ParsedDocument>>, other: &Option<Arc<ParsedDocument>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// Said once for each document, with its first problem.
pub(super) fn say_what_stays(mut problems: Vec<Diagnostic>, has_last_good: bool) -> Vec<Diagnostic> {
    if let Some(first) = problems.first_mut() {
        let stays = if has_last_good {
            "the document's last good version stays in service"
        } else {
            "nothing of this document is in service"
        };
        first.reason = Some(match first.reason.take() {
            Some(reason) => format!("{}; {stays}", reason.trim_end_matches('.')),
            None => stays.to_owned(),
        });
    }
    problems
}

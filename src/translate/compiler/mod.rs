//! Which units a change touches.
//!
//! A unit is one virtual host, one cluster, one service's endpoints, one certificate or one listener. The compiler keeps
//! what it made of each and remakes only those whose inputs changed: no step of one change walks all objects.

mod books;
mod host;
mod leaving;
mod opening;
mod touched;
mod unchecked;
mod units;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use imbl::{OrdMap, OrdSet};

use crate::config::{NotAllowed, ObjectKey};
use crate::diagnostics::{Diagnostic, Problems};
use crate::envoy::{ResourceKind, ResourceSet};
use crate::ir::{TcpProxy, Unavailable};
use crate::model::mesh::Interest;
use crate::model::{CertificateQuery, DocumentId, Problem, ServiceQuery};
use crate::resolve::Destination;
use crate::resolve::secret_name;
use crate::snapshot::{Changes, Snapshot};
use crate::translate::compiler::books::{Fed, Users};
use crate::translate::compiler::unchecked::Checked;
use crate::translate::route::EncodedHost;
use crate::translate::runtime::runtime_resource;

/// What a gateway is compiled with that no document says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub bind_address: IpAddr,
    /// Wait for the watches of a changed host before publishing it, so that a new route's first answer is not a 503.
    pub hold_pending: bool,
    /// Gateways whose Envoys run on one node, this one perhaps among them: a port there belongs to one of them.
    pub same_node: Arc<[Arc<str>]>,
}

/// Names a unit, for the diagnostics about it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnitKey {
    Gateway,
    Listener(Arc<str>),
    Host(Arc<str>, Arc<str>),
    Cluster(Destination),
}

/// A host of a listener.
type HostKey = (Arc<str>, Arc<str>);

/// Hosts that wait for their watches.
pub type Held = OrdSet<(Arc<str>, Arc<str>)>;

/// One gateway as compiled so far.
#[derive(Clone, Debug)]
pub struct Compiler {
    gateway: Arc<str>,
    settings: Settings,
    set: ResourceSet,
    hosts: OrdMap<HostKey, Arc<HostUnit>>,
    /// Hosts of a listener that are not exact: any of them asks for a table.
    wildcards: BTreeMap<Arc<str>, usize>,
    /// How many hosts of a listener need a feature's filter in its chain.
    filters_used: BTreeMap<(Arc<str>, &'static str), usize>,
    /// A cluster lives while somebody uses it.
    target_users: OrdMap<Destination, Users>,
    /// Destinations in use, by the watches that feed them, and the other way round.
    targets_of: OrdMap<Interest, Fed>,
    interests_of: OrdMap<Destination, Arc<[Interest]>>,
    /// Hosts to look at again when a watch answers: those that wait for it, and those whose routes are made from it.
    hosts_of: OrdSet<(Interest, Arc<str>, Arc<str>)>,
    /// Hosts that stand as they were, or not at all, until their watches have answered.
    held: Held,
    /// Among them those that have no route any more, each with one that is to take its place.
    leaving: OrdMap<HostKey, HostKey>,
    /// Listeners that are not there yet, and the hosts that they open with.
    opening: OrdMap<Arc<str>, OrdSet<Arc<str>>>,
    /// Destinations whose cluster stands as it was for the sake of such hosts: the answer brings the new one.
    outlived: OrdSet<Destination>,
    /// Those whose instances Envoy checks.
    checked: OrdMap<Destination, Arc<Checked>>,
    /// Those among them that a host leads to since this change, or since one that it waits with.
    newly_used: OrdSet<Destination>,
    certificates: OrdMap<Arc<str>, Fetched>,
    certificates_of_query: OrdSet<(CertificateQuery, Arc<str>)>,
    /// What the listeners that serve a certificate show of it: a renewal leaves it as it is.
    shown: OrdMap<Arc<str>, Shown>,
    /// Documents of which something is still to come, by what stands in for it: a certificate's name, or a listener's.
    expecting: OrdMap<Expecting, DocumentId>,
    /// The secrets that each listener shows.
    secrets_of: OrdSet<(Arc<str>, Arc<str>)>,
    /// Destinations whose service nobody registered.
    unregistered: OrdSet<Destination>,
    /// How many resources each document has a part in.
    parts: OrdMap<DocumentId, usize>,
    diagnostics: OrdMap<UnitKey, Arc<[Diagnostic]>>,
}

/// A listener's route for plain TCP is a unit like a host, under no name: it waits, and uses destinations, the same way.
const NO_HOST: &str = "";

#[derive(Clone, Debug)]
struct HostUnit {
    /// None: held back, with nothing that stood before.
    made: Option<Made>,
    /// In order, each once.
    targets: Box<[Destination]>,
    features: BTreeSet<&'static str>,
    /// Its entries in `hosts_of`, each once. Mostly one: a set would keep room for eleven.
    follows: Box<[Interest]>,
}

/// What reaches Envoy of a unit.
#[derive(Clone, Debug)]
enum Made {
    Host(EncodedHost),
    /// It goes into its listener.
    Tcp {
        proxy: Result<TcpProxy, Unavailable>,
        origins: Vec<DocumentId>,
    },
}

impl HostUnit {
    fn host(&self) -> Option<&EncodedHost> {
        match self.made.as_ref()? {
            Made::Host(encoded) => Some(encoded),
            Made::Tcp { .. } => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Expecting {
    Certificate(Arc<str>),
    Listener(Arc<str>),
}

/// What is fetched under the name of a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    pub declared: Option<CertificateQuery>,
    /// Serves until the declared one is there.
    pub former: Option<CertificateQuery>,
}

impl Fetched {
    pub fn queries(&self) -> impl Iterator<Item = &CertificateQuery> {
        self.former.iter().chain(&self.declared)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    declared: Option<CertificateQuery>,
    /// None: no document declares it any more.
    document: Option<DocumentId>,
    refused: Option<NotAllowed>,
    /// None: it has not arrived.
    names: Option<Vec<Arc<str>>>,
    /// They are those of a former one.
    is_former: bool,
    /// What the declared one has brought, be it of no use: its names, and whether its key is here.
    brought: Option<(Vec<Arc<str>>, bool)>,
    problem: Option<Problem>,
}

/// What one step did.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// Something that reaches Envoy differs.
    pub changed: bool,
    /// Whose part in the resources differs, be it held back still. In order, each once.
    pub documents: Vec<DocumentId>,
    /// Watches that are needed now and were not, and the other way round.
    pub added: BTreeSet<Interest>,
    pub dropped: BTreeSet<Interest>,
    /// The same for certificates.
    pub certificates_added: BTreeSet<CertificateQuery>,
    pub certificates_dropped: BTreeSet<CertificateQuery>,
    /// Destinations whose instances are checked and to which some came, and how long a first check may take.
    pub unchecked: BTreeMap<Destination, Duration>,
    /// Units remade: what the benchmarks and tests count.
    pub units: usize,
}

/// What must be remade.
#[derive(Debug, Default)]
struct Work {
    hosts: BTreeSet<HostKey>,
    /// Those among them that turned out to have no route.
    gone: BTreeSet<HostKey>,
    tables: BTreeSet<Arc<str>>,
    listeners: BTreeSet<Arc<str>>,
    clusters: BTreeSet<Destination>,
    endpoints: BTreeSet<Destination>,
    secrets: BTreeSet<Arc<str>>,
    mesh_secrets: bool,
    /// Whose units are all here already: one may use many of what changed.
    users: BTreeSet<ObjectKey>,
    /// Its hosts have waited long enough.
    release: bool,
    released: BTreeSet<HostKey>,
}

impl Compiler {
    pub fn new(gateway: &str, settings: Settings) -> Self {
        Self {
            gateway: gateway.into(),
            settings,
            set: ResourceSet::default(),
            hosts: OrdMap::new(),
            wildcards: BTreeMap::new(),
            filters_used: BTreeMap::new(),
            target_users: OrdMap::new(),
            targets_of: OrdMap::new(),
            interests_of: OrdMap::new(),
            hosts_of: OrdSet::new(),
            held: OrdSet::new(),
            leaving: OrdMap::new(),
            opening: OrdMap::new(),
            outlived: OrdSet::new(),
            checked: OrdMap::new(),
            newly_used: OrdSet::new(),
            certificates: OrdMap::new(),
            certificates_of_query: OrdSet::new(),
            shown: OrdMap::new(),
            expecting: OrdMap::new(),
            secrets_of: OrdSet::new(),
            unregistered: OrdSet::new(),
            parts: OrdMap::new(),
            diagnostics: OrdMap::new(),
        }
    }

    pub fn gateway(&self) -> &Arc<str> {
        &self.gateway
    }

    pub fn resources(&self) -> &ResourceSet {
        &self.set
    }

    /// About each unit, as it was when the unit was made. What is said of a destination has no place: see
    /// [`crate::resolve::at_its_users`].
    pub fn diagnostics(&self) -> impl Iterator<Item = (&UnitKey, &Arc<[Diagnostic]>)> {
        self.diagnostics.iter()
    }

    /// Listener and host of each that has routes.
    pub fn hosts(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        let hosts = self.hosts.keys().filter(|(_, host)| **host != *NO_HOST);
        hosts.map(|(listener, host)| (listener, host))
    }

    /// By name.
    pub fn certificates(&self) -> &OrdMap<Arc<str>, Fetched> {
        &self.certificates
    }

    /// What is fetched, each once.
    pub fn certificate_queries(&self) -> BTreeSet<CertificateQuery> {
        let fetched = self.certificates.values();
        fetched.flat_map(Fetched::queries).cloned().collect()
    }

    /// Documents that no Envoy runs with yet, as something else stands in for what they name.
    pub fn expecting(&self) -> impl Iterator<Item = &DocumentId> {
        self.expecting.values()
    }

    /// Some resource was made from this document.
    pub fn has_part(&self, document: &DocumentId) -> bool {
        self.parts.contains_key(document)
    }

    /// Whether any listener of this gateway serves what this query brings.
    pub fn needs_certificate(&self, query: &CertificateQuery) -> bool {
        self.certificates_of(query).next().is_some()
    }

    /// Whether any destination of this gateway is fed by this watch.
    pub fn needs(&self, interest: &Interest) -> bool {
        self.interest_in_use(interest)
    }

    /// Some destination is a service that nobody registered: the names of those that are would help.
    pub fn lacks_a_service(&self) -> bool {
        !self.unregistered.is_empty()
    }

    /// Every watch this gateway needs, but those of certificates.
    pub fn interests(&self) -> BTreeSet<Interest> {
        self.targets_of.keys().cloned().collect()
    }

    /// The services among them.
    pub fn services(&self) -> BTreeSet<ServiceQuery> {
        let services = self
            .interests()
            .into_iter()
            .filter_map(|interest| match interest {
                Interest::Service(query) => Some(query),
                _ => None,
            });
        services.collect()
    }

    /// Some host is held back until its watches have answered: `stop_waiting` ends it.
    pub fn is_waiting(&self) -> bool {
        !self.held.is_empty()
    }

    /// From nothing: the plain form, which `update` must always agree with.
    pub fn compile(gateway: &str, settings: Settings, snapshot: &Snapshot) -> Self {
        let mut compiler = Self::new(
            gateway,
            Settings {
                hold_pending: false,
                ..settings.clone()
            },
        );
        compiler.rebuild(snapshot);
        compiler.settings = settings;
        compiler
    }

    /// Takes up everything anew, keeping what comes out the same.
    pub fn rebuild(&mut self, snapshot: &Snapshot) -> Compiled {
        let mut work = Work {
            mesh_secrets: true,
            ..Work::default()
        };
        self.whole_gateway(snapshot, &mut work);
        work.clusters.extend(self.target_users.keys().cloned());
        self.run(snapshot, work)
    }

    /// Takes up a change.
    pub fn update(&mut self, snapshot: &Snapshot, changes: &Changes) -> Compiled {
        let mut work = Work::default();
        for (key, (before, after)) in &changes.config.objects {
            self.object_changed(snapshot, key, before.as_ref(), after.as_ref(), &mut work);
        }
        for query in &changes.services {
            self.answered(&Interest::Service(query.clone()), &mut work);
        }
        for interest in &changes.mesh {
            self.answered(interest, &mut work);
            work.mesh_secrets |= *interest == Interest::Mesh;
        }
        for query in &changes.certificates {
            work.secrets.extend(self.certificates_of(query).cloned());
        }
        work.secrets.extend(changes.names.iter().cloned());
        let own = |(gateway, _): &&(Arc<str>, Arc<str>)| *gateway == self.gateway;
        work.listeners.extend(
            changes
                .listeners
                .iter()
                .filter(own)
                .map(|(_, listener)| listener.clone()),
        );
        self.run(snapshot, work)
    }

    pub fn held(&self) -> &Held {
        &self.held
    }

    /// Publishes all hosts that wait: what is unknown answers 503 from here on.
    pub fn stop_waiting(&mut self, snapshot: &Snapshot) -> Compiled {
        let all = self.held.clone();
        let mut compiled = self.release(snapshot, &all);
        let were_checked = self.unchecked();
        compiled.changed |= self.were_checked(snapshot, were_checked).changed;
        compiled
    }

    /// Those of them that waited long enough. A destination stands as it was while any other host waits for it.
    pub fn release(&mut self, snapshot: &Snapshot, hosts: &Held) -> Compiled {
        let mut work = Work {
            release: true,
            ..Work::default()
        };
        for key in hosts.iter().filter(|key| self.held.contains(*key)) {
            work.hosts.insert(key.clone());
            if let Some(unit) = self.hosts.get(key) {
                work.clusters.extend(unit.targets.iter().cloned());
            }
        }
        work.released.clone_from(&work.hosts);
        // Once nobody waits any more, nothing stands as it was.
        let hold = self.settings.hold_pending;
        self.settings.hold_pending &= work.hosts.len() < self.held.len();
        let compiled = self.run(snapshot, work);
        self.settings.hold_pending = hold;
        compiled
    }

    fn run(&mut self, snapshot: &Snapshot, mut work: Work) -> Compiled {
        let mut compiled = Compiled::default();
        let gateway = snapshot.config.gateway(&self.gateway).cloned();
        let routing_before = self.routings();
        for (listener, host) in std::mem::take(&mut work.hosts) {
            compiled.units += 1;
            self.host(
                snapshot,
                gateway.as_deref(),
                listener,
                host,
                &mut work,
                &mut compiled,
            );
        }
        self.hosts_go(gateway.as_deref(), &mut work, &mut compiled);
        self.secrets(snapshot, gateway.as_deref(), &mut work, &mut compiled);
        for target in &work.clusters {
            compiled.units += 1;
            self.destination(snapshot, target, &mut compiled);
        }
        for target in work.endpoints.difference(&work.clusters) {
            compiled.units += 1;
            self.endpoints(snapshot, target, &mut compiled);
        }
        self.used_as_before();
        for (listener, routing) in self.routings() {
            if routing_before.get(&listener) != Some(&routing) {
                work.listeners.insert(listener.clone());
                work.tables.insert(listener);
            }
        }
        for name in &work.tables {
            compiled.units += 1;
            self.table(name, &mut compiled);
        }
        let mut secrets: BTreeSet<Arc<str>> = work.secrets.iter().map(|name| secret_name(name)).collect();
        self.open_listeners(&mut work);
        let open_before = self.set.of_kind(ResourceKind::Listener).clone();
        for name in &work.listeners {
            compiled.units += 1;
            let before = self.secrets_named_by(name);
            self.listener(snapshot, gateway.as_deref(), name, &open_before, &mut compiled);
            let after = self.secrets_named_by(name);
            for secret in before.difference(&after) {
                self.secrets_of.remove(&(secret.clone(), name.clone()));
                secrets.insert(secret.clone());
            }
            for secret in after.difference(&before) {
                self.secrets_of.insert((secret.clone(), name.clone()));
                secrets.insert(secret.clone());
            }
        }
        for name in &secrets {
            self.secret(snapshot, gateway.as_deref(), name, &mut compiled);
        }
        if !work.listeners.is_empty() || self.set.of_kind(ResourceKind::Runtime).is_empty() {
            self.put(runtime_resource(gateway.as_deref()), &mut compiled);
        }
        let Compiled {
            added,
            dropped,
            certificates_added,
            certificates_dropped,
            ..
        } = &mut compiled;
        cancel_out(added, dropped);
        cancel_out(certificates_added, certificates_dropped);
        let begins_or_ends = |interests: &BTreeSet<Interest>| interests.contains(&Interest::Mesh);
        if work.mesh_secrets || begins_or_ends(&compiled.added) || begins_or_ends(&compiled.dropped) {
            self.mesh_secrets(snapshot, &mut compiled);
        }
        compiled.documents.sort_unstable();
        compiled.documents.dedup();
        compiled
    }

    fn say(&mut self, unit: UnitKey, diagnostics: Vec<Diagnostic>) {
        if diagnostics.is_empty() {
            self.diagnostics.remove(&unit);
        } else {
            self.diagnostics
                .insert(unit, first_of_each_document(diagnostics).into());
        }
    }
}

/// Each rule of a host may have something to say, and a host may be of several documents.
fn first_of_each_document(diagnostics: Vec<Diagnostic>) -> Vec<Diagnostic> {
    let mut by_document: BTreeMap<Option<DocumentId>, Problems> = BTreeMap::new();
    for diagnostic in diagnostics {
        let document = diagnostic.origin.as_ref().map(|origin| origin.document.clone());
        by_document.entry(document).or_default().push(diagnostic);
    }
    by_document.into_values().flat_map(Problems::told).collect()
}

/// What was dropped by one unit and added by another in one step did not change.
fn cancel_out<T: Ord + Clone>(added: &mut BTreeSet<T>, dropped: &mut BTreeSet<T>) {
    let both: Vec<T> = added.intersection(dropped).cloned().collect();
    for one in both {
        added.remove(&one);
        dropped.remove(&one);
    }
}

/// The name before all names: where a range of keys begins.
fn least() -> Arc<str> {
    static LEAST: LazyLock<Arc<str>> = LazyLock::new(|| "".into());
    LEAST.clone()
}

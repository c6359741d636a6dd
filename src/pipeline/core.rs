use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::accepted::AcceptedTexts;
use super::refusals::Refusals;
use super::store::{Restored, Store};
use super::view::{GatewayView, View};
use crate::config::{Config, Permissions, Quarantine};
use crate::envoy::{ResourceKind, ResourceSet};
use crate::hcl::Limits;
use crate::model::{CertificateQuery, DocumentId, Interests, Observation};
use crate::snapshot::{Changes, Snapshot};
use crate::translate::{Compiled, Compiler, Settings};
use crate::xds::{Event, StreamView, Streams};

/// How long a changed host waits for the first answer of a watch it is the first to need. Consul answers in
/// milliseconds; after this the host is published with 503 for what is not known.
const HOLD: Duration = Duration::from_secs(2);

/// How long a start waits for the sources before it serves what the disk holds.
const STALE_AFTER: Duration = Duration::from_secs(3);

/// Observations taken in one step: a storm is worked off in slices, so that events and stops get their turn.
const SLICE: usize = 4096;

#[derive(Clone, Debug)]
pub struct GatewaySettings {
    pub name: Arc<str>,
    pub compile: Settings,
}

#[derive(Clone, Debug)]
pub struct PipelineSettings {
    pub gateways: Vec<GatewaySettings>,
    pub permissions: Permissions,
    pub limits: Limits,
    /// Nothing is published before each of these has answered.
    pub document_sources: BTreeSet<Arc<str>>,
}

/// What the pipeline takes besides observations and events.
#[derive(Debug)]
pub enum Command {
    /// From now on documents from KV may reach this. Answered when it, and everything sent before, is published.
    Permit(Box<Permissions>, oneshot::Sender<()>),
}

/// Where the results go.
#[derive(Debug)]
pub struct Outputs {
    pub view: watch::Receiver<Arc<View>>,
    pub interests: watch::Receiver<Arc<Interests>>,
    /// Certificates whose key an Envoy asked for and nobody holds any more.
    pub wanted: mpsc::Receiver<CertificateQuery>,
    pub resources: BTreeMap<Arc<str>, watch::Receiver<Option<Arc<ResourceSet>>>>,
}

/// Counts what a look at the view cannot show.
pub trait Meter: Send + Sync {
    /// From taking a change from its source to handing the new resources to the streams.
    fn published(&self, latency: Duration);
    /// An Envoy refused resources of this kind.
    fn refused(&self, gateway: &Arc<str>, kind: ResourceKind);
}

pub struct Pipeline {
    meter: Option<Arc<dyn Meter>>,
    snapshot: Snapshot,
    gateways: Vec<Gateway>,
    refusals: Refusals,
    store: Option<Store>,
    accepted: AcceptedTexts,
    streams: Streams,
    view: watch::Sender<Arc<View>>,
    interests: watch::Sender<Arc<Interests>>,
    wanted: mpsc::Sender<CertificateQuery>,
    revision: u64,
    /// Set while some host waits for a watch.
    hold_until: Option<Instant>,
    /// Set until the document source has answered, when the disk held something.
    stale_at: Option<Instant>,
    stale: bool,
}

struct Gateway {
    compiler: Compiler,
    resources: watch::Sender<Option<Arc<ResourceSet>>>,
    published_at: Option<SystemTime>,
    /// The compiled set differs from the published one.
    due: bool,
}

impl Pipeline {
    pub fn new(
        settings: PipelineSettings,
        restored: Restored,
        store: Option<Store>,
        streams: Streams,
    ) -> (Self, Outputs) {
        let mut snapshot = Snapshot::new(
            Config::new(settings.permissions, settings.limits),
            settings.document_sources,
        );
        let has_documents = !restored.documents.is_empty();
        for quarantine in restored.quarantined {
            snapshot.restore_quarantine(quarantine);
        }
        snapshot.restore_documents(restored.documents);
        for (query, instances) in restored.services {
            snapshot.restore_service(query, instances);
        }
        let mut resources = BTreeMap::new();
        let mut compiled = Vec::new();
        let gateways = settings
            .gateways
            .into_iter()
            .map(|gateway| {
                let (sender, receiver) = watch::channel(None);
                resources.insert(gateway.name.clone(), receiver);
                let mut compiler = Compiler::new(&gateway.name, gateway.compile);
                compiled.push(compiler.rebuild(&snapshot));
                Gateway {
                    compiler,
                    resources: sender,
                    published_at: None,
                    due: true,
                }
            })
            .collect();
        let (wanted, wanted_receiver) = mpsc::channel(1024);
        let first_view = View {
            snapshot: snapshot.clone(),
            gateways: Vec::new(),
            revision: 0,
            stale: false,
        };
        let (view, view_receiver) = watch::channel(Arc::new(first_view));
        let (interests, interests_receiver) = watch::channel(Arc::new(Interests::default()));
        let stale_at = has_documents.then(|| Instant::now() + STALE_AFTER);
        let mut pipeline = Self {
            meter: None,
            snapshot,
            gateways,
            refusals: Refusals::default(),
            store,
            accepted: AcceptedTexts::default(),
            streams,
            view,
            interests,
            wanted,
            revision: 0,
            hold_until: None,
            stale_at,
            stale: false,
        };
        pipeline.renew_interests(&compiled);
        pipeline.publish();
        (
            pipeline,
            Outputs {
                view: view_receiver,
                interests: interests_receiver,
                wanted: wanted_receiver,
                resources,
            },
        )
    }

    pub fn with_meter(mut self, meter: Arc<dyn Meter>) -> Self {
        self.meter = Some(meter);
        self
    }

    /// Who is asked for the accepted text of a document that is bad while nothing of it is in service. The answer is an
    /// [`Observation::Accepted`].
    pub fn with_accepted_texts(mut self, wanted: mpsc::Sender<DocumentId>) -> Self {
        self.accepted = AcceptedTexts::ask_through(wanted);
        self
    }

    /// Runs until cancelled, or until every sender is gone.
    pub async fn run(
        mut self,
        mut observations: mpsc::Receiver<Observation>,
        mut events: mpsc::Receiver<Event>,
        mut commands: mpsc::Receiver<Command>,
        stop: CancellationToken,
    ) {
        let mut batch = Vec::new();
        let mut event_batch = Vec::new();
        loop {
            let timer = [self.hold_until, self.stale_at, self.accepted.deadline()]
                .into_iter()
                .flatten()
                .min();
            let far = Instant::now() + Duration::from_secs(3600);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                count = events.recv_many(&mut event_batch, SLICE) => {
                    if count == 0 { break }
                    for event in event_batch.drain(..) {
                        self.event(event);
                    }
                }
                count = observations.recv_many(&mut batch, SLICE) => {
                    if count == 0 { break }
                    self.observe(batch.drain(..));
                }
                Some(command) = commands.recv() => match command {
                    Command::Permit(permissions, done) => {
                        while let Ok(observation) = observations.try_recv() {
                            self.observe([observation]);
                        }
                        let changes = self.snapshot.permit(*permissions);
                        self.take_up(&changes);
                        // Nobody may be waiting any more.
                        let _ = done.send(());
                    }
                },
                () = sleep_until(timer.unwrap_or(far)) => self.tick(),
            }
        }
        if let Some(store) = &self.store {
            store.flush();
        }
    }

    fn observe(&mut self, observations: impl IntoIterator<Item = Observation>) {
        let started = Instant::now();
        let revision = self.revision;
        let mut changes = Changes::default();
        for observation in observations {
            if let Some(store) = &self.store
                && let Observation::Service(update) = &observation
                && let Ok(instances) = &update.result
            {
                store.service(&update.query, instances);
            }
            if let Observation::Accepted(accepted) = &observation {
                self.accepted.answered(&accepted.document);
                // Even if it brings nothing: the first publication may have waited for it.
                changes.status_only = true;
            }
            changes.merge(self.snapshot.apply(observation));
        }
        if self.snapshot.documents_complete() {
            self.stale_at = None;
            self.stale = false;
        }
        self.take_up(&changes);
        if let Some(meter) = &self.meter
            && self.revision != revision
        {
            meter.published(started.elapsed());
        }
    }

    fn take_up(&mut self, changes: &Changes) {
        if changes.is_empty() {
            if changes.status_only {
                self.publish();
            }
            return;
        }
        self.refusals.changed(&changes.config.documents);
        self.accepted
            .review(&self.snapshot.config, &changes.config.documents);
        self.save_documents(&changes.config.documents);
        self.say_documents(&changes.config.documents);
        let mut all = Vec::with_capacity(self.gateways.len());
        for gateway in &mut self.gateways {
            let compiled = gateway.compiler.update(&self.snapshot, changes);
            gateway.due |= compiled.changed;
            all.push(compiled);
        }
        self.renew_interests(&all);
        let waiting = self.gateways.iter().any(|gateway| gateway.compiler.is_waiting());
        self.hold_until = match (waiting, self.hold_until) {
            (true, None) => Some(Instant::now() + HOLD),
            (true, already) => already,
            (false, _) => None,
        };
        self.publish();
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if self.accepted.tick(now) {
            self.publish();
        }
        if self.stale_at.is_some_and(|at| at <= now) {
            self.stale_at = None;
            self.stale = true;
            tracing::warn!("the document source does not answer: serving the last published state from disk");
            self.publish();
        }
        if self.hold_until.is_some_and(|at| at <= now) {
            self.hold_until = None;
            let mut all = Vec::with_capacity(self.gateways.len());
            for gateway in &mut self.gateways {
                let compiled = gateway.compiler.stop_waiting(&self.snapshot);
                gateway.due |= compiled.changed;
                all.push(compiled);
            }
            self.renew_interests(&all);
            self.publish();
        }
    }

    /// Watches are shared by all gateways; what nobody needs any more is dropped and forgotten. Only what the gateways
    /// say they began or ceased to need is looked at, however many watches there are.
    fn renew_interests(&mut self, all: &[Compiled]) {
        let before = self.interests.borrow().clone();
        let mut interests = Interests::clone(&before);
        let mut differ = false;
        for query in all.iter().flat_map(|compiled| &compiled.services_dropped) {
            let needed = |gateway: &Gateway| gateway.compiler.needs_service(query);
            if self.gateways.iter().any(needed) || interests.services.remove(query).is_none() {
                continue;
            }
            differ = true;
            self.snapshot.forget_service(query);
            if let Some(store) = &self.store {
                store.service_gone(query);
            }
        }
        for query in all.iter().flat_map(|compiled| &compiled.services_added) {
            differ |= interests.services.insert(query.clone()).is_none();
        }
        if all.iter().any(|compiled| compiled.certificates_changed) {
            interests.certificates = self
                .gateways
                .iter()
                .flat_map(|gateway| gateway.compiler.certificates().values().cloned())
                .collect();
            for query in before.certificates.difference(&interests.certificates) {
                self.snapshot.forget_certificate(query);
            }
            differ |= before.certificates != interests.certificates;
        }
        let service_names = self
            .gateways
            .iter()
            .any(|gateway| gateway.compiler.lacks_a_service());
        if interests.service_names != service_names {
            interests.service_names = service_names;
            differ = true;
        }
        if differ {
            self.interests.send_replace(Arc::new(interests));
        }
    }

    fn publish(&mut self) {
        let known = self.snapshot.documents_complete() || self.stale;
        let mut views = Vec::with_capacity(self.gateways.len());
        for gateway in &mut self.gateways {
            let waiting_for = if gateway.published_at.is_some() {
                Vec::new()
            } else {
                let mut missing = missing(&self.snapshot, &gateway.compiler, known, self.stale);
                missing.extend(self.accepted.waiting_for());
                missing
            };
            if waiting_for.is_empty() && (gateway.due || gateway.published_at.is_none()) {
                gateway.due = false;
                if gateway.published_at.is_none() {
                    tracing::info!(gateway = %gateway.compiler.gateway(), resources = gateway.compiler.resources().len(), "first publication");
                }
                gateway.published_at = Some(SystemTime::now());
                gateway
                    .resources
                    .send_replace(Some(Arc::new(gateway.compiler.resources().clone())));
                self.revision += 1;
            }
            views.push(GatewayView {
                name: gateway.compiler.gateway().clone(),
                compiler: gateway.compiler.clone(),
                published_at: gateway.published_at,
                waiting_for,
            });
        }
        self.view.send_replace(Arc::new(View {
            snapshot: self.snapshot.clone(),
            gateways: views,
            revision: self.revision,
            stale: self.stale,
        }));
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Acked { stream, gateway, .. } => {
                let view = self.streams.find(stream);
                self.acked(&gateway, view.as_slice());
            }
            Event::Nacked {
                gateway,
                node,
                kind,
                candidates,
                blamed,
                proven,
                message,
                ..
            } => {
                tracing::error!(%gateway, %node, ?kind, ?blamed, proven, %message, "Envoy refused a configuration");
                if let Some(meter) = &self.meter {
                    meter.refused(&gateway, kind);
                }
                if proven {
                    for resource in candidates
                        .iter()
                        .filter(|resource| blamed.contains(&resource.name))
                    {
                        let quarantines =
                            self.refusals
                                .refused(&self.snapshot.config, resource, &node, &message);
                        if quarantines.is_empty() {
                            tracing::error!(%gateway, ?resource, "no document is behind the refused resource; Envoy keeps its last version");
                        }
                        self.quarantine(quarantines);
                    }
                }
            }
            Event::Wanted {
                gateway,
                kind: ResourceKind::Secret,
                name,
                ..
            } => self.want(&gateway, &name),
            Event::Wanted {
                gateway, kind, name, ..
            } => {
                tracing::warn!(%gateway, ?kind, %name, "an Envoy asks for a resource that nobody holds");
            }
            Event::Connected {
                node,
                gateway,
                variant,
                ..
            } => {
                tracing::info!(%node, %gateway, ?variant, "Envoy connected");
                self.publish();
            }
            Event::Disconnected { node, gateway, .. } => {
                tracing::info!(%node, %gateway, "Envoy disconnected");
                self.publish();
            }
            Event::Refused {
                peer,
                node,
                reason,
                message,
            } => {
                let node = node.as_deref().unwrap_or_default();
                tracing::warn!(%peer, node, ?reason, %message, "an xDS client was refused");
            }
            Event::Lagged { lost } => {
                tracing::warn!(
                    lost,
                    "events from Envoys were dropped: reading what each Envoy acknowledged"
                );
                let names: Vec<Arc<str>> = self
                    .gateways
                    .iter()
                    .map(|known| known.compiler.gateway().clone())
                    .collect();
                for gateway in names {
                    let streams = self.streams.of_gateway(&gateway);
                    self.acked(&gateway, &streams);
                }
            }
        }
    }

    /// When one Envoy runs with everything as published, the documents are confirmed: what a later refusal goes back to.
    ///
    /// Only who spoke is looked at: with a look at all, a change would cost the square of the number of Envoys.
    fn acked(&mut self, gateway: &str, streams: &[StreamView]) {
        let Some(published) = self
            .gateways
            .iter()
            .find(|known| &**known.compiler.gateway() == gateway)
        else {
            return;
        };
        let set = published.compiler.resources();
        let settled = streams.iter().any(|stream| {
            stream.is_settled()
                && ResourceKind::ALL
                    .iter()
                    .all(|kind| set.changes_since(&stream.acked, *kind).next().is_none())
        });
        if !settled || published.due {
            return;
        }
        let confirmed = self.refusals.settled();
        for id in &confirmed {
            self.snapshot.config.confirm(id);
        }
        if !confirmed.is_empty() {
            // Whoever shares accepted texts looks at the view.
            self.publish();
        }
        if let Some(id) = self.refusals.next_trial() {
            let changes = self.snapshot.lift_quarantine(&id);
            if let Some(store) = &self.store {
                store.quarantine_over(id.as_str());
            }
            self.take_up(&changes);
        }
    }

    fn quarantine(&mut self, quarantines: Vec<Quarantine>) {
        let mut changes = Changes::default();
        for quarantine in quarantines {
            if let Some(store) = &self.store {
                store.quarantine(&quarantine);
            }
            changes.merge(self.snapshot.quarantine(quarantine));
        }
        self.take_up(&changes);
    }

    fn want(&self, gateway: &str, secret: &str) {
        let query = self
            .gateways
            .iter()
            .filter(|known| &**known.compiler.gateway() == gateway)
            .flat_map(|known| known.compiler.certificates())
            .find(|(name, _)| *crate::resolve::secret_name(name) == *secret)
            .map(|(_, query)| query.clone());
        // A full queue: many Envoys ask for the same few certificates, and ask again.
        if let Some(query) = query {
            let _ = self.wanted.try_send(query);
        }
    }

    /// The texts in service are what a restart goes on with.
    fn save_documents(&self, documents: &BTreeSet<DocumentId>) {
        let Some(store) = &self.store else { return };
        for id in documents {
            match self.snapshot.config.document(id) {
                Some(state) => {
                    if let Some(parsed) = &state.in_service {
                        store.document(&parsed.document);
                    }
                }
                None => {
                    store.document_gone(id.as_str());
                    store.quarantine_over(id.as_str());
                }
            }
        }
    }

    /// What is wrong with them is told by whoever reads the view.
    fn say_documents(&self, documents: &BTreeSet<DocumentId>) {
        for id in documents {
            match self.snapshot.config.document(id) {
                Some(state) if state.problems.is_empty() => tracing::info!(document = %id, "document taken"),
                Some(_) => tracing::info!(document = %id, "document not taken"),
                None => tracing::info!(document = %id, "document removed"),
            }
        }
    }
}

/// "Not known yet" is not "empty": what the first publication still waits for.
fn missing(snapshot: &Snapshot, compiler: &Compiler, documents_known: bool, stale: bool) -> Vec<String> {
    if !documents_known {
        return vec!["the documents".to_owned()];
    }
    let services = compiler.services();
    let unanswered = services.iter().filter(|query| !snapshot.service_answered(query));
    let mut missing: Vec<String> = unanswered.map(|query| format!("service {query}")).collect();
    if stale {
        // Consul is away: what is not on disk stays unknown, and everything else is served.
        missing.clear();
    }
    let certificates = compiler
        .certificates()
        .values()
        .filter(|query| !snapshot.certificate_answered(query));
    missing.extend(certificates.map(|query| format!("certificate {query}")));
    missing
}

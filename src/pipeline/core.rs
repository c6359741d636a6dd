use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::accepted::{AcceptedTexts, Outcome, Served};
use super::events::Look;
use super::flood::{Flood, Repeats, WINDOW};
use super::gateway::{Gateway, Receivers};
use super::narrower::Narrower;
use super::refusals::Refusals;
use super::start::{self, Start};
use super::store::{Restored, Store};
use super::view::View;
use super::wishes::KeyWishes;
use super::withheld::Withheld;
use crate::config::{Config, Permissions};
use crate::envoy::ResourceKind;
use crate::hcl::Limits;
use crate::model::mesh::Interest;
use crate::model::{DocumentId, Interests, Observation, ServiceQuery};
use crate::snapshot::{Changes, Snapshot};
use crate::translate::{Compiled, Compiler, Settings};
use crate::xds::{Event, RefusedReason, Streams};

/// How long a changed host waits for the first answer of a watch it is the first to need. Consul answers in
/// milliseconds; after this the host is published with 503 for what is not known, and a listener opens that waits for it.
pub(super) const HOLD: Duration = Duration::from_secs(2);

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
    /// Documents from before a restart that none of them speaks for: they end when all have answered.
    pub ownerless: Vec<DocumentId>,
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
    pub wanted: KeyWishes,
    pub resources: Receivers,
}

/// Counts what a look at the view cannot show.
pub trait Meter: Send + Sync {
    /// From taking up changes to handing the new resources to the streams. What waited in the queue before is not in it.
    fn published(&self, latency: Duration);
    /// An Envoy refused resources of this kind.
    fn refused(&self, gateway: &Arc<str>, kind: ResourceKind);
}

pub struct Pipeline {
    pub(super) meter: Option<Arc<dyn Meter>>,
    pub(super) snapshot: Snapshot,
    pub(super) gateways: Vec<Gateway>,
    pub(super) refusals: Refusals,
    pub(super) store: Option<Store>,
    accepted: AcceptedTexts,
    became: Flood<Became>,
    pub(super) refused_clients: Flood<RefusedReason>,
    pub(super) refused_again: Repeats<(RefusedReason, String, String, Arc<str>)>,
    pub(super) narrower: Narrower,
    ownerless: Vec<DocumentId>,
    pub(super) streams: Streams,
    view: watch::Sender<Arc<View>>,
    interests: watch::Sender<Arc<Interests>>,
    pub(super) wanted: KeyWishes,
    /// Counts the wishes for watches.
    wish: u64,
    revision: u64,
    /// Something is to be seen on streams alone.
    pub(super) is_view_due: bool,
    /// Set while some Envoy has not said all that it could.
    pub(super) look: Option<Look>,
    /// Set until the document source has answered, when the disk held something.
    stale_at: Option<Instant>,
    stale: bool,
    start: Start,
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
        )
        .serving_gateways(
            settings
                .gateways
                .iter()
                .map(|gateway| gateway.name.clone())
                .collect(),
        );
        let has_documents = !restored.documents.is_empty();
        for quarantine in restored.quarantined {
            snapshot.restore_quarantine(quarantine);
        }
        snapshot.restore_documents(restored.confirmed, restored.documents);
        for (query, instances) in restored.services {
            snapshot.restore_service(query, instances);
        }
        for (query, chain) in restored.chains {
            snapshot.restore_chain(query, chain);
        }
        if let Some((leaf, roots)) = restored.mesh {
            snapshot.restore_mesh(leaf, roots);
        }
        let mut withheld = restored.withheld;
        let mut resources = Receivers::new();
        let mut compiled = Vec::new();
        let gateways = settings
            .gateways
            .into_iter()
            .map(|gateway| {
                let (sender, receiver) = watch::channel(None);
                resources.insert(gateway.name.clone(), receiver);
                let mut compiler = Compiler::new(&gateway.name, gateway.compile);
                let made = compiler.rebuild(&snapshot);
                let kept = withheld.remove(&gateway.name).unwrap_or_default();
                let gateway = Gateway::new(compiler, &made, Withheld::restored(kept), sender);
                compiled.push(made);
                gateway
            })
            .collect();
        let wanted = KeyWishes::default();
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
            refusals: Refusals::restored(&snapshot),
            snapshot,
            gateways,
            store,
            accepted: AcceptedTexts::default(),
            became: Flood::default(),
            refused_clients: Flood::default(),
            refused_again: Repeats::default(),
            narrower: Narrower::default(),
            ownerless: settings.ownerless,
            streams,
            view,
            interests,
            wanted: wanted.clone(),
            wish: 0,
            revision: 0,
            is_view_due: false,
            look: None,
            stale_at,
            stale: false,
            start: Start::default(),
        };
        pipeline.renew_interests(&compiled);
        pipeline.forget_unneeded();
        pipeline.publish();
        (
            pipeline,
            Outputs {
                view: view_receiver,
                interests: interests_receiver,
                wanted,
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
    pub fn with_accepted_texts(mut self, wanted: mpsc::UnboundedSender<DocumentId>) -> Self {
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
            let timers = [
                self.hold_deadline(),
                self.stale_at,
                self.start.deadline(),
                self.accepted.deadline(),
                self.refusals.deadline(),
                self.became.deadline(),
                self.accepted.log_deadline(),
                self.look.map(|look| look.at),
                self.narrower.deadline(),
            ];
            let timer = timers.into_iter().flatten().min();
            let far = Instant::now() + Duration::from_secs(3600);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                count = events.recv_many(&mut event_batch, SLICE) => {
                    if count == 0 { break }
                    for event in event_batch.drain(..) {
                        self.event(event);
                    }
                    // Once for all of them: what many Envoys refuse in one moment is one case.
                    self.judge();
                    if std::mem::take(&mut self.is_view_due) {
                        self.publish();
                    }
                    self.go_on();
                    self.tick_if_due(timer);
                }
                Some(command) = commands.recv() => match command {
                    Command::Permit(permissions, done) => {
                        // Together: a thousand certificates of one listener, each by itself, would make that listener a
                        // thousand times.
                        let queued = observations.len();
                        self.observe(std::iter::from_fn(|| observations.try_recv().ok()).take(queued));
                        let changes = self.snapshot.permit(*permissions);
                        self.take_up(&changes);
                        // Nobody may be waiting any more.
                        let _ = done.send(());
                    }
                },
                count = observations.recv_many(&mut batch, SLICE) => {
                    if count == 0 { break }
                    self.observe(batch.drain(..));
                    self.tick_if_due(timer);
                }
                () = sleep_until(timer.unwrap_or(far)) => self.tick(),
            }
        }
        say_counts(self.became.rest());
        self.accepted.say_rest();
        if let Some(store) = &self.store {
            store.flush();
        }
    }

    fn observe(&mut self, observations: impl IntoIterator<Item = Observation>) {
        let started = Instant::now();
        let revision = self.revision;
        let mut changes = Changes::default();
        for observation in observations {
            let observation = self.admit(observation);
            if let Some(store) = &self.store {
                store.observed(&observation);
            }
            if let Observation::Accepted(accepted) = &observation {
                // Even if it brings nothing: the first publication may have waited for it.
                changes.status_only = true;
                let (id, has_text) = (accepted.document.clone(), accepted.text.is_some());
                let served = Served::of(&self.snapshot.config, &id);
                changes.merge(self.snapshot.apply(observation));
                let serves = Served::of(&self.snapshot.config, &id);
                let outcome = Outcome::of(served, serves, has_text);
                self.accepted.answered(&id, outcome);
                continue;
            }
            changes.merge(self.snapshot.apply(observation));
        }
        if self.snapshot.documents_complete() {
            self.stale_at = None;
            self.stale = false;
            self.start.heard(Instant::now());
            let ownerless = std::mem::take(&mut self.ownerless);
            changes.merge(self.snapshot.forget_documents(ownerless));
        }
        self.lift_dependents(&mut changes);
        self.take_up(&changes);
        // What no longer needs a host is a document; what else may let one go is looked at by the clock.
        if !changes.config.objects.is_empty() {
            self.take_narrower();
        }
        self.forget_late_answers(&changes);
        for query in self.snapshot.keys_to_fetch() {
            self.wanted.add(query);
        }
        if let Some(meter) = &self.meter
            && self.revision != revision
        {
            meter.published(started.elapsed());
        }
    }

    /// An answer that comes after its watch was dropped is forgotten again.
    fn forget_late_answers(&mut self, changes: &Changes) {
        let interests = self.interests.borrow().clone();
        let services = changes.services.iter().cloned().map(Interest::Service);
        for interest in services.chain(changes.mesh.iter().cloned()) {
            if !interests.contains(&interest) {
                self.forget(&interest);
            }
        }
        for query in &changes.certificates {
            if !interests.certificates.contains_key(query) {
                self.snapshot.forget_certificate(query);
            }
        }
    }

    fn forget(&mut self, interest: &Interest) {
        self.snapshot.forget(interest);
        if let Some(store) = &self.store {
            store.gone(interest);
        }
    }

    pub(super) fn take_up(&mut self, changes: &Changes) {
        if changes.is_empty() {
            if changes.status_only {
                self.publish();
            }
            return;
        }
        self.accepted
            .review(&self.snapshot.config, &changes.config.documents);
        self.save_documents(&changes.config.documents);
        self.say_documents(&changes.config.documents);
        let watches =
            |queries: &BTreeSet<ServiceQuery>| queries.iter().cloned().map(Interest::Service).collect();
        let mut all = vec![Compiled {
            added: watches(&changes.watched),
            dropped: watches(&changes.unwatched),
            ..Compiled::default()
        }];
        for gateway in &mut self.gateways {
            let compiled = gateway.compiler.update(&self.snapshot, changes);
            gateway.compiled(&compiled);
            all.push(compiled);
        }
        self.renew_interests(&all);
        let now = Instant::now();
        for gateway in &mut self.gateways {
            gateway.note_held(now + HOLD);
        }
        self.publish();
        // A text that becomes the same resources as the one before has nothing to wait for.
        if self.confirm(&changes.config.documents) {
            self.publish();
        }
        if !changes.config.documents.is_empty() {
            self.look_soon();
        }
    }

    /// Where something always comes, the timer's own turn never does.
    fn tick_if_due(&mut self, timer: Option<Instant>) {
        if timer.is_some_and(|at| at <= Instant::now()) {
            self.tick();
        }
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
            // What waits for a watch goes without it: an Envoy that runs would lose the host.
            self.release(|gateway, snapshot| gateway.release_all(snapshot));
            self.publish();
        }
        if self.start.tick(now) {
            self.open_without_services();
        }
        if self.hold_deadline().is_some_and(|at| at <= now) {
            self.release(|gateway, snapshot| gateway.release_held(snapshot, now));
            self.publish();
            self.look_soon();
        }
        self.say_more(now);
        self.accepted.say_more(now);
        if self.refusals.deadline().is_some_and(|at| at <= now) {
            self.judge();
        }
        if self.narrower.deadline().is_some_and(|at| at <= now) {
            self.take_narrower();
        }
        if self.look.is_some_and(|look| look.at <= now) {
            self.look_around();
        }
    }

    fn hold_deadline(&self) -> Option<Instant> {
        self.gateways.iter().filter_map(Gateway::hold_deadline).min()
    }

    /// Hosts that have waited long enough are published with what is known.
    pub(super) fn release(&mut self, release: impl Fn(&mut Gateway, &Snapshot) -> Compiled) {
        let mut all = Vec::with_capacity(self.gateways.len());
        for gateway in &mut self.gateways {
            all.push(release(gateway, &self.snapshot));
        }
        self.renew_interests(&all);
    }

    /// Watches are shared by all gateways; what nobody needs any more is dropped and forgotten. Only what the gateways
    /// say they began or ceased to need is looked at, however many watches there are.
    fn renew_interests(&mut self, all: &[Compiled]) {
        let mut interests = Interests::clone(&self.interests.borrow());
        let mut differ = false;
        for interest in all.iter().flat_map(|compiled| &compiled.dropped) {
            let needed = |gateway: &Gateway| gateway.compiler.needs(interest);
            let exposed = matches!(interest, Interest::Service(query) if self.snapshot.is_exposed(query));
            if exposed || self.gateways.iter().any(needed) || !interests.remove(interest) {
                continue;
            }
            differ = true;
            self.forget(interest);
        }
        for interest in all.iter().flat_map(|compiled| &compiled.added) {
            if !interests.contains(interest) {
                self.wish += 1;
                interests.insert(interest, self.wish);
                differ = true;
            }
        }
        for query in all.iter().flat_map(|compiled| &compiled.certificates_dropped) {
            let needed = |gateway: &Gateway| gateway.compiler.needs_certificate(query);
            if self.gateways.iter().any(needed) || interests.certificates.remove(query).is_none() {
                continue;
            }
            differ = true;
            self.snapshot.forget_certificate(query);
        }
        for query in all.iter().flat_map(|compiled| &compiled.certificates_added) {
            if !interests.certificates.contains_key(query) {
                self.wish += 1;
                interests.certificates.insert(query.clone(), self.wish);
                differ = true;
            }
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

    /// What the disk still had of watches that no document asks for.
    fn forget_unneeded(&mut self) {
        let interests = self.interests.borrow().clone();
        let services = self.snapshot.services().map(|(query, _)| query.clone());
        let chains = self.snapshot.chains().map(|(query, _)| query.clone());
        let unneeded: Vec<Interest> = services
            .map(Interest::Service)
            .chain(chains.map(Interest::chain))
            .chain([Interest::Mesh])
            .filter(|interest| !interests.contains(interest))
            .collect();
        for interest in unneeded {
            self.forget(&interest);
        }
    }

    pub(super) fn publish(&mut self) {
        let known = self.snapshot.documents_complete() || self.stale;
        let mut views = Vec::with_capacity(self.gateways.len());
        for gateway in &mut self.gateways {
            let waiting_for = if gateway.published_at.is_some() {
                Vec::new()
            } else {
                let came_with_state = || {
                    let streams = self.streams.of_gateway(gateway.name());
                    streams.iter().any(|stream| stream.came_with_state)
                };
                // Consul is away, or one of those that it would ask: everything else is served.
                let without = self.stale || self.start.opens_without_services(came_with_state);
                let mut missing = start::missing(&self.snapshot, &gateway.compiler, known, without);
                missing.extend(self.accepted.waiting_for());
                missing
            };
            if waiting_for.is_empty() && gateway.publish() {
                self.revision += 1;
                if let (Some(all), Some(store)) = (gateway.withheld.take_unsaved(), &self.store) {
                    store.withheld(gateway.name(), all);
                }
            }
            views.push(gateway.view(waiting_for));
        }
        self.view.send_replace(Arc::new(View {
            snapshot: self.snapshot.clone(),
            gateways: views,
            revision: self.revision,
            stale: self.stale,
        }));
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
    fn say_documents(&mut self, documents: &BTreeSet<DocumentId>) {
        let now = Instant::now();
        self.say_more(now);
        for id in documents {
            let became = match self.snapshot.config.document(id) {
                Some(state) if state.problems.is_empty() => Became::Taken,
                Some(_) => Became::NotTaken,
                None => Became::Removed,
            };
            if !self.became.admits(became, now) {
                continue;
            }
            match became {
                Became::Taken => tracing::info!(document = %id, "document taken"),
                Became::NotTaken => tracing::info!(document = %id, "document not taken"),
                Became::Removed => tracing::info!(document = %id, "document removed"),
            }
        }
    }

    fn say_more(&mut self, now: Instant) {
        say_counts(self.became.over(now));
    }
}

fn say_counts(counts: BTreeMap<Became, usize>) {
    for (became, count) in counts {
        tracing::info!(count, ?became, window = ?WINDOW, "and so with more documents");
    }
}

/// What the log says of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Became {
    Taken,
    NotTaken,
    Removed,
}

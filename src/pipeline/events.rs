//! What Envoys say: acknowledgements confirm texts, refusals take them out of service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::core::Pipeline;
use super::gateway::find;
use super::refusals::{Case, Others, Refused, Verdict, of_resource};
use crate::config::Quarantine;
use crate::envoy::ResourceKind;
use crate::model::DocumentId;
use crate::snapshot::Changes;
use crate::translate::Fetched;
use crate::xds::{Event, StreamId, StreamView, is_of_node, said_of};

/// What no event tells is looked at after this, and then ever more seldom: an Envoy that came back with everything, a
/// gateway that never gets one.
const LOOK: Duration = Duration::from_secs(1);
/// The same while something is judged or tried: going back to what Envoy has needs no answer of it.
const LOOK_BUSY: Duration = Duration::from_millis(50);
const LOOK_MAX: Duration = Duration::from_secs(60);

/// A look at all streams that are still to say something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub at: Instant,
    pause: Duration,
}

impl Pipeline {
    pub(super) fn event(&mut self, event: Event) {
        match event {
            Event::Acked {
                stream,
                gateway,
                resources,
                removed,
                ..
            } => {
                let mut is_over = false;
                for resource in &resources {
                    is_over |= self.refusals.is_over(stream, resource);
                }
                if is_over {
                    self.publish();
                }
                // Endpoints come from no document: the steady stream of their answers has nothing to confirm.
                if !removed.is_empty() || resources.iter().any(|resource| !resource.origins.is_empty()) {
                    let view = self.streams.find(stream);
                    self.heard(&gateway, view.as_slice());
                }
            }
            Event::Nacked {
                stream,
                gateway,
                node,
                kind,
                candidates,
                blamed,
                proven,
                message,
            } => {
                if let Some(meter) = &self.meter {
                    meter.refused(&gateway, kind);
                }
                if !proven {
                    tracing::warn!(%gateway, %node, ?kind, %message, "Envoy refused a configuration: the bad part is being looked for");
                }
                for resource in candidates
                    .iter()
                    .filter(|resource| proven && blamed.contains(&resource.name))
                {
                    let said = said_of(kind, &message, &resource.name, &blamed);
                    if !is_of_node(kind, &said) {
                        tracing::error!(%gateway, %node, ?resource, message = %said, "Envoy refused a configuration");
                    }
                    self.refusals
                        .open(Refused::new(&gateway, (stream, &node), resource, said));
                }
                let view = self.streams.find(stream);
                self.heard(&gateway, view.as_slice());
            }
            Event::Wanted {
                gateway, kind, name, ..
            } => self.wanted(&gateway, kind, &name),
            Event::Connected { stream, gateway, .. } => {
                if let Some(known) = find(&mut self.gateways, &gateway) {
                    known.connected(stream);
                }
                self.look_soon();
                self.publish();
            }
            Event::Disconnected { stream, gateway, .. } => {
                if let Some(known) = find(&mut self.gateways, &gateway) {
                    known.disconnected(stream);
                }
                self.refusals.disconnected(stream);
                self.publish();
            }
            Event::Refused {
                peer,
                node,
                reason,
                message,
            } => {
                // Whoever reaches the port can ask as often as it likes.
                let now = Instant::now();
                for (reason, count) in self.refused_clients.over(now) {
                    tracing::warn!(count, ?reason, "xDS clients were refused, besides those told");
                }
                let node = node.as_deref().unwrap_or_default();
                // An Envoy that gets nothing comes again every second, from another port.
                let what = (reason, peer.identity(), node.to_owned(), message.clone());
                let Some(before) = self.refused_again.admits(what, now) else {
                    return;
                };
                if self.refused_clients.admits(reason, now) {
                    match before {
                        0 => tracing::warn!(%peer, node, ?reason, %message, "an xDS client was refused"),
                        before => {
                            tracing::warn!(%peer, node, ?reason, %message, before, "an xDS client was refused again");
                        }
                    }
                }
            }
            Event::Lagged { lost } => {
                tracing::warn!(
                    lost,
                    "events from Envoys were dropped: reading what each Envoy acknowledged, refused and wants"
                );
                self.read_all_streams();
            }
        }
    }

    /// Takes from the views what the lost events would have told.
    fn read_all_streams(&mut self) {
        self.refusals.recount(&self.streams.snapshot());
        let names: Vec<Arc<str>> = self.gateways.iter().map(|known| known.name().clone()).collect();
        for name in names {
            let streams = self.streams.of_gateway(&name);
            let Some(gateway) = find(&mut self.gateways, &name) else {
                continue;
            };
            gateway.recount(&streams);
            let mut refused = Vec::new();
            for stream in &streams {
                for kind in ResourceKind::ALL {
                    for (resource, refusal) in &stream.kind(kind).refused {
                        let published = gateway.published().get(kind, resource);
                        if let Some(published) = published.filter(|it| it.version == refusal.version) {
                            let from = (stream.id, &stream.node);
                            refused.push(Refused::new(&name, from, published, refusal.message.clone()));
                        }
                    }
                }
            }
            self.refusals.open_missing(refused);
            for stream in &streams {
                for kind in ResourceKind::ALL {
                    for wanted in &stream.kind(kind).wanted {
                        self.wanted(&name, kind, wanted);
                    }
                }
                for wanted in stream.withheld.iter().flat_map(|withheld| &*withheld.lacks) {
                    self.wanted(&name, ResourceKind::Secret, wanted);
                }
            }
            self.heard(&name, &streams);
        }
        // Whoever tells who is connected, or what is over, reads the streams with the view.
        self.is_view_due = true;
    }

    /// Another key can be issued. What is only read has no other: its source is asked as often as ever.
    fn wanted(&mut self, gateway: &str, kind: ResourceKind, name: &str) {
        // Whoever tells what is wrong reads the streams with the view.
        self.is_view_due = true;
        if kind != ResourceKind::Secret {
            tracing::warn!(%gateway, ?kind, %name, "an Envoy asks for a resource that nobody holds");
            return;
        }
        let Some(certificate) = crate::resolve::certificate_of_secret(name) else {
            return;
        };
        let known = self.gateways.iter().find(|known| **known.name() == *gateway);
        let fetched = known.and_then(|known| known.compiler.certificates().get(certificate));
        let queries = fetched.into_iter().flat_map(Fetched::queries);
        for query in queries.filter(|query| !query.is_read()) {
            self.wanted.add(query.clone());
        }
    }

    /// Some Envoys of a gateway have spoken.
    ///
    /// Only they are looked at: with a look at all, a change would cost the square of the number of Envoys.
    fn heard(&mut self, gateway: &str, streams: &[StreamView]) {
        let mut acknowledged = BTreeSet::new();
        if let Some(known) = find(&mut self.gateways, gateway) {
            acknowledged = known.acknowledged_by_any(streams);
        }
        if self.confirm_acknowledged(&acknowledged) {
            // Whoever shares accepted texts looks at the view.
            self.publish();
        }
    }

    /// Confirms what an Envoy acknowledged just now. That may be that nothing is left of it: such a text has no part
    /// anywhere any more, and whoever let it go has acknowledged it.
    fn confirm_acknowledged(&mut self, documents: &BTreeSet<DocumentId>) -> bool {
        let now = Instant::now();
        let (left, gone): (BTreeSet<DocumentId>, BTreeSet<DocumentId>) =
            documents.iter().cloned().partition(|id| {
                let mut gateways = self.gateways.iter();
                gateways.any(|gateway| {
                    gateway.compiler.has_part(id) || gateway.is_concerned(id) && gateway.is_awaited(now)
                })
            });
        let mut news = self.confirm(&left);
        for id in &gone {
            news |= self.is_confirmed_now(id);
        }
        news
    }

    /// A text is confirmed when every gateway that has a part in it has an Envoy that runs with that part. A gateway
    /// that has had no Envoy for a while is not waited for; one that this agent does not serve says nothing.
    pub(super) fn confirm(&mut self, documents: &BTreeSet<DocumentId>) -> bool {
        let now = Instant::now();
        let mut news = false;
        for id in documents {
            let concerned = || self.gateways.iter().filter(|gateway| gateway.is_concerned(id));
            let is_acknowledged = concerned().any(|gateway| gateway.has_acknowledged(id));
            let is_awaited =
                concerned().any(|gateway| !gateway.has_acknowledged(id) && gateway.is_awaited(now));
            if is_acknowledged && !is_awaited {
                news |= self.is_confirmed_now(id);
            }
        }
        news
    }

    /// True: it was not before.
    fn is_confirmed_now(&mut self, id: &DocumentId) -> bool {
        if !self.snapshot.config.confirm(id) {
            return false;
        }
        let state = self.snapshot.config.document(id);
        if let (Some(store), Some(parsed)) = (&self.store, state.and_then(|state| state.confirmed.as_ref())) {
            store.confirmed(&parsed.document);
        }
        if self.snapshot.end_quarantine(id)
            && let Some(store) = &self.store
        {
            store.quarantine_over(id.as_str());
        }
        true
    }

    /// Judges the refusals that can be judged by now.
    pub(super) fn judge(&mut self) {
        let now = Instant::now();
        // A thousand Envoys may refuse one resource at once: their views are read once, and asked once.
        let mut streams_of: BTreeMap<Arc<str>, Vec<StreamView>> = BTreeMap::new();
        let mut others_of: BTreeMap<Case, Others> = BTreeMap::new();
        let open = self.refusals.take_open();
        let mut refusing: BTreeMap<Case, BTreeSet<StreamId>> = BTreeMap::new();
        for refused in &open {
            refusing.entry(refused.case()).or_default().insert(refused.stream);
        }
        for refused in open {
            let Some(gateway) = self
                .gateways
                .iter()
                .find(|known| *known.name() == refused.gateway)
            else {
                continue;
            };
            let streams = streams_of
                .entry(refused.gateway.clone())
                .or_insert_with(|| self.streams.of_gateway(&refused.gateway));
            let case = refused.case();
            let refusing = &refusing[&case];
            let others = *others_of
                .entry(case)
                .or_insert_with(|| Others::of(&refused.resource, streams, refusing));
            let config = &self.snapshot.config;
            match self.refusals.verdict(&refused, gateway, config, others, now) {
                Verdict::Stale => {}
                Verdict::Wait => self.refusals.wait_for_others(refused),
                Verdict::Node => {
                    if self.refusals.tell_of_node(&refused) {
                        // Whoever tells what is wrong reads the streams with the view.
                        self.publish();
                    }
                }
                Verdict::Documents(suspects) => self.quarantine(&refused, &suspects),
                Verdict::Resource => {
                    let streams = std::mem::take(streams);
                    self.withhold(&refused, &streams);
                    streams_of.insert(refused.gateway.clone(), streams);
                }
            }
        }
    }

    fn quarantine(&mut self, refused: &Refused, suspects: &[DocumentId]) {
        let quarantines = self
            .refusals
            .quarantines(&self.snapshot.config, refused, suspects);
        let mut changes = Changes::default();
        for quarantine in quarantines {
            changes.merge(self.put_in_quarantine(quarantine));
        }
        self.take_up(&changes);
        let gateway = self
            .gateways
            .iter()
            .find(|known| *known.name() == refused.gateway);
        let is_innocent = gateway
            .is_some_and(|gateway| gateway.is_refused(&refused.resource) && !gateway.compiler.is_waiting());
        if is_innocent {
            // The same bytes without them, or others that were refused before they came: their texts are not to blame.
            // Withheld first, so that it is not published once more.
            let streams = self.streams.of_gateway(&refused.gateway);
            self.withhold(refused, &streams);
            self.lift(suspects);
        }
    }

    fn put_in_quarantine(&mut self, quarantine: Quarantine) -> Changes {
        if let Some(store) = &self.store {
            store.quarantine(&quarantine);
        }
        self.snapshot.quarantine(quarantine)
    }

    fn lift(&mut self, ids: &[DocumentId]) {
        let mut changes = Changes::default();
        for id in ids {
            changes.merge(self.snapshot.lift_quarantine(id));
            if let Some(store) = &self.store {
                store.quarantine_over(id.as_str());
            }
        }
        self.take_up(&changes);
    }

    /// Texts that name what has changed are tried again: they may have been refused for it.
    pub(super) fn lift_dependents(&mut self, changes: &mut Changes) {
        let objects = &changes.config.objects;
        let lifted: Vec<DocumentId> = self
            .snapshot
            .quarantined()
            .filter(|quarantine| quarantine.names.iter().any(|name| objects.contains_key(name)))
            .map(|quarantine| quarantine.document.clone())
            .collect();
        for id in lifted {
            changes.merge(self.snapshot.lift_quarantine(&id));
            if let Some(store) = &self.store {
                store.quarantine_over(id.as_str());
            }
        }
    }

    fn withhold(&mut self, refused: &Refused, streams: &[StreamView]) {
        let diagnostic = of_resource(&self.snapshot, refused);
        if let Some(gateway) = find(&mut self.gateways, &refused.gateway) {
            gateway.withhold(&refused.resource, streams, diagnostic);
        }
        self.publish();
    }

    /// When every Envoy has answered to everything: the next suspect is tried.
    pub(super) fn go_on(&mut self) {
        self.look_at_rest();
        if !self.refusals.is_busy() || self.refusals.is_judging() || !self.is_quiet() {
            return;
        }
        if let Some(after) = self.refusals.settled() {
            tracing::info!(?after, "everything but what was refused is in place");
        }
        if let Some(id) = self.refusals.next_trial() {
            tracing::info!(document = %id, "trying the document again, alone");
            self.lift(&[id]);
        }
    }

    /// Each gateway that has Envoys has one that answered to everything as published.
    fn is_quiet(&self) -> bool {
        let mut has_answered = false;
        for gateway in &self.gateways {
            if gateway.compiler.is_waiting() {
                return false;
            }
            let streams = self.streams.of_gateway(gateway.name());
            match streams
                .iter()
                .any(|stream| stream.has_answered(gateway.published()))
            {
                true => has_answered = true,
                false if streams.is_empty() => {}
                false => return false,
            }
        }
        has_answered
    }

    pub(super) fn look_soon(&mut self) {
        let pause = if self.refusals.is_busy() { LOOK_BUSY } else { LOOK };
        let at = Instant::now() + pause;
        // The earlier of both: steady changes must not put it off for good.
        if self.look.as_ref().is_none_or(|look| at < look.at) {
            self.look = Some(Look { at, pause });
        }
    }

    /// Nothing is left to be seen: no more looks.
    fn look_at_rest(&mut self) {
        let is_open = self.refusals.is_busy()
            || self
                .gateways
                .iter()
                .any(|gateway| !gateway.unacknowledged().is_empty());
        if !is_open {
            self.look = None;
        } else if self.look.is_none() {
            self.look_soon();
        }
    }

    pub(super) fn look_around(&mut self) {
        let Some(look) = self.look.take() else { return };
        let pause = (look.pause * 2).min(LOOK_MAX);
        let names: Vec<Arc<str>> = self
            .gateways
            .iter()
            .filter(|gateway| !gateway.unacknowledged().is_empty())
            .map(|gateway| gateway.name().clone())
            .collect();
        let now = Instant::now();
        // Only what another gateway has acknowledged can be confirmed without this one.
        let has_others = self.gateways.len() > 1;
        let (mut acknowledged, mut left) = (BTreeSet::new(), BTreeSet::new());
        for name in names {
            let streams = self.streams.of_gateway(&name);
            if let Some(gateway) = find(&mut self.gateways, &name) {
                acknowledged.append(&mut gateway.acknowledged_by_any(&streams));
                // For those that are no longer waited for.
                if has_others && !gateway.is_awaited(now) {
                    left.extend(gateway.unacknowledged().iter().cloned());
                }
            }
        }
        let news = self.confirm_acknowledged(&acknowledged);
        if self.confirm(&left) || news {
            self.publish();
        }
        self.judge();
        self.look = Some(Look {
            at: Instant::now() + pause,
            pause,
        });
        self.go_on();
    }
}

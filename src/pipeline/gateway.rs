use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

use super::core::HOLD;
use super::holds::Holds;
use super::view::GatewayView;
use super::withheld::Withheld;
use crate::envoy::{Resource, ResourceChange, ResourceKind, ResourceSet};
use crate::model::DocumentId;
use crate::snapshot::Snapshot;
use crate::translate::{Compiled, Compiler};
use crate::xds::{StreamId, StreamView};

/// How long a gateway without any Envoy is waited for, until the others alone confirm what documents say.
const ABSENT: Duration = Duration::from_secs(30);

/// One gateway: what it is made of, what of it is published, and what its Envoys have acknowledged.
pub(super) struct Gateway {
    pub compiler: Compiler,
    pub published_at: Option<SystemTime>,
    resources: watch::Sender<Option<Arc<ResourceSet>>>,
    /// What the streams were given last.
    published: ResourceSet,
    /// The compiled set differs from the published one.
    due: bool,
    pub withheld: Withheld,
    /// Documents whose part changed since an Envoy of this gateway acknowledged all of it.
    unacknowledged: BTreeSet<DocumentId>,
    envoys: BTreeSet<StreamId>,
    /// When the last Envoy went, or this agent came.
    alone_since: Instant,
    holds: Holds,
}

impl Gateway {
    pub fn new(
        compiler: Compiler,
        compiled: &Compiled,
        withheld: Withheld,
        resources: watch::Sender<Option<Arc<ResourceSet>>>,
    ) -> Self {
        let mut gateway = Self {
            compiler,
            published_at: None,
            resources,
            published: ResourceSet::default(),
            due: true,
            withheld,
            unacknowledged: BTreeSet::new(),
            envoys: BTreeSet::new(),
            alone_since: Instant::now(),
            holds: Holds::default(),
        };
        gateway.compiled(compiled);
        gateway.note_held(Instant::now() + HOLD);
        gateway
    }

    pub fn name(&self) -> &Arc<str> {
        self.compiler.gateway()
    }

    /// Takes note of what the compiler did.
    pub fn compiled(&mut self, compiled: &Compiled) {
        self.due |= compiled.changed;
        self.holds.note_unchecked(&compiled.unchecked, Instant::now());
        self.unacknowledged.extend(compiled.documents.iter().cloned());
        self.unacknowledged.extend(self.compiler.expecting().cloned());
    }

    /// Takes note of hosts that began to wait, and how long they may.
    pub fn note_held(&mut self, until: Instant) {
        self.holds.note(self.compiler.held(), until);
    }

    pub fn hold_deadline(&self) -> Option<Instant> {
        self.holds.deadline()
    }

    /// Those that have waited long enough by now. One host's patience is not cut short by another's.
    pub fn release_held(&mut self, snapshot: &Snapshot, now: Instant) -> Compiled {
        let were_checked = self.holds.checks_due(now);
        let checked = self.compiler.were_checked(snapshot, were_checked);
        self.compiled(&checked);
        let compiled = match self.holds.hosts_due(now) {
            Some(hosts) => self.compiler.release(snapshot, &hosts),
            None => Compiled::default(),
        };
        self.compiled(&compiled);
        compiled
    }

    pub fn release_all(&mut self, snapshot: &Snapshot) -> Compiled {
        self.holds.clear();
        let compiled = self.compiler.stop_waiting(snapshot);
        self.compiled(&compiled);
        compiled
    }

    /// Hands the streams what is new. False: nothing is.
    pub fn publish(&mut self) -> bool {
        if !self.due && self.published_at.is_some() {
            return false;
        }
        self.due = false;
        if self.published_at.is_none() {
            let resources = self.compiler.resources().len();
            tracing::info!(gateway = %self.name(), resources, "first publication");
        }
        self.published_at = Some(SystemTime::now());
        self.published = self.compiler.resources().clone();
        self.withheld.apply(&mut self.published);
        self.resources
            .send_replace(Some(Arc::new(self.published.clone())));
        true
    }

    pub fn view(&self, waiting_for: Vec<String>) -> GatewayView {
        GatewayView {
            name: self.name().clone(),
            compiler: self.compiler.clone(),
            published_at: self.published_at,
            waiting_for,
            withheld: self.withheld.diagnostics().cloned().collect(),
        }
    }

    /// What is made of the documents is a resource that Envoy refused: this very one, or one before it.
    pub fn is_refused(&self, resource: &Resource) -> bool {
        self.is_published(resource) || self.withheld.holds(resource.kind, &resource.name)
    }

    /// This resource, if it is what the streams were given last.
    pub fn is_published(&self, resource: &Resource) -> bool {
        self.published
            .get(resource.kind, &resource.name)
            .is_some_and(|published| published.version == resource.version)
    }

    pub fn published(&self) -> &ResourceSet {
        &self.published
    }

    /// Keeps a resource from every Envoy until its content changes: what one of them has of it stays instead.
    pub fn withhold(
        &mut self,
        resource: &Resource,
        streams: &[StreamView],
        diagnostic: crate::diagnostics::Diagnostic,
    ) {
        let accepted = streams.iter().filter_map(|stream| {
            let accepted = stream.acked.get(resource.kind, &resource.name)?;
            (accepted.version != resource.version).then_some((accepted, &stream.acked))
        });
        // Whose bytes are known serves newcomers too.
        let instead = accepted.min_by_key(|(accepted, _)| accepted.is_held_by_envoy());
        let (instead, needed) = match instead {
            Some((accepted, acked)) => (Some(accepted.clone()), needed_by(accepted, acked)),
            None => (None, Vec::new()),
        };
        self.withheld.add(resource, instead, needed, diagnostic);
        self.due = true;
    }

    pub fn connected(&mut self, stream: StreamId) {
        self.envoys.insert(stream);
    }

    pub fn disconnected(&mut self, stream: StreamId) {
        self.envoys.remove(&stream);
        self.alone_since = Instant::now();
    }

    /// Exactly these are connected.
    pub fn recount(&mut self, streams: &[StreamView]) {
        if streams.is_empty() && !self.envoys.is_empty() {
            self.alone_since = Instant::now();
        }
        self.envoys = streams.iter().map(|stream| stream.id).collect();
    }

    /// What its Envoys say of a document counts, or will soon.
    pub fn is_awaited(&self, now: Instant) -> bool {
        !self.envoys.is_empty() || now.duration_since(self.alone_since) < ABSENT
    }

    pub fn unacknowledged(&self) -> &BTreeSet<DocumentId> {
        &self.unacknowledged
    }

    /// An Envoy runs with everything that became of the document here. While a host is held back, what it will be made
    /// of is not at Envoy, whatever Envoy acknowledges.
    pub fn has_acknowledged(&self, document: &DocumentId) -> bool {
        self.published_at.is_some()
            && !self.due
            && !self.compiler.is_waiting()
            && !self.unacknowledged.contains(document)
    }

    /// The document is or was a moment ago in what this gateway serves.
    pub fn is_concerned(&self, document: &DocumentId) -> bool {
        self.compiler.has_part(document) || self.unacknowledged.contains(document)
    }

    /// What some of these Envoys acknowledge first.
    pub fn acknowledged_by_any(&mut self, streams: &[StreamView]) -> BTreeSet<DocumentId> {
        let mut acknowledged = BTreeSet::new();
        let mut last: Option<&StreamView> = None;
        for stream in streams {
            // Most Envoys of a gateway run with the very same, and what one of them lacks, they all lack.
            if last.is_some_and(|last| last.runs_the_same(stream)) {
                continue;
            }
            acknowledged.append(&mut self.acknowledged_by(stream));
            last = Some(stream);
        }
        acknowledged
    }

    /// What this Envoy acknowledges first. A resource that it lacks or refuses speaks against its own documents only.
    pub fn acknowledged_by(&mut self, stream: &StreamView) -> BTreeSet<DocumentId> {
        self.withheld.accepted(&self.published, &stream.acked);
        if self.unacknowledged.is_empty()
            || self.published_at.is_none()
            || self.due
            || self.compiler.is_waiting()
        {
            return BTreeSet::new();
        }
        // What stands in for something else says nothing of the text that asks for that.
        let expecting = self.compiler.expecting();
        let mut behind: BTreeSet<DocumentId> = expecting
            .filter(|id| self.unacknowledged.contains(*id))
            .cloned()
            .collect();
        for (kind, name) in self.withheld.held() {
            let made = self.compiler.resources().get(*kind, name);
            let origins = made.iter().flat_map(|made| made.origins.iter());
            behind.extend(origins.filter(|id| self.unacknowledged.contains(*id)).cloned());
        }
        for kind in ResourceKind::ALL
            .into_iter()
            .filter(|kind| stream.asks_for(*kind))
        {
            // All of them are: the rest of a first delivery need not be walked.
            if behind.len() == self.unacknowledged.len() {
                return BTreeSet::new();
            }
            for change in self.published.changes_that_count_since(&stream.acked, kind) {
                if behind.len() == self.unacknowledged.len() {
                    return BTreeSet::new();
                }
                let resource = match change {
                    ResourceChange::Set(resource) => Some(resource),
                    // The former version knows its documents; one of them let it go.
                    ResourceChange::Removed(name) => stream.acked.get(kind, &name).cloned(),
                };
                let origins = resource.iter().flat_map(|resource| resource.origins.iter());
                behind.extend(origins.filter(|id| self.unacknowledged.contains(*id)).cloned());
            }
        }
        let all = std::mem::replace(&mut self.unacknowledged, behind);
        all.difference(&self.unacknowledged).cloned().collect()
    }
}

/// By name.
pub(super) fn find<'a>(gateways: &'a mut [Gateway], name: &str) -> Option<&'a mut Gateway> {
    gateways.iter_mut().find(|gateway| **gateway.name() == *name)
}

/// All that an Envoy has of what this resource needs: what serves in the place of a refused one may need what the compiler
/// has no use for any more.
fn needed_by(resource: &Arc<Resource>, acked: &ResourceSet) -> Vec<Arc<Resource>> {
    let mut needed: Vec<Arc<Resource>> = Vec::new();
    let mut open = vec![resource.clone()];
    while let Some(resource) = open.pop() {
        for need in resource.needs.iter() {
            let Some(found) = acked.get(need.kind, &need.name) else {
                continue;
            };
            let is_new = needed
                .iter()
                .all(|known| (known.kind, &known.name) != (found.kind, &found.name));
            if is_new && !found.is_held_by_envoy() {
                needed.push(found.clone());
                open.push(found.clone());
            }
        }
    }
    needed
}

/// The receivers that the streams of each gateway read.
pub(super) type Receivers = BTreeMap<Arc<str>, watch::Receiver<Option<Arc<ResourceSet>>>>;

#[cfg(test)]
mod tests {
    use super::super::refusals::{Others, Refusals, Refused, Verdict};
    use super::*;
    use crate::config::{Config, Permissions};
    use crate::diagnostics::{Code, Diagnostic};
    use crate::envoy::ResourceRef;
    use crate::hcl::Limits;
    use crate::model::{Document, DocumentsUpdate, Observation, ServiceQuery, ServiceUpdate};
    use crate::snapshot::Changes;
    use crate::translate::Settings;

    const GATEWAY: &str = "gateway \"edge\" {\n  listener \"web\" {\n    port = 80\n  }\n}\n";

    fn id(name: &str) -> DocumentId {
        DocumentId::File(name.into())
    }

    fn put(snapshot: &mut Snapshot, name: &str, text: &str) -> Changes {
        let document = Document {
            id: id(name),
            text: text.into(),
            order: 0,
            version: 0,
        };
        snapshot.apply(Observation::Documents(DocumentsUpdate {
            changed: vec![document],
            complete: true,
            ..DocumentsUpdate::default()
        }))
    }

    fn route(name: &str, rule: &str) -> String {
        format!(
            "http_route \"{name}\" {{\n  gateways  = [\"edge\"]\n  hostnames = [\"{name}.example.com\"]\n\n  \
             rule \"all\" {{\n    {rule}\n  }}\n}}\n"
        )
    }

    fn responds(status: u16) -> String {
        format!("direct_response {{\n      status = {status}\n    }}")
    }

    /// With a gateway and the routes `a` and `b`, published.
    fn published() -> (Snapshot, Gateway) {
        let mut snapshot = Snapshot::new(
            Config::new(Permissions::default(), Limits::default()),
            BTreeSet::new(),
        );
        put(&mut snapshot, "gateway", GATEWAY);
        put(&mut snapshot, "a", &route("a", &responds(200)));
        put(&mut snapshot, "b", &route("b", &responds(200)));
        let settings = Settings {
            bind_address: "127.0.0.1".parse().unwrap(),
            hold_pending: true,
            same_node: Default::default(),
        };
        let mut compiler = Compiler::new("edge", settings);
        let compiled = compiler.rebuild(&snapshot);
        let mut gateway = Gateway::new(compiler, &compiled, Withheld::default(), watch::channel(None).0);
        assert!(gateway.publish());
        (snapshot, gateway)
    }

    fn change(snapshot: &mut Snapshot, gateway: &mut Gateway, name: &str, text: &str) {
        let changes = put(snapshot, name, text);
        let compiled = gateway.compiler.update(snapshot, &changes);
        gateway.compiled(&compiled);
        gateway.publish();
    }

    fn names(ids: &BTreeSet<DocumentId>) -> Vec<&str> {
        ids.iter().map(DocumentId::as_str).collect()
    }

    #[test]
    fn what_an_envoy_lacks_speaks_against_its_own_documents() {
        let (mut snapshot, mut gateway) = published();
        assert!(!gateway.has_acknowledged(&id("a")));
        let mut acked = gateway.published().clone();
        acked.remove(ResourceKind::ScopedRoute, "web/b.example.com");
        let stream = StreamView::running("edge", acked);
        assert_eq!(names(&gateway.acknowledged_by(&stream)), ["a"]);
        // The route of `b` was made from the gateway's document too.
        assert_eq!(names(gateway.unacknowledged()), ["b", "gateway"]);
        let stream = StreamView::running("edge", gateway.published().clone());
        assert_eq!(names(&gateway.acknowledged_by(&stream)), ["b", "gateway"]);
        assert!(gateway.has_acknowledged(&id("a")) && !gateway.is_concerned(&id("elsewhere")));
        change(&mut snapshot, &mut gateway, "a", &route("a", &responds(404)));
        assert!(
            gateway.acknowledged_by(&stream).is_empty(),
            "it has the older one"
        );
        assert!(!gateway.has_acknowledged(&id("a")) && gateway.has_acknowledged(&id("b")));
    }

    #[test]
    fn one_envoy_speaks_for_those_that_run_the_same() {
        let (_, mut gateway) = published();
        let all = gateway.published().clone();
        let mut without = all.clone();
        without.remove(ResourceKind::ScopedRoute, "web/b.example.com");
        let behind = StreamView::running("edge", without);
        let ahead = StreamView::running("edge", all);
        assert!(behind.runs_the_same(&behind.clone()) && !behind.runs_the_same(&ahead));
        let streams = [behind.clone(), behind.clone(), behind];
        assert_eq!(names(&gateway.acknowledged_by_any(&streams)), ["a"]);
        let streams = [streams[0].clone(), ahead.clone(), ahead];
        assert_eq!(names(&gateway.acknowledged_by_any(&streams)), ["b", "gateway"]);
    }

    #[test]
    fn a_comment_has_nothing_to_be_acknowledged() {
        let (mut snapshot, mut gateway) = published();
        let stream = StreamView::running("edge", gateway.published().clone());
        gateway.acknowledged_by(&stream);
        let text = format!("{}# a remark\n", route("a", &responds(200)));
        change(&mut snapshot, &mut gateway, "a", &text);
        assert!(gateway.has_acknowledged(&id("a")));
    }

    #[test]
    fn a_document_that_is_held_back_is_not_acknowledged_by_its_predecessor() {
        let (mut snapshot, mut gateway) = published();
        let stream = StreamView::running("edge", gateway.published().clone());
        gateway.acknowledged_by(&stream);
        let waits = route("a", "backend \"consul\" \"orders\" {}");
        change(&mut snapshot, &mut gateway, "a", &waits);
        assert!(gateway.compiler.is_waiting());
        // Endpoints of another service, say: the whole set as published is acknowledged.
        let stream = StreamView::running("edge", gateway.published().clone());
        assert!(gateway.acknowledged_by(&stream).is_empty());
        assert!(!gateway.has_acknowledged(&id("a")));
        let changes = snapshot.apply(Observation::Service(ServiceUpdate {
            query: ServiceQuery::named("orders"),
            result: Ok(Arc::from([])),
        }));
        let compiled = gateway.compiler.update(&snapshot, &changes);
        gateway.compiled(&compiled);
        assert!(gateway.publish());
        assert!(
            gateway.acknowledged_by(&stream).is_empty(),
            "it has the older one"
        );
        let stream = StreamView::running("edge", gateway.published().clone());
        assert!(gateway.acknowledged_by(&stream).contains(&id("a")));
    }

    #[test]
    fn one_hosts_patience_is_not_cut_short_by_anothers() {
        let (mut snapshot, mut gateway) = published();
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let waits = |name: &str| route(name, &format!("backend \"consul\" \"for-{name}\" {{}}"));
        change(&mut snapshot, &mut gateway, "a", &waits("a"));
        gateway.note_held(at(2));
        change(&mut snapshot, &mut gateway, "b", &waits("b"));
        gateway.note_held(at(3));
        // Something else happens: nobody waits longer for it.
        gateway.note_held(at(9));
        let of_b = |gateway: &Gateway| {
            let published = gateway
                .published()
                .get(ResourceKind::ScopedRoute, "web/b.example.com");
            published.map(|route| route.version.clone())
        };
        let before = of_b(&gateway);
        assert_eq!(gateway.hold_deadline(), Some(at(2)));
        gateway.release_held(&snapshot, at(2));
        gateway.publish();
        let held = |gateway: &Gateway| -> Vec<String> {
            let hosts = gateway.compiler.held().iter();
            hosts.map(|(_, host)| host.to_string()).collect()
        };
        assert_eq!(held(&gateway), ["b.example.com"]);
        assert_eq!(of_b(&gateway), before);
        assert_eq!(gateway.hold_deadline(), Some(at(3)));
        gateway.release_held(&snapshot, at(3));
        gateway.publish();
        assert!(!gateway.compiler.is_waiting());
        assert_ne!(of_b(&gateway), before);
        assert_eq!(gateway.hold_deadline(), None);
    }

    #[test]
    fn what_waits_from_the_start_does_not_wait_for_ever() {
        let (mut snapshot, Gateway { mut compiler, .. }) = published();
        let waits = route("a", "backend \"consul\" \"orders\" {}");
        let changes = put(&mut snapshot, "a", &waits);
        let compiled = compiler.update(&snapshot, &changes);
        let mut gateway = Gateway::new(compiler, &compiled, Withheld::default(), watch::channel(None).0);
        assert!(gateway.compiler.is_waiting());
        gateway.release_held(&snapshot, gateway.hold_deadline().expect("an end"));
        assert!(!gateway.compiler.is_waiting());
    }

    #[test]
    fn what_serves_in_the_place_of_a_refused_one_keeps_what_it_needs() {
        let (_, mut gateway) = published();
        let needing = |kind, name: &str, needs: &[(ResourceKind, &str)]| {
            let needs = needs.iter().map(|(kind, name)| ResourceRef {
                kind: *kind,
                name: (*name).into(),
            });
            let made = Resource::new(kind, name.into(), name.as_bytes());
            Arc::new(made.needing(needs.collect()))
        };
        let route = "web/a.example.com";
        let refused = gateway
            .published()
            .get(ResourceKind::ScopedRoute, route)
            .unwrap()
            .clone();
        let mut acked = gateway.published().clone();
        for resource in [
            needing(ResourceKind::ScopedRoute, route, &[(ResourceKind::Cluster, "v1")]),
            needing(ResourceKind::Cluster, "v1", &[(ResourceKind::Endpoint, "v1")]),
            needing(ResourceKind::Endpoint, "v1", &[]),
        ] {
            acked.insert(resource);
        }
        let accepted = acked
            .get(ResourceKind::ScopedRoute, route)
            .unwrap()
            .version
            .clone();
        let stream = StreamView::running("edge", acked);
        let diagnostic = Diagnostic::error(Code::EnvoyRejected, "refused");
        gateway.withhold(&refused, &[stream], diagnostic);
        // And again later, when no Envoy is asked any more.
        for _ in 0..2 {
            gateway.due = true;
            gateway.publish();
            let published = gateway.published();
            let served = published.get(ResourceKind::ScopedRoute, route).unwrap();
            assert_eq!(served.version, accepted);
            assert!(published.get(ResourceKind::Cluster, "v1").is_some());
            assert!(published.get(ResourceKind::Endpoint, "v1").is_some());
        }
    }

    /// Envoys that are away may run with what confirmed texts made.
    #[test]
    fn an_odd_envoy_alone_takes_nothing_from_those_that_are_away() {
        let (mut snapshot, gateway) = published();
        for name in ["gateway", "a", "b"] {
            assert!(snapshot.config.confirm(&id(name)));
        }
        let route = "web/a.example.com";
        let resource = gateway
            .published()
            .get(ResourceKind::ScopedRoute, route)
            .unwrap()
            .clone();
        let refused = Refused::new(
            &"edge".into(),
            (StreamId(1), &"odd".into()),
            &resource,
            "no".into(),
        );
        let verdict = |acked: ResourceSet| {
            let stream = StreamView::running("edge", acked);
            let refusing = BTreeSet::from([stream.id]);
            let others = Others::of(&resource, &[stream], &refusing);
            Refusals::default().verdict(&refused, &gateway, &snapshot.config, others, Instant::now())
        };
        let mut acked = gateway.published().clone();
        acked.remove(ResourceKind::ScopedRoute, route);
        assert_eq!(verdict(acked.clone()), Verdict::Node, "it never had any");
        let former = Resource::new(ResourceKind::ScopedRoute, route.into(), b"former");
        acked.insert(Arc::new(former));
        assert_eq!(
            verdict(acked.clone()),
            Verdict::Resource,
            "there is one to go back to"
        );
        let brought = Resource::held_by_envoy(ResourceKind::ScopedRoute, route.into(), "former".into());
        acked.insert(Arc::new(brought));
        assert_eq!(verdict(acked), Verdict::Node, "which that Envoy alone has");
    }
}

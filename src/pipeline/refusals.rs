//! From a NACK to the document behind it.
//!
//! A resource knows the documents it was made from. Suspects are those whose text no Envoy has confirmed yet, those that
//! declare the resource itself before those that it only uses. One suspect goes into quarantine. Several do together,
//! and are let out one by one, each once Envoy has answered to everything else: the one that brings the NACK back stays
//! in. Where no text is to blame, see [`Verdict`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::gateway::Gateway;
use super::object_behind::{declaring_kind, destination, object_behind, object_in};
use crate::config::{Config, Object, ObjectKey, Quarantine, text_hash};
use crate::diagnostics::{Code, Diagnostic};
use crate::envoy::{Resource, ResourceKind};
use crate::model::DocumentId;
use crate::resolve::at_its_users;
use crate::snapshot::Snapshot;
use crate::xds::{StreamId, StreamView, is_of_node};

/// How long the answers of the gateway's other Envoys are waited for: what one of them takes is no bad document.
const OTHERS: Duration = Duration::from_millis(300);

/// One Envoy's refusal of one resource.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub gateway: Arc<str>,
    pub stream: StreamId,
    pub node: Arc<str>,
    pub resource: Arc<Resource>,
    /// What Envoy said about this resource.
    pub message: Arc<str>,
    /// When to judge without the others.
    until: Instant,
}

/// Who is to blame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Something else is published by now.
    Stale,
    /// Others have not answered yet.
    Wait,
    /// The node, or an Envoy that is unlike the others: nothing changes for them.
    Node,
    /// The unconfirmed texts of these documents.
    Documents(Vec<DocumentId>),
    /// No text: every Envoy goes without this version of the resource.
    Resource,
}

/// What the gateway's other Envoys say of a resource that some refuse.
#[derive(Clone, Copy, Debug)]
pub(super) struct Others {
    have_taken: bool,
    may_take: bool,
    /// Any Envoy at all runs with another version of it, whose bytes are here: what came along on a reconnect cannot be put back
    /// for anybody.
    has_former: bool,
}

impl Others {
    /// `streams` are all of the gateway.
    pub fn of(resource: &Resource, streams: &[StreamView], refusing: &BTreeSet<StreamId>) -> Self {
        let mut others = streams.iter().filter(|stream| !refusing.contains(&stream.id));
        Self {
            have_taken: others.clone().any(|stream| has_taken(stream, resource)),
            may_take: others.any(|stream| may_take(stream, resource)),
            has_former: streams.iter().any(|stream| {
                let former = stream.acked.get(resource.kind, &resource.name);
                former.is_some_and(|former| former.version != resource.version && !former.is_held_by_envoy())
            }),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Not judged yet.
    open: Vec<Refused>,
    /// In quarantine only because they stood beside the guilty one.
    on_trial: VecDeque<DocumentId>,
    /// Let out, and not answered to yet.
    under_trial: Option<DocumentId>,
    /// The first refusal since everything else was in place.
    since: Option<Instant>,
    /// One of those since then is more than another try of what a node cannot do.
    has_news: bool,
    /// Refusals that were told as their node's: once each.
    told: BTreeMap<(StreamId, ResourceKind, Arc<str>), Arc<str>>,
}

/// One version of one resource: (gateway, kind, name, version).
pub(super) type Case = (Arc<str>, ResourceKind, Arc<str>, Arc<str>);

impl Refused {
    pub fn case(&self) -> Case {
        let resource = &self.resource;
        (
            self.gateway.clone(),
            resource.kind,
            resource.name.clone(),
            resource.version.clone(),
        )
    }

    pub fn new(
        gateway: &Arc<str>,
        (stream, node): (StreamId, &Arc<str>),
        resource: &Arc<Resource>,
        message: Arc<str>,
    ) -> Self {
        Self {
            gateway: gateway.clone(),
            stream,
            node: node.clone(),
            resource: resource.clone(),
            message,
            until: Instant::now() + OTHERS,
        }
    }
}

impl Refusals {
    /// Goes on where the last run ended.
    pub fn restored(snapshot: &Snapshot) -> Self {
        let on_trial = snapshot.quarantined().filter(|quarantine| quarantine.on_trial);
        let mut on_trial: Vec<DocumentId> = on_trial.map(|quarantine| quarantine.document.clone()).collect();
        on_trial.sort();
        Self {
            on_trial: on_trial.into(),
            ..Self::default()
        }
    }

    pub fn open(&mut self, refused: Refused) {
        self.since.get_or_insert_with(Instant::now);
        self.has_news |= !self.is_told(&refused);
        self.open.push(refused);
    }

    /// After events were lost: those that are open already are judged when they were to be.
    pub fn open_missing(&mut self, all: Vec<Refused>) {
        let known = self.open.iter().map(|open| (open.stream, open.case()));
        let known: BTreeSet<(StreamId, Case)> = known.collect();
        for refused in all {
            if !known.contains(&(refused.stream, refused.case())) {
                self.open(refused);
            }
        }
    }

    pub fn take_open(&mut self) -> Vec<Refused> {
        std::mem::take(&mut self.open)
    }

    pub fn wait_for_others(&mut self, refused: Refused) {
        self.open.push(refused);
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.open.iter().map(|refused| refused.until).min()
    }

    /// Something is judged, tried, or not known to be in place yet.
    pub fn is_busy(&self) -> bool {
        self.since.is_some() || self.under_trial.is_some() || !self.on_trial.is_empty()
    }

    pub fn verdict(
        &self,
        refused: &Refused,
        gateway: &Gateway,
        config: &Config,
        others: Others,
        now: Instant,
    ) -> Verdict {
        let resource = &refused.resource;
        if !gateway.is_published(resource) {
            return Verdict::Stale;
        }
        if is_of_node(resource.kind, &refused.message) {
            return Verdict::Node;
        }
        if others.have_taken {
            return Verdict::Node;
        }
        if now < refused.until && others.may_take {
            return Verdict::Wait;
        }
        if let Some(trial) = &self.under_trial
            && resource.origins.contains(trial)
            && is_suspect(config, gateway, trial)
        {
            return Verdict::Documents(vec![trial.clone()]);
        }
        let suspects: Vec<DocumentId> = resource
            .origins
            .iter()
            .filter(|id| is_suspect(config, gateway, id))
            .cloned()
            .collect();
        let declaring: Vec<DocumentId> = suspects
            .iter()
            .filter(|id| declares(config, id, resource.kind))
            .cloned()
            .collect();
        match (suspects.is_empty(), declaring.is_empty()) {
            // Envoys that are away may run with what confirmed texts made: without a former version to go back to, it is
            // not taken from them for the sake of one that never had it.
            (true, _) if !resource.origins.is_empty() && !others.has_former => Verdict::Node,
            (true, _) => Verdict::Resource,
            (false, true) => Verdict::Documents(suspects),
            (false, false) => Verdict::Documents(declaring),
        }
    }

    /// What takes the suspects out of service.
    pub fn quarantines(
        &mut self,
        config: &Config,
        refused: &Refused,
        suspects: &[DocumentId],
    ) -> Vec<Quarantine> {
        let alone = suspects.len() == 1;
        self.under_trial = None;
        let before: BTreeSet<&DocumentId> = self.on_trial.iter().collect();
        if !alone {
            let new: Vec<DocumentId> = suspects
                .iter()
                .filter(|id| !before.contains(id))
                .cloned()
                .collect();
            self.on_trial.extend(new);
        }
        let of_document = |id: &DocumentId| {
            let parsed = config.document(id)?.in_service.as_ref()?;
            let own: BTreeSet<ObjectKey> = parsed.objects.iter().map(Object::key).collect();
            let names = parsed.objects.iter().flat_map(Object::references);
            Some(Quarantine {
                document: id.clone(),
                text_hash: text_hash(&parsed.document.text),
                diagnostic: of_document(config, refused, id, alone),
                names: names.filter(|name| !own.contains(name)).collect(),
                on_trial: !alone,
            })
        };
        suspects.iter().filter_map(of_document).collect()
    }

    /// Everything but what is refused is in place. Returns how long that took, the first time, where it is news.
    pub fn settled(&mut self) -> Option<Duration> {
        self.under_trial = None;
        let has_news = std::mem::take(&mut self.has_news);
        let since = self.since.take().filter(|_| has_news);
        since.map(|since| since.elapsed())
    }

    /// The next one to let out.
    pub fn next_trial(&mut self) -> Option<DocumentId> {
        self.under_trial = self.on_trial.pop_front();
        self.under_trial.clone()
    }

    pub fn is_judging(&self) -> bool {
        !self.open.is_empty()
    }

    fn is_told(&self, refused: &Refused) -> bool {
        let resource = &refused.resource;
        let key = (refused.stream, resource.kind, resource.name.clone());
        self.told.get(&key) == Some(&resource.version)
    }

    /// True: this refusal was not told before.
    pub fn tell_of_node(&mut self, refused: &Refused) -> bool {
        let resource = &refused.resource;
        let key = (refused.stream, resource.kind, resource.name.clone());
        self.told.insert(key, resource.version.clone()).as_ref() != Some(&resource.version)
    }

    /// True: this Envoy had refused it because of its node, and takes it now.
    pub fn is_over(&mut self, stream: StreamId, resource: &Resource) -> bool {
        let key = (stream, resource.kind, resource.name.clone());
        self.told.remove(&key).is_some()
    }

    /// After events were lost: what no Envoy refuses any more is over.
    pub fn recount(&mut self, streams: &[StreamView]) {
        let refused: BTreeSet<(StreamId, ResourceKind, &Arc<str>, &Arc<str>)> = streams
            .iter()
            .flat_map(|stream| {
                ResourceKind::ALL.into_iter().flat_map(move |kind| {
                    let refused = stream.kind(kind).refused.iter();
                    refused.map(move |(name, refusal)| (stream.id, kind, name, &refusal.version))
                })
            })
            .collect();
        self.told
            .retain(|(stream, kind, name), version| refused.contains(&(*stream, *kind, name, version)));
        self.open.retain(|open| {
            let resource = &open.resource;
            refused.contains(&(open.stream, resource.kind, &resource.name, &resource.version))
        });
    }

    pub fn disconnected(&mut self, stream: StreamId) {
        self.told.retain(|(told, _, _), _| *told != stream);
        self.open.retain(|refused| refused.stream != stream);
    }
}

fn is_suspect(config: &Config, gateway: &Gateway, id: &DocumentId) -> bool {
    gateway.unacknowledged().contains(id) && config.document(id).is_some_and(|state| !state.is_confirmed())
}

/// The document's text in service declares what the resource is; without it, the resource may not be at all.
fn declares(config: &Config, id: &DocumentId, kind: ResourceKind) -> bool {
    let parsed = config.document(id).and_then(|state| state.in_service.clone());
    parsed.is_some_and(|parsed| {
        parsed
            .objects
            .iter()
            .any(|object| object.key().kind == declaring_kind(kind))
    })
}

fn has_taken(stream: &StreamView, resource: &Resource) -> bool {
    let taken = stream.acked.get(resource.kind, &resource.name);
    taken.is_some_and(|taken| taken.version == resource.version)
}

fn may_take(stream: &StreamView, resource: &Resource) -> bool {
    let kind = stream.kind(resource.kind);
    let has_refused = kind
        .refused
        .iter()
        .any(|(name, refusal)| *name == resource.name && refusal.version == resource.version);
    kind.subscribed && !has_refused
}

fn what(kind: ResourceKind) -> &'static str {
    match kind {
        ResourceKind::Cluster => "the cluster",
        ResourceKind::Endpoint => "the endpoints",
        ResourceKind::Secret => "the certificate",
        ResourceKind::Runtime => "the connection limits",
        ResourceKind::Listener => "the listener",
        ResourceKind::ScopedRoute | ResourceKind::Route => "the routes",
    }
}

fn refuses(node: &str, resource: &Resource, message: &str) -> Diagnostic {
    let (what, name) = (what(resource.kind), &resource.name);
    Diagnostic::error(
        Code::EnvoyRejected,
        format!("Envoy {node:?} refused {what} {name:?}: {}", shortened(message)),
    )
}

fn of_document(config: &Config, refused: &Refused, document: &DocumentId, alone: bool) -> Diagnostic {
    let has_confirmed = config
        .document(document)
        .is_some_and(|state| state.confirmed.is_some());
    let stays = if has_confirmed {
        "what Envoy last accepted of this document is in service"
    } else {
        "nothing of this document is in service"
    };
    let doubt = if alone {
        ""
    } else {
        "; several documents are suspected, they are tried one by one"
    };
    let diagnostic = refuses(&refused.node, &refused.resource, &refused.message)
        .because(format!("{stays}{doubt}"))
        .fix("change the document: the refusal ends with its next version");
    match object_in(config, &refused.gateway, &refused.resource, document) {
        Some(object) => object.mark(diagnostic),
        None => diagnostic,
    }
}

/// A resource that every Envoy goes without.
pub(super) fn of_resource(snapshot: &Snapshot, refused: &Refused) -> Diagnostic {
    let diagnostic = refuses(&refused.node, &refused.resource, &refused.message)
        .because("what Envoy last accepted of it stays in service, and everything else is served")
        .fix("change what it is made from: the refusal ends with its next version");
    placed(snapshot, &refused.gateway, &refused.resource, diagnostic)
}

fn placed(snapshot: &Snapshot, gateway: &str, resource: &Resource, diagnostic: Diagnostic) -> Diagnostic {
    let diagnostic = match object_behind(&snapshot.config, gateway, resource) {
        Some(object) => object.mark(diagnostic),
        None => diagnostic,
    };
    match destination(resource) {
        Some(target) => at_its_users(snapshot, gateway, &target, &diagnostic),
        None => diagnostic,
    }
}

/// A refusal that is one node's own trouble: the document stays in service, on the others too.
pub fn refusal_of_node(
    snapshot: &Snapshot,
    gateway: &str,
    resource: &Resource,
    node: &str,
    message: &str,
) -> Diagnostic {
    let diagnostic = if is_of_node(resource.kind, message) {
        Diagnostic::error(
            Code::EnvoyRejected,
            format!(
                "Envoy {node:?} cannot open the listener {:?}: {}",
                resource.name,
                shortened(message)
            ),
        )
        .because("the port or address cannot be had on that node; it is tried again until it can, everything else is served")
        .fix("free the port on that node, or give the listener another one")
    } else {
        refuses(node, resource, message)
            .because("other Envoys of this gateway run with it; this one keeps what it last accepted")
            .fix("run the same version and settings of Envoy on every node, or change the document so that all take it")
    };
    placed(snapshot, gateway, resource, diagnostic)
}

/// Envoy quotes the whole resource in some messages.
fn shortened(message: &str) -> String {
    const CHARACTERS: usize = 600;
    if message.chars().count() <= CHARACTERS {
        return message.to_owned();
    }
    let start: String = message.chars().take(CHARACTERS).collect();
    format!("{start}...")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::ResourceSet;

    #[test]
    fn lost_events_leave_nothing_open_that_no_envoy_refuses() {
        let resource = Arc::new(Resource::new(ResourceKind::Listener, "web".into(), b"web"));
        let refused = |stream: u64| {
            let from = (StreamId(stream), &"node".into());
            Refused::new(&"edge".into(), from, &resource, "no".into())
        };
        let mut refusals = Refusals::default();
        for stream in [1, 2] {
            refusals.open(refused(stream));
            assert!(refusals.tell_of_node(&refused(stream)), "news");
        }
        // Stream 2 ended, and nobody heard.
        let stream = StreamView::running("edge", ResourceSet::default()).refusing(&resource);
        refusals.recount(&[stream]);
        refusals.open_missing(vec![refused(1), refused(3)]);
        let open: Vec<StreamId> = refusals.take_open().iter().map(|open| open.stream).collect();
        assert_eq!(open, [StreamId(1), StreamId(3)], "each once");
        assert!(!refusals.tell_of_node(&refused(1)), "it is still refused");
        assert!(refusals.tell_of_node(&refused(2)), "a new refusal is news");
        // Accepted, and nobody heard.
        refusals.recount(&[StreamView::running("edge", ResourceSet::default())]);
        assert!(refusals.tell_of_node(&refused(1)), "refused again");
    }
}

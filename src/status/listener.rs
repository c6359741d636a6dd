//! Whether the listeners that documents declare are open, and why one is not.
//!
//! What the compiler keeps back is closed everywhere; what it publishes is open where an Envoy has taken it. Who is still to
//! answer has not failed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::programmed::Programmed;
use super::withheld::certificate;
use crate::config::{Gateway, Listener};
use crate::diagnostics::{Diagnostic, Severity};
use crate::envoy::ResourceKind;
use crate::pipeline::{GatewayView, View};
use crate::translate::UnitKey;
use crate::xds::{Peer, StreamView};

/// Reasons that are shown of one listener: a thousand Envoys may have the same trouble, each in its own words.
const REASONS: usize = 4;
/// Characters of each: Envoy may quote what it refuses.
const LONGEST: usize = 400;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListenerPhase {
    /// Open on every connected Envoy that has said anything of it.
    Open,
    /// Open on some Envoys, and known not to be on others.
    Partly,
    /// No Envoy has it yet, and none has failed: nothing is published, none is connected, or something is awaited.
    Waiting,
    /// Kept back by the agent, everywhere or from each Envoy: a port clash, a certificate or a key that is lacking.
    Withheld,
    /// Refused by Envoy.
    Refused,
}

impl ListenerPhase {
    pub const ALL: [Self; 5] = [
        Self::Open,
        Self::Partly,
        Self::Waiting,
        Self::Withheld,
        Self::Refused,
    ];

    /// As in JSON and in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Partly => "partly",
            Self::Waiting => "waiting",
            Self::Withheld => "withheld",
            Self::Refused => "refused",
        }
    }

    /// Somebody has to mend something.
    pub fn has_failed(self) -> bool {
        matches!(self, Self::Partly | Self::Withheld | Self::Refused)
    }
}

/// One listener of a gateway that this agent serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListenerStatus {
    pub gateway: String,
    pub name: String,
    pub protocol: String,
    pub port: u16,
    pub phase: ListenerPhase,
    /// Envoys on which it is open.
    pub open: Programmed,
    /// Why it is not, or not everywhere; of an open one, why it is not as its document has it now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
}

impl ListenerStatus {
    /// None: it is open wherever an Envoy has answered, or nothing is known to be amiss.
    pub fn closed(&self) -> Option<String> {
        let name = &self.name;
        let reasons = self.reasons.join("; ");
        match self.phase {
            ListenerPhase::Open | ListenerPhase::Waiting => None,
            ListenerPhase::Partly => Some(format!(
                "the listener {name:?} is open on {} Envoys only: {reasons}",
                self.open
            )),
            ListenerPhase::Withheld | ListenerPhase::Refused => {
                Some(format!("the listener {name:?} is not open: {reasons}"))
            }
        }
    }
}

/// All of them, by gateway, in the order in which they are declared.
pub fn listeners(view: &View, streams: &[StreamView]) -> Vec<ListenerStatus> {
    let declared = declared(view);
    let all = declared.flat_map(|(served, gateway)| {
        let streams: Vec<&StreamView> = of_gateway(streams, served).collect();
        of_all(view, served, gateway, &streams)
    });
    all.map(|judged| judged.status).collect()
}

/// Why nobody can connect to a listener of this node. Empty: one is open, none is wanted, or it is not known yet.
///
/// By the word of the Envoys beside this agent alone: those of other nodes have their own ports, and an agent that was taken
/// out of service for them could not be asked by them any more.
pub fn all_closed(view: &View, streams: &[StreamView]) -> Vec<String> {
    let is_local = |stream: &&StreamView| matches!(&*stream.peer, Peer::Unix { .. });
    let mut closed = Vec::new();
    // Some of these may have none but this agent.
    if streams.iter().any(|stream| !is_local(&stream)) {
        return closed;
    }
    for (served, gateway) in declared(view) {
        let streams: Vec<&StreamView> = of_gateway(streams, served).filter(is_local).collect();
        if streams.is_empty() {
            continue;
        }
        for judged in of_all(view, served, gateway, &streams) {
            match judged.status.phase {
                ListenerPhase::Open | ListenerPhase::Partly => return Vec::new(),
                ListenerPhase::Waiting if judged.is_on_its_way => return Vec::new(),
                ListenerPhase::Waiting => {}
                ListenerPhase::Withheld | ListenerPhase::Refused => {
                    let said = judged.status.closed().unwrap_or_default();
                    closed.push(format!("an open listener: of gateway {:?} {said}", served.name));
                }
            }
        }
    }
    closed
}

fn declared(view: &View) -> impl Iterator<Item = (&GatewayView, &Arc<Gateway>)> {
    view.gateways
        .iter()
        .filter_map(|served| Some((served, view.snapshot.config.gateway(&served.name)?)))
}

fn of_gateway<'a>(
    streams: &'a [StreamView],
    gateway: &'a GatewayView,
) -> impl Iterator<Item = &'a StreamView> + 'a {
    streams
        .iter()
        .filter(move |stream| stream.gateway == gateway.name)
}

struct Judged {
    status: ListenerStatus,
    /// Envoy has it to answer to.
    is_on_its_way: bool,
}

fn of_all(view: &View, served: &GatewayView, gateway: &Gateway, streams: &[&StreamView]) -> Vec<Judged> {
    let mut said: BTreeMap<&Arc<str>, Vec<&Diagnostic>> = BTreeMap::new();
    for (unit, diagnostics) in served.compiler.diagnostics() {
        if let UnitKey::Listener(name) = unit {
            said.entry(name).or_default().extend(diagnostics.iter());
        }
    }
    let judge = |listener: &Listener| {
        let said = said.get(&listener.name).map_or(&[][..], Vec::as_slice);
        let (phase, acknowledged, reasons, is_on_its_way) = judge(view, served, listener, said, streams);
        Judged {
            status: ListenerStatus {
                gateway: served.name.to_string(),
                name: listener.name.to_string(),
                protocol: listener.protocol.as_str().to_owned(),
                port: listener.port,
                phase,
                open: Programmed {
                    acknowledged,
                    of: streams.len(),
                },
                reasons: shown(reasons),
            },
            is_on_its_way,
        }
    };
    gateway.listeners.iter().map(judge).collect()
}

fn judge(
    view: &View,
    served: &GatewayView,
    listener: &Listener,
    said: &[&Diagnostic],
    streams: &[&StreamView],
) -> (ListenerPhase, usize, Vec<String>, bool) {
    let waiting = |reasons| (ListenerPhase::Waiting, 0, reasons, false);
    if served.published_at.is_none() {
        return waiting(served.waiting_for.clone());
    }
    if served
        .compiler
        .resources()
        .get(ResourceKind::Listener, &listener.name)
        .is_none()
    {
        let with = |severity| said.iter().filter(move |said| said.severity == severity);
        let messages = |severity| {
            with(severity)
                .map(|said| said.message.clone())
                .collect::<Vec<_>>()
        };
        return match messages(Severity::Error) {
            none if none.is_empty() => waiting(messages(Severity::Warning)),
            errors => (ListenerPhase::Withheld, 0, errors, false),
        };
    }
    if streams.is_empty() {
        return waiting(vec!["no Envoy of this gateway is connected".to_owned()]);
    }
    let mut reasons = Vec::new();
    let mut worst = ListenerPhase::Open;
    let (mut open, mut is_on_its_way) = (0, false);
    for stream in streams {
        let (phase, reason) = on_stream(view, served, listener, stream);
        reasons.extend(reason);
        open += usize::from(phase == ListenerPhase::Open);
        is_on_its_way |= phase == ListenerPhase::Waiting;
        worst = worst.max(phase);
    }
    let phase = match worst {
        ListenerPhase::Waiting if open > 0 => ListenerPhase::Open,
        worst if open > 0 && worst.has_failed() => ListenerPhase::Partly,
        worst => worst,
    };
    (phase, open, reasons, is_on_its_way)
}

/// Whether one Envoy has it, and why not. Of one that has it in another version: why it refuses the newest.
fn on_stream(
    view: &View,
    served: &GatewayView,
    listener: &Listener,
    stream: &StreamView,
) -> (ListenerPhase, Option<String>) {
    let (name, node) = (&listener.name, &stream.node);
    let refusal = stream
        .kind(ResourceKind::Listener)
        .refused
        .iter()
        .find(|(refused, _)| refused == name);
    let refused = refusal.map(|(_, refusal)| format!("Envoy {node:?} refused it: {}", refusal.message));
    if stream.acked.get(ResourceKind::Listener, name).is_some() {
        return (ListenerPhase::Open, refused);
    }
    if refused.is_some() {
        return (ListenerPhase::Refused, refused);
    }
    if let Some(withheld) = stream.withheld.iter().find(|withheld| withheld.name == *name) {
        let lacks: Vec<&str> = withheld.lacks.iter().filter_map(|it| certificate(it)).collect();
        let shown: Vec<String> = lacks.iter().map(|name| format!("{name:?}")).collect();
        let reason = format!(
            "Envoy {node:?} has no private key of the certificate {}, and this agent has had none since its restart",
            shown.join(", ")
        );
        // One that is issued anew is here in a moment.
        let has_problem = |name: &&str| {
            let known = view.snapshot.serving(name);
            known.is_some_and(|known| known.problem.is_some())
        };
        let phase = match lacks.iter().any(has_problem) {
            true => ListenerPhase::Withheld,
            false => ListenerPhase::Waiting,
        };
        return (phase, Some(reason));
    }
    // Refused before, by any Envoy: nobody is given it until its content changes.
    let quoted = format!("the listener {name:?}");
    let is_published = stream
        .target
        .as_ref()
        .is_none_or(|target| target.get(ResourceKind::Listener, name).is_some());
    let before = served
        .withheld
        .iter()
        .find(|said| !is_published && said.message.contains(&quoted));
    match before {
        Some(said) => (ListenerPhase::Refused, Some(said.message.clone())),
        None => (ListenerPhase::Waiting, None),
    }
}

fn shown(reasons: Vec<String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut all: Vec<String> = reasons
        .into_iter()
        .map(|reason| reason.chars().take(LONGEST).collect::<String>())
        .filter(|reason| seen.insert(reason.clone()))
        .collect();
    if let more @ 1.. = all.len().saturating_sub(REASONS) {
        all.truncate(REASONS);
        all.push(format!("and {more} more"));
    }
    all
}

//! From a NACK to the document behind it.
//!
//! A resource knows the documents it was made from. Those that Envoy has not confirmed since they changed are suspects.
//! One suspect goes into quarantine. Several do together, and are let out one by one, each once Envoy has taken
//! everything else: the one that brings the NACK back stays in.

use std::collections::{BTreeSet, VecDeque};

use crate::config::{Config, Quarantine, text_hash};
use crate::diagnostics::{Code, Diagnostic};
use crate::envoy::{Resource, ResourceKind};
use crate::model::DocumentId;

#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Changed since an Envoy last confirmed everything.
    unconfirmed: BTreeSet<DocumentId>,
    /// In quarantine only because they stood beside the guilty one.
    on_trial: VecDeque<DocumentId>,
    /// Let out, and not confirmed yet.
    under_trial: Option<DocumentId>,
}

impl Refusals {
    pub fn changed(&mut self, documents: &BTreeSet<DocumentId>) {
        self.unconfirmed.extend(documents.iter().cloned());
        self.on_trial.retain(|id| !documents.contains(id));
    }

    /// An Envoy runs with everything as published. Returns what that confirms.
    pub fn settled(&mut self) -> BTreeSet<DocumentId> {
        self.under_trial = None;
        std::mem::take(&mut self.unconfirmed)
    }

    /// The next one to let out, when all is quiet.
    pub fn next_trial(&mut self) -> Option<DocumentId> {
        if self.under_trial.is_some() {
            return None;
        }
        let next = self.on_trial.pop_front()?;
        self.under_trial = Some(next.clone());
        Some(next)
    }

    /// What to take out of service because of this refusal. Empty: no document is to blame.
    pub fn refused(
        &mut self,
        config: &Config,
        resource: &Resource,
        node: &str,
        message: &str,
    ) -> Vec<Quarantine> {
        let mut suspects: Vec<DocumentId> = match &self.under_trial {
            Some(trial) if resource.origins.contains(trial) => vec![trial.clone()],
            _ => resource
                .origins
                .iter()
                .filter(|id| self.unconfirmed.contains(id))
                .cloned()
                .collect(),
        };
        if suspects.is_empty() {
            // Nothing changed since Envoy last agreed, and this Envoy does not (another version, say).
            suspects = resource.origins.to_vec();
        }
        self.under_trial = None;
        if suspects.len() > 1 {
            self.on_trial.extend(suspects.iter().cloned());
        }
        suspects
            .iter()
            .filter_map(|id| {
                let state = config.document(id)?;
                let alone = suspects.len() == 1;
                Some(Quarantine {
                    document: id.clone(),
                    text_hash: text_hash(&state.document.text),
                    diagnostic: describe(resource, id, node, message, alone, state.confirmed.is_some()),
                })
            })
            .collect()
    }
}

fn describe(
    resource: &Resource,
    document: &DocumentId,
    node: &str,
    message: &str,
    alone: bool,
    has_confirmed: bool,
) -> Diagnostic {
    let what = match resource.kind {
        ResourceKind::Cluster => "the cluster",
        ResourceKind::Endpoint => "the endpoints",
        ResourceKind::Secret => "the certificate",
        ResourceKind::Runtime => "the connection limits",
        ResourceKind::Listener => "the listener",
        ResourceKind::ScopedRoute | ResourceKind::Route => "the routes",
    };
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
    Diagnostic::error(
        Code::EnvoyRejected,
        format!(
            "Envoy {node:?} refused {what} {:?}: {}",
            resource.name,
            shortened(message)
        ),
    )
    .at(crate::model::Origin {
        document: document.clone(),
        span: crate::model::Span::default(),
        line: 1,
        column: 1,
    })
    .because(format!("{stays}{doubt}"))
    .fix("change the document: the refusal ends with its next version")
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

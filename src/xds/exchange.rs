//! What crosses the line between a stream's IO and its protocol state, as plain data.

use std::collections::HashMap;
use std::sync::Arc;

use crate::envoy::{Resource, ResourceKind};

/// The two dialects of xDS. One stream speaks one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    Delta,
    StateOfTheWorld,
}

/// One request of Envoy: a subscription, an acknowledgement, or both at once.
#[derive(Clone, Debug)]
pub struct Request {
    pub kind: ResourceKind,
    /// The response this answers. One that we never gave out counts as stale.
    pub nonce: Option<u64>,
    /// Envoy refuses that response.
    pub error: Option<String>,
    pub asked: Asked,
}

#[derive(Clone, Debug)]
pub enum Asked {
    Delta {
        subscribe: Vec<String>,
        unsubscribe: Vec<String>,
        /// What Envoy brings along from an earlier stream. Read on the first request of a kind only.
        initial: HashMap<String, String>,
    },
    StateOfTheWorld {
        names: Vec<String>,
        /// The last version Envoy accepted, from this stream or an earlier one.
        version: String,
    },
}

/// One response. Its resources are shared, never copied.
#[derive(Clone, Debug)]
pub struct Response {
    pub kind: ResourceKind,
    pub nonce: u64,
    /// State of the world: what Envoy brings back on its next stream. Delta: for reading logs only, left empty.
    pub version: String,
    pub resources: Vec<Arc<Resource>>,
    pub removed: Vec<Arc<str>>,
}

/// What others should hear about.
#[derive(Clone, Debug)]
pub enum Report {
    Acked {
        kind: ResourceKind,
        resources: Vec<Arc<Resource>>,
        removed: Vec<Arc<str>>,
    },
    Nacked {
        kind: ResourceKind,
        /// What was new in the refused response.
        candidates: Vec<Arc<Resource>>,
        /// The candidates that Envoy's message names.
        blamed: Vec<Arc<str>>,
        /// Exactly the blamed ones are bad. False: the candidates are being tried apart, wait for the proof.
        proven: bool,
        message: Arc<str>,
    },
    /// Envoy needs a resource whose bytes nobody holds any more: it must be made anew.
    Wanted {
        kind: ResourceKind,
        name: Arc<str>,
        /// It has no other version of it either. False where nobody can tell.
        lacks: bool,
    },
}

/// What follows from one input, in order.
#[derive(Clone, Debug, Default)]
pub struct Actions {
    pub responses: Vec<Response>,
    pub reports: Vec<Report>,
}

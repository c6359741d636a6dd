//! Snapshot to the resolved tree, unit by unit: attach, inherit, look up, put in order.
//!
//! Pure. A problem is a diagnostic beside a value that says what to do instead; it never stops another unit.

mod cluster;
mod destination;
mod elsewhere;
mod explain;
mod listener;
mod matching;
mod policies;
mod ports;
mod virtual_host;

pub use cluster::{cluster_name, endpoints, resolve_cluster, resolve_target, service_queries};
pub use destination::at_its_users;
pub use elsewhere::Elsewhere;
pub use explain::{Considered, Explanation, explain};
pub use listener::{
    attached_features, certificate_of_secret, certificates_of, resolve_listener, resolve_secret, secret_name,
};
pub use matching::{Request, matches, select_host};
pub use virtual_host::{ResolvedHost, resolve_virtual_host};

use crate::diagnostics::Diagnostic;

/// A unit's value, and what there is to say about it.
#[derive(Clone, Debug)]
pub struct Resolved<T> {
    pub value: T,
    pub diagnostics: Vec<Diagnostic>,
}

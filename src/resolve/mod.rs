//! Snapshot to the resolved tree, unit by unit: attach, inherit, look up, put in order.
//!
//! Pure. A problem is a diagnostic beside a value that says what to do instead; it never stops another unit.

mod backend;
mod certificate;
mod chain;
mod chain_match;
mod client_ca;
mod cluster;
mod destination;
mod elsewhere;
mod explain;
mod intention;
mod listener;
mod matching;
mod mesh;
mod named_port;
mod policies;
mod ports;
mod redirect;
mod rule;
mod tcp;
mod users;
mod virtual_host;

pub use client_ca::{Named, client_ca_of, named};
pub use cluster::{endpoints, resolve_cluster};
pub use destination::{Destination, cluster_name, first_query, interests_of, resolve_target};
pub use elsewhere::Elsewhere;
pub use explain::{Considered, Explanation, explain};
pub use listener::{
    attached_features, certificate_of_secret, certificates_of, mesh_secrets, resolve_listener,
    resolve_secret, secret_name, serves_http, shown_by,
};
pub use matching::{Request, matches, select_host};
pub use mesh::chain_problems;
pub use ports::shared_ports;
pub use tcp::{ResolvedTcp, resolve_tcp, serves_tcp};
pub use users::at_its_users;
pub use virtual_host::{ResolvedHost, resolve_virtual_host};

use crate::diagnostics::Diagnostic;

/// A unit's value, and what there is to say about it.
#[derive(Clone, Debug)]
pub struct Resolved<T> {
    pub value: T,
    pub diagnostics: Vec<Diagnostic>,
}

//! Documents to configuration: core blocks, defaults, who owns a name, last good versions.
//!
//! Pure: the same documents give the same [`Config`] in every process and in every order of arrival.

mod admission;
mod breadth;
mod certificate;
mod client_ca;
mod connect;
mod document;
mod doubts;
mod exposure;
mod gateway;
mod health_check;
mod objects;
mod permissions;
mod problems;
mod reach;
mod reference;
mod route;
mod schema;
mod store;
mod tcp_route;
mod upstream;

pub use breadth::fits;
pub use client_ca::{client_ca_name, listener_of_client_ca};
pub use document::{ParsedDocument, parse_document};
pub use exposure::{CATALOG, Exposure};
pub use objects::{
    Backend, BackendTarget, Certificate, ClientCa, ConnectSource, Gateway, HttpRoute, Listener, ListenerTls,
    NotAllowed, Object, ObjectKey, ObjectKind, Policy, Protocol, RouteRef, Rule, RuleAction, Scope, TcpRoute,
    Upstream, UpstreamSource,
};
pub use permissions::Permissions;
pub use reach::{AddressRefusal, AddressRules};
pub use reference::{DURATIONS, diagnostics_markdown, reference_markdown, write_attribute, write_block};
pub use schema::document_schema;
pub use store::{Config, ConfigChange, DocumentState, Quarantine, Rank, text_hash};

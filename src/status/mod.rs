//! What is in effect, object by object: accepted, resolved, programmed.
//!
//! Pure: from a view of the pipeline and of the xDS streams to plain values that serialise. Shown by the API, the CLI
//! and the status keys in Consul. How they are laid out for people is not known here.

mod board;
mod envoy;
mod excerpt;
mod listener;
mod node_report;
mod object;
mod programmed;
mod refused;
mod source;
mod summary;
mod uncovered;
mod undeclared;
mod watch;
mod withheld;

pub use board::{GatewayStatus, Status, diagnostics, missing};
pub use envoy::{EnvoyStatus, KindStatus, RefusedClientStatus, RefusedClientsStatus, RefusedResource};
pub use excerpt::{Count, Counts};
pub use listener::{ListenerPhase, ListenerStatus, all_closed, listeners};
pub use node_report::{CertificateReport, EnvoyCount, NodeReport, ObjectReport, Signature};
pub use object::{Condition, DocumentPhase, DocumentStatus, ObjectStatus, source_of};
pub use programmed::Programmed;
pub use source::SourceReading;
pub use summary::{ObjectSummary, Summary};
pub use watch::{CertificatePhase, CertificateStatus, ServiceStatus};

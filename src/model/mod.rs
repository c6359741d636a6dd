//! Names and values that cross stage boundaries.
//!
//! Everything here is plain data: it knows no HCL, no Envoy and no client of an external system.

mod certificate;
mod document;
pub mod http;
pub mod mesh;
mod observation;
mod policies;
mod problem;
mod redacted;
pub mod regex;
mod service;
mod shared;

pub use certificate::{CertificateMaterial, CertificateQuery, ClientCaQuery, KeyType, KvVersion, is_covered};
pub use document::{Document, DocumentId, Origin, Span, extension_of_key};
pub use observation::{
    AcceptedText, CertificateUpdate, ChainUpdate, DocumentsUpdate, ExposedUpdate, IntentionUpdate, Interests,
    MeshUpdate, Needed, Observation, OptIn, ServiceUpdate, SharedPort, covers, is_true,
};
pub use policies::{Policies, PolicySetting, PolicyValue};
pub use problem::{Problem, ProblemKind};
pub use redacted::Redacted;
pub use service::{Health, Instance, Lookup, Narrowing, ServiceQuery, Weights};
pub use shared::Shared;

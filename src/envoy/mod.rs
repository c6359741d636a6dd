//! Envoy's side of the boundary: resource types, encoding, JSON rendering.
//!
//! Knows Envoy's protobuf and nothing of our documents or of where data comes from.

pub mod bootstrap;
mod forms;
mod json;
mod message;
mod resource;
mod scope_keeper;

pub use forms::{listener_of_scope, scope_name};
pub use json::{descriptors, render, render_resource};
pub use message::{any, duration, wrap_bool, wrap_u32};
pub use resource::{Changed, Resource, ResourceChange, ResourceKind, ResourceRef, ResourceSet};

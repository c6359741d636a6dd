//! What is in effect, object by object: accepted, resolved, programmed.
//!
//! Pure: from a view of the pipeline and of the xDS streams to plain values that serialise. Shown by the API, the CLI
//! and the status keys in Consul. How they are laid out for people is not known here.

mod attachment;

pub use attachment::unattached;

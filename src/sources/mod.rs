//! Where the outside world comes in: each source watches one system and sends [`crate::model::Observation`]s.
//!
//! In: settings, and for some sources what to watch. Out: observations on a bounded channel. A source retries inside
//! itself and never ends because the other side is away; a problem is a value that travels beside the last good data,
//! which stands. Must not know: HCL, Envoy, how observations are used.

pub mod agent_api;
pub mod bounded_file;
pub mod certificates;
pub mod consul;
#[cfg(test)]
mod damage;
pub mod directory;
mod health;
mod identity;
pub(crate) mod life;
pub mod nomad;
pub mod private_file;
pub mod retry;
pub(crate) mod stamp;
pub mod vault;

pub use health::{HealthReading, SourceHealth};

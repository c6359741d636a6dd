//! Nomad: instances of its native services, by blocking queries.
//!
//! Nomad knows no health of a service: what is registered is served, and Envoy checks it (`health_check`). The event
//! stream is not used: it may drop events, so the lists would have to be read all the same.

mod answer;
mod client;
mod services;
mod settings;

pub use client::NomadClient;
pub use settings::NomadSettings;

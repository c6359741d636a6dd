//! Nomad: instances of its native services, by blocking queries.
//!
//! Nomad knows no health of a service: what is registered is served, and Envoy checks it (`health_check`). The event
//! stream may drop events, so the lists have to be read all the same: it is a hint for watches without a connection.

mod answer;
mod client;
mod event_stream;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
#[cfg(test)]
mod fuzz_tests;
mod hints;
mod services;
mod settings;

pub use client::NomadClient;
pub use settings::NomadSettings;

//! The fault suite: one thing at a time goes wrong, then several at once, while an open-loop client sends requests through
//! Envoy and accounts for each of them. Allowed to fail are only requests in flight on a process that the fault killed, and
//! those refused while no Envoy process existed; they are counted apart.
//!
//! `make chaos` runs the long form, one fault after the other, and holds it to the bars of [`bars`]. `make test` runs the short
//! form: what may not fail is the same, and the bars are such as any machine keeps.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../support/mod.rs"]
mod support;

mod bars;
mod course;
mod epochs;
mod loads;
mod observer;
mod record;
mod summary;
mod trend;

mod agents;
mod clocks;
mod consuls;
mod disks;
mod documents;
mod endpoints;
mod envoys;
mod partitions;
mod routes;
mod several;
mod soak;
mod vaults;

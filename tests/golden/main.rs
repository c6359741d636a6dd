//! Every example in `hcl-examples/` becomes Envoy configuration, and so do discovery chains: reviewed as snapshots, accepted by
//! the real Envoy.
#![allow(clippy::unwrap_used)]

#[path = "../support/world.rs"]
mod world;

mod chains;
mod descriptors;
mod envoy;
mod examples;
mod filters;
mod named_ports;
mod reference;
mod split_routes;

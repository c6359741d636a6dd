//! Every example in `hcl-examples/` becomes Envoy configuration: reviewed as snapshots, accepted by the real Envoy.
#![allow(clippy::unwrap_used)]

#[path = "../support/world.rs"]
mod world;

mod descriptors;
mod envoy;
mod examples;
mod reference;

//! Portreeve turns HCL documents into Envoy configuration, live.

// The small world of the tests names the crate, also where it is built into it.
#[cfg(any(test, fuzzing))]
extern crate self as portreeve;

pub mod admin;
pub mod agent;
pub mod cli;
pub mod config;
pub mod diagnostics;
pub mod envoy;
pub mod envoy_process;
pub mod features;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod hcl;
pub mod ir;
pub mod model;
pub mod pipeline;
pub mod resolve;
pub mod snapshot;
pub mod sources;
pub mod status;
pub mod translate;
pub mod xds;

//! Portreeve turns HCL documents into Envoy configuration, live.

pub mod admin;
pub mod agent;
pub mod cli;
pub mod config;
pub mod diagnostics;
pub mod envoy;
pub mod envoy_process;
pub mod features;
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

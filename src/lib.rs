//! Portreeve turns HCL documents into Envoy configuration, live.

pub mod agent;
pub mod envoy;
pub mod model;

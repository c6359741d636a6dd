//! Portreeve turns HCL documents into Envoy configuration, live.

pub mod envoy;
pub mod model;
pub mod sources;

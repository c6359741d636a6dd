//! The discovery server: text scripts against its protocol state, random conversations against a model of Envoy,
//! gRPC over real sockets, and the real Envoy.

#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]
#![expect(
    clippy::print_stderr,
    reason = "times are shown, and Envoy's log when a test fails"
)]

mod agent;
mod confirmation;
mod envoy;
mod grpc;
mod h2spec;
mod harness;
mod hostile;
mod keyless;
mod model;
mod mutual_tls;
#[path = "../support/ports.rs"]
mod ports;
mod refused;
mod script;

//! The supervisor against the real Envoy.
//!
//! Needs `envoy` in PATH, or its path in `PORTREEVE_TEST_ENVOY`; and every supported version, which `make envoys` fetches
//! (others, separated by colons, in `PORTREEVE_TEST_ENVOYS`). A missing Envoy is a failure. Everything listens on loopback.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "the steps of a test, outside of its function too"
)]

mod bootstrap;
mod crash;
mod former;
mod gateway;
mod load;
mod mutual_tls;
mod planned_restart;
#[path = "../support/ports.rs"]
mod ports;
mod stop;
mod takeover;

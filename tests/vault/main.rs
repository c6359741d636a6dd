//! The Vault sources against a real OpenBao (never `-dev`), and against a mock for what a single server does not do.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot set up its world has failed"
)]

#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/token_review.rs"]
mod token_review;

mod ahead;
mod auth;
mod aws;
mod bao;
mod client_ca;
mod clocks;
mod contract;
mod files;
mod gate;
mod kv;
mod lockout;
mod logins;
mod namespaces;
mod outages;
mod pki;
mod policies;
mod proxy;
mod rig;
mod rotation;
mod shipped;
mod tls;

//! The Vault sources against a real OpenBao (never `-dev`), and against a mock for what a single server does not do.

mod auth;
mod bao;
mod contract;
mod files;
mod kv;
mod outages;
mod pki;
mod policies;
mod rig;

//! End to end: the real programs, a real client. They need `make setup`.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod programs;
mod traffic;

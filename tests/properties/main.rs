//! What must hold for every document and every order of events, over random ones.
//!
//! `PROPTEST_CASES=20000` looks further (`make fuzz-smoke`); a failure prints the smallest input that shows it.
#![allow(clippy::unwrap_used)]

#[path = "../support/world.rs"]
mod world;

mod chains;
mod client_ca;
mod compile;
mod fuzz;
mod generate;
mod language;
mod succession;
mod units;

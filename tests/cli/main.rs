//! The command line as a user meets it, and the API behind it.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod api;
mod apply;
mod envoy;
mod guessed_names;
mod live;
mod offline;
mod programmed;
mod prune;
mod reference;
mod run;
mod setup;
mod slips;
mod validate;

//! What each kind of bad input gets: told with a code and a place, and harming nothing but itself.
//!
//! `docs/bad-input.md` is written from the same cases (`UPDATE_REFERENCE=1`); what the operator reads is kept as snapshots.
#![allow(clippy::unwrap_used)]

#[path = "../support/world.rs"]
mod world;

mod around;
mod case;
mod cases;
mod certificates;
mod complete;
mod doubtful;
mod elsewhere;
mod mesh;
mod reach;
mod syntax;
mod table;
mod tcp;

//! The one place where tasks meet the pure code.
//!
//! ```text
//!  sources ── Observation ──┐                        ┌──> watch<ResourceSet> per gateway ──> xds
//!  xds ────── Event ────────┼──> [`Pipeline`] (owner)┼──> Interests ──> sources
//!  api, signals ─ Command ──┘    Snapshot, Compilers ├──> watch<View> ──> api, status
//!                                                    └──> Store (disk)
//! ```
//!
//! One task owns the snapshot and the compilers; everybody else sees values. It never waits for a source, an Envoy or
//! the disk.

mod accepted;
mod core;
mod events;
mod flood;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod gateway;
mod holds;
mod inbox;
mod narrower;
mod object_behind;
mod refusals;
mod start;
mod store;
mod view;
mod wishes;
mod withheld;

pub use core::{Command, GatewaySettings, Meter, Outputs, Pipeline, PipelineSettings};
pub use refusals::refusal_of_node;
pub use store::{Restored, Store, StoreError};
pub use view::{GatewayView, View};
pub use wishes::KeyWishes;

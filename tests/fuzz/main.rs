//! Whatever comes in: no panic, and the stated properties hold. A small number of cases here; `make fuzz-smoke` runs many
//! more (`PROPTEST_CASES`).
#![allow(clippy::unwrap_used)]

mod documents;
mod mutation;
mod settings;

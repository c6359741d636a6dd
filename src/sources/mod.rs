//! What Portreeve watches outside itself: each source turns an external system into `model::Observation`s.
//!
//! A source retries inside itself. Its problems are values that travel beside the last good data.

pub mod certificates;
pub mod vault;

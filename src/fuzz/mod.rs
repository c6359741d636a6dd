//! What coverage-guided fuzzing calls: one function for each kind of input that others write.
//!
//! In: bytes. Out: nothing; a panic is a finding. `make fuzz` changes the inputs kept in `tests/fuzz/corpus`, guided by
//! what code each of them reaches, and keeps those that reach more. Every `make test` replays what is kept (`replay`).
//! A target lies beside the parser that it calls, so that parsers stay private: all of this is compiled for these two
//! uses alone (`cfg(fuzzing)` is set by `make fuzz`).
//!
//! ```text
//!  tests/fuzz/guided (libFuzzer) ──> targets() ──> admin, cli, envoy_process, pipeline, sources, xds: fuzz
//!  replay (make test)            ──>           └─> documents, worlds
//! ```

mod documents;
#[cfg(test)]
mod page;
mod pieces;
#[cfg(test)]
mod replay;
#[path = "../../tests/support/world.rs"]
mod world;
mod worlds;

pub(crate) use pieces::Pieces;
pub(crate) use worlds::{exposed, through_chain, with_intention};

pub struct Target {
    /// Of its corpus, too.
    pub name: &'static str,
    /// What the page says of it.
    pub input: &'static str,
    pub run: fn(&[u8]),
}

pub fn targets() -> impl Iterator<Item = &'static Target> {
    [
        documents::TARGETS,
        worlds::TARGETS,
        crate::admin::fuzz::TARGETS,
        crate::cli::fuzz::TARGETS,
        crate::envoy_process::fuzz::TARGETS,
        crate::pipeline::fuzz::TARGETS,
        crate::sources::agent_api::fuzz::TARGETS,
        crate::sources::certificates::fuzz::TARGETS,
        crate::sources::consul::fuzz::TARGETS,
        crate::sources::consul::mesh::fuzz::TARGETS,
        crate::sources::nomad::fuzz::TARGETS,
        crate::sources::vault::fuzz::TARGETS,
        crate::xds::fuzz::TARGETS,
    ]
    .into_iter()
    .flatten()
}

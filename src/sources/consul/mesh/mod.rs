//! Consul's mesh: the discovery chains of services, the gateway's own identity, and the intentions it will meet.
//!
//! In: what of it is needed, as [`Interest`]s. Out: one observation per change. Endpoints of mesh services are watched
//! with all others, in `services`.
//!
//! ```text
//! interests -> watcher -+-> chain       /v1/discovery-chain/<service>           (agent's token: service:read)
//!                       +-> intention   /v1/connect/intentions/match, check     (agent's token: intentions:read)
//!                       +-> identity    /v1/agent/connect/ca/roots, leaf/<own>  (mesh token:    service:write on <own>)
//!
//! service queries -> sidecar            /v1/agent/service/<own sidecar>         (agent's token: service:read)
//! ```

mod chain;
mod chain_answer;
mod checks;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod go_duration;
mod identity;
mod intention;
mod intention_answer;
mod intention_source;
mod sidecar;
mod watcher;
pub use watcher::{LeafReading, MeshWatcher, MeshWatcherTask};

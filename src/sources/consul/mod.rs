//! Consul: documents from KV, instances from the catalog, locks and sessions.
//!
//! A thin layer of our own on reqwest ([`super::agent_api`], shared with Nomad), because long polls, single-key reads, transactions and sessions are what
//! `rs-consul` gets wrong or lacks; that crate serves the one call it gets right (see `catalog_names`).
//!
//! ```text
//! settings -> client -> blocking query -+-> documents  (guard: a vanished key is read singly)
//!               |                       +-> services   (guard: a vanished instance's rights are probed)
//!               |                       +-> mesh       (chains, intentions, the gateway's identity)
//!               +-> kv, session, leader (one-shot calls)
//! ```

mod catalog_names;
mod client;
mod document_ledger;
mod documents;
mod exposed;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
#[cfg(test)]
mod fuzz_tests;
mod health_answer;
mod kv;
mod kv_tree;
mod leader;
pub(crate) mod mesh;
mod services;
mod session;
mod settings;
mod shards;

pub use super::agent_api::{
    ApiError as ConsulError, Endpoint, ServiceWatcher, ServiceWatcherTask, SettingsError, TransportFailure,
    TxnFailure, WatchTiming,
};
use super::agent_api::{blocking_query, budget, call};
pub use catalog_names::{follow_service_names, service_names};
pub use client::ConsulClient;
pub use document_ledger::Rejected;
pub use documents::{DocumentsWatch, KvListing, list_documents};
pub use exposed::ExposedWatch;
pub use kv::{KvEntry, TxnWrite, is_written};
pub use leader::{FencedWriteError, LeaderElection, LeaderSettings, Leadership};
pub use mesh::{LeafReading, MeshWatcher, MeshWatcherTask};
pub use session::{SessionBehavior, SessionKeeper, SessionKey, SessionSettings};
pub use settings::ConsulSettings;

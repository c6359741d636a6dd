//! The HTTP API that agents of Consul and Nomad have in common: address and token, calls, errors, blocking queries.
//!
//! ```text
//! settings -> client -> blocking_query -> whoever watches
//! ```
//!
//! It knows no endpoint of either product; [`super::consul`] and [`super::nomad`] do.

pub(super) mod blocking_query;
pub(super) mod budget;
pub(super) mod call;
pub(super) mod client;
mod connector;
pub(super) mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod json;
mod lifetimes;
pub(super) mod lines;
mod login;
mod poll_loop;
mod product;
mod recovery;
pub(super) mod service_watcher;
mod settings;
mod streams;
mod tls;
pub(super) mod token;
mod token_sink;

pub use blocking_query::WatchTiming;
pub use client::ApiClient;
pub use error::{ApiError, TransportFailure, TxnFailure};
pub use lifetimes::{Lifetimes, LifetimesReading};
pub use login::{LoginSettings, LoginStatus};
pub use product::{Product, Server};
pub use service_watcher::{ServiceWatcher, ServiceWatcherTask};
pub(super) use settings::go_bool;
pub use settings::{ApiAddress, ApiSettings, Endpoint, SettingsError};

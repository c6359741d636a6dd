//! The agent's HTTP API: what the CLI, checks and scrapers ask.
//!
//! In: the pipeline's view, the xDS streams, the supervised Envoys, the sources' counters. Out: JSON, and metrics as
//! text. On a unix socket (mode 0600) everything; on an optional loopback port only `/ready` and `/metrics`. It reads;
//! the few things it can be told (look again, restart Envoy) it hands on.
//!
//! ```text
//!  connection (serve) ──> routes (table) ──> read, explain, envoy, metrics ──> View, Streams, Handle
//!                              └──> openapi, reference
//! ```

mod answer;
mod envoy;
mod explain;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod metrics;
mod openapi;
mod parameters;
mod read;
mod recorder;
mod redact;
mod reference;
mod resources;
mod routes;
mod serve;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

pub use envoy::EnvoyProcessStatus;
pub use explain::{BadQuery, ExplainQuery, explain};
pub use read::{AgentStatus, DocumentText, Readiness, StatusReport};
pub use recorder::Recorder;
pub use reference::{api_reference, metrics_reference};
pub use resources::{ResourceFilter, resources};
pub use routes::router;
pub use serve::{Listener, ServeError, serve_tcp, serve_unix};

use crate::envoy_process;
use crate::pipeline::{KeyWishes, View};
use crate::status::SourceReading;
use crate::xds::Streams;

/// What the API shows and can be told. Cloning is cheap.
#[derive(Clone)]
pub struct Api {
    pub node: Arc<str>,
    pub version: Arc<str>,
    pub started_at: SystemTime,
    pub view: watch::Receiver<Arc<View>>,
    pub streams: Streams,
    /// The Envoys that this agent supervises, by gateway.
    pub envoys: BTreeMap<Arc<str>, envoy_process::Handle>,
    pub readings: Arc<dyn Fn() -> Vec<SourceReading> + Send + Sync>,
    /// Certificates that are to be issued anew because nobody here has the key.
    pub wanted: KeyWishes,
    /// Asks the polled sources to look now.
    pub refresh: Arc<dyn Fn() + Send + Sync>,
    pub recorder: Recorder,
}

impl Api {
    /// The newest view. The lock inside is not held.
    fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }
}

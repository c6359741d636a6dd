//! Keeps one Envoy alive beside the agent, and never two.
//!
//! Job: start Envoy, or take over the one that a former agent left running; restart it when it dies, replace it
//! without loss when its binary or bootstrap changes, stop it gently or leave it running.
//! Inputs: `Settings`, commands on the `Handle`, what /proc and Envoy's admin API say.
//! Output: a `Status` to watch, and Envoy's log lines in ours.
//!
//! ```text
//!   agent ── Handle ──commands──> supervise ──> launch ──> sh (keeper) ──> Envoy
//!                 <── Status ──       │  ^                    │ how it ended  │ stderr
//!                                     v  └─── process <───────┘               v
//!                          planned_restart, stop ── admin_client         envoy.log ──> log_tail ──> tracing
//!                                     │
//!                                     └──> record (envoy-state.json, envoy.lock)
//! ```
//!
//! The agent may be killed at any instruction. Hence nothing of ours may hold Envoy back: its parent is a shell and
//! not the agent, whose death Envoy would follow; its output goes to a file and not to a pipe, whose writer dies with
//! its reader. A lock that the kernel frees says whether an agent lives, and what the record cannot know yet is found
//! again in the process table.

mod admin_client;
mod binary;
mod error;
mod exec;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod handle;
mod identity;
mod keeper;
mod last_run;
mod launch;
mod listening_sockets;
mod log_tail;
mod open_files;
mod planned_restart;
mod process;
mod record;
mod replace;
mod settings;
mod settle;
mod shared_ports;
mod steering;
mod stop;
mod strays;
mod supervise;
mod takeover;

pub use admin_client::{AdminClient, AdminError, Drain, ServerInfo, ServerState};
pub use binary::{Binary, BinaryError, Version};
pub use error::{Error, RestartError};
pub use exec::{ExecOptions, exec_envoy, exec_envoy_again};
pub use handle::{Handle, Running, Status};
pub use keeper::{Keeper, keeper};
pub use last_run::LastRun;
pub use open_files::{OpenFilesWarning, open_files_warning};
pub use planned_restart::RestartMethod;
pub use process::Exit;
pub use settings::Settings;
pub use shared_ports::{PortSharer, PortWatch};
pub use stop::{StopMode, drain};
pub use strays::{Stray, strays};
pub use supervise::start_or_adopt;

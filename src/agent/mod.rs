//! The running program: its own settings, its tasks, the Envoy it keeps, its log and its signals.

pub mod app;
pub mod data_directory;
mod envoys;
pub mod log_format;
mod log_thread;
mod mesh_interests;
pub mod notify_systemd;
mod other_users;
mod problem_log;
mod reload;
mod service_interests;
pub mod settings;
mod shared_ports;
pub mod signals;
mod sources;
pub mod start_banner;
mod status_keys;
mod supervisor;
mod xds_certificate;

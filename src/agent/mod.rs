//! The running program: its own settings, its tasks, the Envoy it keeps, its log and its signals.

pub mod envoy_process;
pub mod log_format;
pub mod notify_systemd;
pub mod settings;
pub mod signals;
pub mod start_banner;

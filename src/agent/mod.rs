//! The running program: its own settings, its tasks, the Envoy it keeps, its log and its signals.

pub mod log_format;
pub mod start_banner;

//! End to end: the real programs, a real client. They need `make setup`.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../support/mod.rs"]
mod support;

mod catalog;
mod central;
mod connections;
mod dev;
mod diagnosis;
mod edge;
mod faults;
mod long_streams;
mod oracle;
mod planned_restart;
mod privileges;
mod programs;
mod remote;
mod retries;
mod rights;
mod same_bytes;
mod stack;
mod status;
mod timeouts;
mod tls;
mod tls_versions;
mod traffic;
mod versions;

//! End to end: the real programs, a real client. They need `make setup`.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../support/mod.rs"]
mod support;

mod catalog;
mod central;
mod dev;
mod diagnosis;
mod edge;
mod faults;
mod oracle;
mod planned_restart;
mod privileges;
mod programs;
mod refusals;
mod remote;
mod rights;
mod same_bytes;
mod stack;
mod status;
mod tls;
mod traffic;
mod versions;

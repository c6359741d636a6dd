//! End to end: the real programs, a real client. They need `make setup`.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../support/mod.rs"]
mod support;

mod bounds;
mod catalog;
mod central;
mod certificate_changes;
mod connect;
mod connections;
mod datacenters;
mod dev;
mod diagnosis;
mod disk;
mod edge;
mod exposure;
mod fail_closed;
mod faults;
mod first_start;
mod inheritance;
mod long_streams;
mod mesh_gateways;
mod nomad;
mod oracle;
mod outages;
mod planned_restart;
mod ports;
mod privileges;
mod programs;
mod refusals;
mod remote;
mod renewal;
mod retries;
mod rights;
mod same_bytes;
mod settings;
mod signals;
mod stack;
mod status;
mod survival;
mod timeouts;
mod tls;
mod tls_versions;
mod traffic;
mod versions;

//! The Consul sources against the real Consul, and against a server that plays its bad days,
//! and what Nomad's add to the machinery that both share.
//!
//! The binary is `$CONSUL_BIN`, `target/tools/bin/consul`, or `consul` on the PATH; none is a failure, not a skip.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../support/nomad.rs"]
#[expect(dead_code, reason = "other suites use the rest of it")]
mod nomad;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/world.rs"]
mod world;

mod answering;
mod contract;
mod contract_server;
mod documents;
mod enterprise;
mod event_stream;
mod exposed;
mod leader;
mod mesh;
mod mesh_roots;
mod named_ports;
mod newer;
mod nomad_rights;
mod own_sidecar;
mod refusals;
mod server;
mod services;
mod shards;
mod streams;
mod transport;

//! Serves Envoy: aggregated discovery, delta and state-of-the-world, over a unix socket and mutual TLS.
//!
//! In: the complete `ResourceSet` of each gateway, newest first, through a `watch` ([`Gateways`]). Out: gRPC responses
//! made of bytes that were encoded once and are shared by all streams, [`Event`]s for whoever keeps status and issues
//! certificates, and [`StreamView`]s for whoever asks what each Envoy runs.
//!
//! ```text
//!  Gateways (name -> watch<ResourceSet>)        Envoy
//!        |                                        ^ frames of shared bytes (wire)
//!        v                                        |
//!  stream (one task per Envoy: IO, clock) <-> StreamState (plain data: no IO, no clock)
//!        |                                        |-- Subscription x 6: asked, told, acknowledged, refused
//!        v                                        |-- Gates: a route waits for its new clusters
//!  Event, StreamView                              |-- InUse: a removal waits for who used it
//!                                                 |-- Handover: a port goes from one listener to another
//!                                                 |-- Keyless: a listener waits for the key of a certificate
//!                                                 `-- Invented: names of nothing are bounded
//! ```
//!
//! State of the world is the weaker dialect, and nothing here can help it: it has no word for "absent" (endpoints,
//! secrets and routes that are not there are left unanswered), it does not say what Envoy holds (so after a reconnect
//! with a changed set, removed clusters go at once), and its one version per kind says what was sent last, not that
//! names dropped and asked for again were answered before a stream broke. Delta is the default for these reasons.
//!
//! Must not know: documents, sources, how resources are made.

mod access;
mod connection;
mod delivery;
mod event;
mod exchange;
mod forms;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
#[cfg(test)]
mod fuzz_tests;
mod gate;
mod gateways;
mod handover;
mod in_use;
mod invented;
mod keyless;
mod leaving;
mod limits;
mod listener;
mod order;
mod parked;
mod refusal;
mod refused_clients;
mod requests;
mod server;
mod service;
mod stream;
mod stream_state;
mod streams;
mod subscription;
mod tls;
mod turn;
mod wire;

pub use access::{Access, GatewayAccess, Identities, Identity, Peer, San};
pub use event::{Event, EventQueue, RefusedReason, StreamId};
pub use exchange::{Actions, Asked, Report, Request, Response, Variant};
pub use gateways::Gateways;
pub use limits::{Limits, Violation};
pub use listener::{ListenError, Listener, TcpSettings, UnixSettings};
pub use refusal::{Refusal, is_of_node, said_of};
pub use refused_clients::{RefusedClient, RefusedClients};
pub use server::Server;
pub use stream_state::StreamState;
pub use streams::{KindView, StreamView, Streams, WithheldListener};
pub use tls::{TlsError, TlsSettings};

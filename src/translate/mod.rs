//! The resolved tree to encoded xDS resources, and the memo that keeps a change to its own units.
//!
//! Pure. `route`, `tcp_proxy`, `cluster`, `endpoint`, `listener`, `runtime` and `secret` each turn one unit into bytes; [`Compiler`] decides which
//! units a change touches. A property test holds memoised and fresh results equal.

mod cluster;
mod compiler;
mod encoding;
mod endpoint;
mod health_check;
mod http_connection_manager;
mod listener;
mod mesh;
mod route;
mod runtime;
mod secret;
mod tcp_proxy;

pub use compiler::{Compiled, Compiler, Fetched, Held, Settings, UnitKey};

//! What end-to-end tests stand on: the real programs as child processes on loopback, and a client that
//! counts.
//!
//! Every program gets its own ports ([`ports`]), its own scratch directory and log, and dies with the value
//! that started it.
//! When a test panics, the end of each program's log is printed. `PORTREEVE_KEEP=1` keeps the scratch
//! directories.
#![allow(dead_code, clippy::unwrap_used, clippy::print_stderr)]

pub mod acl;
pub mod agent;
pub mod backend;
pub mod client;
pub mod connect;
pub mod connection;
pub mod consul;
pub mod counted;
pub mod envoy;
pub mod failure;
pub mod http;
pub mod jwt;
pub mod line;
pub mod load;
pub mod message;
pub mod network;
pub mod nomad;
pub mod orphans;
pub mod pki;
pub mod ports;
pub mod process;
pub mod rsa;
pub mod stack;
pub mod token_review;
pub mod vault;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a program may take to be of use. Generous: the machine may be small and shared.
pub const START_LIMIT: Duration = Duration::from_secs(60);

/// The path of a program that `make setup` provides, or else the one on PATH.
pub fn program(name: &str) -> PathBuf {
    find_program(name)
        .unwrap_or_else(|| panic!("there is no {name} in target/tools/bin or on PATH: run make setup"))
}

pub fn find_program(name: &str) -> Option<PathBuf> {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::iter::once(fetched)
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join(name));
    found.into_iter().find(|candidate| candidate.is_file())
}

/// A new directory with a short path (socket paths end at 107 bytes), removed when the value is dropped.
pub fn scratch_directory(name: &str) -> TempDir {
    let keep = std::env::var_os("PORTREEVE_KEEP").is_some();
    let made = tempfile::Builder::new()
        .prefix(&format!("pr-{name}-"))
        .disable_cleanup(keep)
        .tempdir();
    made.unwrap_or_else(|error| panic!("no scratch directory for {name}: {error}"))
}

/// Polls until `poll` answers `Ok`; panics with the last reason once `limit` has passed.
pub async fn wait_for<T>(what: &str, limit: Duration, mut poll: impl AsyncFnMut() -> anyhow::Result<T>) -> T {
    let started = Instant::now();
    loop {
        match poll().await {
            Ok(value) => return value,
            Err(reason) if started.elapsed() > limit => {
                panic!(
                    "waited {:.1} s for {what}; the last answer: {reason:#}",
                    started.elapsed().as_secs_f32()
                )
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

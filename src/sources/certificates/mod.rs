//! Watches certificates: in Vault's KV, signed by Vault's PKI, in Nomad's variables, or in files.
//!
//! Input: the set of `CertificateQuery`s that the configuration needs. Output: one `Observation::Certificate` per
//! change, on a bounded channel: material that was checked (PEM, key, dates), or the problem that keeps the last
//! material standing. One task per query; it retries inside itself and ends only with the interest in it.
//!
//! ```text
//!  set_interests --> CertificateWatcher --+--> kv::watch    (polls)        --+
//!                                         +--> issued::watch (2/3 of life) --+--> Publisher --> Observation
//!                                         +--> variable::watch (blocking)  --+   (no repeats)
//!                                         +--> file::watch  (inotify)      --+
//!                                         +--> client_ca    (polls)        --+
//! ```

mod authorities;
mod budget;
mod client_ca;
mod clock;
mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod issued;
mod kv;
mod lease;
mod memory;
mod pem;
mod publisher;
mod records;
mod request;
mod store;
mod variable;
mod watcher;

pub use crate::sources::vault::timestamp;
pub use clock::WallClock;
pub use pem::{MAX_CHAIN_BYTES, MAX_KEY_BYTES, PemFault, parse, parse_public};
pub use publisher::CertificateFreshness;
pub use store::{CertificateStore, PublicCertificate, RedbCertificateStore, StoreError, StoredCertificate};
pub use watcher::{CertificateSettings, CertificateWatcher, StoppedWatch};

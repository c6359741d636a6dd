//! A Vault (or OpenBao) client for an agent that must keep serving: one token shared by every watch, renewed
//! before it ends and replaced when it is lost, and errors that say what was asked, where, and what to change.
//!
//! Input: `VaultSettings`. Output: `VaultClient`, with which the certificate watches read KV and have certificates signed by PKI.
//! It knows nothing of certificates beyond their request and answer.
//!
//! vaultrs describes the requests (paths, verbs, bodies). They are sent by our own layer on reqwest, because
//! vaultrs' client drops lease data, token periods and use counts, refuses answers whose `warnings` is `""`, has no
//! bound on bodies, follows no standby, retries nothing, turns a deleted KV v2 version into an opaque error and
//! reads `VAULT_SKIP_VERIFY=""` as "skip"; and its answers print secrets when debugged.

mod ahead;
mod answer;
mod authorities;
mod aws;
mod backoff;
mod client;
mod clients;
mod credential;
mod detect;
mod ends;
mod fault;
mod freshness;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod kv;
mod lockout;
mod login;
mod pki;
mod schedule;
mod session;
mod settings;
mod sigv4;
mod tls;
mod transport;
mod watch_health;
mod wrapped;

pub use aws::{AwsKeySource, AwsLogin};
pub(crate) use backoff::{Pauses, jitter, spread};
pub use client::VaultClient;
pub use fault::VaultFault;
pub(crate) use freshness::unix_now;
pub use freshness::{VaultFreshness, VaultStatus, timestamp};
pub use kv::{KvSecret, KvStamp};
pub use pki::{Lease, SignRequest, Signed};
pub use session::VaultSession;
pub use settings::{Environment, SecretId, SettingsError, VaultAuth, VaultSettings, VaultTimeouts};
pub use sigv4::AwsKeys;

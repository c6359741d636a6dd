//! Unwraps a secret id that was delivered wrapped: once, and only if it is what it should be.
//!
//! A wrapping token works a single time. Who finds it used knows that somebody else has seen the secret id; so the
//! token goes in one place only (the header: in both it would be used twice), and what came out is kept in memory for
//! later logins, never on disk.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use vaultrs::api::sys::requests::{UnwrapRequest, WrappingLookupRequest};

use super::answer::redacted;
use super::client::Shared;
use super::credential;
use super::fault::{Reason, VaultFault};
use super::session::TokenState;
use super::transport::Call;
use crate::model::Redacted;

/// What the last wrapping token held.
pub(super) struct Unwrapped {
    /// Of the wrapping token: another token in the file is another secret id.
    hash: blake3::Hash,
    secret_id: Arc<Redacted<String>>,
}

#[derive(Deserialize)]
struct Wrapping {
    #[serde(default)]
    creation_path: String,
}

#[derive(Deserialize)]
struct SecretIdData {
    #[serde(deserialize_with = "redacted")]
    secret_id: Arc<Redacted<String>>,
}

pub(super) async fn secret_id(
    shared: &Shared,
    mount: &str,
    file: &Path,
) -> Result<Arc<Redacted<String>>, VaultFault> {
    let token = credential::read(shared, "wrapped secret_id", file).await?;
    let hash = blake3::hash(token.expose().as_bytes());
    let mut kept = shared.unwrapped.lock().await;
    if let Some(kept) = kept.as_ref().filter(|kept| kept.hash == hash) {
        return Ok(kept.secret_id.clone());
    }
    came_from(shared, mount, &token, file).await?;
    let wrapping = TokenState {
        token: Some(Arc::new(token)),
        ..TokenState::default()
    };
    // Not repeated by the transport: a second try of a lost answer finds the token used.
    let call = Call::of(&UnwrapRequest { token: None })?;
    let answer = shared.send(&call, &wrapping).await?;
    if answer.status >= 400 {
        return Err(used(shared, &call, file, &answer.errors()));
    }
    let data = answer
        .parse::<SecretIdData>()
        .and_then(|envelope| envelope.data)
        .ok_or_else(|| {
            let what = "what it holds is no secret_id".to_owned();
            shared.transport.fault(&call, refused(file, what))
        })?;
    let secret_id = data.secret_id;
    *kept = Some(Unwrapped {
        hash,
        secret_id: secret_id.clone(),
    });
    tracing::info!(file = %file.display(), "vault secret_id unwrapped");
    Ok(secret_id)
}

/// A wrapping token made elsewhere than at the role is somebody's swap.
async fn came_from(
    shared: &Shared,
    mount: &str,
    token: &Redacted<String>,
    file: &Path,
) -> Result<(), VaultFault> {
    let call = Call::of(&WrappingLookupRequest {
        token: token.expose().clone(),
    })?
    .repeatable();
    let answer = shared.send(&call, &TokenState::default()).await?;
    if answer.status >= 400 {
        return Err(used(shared, &call, file, &answer.errors()));
    }
    let path = answer
        .parse::<Wrapping>()
        .and_then(|envelope| envelope.data)
        .map(|data| data.creation_path)
        .unwrap_or_default();
    let within = format!("auth/{mount}/role/");
    if path.starts_with(&within) && (path.ends_with("/secret-id") || path.ends_with("/custom-secret-id")) {
        return Ok(());
    }
    let what = format!("it was made at {path:?}, not at {within}<role>/secret-id");
    Err(shared.transport.fault(&call, refused(file, what)))
}

fn used(shared: &Shared, call: &Call, file: &Path, errors: &str) -> VaultFault {
    let what = if errors.is_empty() {
        "it has expired or was used before".to_owned()
    } else {
        format!("it has expired or was used before ({errors})")
    };
    shared.transport.fault(call, refused(file, what))
}

fn refused(file: &Path, what: String) -> Reason {
    Reason::Wrapping {
        path: file.display().to_string(),
        what,
    }
}

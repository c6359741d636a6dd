//! Unwraps a secret id that was delivered wrapped: once, and only if it is what it should be.
//!
//! A wrapping token works a single time. Who finds it used knows that somebody else has seen the secret id; so the
//! token goes in one place only (the header: in both it would be used twice), and what came out is kept in memory for
//! later logins, never on disk.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use vaultrs::api::sys::requests::{UnwrapRequest, WrappingLookupRequest};

use super::answer::redacted;
use super::client::Shared;
use super::credential;
use super::fault::{Reason, VaultFault};
use super::session::TokenState;
use super::transport::Call;
use crate::model::{ProblemKind, Redacted};
use crate::sources::life::{Life, unix_seconds};

const KIND: &str = "wrapped secret_id";

/// How long a login waits for a secret id that is being unwrapped, or will be at the next look at the file, where there is one
/// of before.
const FOR_THE_NEXT: Duration = Duration::from_secs(5);

/// What became of the wrapping tokens so far.
#[derive(Default)]
pub(super) struct SecretIds {
    /// Of the last that held one.
    kept: Option<Unwrapped>,
    /// The last that holds none for us, and will not.
    refused: Option<blake3::Hash>,
}

struct Unwrapped {
    /// Of the wrapping token: another token in the file is another secret id.
    hash: blake3::Hash,
    secret_id: Arc<Redacted<String>>,
    /// None: it has no end, or the server does not say.
    life: Option<Life>,
}

impl SecretIds {
    pub(super) fn is_any(&self) -> bool {
        self.kept.is_some()
    }

    /// Of the one with which the next login is done.
    pub(super) fn life(&self) -> Option<Life> {
        self.kept.as_ref()?.life
    }

    pub(super) fn secret_id(&self) -> Option<Arc<Redacted<String>>> {
        Some(self.kept.as_ref()?.secret_id.clone())
    }

    /// There is nothing more to be had from this wrapping token.
    fn is_done_with(&self, hash: blake3::Hash) -> bool {
        self.refused == Some(hash) || self.kept.as_ref().is_some_and(|kept| kept.hash == hash)
    }
}

#[derive(Deserialize)]
pub(super) struct Wrapping {
    #[serde(default)]
    creation_path: String,
    #[serde(default)]
    creation_time: String,
}

#[derive(Deserialize)]
pub(super) struct SecretIdData {
    #[serde(deserialize_with = "redacted")]
    secret_id: Arc<Redacted<String>>,
    /// Seconds; 0 where it has no end. Older servers do not tell it.
    #[serde(default)]
    secret_id_ttl: serde_json::Value,
}

/// The secret id for a login now. The first is unwrapped here; later ones are unwrapped ahead of the login, by `ahead`: so no
/// two unwrap the same token, and no login hangs with an unwrapping, or breaks one off, that may still succeed. A file that
/// gives none costs nothing while the secret id of before is there.
pub(super) async fn for_login(
    shared: &Shared,
    mount: &str,
    file: &Path,
) -> Result<Arc<Redacted<String>>, VaultFault> {
    let mut secret_ids = shared.secret_ids.subscribe();
    let before = secret_ids.borrow().secret_id();
    let Some(before) = before else {
        return unwrap(shared, mount, file).await;
    };
    // Taken away after use, or half written: there is no other.
    let Ok(token) = credential::read(shared, KIND, file).await else {
        return Ok(before);
    };
    let hash = hash_of(&token);
    let done = secret_ids.wait_for(|secret_ids| secret_ids.is_done_with(hash));
    // Whether it came in time or not.
    drop(tokio::time::timeout(FOR_THE_NEXT, done).await);
    Ok(shared.secret_ids.borrow().secret_id().unwrap_or(before))
}

/// The secret id of the wrapping token in the file, which is used up with it; or the one that it gave before.
pub(super) async fn unwrap(
    shared: &Shared,
    mount: &str,
    file: &Path,
) -> Result<Arc<Redacted<String>>, VaultFault> {
    let token = credential::read(shared, KIND, file).await?;
    let hash = hash_of(&token);
    if let Some(kept) = &shared.secret_ids.borrow().kept
        && kept.hash == hash
    {
        return Ok(kept.secret_id.clone());
    }
    let opened = open(shared, mount, token, file).await;
    let opened = opened.inspect_err(|fault| {
        if fault.kind() != ProblemKind::Unavailable {
            shared.secret_ids.send_modify(|ids| ids.refused = Some(hash));
        }
    });
    let (secret_id, life) = opened?;
    shared.secret_ids.send_modify(|ids| {
        ids.kept = Some(Unwrapped {
            hash,
            secret_id: secret_id.clone(),
            life,
        });
    });
    tracing::info!(file = %file.display(), "vault secret_id unwrapped");
    Ok(secret_id)
}

async fn open(
    shared: &Shared,
    mount: &str,
    token: Redacted<String>,
    file: &Path,
) -> Result<(Arc<Redacted<String>>, Option<Life>), VaultFault> {
    let made = came_from(shared, mount, &token, file).await?;
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
    let life = life_of(made, &data);
    Ok((data.secret_id, life))
}

/// It was made with the wrapping token, in one request.
pub(super) fn life_of(made: Option<i64>, data: &SecretIdData) -> Option<Life> {
    let ttl = data.secret_id_ttl.as_i64().filter(|ttl| *ttl > 0);
    made.zip(ttl).map(|(start, ttl)| Life {
        start,
        end: start.saturating_add(ttl),
    })
}

fn hash_of(token: &Redacted<String>) -> blake3::Hash {
    blake3::hash(token.expose().as_bytes())
}

/// When it was made. A wrapping token made elsewhere than at the role is somebody's swap.
async fn came_from(
    shared: &Shared,
    mount: &str,
    token: &Redacted<String>,
    file: &Path,
) -> Result<Option<i64>, VaultFault> {
    let call = Call::of(&WrappingLookupRequest {
        token: token.expose().clone(),
    })?
    .repeatable();
    let answer = shared.send(&call, &TokenState::default()).await?;
    if answer.status >= 400 {
        return Err(used(shared, &call, file, &answer.errors()));
    }
    let (path, made) = answer
        .parse::<Wrapping>()
        .and_then(|envelope| envelope.data)
        .map(|data| (data.creation_path, unix_seconds(&data.creation_time)))
        .unwrap_or_default();
    let within = format!("auth/{mount}/role/");
    if path.starts_with(&within) && (path.ends_with("/secret-id") || path.ends_with("/custom-secret-id")) {
        return Ok(made);
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

//! Gets a token by the configured method, and learns how long it lives.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vaultrs::api::auth::approle::requests::LoginWithApproleRequest;
use vaultrs::api::auth::cert::requests::LoginRequest as CertificateLoginRequest;
use vaultrs::api::auth::kubernetes::requests::LoginWithKubernetesRequest;
use vaultrs::api::auth::oidc::requests::JWTLoginRequest;
use vaultrs::api::auth::userpass::requests::LoginRequest as UserpassLoginRequest;
use vaultrs::api::token::requests::{LookupTokenSelfRequest, RenewTokenSelfRequest, RevokeTokenSelfRequest};
use zeroize::Zeroizing;

use super::answer::{Answer, Auth, TokenData};
use super::aws::{self, AwsKeySource, AwsLogin};
use super::client::Shared;
use super::credential;
use super::fault::{Reason, VaultFault};
use super::schedule::{TokenLife, left};
use super::session::TokenState;
use super::settings::{SecretId, VaultAuth};
use super::transport::Call;
use super::wrapped;
use crate::model::Redacted;

/// Revoking on the way out must not hold up the way out.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(2);

/// A token as received.
pub(super) struct Received {
    pub(super) token: Option<Arc<Redacted<String>>>,
    /// None: whoever gave it did not say.
    pub(super) life: Option<TokenLife>,
}

/// Whether another token can be had by asking again.
pub(super) fn can_log_in(auth: &VaultAuth) -> bool {
    !matches!(
        auth,
        VaultAuth::Proxy | VaultAuth::Token(_) | VaultAuth::TokenFile(_)
    )
}

/// The file whose change means that asking again may now help.
pub(super) fn credential_file(auth: &VaultAuth) -> Option<&Path> {
    match auth {
        VaultAuth::TokenFile(path)
        | VaultAuth::Jwt { jwt_file: path, .. }
        | VaultAuth::Kubernetes { jwt_file: path, .. }
        | VaultAuth::Userpass {
            password_file: path, ..
        }
        | VaultAuth::AppRole {
            secret_id: SecretId::File(path) | SecretId::Wrapped(path),
            ..
        }
        | VaultAuth::Aws(AwsLogin {
            keys: AwsKeySource::File { path, .. },
            ..
        }) => Some(path),
        _ => None,
    }
}

pub(super) async fn obtain(shared: &Shared, auth: &VaultAuth) -> Result<Received, VaultFault> {
    match auth {
        VaultAuth::Proxy => Ok(Received {
            token: None,
            life: Some(TokenLife::default()),
        }),
        VaultAuth::Token(token) => Ok(Received {
            token: Some(token.clone()),
            life: None,
        }),
        VaultAuth::TokenFile(path) => {
            let token = credential::read(shared, "token", path).await?;
            Ok(Received {
                token: Some(Arc::new(token)),
                life: None,
            })
        }
        VaultAuth::AppRole {
            mount,
            role_id,
            secret_id,
        } => {
            let secret_id = match secret_id {
                SecretId::Value(value) => value.clone(),
                SecretId::File(path) => Arc::new(credential::read(shared, "secret_id", path).await?),
                SecretId::Wrapped(path) => wrapped::for_login(shared, mount, path).await?,
            };
            let request = LoginWithApproleRequest {
                mount: mount.clone(),
                role_id: role_id.clone(),
                secret_id: secret_id.expose().clone(),
            };
            let call = Call::of(&request);
            drop(Zeroizing::new(request.secret_id));
            log_in(shared, call?).await
        }
        VaultAuth::Jwt {
            mount,
            role,
            jwt_file,
        } => {
            let jwt = credential::read(shared, "JWT", jwt_file).await?;
            let request = JWTLoginRequest {
                mount: mount.clone(),
                jwt: jwt.expose().clone(),
                role: Some(role.clone()).filter(|role| !role.is_empty()),
            };
            let call = Call::of(&request);
            drop(Zeroizing::new(request.jwt));
            log_in(shared, call?).await
        }
        VaultAuth::Kubernetes {
            mount,
            role,
            jwt_file,
        } => {
            let jwt = credential::read(shared, "service account token", jwt_file).await?;
            let request = LoginWithKubernetesRequest {
                mount: mount.clone(),
                role: role.clone(),
                jwt: jwt.expose().clone(),
            };
            let call = Call::of(&request);
            drop(Zeroizing::new(request.jwt));
            log_in(shared, call?).await
        }
        VaultAuth::Certificate { mount, role } => {
            let request = CertificateLoginRequest {
                mount: mount.clone(),
                cert_name: String::new(),
            };
            // vaultrs sends `cert_name`; the API's word is `name`.
            let body = role.iter().map(|role| ("name", role.as_str()));
            log_in(shared, Call::of(&request)?.with_fields(body)).await
        }
        VaultAuth::Userpass {
            mount,
            username,
            password_file,
        } => {
            let password = credential::read(shared, "password", password_file).await?;
            let request = UserpassLoginRequest {
                mount: mount.clone(),
                username: username.clone(),
                password: password.expose().clone(),
            };
            let call = Call::of(&request);
            drop(Zeroizing::new(request.password));
            log_in(shared, call?).await
        }
        VaultAuth::Aws(login) => log_in(shared, aws::call(shared, login).await?).await,
    }
}

/// Asks Vault about a token with that token. `TokenInvalid`: Vault does not know it, or it may not look itself up.
pub(super) async fn inspect(shared: &Shared, state: &TokenState) -> Result<TokenLife, VaultFault> {
    let call = Call::of(&LookupTokenSelfRequest {})?;
    let answer = shared.send(&call, state).await?;
    if answer.status == 403 {
        return Err(shared
            .transport
            .fault(&call, Reason::TokenInvalid(answer.errors())));
    }
    let answer = shared.accept(&call, answer)?;
    shared.lacks_no_more(call.path());
    let data = answer.parse::<TokenData>().and_then(|envelope| envelope.data);
    let Some(data) = data else {
        return Err(unreadable(shared, &call));
    };
    Ok(life_of(&data))
}

pub(super) fn life_of(data: &TokenData) -> TokenLife {
    let full = if data.period > 0 {
        data.period
    } else {
        data.creation_ttl
    };
    let full = full.max(data.ttl);
    TokenLife {
        ttl: left(data.ttl, full),
        full,
        renewable: data.renewable,
    }
}

/// Prolongs a token to its full life. Returns the seconds granted and whether it can be done again.
pub(super) async fn renew(
    shared: &Shared,
    state: &TokenState,
    life: TokenLife,
) -> Result<(u64, bool), VaultFault> {
    let increment = Some(format!("{}s", life.full)).filter(|_| life.full > 0);
    let call = Call::of(&RenewTokenSelfRequest { increment })?.repeatable();
    let answer = shared.send(&call, state).await?;
    if answer.status == 403 {
        let errors = answer.errors();
        let reason = match inspect(shared, state).await {
            Ok(_) => Reason::Forbidden(errors),
            Err(_) => Reason::TokenInvalid(errors),
        };
        return Err(shared.transport.fault(&call, reason));
    }
    shared.lacks_no_more(call.path());
    let auth = auth(shared, &call, &shared.accept(&call, answer)?)?;
    shared.freshness.update(|status| status.renewals += 1);
    Ok((left(auth.lease_duration, life.full), auth.renewable))
}

/// Ends a token that this process asked for, unless certificates would be revoked with it.
pub(super) async fn revoke(shared: &Shared, state: &TokenState) {
    if shared.token_carries_leases.load(Ordering::Relaxed) {
        tracing::info!("vault token kept: what was issued with it would be revoked too");
        return;
    }
    let Ok(call) = Call::of(&RevokeTokenSelfRequest {}) else {
        return;
    };
    let call = call.within(REVOKE_TIMEOUT);
    match shared.send(&call, state).await {
        Ok(answer) if answer.status < 300 => tracing::info!("vault token revoked"),
        Ok(answer) if answer.status == 403 => {
            let fault = shared.transport.fault(&call, Reason::Forbidden(answer.errors()));
            shared.lacks(
                &fault,
                "the token is not given back, and stays good until it ends by itself",
            );
        }
        Ok(answer) => tracing::info!(
            status = answer.status,
            "vault token not revoked: it ends by itself"
        ),
        Err(fault) => tracing::info!(%fault, "vault token not revoked: it ends by itself"),
    }
}

async fn log_in(shared: &Shared, call: Call) -> Result<Received, VaultFault> {
    let anonymous = TokenState::default();
    let answer = shared.send(&call, &anonymous).await?;
    if answer.status >= 400 {
        let reason = Reason::LoginRefused {
            status: answer.status,
            errors: answer.errors(),
        };
        return Err(shared.transport.fault(&call, reason));
    }
    let auth = auth(shared, &call, &answer)?;
    shared.freshness.update(|status| status.logins += 1);
    Ok(Received {
        life: Some(life_of_new(&auth)),
        token: Some(auth.client_token),
    })
}

pub(super) fn life_of_new(auth: &Auth) -> TokenLife {
    TokenLife {
        ttl: auth.lease_duration,
        full: auth.lease_duration,
        renewable: auth.renewable,
    }
}

fn auth(shared: &Shared, call: &Call, answer: &Answer) -> Result<Auth, VaultFault> {
    answer
        .parse::<serde::de::IgnoredAny>()
        .and_then(|envelope| envelope.auth)
        .ok_or_else(|| unreadable(shared, call))
}

fn unreadable(shared: &Shared, call: &Call) -> VaultFault {
    shared.transport.fault(
        call,
        Reason::Unusable("the answer is not what Vault answers here".to_owned()),
    )
}

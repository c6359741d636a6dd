//! Logs in as an AWS identity: keys from the environment, a credentials file or the instance's metadata service.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use vaultrs::api::auth::aws::requests::IamLoginRequest;

use super::client::Shared;
use super::credential::{self, unusable};
use super::fault::VaultFault;
use super::freshness::unix_now;
use super::sigv4::{self, AwsKeys};
use super::transport::Call;
use crate::model::Redacted;

/// On the same machine: what does not answer at once is not there.
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);

/// How to log in with AWS IAM.
#[derive(Clone, Debug, PartialEq)]
pub struct AwsLogin {
    pub mount: String,
    pub role: String,
    /// None: the global STS endpoint.
    pub region: Option<String>,
    /// The mount's `iam_server_id_header_value`.
    pub server_id: Option<String>,
    pub keys: AwsKeySource,
}

#[derive(Clone, Debug, PartialEq)]
pub enum AwsKeySource {
    Given(Arc<AwsKeys>),
    /// As AWS's own tools write it; read again on each login.
    File {
        path: PathBuf,
        profile: String,
    },
    /// The EC2 instance's role (IMDSv2). The address without a path.
    Metadata {
        endpoint: String,
    },
}

pub(super) async fn call(shared: &Shared, login: &AwsLogin) -> Result<Call, VaultFault> {
    let read;
    let keys = match &login.keys {
        AwsKeySource::Given(keys) => keys.as_ref(),
        AwsKeySource::File { path, profile } => {
            let text = credential::read(shared, "AWS credentials", path).await?;
            read = keys_of(text.expose(), profile).ok_or_else(|| {
                let what = format!("it has no keys for the profile {profile:?}");
                unusable(shared, &path.display().to_string(), what)
            })?;
            &read
        }
        AwsKeySource::Metadata { endpoint } => {
            read = from_metadata(endpoint)
                .await
                .map_err(|why| unusable(shared, endpoint, why))?;
            &read
        }
    };
    let (host, region) = match &login.region {
        Some(region) => (format!("sts.{region}.amazonaws.com"), region.as_str()),
        None => ("sts.amazonaws.com".to_owned(), "us-east-1"),
    };
    let headers = sigv4::headers(keys, &host, region, login.server_id.as_deref(), unix_now());
    let headers: serde_json::Map<String, serde_json::Value> = headers
        .into_iter()
        .map(|(name, value)| (name, serde_json::json!([value])))
        .collect();
    Call::of(&IamLoginRequest {
        mount: login.mount.clone(),
        role: Some(login.role.clone()).filter(|role| !role.is_empty()),
        iam_http_request_method: "POST".to_owned(),
        iam_request_url: STANDARD.encode(format!("https://{host}/")),
        iam_request_body: STANDARD.encode(sigv4::BODY),
        iam_request_headers: STANDARD.encode(serde_json::Value::Object(headers).to_string()),
    })
}

/// The keys of one profile of a credentials file.
fn keys_of(text: &str, profile: &str) -> Option<AwsKeys> {
    let mut within = false;
    let (mut access, mut secret, mut session) = (None, None, None);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            within = name.trim() == profile;
            continue;
        }
        let Some((name, value)) = line.split_once('=').filter(|_| within) else {
            continue;
        };
        let value = value.trim().to_owned();
        match name.trim() {
            "aws_access_key_id" => access = Some(value),
            "aws_secret_access_key" => secret = Some(Redacted::new(value)),
            "aws_session_token" => session = Some(Redacted::new(value)),
            _ => {}
        }
    }
    Some(AwsKeys {
        access_key: access?,
        secret_key: secret?,
        session_token: session,
    })
}

#[derive(Deserialize)]
pub(super) struct MetadataKeys {
    #[serde(rename = "AccessKeyId")]
    access_key: String,
    #[serde(rename = "SecretAccessKey")]
    secret_key: String,
    #[serde(rename = "Token")]
    token: String,
}

/// With a session token first (IMDSv2): an instance may refuse the older way, and should.
async fn from_metadata(endpoint: &str) -> Result<AwsKeys, String> {
    let said = |error: reqwest::Error| format!("the instance metadata service: {}", error.without_url());
    let client = reqwest::Client::builder()
        .tls_certs_only(Vec::new())
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(METADATA_TIMEOUT)
        .build()
        .map_err(said)?;
    let endpoint = endpoint.trim_end_matches('/');
    let session = client
        .put(format!("{endpoint}/latest/api/token"))
        .header("X-aws-ec2-metadata-token-ttl-seconds", "60")
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .map_err(said)?
        .text()
        .await
        .map_err(said)?;
    let get = async |path: &str| {
        client
            .get(format!(
                "{endpoint}/latest/meta-data/iam/security-credentials/{path}"
            ))
            .header("X-aws-ec2-metadata-token", &session)
            .send()
            .await
            .and_then(reqwest::Response::error_for_status)
            .map_err(said)
    };
    let roles = get("").await?.text().await.map_err(said)?;
    let role = roles.lines().next().unwrap_or_default().trim().to_owned();
    if role.is_empty() {
        return Err("this instance has no role".to_owned());
    }
    let keys: MetadataKeys = get(&role).await?.json().await.map_err(said)?;
    Ok(AwsKeys {
        access_key: keys.access_key,
        secret_key: Redacted::new(keys.secret_key),
        session_token: Some(Redacted::new(keys.token)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_from_a_credentials_file() {
        let text = "[default]\naws_access_key_id = A\naws_secret_access_key=s\n\n\
                    [edge]\naws_access_key_id=B\naws_secret_access_key = t=/+\naws_session_token=u\n[half]\naws_access_key_id=C\n";
        let keys = keys_of(text, "edge").unwrap();
        assert_eq!(
            (keys.access_key.as_str(), keys.secret_key.expose().as_str()),
            ("B", "t=/+")
        );
        assert_eq!(keys.session_token.unwrap().expose(), "u");
        assert!(keys_of(text, "default").unwrap().session_token.is_none());
        assert!(keys_of(text, "half").is_none() && keys_of(text, "absent").is_none());
    }
}

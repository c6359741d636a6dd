//! Signs a request as AWS does (Signature Version 4), for a login that proves an AWS identity. Pure.
//!
//! Vault sends the signed request to STS itself and believes what STS says about who signed it: the secret key never
//! leaves this process.

use std::fmt::Write as _;

use ring::{digest, hmac};

use crate::model::Redacted;

/// What AWS knows a caller by.
#[derive(Debug, PartialEq)]
pub struct AwsKeys {
    pub access_key: String,
    pub secret_key: Redacted<String>,
    pub session_token: Option<Redacted<String>>,
}

/// The one request that a login signs: who am I?
pub(super) const BODY: &str = "Action=GetCallerIdentity&Version=2011-06-15";

const CONTENT_TYPE: &str = "application/x-www-form-urlencoded; charset=utf-8";

/// The headers of the signed request, `Authorization` among them. `host` is STS's; `server_id` is what the Vault mount
/// may demand so that a request signed for another Vault is of no use to it.
pub(super) fn headers(
    keys: &AwsKeys,
    host: &str,
    region: &str,
    server_id: Option<&str>,
    now: i64,
) -> Vec<(String, String)> {
    let date = basic_date(now);
    // In the order of their names, as the signature wants them.
    let mut signed = vec![
        ("content-type".to_owned(), CONTENT_TYPE.to_owned()),
        ("host".to_owned(), host.to_owned()),
        ("x-amz-date".to_owned(), date.clone()),
    ];
    if let Some(token) = &keys.session_token {
        signed.push(("x-amz-security-token".to_owned(), token.expose().clone()));
    }
    if let Some(id) = server_id {
        signed.push(("x-vault-aws-iam-server-id".to_owned(), id.to_owned()));
    }
    let names: Vec<&str> = signed.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(";");
    let mut canonical = String::from("POST\n/\n\n");
    for (name, value) in &signed {
        let _ = writeln!(canonical, "{name}:{}", value.trim());
    }
    let _ = write!(canonical, "\n{names}\n{}", sha256(BODY.as_bytes()));
    let day = &date[..8];
    let scope = format!("{day}/{region}/sts/aws4_request");
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{date}\n{scope}\n{}",
        sha256(canonical.as_bytes())
    );
    let mut key = hmac::sign(
        &hmac::Key::new(
            hmac::HMAC_SHA256,
            format!("AWS4{}", keys.secret_key.expose()).as_bytes(),
        ),
        day.as_bytes(),
    );
    for part in [region, "sts", "aws4_request", &to_sign] {
        key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()), part.as_bytes());
    }
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={}",
        keys.access_key,
        hex(key.as_ref())
    );
    signed.push(("authorization".to_owned(), authorization));
    signed
}

/// `20150830T123600Z`.
fn basic_date(now: i64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(u64::try_from(now).unwrap_or(0));
    humantime::format_rfc3339_seconds(time)
        .to_string()
        .replace(['-', ':'], "")
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_basic_and_secrets_stay_out() {
        assert_eq!(basic_date(1_440_938_160), "20150830T123600Z");
        let keys = AwsKeys {
            access_key: "AKIDEXAMPLE".to_owned(),
            secret_key: Redacted::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned()),
            session_token: None,
        };
        let headers = headers(
            &keys,
            "sts.amazonaws.com",
            "us-east-1",
            Some("vault.example"),
            1_440_938_160,
        );
        assert!(!format!("{headers:?}{keys:?}").contains("wJalr"));
        let (_, authorization) = headers.last().unwrap();
        assert!(
            authorization.starts_with(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/sts/aws4_request, \
                 SignedHeaders=content-type;host;x-amz-date;x-vault-aws-iam-server-id, Signature="
            ),
            "{authorization}"
        );
    }
}

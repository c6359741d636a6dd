//! JSON web tokens for tests.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use serde_json::{Value, json};

/// Signs JSON web tokens (EdDSA), as Nomad does for its tasks.
pub struct JwtIssuer {
    key: KeyPair,
}

impl JwtIssuer {
    pub fn new() -> JwtIssuer {
        JwtIssuer {
            key: KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key"),
        }
    }

    /// PEM.
    pub fn public_key(&self) -> String {
        let der = self.key.subject_public_key_info();
        let text = STANDARD.encode(der);
        format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
    }

    pub fn sign(&self, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!(
            "{}.{}",
            part(&json!({ "alg": "EdDSA", "typ": "JWT" })),
            part(claims)
        );
        let signature = self.key.sign(signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// A token for [`super::vault::Vault::jwt_role`], valid for an hour.
    pub fn token(&self, subject: &str) -> String {
        let now = std::time::UNIX_EPOCH.elapsed().expect("the time").as_secs();
        self.sign(&json!({ "sub": subject, "aud": "vault", "iat": now, "nbf": now - 5, "exp": now + 3600 }))
    }
}

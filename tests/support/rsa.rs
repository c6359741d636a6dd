//! RS256, which Nomad signs its workload identities with.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, SigningKey};
use rsa::pkcs8::EncodePrivateKey as _;
use rsa::traits::PublicKeyParts as _;
use serde_json::{Value, json};

pub struct RsaIssuer {
    key: KeyPair,
    modulus: String,
    exponent: String,
}

impl RsaIssuer {
    pub fn new() -> RsaIssuer {
        let made = rsa::PrivateKey::new(&mut getrandom::SysRng, 2048).expect("an RSA key");
        let pem = made.to_pkcs8_pem(rsa::pkcs8::LineEnding::LF).expect("PEM");
        RsaIssuer {
            key: KeyPair::from_pkcs8_pem_and_sign_algo(&pem, &rcgen::PKCS_RSA_SHA256).expect("a signing key"),
            modulus: URL_SAFE_NO_PAD.encode(made.n_bytes()),
            exponent: URL_SAFE_NO_PAD.encode(made.e_bytes()),
        }
    }

    /// As Nomad publishes its keys.
    pub fn jwks(&self) -> String {
        json!({ "keys": [{
            "use": "sig", "kty": "RSA", "kid": "test", "alg": "RS256", "n": self.modulus, "e": self.exponent,
        }] })
        .to_string()
    }

    /// Valid for an hour, unless the claims say otherwise.
    pub fn sign(&self, mut claims: Value) -> String {
        let now = std::time::UNIX_EPOCH.elapsed().expect("the time").as_secs();
        for (name, time) in [("iat", now), ("nbf", now - 5), ("exp", now + 3600)] {
            if claims[name].is_null() {
                claims[name] = time.into();
            }
        }
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let head = json!({ "alg": "RS256", "typ": "JWT", "kid": "test" });
        let signed = format!("{}.{}", part(&head), part(&claims));
        let signature = self.key.sign(signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

//! The shipped policies, and tokens that have exactly their rules: not even those of `default`.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::json;

use super::bao::Bao;

pub fn shipped(file: &str) -> String {
    let path = format!("{}/vault-policies/{file}.hcl", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

/// With names of one's own in place of those that the file itself says are to be replaced, and of no others.
pub fn named(file: &str, own: &[(&str, &str)]) -> String {
    let text = shipped(file);
    let offer = text.lines().find(|line| line.starts_with("# Replace ")).unwrap();
    for (name, _) in own {
        assert!(offer.contains(&format!("{name:?}")), "{file}: {name} is fixed");
    }
    let with_own = |line: &str| {
        let path = line.strip_prefix("path \"")?.strip_suffix("\" {")?;
        if path.starts_with("auth/") {
            return None;
        }
        let segments = path.split('/').map(|segment| {
            let found = own.iter().find(|(name, _)| *name == segment);
            found.map_or(segment, |(_, name)| name)
        });
        Some(format!("path \"{}\" {{", segments.collect::<Vec<_>>().join("/")))
    };
    let lines = text
        .lines()
        .map(|line| with_own(line).unwrap_or_else(|| line.to_owned()) + "\n");
    lines.collect()
}

impl Bao {
    /// A token with these rules alone.
    pub async fn token_of(&self, policies: &[String]) -> String {
        let mut names = Vec::new();
        for rules in policies {
            let mut hasher = DefaultHasher::new();
            rules.hash(&mut hasher);
            let name = format!("rules-{:x}", hasher.finish());
            self.policy(&name, rules).await;
            names.push(name);
        }
        self.token(json!({"policies": names, "no_default_policy": true}))
            .await
    }

    /// A token for certificates in KV mounts of both versions.
    pub async fn kv_token(&self) -> String {
        self.token_of(&[shipped("portreeve-kv"), shipped("portreeve-kv1")])
            .await
    }

    /// A token for certificates of the role `edge`.
    pub async fn pki_token(&self) -> String {
        self.token_of(&[shipped("portreeve-pki")]).await
    }

    /// `reader`: a policy for logins, word for word the shipped one of KV version 2.
    pub async fn reader(&self) {
        self.policy("reader", &shipped("portreeve-kv")).await;
    }
}

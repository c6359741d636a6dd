//! Consul's ACL tokens and policies.

use hyper::Method;
use serde_json::json;

use super::consul::Consul;

/// An ACL token made for a test.
#[derive(Clone, Debug)]
pub struct AclToken {
    pub accessor: String,
    pub secret: String,
}

impl Consul {
    /// A token with one policy, given as HCL.
    pub async fn create_token(&self, name: &str, policy: &str) -> AclToken {
        self.create_token_for(name, policy, None).await
    }

    /// The same, with an end: Consul grants a minute at least.
    pub async fn create_token_for(&self, name: &str, policy: &str, life: Option<&str>) -> AclToken {
        let policy = json!({ "Name": name, "Rules": policy }).to_string();
        let policy = self.expect(Method::PUT, "/v1/acl/policy", policy).await;
        let mut token = json!({ "Description": name, "Policies": [{ "ID": policy["ID"] }] });
        if let Some(life) = life {
            token["ExpirationTTL"] = life.into();
        }
        let token = self.expect(Method::PUT, "/v1/acl/token", token.to_string()).await;
        let field = |name: &str| token[name].as_str().expect("a token's field").to_owned();
        AclToken {
            accessor: field("AccessorID"),
            secret: field("SecretID"),
        }
    }

    /// Changes what a token made by [`Consul::create_token`] under `name` may do.
    pub async fn change_policy(&self, name: &str, policy: &str) {
        let found = self
            .expect(Method::GET, &format!("/v1/acl/policy/name/{name}"), "")
            .await;
        let id = found["ID"].as_str().expect("a policy's id");
        let body = json!({ "Name": name, "Rules": policy }).to_string();
        self.expect(Method::PUT, &format!("/v1/acl/policy/{id}"), body)
            .await;
    }

    pub async fn delete_token(&self, token: &AclToken) {
        self.expect(Method::DELETE, &format!("/v1/acl/token/{}", token.accessor), "")
            .await;
    }
}

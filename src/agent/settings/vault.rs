//! The `vault` block: where Vault is, and how to log in.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use super::blocks::{owned, path};
use super::schema::tls_client;
use crate::hcl::{BlockSchema, Occurs, Reader, Type};
use crate::model::Redacted;
use crate::sources::vault::{
    AwsKeySource, AwsKeys, AwsLogin, Environment, SecretId, VaultAuth, VaultSettings,
};

/// Where a pod finds its token.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Where an EC2 instance finds its role's keys.
const METADATA_SERVICE: &str = "http://169.254.169.254";

const DEFAULT_POLL: Duration = Duration::from_secs(30);

/// What the block adds to the environment.
#[derive(Clone, Debug, PartialEq)]
pub struct VaultBlock {
    pub address: Option<String>,
    pub namespace: Option<String>,
    pub ca_file: Option<PathBuf>,
    pub ca_path: Option<PathBuf>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    pub tls_server_name: Option<String>,
    pub tls_skip_verify: Option<bool>,
    /// None: as the environment says.
    pub login: Option<VaultAuth>,
    pub poll_interval: Duration,
}

impl Default for VaultBlock {
    fn default() -> Self {
        Self {
            address: None,
            namespace: None,
            ca_file: None,
            ca_path: None,
            client_cert: None,
            client_key: None,
            tls_server_name: None,
            tls_skip_verify: None,
            login: None,
            poll_interval: DEFAULT_POLL,
        }
    }
}

impl VaultBlock {
    pub(super) fn read(reader: &Reader<'_>) -> Self {
        Self {
            address: owned(reader, "address"),
            namespace: owned(reader, "namespace"),
            ca_file: path(reader, "ca_file"),
            ca_path: path(reader, "ca_path"),
            client_cert: path(reader, "client_cert"),
            client_key: path(reader, "client_key"),
            tls_server_name: owned(reader, "tls_server_name"),
            tls_skip_verify: reader.boolean("tls_skip_verify"),
            login: login(reader),
            poll_interval: reader.duration("poll_interval").unwrap_or(DEFAULT_POLL),
        }
    }

    /// The block over the environment.
    pub fn settings(&self, environment: &Environment<'_>) -> anyhow::Result<VaultSettings> {
        fn over<T: Clone>(into: &mut Option<T>, value: &Option<T>) {
            if value.is_some() {
                into.clone_from(value);
            }
        }
        let mut settings =
            VaultSettings::from_environment(environment).context("the VAULT_* environment does not work")?;
        if let Some(address) = &self.address {
            settings.address.clone_from(address);
        }
        over(&mut settings.namespace, &self.namespace);
        over(&mut settings.ca_file, &self.ca_file);
        over(&mut settings.ca_path, &self.ca_path);
        over(&mut settings.client_cert, &self.client_cert);
        over(&mut settings.client_key, &self.client_key);
        over(&mut settings.tls_server_name, &self.tls_server_name);
        settings.tls_skip_verify = self.tls_skip_verify.unwrap_or(settings.tls_skip_verify);
        if let Some(login) = &self.login {
            settings.auth = with_aws_keys(login.clone(), environment);
        }
        Ok(settings)
    }
}

fn login(reader: &Reader<'_>) -> Option<VaultAuth> {
    let text = |block: &Reader<'_>, name: &str, default: &str| {
        owned(block, name).unwrap_or_else(|| default.to_owned())
    };
    if let Some(file) = path(reader, "token_file") {
        return Some(VaultAuth::TokenFile(file));
    }
    if let Some(block) = reader.child("approle") {
        let secret_id = match path(&block, "wrapped_secret_id_file") {
            Some(file) => SecretId::Wrapped(file),
            None => SecretId::File(path(&block, "secret_id_file").unwrap_or_default()),
        };
        return Some(VaultAuth::AppRole {
            mount: text(&block, "mount", "approle"),
            role_id: text(&block, "role_id", ""),
            secret_id,
        });
    }
    if let Some(block) = reader.child("jwt") {
        return Some(VaultAuth::Jwt {
            mount: text(&block, "mount", "jwt-nomad"),
            role: text(&block, "role", ""),
            jwt_file: path(&block, "jwt_file").unwrap_or_default(),
        });
    }
    if let Some(block) = reader.child("kubernetes") {
        return Some(VaultAuth::Kubernetes {
            mount: text(&block, "mount", "kubernetes"),
            role: text(&block, "role", ""),
            jwt_file: path(&block, "jwt_file").unwrap_or_else(|| SERVICE_ACCOUNT.into()),
        });
    }
    if let Some(block) = reader.child("cert") {
        return Some(VaultAuth::Certificate {
            mount: text(&block, "mount", "cert"),
            role: owned(&block, "role"),
        });
    }
    if let Some(block) = reader.child("userpass") {
        return Some(VaultAuth::Userpass {
            mount: text(&block, "mount", "userpass"),
            username: text(&block, "username", ""),
            password_file: path(&block, "password_file").unwrap_or_default(),
        });
    }
    reader.child("aws").map(|block| {
        VaultAuth::Aws(AwsLogin {
            mount: text(&block, "mount", "aws"),
            role: text(&block, "role", ""),
            region: owned(&block, "region"),
            server_id: owned(&block, "server_id"),
            keys: match path(&block, "credentials_file") {
                Some(path) => AwsKeySource::File {
                    path,
                    profile: text(&block, "profile", "default"),
                },
                None => AwsKeySource::Metadata {
                    endpoint: METADATA_SERVICE.to_owned(),
                },
            },
        })
    })
}

/// Without a file, keys are looked for as AWS's own tools do: in the environment, then in the instance's role.
fn with_aws_keys(mut login: VaultAuth, environment: &Environment<'_>) -> VaultAuth {
    let variable = |name: &str| environment(name).filter(|value| !value.is_empty());
    if let VaultAuth::Aws(aws) = &mut login
        && let AwsKeySource::Metadata { endpoint } = &mut aws.keys
    {
        match (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) {
            (Some(access_key), Some(secret_key)) => {
                aws.keys = AwsKeySource::Given(Arc::new(AwsKeys {
                    access_key,
                    secret_key: Redacted::new(secret_key),
                    session_token: variable("AWS_SESSION_TOKEN").map(Redacted::new),
                }));
            }
            _ => {
                if let Some(other) = variable("AWS_EC2_METADATA_SERVICE_ENDPOINT") {
                    *endpoint = other;
                }
            }
        }
    }
    login
}

pub(super) fn schema() -> BlockSchema {
    let block = BlockSchema::new(
        "vault",
        &[],
        "How to reach Vault or OpenBao. What is left out is taken from VAULT_ADDR and its kin.",
    );
    tls_client(block)
        .attribute(
            "address",
            Type::String,
            Some("\"https://127.0.0.1:8200\""),
            "\"https://vault.service.consul:8200\"",
            "https://, http:// or unix://.",
        )
        .attribute("namespace", Type::String, None, "\"edge\"", "Vault namespace.")
        .attribute(
            "token_file",
            Type::String,
            None,
            "\"/run/secrets/vault_token\"",
            "A token that somebody else keeps fresh; read again when it changes.",
        )
        .attribute(
            "poll_interval",
            Type::Duration(1_000, 3_600_000),
            Some("\"30s\""),
            "\"10s\"",
            "How often KV secrets, authorities and revocation lists are looked at: Vault has no watch.",
        )
        .block(approle(), Occurs::Optional)
        .block(jwt(), Occurs::Optional)
        .block(kubernetes(), Occurs::Optional)
        .block(cert(), Occurs::Optional)
        .block(userpass(), Occurs::Optional)
        .block(aws(), Occurs::Optional)
        .at_most_one_of(&[
            "token_file",
            "approle",
            "jwt",
            "kubernetes",
            "cert",
            "userpass",
            "aws",
        ])
}

fn mounted(name: &'static str, description: &'static str, at: &'static str) -> BlockSchema {
    BlockSchema::new(name, &[], description).attribute(
        "mount",
        Type::String,
        Some(at),
        at,
        "Where the method is mounted.",
    )
}

fn approle() -> BlockSchema {
    mounted("approle", "Logs in with AppRole.", "\"approle\"")
        .required("role_id", Type::String, "\"...\"", "The role's id.")
        .attribute(
            "secret_id_file",
            Type::String,
            None,
            "\"/run/secrets/secret_id\"",
            "Read again on each login.",
        )
        .attribute(
            "wrapped_secret_id_file",
            Type::String,
            None,
            "\"/run/secrets/wrapped_secret_id\"",
            "Holds a response-wrapping token. It is used once; what it holds stays in memory until the file has another.",
        )
        .exactly_one_of(&["secret_id_file", "wrapped_secret_id_file"])
}

fn jwt() -> BlockSchema {
    mounted(
        "jwt",
        "Logs in with a JWT, such as Nomad's workload identity.",
        "\"jwt-nomad\"",
    )
    .required("role", Type::String, "\"portreeve\"", "The role.")
    .required(
        "jwt_file",
        Type::String,
        "\"/secrets/nomad_vault.jwt\"",
        "Read again on each login: identities rotate.",
    )
}

fn kubernetes() -> BlockSchema {
    mounted(
        "kubernetes",
        "Logs in with a pod's service account.",
        "\"kubernetes\"",
    )
    .required("role", Type::String, "\"portreeve\"", "The role.")
    .attribute(
        "jwt_file",
        Type::String,
        Some("\"/var/run/secrets/kubernetes.io/serviceaccount/token\""),
        "\"/var/run/secrets/tokens/vault\"",
        "Read again on each login: service account tokens rotate.",
    )
}

fn cert() -> BlockSchema {
    mounted(
        "cert",
        "Logs in with the TLS certificate of `client_cert` and `client_key`, and again when they change.",
        "\"cert\"",
    )
    .attribute(
        "role",
        Type::String,
        None,
        "\"portreeve\"",
        "The role. Left out: any that takes the certificate.",
    )
}

fn userpass() -> BlockSchema {
    mounted("userpass", "Logs in with a user's password.", "\"userpass\"")
        .required("username", Type::String, "\"portreeve\"", "The user.")
        .required(
            "password_file",
            Type::String,
            "\"/run/secrets/vault_password\"",
            "Read again on each login.",
        )
}

fn aws() -> BlockSchema {
    mounted(
        "aws",
        "Logs in as an AWS identity (IAM): Vault passes a signed request on to AWS's STS. OpenBao has no such method built in.",
        "\"aws\"",
    )
    .required("role", Type::String, "\"portreeve\"", "The role.")
    .attribute(
        "region",
        Type::String,
        None,
        "\"eu-central-1\"",
        "Whose STS signs: it must be the mount's `sts_region`. Left out: the global endpoint.",
    )
    .attribute(
        "server_id",
        Type::String,
        None,
        "\"vault.example.com\"",
        "The mount's `iam_server_id_header_value`.",
    )
    .attribute(
        "credentials_file",
        Type::String,
        None,
        "\"/run/secrets/aws\"",
        "Keys as AWS's tools keep them; read again on each login. Left out: AWS_ACCESS_KEY_ID and its kin, else the EC2 instance's role.",
    )
    .attribute("profile", Type::String, Some("\"default\""), "\"edge\"", "The profile in that file.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hcl::{self, Limits, Source};
    use crate::model::DocumentId;

    /// The login of a `vault` block with these lines, or what is wrong with it.
    fn login(lines: &str) -> Result<Option<VaultAuth>, String> {
        let text = format!("vault {{\n{lines}\n}}\n");
        let source = Source::new(DocumentId::File("test".into()), text.into());
        let whole = BlockSchema::new("settings", &[], "").block(schema(), Occurs::Optional);
        let body =
            hcl::parse(&source, &whole, &Limits::default()).map_err(|problems| format!("{problems:?}"))?;
        let problems = hcl::check(&source, &body, &whole);
        if let Some(problem) = problems.first() {
            return Err(problem.message.clone());
        }
        let reader = Reader::document(&source, &body);
        Ok(VaultBlock::read(&reader.child("vault").unwrap()).login)
    }

    #[test]
    fn each_login_has_a_block_with_defaults() {
        assert_eq!(login("").unwrap(), None);
        assert_eq!(
            login("kubernetes { role = \"edge\" }").unwrap(),
            Some(VaultAuth::Kubernetes {
                mount: "kubernetes".to_owned(),
                role: "edge".to_owned(),
                jwt_file: SERVICE_ACCOUNT.into(),
            })
        );
        assert_eq!(
            login("cert {}").unwrap(),
            Some(VaultAuth::Certificate {
                mount: "cert".to_owned(),
                role: None,
            })
        );
        assert_eq!(
            login("userpass {\n  username = \"edge\"\n  password_file = \"/p\"\n}").unwrap(),
            Some(VaultAuth::Userpass {
                mount: "userpass".to_owned(),
                username: "edge".to_owned(),
                password_file: "/p".into(),
            })
        );
        assert_eq!(
            login("approle {\n  role_id = \"r\"\n  wrapped_secret_id_file = \"/w\"\n}").unwrap(),
            Some(VaultAuth::AppRole {
                mount: "approle".to_owned(),
                role_id: "r".to_owned(),
                secret_id: SecretId::Wrapped("/w".into()),
            })
        );
    }

    #[test]
    fn one_login_and_one_secret_id() {
        assert!(login("token_file = \"/t\"\ncert {}").is_err());
        assert!(login("approle { role_id = \"r\" }").is_err());
        assert!(
            login("approle {\n  role_id = \"r\"\n  secret_id_file = \"/s\"\n  wrapped_secret_id_file = \"/w\"\n}").is_err()
        );
    }

    #[test]
    fn aws_keys_come_from_a_file_the_environment_or_the_instance() {
        let keys = |lines: &str, variables: &[(&str, &str)]| {
            let block = VaultBlock {
                login: login(lines).unwrap(),
                ..VaultBlock::default()
            };
            let environment = |name: &str| {
                let found = variables.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            match block.settings(&environment).unwrap().auth {
                VaultAuth::Aws(aws) => aws.keys,
                other => panic!("{other:?}"),
            }
        };
        let given = [("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "s3cret")];
        let block = "aws { role = \"edge\" }";
        let found = keys(block, &given);
        assert!(matches!(&found, AwsKeySource::Given(keys) if keys.access_key == "A"));
        assert!(!format!("{found:?}").contains("s3cret"));
        let service = |endpoint: &str| AwsKeySource::Metadata {
            endpoint: endpoint.to_owned(),
        };
        assert_eq!(keys(block, &[]), service(METADATA_SERVICE));
        let other = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1")];
        assert_eq!(keys(block, &other), service("http://127.0.0.1:1"));
        let file = "aws {\n  role = \"edge\"\n  credentials_file = \"/c\"\n}";
        assert!(matches!(keys(file, &given), AwsKeySource::File { .. }));
    }
}

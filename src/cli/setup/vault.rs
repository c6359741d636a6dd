//! `portreeve setup vault`.

use serde_json::{Value, json};

use super::desired::{Desired, Server};
use super::{Common, Workload};
use crate::cli::terminal::Terminal;
use crate::sources::agent_api::Product;

/// Policies for certificates, and the login of the agent's Nomad job
///
/// The policies are those of vault-policies/, for the mounts and the role that are named here. With -nomad-jwks-url
/// also a JWT auth mount and a role on it that only the agent's own job may take.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    workload: Workload,
    /// The PKI mount that issues certificates.
    #[arg(long, value_name = "MOUNT", default_value = "pki_int")]
    pki_mount: String,
    /// Its role.
    #[arg(long, value_name = "NAME", default_value = "edge")]
    pki_role: String,
    /// The KV version 2 mount that holds certificates.
    #[arg(long, value_name = "MOUNT", default_value = "secret")]
    kv_mount: String,
    /// The folder in it.
    #[arg(long, value_name = "PATH", default_value = "portreeve")]
    kv_folder: String,
    /// Where the JWT auth method for Nomad is mounted.
    #[arg(long, value_name = "MOUNT", default_value = "jwt-nomad")]
    jwt_mount: String,
}

const NEEDS: &str = "a token that may read and write `sys/policies/acl/*`, and with -nomad-jwks-url also read `sys/auth`, create `sys/auth/MOUNT` (with `sudo`), and read and write `auth/MOUNT/*`";
const PKI: &str = include_str!("../../../vault-policies/portreeve-pki.hcl");
const KV: &str = include_str!("../../../vault-policies/portreeve-kv.hcl");

pub(super) async fn run(arguments: &Arguments, terminal: &mut Terminal) -> anyhow::Result<()> {
    let common = &arguments.common;
    let client = common.client(Product::Vault)?;
    let mut server = Server::new(&client, common.dry_run, terminal, NEEDS);
    let pki = PKI.replace(
        "pki_int/sign/edge",
        &format!("{}/sign/{}", arguments.pki_mount, arguments.pki_role),
    );
    let (mount, folder) = (&arguments.kv_mount, &arguments.kv_folder);
    let kv = KV
        .replace("secret/data/portreeve/", &format!("{mount}/data/{folder}/"))
        .replace(
            "secret/metadata/portreeve/",
            &format!("{mount}/metadata/{folder}/"),
        );
    let names = [format!("{}-pki", common.name), format!("{}-kv", common.name)];
    for (name, rules) in names.iter().zip([pki, kv]) {
        let path = format!("sys/policies/acl/{name}");
        let found = data(server.read(&path).await?);
        let wanted = json!({ "policy": rules });
        let what = format!("policy {name}");
        server
            .ensure(Desired {
                what,
                found,
                wanted,
                path: &path,
            })
            .await?;
    }
    let Some(url) = &arguments.workload.nomad_jwks_url else {
        return server.finish();
    };
    login(&mut server, arguments, url, &names).await?;
    server.finish()
}

async fn login(
    server: &mut Server<'_>,
    arguments: &Arguments,
    url: &str,
    policies: &[String],
) -> anyhow::Result<()> {
    let mount = &arguments.jwt_mount;
    let mounts = data(server.read("sys/auth").await?);
    let mounted = mounts.and_then(|mounts| mounts.get(format!("{mount}/")).cloned());
    let is_new = mounted.is_none();
    server
        .ensure(Desired {
            what: format!("auth mount {mount}"),
            found: mounted,
            wanted: json!({ "type": "jwt" }),
            path: &format!("sys/auth/{mount}"),
        })
        .await?;
    let config = format!("auth/{mount}/config");
    let role = format!("auth/{mount}/role/{}", arguments.common.name);
    let (found_config, found_role) = match is_new && server.dry_run {
        true => (None, None),
        false => (data(server.read(&config).await?), data(server.read(&role).await?)),
    };
    // An auth mount answers with an empty configuration until it has one.
    let found_config =
        found_config.filter(|found| found["jwks_url"].as_str().is_some_and(|url| !url.is_empty()));
    server
        .ensure(Desired {
            what: format!("configuration of {mount}"),
            found: found_config,
            wanted: json!({ "jwks_url": url, "jwt_supported_algs": ["RS256", "EdDSA"] }),
            path: &config,
        })
        .await?;
    let workload = &arguments.workload;
    server
        .ensure(Desired {
            what: format!("role {} of {mount}", arguments.common.name),
            found: found_role,
            wanted: json!({
                "role_type": "jwt",
                "bound_audiences": ["vault.io"],
                "bound_claims": { "nomad_namespace": workload.nomad_namespace, "nomad_job_id": workload.nomad_job },
                "user_claim": "/nomad_job_id",
                "user_claim_json_pointer": true,
                "token_type": "service",
                "token_policies": policies,
                "token_no_default_policy": true,
                "token_ttl": 3600,
                "token_max_ttl": 86400,
            }),
            path: &role,
        })
        .await
}

/// What Vault wraps in an envelope of its own.
fn data(answer: Option<Value>) -> Option<Value> {
    answer.map(|mut answer| match answer.get_mut("data") {
        Some(data) => data.take(),
        None => answer,
    })
}

//! `portreeve setup vault`.

use serde_json::{Value, json};

use super::desired::{Desired, Server};
use super::job::Holders;
use super::{Common, Workload};
use crate::cli::terminal::Terminal;
use crate::sources::agent_api::Product;

/// Policies for certificates, and the login of the agent's Nomad job
///
/// The policies are those of vault-policies/, for the mounts and the role that are named here. With -nomad-jwks-url
/// also a JWT auth mount and a role on it that only the agent's own job may take. Mounts and roles for certificates are not
/// made; those that the policies name and that are not there are told.
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
    /// An issuer that documents name in `vault_pki`, as they name it: a policy lets the agent ask it for the role's certificates.
    /// Once for each. Left out: no such policy is made, and one that is there is left as it is.
    #[arg(long, value_name = "NAME")]
    pki_issuer: Vec<String>,
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
const PKI_ISSUER: &str = include_str!("../../../vault-policies/portreeve-pki-issuer.hcl");
const KV: &str = include_str!("../../../vault-policies/portreeve-kv.hcl");

pub(super) async fn run(arguments: &Arguments, terminal: &mut Terminal) -> anyhow::Result<()> {
    let common = &arguments.common;
    let client = common.client(Product::Vault)?;
    let mut server = Server::new(&client, common.dry_run, terminal, NEEDS);
    if arguments.workload.nomad_jwks_url.is_some() {
        leave_to_others(&server, arguments).await?;
    }
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
    let mut names = vec![format!("{}-pki", common.name), format!("{}-kv", common.name)];
    for (name, rules) in names.iter().zip([pki, kv]) {
        let found = policy(&server, name).await?;
        ensure_policy(&mut server, name, found, &rules).await?;
    }
    let issuers = format!("{}-pki-issuer", common.name);
    if !arguments.pki_issuer.is_empty() {
        let found = policy(&server, &issuers).await?;
        ensure_policy(&mut server, &issuers, found, &issuer_rules(arguments)).await?;
        names.push(issuers.clone());
    }
    if let Some(url) = &arguments.workload.nomad_jwks_url {
        login(&mut server, arguments, url, names, &issuers).await?;
    }
    say_what_is_not_there(&mut server, arguments).await?;
    server.finish()
}

/// The policies may be right and still of no use: mounts and their roles are the operator's own. A mistyped name would show
/// only as a refused certificate.
async fn say_what_is_not_there(server: &mut Server<'_>, arguments: &Arguments) -> anyhow::Result<()> {
    let Some(mounts) = server.look("sys/mounts").await else {
        return server
            .warn("sys/mounts cannot be read with this token: whether the mounts are there was not checked");
    };
    let mounts = data(mounts).unwrap_or_default();
    let (pki, role, kv) = (&arguments.pki_mount, &arguments.pki_role, &arguments.kv_mount);
    let of = |name: &str| mounts.get(format!("{}/", name.trim_matches('/')));
    match of(pki).map(|mount| mount["type"].as_str().unwrap_or_default()) {
        None => server.warn(&format!(
            "`vault_pki` has no mount {pki} yet: enable it (vault secrets enable -path={pki} pki), or name yours with -pki-mount"
        ))?,
        Some("pki") => {
            if let Some(None) = server.look(&format!("{pki}/roles/{role}")).await {
                server.warn(&format!(
                    "mount {pki} has no role {role}: write it ({pki}/roles/{role}), or name yours with -pki-role"
                ))?;
            }
        }
        Some(other) => server.warn(&format!(
            "mount {pki} is of type {other}, not pki: name yours with -pki-mount"
        ))?,
    }
    match of(kv).map(|mount| (mount["type"].as_str(), mount["options"]["version"].as_str())) {
        Some((Some("kv"), Some("2"))) => Ok(()),
        None => server.warn(&format!(
            "`vault_kv` has no mount {kv} yet: enable it (vault secrets enable -path={kv} -version=2 kv), or name yours with -kv-mount"
        )),
        Some(_) => server.warn(&format!(
            "mount {kv} is not KV version 2, which the policy is for: name yours with -kv-mount; for version 1 write vault-policies/portreeve-kv1.hcl"
        )),
    }
}

/// The shipped rule for one issuer, once for each.
fn issuer_rules(arguments: &Arguments) -> String {
    let shipped = PKI_ISSUER.find("path \"").map(|start| PKI_ISSUER.split_at(start));
    let parts = shipped.and_then(|(before, rest)| Some((before, rest.split_once("\n\n")?)));
    let Some((before, (rule, after))) = parts else {
        return PKI_ISSUER.to_owned();
    };
    let rules: Vec<String> = arguments
        .pki_issuer
        .iter()
        .map(|issuer| {
            let path = format!(
                "{}/issuer/{issuer}/sign/{}",
                arguments.pki_mount, arguments.pki_role
            );
            rule.replace("pki_int/issuer/g2/sign/edge", &path)
        })
        .collect();
    format!("{before}{}\n\n{after}", rules.join("\n\n"))
}

async fn policy(server: &Server<'_>, name: &str) -> anyhow::Result<Option<Value>> {
    Ok(data(server.read(&format!("sys/policies/acl/{name}")).await?))
}

async fn ensure_policy(
    server: &mut Server<'_>,
    name: &str,
    found: Option<Value>,
    rules: &str,
) -> anyhow::Result<()> {
    server
        .ensure(Desired {
            what: format!("policy {name}"),
            found,
            wanted: json!({ "policy": rules }),
            path: &format!("sys/policies/acl/{name}"),
        })
        .await
}

async fn login(
    server: &mut Server<'_>,
    arguments: &Arguments,
    url: &str,
    mut policies: Vec<String>,
    issuers: &String,
) -> anyhow::Result<()> {
    let mount = &arguments.jwt_mount;
    let mounted = auth_mount(server, mount).await?;
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
    // A role that may use issuers which are not named this time keeps them.
    let held = found_role
        .as_ref()
        .and_then(|role| role["token_policies"].as_array());
    if held.is_some_and(|held| held.iter().any(|policy| policy == issuers)) && !policies.contains(issuers) {
        policies.push(issuers.clone());
    }
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
    let job = &arguments.workload.job;
    server
        .ensure(Desired {
            what: format!("role {} of {mount}", arguments.common.name),
            found: found_role,
            wanted: json!({
                "role_type": "jwt",
                "bound_audiences": ["vault.io"],
                "bound_claims": { "nomad_namespace": job.nomad_namespace, "nomad_job_id": job.nomad_job },
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

async fn auth_mount(server: &Server<'_>, mount: &str) -> anyhow::Result<Option<Value>> {
    let mounts = data(server.read("sys/auth").await?);
    Ok(mounts.and_then(|mounts| mounts.get(format!("{mount}/")).cloned()))
}

/// A role of this name may be another job's.
async fn leave_to_others(server: &Server<'_>, arguments: &Arguments) -> anyhow::Result<()> {
    let (mount, name) = (&arguments.jwt_mount, &arguments.common.name);
    // Nothing can be read at a mount that is not there.
    if auth_mount(server, mount).await?.is_none() {
        return Ok(());
    }
    let Some(role) = data(server.read(&format!("auth/{mount}/role/{name}")).await?) else {
        return Ok(());
    };
    let claimed = |claim: &str| match &role["bound_claims"][claim] {
        Value::String(one) => vec![one.clone()],
        Value::Array(several) => several
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        _ => Vec::new(),
    };
    let held = Holders {
        namespaces: claimed("nomad_namespace"),
        jobs: claimed("nomad_job_id"),
    };
    let what = format!("role {name} of Vault's auth mount {mount}");
    arguments.workload.job.may_have(&what, &held)
}

/// What Vault wraps in an envelope of its own.
fn data(answer: Option<Value>) -> Option<Value> {
    answer.map(|mut answer| match answer.get_mut("data") {
        Some(data) => data.take(),
        None => answer,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn the_policy_of_one_issuer_is_the_shipped_one_and_of_two_has_one_rule_each() {
        let rules = |more: &[&str]| {
            let line = Line::parse_from([&["setup"], more].concat());
            issuer_rules(&line.arguments)
        };
        assert_eq!(rules(&["--pki-issuer=g2"]), PKI_ISSUER);
        let two = rules(&[
            "--pki-issuer=g2",
            "--pki-issuer=g3",
            "--pki-mount=pki_edge",
            "--pki-role=web",
        ]);
        let rule = |issuer: &str| {
            format!("path \"pki_edge/issuer/{issuer}/sign/web\" {{\n  capabilities = [\"update\"]\n}}\n\n")
        };
        assert!(two.contains(&format!("{}{}", rule("g2"), rule("g3"))), "{two}");
        assert_eq!(
            two.matches("path \"").count(),
            PKI_ISSUER.matches("path \"").count() + 1
        );
    }
}

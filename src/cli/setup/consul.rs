//! `portreeve setup consul`.

use serde_json::{Value, json};

use super::desired::{Desired, Server};
use super::job::Holders;
use super::{Common, Workload};
use crate::cli::failure::Failure;
use crate::cli::terminal::Terminal;
use crate::sources::agent_api::Product;

/// A policy and a role for the agent, and the login of its Nomad job
///
/// With -nomad-jwks-url also two auth methods and one binding rule on each: one by which Nomad registers the job's services,
/// to be named in Nomad's configuration as printed at the end, and one by which the agent logs in. They are two because a
/// selector on a claim that a token does not have misfires on Consul before 1.11 and makes the whole login fail.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    workload: Workload,
    /// Documents are the keys below <PREFIX>/config/.
    #[arg(long, value_name = "PREFIX", default_value = "portreeve")]
    prefix: String,
    /// Who the gateway is in Consul's mesh: also a policy <NAME>-mesh, which the role gets. A token of its own may have it
    /// in place of the role. Left out: the gateway is no member of the mesh.
    #[arg(long, value_name = "SERVICE")]
    mesh_service: Option<String>,
}

const NEEDS: &str = "a token with `acl = \"write\"`, such as a management token";
const RULES: &str = include_str!("../../../docs/deploy/consul-acl-policy.hcl");
const MESH_RULES: &str = include_str!("../../../docs/deploy/consul-mesh-policy.hcl");

pub(super) async fn run(arguments: &Arguments, terminal: &mut Terminal) -> anyhow::Result<()> {
    let common = &arguments.common;
    let client = common.client(Product::Consul)?;
    let mut server = Server::new(&client, common.dry_run, terminal, NEEDS);
    let job = &arguments.workload.job;
    if arguments.workload.nomad_jwks_url.is_some()
        && let Some(rule) = rule_of(&server, &common.name, "role", &common.name).await?
    {
        let what = format!("the login of Consul's auth method {}", common.name);
        job.may_have(&what, &holders(rule["Selector"].as_str().unwrap_or_default()))?;
    }
    let mut policies = vec![(common.name.clone(), rules(&arguments.prefix))];
    if let Some(service) = &arguments.mesh_service {
        policies.push((format!("{}-mesh", common.name), mesh_rules(service)?));
    }
    for (name, rules) in &policies {
        policy(&mut server, name, rules).await?;
    }
    let names: Vec<&str> = policies.iter().map(|(name, _)| name.as_str()).collect();
    role(&mut server, &common.name, &names).await?;
    let Some(url) = &arguments.workload.nomad_jwks_url else {
        server.terminal.write(&token_of(&common.name))?;
        return server.finish();
    };
    auth_method(&mut server, SERVICES, "nomad_service", url, None).await?;
    // The agent logs in again before its token ends, so what a killed one leaves behind may end, too.
    auth_method(&mut server, &common.name, "nomad_task", url, Some("24h0m0s")).await?;
    let selector = format!(
        "{NAMESPACE_IS}\"{}\" and {JOB_IS}\"{}\"",
        job.nomad_namespace, job.nomad_job
    );
    binding_rule(&mut server, SERVICES, "service", "${value.nomad_service}", "").await?;
    binding_rule(&mut server, &common.name, "role", &common.name, &selector).await?;
    server.terminal.write(NOMAD)?;
    server.finish()
}

/// Where nobody logs in, the agent needs a token that it is given.
fn token_of(role: &str) -> String {
    format!(
        "\nThe agent's token is made of the role, once, and stands in a file that the agent's settings name (consul {{ token_file }}):\n\n\
         consul acl token create -role-name={role} -description={role}\n\n"
    )
}

fn rules(prefix: &str) -> String {
    RULES.replace("\"portreeve/", &format!("\"{}/", prefix.trim_matches('/')))
}

/// The name stands in a rule: it must not become another one.
fn mesh_rules(service: &str) -> anyhow::Result<String> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if service.is_empty() || !service.bytes().all(is_name) {
        let failure = Failure::new(format!("-mesh-service={service:?} is not the name of a service"));
        return Err(failure.fix("letters, digits, '.', '_' and '-'").into());
    }
    Ok(MESH_RULES.replace("\"edge-gw\"", &format!("\"{service}\"")))
}

async fn policy(server: &mut Server<'_>, name: &str, rules: &str) -> anyhow::Result<()> {
    // The listing has no rules, and reading by name is newer than some of the servers in use.
    let listed = named(server.read("acl/policies").await?, name);
    let id = listed
        .as_ref()
        .and_then(|policy| policy["ID"].as_str())
        .map(str::to_owned);
    let (found, path) = match &id {
        Some(id) => {
            let path = format!("acl/policy/{id}");
            (server.read(&path).await?, path)
        }
        None => (None, "acl/policy".to_owned()),
    };
    let mut wanted = json!({ "Name": name, "Description": "Portreeve's agent", "Rules": rules });
    if let Some(id) = id {
        wanted["ID"] = id.into();
    }
    let what = format!("policy {name}");
    server
        .ensure(Desired {
            what,
            found,
            wanted,
            path: &path,
        })
        .await
}

async fn role(server: &mut Server<'_>, name: &str, policies: &[&str]) -> anyhow::Result<()> {
    let found = named(server.read("acl/roles").await?, name);
    let policies: Vec<Value> = policies.iter().map(|name| json!({ "Name": name })).collect();
    let mut wanted = json!({ "Name": name, "Description": "Portreeve's agent", "Policies": policies });
    let mut path = "acl/role".to_owned();
    if let Some(id) = found.as_ref().and_then(|role| role["ID"].as_str()) {
        path = format!("acl/role/{id}");
        wanted["ID"] = id.into();
    }
    let what = format!("role {name}");
    server
        .ensure(Desired {
            what,
            found,
            wanted,
            path: &path,
        })
        .await
}

async fn auth_method(
    server: &mut Server<'_>,
    name: &str,
    claim: &str,
    url: &str,
    token_life: Option<&str>,
) -> anyhow::Result<()> {
    let listed = named(server.read("acl/auth-methods").await?, name);
    let path = match &listed {
        Some(_) => format!("acl/auth-method/{name}"),
        None => "acl/auth-method".to_owned(),
    };
    // The listing has no configuration.
    let found = match listed {
        Some(_) => server.read(&path).await?,
        None => None,
    };
    let mut wanted = json!({
        "Name": name,
        "Type": "jwt",
        "Description": "Workload identities of Nomad",
        "Config": {
            "JWKSURL": url,
            // Nomad signs with RS256, and Consul before 1.19 refuses to hear of EdDSA.
            "JWTSupportedAlgs": ["RS256"],
            "BoundAudiences": ["consul.io"],
            "ClaimMappings": { "nomad_namespace": "nomad_namespace", "nomad_job_id": "nomad_job_id", claim: claim },
        },
    });
    if let Some(life) = token_life {
        wanted["MaxTokenTTL"] = life.into();
    }
    let what = format!("auth method {name}");
    server
        .ensure(Desired {
            what,
            found,
            wanted,
            path: &path,
        })
        .await
}

async fn binding_rule(
    server: &mut Server<'_>,
    method: &str,
    bind_type: &str,
    bind_name: &str,
    selector: &str,
) -> anyhow::Result<()> {
    let found = rule_of(server, method, bind_type, bind_name).await?;
    let mut wanted = json!({
        "AuthMethod": method, "BindType": bind_type, "BindName": bind_name, "Selector": selector,
        "Description": "Portreeve's agent under Nomad",
    });
    let mut path = "acl/binding-rule".to_owned();
    if let Some(id) = found.as_ref().and_then(|rule| rule["ID"].as_str()) {
        path = format!("acl/binding-rule/{id}");
        wanted["ID"] = id.into();
    }
    let what = format!("binding rule of {method} to the {bind_type} {bind_name}");
    server
        .ensure(Desired {
            what,
            found,
            wanted,
            path: &path,
        })
        .await
}

async fn rule_of(
    server: &Server<'_>,
    method: &str,
    bind_type: &str,
    bind_name: &str,
) -> anyhow::Result<Option<Value>> {
    let rules = server
        .read_with("acl/binding-rules", &[("authmethod", method)])
        .await?;
    Ok(rules.as_ref().and_then(Value::as_array).and_then(|rules| {
        let same = |rule: &&Value| rule["BindType"] == bind_type && rule["BindName"] == bind_name;
        rules.iter().find(same).cloned()
    }))
}

/// Whom a selector lets in, as far as it says so in the words that are written here.
fn holders(selector: &str) -> Holders {
    let compared = |with: &str| {
        let values = selector.split(with).skip(1);
        let quoted = values.filter_map(|rest| rest.strip_prefix('"')?.split('"').next());
        quoted.map(str::to_owned).collect()
    };
    Holders {
        namespaces: compared(NAMESPACE_IS),
        jobs: compared(JOB_IS),
    }
}

fn named(listed: Option<Value>, name: &str) -> Option<Value> {
    let Some(Value::Array(items)) = listed else {
        return None;
    };
    items.into_iter().find(|item| item["Name"] == name)
}

const NAMESPACE_IS: &str = "value.nomad_namespace == ";
const JOB_IS: &str = "value.nomad_job_id == ";

const SERVICES: &str = "nomad-services";

const NOMAD: &str = r#"
Nomad's servers and clients need in their configuration:

consul {
  service_auth_method = "nomad-services"

  service_identity {
    aud = ["consul.io"]
    ttl = "1h"
  }
}

"#;

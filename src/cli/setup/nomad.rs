//! `portreeve setup nomad`.

use serde_json::json;

use super::Common;
use super::desired::{Desired, Server};
use crate::cli::failure::Failure;
use crate::cli::terminal::Terminal;
use crate::sources::agent_api::Product;

/// A policy to read Nomad's services, bound to the agent's job
///
/// Only where Nomad's ACLs are on. A task may read the services of its own namespace without it.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    /// The namespace whose services upstreams may name; * for all.
    #[arg(long, value_name = "NAME", default_value = "*")]
    services_of: String,
    /// Also read the variables under this path, such as portreeve/*, for certificates. The agent's job may read
    /// nomad/jobs/<its name> in any case.
    #[arg(long, value_name = "PATH")]
    variables: Option<String>,
    /// The Nomad namespace of the agent's job.
    #[arg(long, value_name = "NAME", default_value = "default")]
    nomad_namespace: String,
    /// The agent's job.
    #[arg(long, value_name = "NAME", default_value = "portreeve")]
    nomad_job: String,
}

pub(super) async fn run(arguments: &Arguments, terminal: &mut Terminal) -> anyhow::Result<()> {
    let common = &arguments.common;
    let client = common.client(Product::Nomad)?;
    let mut server = Server::new(&client, common.dry_run, terminal);
    let rules = rules(&arguments.services_of, arguments.variables.as_deref())?;
    let path = format!("acl/policy/{}", common.name);
    let found = server.read(&path).await?;
    let wanted = json!({
        "Name": common.name,
        "Description": "Portreeve's agent reads services",
        "Rules": rules,
        "JobACL": { "Namespace": arguments.nomad_namespace, "JobID": arguments.nomad_job },
    });
    let what = format!("policy {}", common.name);
    server
        .ensure(Desired {
            what,
            found,
            wanted,
            path: &path,
        })
        .await?;
    server.finish()
}

fn rules(namespace: &str, variables: Option<&str>) -> anyhow::Result<String> {
    // Both stand in a rule: they must not become another one.
    let is_plain = |text: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_~/.*".contains(&byte);
        !text.is_empty() && text.bytes().all(plain)
    };
    if let Some(odd) = [Some(namespace), variables]
        .into_iter()
        .flatten()
        .find(|text| !is_plain(text))
    {
        let failure = Failure::new(format!("{odd:?} can stand in no rule"));
        return Err(failure.fix("letters, digits and -_~/.*").into());
    }
    let variables = variables.map_or_else(String::new, |path| {
        format!("\n  variables {{\n    path \"{path}\" {{\n      capabilities = [\"read\"]\n    }}\n  }}\n")
    });
    Ok(format!(
        "namespace \"{namespace}\" {{\n  capabilities = [\"read-job\"]\n{variables}}}\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_hold_what_is_asked_and_nothing_else() {
        assert_eq!(
            rules("*", None).unwrap(),
            "namespace \"*\" {\n  capabilities = [\"read-job\"]\n}\n"
        );
        assert!(
            rules("shop", Some("portreeve/*"))
                .unwrap()
                .contains("path \"portreeve/*\"")
        );
        assert!(rules("*\" { policy = \"write\" } #", None).is_err());
        assert!(rules("*", Some("a\" {")).is_err());
    }
}

//! `portreeve setup nomad`.

use serde_json::json;

use super::Common;
use super::desired::{Desired, Server};
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
    let path = format!("acl/policy/{}", common.name);
    let found = server.read(&path).await?;
    let wanted = json!({
        "Name": common.name,
        "Description": "Portreeve's agent reads services",
        "Rules": format!("namespace \"{}\" {{\n  capabilities = [\"read-job\"]\n}}\n", arguments.services_of),
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

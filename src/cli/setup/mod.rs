//! `portreeve setup`: what the agent needs in Consul, Vault and Nomad, created where it is missing.

mod consul;
mod desired;
mod job;
mod nomad;
mod vault;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use self::job::Job;
use super::failure::Failure;
use super::runtime::block_on;
use super::terminal::Terminal;
use crate::sources::agent_api::{ApiAddress, ApiClient, ApiSettings, Product};

/// Create what the agent needs in Consul, Vault or Nomad
///
/// Policies, roles, auth methods and binding rules, exactly as shipped in docs/deploy and vault-policies. What is there
/// already and right is left alone, so it may run as often as one likes; -dry-run says what it would do. Nothing is
/// ever deleted. It needs a management token, which the agent itself never does.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    product: Target,
}

#[derive(Debug, Subcommand)]
enum Target {
    Consul(consul::Arguments),
    Vault(vault::Arguments),
    Nomad(nomad::Arguments),
}

/// What every product is asked with.
#[derive(Clone, Debug, clap::Args)]
struct Common {
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Name of the policy, the role and so on.
    #[arg(long, value_name = "NAME", default_value = "portreeve")]
    name: String,
    /// Where the product answers. Left out: its own environment variable, then its default on loopback.
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    /// A file with a management token. Left out: the product's own environment variable.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Authorities to trust, PEM.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

/// The Nomad job that runs the agent, for workload identity.
#[derive(Clone, Debug, clap::Args)]
struct Workload {
    /// Where Nomad publishes the keys of its workload identities, as Consul and Vault reach it, such as
    /// https://nomad.example.com:4646/.well-known/jwks.json. Left out: no login by workload identity is set up.
    #[arg(long, value_name = "URL")]
    nomad_jwks_url: Option<String>,
    #[command(flatten)]
    job: Job,
}

pub fn run(arguments: &Arguments, terminal: &mut Terminal) -> anyhow::Result<ExitCode> {
    block_on(async {
        match &arguments.product {
            Target::Consul(arguments) => consul::run(arguments, terminal).await,
            Target::Vault(arguments) => vault::run(arguments, terminal).await,
            Target::Nomad(arguments) => nomad::run(arguments, terminal).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

impl Common {
    fn client(&self, product: Product) -> anyhow::Result<ApiClient> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let address = self
            .address
            .clone()
            .or_else(|| set(product.address_variable()))
            .unwrap_or_else(|| product.default_authority().to_owned());
        let unusable =
            |error| Failure::new(format!("cannot reach {product} with these settings")).because(error);
        let mut settings = ApiSettings::of(product);
        settings.address = ApiAddress::parse(product, &address, false).map_err(unusable)?;
        settings.token = set(product.token_variable()).map(crate::model::Redacted::new);
        settings.token_file.clone_from(&self.token_file);
        settings.ca_file = self
            .ca_file
            .clone()
            .or_else(|| set(product.ca_variable()).map(PathBuf::from));
        let client = ApiClient::new(&settings).map_err(unusable)?;
        Ok(client)
    }
}

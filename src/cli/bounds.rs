//! What agents let documents from KV reach: in their settings, so not known to whoever writes documents.

use std::path::PathBuf;

use super::api_client::{ApiArguments, ApiClient};
use super::runtime::block_on;
use super::terminal::Terminal;
use crate::agent::settings::{Flags, Settings};
use crate::config::{AddressRules, Permissions, parse_document};
use crate::diagnostics::{Code, Diagnostic, Severity};
use crate::hcl::Limits;
use crate::model::Document;

/// What documents are held to.
#[derive(Clone, Debug)]
pub enum Bounds {
    /// They are files of the agent's own machine, which may reach everything.
    None,
    /// Nobody was asked.
    Unknown,
    Known(Box<Permissions>),
}

#[derive(Clone, Debug, clap::Args)]
pub struct BoundsArguments {
    /// The agents' settings (kv_documents): what they let documents reach is checked; may be given several times.
    #[arg(long, value_name = "PATH")]
    config: Vec<PathBuf>,
}

impl BoundsArguments {
    /// As the settings say; without any, as the agent says that is asked.
    pub fn bounds(&self, agent: Option<&ApiArguments>) -> anyhow::Result<Bounds> {
        if !self.config.is_empty() {
            let flags = |gateways: &[&str]| Flags {
                config: self.config.clone(),
                gateways: gateways.iter().map(|name| (*name).to_owned()).collect(),
                ..Flags::default()
            };
            // The names of this machine are not those of the agents'.
            let load = |gateways: &[&str]| Settings::load(&flags(gateways), "");
            // They may leave it to the command line which gateways there are: then it is not known what they use.
            let gateways = load(&[]).map(|settings| settings.gateways).unwrap_or_default();
            let mut permissions = load(&["any"])?.permissions;
            permissions.gateways = (!gateways.is_empty()).then(|| gateways.into_iter().collect());
            return Ok(Bounds::Known(Box::new(permissions)));
        }
        match agent {
            Some(agent) => Ok(Bounds::Known(block_on(
                ApiClient::new(agent)?.get("/v1/permissions", &[]),
            )?)),
            None => Ok(Bounds::Unknown),
        }
    }
}

impl Bounds {
    /// What the rest of the check goes by. Where nothing is known, nothing is refused for it.
    pub fn permissions(&self) -> Permissions {
        match self {
            Self::Known(permissions) => (**permissions).clone(),
            // Without defaults, so that a bound that comes to be is thought of here.
            Self::None | Self::Unknown => Permissions {
                files: vec!["/".into()],
                vault_paths: vec!["*".into()],
                nomad_variables: vec!["*".into()],
                addresses: AddressRules {
                    allowed: Some(vec!["*".into()]),
                    allow_loopback: true,
                    allow_link_local: true,
                    own: Vec::new(),
                    own_names: Vec::new(),
                    servers: Vec::new(),
                },
                exposure: None,
                gateways: None,
            },
        }
    }

    /// Where nothing is known: what an agent refuses whose settings say nothing of it.
    pub fn doubts<'a>(&self, documents: impl Iterator<Item = &'a Document>) -> Vec<Diagnostic> {
        if !matches!(self, Self::Unknown) {
            return Vec::new();
        }
        let refused = documents.flat_map(|document| refusals(document, &Permissions::default()));
        refused
            .map(|problem| Diagnostic {
                severity: Severity::Warning,
                reason: Some("agents refuse it unless their kv_documents settings allow it".to_owned()),
                ..problem
            })
            .collect()
    }

    /// Says that nothing is known, where it matters.
    pub fn note(&self, documents: &[Document], terminal: &mut Terminal) -> std::io::Result<()> {
        let nothing = Permissions {
            files: Vec::new(),
            vault_paths: Vec::new(),
            nomad_variables: Vec::new(),
            addresses: AddressRules {
                allowed: Some(Vec::new()),
                allow_loopback: false,
                allow_link_local: false,
                own: Vec::new(),
                own_names: Vec::new(),
                servers: Vec::new(),
            },
            exposure: None,
            gateways: None,
        };
        let is_bounded = |document: &Document| !refusals(document, &nothing).is_empty();
        if matches!(self, Self::Unknown) && documents.iter().any(is_bounded) {
            terminal.error_line(
                "note: not checked: whether agents allow (kv_documents) the files, Vault paths, Nomad variables and addresses that \
                 these documents name. To check it, add -config with the agents' settings, or -agent to ask the one on this machine",
            )?;
        }
        Ok(())
    }
}

fn refusals(document: &Document, permissions: &Permissions) -> Vec<Diagnostic> {
    let mut problems = match parse_document(document, permissions, &Limits::default()) {
        Ok(parsed) => parsed.not_allowed(),
        Err(problems) => problems,
    };
    problems.retain(|problem| problem.code == Code::NotAllowed);
    problems
}

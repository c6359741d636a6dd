//! The client of one Nomad agent, or of the task API's socket: what is common with Consul, under Nomad's names.

use std::ops::Deref;
use std::sync::Arc;

use super::settings::NomadSettings;
use crate::sources::agent_api::{ApiAddress, ApiClient, SettingsError};

/// A cheap handle: clones share connections and token.
#[derive(Clone, Debug)]
pub struct NomadClient {
    api: ApiClient,
    target: ApiAddress,
    namespace: Option<Arc<str>>,
}

impl NomadClient {
    /// Reads certificates and the token file; connects to nothing yet.
    pub fn new(settings: &NomadSettings) -> Result<Self, SettingsError> {
        Ok(Self {
            api: ApiClient::new(&settings.api())?,
            target: settings.address.clone(),
            namespace: settings.namespace.as_deref().map(Into::into),
        })
    }

    /// Where calls go that name none, as the settings or the environment say. None: Nomad's own default.
    pub(in crate::sources) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    pub(in crate::sources) fn target(&self) -> &ApiAddress {
        &self.target
    }

    /// Without what is Nomad's own.
    pub(in crate::sources) fn api(&self) -> ApiClient {
        self.api.clone()
    }
}

impl Deref for NomadClient {
    type Target = ApiClient;

    fn deref(&self) -> &ApiClient {
        &self.api
    }
}

//! The client of one Consul agent: what is common with Nomad, and the calls of this folder on top of it.

use std::ops::Deref;
use std::sync::Arc;

pub(super) use crate::sources::agent_api::client::Answer;
use crate::sources::agent_api::{ApiClient, SettingsError};

use super::settings::ConsulSettings;

/// A cheap handle: clones share connections and token.
#[derive(Clone, Debug)]
pub struct ConsulClient {
    api: ApiClient,
    settings: Arc<ConsulSettings>,
}

impl ConsulClient {
    /// Reads certificates and the token file; connects to nothing yet.
    pub fn new(settings: &ConsulSettings) -> Result<Self, SettingsError> {
        Ok(Self {
            api: ApiClient::new(&settings.api())?,
            settings: Arc::new(settings.clone()),
        })
    }

    pub(super) fn settings(&self) -> &ConsulSettings {
        &self.settings
    }

    /// Where names stand that say nothing of it.
    pub(super) fn namespace(&self) -> Option<&str> {
        self.settings.namespace.as_deref()
    }

    pub(super) fn partition(&self) -> Option<&str> {
        self.settings.partition.as_deref()
    }

    /// Without what is Consul's own.
    pub(super) fn api(&self) -> ApiClient {
        self.api.clone()
    }
}

impl Deref for ConsulClient {
    type Target = ApiClient;

    fn deref(&self) -> &ApiClient {
        &self.api
    }
}

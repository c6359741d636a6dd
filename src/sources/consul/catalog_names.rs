//! The names of all registered services, for "did you mean" beside a service that does not exist.
//!
//! `rs-consul` makes this call right, and is used wherever it can connect: it knows neither unix sockets, nor a CA of
//! one's own, nor client certificates, nor a proxy's user, nor partitions, and it cannot bound what it reads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rs_consul::types::QueryOptions;
use rs_consul::{Config, Consul};
use serde::de::IgnoredAny;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::ConsulError;
use super::Endpoint;
use super::call::Call;
use super::client::ConsulClient;
use super::settings::ConsulSettings;
use crate::model::{Interests, Observation};

/// Brings the names while somebody wants them, seldom enough that no catalog feels it.
pub async fn follow_service_names(
    client: ConsulClient,
    observations: mpsc::Sender<Observation>,
    mut interests: watch::Receiver<Arc<Interests>>,
    stop: CancellationToken,
) {
    let mut told: Option<Arc<[Arc<str>]>> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            wanted = interests.wait_for(|interests| interests.service_names) => if wanted.is_err() { return },
        }
        match tokio::time::timeout(ANSWER, service_names(&client)).await {
            Ok(Ok(mut names)) => {
                names.truncate(NAMES);
                let names: Arc<[Arc<str>]> = names.into();
                if told.as_ref() != Some(&names) {
                    told = Some(names.clone());
                    if observations.send(Observation::ServiceNames(names)).await.is_err() {
                        return;
                    }
                }
            }
            // A hint that is missing harms nobody, and whoever watches the services says what is wrong with Consul.
            Ok(Err(error)) => tracing::debug!(%error, "service names cannot be read"),
            Err(_) => tracing::debug!("service names do not come"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(AGAIN) => {}
        }
    }
}

/// Sorted names; those that the token may see. One short call, no watch: it wakes on every registration.
pub async fn service_names(client: &ConsulClient) -> Result<Vec<Arc<str>>, ConsulError> {
    if let Some(consul) = simple_client(client) {
        let options = QueryOptions {
            namespace: client.settings().namespace.clone(),
            datacenter: client.settings().datacenter.clone(),
            ..QueryOptions::default()
        };
        match consul.get_all_registered_service_names(Some(options)).await {
            Ok(answer) => {
                let mut names: Vec<Arc<str>> = answer.response.into_iter().map(Arc::from).collect();
                names.sort();
                return Ok(names);
            }
            // Our own call meets the same trouble and can say what it is.
            Err(error) => tracing::debug!(%error, "service names asked again"),
        }
    }
    let call = Call::get("catalog/services")
        .max_body(NAMES_BYTES)
        .needs("service_prefix \"\" { policy = \"read\" }");
    let names: BTreeMap<Arc<str>, IgnoredAny> = client.call(call).await?.json()?;
    Ok(names.into_keys().collect())
}

fn simple_client(client: &ConsulClient) -> Option<Consul> {
    let address = simple_address(client.settings())?;
    let token = client.token().current().map(|token| token.expose().clone());
    Some(Consul::new(Config {
        address,
        token,
        ..Config::default()
    }))
}

/// The address in the form that `rs-consul` takes, if everything else about it can be said there too.
fn simple_address(settings: &ConsulSettings) -> Option<String> {
    let plain = settings.http_auth.is_none() && settings.partition.is_none();
    match &settings.address.endpoint {
        Endpoint::Http { .. } if plain => Some(settings.address.to_string()),
        Endpoint::Https { .. } | Endpoint::Http { .. } | Endpoint::Unix { .. } => None,
    }
}

/// Between two looks at the catalog.
const AGAIN: Duration = Duration::from_secs(20);

const ANSWER: Duration = Duration::from_secs(10);

/// Names kept.
const NAMES: usize = 50_000;

/// 100,000 names with tags.
const NAMES_BYTES: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::agent_api::{ApiAddress, Product};

    fn settings(address: &str) -> ConsulSettings {
        ConsulSettings {
            address: ApiAddress::parse(Product::Consul, address, false).unwrap(),
            ..ConsulSettings::default()
        }
    }

    #[test]
    fn the_scheme_is_always_there_and_the_rest_falls_back() {
        assert_eq!(
            simple_address(&settings("c:8500")).as_deref(),
            Some("http://c:8500")
        );
        assert_eq!(
            simple_address(&settings("c:80/consul")).as_deref(),
            Some("http://c:80/consul")
        );
        assert_eq!(simple_address(&settings("https://c:8501")), None);
        assert_eq!(simple_address(&settings("unix:///run/c.sock")), None);
    }
}

//! The Envoys that this agent supervises: what they do, what they hold, and their planned restart.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::Api;
use super::answer::{ApiError, json};
use super::parameters::Parameters;
use super::redact::redact;
use crate::envoy::ResourceKind;
use crate::envoy_process::{Handle, Status};
use crate::pipeline::{GatewayView, View};
use crate::resolve::certificate_of_secret;
use crate::translate::Fetched;

/// How long a restart waits for keys that are issued for it: Vault answers in milliseconds, and none is asked for more
/// than once a minute.
const ISSUE_PATIENCE: Duration = Duration::from_secs(10);

/// One supervised process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvoyProcessStatus {
    pub gateway: String,
    /// `starting`, `running`, `replacing`, `waiting`, `backoff`, `stopping`, `stopped`, `left_running`.
    pub state: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Started by a former agent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adopted: bool,
    /// Why it does not run, or why a planned restart is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl EnvoyProcessStatus {
    pub fn of(gateway: &str, status: &Status) -> Self {
        let made = |state: &str, pid| Self {
            gateway: gateway.to_owned(),
            state: state.to_owned(),
            pid,
            version: None,
            adopted: false,
            note: None,
        };
        match status {
            Status::Starting { pid, adopted, .. } => Self {
                adopted: *adopted,
                ..made("starting", Some(*pid))
            },
            Status::Running(running) => Self {
                version: running.version.map(|version| version.to_string()),
                adopted: running.adopted,
                note: running
                    .outdated
                    .as_ref()
                    .map(|why| format!("a restart is due: {why}")),
                ..made("running", Some(running.pid))
            },
            Status::Replacing { pid, next_pid } => Self {
                note: Some(format!("process {next_pid} takes over")),
                ..made("replacing", Some(*pid))
            },
            Status::Waiting { reason } => Self {
                note: Some(reason.clone()),
                ..made("waiting", None)
            },
            Status::Backoff {
                reason,
                attempt,
                retry_in,
            } => Self {
                note: Some(format!(
                    "attempt {attempt} failed, the next in {retry_in:?}: {reason}"
                )),
                ..made("backoff", None)
            },
            Status::Stopping { pid } => made("stopping", Some(*pid)),
            Status::Stopped => made("stopped", None),
            Status::LeftRunning { pid } => made("left_running", Some(*pid)),
        }
    }

    pub fn summary(&self) -> String {
        match &self.note {
            Some(note) => format!("{}, {note}", self.state),
            None => self.state.clone(),
        }
    }
}

pub(super) async fn config_dump(
    State(api): State<Api>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let (_, envoy) = chosen(&api, query.as_deref())?;
    let mut dump = envoy.admin().config_dump().await.map_err(|error| {
        ApiError::new(StatusCode::BAD_GATEWAY, error.to_string()).fix("see `portreeve status`")
    })?;
    redact(&mut dump);
    Ok(json(&dump))
}

pub(super) async fn restart(State(api): State<Api>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let (gateway, envoy) = chosen(&api, query.as_deref())?;
    wait_for_keys(&api, gateway).await?;
    let method = envoy
        .restart(None)
        .await
        .map_err(|error| ApiError::new(StatusCode::CONFLICT, error.to_string()))?;
    Ok(json(
        &serde_json::json!({ "gateway": gateway, "restarted": method.to_string() }),
    ))
}

/// A successor gets everything from this agent. What only the running Envoy has would be lost with it.
async fn wait_for_keys(api: &Api, gateway: &str) -> Result<(), ApiError> {
    let refused = |message: String| ApiError::new(StatusCode::CONFLICT, message);
    let mut all_read = Vec::new();
    {
        let view = api.view();
        let Some(view) = view.gateways.iter().find(|view| *view.name == *gateway) else {
            return Ok(());
        };
        if view.published_at.is_none() {
            return Err(refused(format!(
                "nothing of gateway {gateway:?} is published yet: a new Envoy would have nothing to serve"
            ))
            .fix("wait until `/ready` answers 200, which says what is missing"));
        }
        for certificate in with_envoy_alone(view) {
            let fetched = view.compiler.certificates().get(&*certificate);
            let queries: Vec<_> = fetched.into_iter().flat_map(Fetched::queries).collect();
            if !queries.is_empty() && queries.iter().all(|query| query.is_read()) {
                all_read.push(certificate);
                continue;
            }
            let issued = queries.into_iter().filter(|query| !query.is_read());
            issued.for_each(|query| api.wanted.add(query.clone()));
        }
    }
    let of = |view: &View| {
        let view = view.gateways.iter().find(|view| *view.name == *gateway);
        view.map(with_envoy_alone).unwrap_or_default()
    };
    let mut missing = all_read;
    if missing.is_empty() {
        let mut views = api.view.clone();
        let issued = views.wait_for(|view| of(view).is_empty());
        if timeout(ISSUE_PATIENCE, issued).await.is_ok() {
            return Ok(());
        }
        missing = of(&api.view());
    }
    let names: Vec<String> = missing.iter().map(|name| format!("{name:?}")).collect();
    Err(refused(format!(
        "the private key of {} is with the running Envoy alone: a new one could not serve it",
        names.join(", ")
    ))
    .fix("restart Envoy when its source brings the key again: `portreeve status` says what keeps it"))
}

/// The certificates of which this agent knows no more than the public half.
fn with_envoy_alone(view: &GatewayView) -> Vec<String> {
    let secrets = view.compiler.resources().of_kind(ResourceKind::Secret);
    let held = secrets.values().filter(|secret| secret.is_held_by_envoy());
    held.map(|secret| {
        certificate_of_secret(&secret.name)
            .unwrap_or(&secret.name)
            .to_owned()
    })
    .collect()
}

fn chosen<'a>(api: &'a Api, query: Option<&str>) -> Result<(&'a Arc<str>, &'a Handle), ApiError> {
    let parameters = Parameters::parse(query, &["gateway"])?;
    let known = || {
        api.envoys
            .keys()
            .map(|name| &**name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    if api.envoys.is_empty() {
        return Err(
            ApiError::new(StatusCode::CONFLICT, "this agent supervises no Envoy")
                .fix("ask whoever started Envoy, or set `envoy { supervise = true }`"),
        );
    }
    match parameters.get("gateway") {
        Some(name) => api.envoys.get_key_value(name).ok_or_else(|| {
            ApiError::new(
                StatusCode::NOT_FOUND,
                format!("this agent supervises no Envoy for a gateway {name:?}"),
            )
            .fix(format!("it has: {}", known()))
        }),
        None if api.envoys.len() == 1 => api
            .envoys
            .first_key_value()
            .ok_or_else(|| ApiError::new(StatusCode::CONFLICT, "this agent supervises no Envoy")),
        None => Err(ApiError::bad_request("this agent supervises several Envoys")
            .fix(format!("say which: ?gateway= one of {}", known()))),
    }
}

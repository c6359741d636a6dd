//! What can be asked without effect.

use std::time::SystemTime;

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::Api;
use super::answer::{ApiError, json};
use super::envoy::EnvoyProcessStatus;
use super::parameters::Parameters;
use crate::config::text_hash;
use crate::diagnostics::Diagnostic;
use crate::envoy_process;
use crate::pipeline::View;
use crate::status::{
    self, DocumentPhase, EnvoyStatus, ListenerStatus, RefusedClientsStatus, Status, source_of,
};
use crate::xds::StreamView;

/// Whether the agent is of use, and what it lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    pub ready: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// What is amiss although it is of use: listeners that are not open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub degraded: Vec<String>,
    /// Serving from disk.
    pub stale: bool,
}

/// The agent itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentStatus {
    pub node: String,
    pub version: String,
    pub started_at: String,
    pub envoys: Vec<EnvoyProcessStatus>,
    #[serde(default)]
    pub refused_clients: RefusedClientsStatus,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusReport {
    pub agent: AgentStatus,
    pub readiness: Readiness,
    #[serde(flatten)]
    pub status: Status,
}

/// One document as it stands in its source.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DocumentText {
    pub document: String,
    /// `file` or `kv`.
    pub source: String,
    pub version: u64,
    pub hash: String,
    pub phase: DocumentPhase,
    pub text: String,
    /// What is in service, where it is another text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_in_service: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Diagnostic>,
}

/// `listeners` are those of the same moment.
fn readiness(api: &Api, view: &View, streams: &[StreamView], listeners: &[ListenerStatus]) -> Readiness {
    let mut missing = status::missing(view);
    for (gateway, envoy) in &api.envoys {
        let state = envoy.status().borrow().clone();
        if !matches!(
            state,
            envoy_process::Status::Running(_) | envoy_process::Status::Replacing { .. }
        ) {
            let process = EnvoyProcessStatus::of(gateway, &state);
            missing.push(format!("the Envoy of gateway {gateway:?}: {}", process.summary()));
        }
    }
    if missing.is_empty() {
        missing = status::all_closed(view, streams);
    }
    let is_ready = missing.is_empty();
    let closed =
        |listener: &ListenerStatus| Some(format!("gateway {:?}: {}", listener.gateway, listener.closed()?));
    Readiness {
        ready: is_ready,
        missing,
        degraded: listeners.iter().filter(|_| is_ready).filter_map(closed).collect(),
        stale: view.stale,
    }
}

pub(super) async fn ready(State(api): State<Api>) -> Response {
    let (view, streams) = (api.view(), api.streams.snapshot());
    let readiness = readiness(&api, &view, &streams, &status::listeners(&view, &streams));
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, json(&readiness)).into_response()
}

pub(super) async fn status(State(api): State<Api>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let parameters = Parameters::parse(query.as_deref(), &["limit"])?;
    let mut report = aside(move || report(&api)).await?;
    if let Some(rows) = parameters.number("limit")? {
        report.status = report.status.excerpt(rows);
    }
    Ok(json(&report))
}

/// Beside the threads that serve Envoys: what is to be told of many documents takes its time.
pub(super) async fn aside<T: Send + 'static>(
    make: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(make).await.map_err(|error| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the answer could not be made: {error}"),
        )
    })
}

pub(super) fn report(api: &Api) -> StatusReport {
    let (view, streams) = (api.view(), api.streams.snapshot());
    let status = Status::of(&view, &streams, (api.readings)(), SystemTime::now());
    StatusReport {
        agent: AgentStatus {
            node: api.node.to_string(),
            version: api.version.to_string(),
            started_at: humantime::format_rfc3339_seconds(api.started_at).to_string(),
            envoys: api
                .envoys
                .iter()
                .map(|(gateway, envoy)| EnvoyProcessStatus::of(gateway, &envoy.status().borrow()))
                .collect(),
            refused_clients: RefusedClientsStatus::of(api.streams.refused()),
        },
        readiness: readiness(api, &view, &streams, &status.listeners),
        status,
    }
}

pub(super) async fn documents(
    State(api): State<Api>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let parameters = Parameters::parse(query.as_deref(), &["document"])?;
    let only = parameters.get("document");
    let view = api.view();
    let states = view.snapshot.config.documents();
    let documents: Vec<DocumentText> = states
        .filter(|state| only.is_none_or(|only| state.document.id.as_str() == only))
        .map(|state| {
            let in_service = state.in_service.as_ref().map(|parsed| &parsed.document.text);
            DocumentText {
                document: state.document.id.to_string(),
                source: source_of(&state.document.id).to_owned(),
                version: state.document.version,
                hash: text_hash(&state.document.text),
                phase: DocumentPhase::of(state),
                text: state.document.text.to_string(),
                text_in_service: in_service
                    .filter(|text| **text != state.document.text)
                    .map(ToString::to_string),
                problems: state.problems.to_vec(),
            }
        })
        .collect();
    match only {
        Some(only) if documents.is_empty() => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            format!("there is no document {only:?}"),
        )),
        _ => Ok(json(&documents)),
    }
}

pub(super) async fn permissions(State(api): State<Api>) -> Response {
    json(api.view().snapshot.config.permissions())
}

pub(super) async fn diagnostics(State(api): State<Api>) -> Response {
    json(&status::diagnostics(
        &api.view(),
        &api.streams.snapshot(),
        SystemTime::now(),
    ))
}

pub(super) async fn envoys(State(api): State<Api>) -> Response {
    let envoys: Vec<EnvoyStatus> = api.streams.snapshot().iter().map(EnvoyStatus::of).collect();
    json(&envoys)
}

pub(super) async fn refresh(State(api): State<Api>) -> Response {
    (api.refresh)();
    (
        StatusCode::ACCEPTED,
        json(&serde_json::json!({ "refreshing": true })),
    )
        .into_response()
}

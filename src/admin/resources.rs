//! What a gateway's Envoys are given, as protojson. The CLI asks the same offline.

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::Api;
use super::answer::{self, ApiError};
use super::parameters::Parameters;
use crate::envoy::{Resource, ResourceKind, ResourceSet, render_resource};

/// Which resources to show.
#[derive(Clone, Debug, Default)]
pub struct ResourceFilter {
    pub kind: Option<ResourceKind>,
    pub name: Option<String>,
}

impl ResourceFilter {
    /// `kind` by its name in the API: `cluster`, `scoped_route`, ...
    pub fn new(kind: Option<&str>, name: Option<&str>) -> Result<Self, String> {
        let kind = match kind {
            None => None,
            Some(word) => Some(serde_json::from_value(json!(word)).map_err(|_| {
                let known: Vec<String> = ResourceKind::ALL.iter().map(|kind| kind_name(*kind)).collect();
                format!("unknown kind {word:?}; known: {}", known.join(", "))
            })?),
        };
        Ok(Self {
            kind,
            name: name.map(str::to_owned),
        })
    }

    fn takes(&self, resource: &Resource) -> bool {
        self.name.as_deref().is_none_or(|name| *resource.name == *name)
    }
}

/// By kind, in name order, without secrets.
pub fn resources(set: &ResourceSet, filter: &ResourceFilter) -> Value {
    let kinds = ResourceKind::ALL
        .into_iter()
        .filter(|kind| filter.kind.is_none_or(|only| only == *kind));
    let shown = kinds.map(|kind| {
        let resources = set
            .of_kind(kind)
            .values()
            .filter(|resource| filter.takes(resource));
        (
            kind.plural().to_owned(),
            Value::Array(resources.map(|resource| render_resource(resource)).collect()),
        )
    });
    Value::Object(shown.collect())
}

pub(super) fn kind_name(kind: ResourceKind) -> String {
    match serde_json::to_value(kind) {
        Ok(Value::String(name)) => name,
        _ => format!("{kind:?}"),
    }
}

pub(super) async fn get(State(api): State<Api>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let parameters = Parameters::parse(query.as_deref(), &["gateway", "kind", "name"])?;
    let filter =
        ResourceFilter::new(parameters.get("kind"), parameters.get("name")).map_err(ApiError::bad_request)?;
    let view = api.view();
    let known = view
        .gateways
        .iter()
        .map(|gateway| &*gateway.name)
        .collect::<Vec<_>>()
        .join(", ");
    let gateway = match parameters.get("gateway") {
        Some(name) => view
            .gateways
            .iter()
            .find(|gateway| *gateway.name == *name)
            .ok_or_else(|| {
                ApiError::new(
                    StatusCode::NOT_FOUND,
                    format!("this agent serves no gateway {name:?}"),
                )
                .fix(format!("it serves: {known}"))
            })?,
        None => match view.gateways.as_slice() {
            [only] => only,
            _ => {
                return Err(ApiError::bad_request("which gateway?").fix(format!("?gateway= one of {known}")));
            }
        },
    };
    Ok(answer::json(&resources(gateway.compiler.resources(), &filter)))
}

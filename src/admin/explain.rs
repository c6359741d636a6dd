//! Which rule takes a request. The CLI asks the same offline.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::Api;
use super::answer::{ApiError, json};
use super::parameters::Parameters;
use crate::config::Gateway;
use crate::resolve::{self, Explanation, Request};
use crate::snapshot::Snapshot;
use crate::status::{self, ListenerPhase, ListenerStatus};

/// A request to explain.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainQuery {
    #[serde(default = "get")]
    pub method: String,
    /// `https://shop.example.com/api?x=1`, or `tcp://db.example.com:5432`. Without a scheme: http.
    pub url: String,
    /// Name and value.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// Left out: every gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum BadQuery {
    #[error("{url:?} is not a URL such as https://shop.example.com/api: {reason}")]
    Url { url: String, reason: String },
    #[error("no gateway {name:?} here; known: {known}")]
    UnknownGateway { name: String, known: String },
    #[error("no gateway is declared, so nothing takes a request: write a `gateway` block into a document")]
    NoGateway,
}

fn get() -> String {
    "GET".to_owned()
}

/// One explanation for each gateway asked about, those that take the request first.
pub fn explain(
    snapshot: &Snapshot,
    gateways: &[&Arc<Gateway>],
    query: &ExplainQuery,
) -> Result<Vec<Explanation>, BadQuery> {
    let asked = query.gateway.as_deref();
    let chosen: Vec<_> = gateways
        .iter()
        .filter(|gateway| asked.is_none_or(|name| *gateway.name == *name))
        .collect();
    if chosen.is_empty() {
        return Err(match asked {
            None => BadQuery::NoGateway,
            Some(name) => BadQuery::UnknownGateway {
                name: name.to_owned(),
                known: gateways
                    .iter()
                    .map(|gateway| &*gateway.name)
                    .collect::<Vec<_>>()
                    .join(", "),
            },
        });
    }
    let target = Target::parse(&query.url)?;
    let host = query
        .headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("host"));
    let host = host.map_or(target.host.as_str(), |(_, value)| value);
    let request = Request::new(
        &query.method.to_ascii_uppercase(),
        host,
        &target.path,
        &query.headers,
    )
    .connected_to(&target.host);
    let mut explanations: Vec<Explanation> = chosen
        .into_iter()
        .map(|gateway| resolve::explain(snapshot, gateway, &target.scheme, target.port, &request))
        .collect();
    explanations.sort_by_key(|explanation| {
        (
            explanation.route.is_none(),
            explanation.host.is_none(),
            explanation.listener.is_none(),
        )
    });
    Ok(explanations)
}

/// A URL in its parts. The path is as written: the gateway's own normalisation is part of what is explained.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    scheme: String,
    host: String,
    /// None where the URL does not say.
    port: Option<u16>,
    path: String,
}

impl Target {
    fn parse(text: &str) -> Result<Self, BadQuery> {
        let bad = |reason: &str| BadQuery::Url {
            url: text.to_owned(),
            reason: reason.to_owned(),
        };
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let scheme = scheme.to_ascii_lowercase();
        if !["http", "https", "tcp"].contains(&&*scheme) {
            return Err(bad("the scheme must be http, https or tcp"));
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        // Hosts of a scheme that it does not know are left as they are, capital letters and all.
        let known = if scheme == "tcp" { "http" } else { &scheme };
        let url =
            url::Url::parse(&format!("{known}://{authority}/")).map_err(|error| bad(&error.to_string()))?;
        let host = url.host_str().unwrap_or_default().to_owned();
        if host.is_empty() {
            return Err(bad("it names no host"));
        }
        // The scheme's default port is only meant when it is written.
        let written = authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        Ok(Self {
            scheme,
            host,
            port: url.port().or(written),
            path,
        })
    }
}

pub(super) async fn explain_get(
    State(api): State<Api>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let parameters = Parameters::parse(query.as_deref(), &["method", "url", "header", "gateway"])?;
    let url = parameters.get("url").ok_or_else(|| {
        ApiError::bad_request("the parameter \"url\" is missing")
            .fix("for example /v1/explain?url=https%3A%2F%2Fshop.example.com%2Fapi")
    })?;
    let mut headers = Vec::new();
    for header in parameters.all("header") {
        let (name, value) = header.split_once(':').ok_or_else(|| {
            ApiError::bad_request(format!("{header:?} is no header")).fix("write name:value")
        })?;
        headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    answer(
        &api,
        &ExplainQuery {
            method: parameters.get("method").map_or_else(get, str::to_owned),
            url: url.to_owned(),
            headers,
            gateway: parameters.get("gateway").map(str::to_owned),
        },
    )
}

pub(super) async fn explain_post(State(api): State<Api>, body: Bytes) -> Result<Response, ApiError> {
    let query: ExplainQuery = serde_json::from_slice(&body).map_err(|error| {
        ApiError::bad_request(format!("the body is no such query: {error}")).fix(
            r#"for example {"method": "GET", "url": "https://shop.example.com/", "headers": [["x-a", "1"]]}"#,
        )
    })?;
    answer(&api, &query)
}

fn answer(api: &Api, query: &ExplainQuery) -> Result<Response, ApiError> {
    let view = api.view();
    let served = view.gateways.iter();
    let gateways: Vec<_> = served
        .filter_map(|gateway| view.snapshot.config.gateway(&gateway.name))
        .collect();
    let mut explanations = explain(&view.snapshot, &gateways, query)
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    let listeners = status::listeners(&view, &api.streams.snapshot());
    for explanation in &mut explanations {
        say_if_closed(explanation, &listeners);
    }
    Ok(json(&explanations))
}

/// What documents say of a request is of no use to whoever cannot connect.
fn say_if_closed(explanation: &mut Explanation, listeners: &[ListenerStatus]) {
    let Some(name) = &explanation.listener else { return };
    let listener = listeners
        .iter()
        .find(|listener| *listener.gateway == *explanation.gateway && *listener.name == **name);
    explanation.closed = listener.and_then(ListenerStatus::closed);
    let Some(closed) = &explanation.closed else { return };
    let is_open_somewhere = listener.is_some_and(|listener| listener.phase == ListenerPhase::Partly);
    if !is_open_somewhere && explanation.route.is_some() {
        explanation.answer = Some(format!(
            "the connection is refused: the rule matches, but {closed}"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_urls_apart() {
        let target = |url: &str| {
            let target = Target::parse(url).unwrap();
            (target.scheme, target.host, target.port, target.path)
        };
        let expect =
            |scheme: &str, host: &str, port, path: &str| (scheme.into(), host.into(), port, path.into());
        assert_eq!(target("https://A.com"), expect("https", "a.com", None, "/"));
        assert_eq!(
            target("https://a.com:443/x"),
            expect("https", "a.com", Some(443), "/x")
        );
        assert_eq!(
            target("a.com/a/../b?q=1"),
            expect("http", "a.com", None, "/a/../b?q=1")
        );
        assert_eq!(target("http://a.com?q"), expect("http", "a.com", None, "/?q"));
        assert_eq!(
            target("http://[::1]:8080/"),
            expect("http", "[::1]", Some(8080), "/")
        );
        assert_eq!(
            target("tcp://DB.example.com:5432"),
            expect("tcp", "db.example.com", Some(5432), "/")
        );
        for bad in ["ftp://a", "http://", "/path", "http://a:99999/"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }
}

//! Every path, once: the router, the OpenAPI document and the reference are made from this table.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode, Uri};
use axum::routing::{MethodRouter, get, post};

use super::answer::ApiError;
use super::{Api, envoy, explain, metrics, openapi, read, resources};
use crate::diagnostics::suggestion;

/// Nothing that is sent here is large.
const BODY_BYTES: usize = 64 * 1024;

pub(super) struct Route {
    pub path: &'static str,
    pub method: &'static str,
    /// Served on the loopback port too, and without the `/v1`.
    pub public: bool,
    pub summary: &'static str,
    pub parameters: &'static [Parameter],
    pub answers: &'static [(u16, &'static str)],
    /// Media type of a good answer.
    pub media: &'static str,
    handler: fn() -> MethodRouter<Api>,
}

pub(super) struct Parameter {
    pub name: &'static str,
    pub required: bool,
    /// From 1 on.
    pub is_number: bool,
    pub doc: &'static str,
}

const JSON: &str = "application/json";

const fn parameter(name: &'static str, required: bool, doc: &'static str) -> Parameter {
    Parameter {
        name,
        required,
        is_number: false,
        doc,
    }
}

const GATEWAY: Parameter = parameter(
    "gateway",
    false,
    "The gateway's name. Needed where the agent has several.",
);

pub(super) const ROUTES: &[Route] = &[
    Route {
        path: "/v1/ready",
        method: "get",
        public: true,
        summary: "Whether the agent is of use: everything published, every supervised Envoy serving, and not every listener of this node known to be closed. `degraded` names listeners that are closed beside open ones.",
        parameters: &[],
        answers: &[(200, "Ready."), (503, "Not ready; `missing` says what for.")],
        media: JSON,
        handler: || get(read::ready),
    },
    Route {
        path: "/v1/metrics",
        method: "get",
        public: true,
        summary: "Metrics, see metrics.md.",
        parameters: &[],
        answers: &[(200, "OpenMetrics text.")],
        media: "application/openmetrics-text",
        handler: || get(metrics::get),
    },
    Route {
        path: "/v1/status",
        method: "get",
        public: false,
        summary: "Everything in effect: gateways, documents, objects, services, certificates, Envoys, sources, diagnostics.",
        parameters: &[Parameter {
            is_number: true,
            ..parameter(
                "limit",
                false,
                "The most rows of each list, 1 or more; gateways are never cut. A list that is cut has those in trouble first; `counts` counts all. Left out: everything.",
            )
        }],
        answers: &[
            (200, "The status."),
            (400, "The limit is not a whole number from 1 on."),
        ],
        media: JSON,
        handler: || get(read::status),
    },
    Route {
        path: "/v1/documents",
        method: "get",
        public: false,
        summary: "The documents' texts with their versions, and whether each is in service.",
        parameters: &[parameter(
            "document",
            false,
            "Only this one: a file's path or a KV key.",
        )],
        answers: &[(200, "A list."), (404, "There is no such document.")],
        media: JSON,
        handler: || get(read::documents),
    },
    Route {
        path: "/v1/permissions",
        method: "get",
        public: false,
        summary: "What documents from KV may reach here, as `plan` and `apply` check it beforehand.",
        parameters: &[],
        answers: &[(
            200,
            "The agent's `kv_documents` bounds, where it listens itself, and the gateways whose certificates it judges.",
        )],
        media: JSON,
        handler: || get(read::permissions),
    },
    Route {
        path: "/v1/diagnostics",
        method: "get",
        public: false,
        summary: "All problems there are now.",
        parameters: &[],
        answers: &[(200, "A list.")],
        media: JSON,
        handler: || get(read::diagnostics),
    },
    Route {
        path: "/v1/explain",
        method: "get",
        public: false,
        summary: "Which listener, host, rule, policies and endpoints a request takes, and why other rules do not match.",
        parameters: &[
            parameter("url", true, "The request's URL. Without a scheme: http."),
            parameter("method", false, "GET by default."),
            parameter("header", false, "`name:value`; may be given several times."),
            parameter("gateway", false, "Only this gateway. Left out: all."),
        ],
        answers: &[
            (200, "One explanation for each gateway."),
            (400, "The query cannot be understood."),
        ],
        media: JSON,
        handler: || get(explain::explain_get),
    },
    Route {
        path: "/v1/explain",
        method: "post",
        public: false,
        summary: "The same, asked with a JSON body: `method`, `url`, `headers` (a list of pairs), `gateway`.",
        parameters: &[],
        answers: &[
            (200, "One explanation for each gateway."),
            (400, "The query cannot be understood."),
        ],
        media: JSON,
        handler: || post(explain::explain_post),
    },
    Route {
        path: "/v1/resources",
        method: "get",
        public: false,
        summary: "What Envoys of a gateway are given, as protojson, without secrets.",
        parameters: &[
            GATEWAY,
            parameter(
                "kind",
                false,
                "cluster, endpoint, secret, listener, scoped_route or route.",
            ),
            parameter("name", false, "Only the resource of this name."),
        ],
        answers: &[
            (200, "Resources by kind."),
            (404, "The agent does not serve that gateway."),
        ],
        media: JSON,
        handler: || get(resources::get),
    },
    Route {
        path: "/v1/envoys",
        method: "get",
        public: false,
        summary: "Connected Envoys: who they are, what each acknowledged, refused or waits for.",
        parameters: &[],
        answers: &[(200, "A list.")],
        media: JSON,
        handler: || get(read::envoys),
    },
    Route {
        path: "/v1/envoy/config_dump",
        method: "get",
        public: false,
        summary: "The supervised Envoy's own dump of its configuration, secrets blanked.",
        parameters: &[GATEWAY],
        answers: &[
            (200, "Envoy's dump."),
            (409, "No Envoy is supervised."),
            (502, "Envoy does not answer."),
        ],
        media: JSON,
        handler: || get(envoy::config_dump),
    },
    Route {
        path: "/v1/envoy/restart",
        method: "post",
        public: false,
        summary: "Replaces the supervised Envoy without losing a request, and answers when the new one serves.",
        parameters: &[GATEWAY],
        answers: &[
            (200, "Restarted."),
            (409, "Not restarted; the message says why. The old one serves on."),
        ],
        media: JSON,
        handler: || post(envoy::restart),
    },
    Route {
        path: "/v1/refresh",
        method: "post",
        public: false,
        summary: "Asks the sources that are polled to look now.",
        parameters: &[],
        answers: &[(202, "They are looking.")],
        media: JSON,
        handler: || post(read::refresh),
    },
    Route {
        path: "/v1/openapi.json",
        method: "get",
        public: false,
        summary: "This API as an OpenAPI document.",
        parameters: &[],
        answers: &[(200, "OpenAPI 3.1.")],
        media: JSON,
        handler: || get(openapi::get),
    },
];

/// Everything, or what the loopback port may show.
pub fn router(api: Api, only_public: bool) -> Router {
    let mut router = Router::new();
    for route in ROUTES.iter().filter(|route| route.public || !only_public) {
        // A path with two methods stands twice in the table: the router joins them.
        router = router.route(route.path, (route.handler)());
        if let (true, Some(short)) = (route.public, route.path.strip_prefix("/v1")) {
            router = router.route(short, (route.handler)());
        }
    }
    router
        .fallback(move |uri: Uri| async move { unknown_path(&uri, only_public) })
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(api)
}

fn unknown_path(uri: &Uri, only_public: bool) -> ApiError {
    let known: Vec<&str> = ROUTES
        .iter()
        .filter(|route| route.public || !only_public)
        .map(|route| route.path)
        .collect();
    let error = ApiError::new(
        StatusCode::NOT_FOUND,
        format!("there is no {:?} here", uri.path()),
    );
    match suggestion(uri.path(), known.iter().copied()) {
        Some(near) => error.fix(format!("did you mean {near}?")),
        None if only_public => {
            error.fix("this port serves /ready and /metrics; everything else is on the unix socket")
        }
        None => error.fix("/v1/openapi.json lists what there is"),
    }
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let right: Vec<String> = ROUTES
        .iter()
        .filter(|route| route.path.ends_with(uri.path()))
        .map(|route| route.method.to_ascii_uppercase())
        .collect();
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} does not take {method}", uri.path()),
    )
    .fix(format!("use {}", right.join(" or ")))
}

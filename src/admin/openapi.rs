//! The API as an OpenAPI document, made from the table of routes.

use axum::response::Response;
use serde_json::{Map, Value, json};

use super::answer;
use super::routes::{ROUTES, Route};

pub(super) async fn get() -> Response {
    answer::json(&document())
}

pub(super) fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Portreeve agent",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Served on a unix socket (mode 0600); /ready and /metrics also on a loopback port, if set.",
            "license": { "name": "Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": { "Error": {
            "type": "object",
            "required": ["error"],
            "properties": { "error": {
                "type": "object",
                "required": ["message"],
                "properties": { "message": { "type": "string" }, "fix": { "type": "string" } },
            } },
        } } },
    })
}

fn operation(route: &Route) -> Value {
    let parameters: Vec<Value> = route
        .parameters
        .iter()
        .map(|parameter| {
            json!({
                "name": parameter.name,
                "in": "query",
                "required": parameter.required,
                "description": parameter.doc,
                "schema": match parameter.is_number {
                    true => json!({ "type": "integer", "minimum": 1 }),
                    false => json!({ "type": "string" }),
                },
            })
        })
        .collect();
    let answers: Map<String, Value> = route
        .answers
        .iter()
        .map(|(status, description)| {
            // 503 of /ready is an answer of the same shape.
            let is_error = *status >= 400 && *status != 503;
            let (media, schema) = match is_error {
                true => (
                    "application/json",
                    json!({ "$ref": "#/components/schemas/Error" }),
                ),
                false => (route.media, json!({})),
            };
            let mut content = Map::new();
            content.insert(media.to_owned(), json!({ "schema": schema }));
            (
                status.to_string(),
                json!({ "description": description, "content": content }),
            )
        })
        .collect();
    let mut operation = json!({
        "summary": route.summary,
        "operationId": format!("{}{}", route.method, route.path.replace(['/', '.'], "_")),
        "parameters": parameters,
        "responses": answers,
    });
    if route.method == "post" && route.path == "/v1/explain" {
        operation["requestBody"] = json!({
            "required": true,
            "content": { "application/json": { "schema": {
                "type": "object",
                "required": ["url"],
                "additionalProperties": false,
                "properties": {
                    "url": { "type": "string" },
                    "method": { "type": "string", "default": "GET" },
                    "headers": { "type": "array", "items": {
                        "type": "array", "items": { "type": "string" }, "minItems": 2, "maxItems": 2,
                    } },
                    "gateway": { "type": "string" },
                },
            } } },
        });
    }
    operation
}

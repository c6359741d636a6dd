//! A listener that accepts nothing, and keeps Envoy's one subscription to scoped routes open.
//!
//! All listeners that look their hosts up by scope share that subscription, and it ends with the last of them. Envoy before
//! 1.38 never starts another one (envoy#43392): a listener that came after Envoy's start would answer 404 for ever. With
//! this one it begins before the first listener and never ends.

use serde_json::{Value, json};

/// Also in Envoy's own lists and statistics. No listener of a document can have it: their names hold no slash.
const NAME: &str = "portreeve/scopes";

pub(super) fn scope_keeper() -> Value {
    let from_ads = json!({
        "ads": {},
        "resource_api_version": "V3",
        // All of this must be what the listeners say, or Envoy opens another subscription for them.
        "initial_fetch_timeout": "3s",
    });
    json!({
        "name": NAME,
        // An address must stand here; without a port of its own, nothing is opened at it.
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "bind_to_port": false,
        "filter_chains": [{
            "filters": [{
                "name": "http",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": NAME,
                    "scoped_routes": {
                        "name": NAME,
                        "scope_key_builder": {
                            "fragments": [{
                                "header_value_extractor": { "name": ":authority", "index": 0 },
                            }],
                        },
                        "rds_config_source": from_ads,
                        "scoped_rds": { "scoped_rds_config_source": from_ads },
                    },
                    "http_filters": [{
                        "name": "envoy.filters.http.router",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                        },
                    }],
                },
            }],
        }],
    })
}

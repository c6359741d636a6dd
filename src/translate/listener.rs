use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{TransportSocket, transport_socket};
use envoy_types::pb::envoy::config::listener::v3::listener::DrainType;
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter, listener_filter,
};
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, TlsParameters,
    common_tls_context::ValidationContextType, tls_parameters::TlsProtocol,
};
use prost::Message;

use super::cluster::ads;
use super::endpoint::socket_address;
use super::http_connection_manager::http_connection_manager;
use super::tcp_proxy::{clusters_of, tcp_proxy};
use crate::envoy::{Resource, ResourceKind, ResourceRef, any, duration, wrap_bool, wrap_u32};
use crate::ir::{self, Routing, Serves, Tls, TlsChain};

pub(super) fn listener_resource(listener: &ir::Listener) -> Resource {
    let mut needs: Vec<ResourceRef> = listener
        .tls
        .iter()
        .flat_map(|tls| {
            let clients = tls.clients.iter().map(|clients| &clients.secret);
            tls.chains.iter().map(|chain| &chain.secret).chain(clients)
        })
        .map(|secret| ResourceRef {
            kind: ResourceKind::Secret,
            name: secret.clone(),
        })
        .collect();
    match &listener.serves {
        Serves::Tcp(proxy) => needs.extend(clusters_of(proxy)),
        Serves::Http(http) if http.routing == Routing::Table => needs.push(ResourceRef {
            kind: ResourceKind::Route,
            name: listener.name.clone(),
        }),
        Serves::Http(_) => {}
    }
    needs.sort();
    let chains = listener.tls.iter().flat_map(|tls| &tls.chains);
    let certificates: Vec<Arc<str>> = chains.map(|chain| chain.secret.clone()).collect();
    Resource::new(
        ResourceKind::Listener,
        listener.name.clone(),
        &listener_message(listener).encode_to_vec(),
    )
    .needing(needs.into())
    .needing_one_of(certificates.into())
    .binding(format!("{}:{}", listener.address, listener.port).into())
    .from_documents(listener.origins.clone().into())
}

fn listener_message(listener: &ir::Listener) -> Listener {
    let filters = filters(listener);
    let (filter_chains, listener_filters) = match &listener.tls {
        None => (
            vec![FilterChain {
                name: match listener.serves {
                    Serves::Http(_) => "http".into(),
                    Serves::Tcp(_) => "tcp".into(),
                },
                filters,
                ..FilterChain::default()
            }],
            Vec::new(),
        ),
        Some(tls) => (
            tls.chains
                .iter()
                .map(|chain| tls_chain(chain, tls, alpn(&listener.serves), filters.clone()))
                .collect(),
            vec![tls_inspector()],
        ),
    };
    Listener {
        name: listener.name.to_string(),
        address: Some(socket_address(&listener.address.to_string(), listener.port)),
        filter_chains,
        listener_filters,
        // Envoy's edge guide: a slow client must not pin a megabyte.
        per_connection_buffer_limit_bytes: Some(wrap_u32(32 * 1024)),
        // Two Envoys of one host overlap during a planned restart.
        enable_reuse_port: Some(wrap_bool(true)),
        // Otherwise an Envoy whose health checks are to fail (see `envoy_process::stop`) closes each connection after one answer
        // at once, in place of more and more of them over the drain time.
        drain_type: DrainType::ModifyOnly.into(),
        // Listed by their real name even when the address is IPv6's "any".
        listener_filters_timeout: Some(duration(std::time::Duration::from_secs(5))),
        ..Listener::default()
    }
}

fn filters(listener: &ir::Listener) -> Vec<Filter> {
    let (name, config) = match &listener.serves {
        Serves::Http(http) => (
            "envoy.filters.network.http_connection_manager",
            any(&http_connection_manager(listener, http)),
        ),
        Serves::Tcp(proxy) => (
            "envoy.filters.network.tcp_proxy",
            any(&tcp_proxy(&listener.name, proxy, listener.idle_timeout)),
        ),
    };
    vec![Filter {
        name: name.into(),
        config_type: Some(filter::ConfigType::TypedConfig(config)),
    }]
}

/// What is spoken inside of a tcp listener's TLS is between client and backend.
fn alpn(serves: &Serves) -> Vec<String> {
    match serves {
        Serves::Http(_) => vec!["h2".into(), "http/1.1".into()],
        Serves::Tcp(_) => Vec::new(),
    }
}

/// A handshake whose SNI no chain names finds no chain and is refused.
fn tls_chain(chain: &TlsChain, tls: &Tls, alpn_protocols: Vec<String>, filters: Vec<Filter>) -> FilterChain {
    let context = DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_params: Some(TlsParameters {
                tls_minimum_protocol_version: if &*tls.min_version == "1.3" {
                    TlsProtocol::TlSv13
                } else {
                    TlsProtocol::TlSv12
                }
                .into(),
                tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
                ..TlsParameters::default()
            }),
            tls_certificate_sds_secret_configs: vec![SdsSecretConfig {
                name: chain.secret.to_string(),
                sds_config: Some(ads()),
            }],
            alpn_protocols,
            validation_context_type: tls.clients.as_ref().map(|clients| {
                ValidationContextType::ValidationContextSdsSecretConfig(SdsSecretConfig {
                    name: clients.secret.to_string(),
                    sds_config: Some(ads()),
                })
            }),
            ..CommonTlsContext::default()
        }),
        require_client_certificate: tls.clients.as_ref().map(|clients| wrap_bool(clients.require)),
        ..DownstreamTlsContext::default()
    };
    let mut server_names: Vec<Arc<str>> = chain.server_names.clone();
    server_names.sort();
    FilterChain {
        name: chain.secret.to_string(),
        filter_chain_match: Some(FilterChainMatch {
            server_names: server_names.iter().map(ToString::to_string).collect(),
            ..FilterChainMatch::default()
        }),
        filters,
        transport_socket: Some(TransportSocket {
            name: "envoy.transport_sockets.tls".into(),
            config_type: Some(transport_socket::ConfigType::TypedConfig(any(&context))),
        }),
        // A client that opens a connection and never shakes hands.
        transport_socket_connect_timeout: Some(duration(std::time::Duration::from_secs(10))),
        ..FilterChain::default()
    }
}

fn tls_inspector() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.tls_inspector".into(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(any(
            &TlsInspector::default(),
        ))),
        ..ListenerFilter::default()
    }
}

//! Real Envoy resources, as small as they can be.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, DataSource, SocketAddress, TransportSocket, address,
    config_source::ConfigSourceSpecifier, data_source::Specifier, socket_address::PortSpecifier, transport_socket,
};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints};
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::scoped_route_configuration::{Key, key};
use envoy_types::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, ScopedRouteConfiguration, VirtualHost,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::scoped_routes::scope_key_builder::fragment_builder::header_value_extractor::ExtractType;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::scoped_routes::scope_key_builder::fragment_builder::{HeaderValueExtractor, Type};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::scoped_routes::scope_key_builder::FragmentBuilder;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::scoped_routes::{
    ConfigSpecifier, ScopeKeyBuilder,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, ScopedRds, ScopedRoutes, http_filter,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, Secret, TlsCertificate,
    UpstreamTlsContext, common_tls_context::ValidationContextType, secret,
};
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatcher;
use envoy_types::pb::google::protobuf::{Any, BoolValue, UInt32Value};
use portreeve::envoy::{Resource, ResourceKind, ResourceRef};
use prost::Message;

pub fn eds_cluster(name: &str, connect_timeout: Duration) -> Arc<Resource> {
    let cluster = Cluster {
        name: name.to_owned(),
        connect_timeout: Some(envoy_types::pb::google::protobuf::Duration {
            seconds: connect_timeout.as_secs().try_into().unwrap(),
            nanos: 0,
        }),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ads()),
            service_name: String::new(),
        }),
        ..Default::default()
    };
    resource(ResourceKind::Cluster, name, &cluster, &[])
}

/// A cluster with TLS whose client certificate comes by SDS.
pub fn tls_cluster(name: &str, secret: &str) -> Arc<Resource> {
    let context = UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_sds_secret_configs: vec![SdsSecretConfig {
                name: secret.to_owned(),
                sds_config: Some(ads()),
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    let socket = TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(any(
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            &context,
        ))),
    };
    let cluster = Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ads()),
            service_name: String::new(),
        }),
        transport_socket: Some(socket),
        ..Default::default()
    };
    let needs = [ResourceRef {
        kind: ResourceKind::Secret,
        name: secret.into(),
    }];
    Arc::new(
        Resource::new(ResourceKind::Cluster, name.into(), &cluster.encode_to_vec()).needing(needs.into()),
    )
}

pub fn secret(name: &str, certificate: &str, private_key: &str) -> Arc<Resource> {
    let pair = TlsCertificate {
        certificate_chain: inline(certificate),
        private_key: inline(private_key),
        ..Default::default()
    };
    let secret = Secret {
        name: name.to_owned(),
        r#type: Some(secret::Type::TlsCertificate(pair)),
    };
    resource(ResourceKind::Secret, name, &secret, &[])
}

pub fn endpoints(name: &str, port: u16) -> Arc<Resource> {
    resource(
        ResourceKind::Endpoint,
        name,
        &assignment(name, &[("127.0.0.1", port)]),
        &[],
    )
}

/// A listener whose routes come by RDS, under its own name.
pub fn rds_listener(name: &str, port: u16) -> Arc<Resource> {
    let rds = Rds {
        config_source: Some(ads()),
        route_config_name: name.to_owned(),
    };
    listener(name, port, RouteSpecifier::Rds(rds))
}

/// A listener that looks up its routes by host.
pub fn scoped_listener(name: &str, port: u16) -> Arc<Resource> {
    let by_host = HeaderValueExtractor {
        name: ":authority".to_owned(),
        element_separator: String::new(),
        extract_type: Some(ExtractType::Index(0)),
    };
    let fragment = FragmentBuilder {
        r#type: Some(Type::HeaderValueExtractor(by_host)),
    };
    let scoped = ScopedRoutes {
        name: name.to_owned(),
        scope_key_builder: Some(ScopeKeyBuilder {
            fragments: vec![fragment],
        }),
        rds_config_source: Some(ads()),
        config_specifier: Some(ConfigSpecifier::ScopedRds(ScopedRds {
            scoped_rds_config_source: Some(ads()),
            srds_resources_locator: String::new(),
        })),
    };
    listener(name, port, RouteSpecifier::ScopedRoutes(scoped))
}

pub fn routes(name: &str, cluster: &str) -> Arc<Resource> {
    resource(ResourceKind::Route, name, &table(name, "*", cluster), &[cluster])
}

pub fn bad_routes(name: &str, cluster: &str) -> Arc<Resource> {
    let mut table = table(name, "*", cluster);
    table.virtual_hosts[0].routes[0].r#match = Some(RouteMatch {
        path_specifier: Some(PathSpecifier::SafeRegex(RegexMatcher {
            regex: "(".to_owned(),
            ..Default::default()
        })),
        ..Default::default()
    });
    resource(ResourceKind::Route, name, &table, &[cluster])
}

/// The routes of one host, inline.
pub fn scope(host: &str, cluster: &str) -> Arc<Resource> {
    let fragment = key::Fragment {
        r#type: Some(key::fragment::Type::StringKey(host.to_owned())),
    };
    let scope = ScopedRouteConfiguration {
        name: host.to_owned(),
        key: Some(Key {
            fragments: vec![fragment],
        }),
        route_configuration: Some(table(host, host, cluster)),
        ..Default::default()
    };
    resource(ResourceKind::ScopedRoute, host, &scope, &[cluster])
}

/// Passes no validation: it has no name inside and no address.
pub fn bad_listener(name: &str) -> Arc<Resource> {
    resource(
        ResourceKind::Listener,
        name,
        &Listener {
            name: name.to_owned(),
            ..Default::default()
        },
        &[],
    )
}

/// Violates a constraint of the message, so Envoy refuses the response without saying which resource it was.
pub fn nameless_cluster(name: &str) -> Arc<Resource> {
    resource(ResourceKind::Cluster, name, &Cluster::default(), &[])
}

/// Shows this certificate, and asks clients for one of the authorities that come as the secret `clients`.
pub fn asking_listener(name: &str, port: u16, certificate: &str, private_key: &str) -> Arc<Resource> {
    let pair = TlsCertificate {
        certificate_chain: inline(certificate),
        private_key: inline(private_key),
        ..Default::default()
    };
    let mut source = ads();
    source.initial_fetch_timeout = Some(envoy_types::pb::google::protobuf::Duration { seconds: 1, nanos: 0 });
    let clients = SdsSecretConfig {
        name: "clients".to_owned(),
        sds_config: Some(source),
    };
    let context = DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificates: vec![pair],
            validation_context_type: Some(ValidationContextType::ValidationContextSdsSecretConfig(clients)),
            ..Default::default()
        }),
        require_client_certificate: Some(BoolValue { value: true }),
        ..Default::default()
    };
    let socket = TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(any(
            "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            &context,
        ))),
    };
    let rds = Rds {
        config_source: Some(ads()),
        route_config_name: name.to_owned(),
    };
    listener_with(name, port, RouteSpecifier::Rds(rds), Some(socket))
}

/// Authorities, as a validation context.
pub fn authorities(name: &str, certificate: &str) -> Arc<Resource> {
    let context = CertificateValidationContext {
        trusted_ca: inline(certificate),
        ..Default::default()
    };
    let secret = Secret {
        name: name.to_owned(),
        r#type: Some(secret::Type::ValidationContext(context)),
    };
    resource(ResourceKind::Secret, name, &secret, &[])
}

fn inline(text: &str) -> Option<DataSource> {
    Some(DataSource {
        specifier: Some(Specifier::InlineString(text.to_owned())),
        ..Default::default()
    })
}

fn listener(name: &str, port: u16, routes: RouteSpecifier) -> Arc<Resource> {
    listener_with(name, port, routes, None)
}

fn listener_with(
    name: &str,
    port: u16,
    routes: RouteSpecifier,
    transport_socket: Option<TransportSocket>,
) -> Arc<Resource> {
    let manager = HttpConnectionManager {
        stat_prefix: name.to_owned(),
        route_specifier: Some(routes),
        http_filters: vec![HttpFilter {
            name: "envoy.filters.http.router".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(any(
                "envoy.extensions.filters.http.router.v3.Router",
                &Router::default(),
            ))),
            ..Default::default()
        }],
        ..Default::default()
    };
    let manager = any(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &manager,
    );
    let filter = Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(ConfigType::TypedConfig(manager)),
    };
    let listener = Listener {
        name: name.to_owned(),
        address: Some(socket_address("127.0.0.1", port)),
        filter_chains: vec![FilterChain {
            filters: vec![filter],
            transport_socket,
            ..Default::default()
        }],
        ..Default::default()
    };
    resource(ResourceKind::Listener, name, &listener, &[])
}

fn table(name: &str, host: &str, cluster: &str) -> RouteConfiguration {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    };
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..Default::default()
        }),
        action: Some(Action::Route(action)),
        ..Default::default()
    };
    let virtual_host = VirtualHost {
        name: host.to_owned(),
        domains: vec![host.to_owned()],
        routes: vec![route],
        ..Default::default()
    };
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![virtual_host],
        ..Default::default()
    }
}

fn assignment(name: &str, addresses: &[(&str, u16)]) -> ClusterLoadAssignment {
    let endpoints = addresses.iter().map(|(host, port)| LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(socket_address(host, *port)),
            ..Default::default()
        })),
        load_balancing_weight: Some(UInt32Value { value: 1 }),
        ..Default::default()
    });
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: endpoints.collect(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn socket_address(host: &str, port: u16) -> Address {
    let address = SocketAddress {
        address: host.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(port.into())),
        ..Default::default()
    };
    Address {
        address: Some(address::Address::SocketAddress(address)),
    }
}

fn ads() -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        resource_api_version: ApiVersion::V3.into(),
        ..Default::default()
    }
}

fn any(name: &str, message: &impl Message) -> Any {
    Any {
        type_url: format!("type.googleapis.com/{name}"),
        value: message.encode_to_vec(),
    }
}

fn resource(kind: ResourceKind, name: &str, message: &impl Message, clusters: &[&str]) -> Arc<Resource> {
    let needs = clusters.iter().map(|name| ResourceRef {
        kind: ResourceKind::Cluster,
        name: (*name).into(),
    });
    Arc::new(Resource::new(kind, name.into(), &message.encode_to_vec()).needing(needs.collect()))
}

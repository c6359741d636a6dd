//! How a listener treats HTTP: safe defaults for the edge, and only the filters that the documents ask for, but for those of
//! hosts' spelling (ADR 2) and of security policies (ADR 15).
//!
//! The values follow Envoy's own guide for edge proxies; where we differ the comment says why.

use envoy_types::pb::envoy::config::accesslog::v3::{AccessLogFilter, ResponseFlagFilter, access_log_filter};
use envoy_types::pb::envoy::config::common::mutation_rules::v3::{HeaderMutation, header_mutation};
use envoy_types::pb::envoy::config::core::v3::{
    CidrRange, DataSource, Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions, TypedExtensionConfig, data_source,
    http_protocol_options::HeadersWithUnderscoresAction,
};
use envoy_types::pb::envoy::config::route::v3::HeaderMatcher;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::extensions::common::matching::v3::ExtensionWithMatcher;
use envoy_types::pb::envoy::extensions::filters::http::composite::v3::{Composite, ExecuteFilterAction};
use envoy_types::pb::envoy::extensions::filters::http::header_mutation::v3::{
    HeaderMutation as HeaderMutationFilter, Mutations,
};
use envoy_types::pb::envoy::extensions::filters::http::health_check::v3::HealthCheck;
use envoy_types::pb::envoy::extensions::filters::http::lua::v3::Lua;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, ForwardClientCertDetails, InternalAddressConfig, PathWithEscapedSlashesAction, RouteSpecifier,
    ServerHeaderTransformation, SetCurrentClientCertDetails, StripPortMode, UpgradeConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::scoped_routes::scope_key_builder::{
    FragmentBuilder, fragment_builder,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::scoped_routes::{
    ConfigSpecifier, ScopeKeyBuilder,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, LocalReplyConfig, Rds, ResponseMapper, ScopedRds, ScopedRoutes, http_filter,
};
use envoy_types::pb::envoy::extensions::http::early_header_mutation::header_mutation::v3::HeaderMutation as EarlyHeaderMutation;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatcher as EnvoyRegexMatcher, HttpRequestHeaderMatchInput, StringMatcher as EnvoyStringMatcher};
use envoy_types::pb::xds::core::v3::TypedExtensionConfig as XdsExtension;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_list::{FieldMatcher, Predicate, predicate};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::{MatcherList, MatcherType, OnMatch, on_match};
use envoy_types::pb::xds::r#type::matcher::v3::{Matcher, RegexMatcher, StringMatcher, regex_matcher, string_matcher};

use super::cluster::ads;
use super::route::{REASON_HEADER, set_header};
use crate::envoy::{any, duration, wrap_bool, wrap_u32};
use crate::features::FEATURES;
use crate::ir::{Http, Listener, Routing};

/// Which listener a request came in by: scopes of all listeners share one namespace at Envoy. Never leaves the gateway.
pub(super) const LISTENER_HEADER: &str = "x-portreeve-listener";
/// The filter that looks again for the scope of a host written with capitals.
pub(super) const LOWER_CASE_HOST: &str = "portreeve.lower_case_host";
/// The name the client asked for in its TLS handshake. Never leaves the gateway.
pub(super) const SNI_HEADER: &str = "x-portreeve-sni";

pub(super) fn http_connection_manager(listener: &Listener, http: &Http) -> HttpConnectionManager {
    HttpConnectionManager {
        codec_type: CodecType::Auto.into(),
        stat_prefix: stat_prefix(&listener.name),
        route_specifier: Some(match http.routing {
            Routing::Scoped => RouteSpecifier::ScopedRoutes(scoped_routes(listener)),
            Routing::Table => RouteSpecifier::Rds(Rds {
                config_source: Some(ads()),
                route_config_name: listener.name.to_string(),
            }),
        }),
        http_filters: filters(http),
        early_header_mutation_extensions: vec![marks(listener, http)],
        // The client's address is the connection's, or what the trusted proxies appended.
        use_remote_address: Some(wrap_bool(true)),
        xff_num_trusted_hops: http.trusted_proxies,
        internal_address_config: Some(nobody_internal()),
        forward_client_cert_details: match forwards(listener) {
            true => ForwardClientCertDetails::SanitizeSet.into(),
            false => ForwardClientCertDetails::Sanitize.into(),
        },
        set_current_client_cert_details: forwards(listener).then(|| SetCurrentClientCertDetails {
            subject: Some(wrap_bool(true)),
            uri: true,
            dns: true,
            ..SetCurrentClientCertDetails::default()
        }),
        normalize_path: Some(wrap_bool(true)),
        merge_slashes: true,
        // %2F and %5C: the client is sent to the path it means, so that no rule can be slipped past.
        path_with_escaped_slashes_action: PathWithEscapedSlashesAction::UnescapeAndRedirect.into(),
        strip_port_mode: Some(StripPortMode::StripAnyHostPort(true)),
        strip_trailing_host_dot: true,
        common_http_protocol_options: Some(HttpProtocolOptions {
            idle_timeout: Some(duration(listener.idle_timeout)),
            max_headers_count: Some(wrap_u32(100)),
            // x_user and x-user are one header to many servers: a client must not be able to set the one we remove.
            headers_with_underscores_action: HeadersWithUnderscoresAction::RejectRequest.into(),
            ..HttpProtocolOptions::default()
        }),
        http_protocol_options: Some(Http1ProtocolOptions {
            // Clients may offer it with any request (RFC 2817; Apache's HttpClient does), and servers that do not know it go
            // on without. Envoy would answer 403.
            ignore_http_11_upgrade: vec![EnvoyStringMatcher {
                match_pattern: Some(MatchPattern::Prefix("TLS/".into())),
                ..EnvoyStringMatcher::default()
            }],
            ..Http1ProtocolOptions::default()
        }),
        http2_protocol_options: Some(Http2ProtocolOptions {
            max_concurrent_streams: Some(wrap_u32(100)),
            // Envoy's edge guide has 64 KiB: an upload got that much in each round trip, 0.8 MB/s over 80 ms. What is sent and
            // not taken yet is bounded by the connection's.
            initial_stream_window_size: Some(wrap_u32(256 * 1024)),
            initial_connection_window_size: Some(wrap_u32(1024 * 1024)),
            ..Http2ProtocolOptions::default()
        }),
        stream_idle_timeout: Some(duration(http.stream_idle_timeout)),
        request_headers_timeout: Some(duration(http.request_headers_timeout)),
        max_request_headers_kb: Some(wrap_u32(http.max_request_headers_kb)),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".into(),
            ..UpgradeConfig::default()
        }],
        // The upstream's own name, or none: what software the edge runs is nobody's business.
        server_header_transformation: ServerHeaderTransformation::PassThrough.into(),
        local_reply_config: Some(reasons()),
        ..HttpConnectionManager::default()
    }
}

/// Envoy's own admin API counts as `admin`, and what begins so is not made (see the bootstrap): neither seen in metrics, nor
/// waited for in a drain. No other listener can have such a name: they hold no slash.
fn stat_prefix(listener: &str) -> String {
    if listener == "admin" || listener.starts_with("admin.") {
        format!("portreeve/{listener}")
    } else {
        listener.to_owned()
    }
}

/// Backends are told whose certificate a client showed. What it says itself is removed in any case.
fn forwards(listener: &Listener) -> bool {
    let clients = listener.tls.as_ref().and_then(|tls| tls.clients.as_ref());
    clients.is_some_and(|clients| clients.forward)
}

/// Nobody is "internal": a client with a private address would be believed its x-envoy-* headers. An empty list means
/// Envoy's default (RFC 1918), so it holds an address that no client can have.
fn nobody_internal() -> InternalAddressConfig {
    let broadcast = CidrRange {
        address_prefix: "255.255.255.255".into(),
        prefix_len: Some(wrap_u32(32)),
    };
    InternalAddressConfig {
        cidr_ranges: vec![broadcast],
        ..InternalAddressConfig::default()
    }
}

fn filters(http: &Http) -> Vec<HttpFilter> {
    let mut staged: Vec<_> = FEATURES
        .iter()
        .filter(|feature| http.features.contains(&feature.name()))
        .filter_map(|feature| feature.http_filter())
        .collect();
    // The stage decides, then the name: the same chain for the same set of features.
    staged.sort_by(|one, other| (one.stage, &one.filter.name).cmp(&(other.stage, &other.filter.name)));
    let lower_case = (http.routing == Routing::Scoped).then(lower_case_host);
    let router = HttpFilter {
        name: "envoy.filters.http.router".into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(&Router {
            // Neither clients nor upstreams learn of us from x-envoy-* headers.
            suppress_envoy_headers: true,
            ..Router::default()
        }))),
        ..HttpFilter::default()
    };
    // Before all others: whoever asks it is not a client.
    let health_check = http.health_check_path.as_deref().map(health_check);
    health_check
        .into_iter()
        .flatten()
        .chain(lower_case)
        .chain(staged.into_iter().map(|staged| staged.filter))
        .chain([router])
        .collect()
}

/// Answers with 503 once Envoy is told that it is to leave (see `envoy_process::stop`). Its headers stay with us: an Envoy in front
/// would take the one that it puts on every answer then for an order.
fn health_check(path: &str) -> [HttpFilter; 2] {
    let is_asked = HeaderMatcher {
        name: ":path".to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(EnvoyStringMatcher {
            match_pattern: Some(MatchPattern::SafeRegex(EnvoyRegexMatcher {
                regex: format!("{}([?].*)?", regex::escape(path)),
                ..EnvoyRegexMatcher::default()
            })),
            ..EnvoyStringMatcher::default()
        })),
        ..HeaderMatcher::default()
    };
    let answers = HttpFilter {
        name: "envoy.filters.http.health_check".into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(&HealthCheck {
            pass_through_mode: Some(wrap_bool(false)),
            headers: vec![is_asked],
            ..HealthCheck::default()
        }))),
        ..HttpFilter::default()
    };
    let told = [
        "x-envoy-upstream-healthchecked-cluster",
        "x-envoy-immediate-health-check-fail",
    ];
    let remove = |name: &str| HeaderMutation {
        action: Some(header_mutation::Action::Remove(name.to_owned())),
    };
    // Answers pass the filters in reverse: it is the last to see them.
    let says_no_more = HttpFilter {
        name: "envoy.filters.http.header_mutation".into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(&HeaderMutationFilter {
            mutations: Some(Mutations {
                response_mutations: told.map(remove).into(),
                ..Mutations::default()
            }),
            ..HeaderMutationFilter::default()
        }))),
        ..HttpFilter::default()
    };
    [says_no_more, answers]
}

/// What Envoy itself leaves of `x-envoy-*`: backends may take it for our word.
const SAID_BY_ENVOY: &[&str] = &[
    "x-envoy-attempt-count",
    "x-envoy-is-timeout-retry",
    "x-envoy-original-host",
];

/// What a proxy in front says of the request that it was sent. Where there is none, it is the client who says it, and many a
/// framework makes links and sets cookies by it. X-Forwarded-For and -Proto are Envoy's own to set.
const SAID_BY_PROXIES: &[&str] = &[
    "forwarded",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-server",
    "x-real-ip",
];

/// Sets our marks before a route is chosen, over whatever a client sent, and takes away what is not a client's to say.
fn marks(listener: &Listener, http: &Http) -> TypedExtensionConfig {
    let mut headers = vec![set_header(LISTENER_HEADER, &listener.name)];
    if listener.tls.is_some() {
        headers.push(set_header(SNI_HEADER, "%REQUESTED_SERVER_NAME%"));
    }
    let by_proxies = match http.trusted_proxies {
        0 => SAID_BY_PROXIES,
        _ => &[],
    };
    let removed = SAID_BY_ENVOY.iter().chain(by_proxies);
    let mutations = headers
        .into_iter()
        .map(header_mutation::Action::Append)
        .chain(removed.map(|name| header_mutation::Action::Remove((*name).to_owned())))
        .map(|action| HeaderMutation { action: Some(action) })
        .collect();
    TypedExtensionConfig {
        name: "envoy.http.early_header_mutation.header_mutation".into(),
        typed_config: Some(any(&EarlyHeaderMutation { mutations })),
    }
}

fn scoped_routes(listener: &Listener) -> ScopedRoutes {
    let header = |name: &str| FragmentBuilder {
        r#type: Some(fragment_builder::Type::HeaderValueExtractor(
            fragment_builder::HeaderValueExtractor {
                name: name.to_owned(),
                extract_type: Some(fragment_builder::header_value_extractor::ExtractType::Index(0)),
                ..fragment_builder::HeaderValueExtractor::default()
            },
        )),
    };
    ScopedRoutes {
        name: listener.name.to_string(),
        scope_key_builder: Some(ScopeKeyBuilder {
            fragments: vec![header(LISTENER_HEADER), header(":authority")],
        }),
        rds_config_source: Some(ads()),
        config_specifier: Some(ConfigSpecifier::ScopedRds(ScopedRds {
            scoped_rds_config_source: Some(ads()),
            ..ScopedRds::default()
        })),
    }
}

/// Scope keys are case-sensitive while hosts are not. Every scope's table switches the filter off: it is there for
/// requests that found no route, and of these only one whose host has a capital letter runs the script.
fn lower_case_host() -> HttpFilter {
    const SCRIPT: &str = "function envoy_on_request(handle)\n\
        \x20 local headers = handle:headers()\n\
        \x20 headers:replace(\":authority\", string.lower(headers:get(\":authority\")))\n\
        \x20 handle:clearRouteCache()\n\
        end\n";
    let lua = Lua {
        default_source_code: Some(DataSource {
            specifier: Some(data_source::Specifier::InlineString(SCRIPT.to_owned())),
            ..DataSource::default()
        }),
        ..Lua::default()
    };
    let action = ExecuteFilterAction {
        typed_config: Some(TypedExtensionConfig {
            name: "portreeve.lower_case_host.lua".into(),
            typed_config: Some(any(&lua)),
        }),
        ..ExecuteFilterAction::default()
    };
    let input = HttpRequestHeaderMatchInput {
        header_name: ":authority".into(),
    };
    let predicate = Predicate {
        match_type: Some(predicate::MatchType::SinglePredicate(
            predicate::SinglePredicate {
                input: Some(extension("authority", any(&input))),
                matcher: Some(predicate::single_predicate::Matcher::ValueMatch(StringMatcher {
                    match_pattern: Some(string_matcher::MatchPattern::SafeRegex(RegexMatcher {
                        regex: ".*[A-Z].*".into(),
                        engine_type: Some(regex_matcher::EngineType::GoogleRe2(regex_matcher::GoogleRe2 {})),
                    })),
                    ..StringMatcher::default()
                })),
            },
        )),
    };
    let matcher = Matcher {
        matcher_type: Some(MatcherType::MatcherList(MatcherList {
            matchers: vec![FieldMatcher {
                predicate: Some(predicate),
                on_match: Some(OnMatch {
                    on_match: Some(on_match::OnMatch::Action(extension("lower-case", any(&action)))),
                    ..OnMatch::default()
                }),
            }],
        })),
        on_no_match: None,
    };
    let composite = ExtensionWithMatcher {
        xds_matcher: Some(matcher),
        extension_config: Some(TypedExtensionConfig {
            name: "composite".into(),
            typed_config: Some(any(&Composite::default())),
        }),
        ..ExtensionWithMatcher::default()
    };
    HttpFilter {
        name: LOWER_CASE_HOST.into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(&composite))),
        ..HttpFilter::default()
    }
}

fn extension(name: &str, config: envoy_types::pb::google::protobuf::Any) -> XdsExtension {
    XdsExtension {
        name: name.to_owned(),
        typed_config: Some(config),
    }
}

/// What Envoy's own 503s and 504s say in the reason header.
fn reasons() -> LocalReplyConfig {
    let reason = |flags: &[&str], reason: &str| ResponseMapper {
        filter: Some(AccessLogFilter {
            filter_specifier: Some(access_log_filter::FilterSpecifier::ResponseFlagFilter(
                ResponseFlagFilter {
                    flags: flags.iter().map(ToString::to_string).collect(),
                },
            )),
        }),
        headers_to_add: vec![set_header(REASON_HEADER, reason)],
        ..ResponseMapper::default()
    };
    LocalReplyConfig {
        mappers: vec![
            reason(&["UH"], "no-healthy-instance"),
            reason(&["NC"], "no-cluster"),
            reason(&["UO"], "circuit-breaker-open"),
            reason(&["UF"], "upstream-connection-failed"),
            reason(&["UC", "UR"], "upstream-connection-closed"),
            reason(&["UT", "SI"], "timeout"),
            // Stands beside one of these, where tries have run out: the last try's end says more.
            reason(&["URX"], "upstream-connection-failed"),
            reason(&["NR"], "no-route"),
        ],
        ..LocalReplyConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_called_admin_does_not_count_as_envoys_own_api() {
        assert_eq!(stat_prefix("web"), "web");
        assert_eq!(stat_prefix("administration"), "administration");
        assert_eq!(stat_prefix("admin"), "portreeve/admin");
        assert_eq!(stat_prefix("admin.eu"), "portreeve/admin.eu");
    }
}

use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::envoy::config::rbac::v3::{
    Permission, Policy, Principal, Rbac as Rules, permission, principal, rbac,
};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::{Rbac, RbacPerRoute};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter,
};
use envoy_types::pb::google::protobuf::Any;

use super::ClientIpPolicy;
use crate::envoy::{any, wrap_u32};

pub(super) const FILTER_NAME: &str = "portreeve.client_ip";

/// Without rules of its own the filter lets everything pass: routes bring theirs.
pub(super) fn filter() -> HttpFilter {
    HttpFilter {
        name: FILTER_NAME.into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any(&Rbac::default()))),
        ..HttpFilter::default()
    }
}

pub(super) fn per_route(policy: &ClientIpPolicy) -> Any {
    let allowed = principal::Identifier::OrIds(principal::Set {
        ids: policy.allow.iter().map(|range| remote_ip(range)).collect(),
    });
    let mut all = vec![Principal {
        identifier: Some(if policy.allow.is_empty() {
            nobody()
        } else {
            allowed
        }),
    }];
    all.extend(policy.deny.iter().map(|range| Principal {
        identifier: Some(principal::Identifier::NotId(Box::new(remote_ip(range)))),
    }));
    let policy = Policy {
        permissions: vec![Permission {
            rule: Some(permission::Rule::Any(true)),
        }],
        principals: vec![Principal {
            identifier: Some(principal::Identifier::AndIds(principal::Set { ids: all })),
        }],
        ..Policy::default()
    };
    // One entry: the map's order cannot differ between processes.
    let rules = Rules {
        action: rbac::Action::Allow.into(),
        policies: HashMap::from([("client_ip".to_owned(), policy)]),
        ..Rules::default()
    };
    any(&RbacPerRoute {
        rbac: Some(Rbac {
            rules: Some(rules),
            ..Rbac::default()
        }),
    })
}

fn nobody() -> principal::Identifier {
    principal::Identifier::NotId(Box::new(Principal {
        identifier: Some(principal::Identifier::Any(true)),
    }))
}

/// `remote_ip` is the client's address after trusted proxies; `direct_remote_ip` would be the proxy's.
fn remote_ip(range: &str) -> Principal {
    let (address, length) = range
        .split_once('/')
        .unwrap_or((range, if range.contains(':') { "128" } else { "32" }));
    let range = CidrRange {
        address_prefix: address.to_owned(),
        prefix_len: length.parse().ok().map(wrap_u32),
    };
    Principal {
        identifier: Some(principal::Identifier::RemoteIp(range)),
    }
}

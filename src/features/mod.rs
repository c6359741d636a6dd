//! One folder per policy: its block, its value, and what it puts into Envoy's configuration.
//!
//! A feature holds no state and knows no other feature. Adding one: a folder, a line in [`FEATURES`], an example in
//! `hcl-examples/features/` (it is the golden input) and a page in `docs/policies/`.

mod client_ip;
mod header_edits;
mod header_operators;
mod request_headers;
mod response_headers;
mod retry;
mod timeout;

pub use header_edits::{additions as header_additions, removals as header_removals};
pub use retry::{IDEMPOTENT_METHODS, RouteRetry, default_retry, mesh_retry};

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::HeaderValueOption;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::google::protobuf::Any;

use crate::diagnostics::Diagnostic;
use crate::hcl::{AttributeSchema, BlockSchema, Reader, Type};
use crate::model::{PolicySetting, PolicyValue};

/// Every policy there is.
pub static FEATURES: &[&dyn AnyFeature] = &[
    &timeout::Timeout,
    &retry::Retry,
    &request_headers::RequestHeaders,
    &response_headers::ResponseHeaders,
    &client_ip::ClientIp,
];

/// Where in the filter chain a filter stands; the order is the order here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Who may speak to us at all, before anything costs work.
    Access,
}

#[derive(Clone, Debug)]
pub struct StagedFilter {
    pub stage: Stage,
    /// Listed once per listener, with nothing to do; a route that has the policy brings its own configuration.
    pub filter: HttpFilter,
}

/// How a policy is written.
pub enum Form {
    Block(BlockSchema),
    Attribute(AttributeSchema),
}

/// What features contribute to one Envoy route.
#[derive(Clone, Debug, Default)]
pub struct RouteParts {
    pub timeout: Option<std::time::Duration>,
    pub idle_timeout: Option<std::time::Duration>,
    pub retry: Option<RouteRetry>,
    pub request_headers_to_add: Vec<HeaderValueOption>,
    pub request_headers_to_remove: Vec<String>,
    pub response_headers_to_add: Vec<HeaderValueOption>,
    pub response_headers_to_remove: Vec<String>,
    /// By filter name; ordered, because these bytes must be the same in every process.
    pub filter_config: BTreeMap<&'static str, Any>,
}

/// A policy, typed.
pub trait Feature: Sync + 'static {
    type Policy: std::fmt::Debug + PartialEq + serde::Serialize + Send + Sync + 'static;

    const NAME: &'static str;
    /// One that cannot be built closes its routes (503) instead of leaving them open.
    const SECURITY: bool = false;
    /// May stand on a backend: it touches nothing of a route but headers, which Envoy knows per destination too.
    const ON_BACKEND: bool = false;

    fn form(&self) -> Form;
    /// Reads the checked block, or for an attribute the body it stands in.
    fn decode(&self, reader: &Reader<'_>, problems: &mut Vec<Diagnostic>) -> Option<Self::Policy>;
    fn apply(&self, policy: &Self::Policy, route: &mut RouteParts);
    fn http_filter(&self) -> Option<StagedFilter> {
        None
    }
}

/// A policy as lists of them see it.
pub trait AnyFeature: Sync {
    fn name(&self) -> &'static str;
    fn is_security(&self) -> bool;
    fn on_backend(&self) -> bool;
    fn form(&self) -> Form;
    fn decode(&self, reader: &Reader<'_>, problems: &mut Vec<Diagnostic>) -> Option<PolicySetting>;
    fn apply(&self, policy: &dyn PolicyValue, route: &mut RouteParts);
    fn http_filter(&self) -> Option<StagedFilter>;
}

impl<F: Feature> AnyFeature for F {
    fn name(&self) -> &'static str {
        F::NAME
    }

    fn is_security(&self) -> bool {
        F::SECURITY
    }

    fn on_backend(&self) -> bool {
        F::ON_BACKEND
    }

    fn form(&self) -> Form {
        match Feature::form(self) {
            Form::Block(schema) => Form::Block(schema.attribute(
                "disabled",
                Type::Bool,
                Some("false"),
                "true",
                "Switches off a policy of this kind that a wider scope set.",
            )),
            attribute => attribute,
        }
    }

    fn decode(&self, reader: &Reader<'_>, problems: &mut Vec<Diagnostic>) -> Option<PolicySetting> {
        let inner = match Feature::form(self) {
            Form::Block(_) => {
                let block = reader.child(F::NAME)?;
                if block.boolean("disabled") == Some(true) {
                    return Some(PolicySetting::Disabled);
                }
                block
            }
            Form::Attribute(attribute) if reader.has(attribute.name) => *reader,
            Form::Attribute(_) => return None,
        };
        Feature::decode(self, &inner, problems).map(|policy| PolicySetting::Set(Arc::new(policy)))
    }

    fn apply(&self, policy: &dyn PolicyValue, route: &mut RouteParts) {
        if let Some(policy) = policy.as_any().downcast_ref::<F::Policy>() {
            Feature::apply(self, policy, route);
        }
    }

    fn http_filter(&self) -> Option<StagedFilter> {
        Feature::http_filter(self)
    }
}

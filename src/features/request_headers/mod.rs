//! `request_headers`: headers set, added and removed on the way to the upstream.

use super::header_edits;
use super::{Feature, Form, RouteParts};
use crate::diagnostics::Diagnostic;
use crate::hcl::Reader;
use crate::model::http::HeaderEdits;

pub struct RequestHeaders;

impl Feature for RequestHeaders {
    type Policy = HeaderEdits;

    const NAME: &'static str = "request_headers";
    const ON_BACKEND: bool = true;

    fn form(&self) -> Form {
        Form::Block(header_edits::schema(
            Self::NAME,
            "Edits the headers of the request before it goes to the upstream.",
        ))
    }

    fn decode(&self, reader: &Reader<'_>, problems: &mut Vec<Diagnostic>) -> Option<HeaderEdits> {
        Some(header_edits::decode(reader, problems))
    }

    fn apply(&self, policy: &HeaderEdits, route: &mut RouteParts) {
        route
            .request_headers_to_add
            .extend(header_edits::additions(policy));
        route
            .request_headers_to_remove
            .extend(header_edits::removals(policy));
    }
}

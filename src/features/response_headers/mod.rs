//! `response_headers`: headers set, added and removed on the way back to the client.

use super::header_edits;
use super::{Feature, Form, RouteParts};
use crate::diagnostics::Diagnostic;
use crate::hcl::Reader;
use crate::model::http::HeaderEdits;

pub struct ResponseHeaders;

impl Feature for ResponseHeaders {
    type Policy = HeaderEdits;

    const NAME: &'static str = "response_headers";
    const ON_BACKEND: bool = true;

    fn form(&self) -> Form {
        Form::Block(header_edits::schema(
            Self::NAME,
            "Edits the headers of the response before it goes to the client.",
        ))
    }

    fn decode(&self, reader: &Reader<'_>, problems: &mut Vec<Diagnostic>) -> Option<HeaderEdits> {
        Some(header_edits::decode(reader, problems))
    }

    fn apply(&self, policy: &HeaderEdits, route: &mut RouteParts) {
        route
            .response_headers_to_add
            .extend(header_edits::additions(policy));
        route
            .response_headers_to_remove
            .extend(header_edits::removals(policy));
    }
}

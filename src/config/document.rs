use std::sync::Arc;

use super::breadth;
use super::doubts;
use super::objects::{Certificate, NotAllowed, Object, Policy, Scope};
use super::permissions::Permissions;
use super::schema::document_schema;
use crate::diagnostics::{Code, Diagnostic, Severity, first_problems};
use crate::features::FEATURES;
use crate::hcl::{self, Limits, Reader, Source};
use crate::model::{Document, Policies};

/// A document that holds together on its own: syntax, schema and what it may reach. Certificates that it may not use are
/// among its objects, without saying where they are: whether that matters depends on who shows them.
#[derive(Clone, Debug)]
pub struct ParsedDocument {
    pub document: Document,
    pub objects: Vec<Object>,
    /// What it says without effect. It is in service all the same.
    pub warnings: Vec<Diagnostic>,
}

impl ParsedDocument {
    /// What it says of certificates that it may not use.
    pub fn not_allowed(&self) -> Vec<Diagnostic> {
        let problems = self.refused().map(|(_, refused)| refused.problems.iter());
        problems.flatten().cloned().collect()
    }

    /// Some of its certificates are not there for this agent.
    pub fn lacks_certificates(&self) -> bool {
        self.refused().next().is_some()
    }

    pub(super) fn certificates(&self) -> impl Iterator<Item = &Certificate> {
        self.objects.iter().filter_map(|object| match object {
            Object::Certificate(certificate) => Some(&**certificate),
            _ => None,
        })
    }

    /// The certificates that it may not use.
    pub(super) fn refused(&self) -> impl Iterator<Item = (&Certificate, &NotAllowed)> {
        self.certificates()
            .filter_map(|certificate| Some((certificate, certificate.query.as_ref().err()?)))
    }
}

/// All or nothing: a document with one error is not taken in part, its last good version stays.
pub fn parse_document(
    document: &Document,
    permissions: &Permissions,
    limits: &Limits,
) -> Result<ParsedDocument, Vec<Diagnostic>> {
    read_document(document, permissions, limits).map_err(first_problems)
}

fn read_document(
    document: &Document,
    permissions: &Permissions,
    limits: &Limits,
) -> Result<ParsedDocument, Vec<Diagnostic>> {
    if let Some(service) = document.id.service() {
        return match &permissions.exposure {
            Some(exposure) => exposure.parse(service, document),
            None => Err(Vec::new()),
        };
    }
    let source = Source::new(document.id.clone(), document.text.clone());
    let schema = document_schema();
    let body = hcl::parse(&source, schema, limits)?;
    let problems = hcl::check(&source, &body, schema);
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut decoder = Decoder {
        source: &source,
        permissions,
        problems: Vec::new(),
    };
    let reader = Reader::document(&source, &body);
    let mut objects = Vec::new();
    for (block, reader) in reader.children("gateway") {
        let problems = decoder.problems.len();
        let gateway = super::gateway::decode(&mut decoder, block, &reader);
        if !permissions.judges(&gateway.name) {
            // Nothing of it is opened or read here.
            decoder.take_refusals(problems);
        }
        objects.push(Object::Gateway(Arc::new(gateway)));
    }
    for (block, reader) in reader.children("certificate") {
        objects.push(Object::Certificate(Arc::new(super::certificate::decode(
            &mut decoder,
            block,
            &reader,
        ))));
    }
    for (block, reader) in reader.children("http_route") {
        objects.push(Object::HttpRoute(Arc::new(super::route::decode(
            &mut decoder,
            block,
            &reader,
        ))));
    }
    for (block, reader) in reader.children("tcp_route") {
        objects.push(Object::TcpRoute(Arc::new(super::tcp_route::decode(
            &mut decoder,
            block,
            &reader,
        ))));
    }
    for (block, reader) in reader.children("upstream") {
        objects.push(Object::Upstream(Arc::new(super::upstream::decode(
            &mut decoder,
            block,
            &reader,
        ))));
    }
    for (block, reader) in reader.children("policy") {
        let policies = decoder.policies(&reader);
        decoder.doubt_tries(&reader, None);
        objects.push(Object::Policy(Arc::new(Policy {
            name: block.label(0).into(),
            origin: reader.origin(),
            policies,
            bytes: reader.body.bytes(),
        })));
    }
    if objects.is_empty() {
        decoder.problems.push(doubts::empty(reader.origin()));
    }
    let claims = breadth::count_claims(&mut objects);
    if let Some(problem) = breadth::too_many_claims(claims) {
        let widest = reader
            .children("http_route")
            .next()
            .or_else(|| reader.children("tcp_route").next());
        let at = widest.map_or_else(|| reader.origin(), |(_, reader)| reader.origin());
        decoder.problems.push(problem.at(at));
    }
    let is_error = |problem: &Diagnostic| problem.severity == Severity::Error;
    if decoder.problems.iter().any(is_error) {
        return Err(decoder.problems);
    }
    Ok(ParsedDocument {
        document: document.clone(),
        objects,
        warnings: first_problems(decoder.problems),
    })
}

/// What decoding one document needs at hand.
pub(super) struct Decoder<'a> {
    pub source: &'a Source,
    pub permissions: &'a Permissions,
    pub problems: Vec<Diagnostic>,
}

impl Decoder<'_> {
    /// What was found since then that is not allowed.
    pub fn take_refusals(&mut self, since: usize) -> Vec<Diagnostic> {
        let found = self.problems.drain(since..);
        let (refusals, others) = found.partition(|problem| problem.code == Code::NotAllowed);
        self.problems.extend::<Vec<_>>(others);
        refusals
    }

    pub fn scope(&mut self, reader: &Reader<'_>) -> Scope {
        let bundles = reader.strings_with_origin("policies");
        if let Some((_, origin)) = bundles.get(breadth::BUNDLES) {
            self.problems.push(breadth::too_many_bundles(origin));
        }
        Scope {
            bundles,
            policies: self.policies(reader),
        }
    }

    pub fn policies(&mut self, reader: &Reader<'_>) -> Policies {
        let mut policies = Policies::default();
        for feature in FEATURES {
            if let Some(setting) = feature.decode(reader, &mut self.problems) {
                policies.set(feature.name(), setting);
            }
        }
        policies
    }
}

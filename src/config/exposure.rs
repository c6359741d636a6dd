//! What a service in the catalog says of itself, as a document of its own: `portreeve.host=shop.example.com` in a tag.
//!
//! In: a service's instances, whatever their health, and what the settings let services claim. Out: a text with one
//! line per tag, and the route that it means. As a text it goes the way of every other document: its last good version
//! stays, diagnostics name the line, Envoy's refusals are traced to it.
//!
//! Instances that say different things live side by side during a rolling deploy. Each kind is a paragraph of the
//! text, the oldest first, and all of them are served: the union, until the last instance of a kind is gone.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::breadth::{self, BUNDLES};
use super::document::ParsedDocument;
use super::objects::{
    Backend, BackendTarget, HttpRoute, Object, Rule, RuleAction, Scope, Upstream, UpstreamSource,
};
use crate::diagnostics::{Code, Diagnostic, Problems, suggestion};
use crate::hcl::{Type, check_text, parse_hostname};
use crate::model::http::{PathMatch, PathRewrite, RequestMatch, Rewrite, UpstreamOptions, UpstreamProtocol};
use crate::model::{
    Document, DocumentId, Instance, OptIn, Origin, Policies, ServiceQuery, Span, covers, is_true,
};

/// The name under which the catalog is a source of documents.
pub const CATALOG: &str = "catalog services";

/// What services may claim by their tags and metadata: who may register is not trusted with every hostname.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposure {
    pub opt_in: OptIn,
    /// Those a service may choose from; all of them when it does not.
    pub gateways: Vec<Arc<str>>,
    /// Empty: every listener.
    pub listeners: Vec<Arc<str>>,
    /// `{service}.apps.example.com`, for a service that names no host.
    pub default_host: Option<Arc<str>>,
    /// `*.apps.example.com`: all below; `*`: all.
    pub hostnames: Vec<Arc<str>>,
    /// Names, with `*` for any text.
    pub services: Vec<Arc<str>>,
    /// Tags that an instance must have, all of them.
    pub required_tags: Vec<Arc<str>>,
    /// Bundles that hold on every exposed service, under its own.
    pub policies: Vec<Arc<str>>,
}

impl Exposure {
    /// None: no instance asks.
    pub fn document(&self, service: &str, instances: &[Instance]) -> Option<Document> {
        let mut kinds: BTreeMap<Vec<String>, u64> = BTreeMap::new();
        for instance in instances.iter().filter(|instance| self.asks(instance)) {
            let oldest = kinds.entry(self.lines(instance)).or_insert(instance.created);
            *oldest = instance.created.min(*oldest);
        }
        let mut kinds: Vec<(u64, Vec<String>)> = kinds.into_iter().map(|(lines, at)| (at, lines)).collect();
        kinds.sort();
        // One more than may be: that it is one too many is to be told.
        kinds.truncate(KINDS + 1);
        let order = kinds.first()?.0;
        let paragraphs: Vec<String> = kinds.iter().map(|(_, lines)| lines.join("\n")).collect();
        Some(Document {
            id: DocumentId::of_service(service),
            text: (paragraphs.join("\n\n") + "\n").into(),
            order,
            version: order,
        })
    }

    fn asks(&self, instance: &Instance) -> bool {
        let says = |key: &str| {
            let value = instance.meta.get(&*format!("{}{key}", self.opt_in.prefix));
            value.is_some_and(|value| is_true(value))
        };
        instance.tags.iter().any(|tag| self.opt_in.enables(tag)) || says("-enable") || says(".enable")
    }

    /// What of an instance is meant for us. Required tags stand among the lines, so that their lack can be told.
    fn lines(&self, instance: &Instance) -> Vec<String> {
        let ours = |text: &str| {
            let rest = text.strip_prefix(&*self.opt_in.prefix);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-']))
        };
        let tags = instance
            .tags
            .iter()
            .filter(|tag| ours(tag) || self.required_tags.contains(tag))
            .map(|tag| printable(tag));
        let meta = instance
            .meta
            .iter()
            .filter(|(key, _)| ours(key))
            .map(|(key, value)| printable(&format!("{META}{key}={value}")));
        let mut lines: Vec<String> = tags.chain(meta).take(LINES).collect();
        lines.sort();
        lines.dedup();
        lines
    }

    pub(super) fn parse(
        &self,
        service: &str,
        document: &Document,
    ) -> Result<ParsedDocument, Vec<Diagnostic>> {
        let mut reader = Text {
            exposure: self,
            service,
            document: &document.id,
            problems: Problems::default(),
        };
        if document.text.len() > TEXT_BYTES {
            return Err(vec![reader.too_long(&document.text)]);
        }
        let kinds = reader.kinds(&document.text);
        let mut objects = reader.objects(&kinds);
        let claims = breadth::count_claims(&mut objects);
        if let (Some(problem), Some(kind)) = (breadth::too_many_claims(claims), kinds.first()) {
            let problem = match &kind.first {
                Some(first) => problem.at(first.clone()),
                None => problem,
            };
            reader.problems.push(problem);
        }
        if reader.problems.is_empty() {
            Ok(ParsedDocument {
                document: document.clone(),
                objects,
                warnings: Vec::new(),
            })
        } else {
            Err(reader.problems.told())
        }
    }
}

/// One kind of instance: what its lines say.
#[derive(Default)]
struct Kind {
    first: Option<Origin>,
    hosts: Vec<(Arc<str>, Origin)>,
    path: Option<Arc<str>>,
    strip_path: bool,
    protocol: Option<UpstreamProtocol>,
    port: Option<Arc<str>>,
    policies: Vec<(Arc<str>, Origin)>,
    gateways: Vec<(Arc<str>, Origin)>,
    listeners: Vec<(Arc<str>, Origin)>,
    tags: Vec<Arc<str>>,
}

struct Text<'a> {
    exposure: &'a Exposure,
    service: &'a str,
    document: &'a DocumentId,
    problems: Problems,
}

impl Text<'_> {
    fn too_long(&self, text: &str) -> Diagnostic {
        let origin = Origin {
            document: self.document.clone(),
            span: Span {
                start: 0,
                end: text.find('\n').unwrap_or(text.len()),
            },
            line: 1,
            column: 1,
        };
        let message = format!(
            "what the instances say of how to expose the service is {} KiB long, and {} the most",
            text.len().div_ceil(1024),
            TEXT_BYTES / 1024
        );
        self.problem(Code::TooLarge, message, &origin)
            .because("everybody who may register a service can write here")
            .fix("write an http_route for a service with so many hosts")
    }

    fn kinds(&mut self, text: &str) -> Vec<Kind> {
        let mut kinds = vec![Kind::default()];
        let mut start = 0;
        for (number, line) in (1..).zip(text.split('\n')) {
            let origin = Origin {
                document: self.document.clone(),
                span: Span {
                    start,
                    end: start + line.len(),
                },
                line: number,
                column: 1,
            };
            start += line.len() + 1;
            if line.is_empty() {
                kinds.push(Kind::default());
            } else if let Some(kind) = kinds.last_mut() {
                self.line(line, origin, kind);
            }
        }
        kinds.retain(|kind| kind.first.is_some());
        if kinds.len() > KINDS {
            let origin = kinds.get(KINDS).and_then(|kind| kind.first.clone());
            self.problems.extend(origin.map(|origin| {
                Diagnostic::error(
                    Code::TooLarge,
                    format!("the service's instances say more than {KINDS} different things"),
                )
                .at(origin)
                .because(format!("at most {KINDS} may live side by side"))
            }));
        }
        kinds
    }

    fn line(&mut self, line: &str, origin: Origin, kind: &mut Kind) {
        kind.first.get_or_insert_with(|| origin.clone());
        let text = line.strip_prefix(META).unwrap_or(line);
        let Some(rest) = text.strip_prefix(&*self.exposure.opt_in.prefix) else {
            kind.tags.push(line.into());
            return;
        };
        let Some(setting) = rest.strip_prefix(['.', '-']) else {
            // The bare tag.
            return;
        };
        let (key, value) = setting.split_once('=').unwrap_or((setting, "true"));
        let list =
            |value: &str| -> Vec<Arc<str>> { value.split(',').map(|item| item.trim().into()).collect() };
        let mut wrong = None;
        let mut names = |into: &mut Vec<(Arc<str>, Origin)>| {
            for name in list(value) {
                match check_text(&Type::Name, &name) {
                    Ok(()) if into.iter().any(|(known, _)| *known == name) => {}
                    Ok(()) if into.len() == NAMES => wrong = Some(format!("more than {NAMES} names")),
                    Ok(()) => into.push((name, origin.clone())),
                    Err(why) => wrong = Some(why),
                }
            }
        };
        // Metadata keys have no dots and mostly no underscores: `portreeve-strip-path`.
        match key.replace('-', "_").as_str() {
            "enable" => {}
            "host" => {
                for host in list(value) {
                    match self.host(&host) {
                        Ok(host) => kind.hosts.push((host, origin.clone())),
                        Err((code, why, fix)) => {
                            let mut problem = self.problem(code, why, &origin);
                            problem.fix = Some(fix);
                            self.problems.push(problem);
                        }
                    }
                }
            }
            "path" => match check_text(&Type::Path, value) {
                Ok(()) if kind.path.is_none() => kind.path = Some(normal_prefix(value)),
                Ok(()) => wrong = Some("a second path: one per service".to_owned()),
                Err(why) => wrong = Some(why),
            },
            "strip_path" => kind.strip_path = is_true(value),
            "protocol" => match value {
                "http" => kind.protocol = Some(UpstreamProtocol::Http1),
                "http2" | "grpc" => kind.protocol = Some(UpstreamProtocol::Http2),
                other => wrong = Some(format!("{other:?} is not a protocol: http, http2 or grpc")),
            },
            "port" => match check_text(&Type::Name, value) {
                Ok(()) => kind.port = Some(value.into()),
                Err(why) => wrong = Some(why),
            },
            "policies" => names(&mut kind.policies),
            "gateways" => names(&mut kind.gateways),
            "listeners" => names(&mut kind.listeners),
            other => {
                let near = suggestion(other, KEYS.iter().copied());
                let mut problem =
                    self.problem(Code::UnknownKey, format!("unknown setting {other:?}"), &origin);
                problem.fix = Some(near.map_or_else(
                    || format!("settings are {}", KEYS.join(", ")),
                    |near| format!("did you mean {near:?}?"),
                ));
                self.problems.push(problem);
            }
        }
        if let Some(why) = wrong {
            let problem = self.problem(Code::InvalidValue, why, &origin);
            self.problems.push(problem);
        }
        let foreign = kind
            .gateways
            .iter()
            .find(|(name, at)| *at == origin && !self.exposure.gateways.contains(name));
        if let Some((name, _)) = foreign {
            let why = format!("services may not choose the gateway {name:?}");
            let problem = self.problem(Code::NotAllowed, why, &origin).fix(format!(
                "gateways of the agent's catalog settings: {}",
                self.exposure.gateways.join(", ")
            ));
            self.problems.push(problem);
        }
    }

    fn host(&self, text: &str) -> Result<Arc<str>, (Code, String, String)> {
        let host = parse_hostname(text).map_err(|why| {
            let fix = "name one host, or several between commas".to_owned();
            (Code::InvalidValue, why, fix)
        })?;
        if host.contains('*') {
            let why = format!("{host:?}: a service may not claim every host below a name");
            let fix = "name hosts, or write an http_route for the wildcard".to_owned();
            return Err((Code::NotAllowed, why, fix));
        }
        if !self
            .exposure
            .hostnames
            .iter()
            .any(|allowed| holds(allowed, &host))
        {
            let why = format!("services may not claim the host {host:?}");
            let fix = format!(
                "add it to `catalog {{ hostnames = [...] }}` of the agent's settings; allowed now: {}",
                self.exposure.hostnames.join(", ")
            );
            return Err((Code::NotAllowed, why, fix));
        }
        Ok(host.into())
    }

    fn problem(&self, code: Code, message: impl Into<String>, origin: &Origin) -> Diagnostic {
        Diagnostic::error(code, message)
            .at(origin.clone())
            .about("service", self.service)
    }

    /// The routes of all kinds; what an older kind claims already is left out of a younger one.
    fn objects(&mut self, kinds: &[Kind]) -> Vec<Object> {
        let Some(origin) = kinds.first().and_then(|kind| kind.first.clone()) else {
            return Vec::new();
        };
        if let Err((code, why, fix)) = self.admitted(kinds) {
            let problem = self.problem(code, why, &origin).fix(fix);
            self.problems.push(problem);
            return Vec::new();
        }
        let name = |number: usize| match number {
            0 => format!("catalog/{}", self.service),
            _ => format!("catalog/{}#{}", self.service, number + 1),
        };
        let target = self.target(kinds);
        let mut objects = Vec::new();
        let mut claimed: HashSet<(Arc<str>, Arc<str>)> = HashSet::new();
        for (number, kind) in kinds.iter().enumerate() {
            let hosts = match self.hosts(kind) {
                Ok(hosts) => hosts,
                Err(why) => {
                    let at = kind.first.as_ref().unwrap_or(&origin);
                    let problem = self.problem(Code::MissingKey, why, at).fix(format!(
                        "tag it with {}.host=<host>, or set `catalog {{ default_host }}`",
                        self.exposure.opt_in.prefix
                    ));
                    self.problems.push(problem);
                    continue;
                }
            };
            let path: Arc<str> = kind.path.clone().unwrap_or_else(|| "/".into());
            let mut new: Vec<(Arc<str>, Origin)> = hosts;
            new.retain(|(host, _)| !claimed.contains(&(host.clone(), path.clone())));
            let Some((_, at)) = new.first().cloned() else {
                continue;
            };
            claimed.extend(new.iter().map(|(host, _)| (host.clone(), path.clone())));
            let mut hostnames: Vec<Arc<str>> = new.into_iter().map(|(host, _)| host).collect();
            hostnames.sort();
            hostnames.dedup();
            let chosen = |own: &[(Arc<str>, Origin)], default: &[Arc<str>]| match own {
                [] => default.iter().map(|name| (name.clone(), at.clone())).collect(),
                own => own.to_vec(),
            };
            let bundles = self
                .exposure
                .policies
                .iter()
                .map(|name| (name.clone(), at.clone()));
            let gateways: Vec<_> = chosen(&kind.gateways, &self.exposure.gateways);
            objects.push(Object::HttpRoute(Arc::new(HttpRoute {
                name: name(number).into(),
                origin: at.clone(),
                claims_of_document: gateways.len().saturating_mul(hostnames.len()),
                gateways,
                listeners: chosen(&kind.listeners, &self.exposure.listeners),
                hostnames,
                rules: vec![Rule {
                    name: "all".into(),
                    origin: at.clone(),
                    matches: vec![RequestMatch {
                        path: PathMatch::Prefix(path),
                        ..RequestMatch::any()
                    }],
                    rewrite: kind.strip_path.then(|| Rewrite {
                        path: Some(PathRewrite::Prefix("/".into())),
                        hostname: None,
                    }),
                    action: RuleAction::Forward(vec![Backend {
                        target: target.clone(),
                        weight: 1,
                        policies: Policies::default(),
                        origin: at.clone(),
                    }]),
                    scope: Scope::default(),
                }],
                scope: Scope {
                    bundles: bundles.chain(kind.policies.iter().cloned()).collect(),
                    ..Scope::default()
                },
            })));
        }
        if let BackendTarget::Upstream(upstream) = target {
            objects.push(self.upstream(upstream, kinds, origin));
        }
        objects
    }

    fn admitted(&self, kinds: &[Kind]) -> Result<(), (Code, String, String)> {
        let exposure = self.exposure;
        if let Err(why) = check_text(&Type::Name, self.service) {
            let fix = "register it under a name of letters, digits, '.', '_' and '-'".to_owned();
            return Err((Code::InvalidValue, why, fix));
        }
        if !exposure
            .services
            .iter()
            .any(|pattern| covers(pattern, self.service))
        {
            let why = format!("the service {:?} may not be exposed", self.service);
            let fix = format!(
                "add it to `catalog {{ services = [...] }}` of the agent's settings; allowed now: {}",
                exposure.services.join(", ")
            );
            return Err((Code::NotAllowed, why, fix));
        }
        let lacks = |kind: &Kind| {
            exposure
                .required_tags
                .iter()
                .find(|tag| !kind.tags.contains(tag))
                .cloned()
        };
        if let Some(tag) = kinds.iter().find_map(lacks) {
            let why = format!("an instance of {:?} has not the tag {tag:?}", self.service);
            let fix = "tag it, or take the tag out of `catalog { required_tags }` of the agent's settings"
                .to_owned();
            return Err((Code::NotAllowed, why, fix));
        }
        Ok(())
    }

    fn hosts(&self, kind: &Kind) -> Result<Vec<(Arc<str>, Origin)>, String> {
        if !kind.hosts.is_empty() {
            return Ok(kind.hosts.clone());
        }
        let missing = || format!("the service {:?} names no usable host", self.service);
        let (Some(template), Some(origin)) = (&self.exposure.default_host, &kind.first) else {
            return Err(missing());
        };
        let host = template.replace("{service}", &self.service.replace('_', "-"));
        match self.host(&host) {
            Ok(host) => Ok(vec![(host, origin.clone())]),
            Err((_, why, _)) => Err(format!("{}: {why}", missing())),
        }
    }

    /// The oldest kind decides: instances of all kinds are one destination.
    fn target(&self, kinds: &[Kind]) -> BackendTarget {
        let plain = kinds.first().is_none_or(|kind| {
            kind.port.is_none() && kind.protocol.is_none_or(|p| p == UpstreamProtocol::Http1)
        });
        if plain {
            BackendTarget::Consul(self.service.into())
        } else {
            BackendTarget::Upstream(format!("catalog/{}", self.service).into())
        }
    }

    fn upstream(&self, name: Arc<str>, kinds: &[Kind], origin: Origin) -> Object {
        let oldest = kinds.first();
        Object::Upstream(Arc::new(Upstream {
            name,
            origin,
            source: UpstreamSource::Consul {
                query: ServiceQuery::named(self.service),
                failover: Vec::new(),
                port: oldest.and_then(|kind| kind.port.clone()),
                only_passing: false,
            },
            options: UpstreamOptions {
                protocol: oldest
                    .and_then(|kind| kind.protocol)
                    .unwrap_or(UpstreamProtocol::Http1),
                ..UpstreamOptions::default()
            },
        }))
    }
}

fn holds(allowed: &str, host: &str) -> bool {
    match allowed.strip_prefix('*') {
        Some(below) => host.ends_with(below),
        None => allowed == host,
    }
}

fn normal_prefix(path: &str) -> Arc<str> {
    match path.trim_end_matches('/') {
        "" => "/".into(),
        trimmed => trimmed.into(),
    }
}

/// A line is a line whatever a tag holds.
fn printable(text: &str) -> String {
    let plain = |c: char| {
        if c.is_control() {
            c.escape_unicode().to_string()
        } else {
            c.to_string()
        }
    };
    text.chars().map(plain).collect()
}

const META: &str = "meta ";

const KEYS: &[&str] = &[
    "enable",
    "host",
    "path",
    "strip_path",
    "protocol",
    "port",
    "policies",
    "gateways",
    "listeners",
];

/// Of one instance.
const LINES: usize = 64;

/// In one list.
const NAMES: usize = BUNDLES;

/// Of all kinds together: a thousand hosts, and as many again during a deploy.
const TEXT_BYTES: usize = 128 * 1024;

/// A deploy has two, a canary on top of it three.
const KINDS: usize = 16;

#[cfg(test)]
#[path = "exposure_tests.rs"]
mod tests;

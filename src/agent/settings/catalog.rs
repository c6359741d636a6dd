//! `catalog {}`: which services may expose themselves by their tags and metadata, and what they may claim.

use std::sync::Arc;

use crate::config::Exposure;
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::{BlockSchema, Reader, Type, parse_hostname};
use crate::model::OptIn;

pub(super) fn schema() -> BlockSchema {
    BlockSchema::new(
        "catalog",
        &[],
        "Services in Consul's catalog that ask for it by a tag (`portreeve.enable=true`) or metadata are exposed. Who may register a service is not trusted with every hostname.",
    )
    .attribute(
        "hostnames",
        Type::List(&Type::Hostname),
        Some("below default_host"),
        "[\"*.apps.example.com\"]",
        "Hosts that services may claim; \"*.apps.example.com\" allows all below it, \"*\" all.",
    )
    .attribute(
        "default_host",
        Type::String,
        None,
        "\"{service}.apps.example.com\"",
        "The host of a service that names none. {service} is its name, with - for _.",
    )
    .attribute(
        "gateways",
        Type::List(&Type::Name),
        Some("the agent's gateways"),
        "[\"edge\"]",
        "Gateways that services may choose; a service that chooses none is on all of them.",
    )
    .attribute(
        "listeners",
        Type::List(&Type::Name),
        Some("[]"),
        "[\"web\"]",
        "Listeners for services that choose none. Empty: all.",
    )
    .attribute(
        "services",
        Type::List(&Type::String),
        Some("[\"*\"]"),
        "[\"shop-*\"]",
        "Names of services that may be exposed, with * for any text.",
    )
    .attribute(
        "required_tags",
        Type::List(&Type::String),
        Some("[]"),
        "[\"public\"]",
        "Tags that every exposed instance must have beside its own.",
    )
    .attribute(
        "policies",
        Type::List(&Type::Name),
        Some("[]"),
        "[\"standard\"]",
        "Bundles of policies that hold on every exposed service, under those it names itself.",
    )
    .attribute(
        "metadata_of",
        Type::List(&Type::String),
        Some("[]"),
        "[\"billing-*\"]",
        "Services whose metadata may ask (`portreeve-enable = true`) though no tag does. Each costs a watch: Consul lists tags, not metadata.",
    )
    .attribute(
        "tag_prefix",
        Type::Name,
        Some("\"portreeve\""),
        "\"edge\"",
        "What our tags and metadata keys begin with.",
    )
}

pub(super) fn read(reader: &Reader<'_>, gateways: &[Arc<str>]) -> Result<Exposure, Box<Diagnostic>> {
    let default_host = reader.string("default_host");
    let mut hostnames: Vec<Arc<str>> = reader
        .strings("hostnames")
        .iter()
        .filter_map(|name| parse_hostname(name).ok())
        .map(Arc::from)
        .collect();
    if let Some(template) = &default_host {
        let below = template.split_once('.').map(|(_, below)| format!("*.{below}"));
        let sample = template.replace("{service}", "x");
        let usable = parse_hostname(&sample).is_ok_and(|host| !host.contains('*'));
        let (true, Some(below)) = (usable, below) else {
            return Err(Box::new(
                Diagnostic::error(
                    Code::InvalidValue,
                    format!("{template:?} is not a template of hosts"),
                )
                .at(reader.origin_of("default_host"))
                .fix("write it like \"{service}.apps.example.com\""),
            ));
        };
        if hostnames.is_empty() {
            hostnames.push(below.to_ascii_lowercase().into());
        }
    }
    if hostnames.is_empty() {
        return Err(Box::new(
            Diagnostic::error(
                Code::MissingKey,
                "the catalog block does not say which hosts services may claim",
            )
            .at(reader.origin())
            .because("whoever may register a service would get every host")
            .fix("add `hostnames = [\"*.apps.example.com\"]`, or \"*\" if registrations are trusted"),
        ));
    }
    let or = |name: &str, default: &[Arc<str>]| match reader.strings(name) {
        list if list.is_empty() => default.to_vec(),
        list => list,
    };
    Ok(Exposure {
        opt_in: OptIn {
            prefix: reader.string("tag_prefix").unwrap_or_else(|| "portreeve".into()),
            metadata_of: reader.strings("metadata_of"),
        },
        gateways: or("gateways", gateways),
        listeners: reader.strings("listeners"),
        default_host,
        hostnames,
        services: or("services", &["*".into()]),
        required_tags: reader.strings("required_tags"),
        policies: reader.strings("policies"),
    })
}

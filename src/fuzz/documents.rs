//! What authors and operators write: documents, settings, single values.

use std::path::PathBuf;

use super::Target;
use crate::agent::settings::{Flags, Settings, is_settings, settings_problems};
use crate::config::{Permissions, parse_document};
use crate::diagnostics::{render, suggestion};
use crate::hcl::{Limits, Type, check_text, format, parse_duration, parse_hostname};
use crate::model::{Document, DocumentId};

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "documents_hcl",
        input: "documents in HCL: parsed, their problems shown, formatted",
        run: |input| with_text(input, hcl),
    },
    Target {
        name: "documents_json",
        input: "documents in JSON",
        run: |input| with_text(input, |text| document(&format!("{{{text}"))),
    },
    Target {
        name: "settings",
        input: "the agent's settings",
        run: settings,
    },
    Target {
        name: "values",
        input: "durations, host names, paths, addresses, ranges, regular expressions",
        run: |input| with_text(input, values),
    },
];

/// Whoever reads a text refuses what is none before.
pub(super) fn with_text(input: &[u8], run: impl Fn(&str)) {
    if let Ok(text) = std::str::from_utf8(input) {
        run(text);
    }
}

fn hcl(text: &str) {
    document(text);
    if let Ok(formatted) = format(text) {
        let again = format(&formatted);
        assert_eq!(again.as_deref().ok(), Some(&*formatted), "fmt is not stable");
    }
}

fn document(text: &str) {
    for id in [
        DocumentId::File("a.hcl".into()),
        DocumentId::Kv("p/config/a".into()),
    ] {
        let document = Document {
            id,
            text: text.into(),
            order: 1,
            version: 1,
        };
        let Err(problems) = parse_document(&document, &Permissions::default(), &Limits::default()) else {
            continue;
        };
        assert!(!problems.is_empty(), "refused without a reason");
        for problem in &problems {
            render(problem, Some(text), false);
            let origin = problem.origin.as_ref().expect("a problem without a place");
            let place = text.get(origin.span.start..origin.span.end);
            assert!(place.is_some(), "a place outside the text: {:?}", origin.span);
            assert!(origin.line >= 1 && origin.column >= 1);
        }
    }
}

fn settings(input: &[u8]) {
    with_text(input, |text| {
        is_settings("a.hcl".as_ref(), text);
        for problem in settings_problems("a.hcl", &text.into()).iter().flatten() {
            render(problem, Some(text), false);
        }
    });
    // Whole files are read by path alone.
    let path = std::env::temp_dir().join(format!("portreeve-fuzz-{}.hcl", std::process::id()));
    std::fs::write(&path, input).expect("a directory for temporary files");
    let flags = Flags {
        config: vec![PathBuf::from(&path)],
        ..Flags::default()
    };
    // Settings or problems.
    let _ = Settings::load(&flags, "host");
    let _ = std::fs::remove_file(&path);
}

fn values(text: &str) {
    let types = [
        Type::String,
        Type::Text,
        Type::Name,
        Type::Duration(0, u64::MAX),
        Type::Word(&["on", "off"]),
        Type::Hostname,
        Type::Host,
        Type::Path,
        Type::NewPath,
        Type::Regex,
        Type::HeaderName,
        Type::HeaderValue,
        Type::Method,
        Type::IpAddress,
        Type::Cidr,
        Type::HostPort,
        Type::SocketAddress,
        Type::AddressPattern,
    ];
    for ty in types {
        // Text or a reason.
        let _ = check_text(&ty, text);
    }
    let _ = parse_duration(text);
    if let Ok(host) = parse_hostname(text) {
        assert_eq!(parse_hostname(&host), Ok(host.clone()), "not stable");
    }
    suggestion(text, ["gateway", "http_route", "upstream"]);
}

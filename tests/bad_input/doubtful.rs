//! What is served as written, and hardly does what its author wants.

use portreeve::diagnostics::Code::*;

use super::case::{Case, Stays};
use super::cases::{gateway, shop};

pub fn all() -> Vec<Case> {
    vec![
        Case::new(
            "a bound of each try, with no other try after it",
            shop(
                "  rule \"pages\"",
                "  rule \"slow\" {\n    match { path_prefix = \"/slow\" }\n\n    retry {\n      on              = [\"connect-failure\"]\n      \
                 per_try_timeout = \"1s\"\n    }\n\n    backend \"consul\" \"orders\" {}\n  }\n\n  rule \"pages\"",
            ),
            &[NoEffect],
            Stays::Everything,
        ),
        no_effect(
            "a path_regex that says where it begins and not where it ends",
            beside("    match { path_regex = \"^/v1/\" }"),
        ),
        no_effect(
            "a path_regex that no path begins with",
            beside("    match { path_regex = \"v1/.*\" }"),
        ),
        no_effect(
            "a star at the end of a path_prefix",
            beside("    match { path_prefix = \"/v1/*\" }"),
        ),
        no_effect("a star in a path", beside("    match { path = \"/v1/*/items\" }")),
        no_effect(
            "a header's regular expression that says where it begins and not where it ends",
            beside(
                "    match {\n      path_prefix = \"/v1\"\n\n      header \"x-version\" { regex = \"^v1\" }\n    }",
            ),
        ),
        no_effect(
            "a bound of each try over that of the whole request",
            beside(
                "    timeout = \"2s\"\n\n    match { path_prefix = \"/v1\" }\n\n    retry { per_try_timeout = \"3s\" }",
            ),
        ),
        Case::new(
            "a command operator that Envoy does not have",
            beside("    match { path_prefix = \"/v1\" }\n\n    request_headers {\n      add = { \"x-client\" = \"%DOWNSTREAM_REMOTE_ADRESS%\" }\n    }"),
            &[InvalidValue],
            Stays::Everything,
        ),
        Case::new(
            "a path of Vault's API for a secret of KV",
            gateway(
                "  vault_pki {\n    mount       = \"pki\"\n    role        = \"edge\"\n    common_name = \"shop.example.com\"\n  }",
                "  vault_kv {\n    mount = \"secret\"\n    path  = \"secret/data/edge/www\"\n  }",
            ),
            &[NoEffect, HostNotCovered],
            Stays::Everything,
        )
        .in_document("gateway"),
        Case::new(
            "a host that no certificate of the listener names",
            shop(
                "[\"shop.example.com\"]",
                "[\"shop.example.com\", \"orders.example.com\"]",
            ),
            &[HostNotCovered],
            Stays::Everything,
        ),
    ]
}

fn no_effect(what: &'static str, text: impl Into<String>) -> Case {
    Case::new(what, text, &[NoEffect], Stays::Everything)
}

/// The shop with one rule more.
fn beside(inside: &str) -> String {
    shop(
        "  rule \"pages\"",
        &format!(
            "  rule \"v1\" {{\n{inside}\n\n    backend \"consul\" \"orders\" {{}}\n  }}\n\n  rule \"pages\""
        ),
    )
}

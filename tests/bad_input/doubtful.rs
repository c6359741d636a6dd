//! What is served as written, and hardly does what its author wants.

use portreeve::diagnostics::Code::*;

use super::case::{Case, Stays};
use super::cases::shop;

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

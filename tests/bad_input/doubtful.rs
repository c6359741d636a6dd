//! What is served as written, and hardly does what its author wants.

use portreeve::diagnostics::Code::*;

use super::case::{Case, Stays};
use super::cases::shop;

pub fn all() -> Vec<Case> {
    vec![
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

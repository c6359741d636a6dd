//! Command lines: understood, or refused with a text.

use std::ffi::OsString;

use super::{arguments, single_dash};
use crate::fuzz::Target;

pub(crate) const TARGETS: &[Target] = &[Target {
    name: "command_lines",
    input: "command lines, an argument a line",
    run: command_line,
}];

fn command_line(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let given = std::iter::once("portreeve")
        .chain(text.lines())
        .map(OsString::from);
    let given: Vec<OsString> = single_dash::to_double(given).collect();
    if let Err(error) = arguments::parse(given) {
        let shown = single_dash::shown(&error.render().to_string());
        assert!(!shown.trim().is_empty(), "refused without a reason");
    }
}

//! Slips on the command line, and what is said of them.

use crate::run::{portreeve, write};
use crate::support::scratch_directory;

const EDGE: &str = "gateway \"edge\" {\n  listener \"web\" { port = 8080 }\n}\n";

#[test]
fn a_command_that_stands_below_another_is_named_with_it() {
    let directory = scratch_directory("slips");
    for (given, meant) in [
        ("drian", "portreeve envoy drain"),
        ("drain", "portreeve envoy drain"),
        ("confg", "portreeve proxy config"),
    ] {
        let outcome = portreeve(directory.path(), &[given]);
        assert_eq!(outcome.code, 1, "{}", outcome.shown(&[]));
        let tip = format!("did you mean '{meant}'?");
        assert!(outcome.error.contains(&tip), "{}", outcome.shown(&[]));
    }
}

#[test]
fn a_resource_that_is_not_there_is_an_error() {
    let directory = scratch_directory("slips");
    let at = directory.path();
    write(at, &[("edge.hcl", EDGE)]);
    let run = |more: &[&str]| portreeve(at, &[&["translate", "edge.hcl"], more].concat());
    assert_eq!(run(&["-name", "web"]).code, 0, "{}", run(&[]).shown(&[]));
    assert_eq!(run(&["-kind", "runtime"]).code, 0);
    let nothing = run(&["-name", "nope"]);
    assert_eq!(
        (nothing.code, nothing.out.as_str()),
        (1, ""),
        "{}",
        nothing.shown(&[])
    );
    assert!(
        nothing.error.contains("there is no resource \"nope\""),
        "{}",
        nothing.error
    );
    let other = run(&["-kind", "cluster", "-name", "web"]);
    assert!(
        other.error.contains("there is no cluster \"web\""),
        "{}",
        other.error
    );
}

#[test]
fn settings_that_cannot_be_read_say_why() {
    let directory = scratch_directory("slips");
    let outcome = portreeve(directory.path(), &["agent", "-config=nowhere"]);
    assert_ne!(outcome.code, 0);
    let said = "nowhere: cannot be read: No such file or directory";
    assert!(outcome.error.contains(said), "{}", outcome.shown(&[]));
    assert_eq!(
        outcome.error.matches("No such file").count(),
        1,
        "{}",
        outcome.error
    );
}

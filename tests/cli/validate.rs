//! What `validate` says of a directory as a whole.

use crate::run::{portreeve, write};
use crate::support::scratch_directory;

const EDGE: &str = "gateway \"edge\" {\n  listener \"web\" { port = 8080 }\n}\n";
const SHOP: &str = "http_route \"shop\" {\n  gateways  = [\"edge\"]\n  hostnames = [\"shop.example.com\"]\n\n  rule \"all\" {\n    backend \"consul\" \"shop\" {}\n  }\n}\n";

/// An empty file may be the rest of an editor's slip.
#[test]
fn a_document_without_blocks_is_a_warning() {
    let directory = scratch_directory("validate");
    let at = directory.path();
    write(
        at,
        &[
            ("conf/edge.hcl", EDGE),
            ("conf/shop.hcl", SHOP),
            ("conf/empty.hcl", ""),
        ],
    );
    let outcome = portreeve(at, &["validate", "conf"]);
    assert_eq!(outcome.code, 0, "{}", outcome.shown(&[]));
    assert!(
        outcome.out.contains("this document holds no blocks"),
        "{}",
        outcome.out
    );
    assert!(outcome.out.contains("conf/empty.hcl:1:1"), "{}", outcome.out);
    assert_eq!(portreeve(at, &["validate", "-strict", "conf"]).code, 1);
}

/// The slip is in one place, and so is what is said of it.
#[test]
fn a_broken_gateway_is_told_once_and_not_for_each_of_its_routes() {
    let directory = scratch_directory("validate");
    let at = directory.path();
    write(
        at,
        &[
            ("conf/edge.hcl", &EDGE.replace("8080", "80800")),
            ("conf/shop.hcl", SHOP),
            ("conf/other.hcl", &SHOP.replace("shop", "other")),
        ],
    );
    let outcome = portreeve(at, &["validate", "conf"]);
    assert_eq!(outcome.code, 1, "{}", outcome.shown(&[]));
    assert!(outcome.out.ends_with("3 documents: 1 error\n"), "{}", outcome.out);

    // One that no broken document seems to declare is told as ever.
    write(
        at,
        &[(
            "conf/other.hcl",
            &SHOP.replace("shop", "other").replace("edge", "inner"),
        )],
    );
    let outcome = portreeve(at, &["validate", "conf"]);
    assert!(
        outcome.out.contains("no document declares the gateway \"inner\""),
        "{}",
        outcome.out
    );
}

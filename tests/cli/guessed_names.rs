//! Certificates in `validate`: their sources are not asked, so most have names that nobody knows.

use crate::run::{portreeve, write};
use crate::support::scratch_directory;

/// Nobody is asked for certificates, and only those of Vault's PKI have their names in the document.
#[test]
fn certificates_whose_names_nobody_knows_are_not_held_against_each_other() {
    let directory = scratch_directory("cli");
    let kv = |name: &str| {
        format!(
            "certificate \"{name}\" {{\n  vault_kv {{\n    mount = \"secret\"\n    path  = \"{name}\"\n  }}\n}}\n"
        )
    };
    let pki = |name: &str| {
        format!(
            "certificate \"{name}\" {{\n  vault_pki {{\n    mount       = \"pki\"\n    role        = \"edge\"\n    common_name = \"a.com\"\n  }}\n}}\n"
        )
    };
    let edge = |names: &str| {
        let listener = format!(
            "listener \"web\" {{\n    port     = 443\n    protocol = \"https\"\n\n    tls {{ certificates = [{names}] }}\n  }}"
        );
        let route = "http_route \"a\" {\n  gateways  = [\"edge\"]\n  hostnames = [\"a.com\"]\n\n  rule \"all\" {\n    backend \"consul\" \"x\" {}\n  }\n}\n";
        format!(
            "gateway \"edge\" {{\n  {listener}\n}}\n{route}{}{}{}{}",
            kv("a"),
            kv("b"),
            pki("c"),
            pki("d")
        )
    };
    for (names, code) in [
        (r#""a", "b""#, 0),
        (r#""a", "c""#, 0),
        (r#""c", "a", "b""#, 0),
        (r#""c", "d", "a""#, 1),
    ] {
        write(directory.path(), &[("edge.hcl", &edge(names))]);
        let outcome = portreeve(directory.path(), &["validate", "-strict", "edge.hcl"]);
        assert_eq!(outcome.code, code, "{names}: {}", outcome.out);
        assert_eq!(
            outcome.out.contains("shown to nobody"),
            code == 1,
            "{}",
            outcome.out
        );
    }
}

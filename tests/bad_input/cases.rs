//! The cases, in the order of the page.

use portreeve::diagnostics::Code::{self, *};

use super::case::{Case, GATEWAY, SHOP, Stays};

pub fn all() -> Vec<Case> {
    [
        super::syntax::syntax(),
        shape(),
        values(),
        routes(),
        super::doubtful::all(),
        super::reach::all(),
        json(),
        super::around::between_documents(),
        super::around::world_around(),
        super::certificates::all(),
        super::mesh::all(),
        super::tcp::all(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The shop with one piece exchanged.
pub fn shop(from: &str, to: &str) -> String {
    assert!(SHOP.contains(from), "the shop does not hold {from:?}");
    SHOP.replacen(from, to, 1)
}

pub fn gateway(from: &str, to: &str) -> String {
    assert!(GATEWAY.contains(from), "the gateway does not hold {from:?}");
    GATEWAY.replacen(from, to, 1)
}

/// The shop with more in its first rule.
pub fn api_with(more: &str) -> String {
    shop(
        "    backend \"consul\" \"orders\" {}\n",
        &format!("    backend \"consul\" \"orders\" {{}}\n{more}\n"),
    )
}

pub fn and(more: &str) -> String {
    format!("{SHOP}\n{more}")
}

pub fn bad(what: &'static str, text: impl Into<String>, codes: &'static [Code]) -> Case {
    Case::new(what, text, codes, Stays::LastGood)
}

fn shape() -> Vec<Case> {
    vec![
        bad(
            "an unknown attribute, nearly right",
            shop("  hostnames =", "  hostname  ="),
            &[UnknownKey, MissingKey],
        ),
        bad(
            "an unknown attribute",
            shop("  hostnames", "  banana    = 1\n  hostnames"),
            &[UnknownKey],
        ),
        bad(
            "an unknown block",
            api_with("    rewirte { path = \"/\" }"),
            &[UnknownKey],
        ),
        bad(
            "a kind of object that is planned and not there yet",
            and("udp_route \"x\" {\n}\n"),
            &[UnknownKey],
        ),
        bad(
            "a policy that is planned and not there yet",
            api_with("    rate_limit { requests = 100 }"),
            &[UnknownKey],
        ),
        bad(
            "an unknown kind of object",
            and("http_rout \"x\" {\n}\n"),
            &[UnknownKey],
        ),
        bad(
            "a block written as an attribute",
            shop(
                "match { path_prefix = \"/api\" }",
                "match = { path_prefix = \"/api\" }",
            ),
            &[UnknownKey],
        ),
        bad(
            "an attribute written as a block",
            api_with("    timeout {}"),
            &[UnknownKey],
        ),
        bad(
            "a missing attribute",
            shop("  hostnames = [\"shop.example.com\"]\n", ""),
            &[MissingKey],
        ),
        bad(
            "a missing label",
            shop("http_route \"shop\"", "http_route"),
            &[MissingKey],
        ),
        bad(
            "a label too many",
            shop("http_route \"shop\"", "http_route \"shop\" \"two\""),
            &[MissingKey],
        ),
        bad(
            "a name with a slash",
            shop("http_route \"shop\"", "http_route \"shop/api\""),
            &[InvalidValue],
        ),
        bad(
            "a block that may stand once, twice",
            api_with("    rewrite { path = \"/a\" }\n    rewrite { path = \"/b\" }"),
            &[Conflict],
        ),
        bad(
            "two rules of one name",
            shop("rule \"pages\"", "rule \"api\""),
            &[Conflict],
        ),
        bad(
            "a rule with backend and redirect",
            api_with("    redirect { scheme = \"https\" }"),
            &[Conflict],
        ),
        bad(
            "a rule without backend, redirect or response",
            shop("    backend \"consul\" \"orders\" {}\n", ""),
            &[MissingKey],
        ),
        bad(
            "path and path_prefix in one match",
            shop(
                "match { path_prefix = \"/api\" }",
                "match {\n      path        = \"/a\"\n      path_prefix = \"/api\"\n    }",
            ),
            &[Conflict],
        ),
        bad(
            "an unknown kind of backend",
            shop("backend \"consul\"", "backend \"konsul\""),
            &[InvalidValue],
        ),
        bad(
            "an upstream without a source",
            and("upstream \"u\" {\n}\n"),
            &[MissingKey],
        ),
        bad(
            "an upstream with two sources",
            and("upstream \"u\" {\n  consul {}\n  dns { address = \"a.example.com:80\" }\n}\n"),
            &[Conflict],
        ),
    ]
}

fn values() -> Vec<Case> {
    vec![
        bad(
            "a string where a list is needed",
            shop("[\"shop.example.com\"]", "\"shop.example.com\""),
            &[InvalidValue],
        ),
        bad(
            "a health_check_path that no request's path can equal",
            gateway("port = 8080", "port = 8080\n    health_check_path = \"/a//b\""),
            &[InvalidValue],
        )
        .in_document("gateway"),
        bad(
            "a service without a name",
            and("upstream \"u\" {\n  consul { service = \"\" }\n}\n"),
            &[InvalidValue],
        ),
        bad(
            "a service of Nomad's without a name",
            and("upstream \"u\" {\n  nomad { service = \"\" }\n}\n"),
            &[InvalidValue],
        ),
        bad(
            "a prepared query without a name",
            and("upstream \"u\" {\n  consul { prepared_query = \"\" }\n}\n"),
            &[InvalidValue],
        ),
        bad("a port out of range", gateway("8080", "70000"), &[InvalidValue]).in_document("gateway"),
        bad(
            "a word that is not one of the known",
            gateway("\"https\"", "\"htps\""),
            &[InvalidValue],
        )
        .in_document("gateway"),
        bad(
            "a duration without a unit",
            api_with("    timeout = \"10\""),
            &[InvalidValue],
        ),
        bad(
            "a number where a duration is needed",
            api_with("    timeout = 10"),
            &[InvalidValue],
        ),
        bad(
            "a bad host name",
            shop("shop.example.com", "shop_.-example..com"),
            &[InvalidValue],
        ),
        bad(
            "a host with its port",
            shop("shop.example.com", "shop.example.com:8080"),
            &[InvalidValue],
        ),
        bad(
            "a wildcard in the middle of a host",
            shop("shop.example.com", "shop.*.com"),
            &[InvalidValue],
        ),
        bad(
            "a URL as host",
            shop("\"shop.example.com\"", "\"https://shop.example.com/\""),
            &[InvalidValue],
        ),
        bad("no hosts", shop("[\"shop.example.com\"]", "[]"), &[MissingKey]),
        bad("no gateways", shop("[\"edge\"]", "[]"), &[MissingKey]),
        bad(
            "a path with a query",
            shop("\"/api\"", "\"/api?x=1\""),
            &[InvalidValue],
        ),
        bad(
            "a path without its slash",
            shop("\"/api\"", "\"api\""),
            &[InvalidValue],
        ),
        bad(
            "a path that normalised requests never have",
            shop("\"/api\"", "\"/api/../admin\""),
            &[InvalidValue],
        ),
        bad(
            "a path with an escaped letter",
            shop("\"/api\"", "\"/%61pi\""),
            &[InvalidValue],
        ),
        bad(
            "a path with an escaped slash",
            shop("\"/api\"", "\"/api%2Fv1\""),
            &[InvalidValue],
        ),
        bad(
            "a path with a space",
            shop("\"/api\"", "\"/my api\""),
            &[InvalidValue],
        ),
        bad(
            "a bad regular expression",
            shop("path_prefix = \"/api\"", "path_regex = \"/(api\""),
            &[InvalidValue],
        ),
        bad(
            "an empty regular expression",
            shop("path_prefix = \"/api\"", "path_regex = \"\""),
            &[InvalidValue],
        ),
        bad(
            "a header that begins with nothing",
            shop(
                "{ path_prefix = \"/api\" }",
                "{\n  header \"x\" {\n    prefix = \"\"\n  }\n}",
            ),
            &[InvalidValue],
        ),
        bad(
            "a regular expression that costs too much",
            shop(
                "path_prefix = \"/api\"",
                "path_regex = \"((((a{1,100}){1,100}){1,100}){1,100})\"",
            ),
            &[InvalidValue],
        ),
        bad(
            "a regular expression that Envoy reads differently",
            shop("path_prefix = \"/api\"", "path_regex = \"/[a-z&&[^x]]+\""),
            &[InvalidValue],
        ),
        bad(
            "a method in small letters",
            shop("{ path_prefix = \"/api\" }", "{ methods = [\"get\"] }"),
            &[InvalidValue],
        ),
        bad(
            "a bad header name",
            api_with("    request_headers {\n      set = { \"x team\" = \"a\" }\n    }"),
            &[InvalidValue],
        ),
        bad(
            "the host among the headers",
            api_with("    request_headers {\n      set = { \"Host\" = \"a\" }\n    }"),
            &[InvalidValue],
        ),
        bad(
            "a header set twice",
            api_with("    request_headers {\n      set = { \"x-a\" = \"1\", \"X-A\" = \"2\" }\n    }"),
            &[InvalidValue],
        ),
        bad(
            "a percent sign alone in a header's value",
            api_with("    response_headers {\n      set = { \"x-off\" = \"50% off\" }\n    }"),
            &[InvalidValue],
        ),
        bad(
            "a command operator without the argument that it needs",
            api_with("    request_headers {\n      set = { \"x-team\" = \"%REQ%\" }\n    }"),
            &[InvalidValue],
        ),
        bad(
            "a bad address range",
            api_with("    client_ip { allow = [\"10.0.0.0/40\"] }"),
            &[InvalidValue],
        ),
        bad(
            "a security policy that says nothing",
            api_with("    client_ip {}"),
            &[MissingKey],
        ),
        bad(
            "an address without a port",
            and("upstream \"u\" {\n  static { addresses = [\"10.0.0.7\"] }\n}\n"),
            &[InvalidValue],
        ),
        bad(
            "a host name among fixed addresses",
            and("upstream \"u\" {\n  static { addresses = [\"a.example.com:80\"] }\n}\n"),
            &[InvalidValue],
        ),
        bad(
            "an address that only some resolvers read",
            and("upstream \"u\" {\n  dns { address = \"127.1:80\" }\n}\n"),
            &[InvalidValue],
        ),
        bad(
            "no addresses",
            and("upstream \"u\" {\n  static { addresses = [] }\n}\n"),
            &[MissingKey],
        ),
    ]
}

fn routes() -> Vec<Case> {
    let redirect = |inner: &str| {
        shop(
            "    backend \"consul\" \"orders\" {}\n",
            &format!("    redirect {{\n{inner}\n    }}\n"),
        )
    };
    let moved = |inner: &str| {
        and(&format!(
            "http_route \"moved\" {{\n  gateways  = [\"edge\"]\n  listeners = [\"web\"]\n  hostnames = [\"shop.example.com\"]\n\n  \
             rule \"old\" {{\n    match {{ path_prefix = \"/old\" }}\n\n    redirect {{\n{inner}\n    }}\n  }}\n}}\n"
        ))
    };
    let respond = |inner: &str| {
        shop(
            "    backend \"consul\" \"orders\" {}\n",
            &format!("    direct_response {{\n      status = 200\n{inner}\n    }}\n"),
        )
    };
    vec![
        bad(
            "a redirect to where the request came from",
            redirect("      status = 301"),
            &[MissingKey],
        ),
        bad(
            "a redirect with another status",
            redirect("      scheme = \"https\"\n      status = 304"),
            &[InvalidValue],
        ),
        Case::new(
            "a redirect to a scheme whose own port the gateway does not have",
            moved("      scheme = \"https\""),
            &[DoubtfulRedirect],
            Stays::Everything,
        ),
        Case::new(
            "a redirect to itself",
            moved("      path = \"/old/moved\""),
            &[DoubtfulRedirect],
            Stays::Everything,
        ),
        bad(
            "a response body over 4096 bytes",
            respond(&format!("      body = \"{}\"", "x".repeat(5000))),
            &[TooLarge],
        ),
        bad(
            "a rewrite without a backend",
            respond("    }\n    rewrite {\n      path = \"/a\""),
            &[Conflict],
        ),
        bad(
            "path_prefix rewritten where no prefix is matched",
            shop(
                "match { path_prefix = \"/api\" }",
                "match { path = \"/api\" }\n    rewrite { path_prefix = \"/\" }",
            ),
            &[Conflict],
        ),
        bad(
            "a policy on a backend that Envoy has per route only",
            shop(
                "backend \"consul\" \"orders\" {}",
                "backend \"consul\" \"orders\" {\n      client_ip { deny = [\"10.0.0.0/8\"] }\n    }",
            ),
            &[UnknownKey],
        ),
        bad(
            "a wildcard as the host to rewrite to",
            api_with("    rewrite { hostname = \"*.example.com\" }"),
            &[InvalidValue],
        ),
        bad("two listeners on one port", gateway("8443", "8080"), &[PortClash]).in_document("gateway"),
        bad(
            "https without tls",
            gateway("    tls { certificates = [\"www\"] }\n", ""),
            &[MissingKey],
        )
        .in_document("gateway"),
        bad("tls on plain http", gateway("\"https\"", "\"http\""), &[Conflict]).in_document("gateway"),
        bad(
            "tls without certificates",
            gateway("[\"www\"]", "[]"),
            &[MissingKey],
        )
        .in_document("gateway"),
        bad(
            "client_ca without a source",
            gateway(
                "tls { certificates = [\"www\"] }",
                "tls {\n      certificates = [\"www\"]\n\n      client_ca { mode = \"optional\" }\n    }",
            ),
            &[MissingKey],
        )
        .in_document("gateway"),
        bad(
            "an unknown mode of client_ca",
            gateway(
                "tls { certificates = [\"www\"] }",
                "tls {\n      certificates = [\"www\"]\n\n      client_ca {\n        mode = \"ask\"\n\n        vault_pki { mount = \"pki\" }\n      }\n    }",
            ),
            &[InvalidValue],
        )
        .in_document("gateway"),
        bad(
            "a certificate without a source",
            and("certificate \"c\" {\n}\n"),
            &[MissingKey],
        ),
        bad(
            "a Vault path that climbs",
            and(
                "certificate \"c\" {\n  vault_kv {\n    mount = \"secret\"\n    path  = \"../sys/seal\"\n  }\n}\n",
            ),
            &[InvalidValue],
        ),
        bad(
            "an issuer of clients' certificates that climbs",
            gateway(
                "tls { certificates = [\"www\"] }",
                "tls {\n      certificates = [\"www\"]\n\n      client_ca {\n        vault_pki {\n          mount  = \"pki\"\n          issuer = \"../../sys\"\n        }\n      }\n    }",
            ),
            &[InvalidValue],
        )
        .in_document("gateway"),
        bad(
            "a path that no Nomad variable can have",
            and("certificate \"c\" {\n  nomad_variable { path = \"edge/www.example.com\" }\n}\n"),
            &[InvalidValue],
        ),
    ]
}

fn json() -> Vec<Case> {
    let rule = r#""rule": {"pages": {"backend": {"consul": {"pages": {}}}}}"#;
    let shop = |inner: &str| {
        format!("{{\"http_route\": {{\"shop\": {{\n  \"gateways\": [\"edge\"],\n{inner}\n}}}}}}\n")
    };
    vec![
        bad(
            "JSON with a comma too many",
            shop(&format!("  \"hostnames\": [\"shop.example.com\"],\n  {rule},")),
            &[SyntaxError],
        ),
        bad("JSON with a comment", "{\n  // shop\n}\n", &[SyntaxError]),
        bad(
            "JSON with a key twice",
            shop(&format!(
                "  \"hostnames\": [\"shop.example.com\"],\n  \"hostnames\": [\"a.example.com\"],\n  {rule}"
            )),
            &[Conflict],
        ),
        bad(
            "JSON with half a character",
            shop(&format!("  \"hostnames\": [\"\\ud83d\"],\n  {rule}")),
            &[SyntaxError],
        ),
        bad(
            "JSON with a wrong type",
            shop(&format!("  \"hostnames\": 5,\n  {rule}")),
            &[InvalidValue],
        ),
        bad(
            "JSON with an unknown block",
            shop(&format!(
                "  \"hostnames\": [\"shop.example.com\"],\n  \"rul\": {{}},\n  {rule}"
            )),
            &[UnknownKey],
        ),
        bad(
            "a list where JSON needs an object",
            shop("  \"hostnames\": [\"shop.example.com\"],\n  \"rule\": {\"pages\": 5}"),
            &[InvalidValue],
        ),
        bad(
            "JSON nested without end",
            format!("{{\"a\": {}1{}}}", "[".repeat(100), "]".repeat(100)),
            &[TooLarge],
        ),
    ]
}

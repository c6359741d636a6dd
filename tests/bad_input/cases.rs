//! The cases, in the order of the page.

use std::sync::Arc;

use portreeve::diagnostics::Code::{self, *};
use portreeve::model::{
    CertificateMaterial, CertificateUpdate, Health, Observation, Problem, ProblemKind, ServiceUpdate,
};
use portreeve::snapshot::Snapshot;
use portreeve::translate::Compiler;

use super::case::{Case, GATEWAY, SHOP, Stays, envoy_refuses, service};
use super::world;

pub fn all() -> Vec<Case> {
    [
        syntax(),
        shape(),
        values(),
        routes(),
        reach(),
        json(),
        between_documents(),
        world_around(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The shop with one piece exchanged.
fn shop(from: &str, to: &str) -> String {
    assert!(SHOP.contains(from), "the shop does not hold {from:?}");
    SHOP.replacen(from, to, 1)
}

fn gateway(from: &str, to: &str) -> String {
    assert!(GATEWAY.contains(from), "the gateway does not hold {from:?}");
    GATEWAY.replacen(from, to, 1)
}

/// The shop with more in its first rule.
fn api_with(more: &str) -> String {
    shop(
        "    backend \"consul\" \"orders\" {}\n",
        &format!("    backend \"consul\" \"orders\" {{}}\n{more}\n"),
    )
}

fn and(more: &str) -> String {
    format!("{SHOP}\n{more}")
}

fn bad(what: &'static str, text: impl Into<String>, codes: &'static [Code]) -> Case {
    Case::new(what, text, codes, Stays::LastGood)
}

fn syntax() -> Vec<Case> {
    vec![
        bad(
            "a block that is never closed",
            shop(
                "    match { path_prefix = \"/api\" }",
                "    match { path_prefix = \"/api\"",
            ),
            &[SyntaxError],
        ),
        bad(
            "a string that is never closed",
            shop("\"/api\"", "\"/api"),
            &[SyntaxError],
        ),
        bad(
            "two attributes in a block on one line",
            shop(
                "{ path_prefix = \"/api\" }",
                "{ path_prefix = \"/api\" methods = [\"GET\"] }",
            ),
            &[SyntaxError],
        ),
        bad(
            "an attribute set twice",
            shop("  hostnames", "  gateways  = [\"edge\"]\n  hostnames"),
            &[SyntaxError],
        ),
        bad(
            "an unknown escape in a string",
            shop("path_prefix = \"/api\"", "path_regex = \"/\\d+\""),
            &[SyntaxError],
        ),
        bad(
            "an interpolation",
            shop("\"shop.example.com\"", "\"${env}.example.com\""),
            &[InvalidValue],
        ),
        bad("a variable", shop("[\"edge\"]", "var.gateways"), &[InvalidValue]),
        bad(
            "a function call",
            api_with("    timeout = max(1, 2)"),
            &[InvalidValue],
        ),
        bad("a byte order mark", format!("\u{feff}{SHOP}"), &[SyntaxError]),
        bad(
            "a NUL or another control character",
            shop("\"shop.example.com\"", "\"shop\\u0000.example.com\""),
            &[InvalidValue],
        ),
        bad(
            "nesting without end",
            format!("a = {}1{}\n", "[".repeat(200), "]".repeat(200)),
            &[TooLarge],
        ),
        bad(
            "a document over 512 KiB",
            format!("{SHOP}#{}\n", "x".repeat(512 * 1024)),
            &[TooLarge],
        ),
        Case::new("an empty document", "", &[], Stays::Nothing),
    ]
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
    ]
}

fn reach() -> Vec<Case> {
    let upstream = |source: &str| and(&format!("upstream \"u\" {{\n  {source}\n}}\n"));
    let kv = |what, text: String| bad(what, text, &[NotAllowed]).put_in_kv();
    vec![
        bad(
            "a file named by a document from KV",
            and("certificate \"c\" {\n  file {\n    certificate = \"/etc/shadow\"\n    private_key = \"/etc/shadow\"\n  }\n}\n"),
            &[NotAllowed, NotAllowed],
        )
        .put_in_kv(),
        kv(
            "a Vault path that the settings do not list, from KV",
            and("certificate \"c\" {\n  vault_kv {\n    mount = \"secret\"\n    path  = \"payroll\"\n  }\n}\n"),
        ),
        kv("a loopback address from KV", upstream("static { addresses = [\"127.0.0.1:8500\"] }")),
        kv("a loopback name from KV", upstream("dns { address = \"localhost:8500\" }")),
        kv("a loopback address in IPv6 clothes, from KV", upstream("static { addresses = [\"[::ffff:127.0.0.1]:80\"] }")),
        kv("a cloud's metadata address from KV", upstream("static { addresses = [\"169.254.169.254:80\"] }")),
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

fn between_documents() -> Vec<Case> {
    vec![
        Case::new(
            "a name that another document holds",
            SHOP.replace("orders", "other"),
            &[DuplicateName],
            Stays::Older,
        )
        .in_document("younger"),
        Case::new(
            "a match that another document holds",
            SHOP.replace("\"shop\"", "\"younger\"").replace("orders", "other"),
            &[ShadowedRule, ShadowedRule],
            Stays::Older,
        )
        .in_document("younger"),
        Case::new(
            "an unknown gateway",
            shop("[\"edge\"]", "[\"egde\"]"),
            &[NotAttached],
            Stays::NotAttached,
        ),
        Case::new(
            "an unknown listener",
            shop("  hostnames", "  listeners = [\"webb\"]\n  hostnames"),
            &[NotAttached],
            Stays::NotAttached,
        ),
        Case::new(
            "an unknown upstream",
            shop("backend \"consul\" \"orders\"", "backend \"upstream\" \"orders\""),
            &[UnknownReference],
            Stays::ApiAnswers503("unknown-upstream"),
        ),
        Case::new(
            "an unknown upstream among others",
            api_with("    backend \"upstream\" \"next\" {}"),
            &[UnknownReference],
            Stays::ApiWithoutIt,
        ),
        Case::new(
            "every weight 0",
            shop(
                "backend \"consul\" \"orders\" {}",
                "backend \"consul\" \"orders\" { weight = 0 }",
            ),
            &[UnknownReference],
            Stays::ApiAnswers503("no-backend"),
        ),
        Case::new(
            "an unknown policy bundle (it may hold a security policy)",
            api_with("    policies = [\"office-only\"]"),
            &[SecurityPolicyInvalid],
            Stays::ApiAnswers503("policy-unresolved"),
        ),
        Case::new(
            "an unknown certificate, the only one",
            gateway("[\"www\"]", "[\"wwww\"]"),
            &[UnknownReference, ListenerWithheld],
            Stays::OtherListeners,
        )
        .in_document("gateway"),
        Case::new(
            "an unknown certificate among others",
            gateway("[\"www\"]", "[\"www\", \"api\"]"),
            &[UnknownReference],
            Stays::ListenerWithoutIt,
        )
        .in_document("gateway"),
    ]
}

fn world_around() -> Vec<Case> {
    let orders_are =
        |what, then: fn(&mut Snapshot), codes| Case::new(what, SHOP, codes, Stays::Everything).then(then);
    vec![
        orders_are(
            "a service that nobody registered (requests answer 503)",
            |snapshot| drop(world::answer_service(snapshot, &service("orders"), vec![])),
            &[UnknownService],
        ),
        orders_are(
            "a service whose instances are all critical (requests answer 503, no gamble)",
            |snapshot| {
                let one = world::instance("orders", 1, "10.0.0.1", Health::Critical);
                world::answer_service(snapshot, &service("orders"), vec![one]);
            },
            &[NoHealthyInstance],
        ),
        orders_are(
            "an instance whose address is a host name (left out)",
            |snapshot| {
                let one = world::instance("orders", 1, "node-1.internal", Health::Passing);
                let two = world::instance("orders", 2, "10.0.0.2", Health::Passing);
                world::answer_service(snapshot, &service("orders"), vec![one, two]);
            },
            &[UnusableInstance],
        ),
        orders_are(
            "Consul refuses to tell (the last known instances stay)",
            |snapshot| {
                let problem = Problem::new(
                    ProblemKind::Forbidden,
                    "Consul answered 403 for the service \"orders\"",
                )
                .with_fix("give the agent's token service:read on it and node:read");
                snapshot.apply(Observation::Service(ServiceUpdate {
                    query: service("orders"),
                    result: Err(problem),
                }));
            },
            &[SourceProblem],
        ),
        Case::new(
            "a certificate that Vault refuses",
            GATEWAY.replace("\"pki\"", "\"pki2\""),
            &[CertificateProblem, ListenerWithheld],
            Stays::OtherListeners,
        )
        .in_document("gateway")
        .then(|snapshot| {
            refuse_certificates(
                snapshot,
                Err(
                    Problem::new(ProblemKind::Refused, "Vault answered 400: unknown role: edge")
                        .with_fix("create the role, or name another one"),
                ),
            )
        }),
        Case::new(
            "a certificate that names no host",
            GATEWAY.replace("\"pki\"", "\"pki3\""),
            &[CertificateProblem, ListenerWithheld],
            Stays::OtherListeners,
        )
        .in_document("gateway")
        .then(|snapshot| {
            refuse_certificates(snapshot, Ok(vec!["10.0.0.1".into()]));
        }),
        Case::new(
            "a text that Envoy refuses",
            api_with("    timeout = \"7s\""),
            &[EnvoyRejected],
            Stays::LastAccepted,
        )
        .then(envoy_refuses),
    ]
}

/// Every certificate asked for and not answered yet gets this.
fn refuse_certificates(snapshot: &mut Snapshot, result: Result<Vec<Arc<str>>, Problem>) {
    let compiler = Compiler::compile("edge", world::settings(), snapshot);
    for query in compiler.certificates().values() {
        let material = |names| CertificateMaterial {
            names,
            ..world::material(query)
        };
        snapshot.apply(Observation::Certificate(CertificateUpdate {
            query: query.clone(),
            result: result.clone().map(|names| Arc::new(material(names))),
        }));
    }
}

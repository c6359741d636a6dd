//! Commands that ask nobody.

use crate::run::{portreeve, with_input, write};
use crate::support::scratch_directory;

const SHOP: &str = r#"gateway "edge" {
  listener "web" { port = 8080 }

  listener "secure" {
    port     = 8443
    protocol = "https"

    tls { certificates = ["www"] }
  }
}

certificate "www" {
  vault_kv {
    mount = "secret"
    path  = "edge/www"
  }
}

http_route "shop" {
  gateways  = ["edge"]
  hostnames = ["shop.example.com"]
  timeout   = "5s"

  rule "preview" {
    match {
      path_prefix = "/api"
      methods     = ["GET"]

      header "x-preview" { exact = "1" }
    }
    backend "upstream" "next" {}
  }

  rule "api" {
    match {
      path_prefix = "/api"
      methods     = ["GET"]
    }

    backend "consul" "orders" { weight = 90 }
    backend "upstream" "next" { weight = 10 }
  }
}

upstream "next" {
  static { addresses = ["10.0.0.7:8080"] }
}
"#;

#[test]
fn help() {
    let directory = scratch_directory("cli");
    let at = directory.path();
    insta::assert_snapshot!("help", portreeve(at, &["-help"]).shown(&[]));
    insta::assert_snapshot!("nothing", portreeve(at, &[]).shown(&[]));
    insta::assert_snapshot!("slip_of_a_command", portreeve(at, &["vaildate", "."]).shown(&[]));
    insta::assert_snapshot!("slip_of_a_flag", portreeve(at, &["agent", "-dve"]).shown(&[]));
    assert_eq!(portreeve(at, &["plan", "-nonsense"]).code, 255);
    for arguments in [["-version"], ["--version"], ["-v"], ["version"]] {
        let outcome = portreeve(at, &arguments);
        assert_eq!(outcome.code, 0);
        assert!(outcome.out.starts_with("Portreeve v0."), "{}", outcome.out);
    }
}

#[test]
fn validate_good() {
    let directory = scratch_directory("cli");
    write(
        directory.path(),
        &[
            ("conf/shop.hcl", SHOP),
            ("conf/agent.hcl", "gateways = [\"edge\"]\n"),
            ("conf/.hidden.hcl", "nonsense"),
        ],
    );
    let outcome = portreeve(directory.path(), &["validate", "conf"]);
    assert_eq!((outcome.code, outcome.out.as_str()), (0, "2 documents: valid\n"));
    let outcome = with_input(directory.path(), &["validate", "-json", "-"], SHOP);
    insta::assert_snapshot!("validate_stdin_json", outcome.shown(&[]));
}

/// A slip in a path must not pass for "all is well", nor for "delete everything".
#[test]
fn nothing_to_read_is_an_error() {
    let directory = scratch_directory("cli");
    let at = directory.path();
    write(
        at,
        &[
            ("conf/shop.conf", SHOP),
            ("conf/.hidden.hcl", SHOP),
            ("settings/agent.hcl", "gateways = [\"edge\"]\n"),
        ],
    );
    std::fs::create_dir(at.join("empty")).unwrap();
    let run = |arguments: &[&str]| portreeve(at, arguments);
    insta::assert_snapshot!("validate_empty", run(&["validate", "empty"]).shown(&[]));
    insta::assert_snapshot!("validate_other_names", run(&["validate", "conf"]).shown(&[]));
    for (arguments, code) in [
        (&["validate", "conf/shop.conf", "empty"][..], 1),
        (&["validate", "-json", "empty"], 1),
        (&["plan", "empty"], 255),
        (&["apply", "-auto-approve", "-prune", "empty"], 1),
        (&["translate", "empty"], 1),
        (
            &["explain", "GET", "http://shop.example.com/", "-config", "empty"],
            1,
        ),
    ] {
        let outcome = run(arguments);
        assert_eq!(outcome.code, code, "{arguments:?}: {}", outcome.shown(&[]));
        assert!(
            outcome.error.contains("no document in empty"),
            "{}",
            outcome.error
        );
    }
    let outcome = run(&["apply", "-auto-approve", "-prune", "settings"]);
    assert!(
        outcome.error.contains("and no document"),
        "{}",
        outcome.shown(&[])
    );
    assert_eq!(
        run(&["validate", "conf/shop.conf"]).code,
        0,
        "a file may have any name"
    );
    assert_eq!(run(&["validate", "settings"]).code, 0);
}

/// What ends an agent before it begins.
#[test]
fn settings_of_an_agent() {
    let directory = scratch_directory("cli");
    let at = directory.path();
    write(
        at,
        &[
            ("typo.hcl", "gateways  = [\"edge\"]\nlog_levle = \"info\"\n"),
            ("none.hcl", "log_level = \"info\"\n"),
        ],
    );
    insta::assert_snapshot!("agent_without_settings", portreeve(at, &["agent"]).shown(&[]));
    insta::assert_snapshot!(
        "agent_settings_typo",
        portreeve(at, &["agent", "-config", "typo.hcl"]).shown(&[])
    );
    insta::assert_snapshot!(
        "agent_settings_without_gateways",
        portreeve(at, &["agent", "-config", "none.hcl"]).shown(&[])
    );
}

/// What the agent and what validate say of a document cannot differ: it is the same code. Here: how it is shown.
#[test]
fn validate_bad() {
    let directory = scratch_directory("cli");
    write(
        directory.path(),
        &[
            (
                "conf/a-syntax.hcl",
                "gateway \"x\" {\n  listener \"y\" { port = 1 protocol = \"http\" }\n}\n",
            ),
            (
                "conf/b-schema.hcl",
                "http_route \"r\" {\n  gateways = [\"edge\"]\n  hostname = [\"a.com\"]\n}\n",
            ),
            ("conf/c-shop.hcl", SHOP),
            (
                "conf/d-cross.hcl",
                concat!(
                    "upstream \"next\" {\n  dns { address = \"x.example.com:80\" }\n}\n\n",
                    "http_route \"other\" {\n  gateways  = [\"egde\"]\n  listeners = [\"web\"]\n  hostnames = [\"o.example.com\"]\n\n",
                    "  rule \"all\" {\n    backend \"upstream\" \"nxet\" {}\n  }\n}\n\n",
                    "http_route \"shadow\" {\n  gateways  = [\"edge\"]\n  listeners = [\"wbe\"]\n  hostnames = [\"s.example.com\"]\n  policies  = [\"nobody\"]\n\n",
                    "  rule \"all\" {\n    backend \"consul\" \"x\" {}\n  }\n}\n",
                ),
            ),
            (
                "conf/e-settings.hcl",
                "gateways = [\"edge\"]\nlog_levle = \"info\"\n",
            ),
            ("conf/f-json.json", "{\"policy\": {\"p\": {\"tiemout\": \"1s\"}}}"),
        ],
    );
    std::fs::write(directory.path().join("conf/g-binary.hcl"), [0xff, 0xfe]).unwrap();
    let outcome = portreeve(directory.path(), &["validate", "conf"]);
    insta::assert_snapshot!("validate_bad", outcome.shown(&[]));
    let outcome = portreeve(directory.path(), &["validate", "nowhere"]);
    insta::assert_snapshot!("validate_nowhere", outcome.shown(&[]));
}

#[test]
fn of_a_problem_on_every_line_the_first_hundred_are_told() {
    let directory = scratch_directory("cli");
    write(
        directory.path(),
        &[
            ("terraform.hcl", &"resource \"a\" \"b\" {}\n".repeat(1000)),
            ("shop.hcl", SHOP),
        ],
    );
    let outcome = portreeve(directory.path(), &["validate", "."]);
    let told = outcome.out.matches("unknown block \"resource\"").count();
    assert_eq!((outcome.code, told), (1, 100));
    assert!(outcome.out.contains("terraform.hcl:100:1\n"), "{}", outcome.out);
    let rest = &outcome.out[outcome.out.find("error[too-large]").unwrap()..];
    insta::assert_snapshot!("validate_many", rest);
}

/// A team's part of a tree: its gateway is declared elsewhere. That is a warning, and fails only under -strict.
#[test]
fn validate_a_part() {
    let directory = scratch_directory("cli");
    let part = concat!(
        "http_route \"a\" {\n  gateways  = [\"edge\"]\n  hostnames = [\"a.com\"]\n\n",
        "  rule \"one\" {\n    backend \"consul\" \"x\" {}\n  }\n\n",
        "  rule \"two\" {\n    backend \"consul\" \"y\" {}\n  }\n}\n"
    );
    write(directory.path(), &[("a.hcl", part)]);
    let outcome = portreeve(directory.path(), &["validate", "a.hcl"]);
    insta::assert_snapshot!("validate_part", outcome.shown(&[]));
    assert_eq!(
        portreeve(directory.path(), &["validate", "-strict", "a.hcl"]).code,
        1
    );
}

#[test]
fn format() {
    let directory = scratch_directory("cli");
    let at = directory.path();
    let ugly = "# kept\npolicy \"a\" {\n timeout=\"1s\"\n}\n";
    let pretty = "# kept\npolicy \"a\" {\n  timeout = \"1s\"\n}\n";
    let json = "{ \"policy\":{} }";
    write(
        at,
        &[("ugly.hcl", ugly), ("pretty.hcl", pretty), ("as.json", json)],
    );
    let outcome = portreeve(at, &["fmt", "-check", "-diff"]);
    insta::assert_snapshot!("fmt_check", outcome.shown(&[]));
    let read = |name: &str| std::fs::read_to_string(at.join(name)).unwrap();
    assert_eq!(read("ugly.hcl"), ugly, "-check writes nothing");
    assert_eq!(portreeve(at, &["fmt", "-list", "."]).out, "./ugly.hcl\n");
    assert_eq!(read("ugly.hcl"), ugly, "-list writes nothing");
    assert_eq!(portreeve(at, &["fmt"]).code, 0);
    assert_eq!(
        (read("ugly.hcl").as_str(), read("as.json").as_str()),
        (pretty, json)
    );
    let names: Vec<_> = std::fs::read_dir(at)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 3, "no temporary file is left: {names:?}");
    let json = r#"{"policy": {"a": {"timeout": "1s", "response_headers": {"set": {"x-a": "\"$${b}\""}}}}}"#;
    let outcome = with_input(at, &["fmt", "-hcl", "-"], json);
    assert_eq!(
        (outcome.code, outcome.out.as_str()),
        (
            0,
            "policy \"a\" {\n  timeout = \"1s\"\n\n  response_headers {\n    set = {\n      \"x-a\" = \"\\\"$${b}\\\"\"\n    }\n  }\n}\n"
        )
    );
    let outcome = with_input(at, &["fmt", "-hcl", "-"], "{\"polici\": {}}");
    assert!(
        outcome.code == 1 && (outcome.out.clone() + &outcome.error).contains("unknown-key"),
        "{}",
        outcome.shown(&[])
    );
    assert_eq!(portreeve(at, &["fmt", "-check"]).code, 0);
    let outcome = with_input(at, &["fmt", "-"], ugly);
    assert_eq!((outcome.code, outcome.out.as_str()), (0, pretty));
    let outcome = with_input(at, &["fmt", "-"], "policy \"a\" {\n  = \n}\n");
    insta::assert_snapshot!("fmt_not_hcl", outcome.shown(&[]));
}

#[test]
fn explain_says_what_is_asked_of_clients() {
    let directory = scratch_directory("cli");
    let example = include_str!("../../hcl-examples/features/client_ca.hcl");
    write(directory.path(), &[("conf/edge.hcl", example)]);
    let explain = |url: &str| {
        let outcome = portreeve(directory.path(), &["explain", "GET", url, "-config", "conf"]);
        assert_eq!(outcome.code, 0, "{}", outcome.shown(&[]));
        outcome.out
    };
    let partners = explain("https://www.example.com:8443/");
    let asked =
        "clients    must show a certificate by client_ca vault_pki pki_clients/issuers, not revoked\n";
    assert!(partners.contains(asked), "{partners}");
    let open = explain("https://www.example.com:9443/");
    let asked = "clients    may show a certificate; one that is shown must be by client_ca vault_kv \
                 secret/portreeve/clients, not revoked\n";
    assert!(open.contains(asked), "{open}");
}

#[test]
fn explain_says_where_connections_go() {
    let directory = scratch_directory("cli");
    write(
        directory.path(),
        &[(
            "conf/edge.hcl",
            include_str!("../../hcl-examples/features/tcp.hcl"),
        )],
    );
    let explain = |url: &str| {
        let all = ["explain", "CONNECT", url, "-config", "conf"];
        portreeve(directory.path(), &all).shown(&[])
    };
    insta::assert_snapshot!("explain_tcp", explain("tcp://db.example.com:5432"));
    insta::assert_snapshot!("explain_tcp_tls", explain("tcp://mqtt.example.com:8883"));
    insta::assert_snapshot!("explain_tcp_no_port", explain("tcp://db.example.com:5433"));
}

/// A part of a tree: the gateway is declared elsewhere.
#[test]
fn routes_of_both_kinds_are_looked_at_without_their_gateway() {
    let directory = scratch_directory("cli");
    let part = r#"
http_route "shop" {
  gateways  = ["edge"]
  hostnames = ["shop.example.com"]

  rule "all" {
    backend "upstream" "nowhere" {}
  }
}

tcp_route "db" {
  gateways  = ["edge"]
  listeners = ["db"]

  backend "upstream" "noplace" {}
}
"#;
    write(directory.path(), &[("conf/part.hcl", part)]);
    let validated = portreeve(directory.path(), &["validate", "conf"]).shown(&[]);
    for name in ["nowhere", "noplace"] {
        assert!(
            validated.contains(&format!("declares the upstream {name:?}")),
            "{validated}"
        );
    }
    let gateway =
        "gateway \"edge\" {\n  listener \"db\" {\n    port     = 5432\n    protocol = \"tcp\"\n  }\n}\n";
    write(directory.path(), &[("conf/gateway.hcl", gateway)]);
    let refused = portreeve(
        directory.path(),
        &[
            "explain",
            "CONNECT",
            "tcp://db.example.com:5432",
            "-config",
            "conf",
        ],
    );
    assert_eq!(refused.code, 1, "{}", refused.shown(&[]));
    assert!(
        refused.out.contains("the connection is refused"),
        "{}",
        refused.shown(&[])
    );
}

#[test]
fn explain() {
    let directory = scratch_directory("cli");
    write(directory.path(), &[("conf/shop.hcl", SHOP)]);
    let explain = |arguments: &[&str]| {
        let all: Vec<&str> = ["explain"]
            .iter()
            .chain(arguments)
            .chain(&["-config", "conf"])
            .copied()
            .collect();
        portreeve(directory.path(), &all).shown(&[])
    };
    insta::assert_snapshot!(
        "explain_taken",
        explain(&["GET", "http://SHOP.example.com:8080//api/../api/7?x=1"])
    );
    insta::assert_snapshot!(
        "explain_by_header",
        explain(&["GET", "https://shop.example.com/api", "-header", "X-Preview: 1"])
    );
    insta::assert_snapshot!(
        "explain_not_taken",
        explain(&["POST", "http://shop.example.com/api"])
    );
    insta::assert_snapshot!("explain_no_host", explain(&["GET", "http://nobody.example.com/"]));
    insta::assert_snapshot!("explain_near_host", explain(&["GET", "http://shpo.example.com/"]));
    insta::assert_snapshot!(
        "explain_unknown_sni",
        explain(&[
            "GET",
            "https://shop.example.com/",
            "-header",
            "Host: x.example.com"
        ])
    );
    insta::assert_snapshot!("explain_no_port", explain(&["GET", "http://shop.example.com:9/"]));
    insta::assert_snapshot!("explain_bad_url", explain(&["GET", "gopher://x"]));
    insta::assert_snapshot!(
        "explain_bad_gateway",
        explain(&["GET", "http://x/", "-gateway=egde"])
    );
    let outcome = portreeve(
        directory.path(),
        &[
            "explain",
            "-json",
            "GET",
            "http://shop.example.com/api",
            "-config=conf",
        ],
    );
    let answer: serde_json::Value = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!(answer[0]["route"], "shop/api");
}

#[test]
fn explain_says_in_words_what_is_answered_without_a_backend() {
    let directory = scratch_directory("cli");
    let routes = concat!(
        "gateway \"edge\" {\n  listener \"web\" { port = 8080 }\n}\n\n",
        "http_route \"r\" {\n  gateways  = [\"edge\"]\n  hostnames = [\"a.com\"]\n\n",
        "  rule \"moved\" {\n    match { path_prefix = \"/moved\" }\n    redirect {\n      scheme      = \"https\"\n      path_prefix = \"/v2\"\n      status      = 308\n    }\n  }\n",
        "  rule \"renamed\" {\n    match { path_prefix = \"/renamed\" }\n    redirect { hostname = \"b.com\" }\n  }\n",
        "  rule \"gone\" {\n    match { path_prefix = \"/gone\" }\n    direct_response {\n      status = 410\n      body   = \"gone\\n\"\n    }\n  }\n",
        "  rule \"lost\" {\n    match { path_prefix = \"/lost\" }\n    backend \"upstream\" \"nobody\" {}\n  }\n}\n"
    );
    write(directory.path(), &[("r.hcl", routes)]);
    let mut shown = String::new();
    for path in ["moved/x", "renamed", "gone", "lost"] {
        let url = format!("http://a.com:8080/{path}");
        let outcome = portreeve(directory.path(), &["explain", "GET", &url, "-config", "r.hcl"]);
        let lines = outcome
            .out
            .lines()
            .skip_while(|line| !line.starts_with("rule"))
            .take(2);
        shown.extend(lines.map(|line| format!("{line}\n")));
    }
    insta::assert_snapshot!("explain_in_words", shown);
}

/// A document that is left out may be why no rule takes the request.
#[test]
fn explain_tells_of_documents_that_are_broken() {
    let directory = scratch_directory("cli");
    write(
        directory.path(),
        &[("shop.hcl", &SHOP.replace("hostnames", "hostname"))],
    );
    let url = "http://shop.example.com:8080/api";
    let outcome = portreeve(directory.path(), &["explain", "GET", url, "-config", "shop.hcl"]);
    let shown = outcome.shown(&[]);
    assert!(shown.contains("unknown attribute \"hostname\""), "{shown}");
    assert!(shown.contains("shop.hcl:"), "{shown}");
}

#[test]
fn translate() {
    let directory = scratch_directory("cli");
    write(directory.path(), &[("shop.hcl", SHOP)]);
    let outcome = portreeve(directory.path(), &["translate", "shop.hcl"]);
    assert_eq!(outcome.code, 0, "{}", outcome.error);
    let all: serde_json::Value = serde_json::from_str(&outcome.out).unwrap();
    let names = |kind: &str| -> Vec<String> {
        all[kind]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["name"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    assert_eq!(names("clusters"), ["consul/orders", "upstream/next"]);
    assert_eq!(names("listeners"), ["secure", "web"]);
    let outcome = portreeve(
        directory.path(),
        &["translate", "shop.hcl", "-kind=cluster", "-name=upstream/next"],
    );
    insta::assert_snapshot!("translate_one", outcome.shown(&[]));
    let outcome = portreeve(directory.path(), &["translate", "shop.hcl", "-gateway=egde"]);
    insta::assert_snapshot!("translate_unknown_gateway", outcome.shown(&[]));
}

#[test]
fn envoy_bootstrap() {
    let directory = scratch_directory("cli");
    let arguments = [
        "envoy",
        "bootstrap",
        "-gateway=edge",
        "-node=n1",
        "-xds-socket=/run/x.sock",
        "-runtime-dir=/run/envoy",
    ];
    let outcome = portreeve(directory.path(), &arguments);
    let bootstrap: serde_json::Value = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!(
        bootstrap["node"],
        serde_json::json!({ "id": "n1/edge", "cluster": "edge" })
    );
    assert_eq!(
        bootstrap["admin"]["address"]["pipe"]["path"],
        "/run/envoy/admin.sock"
    );
    let outcome = portreeve(directory.path(), &["envoy", "bootstrap"]);
    insta::assert_snapshot!("bootstrap_no_gateway", outcome.shown(&[]));
    let outcome = portreeve(
        directory.path(),
        &["envoy", "bootstrap", "-gateway=e", "-xds-address=h:1"],
    );
    assert_eq!(outcome.code, 1);
    assert!(
        outcome.error.contains("-xds-ca"),
        "mutual TLS is not optional: {}",
        outcome.error
    );
}

/// The unit of before, after the settings came to say `supervise`.
#[test]
fn envoy_run_where_the_agent_supervises() {
    let directory = scratch_directory("cli");
    let settings = "gateways = [\"edge\"]\n\nenvoy {\n  supervise = true\n}\n";
    std::fs::write(directory.path().join("agent.hcl"), settings).unwrap();
    let run = ["envoy", "run", "-config=agent.hcl", "-runtime-dir=run"];
    insta::assert_snapshot!("run_supervised", portreeve(directory.path(), &run).shown(&[]));
    assert!(!directory.path().join("run").exists());
}

#[test]
fn completions_and_a_closed_pipe() {
    let directory = scratch_directory("cli");
    for shell in ["bash", "zsh", "fish"] {
        let outcome = portreeve(directory.path(), &["completion", shell]);
        assert!(outcome.code == 0 && outcome.out.contains("validate"), "{shell}");
    }
    let script = format!("{} completion bash | head -1", env!("CARGO_BIN_EXE_portreeve"));
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "",
        "a closed pipe is no error"
    );
}

//! Texts that cannot be read, or not as they stand.

use portreeve::diagnostics::Code::*;

use super::case::{Case, SHOP, Stays};
use super::cases::{api_with, bad, shop};

pub fn syntax() -> Vec<Case> {
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
            "an attribute behind the brace that opens a block of several lines",
            shop(
                "http_route \"shop\" {\n  gateways ",
                "http_route \"shop\" { gateways ",
            ),
            &[SyntaxError],
        ),
        bad(
            "the last closing brace is missing",
            SHOP.trim_end().trim_end_matches('}'),
            &[SyntaxError],
        ),
        bad(
            "a closing brace within is missing",
            shop("  }\n\n  rule \"pages\"", "\n  rule \"pages\""),
            &[SyntaxError],
        ),
        bad("a closing brace too many", format!("{SHOP}}}\n"), &[SyntaxError]),
        bad(
            "a closing brace behind the last attribute of a block of several lines",
            shop(
                "    backend \"consul\" \"pages\" {}\n  }",
                "    backend \"consul\" \"pages\" {} }",
            ),
            &[SyntaxError],
        ),
        bad(
            "a block in a block on one line",
            shop(
                "    match { path_prefix = \"/api\" }",
                "    match { header \"x-a\" { exact = \"b\" } }",
            ),
            &[SyntaxError],
        ),
        bad(
            "a list that is never closed",
            shop("[\"shop.example.com\"]", "[\"shop.example.com\""),
            &[SyntaxError],
        ),
        bad(
            "a comma between attributes",
            shop("gateways  = [\"edge\"]\n", "gateways  = [\"edge\"],\n"),
            &[SyntaxError],
        ),
        bad(
            "a colon in the place of the equals sign",
            shop("gateways  =", "gateways:"),
            &[SyntaxError],
        ),
        bad(
            "the brace that opens a block on the next line",
            shop("http_route \"shop\" {", "http_route \"shop\"\n{"),
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
            "operators and brackets in one another, which would be read for ever",
            format!("a = {}\n", "0/0%{e.0/0%{".repeat(40)),
            &[TooLarge],
        ),
        bad(
            "a forgotten quote before many paths",
            format!(
                "mirror \"m\" {{\n  text = \"a\n{}}}\n",
                "  path = \"/api/v1/b\"\n".repeat(9)
            ),
            &[SyntaxError],
        ),
        bad(
            "a heredoc whose first line is its end",
            format!("{SHOP}mirror \"m\" {{\n  text = <<EOT\nEOT\n}}\n"),
            &[SyntaxError],
        ),
        bad(
            "hostnames and matches that multiply to more than fits",
            format!(
                "http_route \"shop\" {{\n  gateways  = [\"edge\"]\n  hostnames = [{}]\n\n  rule \"all\" {{\n{}    backend \"consul\" \"orders\" {{}}\n  }}\n}}\n",
                (0..1000)
                    .map(|host| format!("\"h{host}.example.com\""))
                    .collect::<Vec<_>>()
                    .join(", "),
                "    match { path_prefix = \"/\" }\n".repeat(101)
            ),
            &[TooLarge],
        ),
        bad(
            "long policies on many hostnames and matches",
            format!(
                "http_route \"shop\" {{\n  gateways  = [\"edge\"]\n  hostnames = [{}]\n\n  request_headers {{\n    set = {{\n{}    }}\n  }}\n\n  rule \"all\" {{\n{}    backend \"consul\" \"orders\" {{}}\n  }}\n}}\n",
                (0..100)
                    .map(|host| format!("\"h{host}.example.com\""))
                    .collect::<Vec<_>>()
                    .join(", "),
                (0..100)
                    .map(|header| format!("      \"x-{header}\" = \"{}\"\n", "v".repeat(200)))
                    .collect::<String>(),
                "    match { path_prefix = \"/\" }\n".repeat(100)
            ),
            &[TooLarge],
        ),
        bad(
            "a listener with tens of thousands of certificates",
            format!(
                "gateway \"other\" {{\n  listener \"web\" {{\n    port     = 443\n    protocol = \"https\"\n    tls {{\n      certificates = [\n{}      ]\n    }}\n  }}\n}}\n",
                (0..20_000)
                    .map(|name| format!("        \"c{name}\",\n"))
                    .collect::<String>()
            ),
            &[TooLarge],
        ),
        bad(
            "costly regular expressions on several hostnames",
            format!(
                "http_route \"shop\" {{\n  gateways  = [\"edge\"]\n  hostnames = [{}]\n\n  rule \"all\" {{\n{}    backend \"consul\" \"orders\" {{}}\n  }}\n}}\n",
                (0..20)
                    .map(|host| format!("\"h{host}.example.com\""))
                    .collect::<Vec<_>>()
                    .join(", "),
                (0..1000)
                    .map(|path| format!(
                        "    match {{ path_regex = \"/{path}/[a-z]{{500}}[0-9]{{500}}\" }}\n"
                    ))
                    .collect::<String>()
            ),
            &[TooLarge],
        ),
        bad(
            "a gateway with hundreds of listeners for http",
            format!(
                "gateway \"other\" {{\n{}}}\n",
                (1..300)
                    .map(|port| format!("  listener \"l{port}\" {{\n    port = {port}\n  }}\n"))
                    .collect::<String>()
            ),
            &[TooLarge],
        ),
        bad(
            "a document over 512 KiB",
            format!("{SHOP}#{}\n", "x".repeat(512 * 1024)),
            &[TooLarge],
        ),
        bad(
            "typographic quotes",
            shop("[\"edge\"]", "[\u{201c}edge\u{201d}]"),
            &[SyntaxError],
        ),
        Case::new("an empty document", "", &[NoEffect], Stays::Nothing),
        Case::new(
            "a document of comments alone",
            "# to be written\n",
            &[NoEffect],
            Stays::Nothing,
        ),
    ]
}

//! Listeners and routes of plain TCP.

use portreeve::diagnostics::Code::{self, *};

use super::case::{Case, GATEWAY, Stays, service};
use super::world;

/// The gateway with a tcp listener, with more in it and behind it.
fn with_listener(more: &str, behind: &str) -> String {
    let listener =
        format!("  listener \"lines\" {{\n    port     = 7000\n    protocol = \"tcp\"\n{more}  }}\n\n");
    let gateway = GATEWAY.replacen("  listener \"web\"", &format!("{listener}  listener \"web\""), 1);
    format!("{gateway}\n{behind}")
}

fn route(listener: &str, backend: &str) -> String {
    format!(
        "tcp_route \"lines\" {{\n  gateways  = [\"edge\"]\n  listeners = [{listener}]\n\n  {backend}\n}}\n"
    )
}

const ORDERS: &str = "backend \"consul\" \"orders\" {}";

pub fn all() -> Vec<Case> {
    let case = |what, text: String, codes: &'static [Code], stays| {
        Case::new(what, text, codes, stays).in_document("gateway")
    };
    let lines = || route("\"lines\"", ORDERS);
    vec![
        case(
            "settings of HTTP on a tcp listener",
            with_listener(
                "    trusted_proxies = 1\n\n    retry { attempts = 2 }\n",
                &lines(),
            ),
            &[Conflict, Conflict],
            Stays::LastGood,
        ),
        case(
            "a tcp route that names no listener",
            with_listener("", &route("", ORDERS)),
            &[MissingKey],
            Stays::LastGood,
        ),
        case(
            "a tcp route without a backend",
            with_listener("", &route("\"lines\"", "connect_attempts = 2")),
            &[MissingKey],
            Stays::LastGood,
        ),
        case(
            "a tcp listener without a route",
            with_listener("", ""),
            &[ListenerWithheld],
            Stays::TcpClosed,
        ),
        case(
            "a tcp route to an unknown upstream",
            with_listener("", &route("\"lines\"", "backend \"upstream\" \"orders\" {}")),
            &[UnknownReference, ListenerWithheld],
            Stays::TcpClosed,
        ),
        case(
            "a tcp route whose every weight is 0",
            with_listener(
                "",
                &route("\"lines\"", "backend \"consul\" \"orders\" { weight = 0 }"),
            ),
            &[NoBackend, ListenerWithheld],
            Stays::TcpClosed,
        ),
        case(
            "a tcp route to an unknown service",
            with_listener("", &route("\"lines\"", "backend \"consul\" \"ordres\" {}")),
            &[UnknownService],
            Stays::TcpOpen,
        )
        .then(|snapshot| {
            world::answer_service(snapshot, &service("ordres"), Vec::new());
        }),
        case(
            "a tcp route on an http listener",
            with_listener(
                "",
                &(lines() + &route("\"web\"", ORDERS).replace("\"lines\" {", "\"web\" {")),
            ),
            &[NotAttached],
            Stays::TcpOpen,
        ),
        case(
            "two tcp routes of one listener",
            with_listener("", &(lines() + &lines().replace("\"lines\" {", "\"more\" {"))),
            &[ShadowedRule],
            Stays::TcpOpen,
        ),
    ]
}

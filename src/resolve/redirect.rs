//! Where a redirect leads: the port that is not written, and whether it comes back to the same rule.

use crate::config::{Gateway, Listener, Protocol, Rule};
use crate::diagnostics::{Code, Diagnostic};
use crate::model::http::{PathMatch, PathRewrite, Redirect};

/// Where the rule stands: the same rule may stand on several listeners.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub gateway: &'a Gateway,
    pub listener: &'a Listener,
    pub host: &'a str,
}

impl Place<'_> {
    /// What is written with the port that it means here, and what there is to say of it.
    pub fn redirect(&self, written: &Redirect, rule: &Rule) -> (Redirect, Option<Diagnostic>) {
        let redirect = with_port(written, self.listener);
        let said = lost_port(written, self.gateway, self.listener)
            .or_else(|| leads_to_itself(&redirect, rule, self.host, self.listener));
        (redirect, said)
    }
}

/// Fills in the port as Gateway API has it: the written scheme's own, else the listener's. A port that goes without
/// saying is not named.
fn with_port(written: &Redirect, listener: &Listener) -> Redirect {
    let port = port_of(written, listener);
    Redirect {
        port: Some(port).filter(|port| *port != own_port(scheme_of(written, listener))),
        ..written.clone()
    }
}

fn scheme_of<'a>(redirect: &'a Redirect, listener: &Listener) -> &'a str {
    redirect.scheme.as_deref().unwrap_or(scheme(listener.protocol))
}

fn port_of(redirect: &Redirect, listener: &Listener) -> u16 {
    match (redirect.port, &redirect.scheme) {
        (Some(port), _) => port,
        (None, Some(scheme)) => own_port(scheme),
        (None, None) => listener.port,
    }
}

fn scheme(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Https => "https",
        // No rule stands on a tcp listener.
        Protocol::Http | Protocol::Tcp => "http",
    }
}

fn own_port(scheme: &str) -> u16 {
    if scheme == "https" { 443 } else { 80 }
}

/// The scheme's own port is meant where none is written, and the gateway has listeners of that scheme on other ports
/// only. Written out, the port is taken as meant: something in front may forward it.
fn lost_port(written: &Redirect, gateway: &Gateway, listener: &Listener) -> Option<Diagnostic> {
    let wanted = written.scheme.as_deref()?;
    if written.port.is_some() || written.hostname.is_some() || wanted == scheme(listener.protocol) {
        return None;
    }
    let of_scheme = || {
        gateway
            .listeners
            .iter()
            .filter(|other| other.protocol.as_str() == wanted)
    };
    let (port, first) = (own_port(wanted), of_scheme().next()?);
    if of_scheme().any(|other| other.port == port) {
        return None;
    }
    // Said of each rule and host.
    let ports: Vec<String> = of_scheme()
        .take(8)
        .map(|other| format!("{:?} on {}", other.name, other.port))
        .collect();
    Some(
        Diagnostic::warning(
            Code::DoubtfulRedirect,
            format!(
                "the redirect leads to {wanted} on port {port}, where gateway {:?} does not listen",
                gateway.name
            ),
        )
        .because(format!(
            "a scheme without a port means its own port; {wanted} listeners here: {}",
            ports.join(", ")
        ))
        .fix(format!(
            "add `port = {}`, or `port = {port}` if something in front forwards that port to the listener",
            first.port
        )),
    )
}

/// The request that a client makes after the redirect is taken by the same rule, which redirects it again.
fn leads_to_itself(redirect: &Redirect, rule: &Rule, host: &str, listener: &Listener) -> Option<Diagnostic> {
    let same_host = redirect.hostname.as_deref().is_none_or(|to| to == host);
    let same_place = scheme_of(redirect, listener) == scheme(listener.protocol)
        && redirect.port.unwrap_or(own_port(scheme(listener.protocol))) == listener.port;
    let comes_back = rule
        .matches
        .iter()
        .any(|matching| takes_again(&matching.path, redirect.path.as_ref()));
    if !(same_host && same_place && comes_back) {
        return None;
    }
    Some(
        Diagnostic::warning(
            Code::DoubtfulRedirect,
            format!("on listener {:?} the redirect leads to itself", listener.name),
        )
        .because("clients follow it until they give up: scheme, host, port and path are taken by the same rule again")
        .fix("name the listeners that it is meant for (`listeners = [...]` on the route), or match fewer paths"),
    )
}

/// Never yes where a regular expression decides: it is Envoy's to know.
fn takes_again(path: &PathMatch, rewrite: Option<&PathRewrite>) -> bool {
    match (path, rewrite) {
        (_, None) => true,
        (PathMatch::Exact(path), Some(PathRewrite::Full(to))) => path == to,
        (PathMatch::Prefix(prefix), Some(PathRewrite::Full(to) | PathRewrite::Prefix(to))) => {
            is_below(to, prefix)
        }
        _ => false,
    }
}

fn is_below(path: &str, prefix: &str) -> bool {
    prefix == "/"
        || path
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{Config, ConfigChange, Permissions};
    use crate::hcl::Limits;
    use crate::model::{Document, DocumentId};
    use crate::resolve::resolve_virtual_host;
    use crate::snapshot::Snapshot;

    const HOST: &str = "a.example.com";

    /// Per listener, the port that is named and what is said, of a route with this rule on all of them.
    fn resolved(listeners: &[(&str, u16)], rule: &str) -> Vec<(Option<u16>, Vec<String>)> {
        let blocks: String = listeners
            .iter()
            .map(|(protocol, port)| {
                let tls = if *protocol == "https" { "tls {\n certificates = [\"c\"]\n }\n" } else { "" };
                format!("listener \"{protocol}-{port}\" {{\n port = {port}\n protocol = \"{protocol}\"\n {tls} }}\n")
            })
            .collect();
        let text = format!(
            "gateway \"edge\" {{\n{blocks}}}\nhttp_route \"r\" {{\n gateways = [\"edge\"]\n hostnames = [{HOST:?}]\n rule \"all\" {{\n{rule}\n}}\n}}\n"
        );
        let mut config = Config::new(Permissions::default(), Limits::default());
        let document = Document {
            id: DocumentId::File("edge.hcl".into()),
            text: text.into(),
            order: 0,
            version: 0,
        };
        config.upsert(document, None, &mut ConfigChange::default());
        assert_eq!(
            config
                .diagnostics()
                .iter()
                .filter(|said| said.code != Code::UnknownReference)
                .count(),
            0,
            "{:?}",
            config.diagnostics()
        );
        let snapshot = Snapshot::new(config, Default::default());
        let gateway = snapshot.config.gateway("edge").unwrap().clone();
        let host: Arc<str> = HOST.into();
        let of_listener = |listener: &Listener| {
            let resolved = resolve_virtual_host(&snapshot, &gateway, listener, &host).unwrap();
            let crate::ir::Action::Redirect(redirect) = &resolved.value.host.routes[0].action else {
                panic!("no redirect")
            };
            let said = resolved
                .diagnostics
                .iter()
                .map(|said| said.message.clone())
                .collect();
            (redirect.port, said)
        };
        gateway.listeners.iter().map(of_listener).collect()
    }

    fn ports(listeners: &[(&str, u16)], redirect: &str) -> Vec<Option<u16>> {
        let rule = format!(
            "match {{\n path_prefix = \"/old\"\n}}\nredirect {{\n path_prefix = \"/new\"\n{redirect}\n}}"
        );
        resolved(listeners, &rule)
            .into_iter()
            .map(|(port, _)| port)
            .collect()
    }

    /// Gateway API's conformance tests `http-route-redirect-port-and-scheme`, line by line.
    #[test]
    fn the_port_is_that_of_gateway_api() {
        for (listener, written, named) in [
            (("http", 80), "", None),
            (("http", 80), "port = 80", None),
            (("http", 80), "port = 8080", Some(8080)),
            (("http", 80), "scheme = \"https\"", None),
            (("http", 80), "scheme = \"https\"\nport = 443", None),
            (("http", 80), "scheme = \"https\"\nport = 8443", Some(8443)),
            (("http", 8080), "", Some(8080)),
            (("http", 8080), "port = 80", None),
            (("http", 8080), "scheme = \"https\"", None),
            (("https", 443), "", None),
            (("https", 443), "port = 443", None),
            (("https", 443), "port = 8443", Some(8443)),
            (("https", 443), "scheme = \"http\"", None),
            (("https", 443), "scheme = \"http\"\nport = 443", Some(443)),
            (("https", 8443), "", Some(8443)),
            (("https", 8443), "scheme = \"https\"", None),
        ] {
            assert_eq!(ports(&[listener], written), [named], "{listener:?} {written:?}");
        }
    }

    #[test]
    fn a_port_that_nobody_serves_is_told() {
        let said = |listeners: &[(&str, u16)], redirect: &str| {
            resolved(listeners, &format!("redirect {{\n{redirect}\n}}"))[0]
                .1
                .clone()
        };
        let both = [("http", 8080), ("https", 8443)];
        let found = said(&both, "scheme = \"https\"");
        assert!(
            found[0].contains("https on port 443, where gateway \"edge\" does not listen"),
            "{found:?}"
        );
        for written in [
            "scheme = \"https\"\nport = 8443",
            "scheme = \"https\"\nport = 443",
            "scheme = \"https\"\nhostname = \"b.example.com\"",
        ] {
            assert!(said(&both, written).is_empty(), "{written}");
        }
        assert!(said(&[("http", 80), ("https", 443)], "scheme = \"https\"").is_empty());
        assert!(
            said(&[("http", 80)], "scheme = \"https\"").is_empty(),
            "something in front serves it"
        );
    }

    #[test]
    fn a_redirect_to_itself_is_told() {
        let loops = |listeners: &[(&str, u16)], rule: &str| -> Vec<bool> {
            let all = resolved(listeners, rule);
            all.iter()
                .map(|(_, said)| said.iter().any(|said| said.contains("leads to itself")))
                .collect()
        };
        let standard = [("http", 80), ("https", 443)];
        assert_eq!(
            loops(&standard, "redirect {\n scheme = \"https\"\n}"),
            [false, true]
        );
        assert_eq!(
            loops(
                &[("http", 8080), ("https", 8443)],
                "redirect {\n scheme = \"https\"\n port = 8443\n}"
            ),
            [false, true]
        );
        let web = [("http", 8080)];
        for (rule, expected) in [
            ("redirect {\n hostname = \"a.example.com\"\n}", true),
            ("redirect {\n hostname = \"b.example.com\"\n}", false),
            ("redirect {\n path = \"/x\"\n}", true),
            ("redirect {\n path_prefix = \"/v2\"\n}", true),
            (
                "match {\n path_prefix = \"/v1\"\n}\nredirect {\n path_prefix = \"/v2\"\n}",
                false,
            ),
            (
                "match {\n path_prefix = \"/v1\"\n}\nredirect {\n path_prefix = \"/v1/x\"\n}",
                true,
            ),
            (
                "match {\n path_prefix = \"/v1\"\n}\nredirect {\n path_prefix = \"/v10\"\n}",
                false,
            ),
            ("match {\n path = \"/a\"\n}\nredirect {\n path = \"/a\"\n}", true),
            ("match {\n path = \"/a\"\n}\nredirect {\n path = \"/b\"\n}", false),
            ("redirect {\n port = 80\n}", false),
        ] {
            assert_eq!(loops(&web, rule), [expected], "{rule}");
        }
    }
}

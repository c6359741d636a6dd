//! What the destination's proxy will say to a request, before it is sent.

use regex::Regex;

use super::matching::{Request, holds};
use crate::diagnostics::{Code, Diagnostic, Severity};
use crate::model::mesh::{ChainProtocol, Intention, IntentionRule, PermissionMatch, PermissionPath};
use crate::snapshot::Known;

/// Said once for each target that every request of ours will be refused by.
pub(super) fn intention_diagnostic(known: &Known<Intention>, protocol: ChainProtocol) -> Option<Diagnostic> {
    if let Some(problem) = &known.problem {
        let mut diagnostic = Diagnostic::of_problem(Code::SourceProblem, problem)
            .because("whether the gateway may reach the service cannot be told beforehand");
        diagnostic.severity = Severity::Warning;
        return Some(diagnostic);
    }
    let intention = known.value.as_ref()?;
    let (source, destination) = (&intention.source, &intention.destination);
    denies_all(intention, protocol).then(|| {
        Diagnostic::error(
            Code::IntentionDenied,
            format!(
                "{destination:?} does not let {source:?} in: {}",
                in_words(intention)
            ),
        )
        .because("its proxy would close the connection: nothing is sent there, and clients get 503")
        .fix(format!(
            "`consul intention create -replace -allow {source} {destination}`"
        ))
    })
}

/// Whatever a request looks like.
pub(super) fn denies_all(intention: &Intention, protocol: ChainProtocol) -> bool {
    match &intention.rule {
        IntentionRule::Allow => false,
        IntentionRule::Deny => true,
        // A proxy that sees no HTTP cannot look at permissions, and refuses.
        IntentionRule::Permissions(_) => protocol == ChainProtocol::Tcp,
    }
}

fn in_words(intention: &Intention) -> String {
    match &intention.by {
        Some(by) => format!("denied by intention {by}"),
        None => "no intention is about them, and the default is deny".to_owned(),
    }
}

/// The verdict on one request, for `explain`. `request` as it reaches the destination; None: a connection is passed on.
pub(super) fn verdict(intention: &Intention, protocol: ChainProtocol, request: Option<&Request>) -> String {
    let by = |says: &str| match &intention.by {
        Some(by) => format!("{says} by intention {by}"),
        None => format!(
            "{says} by default: no intention is about {} and {}",
            intention.source, intention.destination
        ),
    };
    let permissions = match &intention.rule {
        IntentionRule::Allow => return by("allowed"),
        IntentionRule::Deny => return by("denied"),
        IntentionRule::Permissions(_) if protocol == ChainProtocol::Tcp => return by("denied"),
        IntentionRule::Permissions(permissions) => permissions,
    };
    let Some(request) = request else {
        return by("the service's own proxy checks each request against the HTTP permissions");
    };
    for (index, permission) in permissions.iter().enumerate() {
        if takes(&permission.matching, request) {
            let says = match (permission.allow, permission.needs_jwt) {
                (true, false) => "allowed",
                (true, true) => "allowed with a valid JWT",
                (false, _) => "denied",
            };
            return format!("{}, permission {}", by(says), index + 1);
        }
    }
    format!("{}, none of whose permissions matches", by("denied"))
}

fn takes(condition: &PermissionMatch, request: &Request) -> bool {
    let path_fits = match &condition.path {
        PermissionPath::AnyPath => true,
        PermissionPath::PathExact(path) => request.path == **path,
        PermissionPath::PathPrefix(prefix) => request.path.starts_with(&**prefix),
        PermissionPath::PathRegex(regex) => {
            Regex::new(&format!("^(?:{regex})$")).is_ok_and(|regex| regex.is_match(&request.path))
        }
    };
    let method_fits = condition.methods.is_empty()
        || condition
            .methods
            .iter()
            .any(|method| method.eq_ignore_ascii_case(&request.method));
    let headers_fit = condition.headers.iter().all(|header| {
        let values: Vec<&str> = request
            .headers
            .iter()
            .filter(|(name, _)| *name == *header.name)
            .map(|(_, value)| value.as_str())
            .collect();
        holds(header, &values)
    });
    path_fits && method_fits && headers_fit
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::mesh::Permission;

    fn intention(rule: IntentionRule) -> Intention {
        Intention {
            source: "edge-gw".into(),
            destination: "web".into(),
            rule,
            by: Some("edge-gw => web (x)".into()),
        }
    }

    #[test]
    fn permissions_are_tried_in_order() {
        let permission = |allow, path| Permission {
            allow,
            matching: PermissionMatch {
                path,
                methods: vec!["GET".into()],
                headers: Vec::new(),
            },
            needs_jwt: false,
        };
        let rule = IntentionRule::Permissions(vec![
            permission(false, PermissionPath::PathPrefix("/api/secret".into())),
            permission(true, PermissionPath::PathPrefix("/api".into())),
        ]);
        let said = |protocol, method, path| {
            verdict(
                &intention(rule.clone()),
                protocol,
                Some(&Request::new(method, "a", path, &[])),
            )
        };
        let http = ChainProtocol::Http;
        assert_eq!(
            said(http, "GET", "/api/x"),
            "allowed by intention edge-gw => web (x), permission 2"
        );
        assert_eq!(
            said(http, "GET", "/api/secret"),
            "denied by intention edge-gw => web (x), permission 1"
        );
        assert!(said(http, "POST", "/api").starts_with("denied"));
        assert_eq!(
            said(ChainProtocol::Tcp, "GET", "/api"),
            "denied by intention edge-gw => web (x)"
        );
        let of_a_connection = verdict(&intention(rule.clone()), http, None);
        assert!(
            of_a_connection.starts_with("the service's own proxy"),
            "{of_a_connection}"
        );
    }
}

//! What the destination's proxy will say to a request, before it is sent.

use super::matching::{Request, holds};
use crate::diagnostics::{Code, Diagnostic, Severity};
use crate::model::mesh::{
    ChainProtocol, Intention, IntentionRule, Permission, PermissionMatch, PermissionPath,
};
use crate::model::regex::full_match;
use crate::snapshot::Known;

/// What is wrong with the intentions of a target, and what they refuse us as far as they are known.
pub(super) fn intention_diagnostics(known: &Known<Intention>, protocol: ChainProtocol) -> Vec<Diagnostic> {
    let denial = known
        .value
        .as_ref()
        .and_then(|intention| denial(intention, protocol));
    let trouble = known.problem.as_ref().map(|problem| {
        let mut diagnostic = Diagnostic::of_problem(Code::SourceProblem, problem).because(match &denial {
            Some(_) => "the denial that was last known is in force until the intentions can be read",
            None => "whether the gateway may reach the service cannot be told beforehand",
        });
        diagnostic.severity = Severity::Warning;
        diagnostic
    });
    trouble.into_iter().chain(denial).collect()
}

/// Said once for each target that every request of ours will be refused by.
fn denial(intention: &Intention, protocol: ChainProtocol) -> Option<Diagnostic> {
    let (source, destination) = (&intention.source, &intention.destination);
    if let IntentionRule::Permissions(permissions) = &intention.rule
        && protocol != ChainProtocol::Tcp
        && deny_every_request(permissions)
    {
        let by = intention.by.as_deref().unwrap_or_default();
        let said = Diagnostic::error(
            Code::IntentionDenied,
            format!(
                "{destination:?} takes no request of {source:?}: all are denied by the permissions of intention {by}"
            ),
        );
        return Some(
            said.because("its proxy answers them with 403")
                .fix(format!(
                    "let a permission with the action allow stand before the one that denies, in the service-intentions entry of {destination}"
                )),
        );
    }
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

/// The first permission that matches decides. Where none does, the mesh's default, which is not known here: it takes one
/// that matches everything before anything is allowed.
fn deny_every_request(permissions: &[Permission]) -> bool {
    let matches_all = |matching: &PermissionMatch| {
        let any_path = match &matching.path {
            PermissionPath::AnyPath => true,
            PermissionPath::PathPrefix(prefix) => **prefix == *"/",
            PermissionPath::PathExact(_) | PermissionPath::PathRegex(_) => false,
        };
        any_path && matching.methods.is_empty() && matching.headers.is_empty()
    };
    let mut denials = permissions.iter().take_while(|permission| !permission.allow);
    denials.any(|denial| matches_all(&denial.matching))
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
    format!(
        "{}, none of whose permissions matches, unless the mesh allows what no intention speaks of",
        by("denied")
    )
}

fn takes(condition: &PermissionMatch, request: &Request) -> bool {
    let path_fits = match &condition.path {
        PermissionPath::AnyPath => true,
        PermissionPath::PathExact(path) => request.path == **path,
        PermissionPath::PathPrefix(prefix) => request.path.starts_with(&**prefix),
        PermissionPath::PathRegex(regex) => full_match(regex, &request.path).unwrap_or(false),
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
    use std::sync::Arc;

    use super::*;
    use crate::model::{Problem, ProblemKind};

    fn intention(rule: IntentionRule) -> Intention {
        Intention {
            source: "edge-gw".into(),
            destination: "web".into(),
            rule,
            by: Some("edge-gw => web (x)".into()),
        }
    }

    #[test]
    fn permissions_that_let_nothing_in_are_told() {
        let permission = |allow, path, methods: &[&str]| Permission {
            allow,
            matching: PermissionMatch {
                path,
                methods: methods.iter().map(|method| Arc::from(*method)).collect(),
                headers: Vec::new(),
            },
            needs_jwt: false,
        };
        let root = || PermissionPath::PathPrefix("/".into());
        let admin = || PermissionPath::PathPrefix("/admin".into());
        let any = || PermissionPath::AnyPath;
        let http = ChainProtocol::Http;
        for (permissions, protocol, message) in [
            (
                vec![permission(false, root(), &[])],
                http,
                Some("takes no request"),
            ),
            (
                vec![permission(false, admin(), &[]), permission(false, any(), &[])],
                http,
                Some("takes no request"),
            ),
            (
                vec![permission(false, any(), &[]), permission(true, any(), &[])],
                http,
                Some("takes no request"),
            ),
            (
                vec![permission(true, admin(), &[]), permission(false, any(), &[])],
                http,
                None,
            ),
            // The rest is the default's.
            (vec![permission(false, admin(), &[])], http, None),
            (vec![permission(false, root(), &["GET"])], http, None),
            (
                vec![permission(false, PermissionPath::PathExact("/".into()), &[])],
                http,
                None,
            ),
            // What sees no HTTP closes the connection.
            (
                vec![permission(true, any(), &[])],
                ChainProtocol::Tcp,
                Some("does not let"),
            ),
            (
                vec![permission(false, any(), &[])],
                ChainProtocol::Tcp,
                Some("does not let"),
            ),
        ] {
            let known = Known {
                value: Some(Arc::new(intention(IntentionRule::Permissions(
                    permissions.clone(),
                )))),
                ..Known::default()
            };
            let said = intention_diagnostics(&known, protocol).pop();
            let said = said.map(|said| said.message.to_string());
            match message {
                Some(message) => assert!(
                    said.as_ref().is_some_and(|said| said.contains(message)),
                    "{said:?}"
                ),
                None => assert_eq!(said, None, "{permissions:?}"),
            }
            let closes = denies_all(&intention(IntentionRule::Permissions(permissions)), protocol);
            assert_eq!(
                closes,
                protocol == ChainProtocol::Tcp,
                "its proxy answers requests itself"
            );
        }
    }

    #[test]
    fn a_denial_in_force_is_told_also_where_the_intentions_cannot_be_read() {
        let problem = Problem::new(ProblemKind::Unavailable, "no leader");
        let known = |rule| Known {
            value: rule,
            problem: Some(problem.clone()),
            stale: false,
        };
        let codes = |known: Known<Intention>| {
            let said = intention_diagnostics(&known, ChainProtocol::Tcp);
            said.iter()
                .map(|said| (said.code, said.severity))
                .collect::<Vec<_>>()
        };
        let denied = Arc::new(intention(IntentionRule::Deny));
        let trouble = (Code::SourceProblem, Severity::Warning);
        assert_eq!(
            codes(known(Some(denied))),
            [trouble, (Code::IntentionDenied, Severity::Error)]
        );
        assert_eq!(codes(known(None)), [trouble]);
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

use std::sync::Arc;

use crate::config::{Config, ObjectKind, Scope};
use crate::diagnostics::{Code, Diagnostic};
use crate::model::{DocumentId, Origin, Policies};

/// The documents that a scope's bundles come from.
pub(super) fn documents_of<'a>(
    config: &'a Config,
    scope: &'a Scope,
) -> impl Iterator<Item = DocumentId> + 'a {
    let bundles = scope.bundles.iter().filter_map(|(name, _)| config.policy(name));
    bundles.map(|bundle| bundle.origin.document.clone())
}

/// What holds on a scope: its bundles in the order named, then its own blocks. `Err`: a bundle is missing, and since
/// nobody knows what it would have forbidden, the scope's routes are closed.
pub(super) fn effective(config: &Config, scope: &Scope) -> Result<Policies, Box<Diagnostic>> {
    let mut policies = Policies::default();
    let mut unknown: Vec<&(Arc<str>, Origin)> = Vec::new();
    for bundle in &scope.bundles {
        match config.policy(&bundle.0) {
            Some(declared) => policies = policies.overlaid_by(&declared.policies),
            None => unknown.push(bundle),
        }
    }
    match &unknown[..] {
        [] => Ok(policies.overlaid_by(&scope.policies)),
        [(name, origin), others @ ..] => Err(Box::new(missing(config, name, origin, others.len()))),
    }
}

/// One for all: it is said for each host and each rule.
fn missing(config: &Config, name: &str, origin: &Origin, others: usize) -> Diagnostic {
    let others = match others {
        0 => String::new(),
        1 => ", nor another one of this list".to_owned(),
        more => format!(", nor {more} others of this list"),
    };
    let near = config.nearest(ObjectKind::Policy, name);
    Diagnostic::error(
        Code::SecurityPolicyInvalid,
        format!("no document declares the policy {name:?}{others}"),
    )
    .at(origin.clone())
    .because("it may hold a security policy, so its routes answer 503 until it is there")
    .fix(near.map_or_else(
        || format!("declare `policy {name:?} {{ ... }}`, or take the name away"),
        |near| format!("did you mean {near:?}?"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Permissions;
    use crate::hcl::Limits;
    use crate::model::Span;

    #[test]
    fn of_many_that_are_missing_the_first_is_told_and_the_others_counted() {
        let config = Config::new(Permissions::default(), Limits::default());
        let bundle = |name: &str| {
            let origin = Origin {
                document: DocumentId::File("shop.hcl".into()),
                span: Span::default(),
                line: 1,
                column: name.len() as u32,
            };
            (Arc::from(name), origin)
        };
        let said = |names: &[&str]| {
            let scope = Scope {
                bundles: names.iter().map(|name| bundle(name)).collect(),
                policies: Policies::default(),
            };
            effective(&config, &scope)
                .map_err(|problem| (problem.message.clone(), problem.origin.unwrap().column))
        };
        assert!(said(&[]).unwrap().is_empty());
        for (names, expected) in [
            (&["a"][..], "no document declares the policy \"a\""),
            (
                &["a", "bc"],
                "no document declares the policy \"a\", nor another one of this list",
            ),
            (
                &["a", "bc", "d"],
                "no document declares the policy \"a\", nor 2 others of this list",
            ),
        ] {
            assert_eq!(said(names).unwrap_err(), (expected.to_owned(), 1));
        }
    }
}

use crate::config::{Config, ObjectKind, Scope};
use crate::diagnostics::{Code, Diagnostic};
use crate::model::{DocumentId, Policies};

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
pub(super) fn effective(config: &Config, scope: &Scope) -> Result<Policies, Vec<Diagnostic>> {
    let mut policies = Policies::default();
    let mut problems = Vec::new();
    for (name, origin) in &scope.bundles {
        match config.policy(name) {
            Some(bundle) => policies = policies.overlaid_by(&bundle.policies),
            None => {
                let near = config.nearest(ObjectKind::Policy, name);
                problems.push(
                    Diagnostic::error(
                        Code::SecurityPolicyInvalid,
                        format!("no document declares the policy {name:?}"),
                    )
                    .at(origin.clone())
                    .because("it may hold a security policy, so its routes answer 503 until it is there")
                    .fix(near.map_or_else(
                        || format!("declare `policy {name:?} {{ ... }}`, or take the name away"),
                        |near| format!("did you mean {near:?}?"),
                    )),
                );
            }
        }
    }
    if problems.is_empty() {
        Ok(policies.overlaid_by(&scope.policies))
    } else {
        Err(problems)
    }
}

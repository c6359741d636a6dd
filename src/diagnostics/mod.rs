//! Everything a user can be told, as values.
//!
//! The same [`Diagnostic`] is shown by the CLI, the API, the log and the status keys. Nothing here knows where the
//! text of a document came from; whoever renders brings it.

mod code;
mod problems;
mod render;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use code::Code;
pub use problems::{Problems, first_problems};
pub use render::render;

use crate::model::{Origin, Problem, ProblemKind};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Something the user asked for is not in effect.
    Error,
    /// In effect, and probably not what was meant.
    Warning,
}

/// The named thing a diagnostic is about, as the user wrote it: `http_route "shop"`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectRef {
    pub kind: Arc<str>,
    pub name: Arc<str>,
}

impl std::fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.kind, self.name)
    }
}

/// One problem: what, where, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Diagnostic {
    pub severity: Severity,
    pub code: Code,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<ObjectRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// What is wrong, in one line.
    pub message: String,
    /// Why, or what happens meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Diagnostic {
    pub fn error(code: Code, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code,
            object: None,
            origin: None,
            message: message.into(),
            reason: None,
            fix: None,
        }
    }

    pub fn warning(code: Code, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(code, message)
        }
    }

    /// What a source says of itself, with its advice.
    /// With this code, unless the agent was turned away for its token, for having none, or by the server's settings: that has
    /// codes of its own, whatever was asked for.
    pub fn of_problem(code: Code, problem: &Problem) -> Self {
        let code = match problem.kind {
            ProblemKind::TokenNotAccepted => Code::TokenNotAccepted,
            ProblemKind::MissingPermission => Code::MissingPermission,
            ProblemKind::NoToken => Code::NoToken,
            ProblemKind::Blocked => Code::RequestBlocked,
            _ => code,
        };
        Self::error(code, problem.message.to_string()).fix(problem.advice())
    }

    pub fn at(mut self, origin: Origin) -> Self {
        self.origin = Some(origin);
        self
    }

    pub fn about(mut self, kind: &str, name: &str) -> Self {
        self.object = Some(ObjectRef {
            kind: kind.into(),
            name: name.into(),
        });
        self
    }

    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

/// One line, for logs and lists: `shop:12:3: error[unknown-key]: ...`.
impl std::fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}[{}]: {}", self.code.as_str(), self.message)?;
        if let Some(reason) = &self.reason {
            write!(f, "; {reason}")?;
        }
        if let Some(fix) = &self.fix {
            write!(f, "; fix: {fix}")?;
        }
        Ok(())
    }
}

/// The nearest of `known` to a word nobody knows, if it is near enough to be a slip.
pub fn suggestion<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .filter_map(|candidate| {
            let most = 1 + candidate.len().min(word.len()) / 4;
            let (one, other) = differing(word, candidate);
            let is_slip =
                one.len().max(other.len()) <= LONGEST_SLIP && one.len().abs_diff(other.len()) <= 4 * most;
            let distance = is_slip.then(|| strsim::damerau_levenshtein(one, other))?;
            (distance <= most).then_some((distance, candidate))
        })
        .min()
        .map(|(_, candidate)| candidate)
}

/// Bytes between the first and the last that differ. To compare takes a time of its square, and many names may be alike.
const LONGEST_SLIP: usize = 24;

/// What is left of both without what they begin and end with alike.
fn differing<'a>(one: &'a str, other: &'a str) -> (&'a str, &'a str) {
    let same: usize = one
        .chars()
        .zip(other.chars())
        .take_while(|(left, right)| left == right)
        .map(|(same, _)| same.len_utf8())
        .sum();
    let (one, other) = (&one[same..], &other[same..]);
    let same: usize = one
        .chars()
        .rev()
        .zip(other.chars().rev())
        .take_while(|(left, right)| left == right)
        .map(|(same, _)| same.len_utf8())
        .sum();
    (&one[..one.len() - same], &other[..other.len() - same])
}

#[cfg(test)]
mod tests {
    use super::suggestion;

    #[test]
    fn suggests_slips_only() {
        assert_eq!(
            suggestion("hostname", ["hostnames", "gateways"]),
            Some("hostnames")
        );
        assert_eq!(suggestion("rewirte", ["rewrite", "redirect"]), Some("rewrite"));
        assert_eq!(suggestion("banana", ["rewrite", "redirect"]), None);
        assert_eq!(suggestion("hëste", ["häste", "host"]), Some("häste"));
        assert_eq!(suggestion("aa", ["a", "aaa"]), Some("a"));
        let long = |middle: &str| format!("{}{middle}{}", "x".repeat(100), "y".repeat(100));
        let (word, near) = (long("chekcout"), long("checkout"));
        assert_eq!(
            suggestion(&word, [near.as_str(), &long("basket")]),
            Some(near.as_str())
        );
        assert_eq!(suggestion(&word, [&*"z".repeat(200)]), None);
    }
}

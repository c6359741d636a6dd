use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How one source or watch is doing. The agent makes these from what each source counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceReading {
    /// As operators know it: `kv portreeve/config`, `service orders`, `vault`.
    pub name: String,
    /// The last thing that ended was a success.
    pub ok: bool,
    /// Since the source last proved what it says. None: never yet.
    pub freshness_seconds: Option<f64>,
    pub requests_total: u64,
    pub errors_total: u64,
    /// What is wrong now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What the agent proves itself with, by name, and when that ends, in Unix seconds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub credentials: BTreeMap<String, i64>,
}

impl SourceReading {
    /// Of two of a kind: good where both are, and as old as the older one.
    pub fn and(self, other: &Self) -> Self {
        Self {
            ok: self.ok && other.ok,
            freshness_seconds: match (self.freshness_seconds, other.freshness_seconds) {
                (Some(one), Some(other)) => Some(one.max(other)),
                (one, other) => one.or(other),
            },
            requests_total: self.requests_total + other.requests_total,
            errors_total: self.errors_total + other.errors_total,
            ..self
        }
    }

    pub fn new(name: impl Into<String>, ok: bool, freshness: Option<Duration>) -> Self {
        Self {
            name: name.into(),
            ok,
            freshness_seconds: freshness.map(|age| age.as_secs_f64()),
            ..Self::default()
        }
    }

    pub fn counted(mut self, requests_total: u64, errors_total: u64) -> Self {
        self.requests_total = requests_total;
        self.errors_total = errors_total;
        self
    }

    pub fn with_problem(mut self, problem: Option<String>) -> Self {
        self.problem = problem;
        self
    }

    /// Those without an end are left out.
    pub fn with_credentials(mut self, credentials: &[(impl AsRef<str>, Option<i64>)]) -> Self {
        self.credentials = credentials
            .iter()
            .filter_map(|(name, end)| Some((name.as_ref().to_owned(), (*end)?)))
            .collect();
        self
    }
}

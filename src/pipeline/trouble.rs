use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::model::{CertificateQuery, Observation, Problem, ProblemKind, ServiceQuery};

/// Writes the trouble of sources into the log: once when it comes or changes, once when it ends.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    told: BTreeMap<Who, Problem>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Documents(Arc<str>),
    Service(ServiceQuery),
    Certificate(CertificateQuery),
}

/// When Consul is away, each of thousands of services says so: the first few speak for all.
const SHOWN: usize = 20;

impl Trouble {
    pub(super) fn hear(&mut self, observation: &Observation) {
        let (who, problem) = match observation {
            Observation::Accepted(_) => return,
            Observation::Documents(update) => {
                (Who::Documents(update.source.clone()), update.problem.as_ref())
            }
            Observation::Service(update) => match &update.result {
                Ok(_) if self.told.is_empty() => return,
                result => (Who::Service(update.query.clone()), result.as_ref().err()),
            },
            Observation::Certificate(update) => match &update.result {
                Ok(_) if self.told.is_empty() => return,
                result => (Who::Certificate(update.query.clone()), result.as_ref().err()),
            },
        };
        match problem {
            Some(problem) => self.begins(who, problem),
            None => self.ends(&who),
        }
    }

    pub(super) fn forget_service(&mut self, query: &ServiceQuery) {
        self.told.remove(&Who::Service(query.clone()));
    }

    pub(super) fn forget_certificate(&mut self, query: &CertificateQuery) {
        self.told.remove(&Who::Certificate(query.clone()));
    }

    fn begins(&mut self, who: Who, problem: &Problem) {
        if self.told.get(&who) == Some(problem) {
            return;
        }
        let fix = problem.fix.as_deref().unwrap_or_default();
        match self.told.len() {
            ..SHOWN => tracing::warn!(source = %who, fix, "{problem}"),
            SHOWN => tracing::warn!("more sources are in trouble: see `portreeve status`"),
            _ => tracing::debug!(source = %who, fix, "{problem}"),
        }
        self.told.insert(who, problem.clone());
    }

    fn ends(&mut self, who: &Who) {
        // A remark beside instances that are taken comes again after each change of theirs.
        if self
            .told
            .get(who)
            .is_some_and(|problem| problem.kind != ProblemKind::Limit)
        {
            self.told.remove(who);
            tracing::info!(source = %who, "in order again");
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Documents(source) => write!(f, "documents {source}"),
            Self::Service(query) => write!(f, "service {query}"),
            Self::Certificate(query) => write!(f, "certificate {query}"),
        }
    }
}

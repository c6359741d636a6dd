//! How much there is, and a part of it that fits a page: trouble comes first.

use serde::{Deserialize, Serialize};

use super::board::Status;
use super::envoy::EnvoyStatus;
use super::listener::ListenerStatus;
use super::object::{DocumentPhase, DocumentStatus, ObjectStatus};
use super::source::SourceReading;
use super::watch::{CertificatePhase, CertificateStatus, ServiceStatus};
use crate::diagnostics::{Diagnostic, Severity};

/// The length of each list, whatever part of it is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Troubled are those that are known not to be open, on some Envoy or on all.
    pub listeners: Count,
    pub documents: Count,
    pub objects: Count,
    pub services: Count,
    pub certificates: Count,
    pub envoys: Count,
    pub sources: Count,
    /// Troubled are the errors.
    pub diagnostics: Count,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub total: usize,
    /// Those an operator should look at. An excerpt has them first.
    pub troubled: usize,
}

impl Count {
    fn of<T: Row>(rows: &[T]) -> Self {
        Self {
            total: rows.len(),
            troubled: rows.iter().filter(|row| row.is_troubled()).count(),
        }
    }

    /// What an excerpt with so many rows leaves out.
    pub fn without(self, shown: usize) -> Self {
        Self {
            total: self.total.saturating_sub(shown),
            troubled: self.troubled.saturating_sub(shown),
        }
    }
}

impl Status {
    /// At most so many rows of each list but that of gateways. In one that is cut those in trouble come first, then the others,
    /// each in the order that they had. `counts` still tells of all.
    pub fn excerpt(mut self, rows: usize) -> Self {
        shorten(&mut self.listeners, rows);
        shorten(&mut self.documents, rows);
        shorten(&mut self.objects, rows);
        shorten(&mut self.services, rows);
        shorten(&mut self.certificates, rows);
        shorten(&mut self.envoys, rows);
        shorten(&mut self.sources, rows);
        shorten(&mut self.diagnostics, rows);
        self
    }

    pub(super) fn counted(mut self) -> Self {
        self.counts = Counts {
            listeners: Count::of(&self.listeners),
            documents: Count::of(&self.documents),
            objects: Count::of(&self.objects),
            services: Count::of(&self.services),
            certificates: Count::of(&self.certificates),
            envoys: Count::of(&self.envoys),
            sources: Count::of(&self.sources),
            diagnostics: Count::of(&self.diagnostics),
        };
        self
    }
}

fn shorten<T: Row>(list: &mut Vec<T>, rows: usize) {
    if list.len() > rows {
        list.sort_by_key(|row| !row.is_troubled());
        list.truncate(rows);
    }
}

trait Row {
    fn is_troubled(&self) -> bool;
}

impl Row for ListenerStatus {
    fn is_troubled(&self) -> bool {
        self.phase.has_failed()
    }
}

impl Row for DocumentStatus {
    fn is_troubled(&self) -> bool {
        self.phase != DocumentPhase::InService
    }
}

impl Row for ObjectStatus {
    fn is_troubled(&self) -> bool {
        !self.accepted.status || !self.resolved.status
    }
}

impl Row for ServiceStatus {
    fn is_troubled(&self) -> bool {
        self.problem.is_some() || !self.answered || self.stale || self.passing + self.warning == 0
    }
}

impl Row for CertificateStatus {
    fn is_troubled(&self) -> bool {
        let is_well = matches!(self.phase, CertificatePhase::Valid | CertificatePhase::Unused);
        !is_well || self.problem.is_some() || self.serves_former.is_some()
    }
}

/// One that is catching up is none to look at.
impl Row for EnvoyStatus {
    fn is_troubled(&self) -> bool {
        self.refused().next().is_some() || self.kinds.iter().any(|kind| !kind.wanted.is_empty())
    }
}

impl Row for SourceReading {
    fn is_troubled(&self) -> bool {
        !self.ok
    }
}

impl Row for Diagnostic {
    fn is_troubled(&self) -> bool {
        self.severity == Severity::Error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, ok: bool) -> SourceReading {
        SourceReading::new(name, ok, None)
    }

    #[test]
    fn trouble_comes_first_and_what_is_left_out_is_counted() {
        let whole = Status {
            sources: vec![
                source("a", true),
                source("b", false),
                source("c", true),
                source("d", false),
            ],
            ..Status::default()
        }
        .counted();
        let names = |status: &Status| -> Vec<String> {
            status.sources.iter().map(|source| source.name.clone()).collect()
        };
        let all = Count {
            total: 4,
            troubled: 2,
        };
        let fits = whole.clone().excerpt(4);
        assert_eq!((names(&fits), fits.counts.sources), (names(&whole), all));
        let three = whole.clone().excerpt(3);
        assert_eq!(names(&three), ["b", "d", "a"]);
        assert_eq!(three.counts.sources, all);
        let hidden = Count {
            total: 1,
            troubled: 0,
        };
        assert_eq!(all.without(3), hidden);
        assert_eq!(names(&whole.excerpt(1)), ["b"]);
        let hidden = Count {
            total: 3,
            troubled: 1,
        };
        assert_eq!(all.without(1), hidden);
    }
}

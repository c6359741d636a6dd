use std::sync::Arc;
use std::time::SystemTime;

use crate::diagnostics::{Code, Diagnostic, Severity};
use crate::resolve::{at_its_users, shared_ports};
use crate::snapshot::Snapshot;
use crate::translate::{Compiler, UnitKey};

/// Everything known and made at one moment. Cloning shares structure.
#[derive(Clone, Debug)]
pub struct View {
    pub snapshot: Snapshot,
    pub gateways: Vec<GatewayView>,
    /// Counts publications, for whoever waits for one.
    pub revision: u64,
    /// Serving what the disk held: the document source has not answered since the start.
    pub stale: bool,
}

#[derive(Clone, Debug)]
pub struct GatewayView {
    pub name: Arc<str>,
    pub compiler: Compiler,
    /// None: nothing is published yet, Envoys wait.
    pub published_at: Option<SystemTime>,
    /// What the first publication waits for.
    pub waiting_for: Vec<String>,
    /// What Envoy refused of it, for which no document could be put back.
    pub withheld: Vec<Diagnostic>,
}

impl View {
    /// All there is to say about the configuration, worst and oldest place first.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let config = &self.snapshot.config;
        let mut all = config.diagnostics();
        for gateway in &self.gateways {
            for (unit, diagnostics) in gateway.compiler.diagnostics() {
                all.extend(diagnostics.iter().map(|diagnostic| match unit {
                    UnitKey::Cluster(target) => {
                        at_its_users(&self.snapshot, &gateway.name, target, diagnostic)
                    }
                    _ => diagnostic.clone(),
                }));
            }
            all.extend(gateway.withheld.iter().cloned());
        }
        all.extend(shared_ports(&self.snapshot));
        for (source, problem) in self.snapshot.document_problems() {
            let mut diagnostic =
                Diagnostic::of_problem(Code::SourceProblem, problem).about("documents", source);
            diagnostic = if self.snapshot.documents_complete() {
                diagnostic.severity = Severity::Warning;
                diagnostic.because("the documents last known stay in service")
            } else {
                diagnostic
                    .because("not all documents are known: what the disk held is served, if it held any")
            };
            all.push(diagnostic);
        }
        all.sort();
        all.dedup();
        all
    }
}

use std::sync::Arc;
use std::time::SystemTime;

use crate::diagnostics::Diagnostic;
use crate::snapshot::Snapshot;
use crate::translate::Compiler;

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
}

impl View {
    /// All there is to say about the configuration, worst and oldest place first.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let config = &self.snapshot.config;
        let mut all: Vec<Diagnostic> = Vec::new();
        for state in config.documents() {
            all.extend(state.problems.iter().cloned());
            if let Some(parsed) = &state.in_service {
                for object in &parsed.objects {
                    all.extend(
                        config
                            .name_clashes(&object.key())
                            .into_iter()
                            .filter(|clash| clash.origin.as_ref() == Some(object.origin())),
                    );
                }
            }
        }
        for gateway in &self.gateways {
            for (_, diagnostics) in gateway.compiler.diagnostics() {
                all.extend(diagnostics.iter().cloned());
            }
        }
        for problem in self.snapshot.document_problems().values() {
            let mut diagnostic = Diagnostic::error(
                crate::diagnostics::Code::SourceProblem,
                problem.message.to_string(),
            )
            .because("the documents last known stay in service");
            diagnostic.fix = problem.fix.as_deref().map(str::to_owned);
            all.push(diagnostic);
        }
        all.sort();
        all.dedup();
        all
    }
}

//! Whether a document that names certificates which the agent may not use goes in service.
//!
//! None of them is ever read, as its object does not say where it is. For this agent it is not there, which is told where a
//! listener of its own gateways names it, and the rest of its document serves: agents of one prefix may each be allowed
//! what their own gateways use. An edit must not take away what serves, though: a certificate that the last good version
//! may use keeps its document's edit out, and so does a new one that a listener in the same document shows.
//!
//! Both follow from the document alone. Who names a certificate changes with other documents, and they come in any order.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::document::{ParsedDocument, parse_document};
use super::objects::{Certificate, Object, ObjectKind};
use super::permissions::Permissions;
use super::store::{Config, ConfigChange, DocumentState, say_what_stays};
use crate::diagnostics::{Code, Diagnostic, first_problems};
use crate::model::{Document, DocumentId};

impl Config {
    /// The gateways for which documents are judged.
    pub fn serving(mut self, gateways: BTreeSet<Arc<str>>) -> Self {
        let mut permissions = Permissions::clone(&self.permissions);
        permissions.gateways = Some(gateways);
        self.permissions = Arc::new(permissions);
        self
    }

    /// Other bounds on what documents from KV may reach. What they no longer allow leaves service, last good version or
    /// not: a certificate by itself, anything else with its document. What they now allow enters it. The gateways stay.
    pub fn permit(&mut self, mut permissions: Permissions, change: &mut ConfigChange) {
        permissions.gateways.clone_from(&self.permissions.gateways);
        if *self.permissions == permissions {
            return;
        }
        self.permissions = Arc::new(permissions);
        let bounded: Vec<Arc<DocumentState>> = self
            .documents
            .values()
            .filter(|state| !state.document.id.is_trusted())
            .cloned()
            .collect();
        for state in bounded {
            let still_allowed =
                |parsed: &Option<Arc<ParsedDocument>>| self.read(&parsed.as_ref()?.document, None).ok();
            let confirmed = still_allowed(&state.confirmed);
            let last_good = still_allowed(&state.in_service);
            let is_refused = |problem: &Diagnostic| problem.code == Code::EnvoyRejected;
            let (in_service, problems) = if state.problems.iter().any(is_refused) {
                (last_good, state.problems.to_vec())
            } else {
                match self.read(&state.document, last_good.as_deref()) {
                    Ok(parsed) => (Some(parsed), Vec::new()),
                    Err(problems) => {
                        let stays = last_good.is_some();
                        (last_good, say_what_stays(problems, stays))
                    }
                }
            };
            let id = &state.document.id;
            change.documents.insert(id.clone());
            self.put_in_service(id, state.in_service.as_deref(), in_service.as_deref(), change);
            let after = DocumentState {
                document: state.document.clone(),
                problems: problems.into(),
                in_service,
                confirmed,
            };
            self.documents.insert(id.clone(), Arc::new(after));
        }
    }

    /// A text that goes in service, or what is wrong with it.
    pub(super) fn read(
        &self,
        document: &Document,
        last_good: Option<&ParsedDocument>,
    ) -> Result<Arc<ParsedDocument>, Vec<Diagnostic>> {
        let parsed = parse_document(document, &self.permissions, &self.limits.0)?;
        let refusals = self.refusals(&parsed, last_good);
        if refusals.is_empty() {
            Ok(Arc::new(parsed))
        } else {
            Err(first_problems(refusals))
        }
    }

    /// What the document would take away that its last good version may use. Empty: it goes in service.
    fn refusals(&self, parsed: &ParsedDocument, last_good: Option<&ParsedDocument>) -> Vec<Diagnostic> {
        if self.permissions.gateways.is_none() {
            return parsed.not_allowed();
        }
        if parsed.refused().next().is_none() {
            return Vec::new();
        }
        let Some(last_good) = last_good else {
            return Vec::new();
        };
        let names = |certificates: Vec<&Certificate>| -> BTreeSet<Arc<str>> {
            certificates
                .iter()
                .map(|certificate| certificate.name.clone())
                .collect()
        };
        let (missing, known): (Vec<&Certificate>, Vec<&Certificate>) = last_good
            .certificates()
            .partition(|certificate| certificate.allowed().is_none());
        let (missing, known) = (names(missing), names(known));
        let shown = self.shown_by(parsed);
        let takes_away =
            |name: &Arc<str>| known.contains(name) || (shown.contains(name) && !missing.contains(name));
        parsed
            .refused()
            .filter(|(certificate, _)| takes_away(&certificate.name))
            .flat_map(|(_, refused)| refused.problems.to_vec())
            .collect()
    }

    /// The certificates that the document's own listeners show, of gateways that the agent serves.
    fn shown_by(&self, parsed: &ParsedDocument) -> BTreeSet<Arc<str>> {
        let gateways = parsed.objects.iter().filter(|object| match object {
            Object::Gateway(gateway) => self.permissions.judges(&gateway.name),
            _ => false,
        });
        gateways
            .flat_map(Object::references)
            .filter(|key| key.kind == ObjectKind::Certificate)
            .map(|key| key.name)
            .collect()
    }

    /// What serves of a document lacks certificates that it may not use.
    pub fn goes_without(&self, id: &DocumentId) -> bool {
        let in_service = self.document(id).and_then(|state| state.in_service.as_ref());
        in_service.is_some_and(|parsed| parsed.lacks_certificates())
    }

    /// The text is in order, and says of no certificate what it may not: it is better than one that goes without.
    pub fn lacks_nothing(&self, document: &Document) -> bool {
        parse_document(document, &self.permissions, &self.limits.0)
            .is_ok_and(|parsed| !parsed.lacks_certificates())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hcl::Limits;

    /// May read the variables of `edge`, and serves that gateway alone.
    fn edge() -> Config {
        let permissions = Permissions {
            nomad_variables: vec!["edge".into()],
            ..Permissions::default()
        };
        Config::new(permissions, Limits::default()).serving(["edge".into()].into())
    }

    fn document(name: &str, text: &str) -> Document {
        Document {
            id: DocumentId::Kv(name.into()),
            text: text.into(),
            order: 1,
            version: 1,
        }
    }

    fn gateway(name: &str, certificates: &str) -> String {
        format!(
            "gateway \"{name}\" {{\n  listener \"web\" {{\n    port     = 443\n    protocol = \"https\"\n    tls {{ certificates = [{certificates}] }}\n  }}\n}}\n"
        )
    }

    fn certificate(name: &str, variable: &str) -> String {
        format!("certificate \"{name}\" {{\n  nomad_variable {{ path = \"{variable}\" }}\n}}\n")
    }

    /// With something else, to be seen by.
    fn with_upstream(name: &str, variable: &str) -> String {
        certificate(name, variable) + "upstream \"other\" {\n  static { addresses = [\"10.0.0.1:80\"] }\n}\n"
    }

    fn put(config: &mut Config, documents: &[(&str, String)]) -> ConfigChange {
        let mut change = ConfigChange::default();
        for (name, text) in documents {
            config.upsert(document(name, text), None, &mut change);
        }
        change
    }

    fn problems(config: &Config, name: &str) -> usize {
        let state = config.document(&DocumentId::Kv(name.into())).unwrap();
        state.problems.len()
    }

    /// The variable that is read for a certificate.
    fn read_for(config: &Config, certificate: &str) -> Option<String> {
        Some(config.certificate(certificate)?.allowed()?.to_string())
    }

    #[test]
    fn what_others_show_is_neither_read_nor_told() {
        let mut config = edge();
        let own = gateway("edge", "\"www\"") + &certificate("www", "edge");
        let others = gateway("inner", "\"inner\"") + &with_upstream("inner", "inner");
        put(&mut config, &[("edge", own), ("inner", others)]);
        assert!(read_for(&config, "www").is_some());
        assert_eq!(read_for(&config, "inner"), None);
        assert_eq!((problems(&config, "edge"), problems(&config, "inner")), (0, 0));
        assert!(config.upstream("other").is_some());
        let goes_without = |name: &str| config.goes_without(&DocumentId::Kv(name.into()));
        assert!(goes_without("inner") && !goes_without("edge"));
    }

    #[test]
    fn an_edit_takes_no_certificate_away_that_may_be_used() {
        let shows = |key: &str| (key.to_owned(), gateway("edge", "\"www\""));
        let (former, edit) = (certificate("www", "edge"), with_upstream("www", "inner"));
        let elsewhere = shows("elsewhere");
        // Whatever else the same update does, and in whichever order.
        for documents in [
            vec![("www".to_owned(), edit.clone())],
            vec![("www".to_owned(), edit.clone()), elsewhere.clone()],
            vec![elsewhere, ("www".to_owned(), edit.clone())],
        ] {
            let mut config = edge();
            let gateway = shows("gateway");
            put(&mut config, &[(&gateway.0, gateway.1), ("www", former.clone())]);
            let served = read_for(&config, "www");
            config.remove(&DocumentId::Kv("gateway".into()), &mut ConfigChange::default());
            let documents: Vec<(&str, String)> = documents
                .iter()
                .map(|(name, text)| (&**name, text.clone()))
                .collect();
            put(&mut config, &documents);
            assert!(served.is_some() && read_for(&config, "www") == served);
            assert_eq!((problems(&config, "www"), config.upstream("other")), (1, None));
            // Under another name it takes nothing away.
            put(
                &mut config,
                &[("www", former.clone() + &with_upstream("inner", "inner"))],
            );
            assert_eq!((read_for(&config, "www"), problems(&config, "www")), (served, 0));
            assert!(config.upstream("other").is_some());
        }
    }

    #[test]
    fn an_edit_puts_nothing_in_the_place_of_a_certificate_that_serves() {
        let text = |name: &str, variable: &str| {
            gateway("edge", &format!("{name:?}")) + &with_upstream(name, variable)
        };
        let mut config = edge();
        put(&mut config, &[("edge", text("www", "edge"))]);
        put(&mut config, &[("edge", text("new", "inner"))]);
        assert_eq!(problems(&config, "edge"), 1);
        assert!(read_for(&config, "www").is_some() && config.certificate("new").is_none());
        // One that was there without its certificate may be edited.
        let mut config = edge();
        put(&mut config, &[("edge", text("new", "inner"))]);
        put(&mut config, &[("edge", text("new", "another"))]);
        assert_eq!((problems(&config, "edge"), read_for(&config, "new")), (0, None));
    }

    #[test]
    fn what_was_never_good_comes_out_the_same_in_every_order() {
        let documents = [
            (
                "edge",
                gateway("edge", "\"www\"") + &with_upstream("own", "inner"),
            ),
            ("www", certificate("www", "inner")),
        ];
        let mut reversed = documents.clone();
        reversed.reverse();
        for documents in [documents, reversed] {
            let mut config = edge();
            put(&mut config, &documents);
            assert_eq!((problems(&config, "edge"), problems(&config, "www")), (0, 0));
            assert!(config.gateway("edge").is_some() && config.upstream("other").is_some());
            assert_eq!((read_for(&config, "www"), read_for(&config, "own")), (None, None));
            assert!(config.goes_without(&DocumentId::Kv("www".into())));
        }
    }

    #[test]
    fn other_bounds_take_the_certificate_alone() {
        let mut config = edge();
        let both = gateway("edge", "\"www\"") + &with_upstream("www", "edge");
        put(&mut config, &[("edge", both)]);
        let mut permit = |variable: &str| {
            let mut change = ConfigChange::default();
            let permissions = Permissions {
                nomad_variables: vec![variable.into()],
                ..Permissions::default()
            };
            config.permit(permissions, &mut change);
            let changed: Vec<String> = change.objects.keys().map(ToString::to_string).collect();
            (
                changed,
                read_for(&config, "www").is_some(),
                problems(&config, "edge"),
            )
        };
        let changed = vec!["certificate \"www\"".to_owned()];
        assert_eq!(permit("inner"), (changed.clone(), false, 0));
        assert_eq!(permit("edge"), (changed, true, 0));
    }

    #[test]
    fn no_name_is_taken_by_what_may_not_be_used() {
        let older = Document {
            order: 0,
            ..document("older", &with_upstream("www", "inner"))
        };
        for is_first in [true, false] {
            let mut config = edge();
            let mut change = ConfigChange::default();
            if is_first {
                config.upsert(older.clone(), None, &mut change);
            }
            put(&mut config, &[("www", certificate("www", "edge"))]);
            config.upsert(older.clone(), None, &mut change);
            assert!(read_for(&config, "www").is_some() && config.upstream("other").is_some());
            config.remove(&DocumentId::Kv("www".into()), &mut change);
            assert_eq!(read_for(&config, "www"), None);
            assert!(config.certificate("www").is_some(), "it is told who names it");
        }
    }

    #[test]
    fn where_nobody_knows_who_is_served_all_is_judged() {
        let permissions = Permissions {
            nomad_variables: vec!["edge".into()],
            ..Permissions::default()
        };
        let mut config = Config::new(permissions, Limits::default());
        put(&mut config, &[("www", with_upstream("www", "inner"))]);
        assert_eq!((problems(&config, "www"), config.upstream("other")), (1, None));
    }
}

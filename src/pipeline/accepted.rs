//! Documents of which nothing is in service, or all but a certificate that they may not use: the text that the others accepted is
//! asked for, once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::flood::{Flood, WINDOW};
use crate::config::Config;
use crate::model::DocumentId;

/// How long the first publication waits for accepted texts. Consul, which has just brought the documents, answers in
/// milliseconds; after this the document is absent until the answer comes.
const WAIT: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(super) struct AcceptedTexts {
    /// None: there is nobody to ask.
    wanted: Option<mpsc::UnboundedSender<DocumentId>>,
    asked: BTreeSet<DocumentId>,
    open: BTreeSet<DocumentId>,
    give_up_at: Option<Instant>,
    said: Flood<Outcome>,
}

impl AcceptedTexts {
    pub fn ask_through(wanted: mpsc::UnboundedSender<DocumentId>) -> Self {
        Self {
            wanted: Some(wanted),
            ..Self::default()
        }
    }

    /// Asks for what these documents lack.
    pub fn review(&mut self, config: &Config, documents: &BTreeSet<DocumentId>) {
        let Some(wanted) = &self.wanted else { return };
        for id in documents.iter().filter(|id| matches!(id, DocumentId::Kv(_))) {
            match config.document(id) {
                None => {
                    self.asked.remove(id);
                    self.open.remove(id);
                }
                // What an Envoy here runs with is not given up for a certificate.
                Some(state)
                    if state.in_service.is_some()
                        && (state.confirmed.is_some() || !config.goes_without(id)) =>
                {
                    self.open.remove(id);
                }
                // Unbounded: each document is asked for once, and their number is bounded.
                Some(_) if !self.asked.contains(id) && wanted.send(id.clone()).is_ok() => {
                    self.asked.insert(id.clone());
                    self.open.insert(id.clone());
                    self.give_up_at.get_or_insert_with(|| Instant::now() + WAIT);
                }
                Some(_) => {}
            }
        }
        self.settle();
    }

    /// Says what became of it.
    pub fn answered(&mut self, id: &DocumentId, outcome: Outcome) {
        let now = Instant::now();
        self.say_more(now);
        if self.said.admits(outcome, now) {
            outcome.say(id);
        }
        self.open.remove(id);
        self.settle();
    }

    pub fn log_deadline(&self) -> Option<Instant> {
        self.said.deadline()
    }

    pub fn say_more(&mut self, now: Instant) {
        say_counts(self.said.over(now));
    }

    pub fn say_rest(&mut self) {
        say_counts(self.said.rest());
    }

    /// When to stop waiting.
    pub fn deadline(&self) -> Option<Instant> {
        self.give_up_at
    }

    /// True: the wait is over just now.
    pub fn tick(&mut self, now: Instant) -> bool {
        let over = self.give_up_at.is_some_and(|at| at <= now);
        if over {
            self.open.clear();
            self.give_up_at = None;
        }
        over
    }

    pub fn waiting_for(&self) -> Vec<String> {
        self.open
            .iter()
            .map(|id| format!("the accepted text of {id}"))
            .collect()
    }

    fn settle(&mut self) {
        if self.open.is_empty() {
            self.give_up_at = None;
        }
    }
}

fn say_counts(counts: BTreeMap<Outcome, usize>) {
    for (outcome, count) in counts {
        if outcome == Outcome::NotNeeded {
            continue;
        }
        tracing::warn!(count, ?outcome, window = ?WINDOW, "and so with the accepted texts of more documents");
    }
}

/// What serves of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// There is no such document.
    Gone,
    Nothing,
    /// All but the certificates that the document may not use.
    Partly,
    Something,
}

impl Served {
    pub fn of(config: &Config, id: &DocumentId) -> Self {
        match config.document(id) {
            None => Self::Gone,
            Some(state) if state.in_service.is_none() => Self::Nothing,
            Some(_) if config.goes_without(id) => Self::Partly,
            Some(_) => Self::Something,
        }
    }
}

/// What became of an answer: the document may have been mended or deleted since it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    Serves,
    /// By the agent's present version or settings.
    IsBadToo,
    NoneKept,
    NotNeeded,
}

impl Outcome {
    pub fn of(before: Served, after: Served, has_text: bool) -> Self {
        match (before, after) {
            (Served::Nothing, Served::Something | Served::Partly) | (Served::Partly, Served::Something) => {
                Self::Serves
            }
            (Served::Nothing, _) if has_text => Self::IsBadToo,
            (Served::Nothing, _) => Self::NoneKept,
            (Served::Gone | Served::Partly | Served::Something, _) => Self::NotNeeded,
        }
    }

    fn say(self, document: &DocumentId) {
        match self {
            Self::Serves => {
                tracing::warn!(%document, "the present text is bad: the last one that was accepted goes in service");
            }
            Self::IsBadToo => {
                tracing::warn!(%document, "the present text is bad, and so is the last one that was accepted");
            }
            Self::NoneKept => {
                tracing::warn!(%document, "the present text is bad, and no accepted one is kept");
            }
            Self::NotNeeded => {
                tracing::debug!(%document, "an accepted text came when it was no longer needed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{ConfigChange, Permissions};
    use crate::hcl::Limits;
    use crate::model::{AcceptedText, Document, Observation};
    use crate::snapshot::Snapshot;

    const GOOD: &str = "gateway \"edge\" {\n  listener \"web\" {\n    port = 80\n  }\n}\n";

    fn document(text: &str) -> Document {
        Document {
            id: DocumentId::Kv("p/config/a".into()),
            text: text.into(),
            order: 3,
            version: 4,
        }
    }

    fn snapshot(text: &str) -> Snapshot {
        let mut config = Config::new(Permissions::default(), Limits::default());
        config.upsert(document(text), None, &mut ConfigChange::default());
        Snapshot::new(config, BTreeSet::new())
    }

    #[test]
    fn asks_once_for_a_document_of_which_nothing_serves() {
        let (sender, mut wanted) = mpsc::unbounded_channel();
        let mut texts = AcceptedTexts::ask_through(sender);
        let ids = BTreeSet::from([document("").id]);
        texts.review(&snapshot("gateway {").config, &ids);
        texts.review(&snapshot("gateway {{").config, &ids);
        assert_eq!(wanted.try_recv().unwrap(), document("").id);
        assert!(wanted.try_recv().is_err());
        assert_eq!(texts.waiting_for(), ["the accepted text of p/config/a"]);
        texts.answered(&document("").id, Outcome::NoneKept);
        assert!(texts.waiting_for().is_empty() && texts.deadline().is_none());
        texts.review(&snapshot(GOOD).config, &ids);
        assert!(wanted.try_recv().is_err());
    }

    #[test]
    fn the_accepted_text_serves_while_the_present_one_is_bad() {
        let mut snapshot = snapshot("gateway {");
        let accepted = |text: Option<&str>| {
            Observation::Accepted(AcceptedText {
                document: document("").id,
                text: text.map(Arc::from),
            })
        };
        let outcome = |snapshot: &mut Snapshot, text: Option<&str>| {
            let before = Served::of(&snapshot.config, &document("").id);
            let changes = snapshot.apply(accepted(text));
            let after = Served::of(&snapshot.config, &document("").id);
            (changes, Outcome::of(before, after, text.is_some()))
        };
        let (changes, said) = outcome(&mut snapshot, None);
        assert!(changes.is_empty() && said == Outcome::NoneKept, "{said:?}");
        assert_eq!(outcome(&mut snapshot, Some("also bad {")).1, Outcome::IsBadToo);
        assert!(
            !snapshot
                .apply(accepted(Some("also bad {")))
                .config
                .objects
                .contains_key(&crate::config::ObjectKey::new(
                    crate::config::ObjectKind::Gateway,
                    "edge"
                ))
        );
        let (changes, said) = outcome(&mut snapshot, Some(GOOD));
        assert_eq!((changes.config.objects.len(), said), (1, Outcome::Serves));
        let state = snapshot.config.document(&document("").id).unwrap();
        assert_eq!(
            &*state.document.text, "gateway {",
            "the source's text stays what it is"
        );
        assert!(!state.problems.is_empty());
        assert_eq!(&*state.in_service.as_ref().unwrap().document.text, GOOD);
        assert_eq!(state.in_service.as_ref().unwrap().document.order, 3);
        // Late: something serves already, or the document is gone.
        let (changes, said) = outcome(&mut snapshot, Some(""));
        assert!(changes.is_empty() && said == Outcome::NotNeeded, "{said:?}");
        snapshot.forget_documents([document("").id]);
        assert_eq!(outcome(&mut snapshot, Some(GOOD)).1, Outcome::NotNeeded);
    }

    /// Where the present text may not use a certificate that a listener shows, the accepted one that may is better than the
    /// rest of the present one.
    #[test]
    fn the_accepted_text_serves_where_the_present_one_lacks_a_certificate() {
        let text = |variable: &str| {
            format!(
                "gateway \"edge\" {{\n  listener \"web\" {{\n    port = 443\n    protocol = \"https\"\n    tls {{ certificates = [\"www\"] }}\n  }}\n}}\n\
                 certificate \"www\" {{\n  nomad_variable {{ path = \"{variable}\" }}\n}}\n"
            )
        };
        let permissions = Permissions {
            nomad_variables: vec!["edge".into()],
            ..Permissions::default()
        };
        let mut config = Config::new(permissions, Limits::default()).serving(BTreeSet::from(["edge".into()]));
        let id = document("").id;
        let ids = BTreeSet::from([id.clone()]);
        config.upsert(document(&text("inner")), None, &mut ConfigChange::default());
        let mut snapshot = Snapshot::new(config, BTreeSet::new());
        let (sender, mut wanted) = mpsc::unbounded_channel();
        let mut texts = AcceptedTexts::ask_through(sender);
        texts.review(&snapshot.config, &ids);
        assert_eq!(wanted.try_recv().unwrap(), id);
        let mut answer = |text: &str| {
            let served = Served::of(&snapshot.config, &id);
            snapshot.apply(Observation::Accepted(AcceptedText {
                document: id.clone(),
                text: Some(text.into()),
            }));
            let serves = Served::of(&snapshot.config, &id);
            let certificate = snapshot.config.certificate("www").unwrap();
            let confirmed = snapshot.config.document(&id).unwrap().confirmed.as_ref();
            assert_eq!(confirmed.is_some(), certificate.allowed().is_some());
            (Outcome::of(served, serves, true), certificate.allowed().is_some())
        };
        // What others accepted lacks it here, too: everything else of it goes on to serve.
        assert_eq!(answer(&text("another")), (Outcome::NotNeeded, false));
        assert_eq!(
            answer("gateway {"),
            (Outcome::NotNeeded, false),
            "nothing is confirmed by a bad one"
        );
        assert_eq!(answer(&text("edge")), (Outcome::Serves, true));
        let state = snapshot.config.document(&id).unwrap();
        assert_eq!(*state.document.text, text("inner"));
        assert!(!state.problems.is_empty());
        texts.review(&snapshot.config, &ids);
        assert!(texts.waiting_for().is_empty());
    }
}

//! The texts that serve and that an Envoy acknowledged, under `<prefix>/accepted/`: the leader keeps them, and an agent
//! that finds a document bad and knows no better reads one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::rights::Trouble;
use crate::model::{AcceptedText, DocumentId, Observation};
use crate::pipeline::View;
use crate::sources::consul::{ConsulClient, ConsulError, FencedWriteError, Leadership, TxnWrite, is_written};

/// Reads what the pipeline asks for.
pub(super) async fn answer(
    shared: Arc<Shared>,
    mut wanted: mpsc::UnboundedReceiver<DocumentId>,
    stop: CancellationToken,
) {
    let mut trouble = Trouble::costing(
        "the accepted text of a document cannot be read from Consul KV",
        "documents whose present text is bad, and of which nothing is in service, stay out of it until it can",
    );
    let config_prefix = shared.key("config/");
    let mut unanswered = Unanswered::default();
    loop {
        let id = tokio::select! {
            () = stop.cancelled() => return,
            id = wanted.recv() => match id {
                Some(id) => id,
                None => return,
            },
            () = wait_until(unanswered.not_before), if !unanswered.open.is_empty() => {
                match unanswered.open.pop_front() {
                    Some(id) => id,
                    None => continue,
                }
            }
        };
        let text = match id.as_str().strip_prefix(&config_prefix) {
            None => None,
            Some(name) => match read(&shared, name, &mut trouble).await {
                Ok(text) => {
                    unanswered.is_answered();
                    text
                }
                Err(pause) => {
                    unanswered.put_off(id, pause, Instant::now());
                    continue;
                }
            },
        };
        // What becomes of it is told where it is taken up.
        let answer = AcceptedText { document: id, text };
        if shared
            .keys
            .observations
            .send(Observation::Accepted(answer))
            .await
            .is_err()
        {
            return;
        }
    }
}

/// Texts of which Consul did not say whether there is one: that is no answer, so it is asked again.
#[derive(Default)]
struct Unanswered {
    /// The longest unasked first.
    open: VecDeque<DocumentId>,
    /// None: at once.
    not_before: Option<Instant>,
}

impl Unanswered {
    /// One text could not be read. Each is small, and they are asked for one after the other.
    fn put_off(&mut self, id: DocumentId, pause: Duration, now: Instant) {
        self.open.push_back(id);
        self.not_before = Some(now + pause.max(RETRY));
    }

    /// What kept one of them keeps none of them any more.
    fn is_answered(&mut self) {
        self.not_before = None;
    }
}

async fn wait_until(at: Option<Instant>) {
    if let Some(at) = at {
        sleep_until(at).await;
    }
}

/// An error is how long to leave Consul alone with it.
async fn read(shared: &Shared, name: &str, trouble: &mut Trouble) -> Result<Option<Arc<str>>, Duration> {
    let key = shared.key(&format!("accepted/{name}"));
    match shared.keys.client.read_key(&key).await {
        Ok(entry) => {
            trouble.over();
            Ok(entry.and_then(|entry| std::str::from_utf8(&entry.value).ok().map(Arc::from)))
        }
        Err(error) => Err(trouble.failed(
            &error,
            &format!(
                "key_prefix {:?} {{ policy = \"write\" }}",
                shared.key("accepted/")
            ),
        )),
    }
}

/// Between two questions about texts that could not be read.
const RETRY: Duration = Duration::from_secs(2);

/// What stands under the prefix, and what to change there.
pub(super) struct AcceptedKeeper {
    /// `<prefix>/`.
    prefix: String,
    /// Name to text and ModifyIndex. None: to be read first.
    known: Option<BTreeMap<String, (Bytes, u64)>>,
}

/// One step towards what should stand there.
#[derive(Debug, PartialEq)]
enum Step {
    Put {
        name: String,
        text: Arc<str>,
        index: u64,
    },
    Delete {
        name: String,
        index: u64,
    },
}

impl AcceptedKeeper {
    pub fn new(prefix: String) -> Self {
        Self { prefix, known: None }
    }

    pub async fn keep(
        &mut self,
        client: &ConsulClient,
        leadership: &Leadership,
        view: &View,
    ) -> Result<(), FencedWriteError> {
        // What the disk held may be older than what others accepted since.
        if view.stale || !view.snapshot.documents_complete() || !view.snapshot.document_problems().is_empty()
        {
            return Ok(());
        }
        let mut known = match self.known.take() {
            Some(known) => known,
            None => self.read(client).await?,
        };
        let wanted = texts(view, &format!("{}config/", self.prefix));
        self.leave_alone_what_is_hidden(client, &mut known, &wanted)
            .await?;
        let steps = steps(&known, &wanted);
        // On any failure `known` is forgotten and read anew: somebody else may have written.
        for batch in batches(steps) {
            self.write(client, leadership, &batch, &mut known).await?;
        }
        self.known = Some(known);
        Ok(())
    }

    async fn read(&self, client: &ConsulClient) -> Result<BTreeMap<String, (Bytes, u64)>, ConsulError> {
        let prefix = format!("{}accepted/", self.prefix);
        let entries = client.read_tree(&prefix).await?;
        Ok(entries
            .into_iter()
            .filter_map(|entry| {
                // What somebody else put there under a name that we would not write is none of ours.
                let name = entry
                    .key
                    .strip_prefix(&prefix)
                    .filter(|_| is_written(&entry.key))?;
                Some((name.to_owned(), (entry.value, entry.modify_index)))
            })
            .collect())
    }

    /// A list leaves out what the token may not see: that a document is gone is asked about it alone. What is there, and what
    /// this agent may not read, is another agent's to keep.
    async fn leave_alone_what_is_hidden(
        &self,
        client: &ConsulClient,
        known: &mut BTreeMap<String, (Bytes, u64)>,
        wanted: &BTreeMap<String, Option<Confirmed>>,
    ) -> Result<(), ConsulError> {
        let gone: Vec<String> = known
            .keys()
            .filter(|name| !wanted.contains_key(*name))
            .cloned()
            .collect();
        for name in gone {
            let key = format!("{}config/{name}", self.prefix);
            match client.read_key(&key).await {
                Ok(None) => {}
                Ok(Some(_)) => drop(known.remove(&name)),
                Err(error) if error.status() == Some(403) => drop(known.remove(&name)),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn write(
        &self,
        client: &ConsulClient,
        leadership: &Leadership,
        batch: &[Step],
        known: &mut BTreeMap<String, (Bytes, u64)>,
    ) -> Result<(), FencedWriteError> {
        let key = |name: &str| format!("{}accepted/{name}", self.prefix);
        if let [Step::Put { name, text, index }] = batch
            && text.len() > BATCH_BYTES
        {
            // Too large for a transaction, so without its fence; the compare-and-set still holds.
            client.put_cas(&key(name), text.to_string(), *index).await?;
            known.remove(name);
            if let Some(entry) = client.read_key(&key(name)).await? {
                known.insert(name.clone(), (entry.value, entry.modify_index));
            }
            return Ok(());
        }
        let writes: Vec<TxnWrite> = batch
            .iter()
            .map(|step| match step {
                Step::Put { name, text, index } => TxnWrite::Cas {
                    key: key(name),
                    value: text.to_string().into(),
                    index: *index,
                },
                Step::Delete { name, index } => TxnWrite::DeleteCas {
                    key: key(name),
                    index: *index,
                },
            })
            .collect();
        let index = leadership.write(&writes).await?;
        for step in batch {
            match step {
                Step::Put { name, text, .. } => {
                    known.insert(name.clone(), (text.to_string().into(), index));
                }
                Step::Delete { name, .. } => {
                    known.remove(name);
                }
            }
        }
        Ok(())
    }
}

/// A document's confirmed text, and whether it is the present one.
type Confirmed = (Arc<str>, bool);

/// By name; None: the document is there, and no text of it is confirmed.
fn texts(view: &View, config_prefix: &str) -> BTreeMap<String, Option<Confirmed>> {
    let states = view.snapshot.config.documents();
    states
        .filter_map(|state| {
            let DocumentId::Kv(key) = &state.document.id else {
                return None;
            };
            let name = key
                .strip_prefix(config_prefix)
                .filter(|_| is_written(key))?
                .to_owned();
            let confirmed = state.confirmed.as_ref().map(|parsed| {
                let text = parsed.document.text.clone();
                // Others may be allowed the certificates that it lacks here, or have a text that lacks none.
                let is_present = text == state.document.text && !parsed.lacks_certificates();
                (text, is_present)
            });
            Some((name, confirmed))
        })
        .collect()
}

/// An older confirmed text only fills a gap: after a restart it may be older than what others accepted meanwhile.
fn steps(known: &BTreeMap<String, (Bytes, u64)>, wanted: &BTreeMap<String, Option<Confirmed>>) -> Vec<Step> {
    let puts = wanted.iter().filter_map(|(name, confirmed)| {
        let (text, is_present) = confirmed.as_ref()?;
        let step = |index| Step::Put {
            name: name.clone(),
            text: text.clone(),
            index,
        };
        match known.get(name) {
            None => Some(step(0)),
            Some((held, _)) if **held == *text.as_bytes() => None,
            Some((_, index)) => is_present.then(|| step(*index)),
        }
    });
    let deletes = known
        .iter()
        .filter(|(name, _)| !wanted.contains_key(*name))
        .map(|(name, (_, index))| Step::Delete {
            name: name.clone(),
            index: *index,
        });
    puts.chain(deletes).collect()
}

/// Transactions that Consul takes: 64 operations with the fence, 512 KiB of JSON with base64.
fn batches(steps: Vec<Step>) -> Vec<Vec<Step>> {
    let mut batches: Vec<Vec<Step>> = Vec::new();
    let mut bytes = 0;
    for step in steps {
        let size = KEY_BYTES
            + match &step {
                Step::Put { text, .. } => text.len(),
                Step::Delete { .. } => 0,
            };
        match batches.last_mut() {
            Some(batch) if bytes + size <= BATCH_BYTES && batch.len() < BATCH => {
                bytes += size;
                batch.push(step);
            }
            _ => {
                bytes = size;
                batches.push(vec![step]);
            }
        }
    }
    batches
}

const BATCH: usize = 60;
const BATCH_BYTES: usize = 256 * 1024;
/// About what a key and the JSON around it take.
const KEY_BYTES: usize = 1200;

#[cfg(test)]
mod tests {
    use super::*;

    fn known(entries: &[(&str, &str, u64)]) -> BTreeMap<String, (Bytes, u64)> {
        let entries = entries.iter();
        entries
            .map(|(name, text, index)| ((*name).to_owned(), ((*text).to_owned().into(), *index)))
            .collect()
    }

    fn wanted(entries: &[(&str, Option<(&str, bool)>)]) -> BTreeMap<String, Option<Confirmed>> {
        let entries = entries.iter();
        entries
            .map(|(name, text)| {
                (
                    (*name).to_owned(),
                    text.map(|(text, present)| (text.into(), present)),
                )
            })
            .collect()
    }

    /// Who was asked for, and after how many seconds, if one of them can never be read and the others can the second time.
    #[test]
    fn one_that_cannot_be_read_keeps_no_other() {
        let id = |name: &str| DocumentId::Kv(format!("p/config/{name}").into());
        let mut unanswered = Unanswered::default();
        let begun = Instant::now();
        let mut now = begun;
        for name in ["a", "b", "c"] {
            unanswered.put_off(id(name), Duration::ZERO, now);
        }
        let mut asked = Vec::new();
        while asked.len() < 5 {
            now = unanswered.not_before.unwrap_or(now);
            let next = unanswered.open.pop_front().unwrap();
            asked.push((next.as_str().to_owned(), (now - begun).as_secs()));
            match next == id("a") {
                true => unanswered.put_off(next, Duration::from_secs(120), now),
                false => unanswered.is_answered(),
            }
        }
        let shown: Vec<(&str, u64)> = asked.iter().map(|(name, at)| (&**name, *at)).collect();
        // The pause that a refusal asks for is kept; after an answer there is none.
        let expected = [
            ("p/config/a", 2),
            ("p/config/b", 122),
            ("p/config/c", 122),
            ("p/config/a", 122),
            ("p/config/a", 242),
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn the_present_text_replaces_and_an_older_one_only_fills_a_gap() {
        let steps = steps(
            &known(&[("a", "1", 5), ("b", "1", 6), ("c", "1", 7), ("gone", "1", 8)]),
            &wanted(&[
                ("a", Some(("2", true))),
                ("b", Some(("0", false))),
                ("c", None),
                ("new", Some(("0", false))),
            ]),
        );
        let put = |name: &str, text: &str, index| Step::Put {
            name: name.to_owned(),
            text: text.into(),
            index,
        };
        let delete = Step::Delete {
            name: "gone".to_owned(),
            index: 8,
        };
        assert_eq!(steps, [put("a", "2", 5), put("new", "0", 0), delete]);
    }

    #[test]
    fn batches_fit_into_transactions() {
        let step = |n: usize, bytes: usize| Step::Put {
            name: n.to_string(),
            text: "x".repeat(bytes).into(),
            index: 0,
        };
        let many = batches((0..130).map(|n| step(n, 10)).collect());
        assert_eq!(many.iter().map(Vec::len).collect::<Vec<_>>(), [60, 60, 10]);
        let large = batches(vec![
            step(0, 200_000),
            step(1, 200_000),
            step(2, 500_000),
            step(3, 1),
        ]);
        assert_eq!(large.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1, 1]);
    }
}

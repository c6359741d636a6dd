//! Which part of a large prefix changed, found by the indexes of ever smaller parts: one document among ten thousand is
//! read with its neighbours, not with all the others.
//!
//! In: the names of all keys at index `at`, as a poll brought them, and the index `since` that everything known is of. Out:
//! the bodies that hold every change between the two; or `None`, and then the whole prefix is to be read. A part with a name
//! that was not known is read unasked, beside the questions to the others.
//!
//! What comes out is the prefix as it stood at `at`, so that a transaction is in it whole, or not at all: an answer newer than
//! `at` is not taken, and none is older, because each is asked with `consistent` (a new leader, or one that does not know
//! yet that it is none, would answer with a state of before). A part whose index lies below a version that was seen in it is of
//! another past: Consul was restored from a snapshot.

use futures::stream::{self, StreamExt, TryStreamExt};

use super::ConsulError;
use super::call::Call;
use super::client::{Answer, ConsulClient};
use super::document_ledger::DocumentLedger;
use super::kv::read_call;

/// Keys that one read takes in, and no others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shard<'a> {
    /// Everything that begins so.
    Prefix { prefix: &'a str, keys: &'a [&'a str] },
    /// A key that others begin with.
    Key(&'a str),
}

/// A shard with its texts.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub(super) shard: Shard<'a>,
    pub(super) answer: Answer,
}

impl<'a> Shard<'a> {
    /// `keys` sorted, none twice.
    pub(super) fn whole(keys: &'a [&'a str]) -> Self {
        Self::Prefix { prefix: "", keys }
    }

    pub(super) fn keys(&self) -> &[&'a str] {
        match self {
            Self::Prefix { keys, .. } => keys,
            Self::Key(key) => std::slice::from_ref(key),
        }
    }

    /// By the first character in which its keys differ.
    fn split(&self) -> Vec<Shard<'a>> {
        let Self::Prefix { keys, .. } = *self else {
            return vec![*self];
        };
        let (Some(first), Some(last)) = (keys.first(), keys.last()) else {
            return Vec::new();
        };
        let common = common_prefix(first, last);
        let mut shards = Vec::new();
        let mut rest = keys;
        while let Some((first, others)) = rest.split_first() {
            let Some(next) = first[common..].chars().next() else {
                shards.push(Shard::Key(first));
                rest = others;
                continue;
            };
            let end = common + next.len_utf8();
            let (ours, others) =
                rest.split_at(rest.partition_point(|key| key[..].starts_with(&first[..end])));
            // As long as it can be: fewer splits where names begin alike.
            let prefix = &first[..common_prefix(first, ours[ours.len() - 1])];
            match ours {
                [key] => shards.push(Shard::Key(key)),
                // A path cannot end in such a segment: the parts of it can be asked about.
                keys if ends_in_dots(prefix) => shards.extend(Shard::Prefix { prefix, keys }.split()),
                keys => shards.push(Shard::Prefix { prefix, keys }),
            }
            rest = others;
        }
        shards
    }

    /// One of these keys, which are sorted, is in it.
    fn has_any(&self, of: &[&str]) -> bool {
        let (Some(first), Some(last)) = (self.keys().first(), self.keys().last()) else {
            return false;
        };
        let from = of.partition_point(|key| key < first);
        of.get(from).is_some_and(|key| key <= last)
    }

    /// What to ask about a shard that changed. A part with a key of which nothing was known changed, too: it need not be asked.
    fn questions(&self, read_together: usize, new: &[&str]) -> Vec<Question<'a>> {
        if self.keys().len() <= read_together {
            return vec![Question::Read(*self)];
        }
        let about = |shard: Shard<'a>| match shard.keys().len() {
            0..=READ_UNASKED => vec![Question::Read(shard)],
            _ if shard.has_any(new) => shard.questions(read_together, new),
            _ => vec![Question::HasChanged(shard)],
        };
        self.split().into_iter().flat_map(about).collect()
    }
}

#[derive(Clone, Copy, Debug)]
enum Question<'a> {
    /// Its names, for the index that comes with them.
    HasChanged(Shard<'a>),
    Read(Shard<'a>),
}

impl<'a> Question<'a> {
    fn shard(&self) -> Shard<'a> {
        match *self {
            Self::HasChanged(shard) | Self::Read(shard) => shard,
        }
    }

    /// How many come with the answer.
    fn documents(&self) -> usize {
        match self {
            Self::HasChanged(_) => 0,
            Self::Read(shard) => shard.keys().len(),
        }
    }

    fn call(&self, needs: &str) -> Call {
        match self.shard() {
            Shard::Prefix { prefix, .. } => Call::get("kv").key(prefix).flag(match self {
                Self::HasChanged(_) => "keys",
                Self::Read(_) => "recurse",
            }),
            Shard::Key(key) => read_call(key),
        }
        .flag("consistent")
        .not_found_is_answer()
        .max_body(SHARD_BYTES)
        .needs(needs.to_owned())
    }

    async fn ask(self, client: &ConsulClient, needs: &str) -> Result<(Self, Answer), ConsulError> {
        Ok((self, client.call(self.call(needs)).await?))
    }
}

/// Between which indexes, and what is known already.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span<'a> {
    pub(super) since: u64,
    pub(super) at: u64,
    pub(super) ledger: &'a DocumentLedger,
    /// Keys that the ledger does not have, sorted.
    pub(super) new: &'a [&'a str],
}

/// The answers that hold every change of the span.
pub(super) async fn read_changes<'a>(
    client: &ConsulClient,
    needs: &str,
    keys: &'a [&'a str],
    span: Span<'_>,
) -> Result<Option<Vec<Part<'a>>>, ConsulError> {
    let read_together = READ_TOGETHER.max(keys.len() / 16);
    let mut parts = Vec::new();
    let (mut asked, mut bytes) = (0, 0);
    let in_flight = if client.is_multiplexed() {
        STREAMS_IN_FLIGHT
    } else {
        CONNECTIONS_IN_FLIGHT
    };
    let mut changed = vec![Shard::whole(keys)];
    while !changed.is_empty() {
        let questions: Vec<Question<'a>> = changed
            .iter()
            .flat_map(|shard| shard.questions(read_together, span.new))
            .collect();
        asked += questions.len();
        let read: usize = questions.iter().map(Question::documents).sum();
        if asked > REQUESTS || read > keys.len() / 2 {
            return Ok(None);
        }
        let mut asks = Vec::new();
        for question in questions {
            asks.push(question.ask(client, needs));
        }
        let answers: Vec<_> = stream::iter(asks).buffered(in_flight).try_collect().await?;
        changed.clear();
        for (question, answer) in answers {
            bytes += answer.body.len();
            let shard = question.shard();
            // Written meanwhile, or a server that tells no index.
            let Some(index) = answer.index.filter(|index| *index <= span.at) else {
                return Ok(None);
            };
            if index < span.ledger.newest_among(shard.keys()) || bytes > BYTES {
                return Ok(None);
            }
            match question {
                _ if index <= span.since => {}
                Question::HasChanged(shard) => changed.push(shard),
                Question::Read(shard) => parts.push(Part { shard, answer }),
            }
        }
    }
    Ok(Some(parts))
}

fn ends_in_dots(prefix: &str) -> bool {
    matches!(prefix.rsplit('/').next(), Some("." | ".."))
}

/// In bytes, at the border of a character.
fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.char_indices().zip(b.chars()).find(|((_, a), b)| a != b);
    same.map_or(a.len().min(b.len()), |((at, _), _)| at)
}

/// A shard that changed is read at once when it has no more documents, or a sixteenth of all: finer would be more requests for
/// few bytes less, and names of random letters would be asked about one by one.
const READ_TOGETHER: usize = 128;

/// So few are read without asking first whether they changed.
const READ_UNASKED: usize = 4;

/// Beyond this, or half of all documents at once, the whole prefix costs less: many keys changed, or their names do not split well.
const REQUESTS: usize = 128;

const STREAMS_IN_FLIGHT: usize = 16;

/// Each has a connection, and long polls hold most of those that Consul grants.
const CONNECTIONS_IN_FLIGHT: usize = 8;

/// One answer, and all of them: half of what the whole prefix may have.
const SHARD_BYTES: usize = 8 * 1024 * 1024;
const BYTES: usize = 32 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn prefixes<'a>(shards: &[Shard<'a>]) -> Vec<(&'a str, usize)> {
        let shown = |shard: &Shard<'a>| match shard {
            Shard::Prefix { prefix, keys } => (*prefix, keys.len()),
            Shard::Key(key) => (*key, 1),
        };
        shards.iter().map(shown).collect()
    }

    #[test]
    fn a_shard_splits_where_its_keys_differ() {
        let keys = ["c/r/a1", "c/r/a2", "c/r/b", "c/s", "c/ü1", "c/ü2"];
        let shards = Shard::whole(&keys).split();
        assert_eq!(prefixes(&shards), [("c/r/", 3), ("c/s", 1), ("c/ü", 2)]);
        assert_eq!(prefixes(&shards[0].split()), [("c/r/a", 2), ("c/r/b", 1)]);
        assert!(Shard::whole(&[]).split().is_empty());
    }

    #[test]
    fn no_shard_ends_in_a_segment_of_dots() {
        let keys = ["c/.a1", "c/.a2", "c/.b", "c/..c1", "c/..c2", "c/x"];
        let mut sorted = keys;
        sorted.sort_unstable();
        let shards = Shard::whole(&sorted).split();
        assert_eq!(
            prefixes(&shards),
            [("c/..c", 2), ("c/.a", 2), ("c/.b", 1), ("c/x", 1)]
        );
    }

    #[test]
    fn a_key_that_others_begin_with_is_read_by_itself() {
        let keys = ["shop", "shop-1", "shop-2", "shop/x"];
        let shards = Shard::whole(&keys).split();
        assert_eq!(shards[0], Shard::Key("shop"));
        assert_eq!(prefixes(&shards), [("shop", 1), ("shop-", 2), ("shop/x", 1)]);
    }

    fn random(state: &mut u64, below: u64) -> u64 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) % below
    }

    /// How much is asked to find these changed keys, some of them new, how often one after the other, and how many documents
    /// are read.
    fn search(keys: &[&str], wanted: &[&str], new: &[&str]) -> (usize, usize, usize) {
        let read_together = READ_TOGETHER.max(keys.len() / 16);
        let (mut asked, mut turns, mut read) = (0, 0, 0);
        let mut changed = vec![Shard::whole(keys)];
        while !changed.is_empty() {
            let questions: Vec<_> = changed
                .iter()
                .flat_map(|shard| shard.questions(read_together, new))
                .collect();
            asked += questions.len();
            turns += 1;
            changed.clear();
            for question in questions {
                let shard = question.shard();
                if !wanted.iter().any(|wanted| shard.keys().contains(wanted)) {
                    continue;
                }
                match question {
                    Question::HasChanged(shard) => changed.push(shard),
                    Question::Read(shard) => read += shard.keys().len(),
                }
            }
        }
        (asked, turns, read)
    }

    #[test]
    fn a_new_key_tells_which_part_changed() {
        let names: BTreeSet<String> = (0..10_000).map(|number| format!("c/r{number:05}")).collect();
        let keys: Vec<&str> = names.iter().map(String::as_str).collect();
        for at in [0, 4_711, 9_999] {
            let wanted = [keys[at]];
            let (asked, turns, read) = search(&keys, &wanted, &[]);
            // Ten parts, then ten of the one that changed, and the one of those.
            assert_eq!((asked, turns, read), (21, 3, 100));
            assert_eq!(search(&keys, &wanted, &wanted), (19, 1, 100));
            // Another that changed is found all the same.
            let both = [keys[at], keys[5_000]];
            assert_eq!(search(&keys, &both, &wanted).2, 2 * read);
        }
        let shard = Shard::Prefix {
            prefix: "c/r0001",
            keys: &keys[10..20],
        };
        for (at, is_in) in [(9, false), (10, true), (19, true), (20, false)] {
            assert_eq!(shard.has_any(&[keys[at]]), is_in, "{at}");
            assert_eq!(shard.has_any(&[keys[0], keys[at], keys[9_999]]), is_in, "{at}");
        }
    }

    #[test]
    fn names_of_any_shape_take_few_questions() {
        let mut state = 7;
        for (letters, length) in [
            ("0123456789", 6),
            ("abcdefghijklmnopqrstuvwxyz", 8),
            ("abcdefghijklmnopqrstuvwxyz0123456789", 8),
        ] {
            let letters: Vec<char> = letters.chars().collect();
            let mut word = || -> String {
                (0..length)
                    .map(|_| letters[random(&mut state, letters.len() as u64) as usize])
                    .collect()
            };
            let names: BTreeSet<String> = (0..10_000).map(|_| format!("c/{}", word())).collect();
            let keys: Vec<&str> = names.iter().map(String::as_str).collect();
            let (asked, _, read) = search(&keys, &keys[..1], &[]);
            assert!(asked <= REQUESTS / 2 && read <= keys.len() / 16, "{asked} {read}");
            let (asked, _, read) = search(&keys, &[keys[0], keys[keys.len() - 1]], &[]);
            assert!(asked <= REQUESTS && read <= keys.len() / 8, "{asked} {read}");
        }
    }

    /// Each key in one shard, no shard's prefix takes in a key of another: whatever the names.
    #[test]
    fn shards_take_in_every_key_once() {
        for seed in 0..200_u64 {
            let mut state = seed;
            let mut next = |below: u64| random(&mut state, below);
            let names: BTreeSet<String> = (0..60)
                .map(|_| {
                    (0..=next(6))
                        .map(|_| ['a', 'b', '/', 'é', '0'][next(5) as usize])
                        .collect()
                })
                .collect();
            let keys: Vec<&str> = names.iter().map(String::as_str).collect();
            let mut shards = vec![Shard::whole(&keys)];
            for _ in 0..8 {
                shards = shards.iter().flat_map(Shard::split).collect();
                let held: Vec<&str> = shards.iter().flat_map(|shard| shard.keys().to_vec()).collect();
                assert_eq!(held, keys);
                for shard in &shards {
                    if let Shard::Prefix { prefix, keys: ours } = shard {
                        let taken = keys.iter().filter(|key| key.starts_with(prefix)).count();
                        assert_eq!(taken, ours.len(), "{prefix:?}");
                    }
                }
            }
            assert!(
                shards.iter().all(|shard| shard.keys().len() == 1),
                "every split goes on"
            );
        }
    }
}

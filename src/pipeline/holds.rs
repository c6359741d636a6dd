//! What of a gateway waits by the clock: hosts for their watches, and instances that are gone for the first checks of those
//! that replace them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use imbl::ordset::DiffItem;
use tokio::time::Instant;

use crate::resolve::Destination;
use crate::translate::Held;

/// What a first check takes beside its own time-out: the endpoints' way to Envoy, and up to 1 s for which Envoy holds a
/// change of health back.
const CHECK_SLACK: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(super) struct Holds {
    /// Until when hosts wait, the oldest first: each entry has all that waited when one more began to.
    hosts: VecDeque<(Instant, Held)>,
    /// When the first checks of what came to a destination are over.
    checks: BTreeMap<Destination, Instant>,
}

impl Holds {
    /// Takes note of hosts that began to wait, and how long they may.
    pub fn note(&mut self, held: &Held, until: Instant) {
        if held.is_empty() {
            self.hosts.clear();
            return;
        }
        match self.hosts.back_mut() {
            Some((_, known)) if !grows(known, held) => *known = held.clone(),
            _ => self.hosts.push_back((until, held.clone())),
        }
    }

    pub fn note_unchecked(&mut self, came: &BTreeMap<Destination, Duration>, now: Instant) {
        // What comes all the time must not put it off for good: then one or the other counts as checked early.
        for (target, first) in came {
            let over = now + *first + CHECK_SLACK;
            self.checks.entry(target.clone()).or_insert(over);
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        let hosts = self.hosts.front().map(|(until, _)| *until);
        self.checks.values().copied().chain(hosts).min()
    }

    /// The hosts that have waited long enough by now.
    pub fn hosts_due(&mut self, now: Instant) -> Option<Held> {
        let mut due = None;
        while self.hosts.front().is_some_and(|(until, _)| *until <= now) {
            due = self.hosts.pop_front();
        }
        due.map(|(_, hosts)| hosts)
    }

    /// The destinations whose first checks are over by now.
    pub fn checks_due(&mut self, now: Instant) -> Vec<Destination> {
        let due = self.checks.iter().filter(|(_, over)| **over <= now);
        let due: Vec<Destination> = due.map(|(target, _)| target.clone()).collect();
        self.checks.retain(|_, over| *over > now);
        due
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Whether any waits that did not.
fn grows(known: &Held, held: &Held) -> bool {
    known.diff(held).any(|item| matches!(item, DiffItem::Add(_)))
}

//! Who would like to be told: the watches without a connection of their own, and what they want to hear of.
//!
//! In: watches that begin to take turns, and names of services that something happened to. Out: the turn of a watch that
//! is named ends, and the one subscription that serves most of them. A hint holds no content; the watch reads as ever.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::settings::EVERY_NAMESPACE;

/// A cheap handle: clones share everything.
#[derive(Clone, Debug)]
pub(super) struct Hints(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    waiting: Mutex<Waiters>,
    wanted: watch::Sender<Option<Place>>,
}

#[derive(Debug, Default)]
struct Waiters {
    next: u64,
    by_name: BTreeMap<Arc<str>, OfOneName>,
    /// How many want each: ten thousand may come at once, and each asks for the choice anew.
    places: BTreeMap<Place, usize>,
}

/// By id: where each waits for the service, and how it hears.
type OfOneName = BTreeMap<u64, (Place, watch::Sender<()>)>;

/// What a subscription is for, and where a service is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// None: the agent's own.
    pub(super) region: Option<Arc<str>>,
    /// `*`: every one.
    pub(super) namespace: Arc<str>,
}

/// A watch among those that wait; none any more when dropped.
#[derive(Debug)]
pub(super) struct Waiter {
    hints: Hints,
    name: Arc<str>,
    id: u64,
    place: Place,
    named: watch::Receiver<()>,
}

impl Hints {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner {
            waiting: Mutex::default(),
            wanted: watch::Sender::new(None),
        }))
    }

    pub(super) fn wait(&self, name: &Arc<str>, place: Place) -> Waiter {
        let (sender, named) = watch::channel(());
        let mut waiting = self.waiters();
        let id = waiting.next;
        waiting.next += 1;
        let of_name = waiting.by_name.entry(name.clone()).or_default();
        of_name.insert(id, (place.clone(), sender));
        *waiting.places.entry(place.clone()).or_default() += 1;
        self.choose(&waiting);
        Waiter {
            hints: self.clone(),
            name: name.clone(),
            id,
            place,
            named,
        }
    }

    /// None while nobody waits.
    pub(super) fn wanted(&self) -> watch::Receiver<Option<Place>> {
        self.0.wanted.subscribe()
    }

    /// Something happened to a service.
    pub(super) fn name(&self, service: &str, at: &Place) {
        let waiting = self.waiters();
        for (place, sender) in waiting
            .by_name
            .get(service)
            .into_iter()
            .flat_map(BTreeMap::values)
        {
            if place.region == at.region && (place.is_everywhere() || place.namespace == at.namespace) {
                sender.send_replace(());
            }
        }
    }

    /// Something happened, nobody knows to which.
    pub(super) fn name_all(&self, region: Option<&Arc<str>>) {
        let waiting = self.waiters();
        for (place, sender) in waiting.by_name.values().flat_map(BTreeMap::values) {
            if place.region.as_ref() == region {
                sender.send_replace(());
            }
        }
    }

    fn waiters(&self) -> MutexGuard<'_, Waiters> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn choose(&self, waiting: &Waiters) {
        let choice = waiting.choice();
        self.0.wanted.send_if_modified(|wanted| {
            let differs = *wanted != choice;
            if differs {
                *wanted = choice;
            }
            differs
        });
    }
}

impl Waiters {
    /// The region that most are in, and their namespace if they agree on one: it takes less rights than all of them.
    fn choice(&self) -> Option<Place> {
        let mut regions: BTreeMap<Option<&Arc<str>>, usize> = BTreeMap::new();
        for (place, count) in &self.places {
            *regions.entry(place.region.as_ref()).or_default() += count;
        }
        let (region, _) = regions.into_iter().max_by_key(|(_, count)| *count)?;
        let mut there = self.places.keys().filter(|place| place.region.as_ref() == region);
        let first = there.next()?;
        let namespace = match there.next() {
            None => first.namespace.clone(),
            Some(_) => EVERY_NAMESPACE.into(),
        };
        Some(Place {
            region: region.cloned(),
            namespace,
        })
    }
}

impl Place {
    fn is_everywhere(&self) -> bool {
        &*self.namespace == EVERY_NAMESPACE
    }
}

impl Waiter {
    /// What was named until now is covered by the read that begins.
    pub(super) fn reads(&mut self) {
        self.named.mark_unchanged();
    }

    /// Ends when its service was named since.
    pub(super) async fn named(&mut self) {
        if self.named.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiting = self.hints.waiters();
        if let Some(of_name) = waiting.by_name.get_mut(&self.name) {
            of_name.remove(&self.id);
            if of_name.is_empty() {
                waiting.by_name.remove(&self.name);
            }
        }
        if let Some(count) = waiting.places.get_mut(&self.place) {
            *count -= 1;
            if *count == 0 {
                waiting.places.remove(&self.place);
            }
        }
        self.hints.choose(&waiting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(region: Option<&str>, namespace: &str) -> Place {
        Place {
            region: region.map(Into::into),
            namespace: namespace.into(),
        }
    }

    #[test]
    fn the_subscription_is_as_narrow_as_those_who_wait_allow() {
        let hints = Hints::new();
        let wanted = || hints.wanted().borrow().clone();
        assert_eq!(wanted(), None);
        let one = hints.wait(&"web".into(), place(None, "shop"));
        let same = hints.wait(&"db".into(), place(None, "shop"));
        assert_eq!(wanted(), Some(place(None, "shop")));
        let elsewhere = hints.wait(&"web".into(), place(Some("eu"), "shop"));
        assert_eq!(wanted(), Some(place(None, "shop")), "most are in the agent's own");
        let other = hints.wait(&"web".into(), place(None, "default"));
        assert_eq!(wanted(), Some(place(None, "*")));
        drop(other);
        assert_eq!(wanted(), Some(place(None, "shop")));
        drop((one, same));
        assert_eq!(wanted(), Some(place(Some("eu"), "shop")));
        drop(elsewhere);
        assert_eq!(wanted(), None);
        let waiting = hints.waiters();
        assert!(waiting.by_name.is_empty() && waiting.places.is_empty());
    }

    #[test]
    fn a_name_reaches_those_who_wait_for_it_until_they_read() {
        let hints = Hints::new();
        let mut here = hints.wait(&"web".into(), place(None, "shop"));
        let mut anywhere = hints.wait(&"web".into(), place(None, "*"));
        let mut other = hints.wait(&"db".into(), place(None, "shop"));
        let mut eu = hints.wait(&"web".into(), place(Some("eu"), "shop"));
        let told = |waiter: &Waiter| waiter.named.has_changed().unwrap();
        hints.name("web", &place(None, "shop"));
        assert_eq!(
            [told(&here), told(&anywhere), told(&other), told(&eu)],
            [true, true, false, false]
        );
        here.reads();
        anywhere.reads();
        hints.name("web", &place(None, "default"));
        assert_eq!([told(&here), told(&anywhere)], [false, true]);
        hints.name_all(None);
        assert_eq!([told(&here), told(&other), told(&eu)], [true, true, false]);
        other.reads();
        eu.reads();
    }
}

//! A bound on the names that a peer makes the agent keep and nothing is published of: it may think up any, and they stay for as
//! long as it asks for them, or an answer about them is under way.
//!
//! All are looked over whenever a quarter of the bound has come in as names. So a flood of requests costs no more than reading
//! them does, and an Envoy that never says so much is never looked at.

use std::sync::Arc;

use super::exchange::Asked;
use super::limits::{Limits, Violation};
use super::subscription::{Initial, Subscription};
use crate::envoy::ResourceSet;

pub(super) struct Invented {
    limit: usize,
    /// Bytes that came since all were looked over.
    fresh: usize,
}

impl Invented {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            limit: limits.unpublished_bytes,
            fresh: 0,
        }
    }

    pub(super) fn note(&mut self, asked: &Asked) {
        self.fresh += match asked {
            Asked::Delta {
                subscribe,
                unsubscribe,
                initial,
            } => {
                let names = subscribe.iter().chain(unsubscribe).map(String::len);
                let brought = initial.iter().map(|(name, version)| name.len() + version.len());
                names.chain(brought).sum()
            }
            Asked::StateOfTheWorld { names, .. } => names.iter().map(String::len).sum::<usize>(),
        };
    }

    pub(super) fn check(
        &mut self,
        subscriptions: &[Subscription; 7],
        target: Option<&ResourceSet>,
    ) -> Result<(), Violation> {
        if self.fresh <= self.limit / 4 {
            return Ok(());
        }
        self.fresh = 0;
        let of_each = subscriptions.iter().flat_map(|subscription| {
            let is_published =
                move |name: &str| target.is_some_and(|target| target.get(subscription.kind, name).is_some());
            subscription.names_kept().filter(move |name| !is_published(name))
        });
        match of_each.map(str::len).sum::<usize>() > self.limit {
            true => Err(Violation::TooMuchUnpublished { limit: self.limit }),
            false => Ok(()),
        }
    }
}

impl Subscription {
    /// Every name that is kept here because the peer said it, and all that it is about to be told of it.
    fn names_kept(&self) -> impl Iterator<Item = &str> {
        let is_asked = |name: &&Arc<str>| self.unheld.contains(*name) || self.named_beside.contains(*name);
        let asked = self.unheld.iter().chain(&self.named_beside);
        let under_way = self.in_flight.iter().flat_map(|response| &response.removed);
        let others = self.dirty.keys().chain(&self.untold).chain(under_way);
        let others = others.filter(move |name| !is_asked(name));
        let brought = match &self.initial {
            Initial::Versions(versions) => Some(versions.keys()),
            Initial::Nothing | Initial::Whole(_) => None,
        };
        let kept = asked.chain(others).map(|name| &**name);
        kept.chain(brought.into_iter().flatten().map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::envoy::{Resource, ResourceKind};
    use crate::xds::{Request, StreamState, Variant};

    const LIMITS: fn() -> Limits = || Limits {
        unpublished_bytes: 4_000,
        ..Limits::default()
    };

    fn stream(variant: Variant, published: &[String]) -> StreamState {
        let mut set = ResourceSet::default();
        for name in published {
            set.insert(Arc::new(Resource::new(
                ResourceKind::Cluster,
                name.as_str().into(),
                b"x",
            )));
        }
        let mut state = StreamState::new(variant, &LIMITS());
        state.on_set(&set, Duration::ZERO);
        state
    }

    /// A hundred names of ten bytes.
    fn names(of: usize) -> Vec<String> {
        (0..100).map(|at| format!("{of:05}-{at:04}")).collect()
    }

    fn delta(subscribe: Vec<String>, unsubscribe: Vec<String>, brought: Vec<String>) -> Asked {
        let initial = brought.into_iter().map(|name| (name, "1".to_owned()));
        Asked::Delta {
            subscribe,
            unsubscribe,
            initial: initial.collect(),
        }
    }

    fn ask(state: &mut StreamState, turn: usize, kind: ResourceKind, asked: Asked) -> Result<(), Violation> {
        let request = Request {
            kind,
            nonce: None,
            error: None,
            asked,
        };
        // Longer than any pause between two answers.
        state
            .on_request(request, Duration::from_secs(turn as u64))
            .map(drop)
    }

    /// How often this is asked before it ends the stream.
    fn lasts(state: &mut StreamState, kind: ResourceKind, mut asked: impl FnMut(usize) -> Asked) -> usize {
        for turn in 0..50 {
            match ask(state, turn, kind, asked(turn)) {
                Ok(()) => {}
                Err(violation) => {
                    assert_eq!(violation, Violation::TooMuchUnpublished { limit: 4_000 });
                    return turn;
                }
            }
        }
        panic!("never ended")
    }

    #[test]
    fn names_are_bounded_whatever_a_peer_does_with_them() {
        let kind = ResourceKind::Endpoint;
        let mut state = stream(Variant::Delta, &[]);
        let more = |turn| delta(names(turn), vec![], vec![]);
        assert!((4..8).contains(&lasts(&mut state, kind, more)), "asked for");

        // It is told of each that it is not there, confirms nothing, and asks for others.
        let kind = ResourceKind::Cluster;
        let mut state = stream(Variant::Delta, &[]);
        let others = |turn: usize| delta(names(turn), names(turn.wrapping_sub(1)), vec![]);
        assert!(
            (4..12).contains(&lasts(&mut state, kind, others)),
            "told and dropped"
        );

        let mut state = stream(Variant::Delta, &[]);
        ask(&mut state, 0, kind, delta(vec!["*".to_owned()], vec![], vec![])).unwrap();
        let dropped = |turn| delta(vec![], names(turn), vec![]);
        assert!(
            (4..12).contains(&lasts(&mut state, kind, dropped)),
            "dropped beside a wildcard"
        );

        let mut state = stream(Variant::Delta, &[]);
        let many: Vec<String> = (0..5).flat_map(names).collect();
        let brought = |_| delta(vec!["*".to_owned()], vec![], many.clone());
        assert_eq!(lasts(&mut state, kind, brought), 0, "brought along");

        let mut state = stream(Variant::StateOfTheWorld, &[]);
        let named = |_| Asked::StateOfTheWorld {
            names: many.clone(),
            version: String::new(),
        };
        assert_eq!(lasts(&mut state, kind, named), 0, "by state of the world");
    }

    #[test]
    fn names_of_what_is_published_are_never_too_many() {
        let many: Vec<String> = (0..20).flat_map(names).collect();
        for variant in [Variant::Delta, Variant::StateOfTheWorld] {
            let mut state = stream(variant, &many);
            for turn in 0..20 {
                let asked = match variant {
                    Variant::Delta => delta(many.clone(), vec![], many.clone()),
                    Variant::StateOfTheWorld => Asked::StateOfTheWorld {
                        names: many.clone(),
                        version: String::new(),
                    },
                };
                ask(&mut state, turn, ResourceKind::Cluster, asked).unwrap();
            }
        }
    }

    #[test]
    fn versions_and_how_many_are_brought_are_bounded_too() {
        let limits = Limits {
            names: 3,
            name_bytes: 10,
            ..Limits::default()
        };
        let brought = |entries: &[(&str, &str)]| Asked::Delta {
            subscribe: vec!["*".to_owned()],
            unsubscribe: vec![],
            initial: entries
                .iter()
                .map(|(name, version)| ((*name).into(), (*version).into()))
                .collect(),
        };
        let refused = |variant, asked| {
            let mut state = StreamState::new(variant, &limits);
            ask(&mut state, 0, ResourceKind::Cluster, asked).unwrap_err()
        };
        let long = Violation::NameTooLong {
            length: 11,
            limit: 10,
        };
        assert_eq!(refused(Variant::Delta, brought(&[("a", "12345678901")])), long);
        let version = Asked::StateOfTheWorld {
            names: vec![],
            version: "12345678901".to_owned(),
        };
        assert_eq!(refused(Variant::StateOfTheWorld, version), long);
        let four = brought(&[("a", "1"), ("b", "1"), ("c", "1"), ("d", "1")]);
        let kind = ResourceKind::Cluster;
        assert_eq!(
            refused(Variant::Delta, four),
            Violation::TooManyNames { kind, limit: 3 }
        );
    }
}

//! Ports that go from one listener to another in one response: in Envoy a listener has its port until it has moved itself,
//! and it goes through a response in its order. What it removes goes first.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::subscription::Held;
use crate::envoy::Resource;

/// What a response changes, in the order in which Envoy can do it.
#[derive(Default)]
pub(super) struct Handover {
    pub(super) changed: Vec<Arc<Resource>>,
    /// Where each wants the port of another, in a circle, one of them goes: its own port is taken over at once, and it comes
    /// again in the next response, when the other port is free.
    pub(super) asides: Vec<Arc<str>>,
    /// They want the port of one that is to leave it and waits.
    pub(super) waiting: Vec<Arc<Resource>>,
}

impl Handover {
    /// `is_removed`: in this response. `is_waiting`: it is to change or to go, and does not yet.
    pub(super) fn of(
        changed: Vec<Arc<Resource>>,
        told: &Held,
        is_removed: impl Fn(&Arc<str>) -> bool,
        is_waiting: impl Fn(&Arc<str>) -> bool,
    ) -> Self {
        let holders: BTreeMap<&Arc<str>, &Arc<str>> = told
            .iter()
            .filter(|(name, _)| !is_removed(name))
            .filter_map(|(name, told)| Some((told.binds.as_ref()?, name)))
            .collect();
        let holder = |listener: &Resource| {
            let holder = holders.get(listener.binds.as_ref()?)?;
            (**holder != listener.name).then_some(*holder)
        };
        let mut plan = Self::default();
        let mut left = changed;
        loop {
            let is_behind = |listener: &Resource| {
                let waits = |name| is_waiting(name) || plan.waiting.iter().any(|it| it.name == *name);
                holder(listener).is_some_and(waits)
            };
            let behind: Vec<Arc<Resource>> = left.extract_if(.., |listener| is_behind(listener)).collect();
            if behind.is_empty() {
                break;
            }
            plan.waiting.extend(behind);
        }
        while !left.is_empty() {
            let names: Vec<Arc<str>> = left.iter().map(|listener| listener.name.clone()).collect();
            let is_free =
                |listener: &mut Arc<Resource>| holder(listener).is_none_or(|it| !names.contains(it));
            let before = left.len();
            plan.changed.extend(left.extract_if(.., is_free));
            if left.len() == before {
                let aside = left.remove(0);
                plan.asides.push(aside.name.clone());
            }
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::ResourceKind;

    fn listener(name: &str, port: &str) -> Arc<Resource> {
        let mut listener = Resource::new(ResourceKind::Listener, name.into(), port.as_bytes());
        listener.binds = Some(port.into());
        Arc::new(listener)
    }

    /// `moves`: name, port before, port after. As `changed|asides|waiting`.
    fn plan(moves: &[(&str, &str, &str)], waiting: &[&str]) -> String {
        let before = moves.iter().filter(|(_, before, _)| !before.is_empty());
        let told: Held = before
            .map(|(name, before, _)| (Arc::from(*name), listener(name, before)))
            .collect();
        let changed = moves.iter().filter(|(name, ..)| !waiting.contains(name));
        let changed = changed.map(|(name, _, after)| listener(name, after)).collect();
        let plan = Handover::of(changed, &told, |_| false, |name| waiting.contains(&&**name));
        let names = |all: &[Arc<Resource>]| -> Vec<String> {
            all.iter().map(|listener| listener.name.to_string()).collect()
        };
        let asides: Vec<&str> = plan.asides.iter().map(|name| &**name).collect();
        [
            names(&plan.changed).join(" "),
            asides.join(" "),
            names(&plan.waiting).join(" "),
        ]
        .join("|")
    }

    #[test]
    fn who_leaves_a_port_is_told_before_who_takes_it() {
        let chain = [("a", "1", "2"), ("b", "2", "3"), ("c", "", "1")];
        assert_eq!(plan(&chain, &[]), "b a c||");
        assert_eq!(plan(&[("a", "1", "1"), ("b", "2", "3")], &[]), "a b||");
    }

    #[test]
    fn one_of_a_circle_steps_aside() {
        assert_eq!(plan(&[("a", "1", "2"), ("b", "2", "1")], &[]), "b|a|");
        let three = [("a", "1", "2"), ("b", "2", "3"), ("c", "3", "1")];
        assert_eq!(plan(&three, &[]), "c b|a|");
        let two = [("a", "1", "2"), ("b", "2", "1"), ("c", "3", "4"), ("d", "4", "3")];
        assert_eq!(plan(&two, &[]), "b d|a c|");
    }

    #[test]
    fn who_wants_the_port_of_one_that_waits_waits_with_it() {
        let chain = [("a", "1", "2"), ("b", "2", "3"), ("c", "", "1"), ("d", "4", "5")];
        assert_eq!(plan(&chain, &["b"]), "d||a c");
        assert_eq!(plan(&[("a", "1", "2"), ("b", "2", "1")], &["b"]), "||a");
    }
}

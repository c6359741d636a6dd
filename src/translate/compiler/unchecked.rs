//! Instances that Envoy has yet to check. Where all of a service's instances are replaced at once, by an edit or a deployment,
//! those that are gone stand in: Envoy turns to them only while it takes none of the new ones for healthy.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Compiled, Compiler};
use crate::envoy::ResourceKind;
use crate::ir::Endpoint;
use crate::resolve::{Destination, cluster_name};
use crate::snapshot::Snapshot;

/// Of a destination whose instances are checked.
#[derive(Clone, Debug, Default)]
pub(super) struct Checked {
    present: Vec<Endpoint>,
    /// Those among them that came so late that their first check may not be over.
    fresh: BTreeSet<(IpAddr, u16)>,
    /// Gone, and asked as long as all that are present are fresh.
    standing_in: Vec<Endpoint>,
}

impl Checked {
    pub(super) fn of(present: Vec<Endpoint>) -> Self {
        Self {
            present,
            ..Self::default()
        }
    }

    /// True: some came. `may_stand_in`: whoever was there is what all routes to it are for.
    fn take_up(&mut self, present: Vec<Endpoint>, may_stand_in: bool) -> bool {
        let known: BTreeSet<_> = self.present.iter().map(place).collect();
        let now: BTreeSet<_> = present.iter().map(place).collect();
        let came: BTreeSet<_> = now.difference(&known).copied().collect();
        self.fresh.retain(|one| now.contains(one));
        self.fresh.extend(&came);
        let before = std::mem::take(&mut self.standing_in);
        if may_stand_in && !now.is_empty() && self.fresh.len() == now.len() {
            // Those that went last first: they are the likeliest to be there still.
            let gone = self.present.iter().chain(&before);
            let gone = gone.filter(|one| !now.contains(&place(one)));
            self.standing_in = gone.take(STAND_INS).cloned().collect();
        }
        self.present = present;
        !came.is_empty()
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        let last = self.present.iter().map(|endpoint| endpoint.priority).max();
        let behind = last.map_or(0, |last| last.saturating_add(1));
        let standing_in = self.standing_in.iter().map(|endpoint| Endpoint {
            priority: behind,
            ..endpoint.clone()
        });
        self.present.iter().cloned().chain(standing_in).collect()
    }
}

/// Whatever comes and goes while nothing has been checked.
const STAND_INS: usize = 100;

fn place(endpoint: &Endpoint) -> (IpAddr, u16) {
    (endpoint.address, endpoint.port)
}

impl Compiler {
    /// The endpoints that Envoy is to have of a destination whose first check takes so long.
    pub(super) fn with_stand_ins(
        &mut self,
        target: &Destination,
        present: Vec<Endpoint>,
        first_check: Duration,
        compiled: &mut Compiled,
    ) -> Vec<Endpoint> {
        let Some(checked) = self.checked.get_mut(target) else {
            self.checked
                .insert(target.clone(), Checked::of(present.clone()).into());
            return present;
        };
        let may_stand_in = !self.newly_used.contains(target);
        let checked = Arc::make_mut(checked);
        if checked.take_up(present, may_stand_in) {
            compiled.unchecked.insert(target.clone(), first_check);
        }
        checked.endpoints()
    }

    /// Notes a destination that a host begins to lead to: if other instances come with the same change, that host is for
    /// these, and not for those before.
    pub(super) fn begins_to_lead_to(&mut self, target: &Destination) {
        if self.checked.contains_key(target) {
            self.newly_used.insert(target.clone());
        }
    }

    /// A change is taken up, but where a host still waits for its watches.
    pub(super) fn used_as_before(&mut self) {
        let all = std::mem::take(&mut self.newly_used);
        self.newly_used = all.into_iter().filter(|target| self.is_held(target)).collect();
    }

    /// Some destination has instances that are gone.
    pub fn has_stand_ins(&self) -> bool {
        self.checked
            .values()
            .any(|checked| !checked.standing_in.is_empty())
    }

    /// The first checks of what came to these destinations are over.
    pub fn were_checked(
        &mut self,
        snapshot: &Snapshot,
        targets: impl IntoIterator<Item = Destination>,
    ) -> Compiled {
        let mut compiled = Compiled::default();
        for target in targets {
            let Some(checked) = self.checked.get_mut(&target) else {
                continue;
            };
            let checked = Arc::make_mut(checked);
            checked.fresh.clear();
            if !std::mem::take(&mut checked.standing_in).is_empty() {
                self.endpoints(snapshot, &target, &mut compiled);
            }
        }
        compiled
    }

    /// Those of which it is not known yet.
    pub(super) fn unchecked(&self) -> Vec<Destination> {
        let unchecked = self
            .checked
            .iter()
            .filter(|(_, checked)| !checked.fresh.is_empty());
        unchecked.map(|(target, _)| target.clone()).collect()
    }

    /// Forgets destinations that are gone, or are checked no more.
    pub(super) fn review_checked(&mut self, target: &Destination) {
        if !self.checked.contains_key(target) {
            return;
        }
        let cluster = self.set.get(ResourceKind::Cluster, &cluster_name(target));
        if cluster.is_none_or(|cluster| cluster.first_check.is_none()) {
            self.checked.remove(target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Checked {
        fn take_up_all(&mut self, present: Vec<Endpoint>) -> bool {
            self.take_up(present, true)
        }
    }

    fn instances(last: &[u8]) -> Vec<Endpoint> {
        let endpoint = |last: &u8| Endpoint {
            address: IpAddr::from([10, 0, 0, *last]),
            port: 80,
            priority: 0,
            weight: 1,
        };
        last.iter().map(endpoint).collect()
    }

    fn shown(checked: &Checked) -> Vec<(u8, u32)> {
        let endpoints = checked.endpoints();
        let shown = endpoints.iter().map(|endpoint| match endpoint.address {
            IpAddr::V4(address) => (address.octets()[3], endpoint.priority),
            IpAddr::V6(_) => unreachable!("IPv4 alone"),
        });
        shown.collect()
    }

    #[test]
    fn those_that_are_gone_stand_in_until_one_was_checked() {
        let mut checked = Checked::of(instances(&[1, 2]));
        assert!(checked.take_up_all(instances(&[1, 3])));
        assert_eq!(shown(&checked), [(1, 0), (3, 0)], "the first was checked");
        assert!(!checked.take_up_all(instances(&[3])));
        assert_eq!(shown(&checked), [(3, 0), (1, 1)]);
        assert!(checked.take_up_all(instances(&[4])));
        assert_eq!(shown(&checked), [(4, 0), (3, 1), (1, 1)]);
        checked.take_up_all(instances(&[1, 4]));
        assert_eq!(
            shown(&checked),
            [(1, 0), (4, 0), (3, 1)],
            "one that is back comes anew"
        );
    }

    #[test]
    fn nothing_stands_in_where_a_host_came_for_what_is_new() {
        let mut checked = Checked::of(instances(&[1]));
        checked.take_up(instances(&[2]), false);
        assert_eq!(shown(&checked), [(2, 0)]);
    }

    #[test]
    fn nothing_stands_in_for_nobody() {
        let mut checked = Checked::of(instances(&[1]));
        checked.take_up_all(instances(&[]));
        assert_eq!(shown(&checked), []);
        checked.take_up_all(instances(&[2]));
        assert_eq!(shown(&checked), [(2, 0)]);
    }
}

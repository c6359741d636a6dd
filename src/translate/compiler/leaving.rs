//! Hosts that go: one that goes in the change that brings another in its place, a wildcard for an exact host or the
//! other way round, would answer 404 while the other waits for its watches.

use std::sync::Arc;

use super::{Compiled, Compiler, HostKey, HostUnit, NO_HOST, UnitKey, Work, least};
use crate::config::Gateway;
use crate::envoy::{ResourceKind, scope_name};

impl Compiler {
    /// Lets hosts without routes go, once it is known which hosts wait.
    pub(super) fn hosts_go(&mut self, gateway: Option<&Gateway>, work: &mut Work, compiled: &mut Compiled) {
        let relieved = self.leaving.iter().filter(|(_, by)| !self.held.contains(*by));
        work.gone.extend(relieved.map(|(key, _)| key.clone()));
        for key in std::mem::take(&mut work.gone) {
            let listens = |gateway: &Gateway| gateway.listeners.iter().any(|listener| listener.name == key.0);
            let may_stay = !work.released.contains(&key) && gateway.is_some_and(listens);
            match self.waiting_successor(&key).filter(|_| may_stay) {
                Some(successor) => self.host_stays(key, successor, work, compiled),
                None => self.host_goes(key, work, compiled),
            }
        }
    }

    /// A host of the same listener that answers for names of this one, and is not there yet.
    fn waiting_successor(&self, (listener, host): &HostKey) -> Option<HostKey> {
        let waits = |key: &HostKey| {
            self.held.contains(key) && self.hosts.get(key).is_some_and(|unit| unit.made.is_none())
        };
        let covering = wildcards_over(host).map(|wildcard| (listener.clone(), Arc::from(wildcard)));
        if let Some(wildcard) = { covering }.find(waits) {
            return Some(wildcard);
        }
        // Only a wildcard can stand for others: thousands of exact hosts do not each look at thousands.
        let below = host.strip_prefix('*')?;
        let waiting = self.held.range((listener.clone(), least())..);
        let mut waiting = waiting.take_while(|(of, _)| of == listener);
        waiting.find(|key| key.1.ends_with(below) && waits(key)).cloned()
    }

    fn host_stays(&mut self, key: HostKey, successor: HostKey, work: &mut Work, compiled: &mut Compiled) {
        let Some(before) = self.hosts.get(&key).cloned() else {
            return;
        };
        self.forget_host(&key, &before);
        let was_held = self.held.insert(key.clone()).is_some();
        // Its documents are not what Envoy runs with.
        let origins = before.host().map_or(&[][..], |encoded| encoded.origins());
        compiled.documents.extend(origins.iter().cloned());
        let unit = Arc::new(HostUnit {
            follows: Box::default(),
            ..HostUnit::clone(&before)
        });
        self.hosts.insert(key.clone(), unit.clone());
        self.host_uses(&key, (Some(&before), was_held), (Some(&unit), true), work);
        self.leaving.insert(key, successor);
    }

    fn host_goes(&mut self, key: HostKey, work: &mut Work, compiled: &mut Compiled) {
        self.leaving.remove(&key);
        let was_held = self.held.remove(&key).is_some();
        let Some(before) = self.hosts.get(&key).cloned() else {
            return;
        };
        self.forget_host(&key, &before);
        self.hosts.remove(&key);
        self.host_uses(&key, (Some(&before), was_held), (None, false), work);
        let (listener, host) = key;
        if *host == *NO_HOST {
            work.listeners.insert(listener);
            return;
        }
        self.withdraw(ResourceKind::ScopedRoute, &scope_name(&listener, &host), compiled);
        work.tables.insert(listener);
    }

    /// It follows no watch, and has nothing to say.
    fn forget_host(&mut self, (listener, host): &HostKey, unit: &HostUnit) {
        for interest in &unit.follows {
            self.hosts_of
                .remove(&(interest.clone(), listener.clone(), host.clone()));
        }
        self.diagnostics
            .remove(&UnitKey::Host(listener.clone(), host.clone()));
    }
}

/// Those that cover this host, be it a wildcard itself.
fn wildcards_over(host: &str) -> impl Iterator<Item = String> {
    let below = |(at, _)| format!("*{}", &host[at..]);
    let itself = host.starts_with('*');
    let dots = host.match_indices('.').skip(usize::from(itself));
    dots.map(below).chain((host != "*").then(|| "*".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::wildcards_over;

    #[test]
    fn wildcards_cover_what_is_below_them() {
        for (host, expected) in [
            ("shop.example.com", &["*.example.com", "*.com", "*"][..]),
            ("*.example.com", &["*.com", "*"]),
            ("localhost", &["*"]),
            ("*", &[]),
        ] {
            let covering: Vec<String> = wildcards_over(host).collect();
            assert_eq!(covering, expected, "{host}");
        }
    }
}

//! Listeners that open with their hosts: a port that is open answers 404 for a host that still waits for its watches.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::{Compiler, HostKey, NO_HOST, Work, least};
use crate::envoy::Resource;
use crate::ir::Listener;

impl Compiler {
    /// Keeps a listener that Envoy does not have closed until its hosts are there that are held back now, or have waited
    /// for long enough. Hosts that come later do not count: each of them would make it wait anew.
    pub(super) fn stays_closed(
        &mut self,
        listener: &Listener,
        open_before: &OrdMap<Arc<str>, Arc<Resource>>,
    ) -> bool {
        let name = &listener.name;
        // At a port that another one leaves to it, clients are served already: it stays open.
        let own = format!("{}:{}", listener.address, listener.port);
        let takes_over =
            |(of, open): (&Arc<str>, &Arc<Resource>)| of != name && open.binds.as_deref() == Some(&own);
        if open_before.iter().any(takes_over) {
            self.opening.remove(name);
            return false;
        }
        if self.opening.contains_key(name) {
            let has_them = self.has_its_hosts(name);
            if has_them {
                self.opening.remove(name);
            }
            return !has_them;
        }
        if open_before.contains_key(name) {
            return false;
        }
        let hosts = self.held.range((name.clone(), least())..);
        let hosts = hosts
            .take_while(|(of, _)| of == name)
            .filter(|(_, host)| **host != *NO_HOST);
        // One that stood before stands.
        let is_missing = |key: &&HostKey| self.hosts.get(*key).is_some_and(|unit| unit.made.is_none());
        let missing = hosts.filter(is_missing).map(|(_, host)| host.clone());
        let missing: OrdSet<Arc<str>> = missing.collect();
        let waits = !missing.is_empty();
        if waits {
            self.opening.insert(name.clone(), missing);
        }
        waits
    }

    /// Those that have their hosts by now.
    pub(super) fn open_listeners(&mut self, work: &mut Work) {
        let waiting: Vec<Arc<str>> = self.opening.keys().cloned().collect();
        let open = waiting.into_iter().filter(|name| self.has_its_hosts(name));
        work.listeners.extend(open.collect::<Vec<_>>());
    }

    /// Whether a listener waits for none of its hosts, any more.
    fn has_its_hosts(&mut self, listener: &Arc<str>) -> bool {
        let Some(hosts) = self.opening.get_mut(listener) else {
            return true;
        };
        // The first one that is held back decides, so that thousands of answers do not each look at thousands of hosts.
        while let Some(host) = hosts.get_min() {
            if self.held.contains(&(listener.clone(), host.clone())) {
                return false;
            }
            hosts.remove_min();
        }
        true
    }
}

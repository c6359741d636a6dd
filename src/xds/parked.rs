//! What is gone, and kept for connections from before: there may be ten thousand of them, and for a minute there is nothing to
//! look at. So they are not dirty; they are what Envoy was told and is not published.

use std::sync::Arc;
use std::time::Duration;

use super::subscription::{Held, Subscription};
use crate::envoy::Resource;

impl Subscription {
    /// What is kept for connections from before.
    pub(super) fn parked(&self, published: &Held) -> impl Iterator<Item = &Arc<Resource>> {
        let told = self.has_parked.then(|| self.told.values());
        told.into_iter().flatten().filter(|resource| {
            !published.contains_key(&resource.name) && !self.dirty.contains_key(&resource.name)
        })
    }

    /// They are not kept any more, or not all of them.
    pub(super) fn unpark(&mut self, published: &Held, now: Duration) {
        let names: Vec<Arc<str>> = self
            .parked(published)
            .map(|resource| resource.name.clone())
            .collect();
        self.has_parked = false;
        names.into_iter().for_each(|name| self.mark(name, now, false));
    }
}

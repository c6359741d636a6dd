//! Who the gateway is where intentions speak of it: a name says little where namespaces and partitions have services of
//! the same name (Consul Enterprise).

use std::sync::Arc;

use crate::model::mesh::IntentionQuery;
use crate::sources::consul::client::ConsulClient;

#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) name: Arc<str>,
    pub(super) namespace: Arc<str>,
    /// None: nobody named one, neither for us nor for the destination, so it is the destination's.
    pub(super) partition: Option<Arc<str>>,
    /// Only the destination's partition was named: ours is `default`, unless the Consul agent stands in another one.
    pub(super) is_guessed: bool,
}

impl Source {
    pub(super) fn new(name: &Arc<str>, client: &ConsulClient, query: &IntentionQuery) -> Self {
        let default = || "default".into();
        Self {
            name: name.clone(),
            namespace: client.namespace().map_or_else(default, Arc::from),
            partition: match client.partition() {
                Some(own) => Some(own.into()),
                None => query.partition.as_ref().map(|_| default()),
            },
            is_guessed: client.partition().is_none() && query.partition.is_some(),
        }
    }

    /// What the gateway most likely is. A denial counts only if it is of each: it takes connections away.
    pub(super) fn all_towards(&self, query: &IntentionQuery) -> Vec<String> {
        let mut names = vec![self.towards(query)];
        if let (true, Some(theirs)) = (self.is_guessed, &query.partition) {
            names.push(format!("{theirs}/{}/{}", self.namespace, self.name));
            names.dedup();
        }
        names
    }

    /// As `connect/intentions/check` reads it: a name that says nothing else is looked for where the destination is. What
    /// the destination leaves out is the agent's own, and so is ours; Consul CE is never told more than a name.
    fn towards(&self, query: &IntentionQuery) -> String {
        match (&self.partition, &query.partition, &query.namespace) {
            (Some(partition), Some(_), _) => format!("{partition}/{}/{}", self.namespace, self.name),
            (_, _, Some(_)) => format!("{}/{}", self.namespace, self.name),
            _ => self.name.to_string(),
        }
    }
}

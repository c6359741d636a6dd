//! Bounds that keep one peer from taking everybody's memory.

use std::time::Duration;

use thiserror::Error;

#[derive(Clone, Debug)]
pub struct Limits {
    /// Streams at the same time, over all listeners.
    pub streams: usize,
    /// Names that one stream subscribes to, per kind.
    pub names: usize,
    /// Bytes of one resource name.
    pub name_bytes: usize,
    /// Bytes of the names that one stream subscribes to and nothing is published of: a peer may think up any, and they are
    /// kept for as long as it stays. An Envoy has some after a restart, until everything is published again.
    pub unpublished_bytes: usize,
    /// Bytes of Envoy's self-description. A stock Envoy lists about 500 extensions in 40 to 60 KB.
    pub node_bytes: usize,
    /// Bytes of one request. A reconnecting Envoy lists everything it holds: 100,000 names of 100 bytes with their
    /// versions are 12 MiB.
    pub request_bytes: usize,
    /// From the start of a stream to its first request.
    pub first_request: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 10_000,
            names: 200_000,
            name_bytes: 2048,
            unpublished_bytes: 32 << 20,
            node_bytes: 512 << 10,
            request_bytes: 32 << 20,
            first_request: Duration::from_secs(15),
        }
    }
}

/// A peer went over a bound. Ends its stream.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Violation {
    #[error("more than {limit} names of {kind:?} subscribed on one stream")]
    TooManyNames {
        kind: crate::envoy::ResourceKind,
        limit: usize,
    },
    #[error("a resource name of {length} bytes; at most {limit} are accepted")]
    NameTooLong { length: usize, limit: usize },
    #[error("more than {limit} bytes of names subscribed on one stream that nothing is published of")]
    TooMuchUnpublished { limit: usize },
    #[error("a node message of {length} bytes; at most {limit} are accepted: reduce node.metadata")]
    NodeTooLarge { length: usize, limit: usize },
}

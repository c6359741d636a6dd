//! Bounds that keep one peer from taking everybody's memory.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use prost::Message as _;
use thiserror::Error;

#[derive(Clone, Debug)]
pub struct Limits {
    /// Streams at the same time, over all listeners.
    pub streams: usize,
    /// Names that one stream subscribes to, per kind.
    pub names: usize,
    /// Bytes of one resource name.
    pub name_bytes: usize,
    /// Bytes of the names that one stream makes us keep and nothing is published of. An Envoy has some after a restart, until
    /// everything is published again.
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

impl Limits {
    /// The id is kept with the stream, the rest is not.
    pub(super) fn check_node(&self, node: &Node) -> Result<(), Violation> {
        let (length, limit) = (node.encoded_len(), self.node_bytes);
        if length > limit {
            return Err(Violation::NodeTooLarge { length, limit });
        }
        let (length, limit) = (node.id.len(), self.name_bytes);
        if length > limit {
            return Err(Violation::NodeIdTooLong { length, limit });
        }
        Ok(())
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
    #[error("a resource name or version of {length} bytes; at most {limit} are accepted")]
    NameTooLong { length: usize, limit: usize },
    #[error(
        "more than {limit} bytes of names that nothing is published of: no Envoy of this gateway asks for so many; \
         find out what this client is"
    )]
    TooMuchUnpublished { limit: usize },
    #[error("a node.id of {length} bytes; at most {limit} are accepted")]
    NodeIdTooLong { length: usize, limit: usize },
    #[error("a node message of {length} bytes; at most {limit} are accepted: reduce node.metadata")]
    NodeTooLarge { length: usize, limit: usize },
}

//! Requests that no Envoy sends: any bytes, any nonce, any order. Never a panic, never more state than the limits allow.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc::Status;
use futures::{FutureExt, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;

use super::requests::Requests;
use super::service::DiscoveryMessage;
use super::{Limits, StreamState, tls};
use crate::envoy::{Resource, ResourceKind, ResourceSet};
use crate::fuzz::{Pieces, Target};

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "xds_delta",
        input: "an Envoy's whole conversation with the xDS server, delta",
        run: |input| play(&steps(input, delta)),
    },
    Target {
        name: "xds_state_of_the_world",
        input: "the same, state of the world",
        run: |input| play(&steps(input, whole)),
    },
    Target {
        name: "xds_frames",
        input: "gRPC's frames with requests in them, wherever they are cut",
        run: frames,
    },
];

const NAMES: usize = 8;

fn limits() -> Limits {
    Limits {
        names: NAMES,
        name_bytes: 32,
        ..Limits::default()
    }
}

fn set(version: u8) -> ResourceSet {
    let mut set = ResourceSet::default();
    for kind in ResourceKind::ALL {
        for name in ["a", "b", "c"].iter().take(usize::from(version % 4)) {
            set.insert(Arc::new(Resource::new(kind, Arc::from(*name), &[8, version])));
        }
    }
    set
}

#[derive(Clone, Debug)]
pub(super) enum Step<M> {
    Request(usize, M),
    Bytes(usize, Vec<u8>),
    Set(u8),
    Time(u64),
}

pub(super) fn play<M: DiscoveryMessage + Clone>(steps: &[Step<M>]) {
    let mut state = StreamState::new(M::VARIANT, &limits());
    let mut now = Duration::ZERO;
    for step in steps {
        let outcome = match step {
            Step::Request(kind, message) => {
                // Through bytes, as it comes from the wire.
                let decoded = M::decode(message.encode_to_vec().as_slice()).expect("it was encoded here");
                state.on_request(decoded.into_request(ResourceKind::ALL[*kind]), now)
            }
            Step::Bytes(kind, bytes) => match M::decode(bytes.as_slice()) {
                Ok(message) => state.on_request(message.into_request(ResourceKind::ALL[*kind]), now),
                Err(_) => continue,
            },
            Step::Set(version) => Ok(state.on_set(&set(*version), now)),
            Step::Time(millis) => {
                now += Duration::from_millis(*millis);
                Ok(state.on_deadline(now))
            }
        };
        let Ok(actions) = outcome else {
            // The stream ends: nothing further is asked of its state.
            return;
        };
        // One response a kind and input, or the parts of one that are being tried apart.
        assert!(
            actions.responses.len() <= ResourceKind::ALL.len() * 2,
            "{} responses",
            actions.responses.len()
        );
        for response in &actions.responses {
            assert!(response.resources.len() <= 3);
        }
        assert!(actions.reports.len() <= 100, "{} reports", actions.reports.len());
        if let Some(at) = state.deadline(now) {
            assert!(at > now, "a deadline in the past spins");
        }
        let _ = state.acked();
        for kind in ResourceKind::ALL {
            let _ = state.pending(kind);
            assert!(state.refused(kind).count() <= 3);
            assert!(state.wanted(kind).count() <= NAMES + 3);
        }
    }
}

fn steps<M>(input: &[u8], message: fn(&mut Pieces<'_>) -> M) -> Vec<Step<M>> {
    let mut pieces = Pieces::of(input);
    let mut steps = Vec::new();
    while !pieces.is_empty() && steps.len() < STEPS {
        let kind = |pieces: &mut Pieces<'_>| usize::from(pieces.byte()) % ResourceKind::ALL.len();
        steps.push(match pieces.byte() % 8 {
            0..=3 => Step::Request(kind(&mut pieces), message(&mut pieces)),
            4 => Step::Bytes(kind(&mut pieces), pieces.bytes().to_vec()),
            5 | 6 => Step::Set(pieces.byte()),
            _ => Step::Time(pieces.number() % 20_000),
        });
    }
    steps
}

/// What went wrong did so within fewer; more cost time.
const STEPS: usize = 64;

fn nonce(pieces: &mut Pieces<'_>) -> String {
    match pieces.byte() {
        0..=63 => String::new(),
        number @ 64..=191 => (number - 64).to_string(),
        _ => pieces.text(),
    }
}

fn error(pieces: &mut Pieces<'_>) -> Option<Status> {
    let message = match pieces.byte() % 8 {
        0 => format!("{}: bad", pieces.name()),
        1 => format!("Error adding/updating listener(s) {}: bad\n", pieces.name()),
        2 => pieces.text(),
        _ => return None,
    };
    Some(Status {
        message,
        ..Status::default()
    })
}

fn delta(pieces: &mut Pieces<'_>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_subscribe: pieces.several(6, Pieces::name),
        resource_names_unsubscribe: pieces.several(6, Pieces::name),
        initial_resource_versions: pieces
            .several(4, |pieces| (pieces.name(), pieces.text()))
            .into_iter()
            .collect(),
        response_nonce: nonce(pieces),
        error_detail: error(pieces),
        ..DeltaDiscoveryRequest::default()
    }
}

fn whole(pieces: &mut Pieces<'_>) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: pieces.several(6, Pieces::name),
        version_info: pieces.text(),
        response_nonce: nonce(pieces),
        error_detail: error(pieces),
        ..DiscoveryRequest::default()
    }
}

/// What comes of it does not depend on where it was cut.
fn frames(input: &[u8]) {
    let mut pieces = Pieces::of(input);
    let mut cut = Vec::new();
    while !pieces.is_empty() {
        cut.push(Bytes::copy_from_slice(pieces.bytes()));
    }
    let all = Bytes::from(cut.concat());
    assert_eq!(read(cut), read(vec![all]));
}

fn read(pieces: Vec<Bytes>) -> (Vec<DeltaDiscoveryRequest>, Option<tonic::Code>) {
    let frames = pieces
        .into_iter()
        .map(|piece| Ok::<_, std::io::Error>(Frame::data(piece)));
    let mut requests = Requests::new(StreamBody::new(stream::iter(frames)), 64);
    let mut read = Vec::new();
    loop {
        match requests.next().now_or_never().expect("all of it is there") {
            Ok(Some(request)) => read.push(request),
            Ok(None) => return (read, None),
            Err(status) => return (read, Some(status.code())),
        }
    }
}

/// Those in an Envoy's certificate.
pub(crate) fn names(certificate: &[u8]) {
    tls::sans(certificate);
}

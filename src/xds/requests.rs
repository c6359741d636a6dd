//! Requests as they come over a stream: gRPC's frames with protobuf in them.
//!
//! tonic's reader keeps the room of the largest message for as long as the stream lives. An Envoy's first requests say
//! who it is and all that it has, some 60 KiB to megabytes; the later ones are 100 bytes. Here the room goes with the
//! message, and one that comes in one piece, as almost all do, is decoded where it lies.

use std::marker::PhantomData;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use prost::Message;
use tonic::Status;

/// A flag that says whether the message is compressed, and its length.
const PREFIX: usize = 5;

pub(super) struct Requests<M, B = Incoming> {
    body: B,
    /// What has come of a message that is not whole yet. Empty between messages.
    part: BytesMut,
    /// What came with the last frame beside the last message.
    rest: Bytes,
    limit: usize,
    of: PhantomData<fn() -> M>,
}

impl<M, B> Requests<M, B>
where
    M: Message + Default,
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin,
{
    /// Messages of more than `limit` bytes end the stream.
    pub(super) fn new(body: B, limit: usize) -> Self {
        Self {
            body,
            part: BytesMut::new(),
            rest: Bytes::new(),
            limit,
            of: PhantomData,
        }
    }

    /// None: Envoy has ended the stream. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Result<Option<M>, Status> {
        loop {
            if let Some(message) = self.whole()? {
                return Ok(Some(message));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.rest = data;
                    }
                }
                Some(Err(error)) => return Err(Status::from_error(error.into())),
                None if self.part.is_empty() => return Ok(None),
                None => return Err(Status::internal("the stream ended within a request")),
            }
        }
    }

    fn whole(&mut self) -> Result<Option<M>, Status> {
        if self.part.is_empty() {
            let Some(length) = message_length(&self.rest, self.limit)? else {
                self.part = BytesMut::from(&*std::mem::take(&mut self.rest));
                return Ok(None);
            };
            if self.rest.len() < PREFIX + length {
                self.part = BytesMut::with_capacity(PREFIX + length.min(FIRST_ROOM));
                self.part.extend_from_slice(&std::mem::take(&mut self.rest));
                return Ok(None);
            }
            let mut whole = std::mem::take(&mut self.rest);
            whole.advance(PREFIX);
            let message = whole.split_to(length);
            // What holds nothing must not hold the connection's buffer.
            if !whole.is_empty() {
                self.rest = whole;
            }
            return decode(message).map(Some);
        }
        self.part.extend_from_slice(&std::mem::take(&mut self.rest));
        let Some(length) = message_length(&self.part, self.limit)? else {
            return Ok(None);
        };
        if self.part.len() < PREFIX + length {
            return Ok(None);
        }
        let mut whole = std::mem::take(&mut self.part).freeze();
        whole.advance(PREFIX);
        let message = whole.split_to(length);
        // Of its own: it would hold the message's room.
        self.rest = Bytes::copy_from_slice(&whole);
        decode(message).map(Some)
    }
}

/// Room for what a peer says that it will send, and may never do.
const FIRST_ROOM: usize = 64 << 10;

/// None: there is not enough of it to tell.
fn message_length(bytes: &[u8], limit: usize) -> Result<Option<usize>, Status> {
    let Some((prefix, _)) = bytes.split_first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let [compressed, length @ ..] = *prefix;
    if compressed != 0 {
        return Err(Status::unimplemented("compressed requests are not read"));
    }
    match usize::try_from(u32::from_be_bytes(length)) {
        Ok(length) if length <= limit => Ok(Some(length)),
        _ => {
            let length = u32::from_be_bytes(length);
            Err(Status::out_of_range(format!(
                "a request of {length} bytes; at most {limit} are accepted"
            )))
        }
    }
}

fn decode<M: Message + Default>(bytes: Bytes) -> Result<M, Status> {
    M::decode(bytes).map_err(|error| Status::internal(format!("a request that cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
    use futures::{FutureExt, stream};
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use proptest::prelude::*;
    use tonic::Code;

    use super::*;

    fn framed(name: &str) -> Vec<u8> {
        let request = DiscoveryRequest {
            resource_names: vec![name.to_owned()],
            ..DiscoveryRequest::default()
        };
        let message = request.encode_to_vec();
        [
            &[0],
            &u32::try_from(message.len()).unwrap().to_be_bytes()[..],
            &message,
        ]
        .concat()
    }

    /// What comes out, and how it ends.
    fn read(pieces: Vec<Bytes>, limit: usize) -> (Vec<String>, Result<(), Code>) {
        let frames = pieces
            .into_iter()
            .map(|piece| Ok::<_, std::io::Error>(Frame::data(piece)));
        let mut requests = Requests::<DiscoveryRequest, _>::new(StreamBody::new(stream::iter(frames)), limit);
        let mut names = Vec::new();
        loop {
            match requests.next().now_or_never().unwrap() {
                Ok(Some(request)) => names.extend(request.resource_names),
                Ok(None) => return (names, Ok(())),
                Err(status) => return (names, Err(status.code())),
            }
            assert!(requests.part.is_empty(), "between messages nothing is kept");
        }
    }

    proptest! {
        #[test]
        fn messages_come_out_however_they_are_cut(
            names in prop::collection::vec("[a-z]{0,40}", 0..8),
            cuts in prop::collection::vec(1_usize..60, 1..40),
        ) {
            let mut all = Bytes::from(names.iter().flat_map(|name| framed(name)).collect::<Vec<_>>());
            let mut pieces = Vec::new();
            let mut cuts = cuts.into_iter().cycle();
            while !all.is_empty() {
                pieces.push(all.split_to(all.len().min(cuts.next().unwrap())));
            }
            prop_assert_eq!(read(pieces, 1 << 20), (names, Ok(())));
        }
    }

    #[test]
    fn what_is_no_request_ends_the_stream() {
        let whole = framed("a-name");
        let one = |bytes: &[u8]| vec![Bytes::copy_from_slice(bytes)];
        let nothing: Vec<String> = Vec::new();
        assert_eq!(
            read(one(&whole[..whole.len() - 1]), 100),
            (nothing.clone(), Err(Code::Internal))
        );
        assert_eq!(
            read(one(&whole[..3]), 100),
            (nothing.clone(), Err(Code::Internal))
        );
        assert_eq!(
            read(one(&whole), whole.len() - PREFIX),
            (vec!["a-name".to_owned()], Ok(()))
        );
        assert_eq!(
            read(one(&whole), whole.len() - PREFIX - 1),
            (nothing.clone(), Err(Code::OutOfRange))
        );
        assert_eq!(
            read(one(&[1, 0, 0, 0, 0]), 100),
            (nothing.clone(), Err(Code::Unimplemented))
        );
        assert_eq!(
            read(one(&[0, 0, 0, 0, 1, 255]), 100),
            (nothing, Err(Code::Internal))
        );
    }
}

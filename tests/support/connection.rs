//! One connection of a client's, in either version of HTTP, and what became of a request on it.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use h2::Reason;
use http_body_util::Full;
use hyper::Response;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::{CONNECTION, HeaderMap};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

use super::counted::Counted;
use super::failure::Failure;
use super::message::Request;

pub struct Connection {
    sender: Sender,
    /// The server's, DER.
    pub certificate: Option<Bytes>,
    /// Bytes that came so far.
    read: Arc<AtomicU64>,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    pub async fn start<S>(
        stream: S,
        certificate: Option<Bytes>,
        is_http2: bool,
    ) -> Result<Connection, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (stream, read) = Counted::new(stream);
        let stream = TokioIo::new(stream);
        let sender = if is_http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream)
                .await
                .map_err(|error| Failure::of(&error))?;
            tokio::spawn(connection);
            Sender::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(stream)
                .await
                .map_err(|error| Failure::of(&error))?;
            tokio::spawn(connection);
            Sender::Http1(sender)
        };
        Ok(Connection {
            sender,
            certificate,
            read,
        })
    }

    /// Waits until another request may be sent. No: the server has closed it, or has said that it will.
    pub async fn takes_another(&mut self) -> bool {
        let ready = match &mut self.sender {
            Sender::Http1(sender) => sender.ready().await,
            Sender::Http2(sender) => sender.ready().await,
        };
        ready.is_ok()
    }

    /// `kept`: it has answered before.
    pub async fn send(&mut self, request: &Request, kept: bool) -> Result<Response<Incoming>, Failure> {
        let read = self.read.load(Relaxed);
        let (answer, is_http2) = match &mut self.sender {
            Sender::Http1(sender) => (sender.send_request(request.to_hyper()).await, false),
            Sender::Http2(sender) => (sender.send_request(request.to_hyper_absolute()).await, true),
        };
        answer.map_err(|error| {
            let failure = Failure::of(&error);
            // Where part of an answer was there, nobody may send the request again. HTTP/2 says itself what was not taken up.
            let may_be_sent_again = match is_http2 {
                true => was_not_taken_up(&error),
                false => self.read.load(Relaxed) == read && matches!(failure, Failure::Reset(_)),
            };
            if kept && may_be_sent_again {
                Failure::Stale
            } else {
                failure
            }
        })
    }
}

/// Never sent, or beyond the last request that a GOAWAY names, or refused before anything was done.
fn was_not_taken_up(error: &hyper::Error) -> bool {
    let stream = error
        .source()
        .and_then(|source| source.downcast_ref::<h2::Error>());
    let refused = stream.is_some_and(|stream| {
        let reason = stream.reason();
        reason == Some(Reason::REFUSED_STREAM) || stream.is_go_away() && reason == Some(Reason::NO_ERROR)
    });
    refused || error.is_canceled()
}

/// Whether the server says that this was its last answer on the connection.
pub fn closes(headers: &HeaderMap) -> bool {
    let says_so = |value: &str| {
        value
            .split(',')
            .any(|token| token.trim().eq_ignore_ascii_case("close"))
    };
    let values = headers.get_all(CONNECTION).iter();
    values.filter_map(|value| value.to_str().ok()).any(says_so)
}

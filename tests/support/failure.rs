//! The ways in which a request can go without a reply.

use std::fmt;

/// Why there is no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    Refused,
    /// Closed or reset: on a connection made for this request, or after part of the answer.
    Reset(String),
    /// The same on a kept connection before the first byte of an answer: mostly the server had closed it meanwhile, and then
    /// real clients
    /// send the request again; a server that dies at work looks alike.
    Stale,
    Timeout,
    Tls(String),
    Other(String),
}

impl Failure {
    /// Finds the reason in an error's chain of causes.
    pub fn of(error: &(dyn std::error::Error + 'static)) -> Failure {
        use std::io::ErrorKind::*;
        let mut cause = Some(error);
        while let Some(error) = cause {
            if error.downcast_ref::<rustls::Error>().is_some() {
                return Failure::Tls(error.to_string());
            }
            if let Some(io) = error.downcast_ref::<std::io::Error>() {
                // io::Error shows what it wraps, but not as a source.
                if let Some(tls) = io
                    .get_ref()
                    .and_then(|inner| inner.downcast_ref::<rustls::Error>())
                {
                    return Failure::Tls(tls.to_string());
                }
                match io.kind() {
                    ConnectionRefused => return Failure::Refused,
                    ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof | NotConnected => {
                        return Failure::Reset(io.to_string());
                    }
                    _ => {}
                }
            }
            // It shows no io::Error that it wraps.
            if let Some(stream) = error.downcast_ref::<h2::Error>()
                && (stream.is_io() || stream.is_go_away() || stream.is_reset())
            {
                return Failure::Reset(stream.to_string());
            }
            if let Some(http) = error.downcast_ref::<hyper::Error>()
                && (http.is_incomplete_message() || http.is_closed() || http.is_canceled())
            {
                return Failure::Reset(http.to_string());
            }
            cause = error.source();
        }
        Failure::Other(format!("{error:?}"))
    }

    /// The name it is counted under.
    pub fn kind(&self) -> &'static str {
        match self {
            Failure::Refused => "refused",
            Failure::Reset(_) => "reset",
            Failure::Stale => "stale connection",
            Failure::Timeout => "timeout",
            Failure::Tls(_) => "tls",
            Failure::Other(_) => "other",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Reset(why) | Failure::Tls(why) | Failure::Other(why) => {
                write!(f, "{}: {why}", self.kind())
            }
            _ => f.write_str(self.kind()),
        }
    }
}

//! One request and its answer, by way of reqwest or over a stream of a connection for long polls.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use futures::future::{Either, FutureExt as _, ready};
use http::{HeaderMap, HeaderValue, header};
use reqwest::{Method, StatusCode, Version};
use tokio::time::Instant;
use url::Url;

use super::{Answer, ApiClient, CALL_LANE, is_turned_away};
use crate::model::{ProblemKind, Redacted};
use crate::sources::agent_api::call::{Call, Credential};
use crate::sources::agent_api::connector::{Lanes, USER_AGENT};
use crate::sources::agent_api::error::{ApiError, TransportFailure, innermost_reason};
use crate::sources::agent_api::lines::Lines;
use crate::sources::agent_api::settings::Endpoint;
use crate::sources::agent_api::streams::{StreamError, Streamed, Target};

pub(in crate::sources) type Token = Option<Arc<Redacted<String>>>;

/// An answer whose body is still to come.
#[derive(Debug)]
pub(in crate::sources) enum Reply {
    Pooled(reqwest::Response),
    Streamed(Streamed),
}

/// Why none came, in the words of either.
#[derive(Debug)]
pub(in crate::sources) struct Lost {
    failure: TransportFailure,
    reason: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl ApiClient {
    /// A call on one of several connection pools. HTTP/2 servers cap the streams of one connection (Go: 250, proxies:
    /// 100) and a stream over the cap waits for a long poll to end, so long polls are spread over lanes.
    ///
    /// Ten thousand wait in here: what is rarely needed is boxed, and over a stream the call, with what messages name of it, is
    /// made anew when there is an answer.
    pub(in crate::sources) async fn call_on(
        &self,
        lane: usize,
        asked: &(impl Fn() -> Call + Sync),
    ) -> Result<Answer, ApiError> {
        let token = Box::pin(self.token_of(asked)).await?;
        let refused = match self.send(lane, asked, &token).await {
            Err(error) if error.kind() == ProblemKind::TokenNotAccepted => error,
            answer => return answer,
        };
        Box::pin(self.send_anew(lane, asked, token, refused)).await
    }

    async fn token_of(&self, asked: &(impl Fn() -> Call + Sync)) -> Result<Token, ApiError> {
        let call = asked();
        Ok(match call.credential {
            Credential::Own => {
                // Logging in is a call, too.
                Box::pin(self.credential(&call.to_string())).await?;
                self.0.token.current()
            }
            _ => call.credential.token(),
        })
    }

    /// Consul has forgotten the token: what it refused has not been done, and is asked again with another.
    async fn send_anew(
        &self,
        lane: usize,
        asked: &(impl Fn() -> Call + Sync),
        token: Token,
        error: ApiError,
    ) -> Result<Answer, ApiError> {
        let call = asked();
        let Some(login) = self
            .login()
            .filter(|_| matches!(call.credential, Credential::Own))
        else {
            return Err(error);
        };
        if self.0.token.current() == token {
            // No login makes another datacenter know a token of this one.
            if call.scope.leaves_datacenter(&self.0.settings.scope) && self.is_known_here(login, &token).await
            {
                return Err(error);
            }
            login.refused(Instant::now());
        }
        self.credential(&call.to_string()).await?;
        match self.0.token.current() {
            now if now != token => self.send(lane, asked, &now).await,
            _ => Err(error),
        }
    }

    /// A call whose answer has no end. Whoever reads it bounds the time, of its beginning too.
    pub(in crate::sources) async fn lines(&self, call: Call, longest: usize) -> Result<Lines, ApiError> {
        let asked = call.to_string();
        self.credential(&asked).await?;
        let token = self.0.token.current();
        let reply = self.open(CALL_LANE, &call, &token, None).await?;
        if !reply.status().is_success() {
            return Err(self.refusal(reply, &call, token.is_some()).await);
        }
        Ok(Lines::new(self.clone(), asked, reply, longest))
    }

    async fn send(
        &self,
        lane: usize,
        asked: &(impl Fn() -> Call + Sync),
        token: &Token,
    ) -> Result<Answer, ApiError> {
        if let Some(limit) = self.may_stream(lane, asked) {
            // For all of it, the answer's body included.
            let answer = tokio::time::timeout(limit, self.send_over_stream(lane, asked, token));
            match answer.await {
                Ok(Ok(None)) => self.0.spoken.note(Version::HTTP_11),
                Ok(Ok(Some(answer))) => return Ok(answer),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(self.transport_error(asked(), StreamError::late())),
            }
        }
        Box::pin(async { self.send_pooled(lane, &asked(), token).await }).await
    }

    /// Only what may be asked twice, and not where the server was seen to speak HTTP/1 alone. For how long at most.
    fn may_stream(&self, lane: usize, asked: &impl Fn() -> Call) -> Option<Duration> {
        if lane == CALL_LANE {
            return None;
        }
        let call = asked();
        let may = call.method == Method::GET
            && call.body.is_none()
            && self.0.settings.address.is_tls()
            && match self.0.spoken.version() {
                None => self.product().speaks_http_2(),
                Some(version) => version == Version::HTTP_2,
            };
        may.then_some(call.timeout)
    }

    /// None: the server has no HTTP/2.
    async fn send_over_stream(
        &self,
        lane: usize,
        asked: &(impl Fn() -> Call + Sync),
        token: &Token,
    ) -> Result<Option<Answer>, ApiError> {
        let mut again = true;
        loop {
            let begun = Box::pin(async { self.begin(lane, &asked(), token).await });
            let Some(awaited) = begun.await? else {
                return Ok(None);
            };
            let Some(reply) = self.or_again(awaited.await, asked, &mut again)? else {
                continue;
            };
            self.0.spoken.note(Version::HTTP_2);
            let read = async move { self.read(Reply::Streamed(reply), &asked(), token.is_some()).await };
            return Box::pin(read).await.map(Some);
        }
    }

    /// None: to be asked once more. A function of its own: what it looks at would be held while the answer is read.
    fn or_again(
        &self,
        replied: Result<Streamed, StreamError>,
        asked: &impl Fn() -> Call,
        again: &mut bool,
    ) -> Result<Option<Streamed>, ApiError> {
        match replied {
            Ok(reply) => Ok(Some(reply)),
            // A server that ends tells which requests it never looked at.
            Err(failed) if failed.is_unprocessed() && *again => {
                *again = false;
                Ok(None)
            }
            Err(failed) => Err(self.transport_error(asked(), failed)),
        }
    }

    /// Sends a request over the lane's stream connection; ends when it is sent, or the connection ended before it could be.
    async fn begin(
        &self,
        lane: usize,
        call: &Call,
        token: &Token,
    ) -> Result<Option<impl Future<Output = Result<Streamed, StreamError>> + use<>>, ApiError> {
        let settings = &self.0.settings;
        let Endpoint::Https { authority } = &settings.address.endpoint else {
            return Ok(None);
        };
        let Some((place, tls)) = Lanes::streams(&self.0.lanes, settings, lane) else {
            return Ok(None);
        };
        let Some(target) = Target::new(tls, authority, &self.0.base) else {
            return Ok(None);
        };
        let connection = match place.connection(&target).await {
            Ok(Some(connection)) => connection,
            Ok(None) => return Ok(None),
            Err(error) => return Err(self.transport_error(call, error)),
        };
        let mut request = http::Request::new(());
        *request.uri_mut() = self
            .url(call)?
            .as_str()
            .parse()
            .map_err(|error: http::uri::InvalidUri| not_sent(call, error.to_string()))?;
        *request.headers_mut() = self.headers(call, token)?;
        Ok(Some(match connection.send(request) {
            Ok(awaited) => Either::Left(awaited.head()),
            Err(not_sent) => Either::Right(ready(not_sent).map(Err)),
        }))
    }

    async fn send_pooled(&self, lane: usize, call: &Call, token: &Token) -> Result<Answer, ApiError> {
        let reply = self.open(lane, call, token, Some(call.timeout)).await?;
        self.read(reply, call, token.is_some()).await
    }

    /// `limit` is for all of it, the answer's body included.
    async fn open(
        &self,
        lane: usize,
        call: &Call,
        token: &Token,
        limit: Option<Duration>,
    ) -> Result<Reply, ApiError> {
        let url = self.url(call)?;
        let http = Lanes::client(&self.0.lanes, &self.0.settings, lane)
            .map_err(|error| not_sent(call, error.to_string()))?;
        let mut request = http
            .request(call.method.clone(), url)
            .headers(self.headers(call, token)?);
        if let Some(limit) = limit {
            request = request.timeout(limit);
        }
        if let Some(body) = call.body.clone() {
            request = request.body(body);
        }
        let response = request
            .send()
            .await
            .map_err(|error| self.transport_error(call, error))?;
        self.0.spoken.note(response.version());
        Ok(Reply::Pooled(response))
    }

    fn url(&self, call: &Call) -> Result<Url, ApiError> {
        call.url(&self.0.base, &self.0.settings.scope)
            .ok_or_else(|| not_sent(call, "a path segment is empty, `.` or `..`".to_owned()))
    }

    fn headers(&self, call: &Call, token: &Token) -> Result<HeaderMap, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        if let Some(token) = token {
            let value = secret_header(token.expose()).ok_or_else(|| {
                not_sent(
                    call,
                    "the token holds characters that no header may carry".to_owned(),
                )
            })?;
            headers.insert(self.0.settings.product.token_header(), value);
        }
        if let Some((user, password)) = &self.0.settings.http_auth {
            let pair = BASE64_STANDARD.encode(format!("{user}:{}", password.expose()));
            // Base64 fits any header.
            headers
                .extend(secret_header(&format!("Basic {pair}")).map(|value| (header::AUTHORIZATION, value)));
        }
        Ok(headers)
    }

    async fn read(&self, mut reply: Reply, call: &Call, with_token: bool) -> Result<Answer, ApiError> {
        let status = reply.status();
        let index = self.index(&reply);
        let found = status.is_success();
        let is_answer = found || (call.not_found_is_answer && status == StatusCode::NOT_FOUND);
        if !is_answer {
            return Err(Box::pin(self.refusal(reply, call, with_token)).await);
        }
        let filtered_by_acls = reply.header("x-consul-results-filtered-by-acls") == Some("true");
        let mut body = BytesMut::new();
        while let Some(chunk) = reply
            .chunk()
            .await
            .map_err(|error| self.transport_error(call, error))?
        {
            if body.len() + chunk.len() > call.max_body {
                return Err(ApiError::TooLarge {
                    server: self.0.server.clone(),
                    asked: call.to_string(),
                    limit: call.max_body,
                });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer {
            found,
            index,
            filtered_by_acls,
            body: body.freeze(),
            asked: call.to_string(),
            server: self.0.server.clone(),
        })
    }

    async fn refusal(&self, mut reply: Reply, call: &Call, with_token: bool) -> ApiError {
        let status = reply.status();
        let index = self.index(&reply);
        let retry_after = reply.header("retry-after").and_then(|value| value.parse().ok());
        let body = reply.error_text(call.max_error).await;
        if is_turned_away(status, &body) {
            self.0.token.refresh(true).await;
        }
        ApiError::Status {
            server: self.0.server.clone(),
            status: status.as_u16(),
            index,
            retry_after: retry_after.map(Duration::from_secs),
            anonymous: status == StatusCode::FORBIDDEN
                && !with_token
                && matches!(call.credential, Credential::Own),
            fix: self.rights_fix(status, &body, call).map(Into::into),
            asked: call.to_string(),
            body: body.into(),
        }
    }

    fn index(&self, reply: &Reply) -> Option<u64> {
        reply
            .header(self.0.settings.product.index_header())?
            .parse()
            .ok()
            .filter(|index| *index > 0)
    }

    pub(in crate::sources) fn transport_error(
        &self,
        asked: impl ToString,
        lost: impl Into<Lost>,
    ) -> ApiError {
        let Lost {
            failure,
            reason,
            source,
        } = lost.into();
        ApiError::Transport {
            server: self.0.server.clone(),
            asked: asked.to_string(),
            failure,
            reason,
            source,
        }
    }
}

impl Reply {
    fn status(&self) -> StatusCode {
        match self {
            Self::Pooled(response) => response.status(),
            Self::Streamed(streamed) => streamed.response.status(),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let headers = match self {
            Self::Pooled(response) => response.headers(),
            Self::Streamed(streamed) => streamed.response.headers(),
        };
        headers.get(name)?.to_str().ok()
    }

    pub(in crate::sources) async fn chunk(&mut self) -> Result<Option<Bytes>, Lost> {
        match self {
            Self::Pooled(response) => response.chunk().await.map_err(Into::into),
            Self::Streamed(streamed) => streamed.chunk().await.map_err(Into::into),
        }
    }

    /// The start of a plain-text error, fit for one line of a message.
    async fn error_text(&mut self, longest: usize) -> String {
        let mut bytes = BytesMut::new();
        while bytes.len() < longest {
            match self.chunk().await {
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk[..chunk.len().min(longest - bytes.len())]),
                Ok(None) | Err(_) => break,
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        text.trim()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect()
    }
}

impl From<reqwest::Error> for Lost {
    fn from(error: reqwest::Error) -> Self {
        Self {
            failure: TransportFailure::of(&error),
            reason: innermost_reason(&error),
            source: error.without_url().into(),
        }
    }
}

impl From<StreamError> for Lost {
    fn from(error: StreamError) -> Self {
        Self {
            failure: error.failure,
            reason: error.reason.as_ref().to_owned(),
            source: error.into(),
        }
    }
}

fn not_sent(call: &Call, reason: String) -> ApiError {
    ApiError::NotSent {
        asked: call.to_string(),
        reason,
    }
}

fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

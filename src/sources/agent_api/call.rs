//! One request as a value: what is asked, how long it may take, how much may come back.
//!
//! Why a type of its own: `recurse`, `keys` and `raw` are *presence* flags to Consul (`?recurse=false` is recursive, for
//! DELETE too), so a flag here has no value to get wrong; and every message about a failure names what was asked, in the
//! same words each time, without the index and wait that differ from poll to poll.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use url::Url;

use crate::model::Redacted;

#[derive(Clone, Debug)]
pub(in crate::sources) struct Call {
    pub(in crate::sources) method: Method,
    /// Percent-encoded one by one.
    segments: Vec<String>,
    flags: Vec<&'static str>,
    query: Vec<(&'static str, String)>,
    pub(in crate::sources) scope: Scope,
    pub(in crate::sources) body: Option<Bytes>,
    pub(in crate::sources) blocking: Option<Blocking>,
    pub(in crate::sources) timeout: Duration,
    pub(in crate::sources) max_body: usize,
    /// How much of an error's text is kept.
    pub(in crate::sources) max_error: usize,
    /// 404 is an answer here, not an error: an empty KV prefix says 404 with an index.
    pub(in crate::sources) not_found_is_answer: bool,
    /// The ACL rule that the call needs, for the message about a 403.
    pub(in crate::sources) needs: Option<String>,
    pub(in crate::sources) credential: Credential,
}

/// Who asks.
#[derive(Clone, Debug, Default)]
pub(in crate::sources) enum Credential {
    /// Whoever the client is at that time.
    #[default]
    Own,
    None,
    This(Arc<Redacted<String>>),
}

/// Where a call is aimed when not at the settings' own place: (parameter, value), sent only when set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::sources) struct Scope(Vec<(&'static str, String)>);

impl Scope {
    pub(in crate::sources) fn with(mut self, name: &'static str, value: Option<impl ToString>) -> Self {
        if let Some(value) = value {
            self.0.push((name, value.to_string()));
        }
        self
    }

    fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    fn value(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(own, _)| *own == name)?;
        Some(value)
    }

    /// Names a datacenter, and not the one of the settings, where the agent logs in.
    pub(in crate::sources) fn leaves_datacenter(&self, settings: &Scope) -> bool {
        let named = self.value("dc");
        named.is_some() && named != settings.value("dc")
    }
}

/// The long-poll part of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sources) struct Blocking {
    pub(in crate::sources) index: u64,
    pub(in crate::sources) wait: Duration,
}

impl Credential {
    /// That the call itself names.
    pub(in crate::sources) fn token(&self) -> Option<Arc<Redacted<String>>> {
        match self {
            Self::Own | Self::None => None,
            Self::This(token) => Some(token.clone()),
        }
    }
}

impl Call {
    /// `path` is a fixed path below `/v1/`.
    pub(in crate::sources) fn new(method: Method, path: &str) -> Self {
        Self {
            method,
            segments: path.split('/').map(str::to_owned).collect(),
            flags: Vec::new(),
            query: Vec::new(),
            scope: Scope::default(),
            body: None,
            blocking: None,
            timeout: CALL_TIMEOUT,
            max_body: SMALL_BODY,
            max_error: ERROR_TEXT,
            not_found_is_answer: false,
            needs: None,
            credential: Credential::Own,
        }
    }

    pub(in crate::sources) fn get(path: &str) -> Self {
        Self::new(Method::GET, path)
    }

    pub(in crate::sources) fn put(path: &str) -> Self {
        Self::new(Method::PUT, path)
    }

    /// One more path segment, which may hold anything: a slash in it is encoded.
    pub(in crate::sources) fn segment(mut self, segment: &str) -> Self {
        self.segments.push(segment.to_owned());
        self
    }

    /// A KV key: its slashes are the path's.
    pub(in crate::sources) fn key(mut self, key: &str) -> Self {
        self.segments.extend(key.split('/').map(str::to_owned));
        self
    }

    pub(in crate::sources) fn flag(mut self, flag: &'static str) -> Self {
        self.flags.push(flag);
        self
    }

    pub(in crate::sources) fn query(mut self, name: &'static str, value: impl ToString) -> Self {
        self.query.push((name, value.to_string()));
        self
    }

    pub(in crate::sources) fn scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    pub(in crate::sources) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Some(body.into());
        self
    }

    pub(in crate::sources) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    pub(in crate::sources) fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    pub(in crate::sources) fn max_error(mut self, bytes: usize) -> Self {
        self.max_error = bytes;
        self
    }

    pub(in crate::sources) fn not_found_is_answer(mut self) -> Self {
        self.not_found_is_answer = true;
        self
    }

    pub(in crate::sources) fn needs(mut self, rule: impl Into<String>) -> Self {
        self.needs = Some(rule.into());
        self
    }

    pub(in crate::sources) fn with(mut self, credential: Credential) -> Self {
        self.credential = credential;
        self
    }

    /// Turns the call into a long poll, with a client-side limit that leaves the server room for its jitter of
    /// `wait`/16 and for the network.
    pub(in crate::sources) fn blocking(mut self, blocking: Option<Blocking>) -> Self {
        if let Some(Blocking { wait, .. }) = blocking {
            self.timeout = wait * 17 / 16 + NETWORK_MARGIN;
        }
        self.blocking = blocking;
        self
    }

    /// The full URL; none if a segment is one that URLs swallow (`.`, `..`, or nothing).
    pub(in crate::sources) fn url(&self, base: &Url, default_scope: &Scope) -> Option<Url> {
        let last = self.segments.len().saturating_sub(1);
        for (position, segment) in self.segments.iter().enumerate() {
            if matches!(segment.as_str(), "." | "..") || (segment.is_empty() && position != last) {
                return None;
            }
        }
        let mut url = base.clone();
        url.path_segments_mut()
            .ok()?
            .pop_if_empty()
            .push("v1")
            .extend(&self.segments);
        {
            let mut pairs = url.query_pairs_mut();
            let defaults = default_scope.0.iter().filter(|(name, _)| !self.scope.has(name));
            for (name, value) in defaults.chain(&self.scope.0) {
                pairs.append_pair(name, value);
            }
            for flag in &self.flags {
                pairs.append_key_only(flag);
            }
            for (name, value) in &self.query {
                pairs.append_pair(name, value);
            }
            if let Some(Blocking { index, wait }) = self.blocking {
                pairs.append_pair("index", &index.to_string());
                pairs.append_pair("wait", &go_duration(wait));
            }
        }
        if url.query() == Some("") {
            url.set_query(None);
        }
        Some(url)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} /v1/{}", self.method, self.segments.join("/"))?;
        let scope = self.scope.0.iter().map(|(name, value)| (*name, value.as_str()));
        let query = self.query.iter().map(|(name, value)| (*name, value.as_str()));
        let mut mark = '?';
        for flag in &self.flags {
            write!(f, "{mark}{flag}")?;
            mark = '&';
        }
        for (name, value) in scope.chain(query) {
            write!(f, "{mark}{name}={value}")?;
            mark = '&';
        }
        Ok(())
    }
}

/// Both take Go durations and refuses a bare number; whole milliseconds are exact and always valid.
fn go_duration(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

/// A client agent holds a call for `rpc_hold_timeout` (7 s) while there is no leader; a little more than that.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// On top of the server's own wait and jitter.
const NETWORK_MARGIN: Duration = Duration::from_secs(10);

/// For everything that is not a listing: a KV value of 512 KiB in base64 fits.
const SMALL_BODY: usize = 1024 * 1024;

/// Error texts are a line; a proxy's error page is not worth more.
const ERROR_TEXT: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn url(call: &Call) -> String {
        call.url(&Url::parse("http://c:8500/proxy").unwrap(), &Scope::default())
            .unwrap()
            .to_string()
    }

    #[test]
    fn keys_keep_their_slashes_and_names_do_not() {
        assert_eq!(
            url(&Call::get("kv").key("p/config/").flag("recurse")),
            "http://c:8500/proxy/v1/kv/p/config/?recurse"
        );
        assert_eq!(
            url(&Call::get("health/service").segment("a/b ?c")),
            "http://c:8500/proxy/v1/health/service/a%2Fb%20%3Fc"
        );
    }

    #[test]
    fn a_long_poll_has_a_unit_and_room_to_end() {
        let call = Call::get("kv").key("a").blocking(Some(Blocking {
            index: 7,
            wait: Duration::from_secs(300),
        }));
        assert_eq!(url(&call), "http://c:8500/proxy/v1/kv/a?index=7&wait=300000ms");
        assert!(call.timeout > Duration::from_secs(318));
        assert_eq!(call.to_string(), "GET /v1/kv/a");
    }

    #[test]
    fn scope_is_sent_only_when_set() {
        let base = Url::parse("http://c").unwrap();
        let default = Scope::default().with("dc", Some("dc2"));
        assert_eq!(
            Call::get("a").url(&base, &default).unwrap().as_str(),
            "http://c/v1/a?dc=dc2"
        );
        let own = Scope::default().with("dc", Some("dc3")).with("ns", None::<&str>);
        assert_eq!(
            Call::get("a").scope(own).url(&base, &default).unwrap().as_str(),
            "http://c/v1/a?dc=dc3"
        );
    }

    #[test]
    fn segments_that_urls_swallow_are_refused() {
        let base = Url::parse("http://c").unwrap();
        for key in ["a/../b", ".", "a//b", "/a"] {
            assert!(
                Call::get("kv").key(key).url(&base, &Scope::default()).is_none(),
                "{key}"
            );
        }
    }
}

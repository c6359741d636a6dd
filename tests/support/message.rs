//! What a test asks, and what it is answered.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Uri};
use serde_json::Value;

/// What to ask. The path is sent as it is; use [`super::client::Client::raw`] for bytes that no URI may hold.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    pub host: String,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The server's leaf certificate, DER.
    pub certificate: Option<Bytes>,
}

impl Reply {
    /// The serial number of the server's certificate as Vault writes it: `39:dd:2e`, without the byte that DER puts
    /// before a number that would look negative.
    pub fn serial(&self) -> String {
        use x509_parser::prelude::FromDer as _;
        let der = self.certificate.as_ref().expect("a certificate");
        let (_, parsed) = x509_parser::prelude::X509Certificate::from_der(der).expect("a certificate");
        let bytes = parsed.serial.to_bytes_be();
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<Vec<_>>()
            .join(":")
    }
}

impl Request {
    pub fn new(method: Method, host: &str, path: &str) -> Request {
        let (host, path) = (host.to_owned(), path.to_owned());
        Request {
            method,
            host,
            path,
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    pub fn get(host: &str, path: &str) -> Request {
        Request::new(Method::GET, host, path)
    }

    pub fn post(host: &str, path: &str, body: impl Into<Bytes>) -> Request {
        Request {
            body: body.into(),
            ..Request::new(Method::POST, host, path)
        }
    }

    pub fn header(mut self, name: &str, value: &str) -> Request {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a header's name");
        self.headers
            .append(name, HeaderValue::from_str(value).expect("a header's value"));
        self
    }

    pub fn to_hyper(&self) -> hyper::Request<Full<Bytes>> {
        let uri: Uri = self
            .path
            .parse()
            .unwrap_or_else(|error| panic!("{:?}: {error}; use raw()", self.path));
        let mut request = hyper::Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        if !self.headers.contains_key(HOST) {
            request
                .headers_mut()
                .insert(HOST, HeaderValue::from_str(&self.host).expect("a host"));
        }
        request
    }
}

impl Request {
    /// The same for HTTP/2, where scheme and host are part of what is asked for.
    pub fn to_hyper_absolute(&self) -> hyper::Request<Full<Bytes>> {
        let mut request = self.to_hyper();
        let host = request.headers_mut().remove(HOST).expect("a host");
        let host = host.to_str().expect("a host");
        *request.uri_mut() = format!("https://{host}{}", self.path).parse().expect("a URI");
        request
    }
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The name of the [`super::backend::Backend`] that answered.
    pub fn backend(&self) -> Option<&str> {
        self.header("x-backend")
    }
}

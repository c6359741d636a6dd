use std::sync::Arc;
use std::time::Duration;

use super::breadth::{policy_bytes, too_many_certificates, too_many_listeners};
use super::document::Decoder;
use super::objects::{Gateway, Listener, ListenerTls, Protocol, Scope};
use super::route::names;
use super::schema::with_policies;
use crate::diagnostics::{Code, Diagnostic};
use crate::hcl::{Block, BlockSchema, Occurs, Reader, Type};
use crate::model::Origin;

pub(super) fn schema() -> BlockSchema {
    with_policies(BlockSchema::new(
        "gateway",
        &["name"],
        "A group of listeners that an Envoy, or several, serve.",
    ))
    .block(listener_schema(), Occurs::AtLeastOnce)
}

fn listener_schema() -> BlockSchema {
    with_policies(BlockSchema::new("listener", &["name"], "A port that clients reach."))
        .attribute(
            "address",
            Type::IpAddress,
            None,
            "\"0.0.0.0\"",
            "The address to listen on. Left out: the agent's `bind_addr` (0.0.0.0; 127.0.0.1 under -dev). `::` takes IPv6 clients alone: a second listener on 0.0.0.0 takes those of IPv4.",
        )
        .required("port", Type::Integer(1, 65535), "8443", "The TCP port to listen on.")
        .attribute(
            "protocol",
            Type::Word(&["http", "https", "tcp"]),
            Some("\"http\""),
            "\"https\"",
            "What clients speak. `tcp`: anything; a `tcp_route` says where its connections go, and with a tls block they are \
             decrypted first.",
        )
        .attribute(
            "trusted_proxies",
            Type::Integer(0, 16),
            Some("0"),
            "1",
            "How many proxies of yours stand in front and append to X-Forwarded-For. 0: the header is not believed, and X-Forwarded-Host, -Port, -Prefix, -Server, X-Real-IP and Forwarded are removed. They speak HTTP/1.1 or HTTP/2 to the gateway: HTTP/1.0 (`proxy_http_version` of an nginx before 1.29.7) gets 426.",
        )
        .attribute(
            "idle_timeout",
            Type::Duration(1000, 24 * 3_600_000),
            Some("\"1h\""),
            "\"10m\"",
            "How long a connection without requests is kept; of a tcp listener, one without a byte in either direction.",
        )
        .attribute(
            "stream_idle_timeout",
            Type::Duration(0, 24 * 3_600_000),
            Some("\"5m\""),
            "\"1h\"",
            "How long a request or an upgraded connection (WebSocket) may go without a byte in either direction. \"0s\": for ever. A \
             rule with a longer `timeout` has that in its place.",
        )
        .attribute(
            "request_headers_timeout",
            Type::Duration(100, 600_000),
            Some("\"10s\""),
            "\"5s\"",
            "Longest time from a request's first byte to the end of its headers: slow senders are cut off.",
        )
        .attribute(
            "max_request_headers_kb",
            Type::Integer(8, 8192),
            Some("60"),
            "96",
            "Bound on a request's headers in KiB; more answers 431, and resets the stream over HTTP/2.",
        )
        .attribute(
            "health_check_path",
            Type::NewPath,
            None,
            "\"/gateway/health\"",
            "What a load balancer in front asks, over HTTP/1.1 or HTTP/2: 200 on any host, and 503 from the moment on that Envoy is \
             to stop, while requests are served on for `drain_time`. No rule and no policy sees a request for this path, with a query \
             or without: `client_ip` neither. On https the handshake comes first: the check needs the SNI of a certificate's name, and \
             a certificate of its own where clients need one; a listener of plain http for it is simpler. Left out: there is none.",
        )
        .attribute(
            "max_connections",
            Type::Integer(1, 10_000_000),
            None,
            "20000",
            "Connections this listener accepts at once, over all of its certificates; more are closed before TLS. Left out: \
             only the Envoy-wide bound of the agent's settings (`envoy { max_downstream_connections }`) holds.",
        )
        .block(
            BlockSchema::new("tls", &[], "How an https or tcp listener terminates TLS.")
                .required(
                    "certificates",
                    Type::List(&Type::Name),
                    "[\"www\"]",
                    "Names of `certificate` blocks. Which one is served is decided by the client's SNI; a name that no \
                     certificate covers is refused.",
                )
                .attribute("min_version", Type::Word(&["1.2", "1.3"]), Some("\"1.2\""), "\"1.3\"", "The oldest TLS version accepted.")
                .block(super::client_ca::schema(), Occurs::Optional),
            Occurs::Optional,
        )
}

pub(super) fn decode(decoder: &mut Decoder<'_>, block: &Block, reader: &Reader<'_>) -> Gateway {
    let mut listeners: Vec<Listener> = Vec::new();
    for (block, reader) in reader.children("listener") {
        let listener = decode_listener(decoder, block, &reader);
        let same = |other: &&Listener| {
            other.port == listener.port
                && (other.address == listener.address
                    || other.address.is_none()
                    || listener.address.is_none())
        };
        if let Some(other) = listeners.iter().find(same) {
            decoder.problems.push(
                Diagnostic::error(Code::PortClash, format!("listeners {:?} and {:?} both want port {}", other.name, listener.name, listener.port))
                    .at(reader.origin_of("port"))
                    .because("a port of one address can belong to one listener only")
                    .fix("give one of them another port or address; several hosts on one port are several routes, not several listeners"),
            );
        }
        listeners.push(listener);
    }
    let gateway = Gateway {
        name: block.label(0).into(),
        origin: reader.origin(),
        listeners,
        scope: decoder.scope(reader),
        policy_bytes: policy_bytes(reader),
    };
    decoder.problems.extend(too_many_listeners(&gateway));
    gateway
}

fn decode_listener(decoder: &mut Decoder<'_>, block: &Block, reader: &Reader<'_>) -> Listener {
    let protocol = match reader.string("protocol").as_deref() {
        Some("https") => Protocol::Https,
        Some("tcp") => Protocol::Tcp,
        _ => Protocol::Http,
    };
    let tls = reader.child("tls").map(|tls| ListenerTls {
        certificates: names(&tls, "certificates"),
        min_version: tls.string("min_version").unwrap_or_else(|| "1.2".into()),
        client_ca: tls
            .child("client_ca")
            .map(|block| super::client_ca::decode(decoder, &block)),
    });
    let certificates = tls.iter().map(|tls| &tls.certificates[..]);
    let too_many = certificates.filter_map(too_many_certificates);
    decoder.problems.extend(too_many);
    match (&tls, protocol) {
        (None, Protocol::Https) => decoder.problems.push(
            Diagnostic::error(Code::MissingKey, "an https listener needs a tls block")
                .at(reader.origin())
                .because("without a certificate no handshake can succeed")
                .fix("add `tls { certificates = [\"<name>\"] }`"),
        ),
        (Some(_), Protocol::Http) => decoder.problems.push(
            Diagnostic::error(Code::Conflict, "a tls block on a listener that speaks plain http")
                .at(reader.origin())
                .because("its certificates would never be served, and clients would speak in the clear")
                .fix("set `protocol = \"https\"`, or take the tls block away"),
        ),
        (Some(tls), Protocol::Https | Protocol::Tcp) if tls.certificates.is_empty() => decoder.problems.push(
            Diagnostic::error(Code::MissingKey, "tls needs at least one certificate")
                .at(reader.origin())
                .because("without a certificate no handshake can succeed")
                .fix("add `certificates = [\"<name>\"]`, and a `certificate` block of that name"),
        ),
        _ => {}
    }
    let scope = decoder.scope(reader);
    if protocol == Protocol::Tcp {
        for_http_only(decoder, block, reader, &scope);
    }
    let address = reader.string("address").and_then(|address| address.parse().ok());
    let port = reader
        .unsigned("port")
        .and_then(|port| u16::try_from(port).ok())
        .unwrap_or_default();
    let refusal = decoder
        .permissions
        .listener_refusal(&decoder.source.document, address, port);
    if let Some(refusal) = refusal {
        decoder.problems.push(
            Diagnostic::error(
                Code::NotAllowed,
                format!("a document from KV may not listen at port {port} here"),
            )
            .at(reader.origin_of("port"))
            .because(refusal.why)
            .fix(refusal.fix),
        );
    }
    Listener {
        name: block.label(0).into(),
        origin: reader.origin(),
        address,
        port,
        protocol,
        tls,
        trusted_proxies: reader.unsigned("trusted_proxies").unwrap_or(0),
        idle_timeout: reader
            .duration("idle_timeout")
            .unwrap_or(Duration::from_secs(3600)),
        stream_idle_timeout: reader
            .duration("stream_idle_timeout")
            .unwrap_or(Duration::from_secs(300)),
        request_headers_timeout: reader
            .duration("request_headers_timeout")
            .unwrap_or(Duration::from_secs(10)),
        max_request_headers_kb: reader.unsigned("max_request_headers_kb").unwrap_or(60),
        health_check_path: health_check_path(decoder, reader),
        max_connections: reader.unsigned("max_connections"),
        scope,
    }
}

/// Compared with a path that is in its normal form already: of another form none would ever be.
fn health_check_path(decoder: &mut Decoder<'_>, reader: &Reader<'_>) -> Option<Arc<str>> {
    let path = reader.string("health_check_path")?;
    let segments = path.strip_suffix('/').unwrap_or(&path).split('/').skip(1);
    let is_normal = |segment: &str| !matches!(segment, "" | "." | "..") && !segment.contains('%');
    let mut count = 0;
    if segments.inspect(|_| count += 1).all(is_normal) && count > 0 {
        return Some(path);
    }
    decoder.problems.push(
        Diagnostic::error(
            Code::InvalidValue,
            format!("health_check_path = {path:?} is no path for a health check"),
        )
        .at(reader.origin_of("health_check_path"))
        .because(
            "it is compared with the path of a request in its normal form, without \"//\", \".\", \"..\" and \"%\"; \"/\" \
             is the front page of every host",
        )
        .fix("write a path of its own, like \"/gateway/health\""),
    );
    None
}

/// What a listener that looks into no request cannot do: left in, somebody would rely on it.
fn for_http_only(decoder: &mut Decoder<'_>, block: &Block, reader: &Reader<'_>, scope: &Scope) {
    let attributes = [
        "trusted_proxies",
        "stream_idle_timeout",
        "request_headers_timeout",
        "max_request_headers_kb",
        "health_check_path",
        "policies",
    ];
    let mut written: Vec<(String, Origin)> = attributes
        .into_iter()
        .filter(|name| reader.has(name))
        .map(|name| (name.to_owned(), reader.origin_of(name)))
        .collect();
    written.extend(scope.policies.iter().map(|(name, _)| {
        let block = reader.child(name).map(|block| block.origin());
        (name.to_owned(), block.unwrap_or_else(|| reader.origin_of(name)))
    }));
    let client_ca = reader.child("tls").and_then(|tls| tls.child("client_ca"));
    written.extend(
        client_ca
            .filter(|client_ca| client_ca.boolean("forward_client_cert") == Some(true))
            .map(|client_ca| {
                let origin = client_ca.origin_of("forward_client_cert");
                ("forward_client_cert".to_owned(), origin)
            }),
    );
    for (name, origin) in written {
        decoder.problems.push(
            Diagnostic::error(
                Code::Conflict,
                format!("{name} on the tcp listener {:?}", block.label(0)),
            )
            .at(origin)
            .because("it is about HTTP requests, and of a tcp listener's connections only the bytes are seen")
            .fix("take it away, or set `protocol` to \"http\" or \"https\""),
        );
    }
}

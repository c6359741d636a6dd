//! Checks of single values by type.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use super::schema::Type;
use super::tree::{Value, ValueKind};
use crate::model::Span;
use crate::model::regex::check_regex;

/// Why a value does not fit, and where exactly.
pub(super) fn mismatch(ty: &Type, value: &Value) -> Option<(Span, String)> {
    let wrong = |why: &str| Some((value.span, why.to_owned()));
    let expected = || {
        Some((
            value.span,
            format!("expected {}, found {}", ty.describe(), value.kind.type_name()),
        ))
    };
    match (ty, &value.kind) {
        (Type::Bool, ValueKind::Bool(_)) => None,
        (Type::Integer(min, max), ValueKind::Integer(number)) => {
            if (min..=max).contains(&number) {
                None
            } else {
                wrong(&format!("{number} is out of range: expected {}", ty.describe()))
            }
        }
        (Type::Number(min, max), ValueKind::Integer(number)) => {
            if (*min..=*max).contains(&(*number as f64)) {
                None
            } else {
                wrong(&format!("{number} is out of range: expected {}", ty.describe()))
            }
        }
        (Type::Number(min, max), ValueKind::Float(number)) => {
            if (min..=max).contains(&number) {
                None
            } else {
                wrong(&format!("{number} is out of range: expected {}", ty.describe()))
            }
        }
        (Type::List(item), ValueKind::List(items)) => items.iter().find_map(|value| mismatch(item, value)),
        (Type::Map(key, item), ValueKind::Object(entries)) => {
            let mut seen = HashSet::new();
            entries.iter().find_map(|(name, span, value)| {
                if !seen.insert(name.to_ascii_lowercase()) {
                    return Some((*span, format!("{name:?} is set twice")));
                }
                let as_value = Value {
                    kind: ValueKind::String(name.clone()),
                    span: *span,
                };
                mismatch(key, &as_value).or_else(|| mismatch(item, value))
            })
        }
        (_, ValueKind::String(text)) => match check_text(ty, text) {
            Ok(()) => None,
            Err(why) => wrong(&why),
        },
        _ => expected(),
    }
}

/// Says why a text is not of this type.
pub fn check_text(ty: &Type, text: &str) -> Result<(), String> {
    let allowed = |c: char| *ty == Type::Text && matches!(c, '\n' | '\r' | '\t');
    if let Some(bad) = text.chars().find(|c| c.is_control() && !allowed(*c)) {
        return Err(format!("control characters such as {bad:?} are not allowed"));
    }
    match ty {
        Type::String | Type::Text => Ok(()),
        Type::Name => check_name(text),
        Type::Duration(min, max) => {
            let millis = u64::try_from(parse_duration(text)?.as_millis()).unwrap_or(u64::MAX);
            if (min..=max).contains(&&millis) {
                Ok(())
            } else {
                Err(format!("{text:?} is out of range: expected {}", ty.describe()))
            }
        }
        Type::Word(words) => {
            if words.contains(&text) {
                return Ok(());
            }
            let hint = crate::diagnostics::suggestion(text, words.iter().copied());
            let hint = hint
                .map(|word| format!("; did you mean {word:?}?"))
                .unwrap_or_default();
            Err(format!(
                "{text:?} is not known here: expected {}{hint}",
                ty.describe()
            ))
        }
        Type::Hostname => parse_hostname(text).map(|_| ()),
        Type::Host => check_host(text),
        Type::Path => check_path(text),
        Type::NewPath => check_new_path(text),
        Type::Regex => check_regex(text),
        Type::HeaderName => check_header_name(text),
        Type::HeaderValue => http::HeaderValue::from_str(text)
            .map(|_| ())
            .map_err(|_| format!("{text:?} cannot be a header value")),
        Type::PartOfValue if text.is_empty() => {
            Err("an empty text is in every value: use present = true".to_owned())
        }
        Type::PartOfValue => check_text(&Type::HeaderValue, text),
        Type::Method => {
            if !text.is_empty()
                && text.len() <= 32
                && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-')
            {
                Ok(())
            } else {
                Err(format!(
                    "{text:?} is not an HTTP method: methods are written in capitals"
                ))
            }
        }
        Type::IpAddress => text
            .parse::<IpAddr>()
            .map(|_| ())
            .map_err(|_| format!("{text:?} is not an IP address")),
        Type::Cidr => check_cidr(text),
        Type::HostPort => check_host_port(text),
        Type::SocketAddress => check_socket_address(text),
        Type::AddressPattern => check_cidr(text).or_else(|why| match text.contains('/') {
            true => Err(why),
            false => parse_hostname(text).map(|_| ()),
        }),
        _ => Err(format!("expected {}, found a string", ty.describe())),
    }
}

fn check_name(text: &str) -> Result<(), String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if text.is_empty() || text.len() > 128 || !text.bytes().all(fits) {
        return Err(format!(
            "{text:?} is not a name: 1 to 128 letters, digits, '.', '_' or '-'"
        ));
    }
    Ok(())
}

/// A path to match: as requests look after the gateway has normalised them.
fn check_path(text: &str) -> Result<(), String> {
    check_new_path(text)?;
    if text.split('/').any(|segment| segment == "." || segment == "..") || text.contains("//") {
        return Err(format!(
            "{text:?} would never match: paths are normalised before they are matched (\"//\", \"/./\", \"/../\")"
        ));
    }
    for (index, _) in text.match_indices('%') {
        let escape = &text[index..index + 3];
        match u8::from_str_radix(&escape[1..], 16) {
            Ok(b'/' | b'\\') => {
                return Err(format!(
                    "{text:?} would never match: a request with {escape} is redirected to the path without the escape"
                ));
            }
            Ok(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                return Err(format!(
                    "{text:?} would never match: write {:?} for {escape}",
                    char::from(byte)
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A path to send: what may stand in a URL, and no query.
fn check_new_path(text: &str) -> Result<(), String> {
    if !text.starts_with('/') {
        return Err(format!("{text:?} must begin with \"/\""));
    }
    if let Some(bad) = text.chars().find(|c| matches!(c, '?' | '#')) {
        return Err(format!(
            "{text:?} holds {bad:?}: a path has no query and no fragment"
        ));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/[]%".contains(c);
    if let Some(bad) = text.chars().find(|c| !allowed(*c)) {
        let mut utf8 = [0; 4];
        let escaped: String = bad
            .encode_utf8(&mut utf8)
            .bytes()
            .map(|byte| format!("%{byte:02X}"))
            .collect();
        return Err(format!(
            "{text:?}: {bad:?} cannot stand in a URL's path: write {escaped:?}"
        ));
    }
    for (index, _) in text.match_indices('%') {
        let digits = text.as_bytes().get(index + 1..index + 3);
        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return Err(format!(
                "{text:?}: \"%\" begins an escape of two hexadecimal digits; a literal one is \"%25\""
            ));
        }
    }
    if text.len() > 1024 {
        return Err("a path is at most 1024 bytes long".into());
    }
    Ok(())
}

fn check_header_name(text: &str) -> Result<(), String> {
    if text.starts_with(':') || text.eq_ignore_ascii_case("host") {
        return Err(format!(
            "{text:?} cannot be used here: the host and pseudo headers have their own attributes"
        ));
    }
    http::HeaderName::try_from(text)
        .map(|_| ())
        .map_err(|_| format!("{text:?} is not a header name"))
}

fn check_cidr(text: &str) -> Result<(), String> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address
        .parse()
        .map_err(|_| format!("{text:?} is not an IP address or range"))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    match length.map(str::parse::<u8>) {
        None => Ok(()),
        Some(Ok(length)) if length <= most => Ok(()),
        _ => Err(format!("{text:?}: the length after \"/\" is 0 to {most}")),
    }
}

fn check_host_port(text: &str) -> Result<(), String> {
    let (host, port) = text
        .rsplit_once(':')
        .ok_or_else(|| format!("{text:?} has no port: write \"host:port\""))?;
    if !port.bytes().all(|byte| byte.is_ascii_digit()) || !matches!(port.parse::<u16>(), Ok(1..)) {
        return Err(format!("{text:?}: the port is 1 to 65535"));
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match bare {
        Some(inner) => inner
            .parse::<std::net::Ipv6Addr>()
            .map(|_| ())
            .map_err(|_| format!("{text:?}: not an IPv6 address in the brackets")),
        None if host.parse::<std::net::Ipv4Addr>().is_ok() => Ok(()),
        None if host.contains(':') => Err(format!("{text:?}: an IPv6 address is written in brackets")),
        None => check_dns_name(host).map_err(|why| format!("{text:?}: {why}")),
    }
}

fn check_socket_address(text: &str) -> Result<(), String> {
    check_host_port(text)?;
    text.parse::<std::net::SocketAddr>().map(|_| ()).map_err(|_| {
        format!(
            "{text:?} is a host name: where to listen is said by IP address, which no resolver can change"
        )
    })
}

/// Whole milliseconds; `"0s"` is allowed where the schema's bounds allow it.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|_| {
        format!("{text:?} is not a duration: write a number and a unit, such as \"250ms\", \"10s\" or \"5m\"")
    })?;
    if duration.subsec_nanos() % 1_000_000 != 0 {
        return Err(format!("{text:?} is finer than a millisecond"));
    }
    Ok(duration)
}

/// A host name in lower case without a trailing dot; `*` or `*.suffix` for wildcards.
pub fn parse_hostname(text: &str) -> Result<String, String> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    let lower = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let bare = lower
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(&lower);
    match bare.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) if bare == lower => return Ok(lower),
        // As clients write it in the Host header.
        Ok(IpAddr::V6(address)) => return Ok(format!("[{address}]")),
        _ => {}
    }
    let name = lower.strip_prefix("*.").unwrap_or(&lower);
    if name.contains('/') {
        return Err(format!(
            "{text:?} is more than a host: write the host alone, as in \"shop.example.com\""
        ));
    }
    if name.contains(':') {
        return Err(format!(
            "{text:?}: hosts are matched without their port: leave the port out"
        ));
    }
    if name.contains('*') {
        return Err(format!(
            "{text:?}: a wildcard is \"*\" alone or the whole first label, as in \"*.example.com\""
        ));
    }
    check_dns_name(name).map_err(|why| format!("{text:?}: {why}"))?;
    Ok(lower)
}

/// One host: no wildcard.
fn check_host(text: &str) -> Result<(), String> {
    if text.starts_with('*') {
        return Err(format!("{text:?}: one host is needed here, not a wildcard"));
    }
    parse_hostname(text).map(|_| ())
}

fn check_dns_name(name: &str) -> Result<(), String> {
    let label_fits = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    // `127.1` and `0x7f000001` are addresses to some resolvers: what is meant must be written as one.
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_number = |label: &str| {
        label.bytes().all(|byte| byte.is_ascii_digit())
            || label
                .strip_prefix("0x")
                .is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    if !last.is_empty() && is_number(last) {
        return Err("neither a host name nor an IP address: a host name's last label is not a number".into());
    }
    if name.len() > 253 || !name.split('.').all(label_fits) {
        return Err("not a host name (labels of letters, digits and '-', 63 at most; international names in their xn-- form)".into());
    }
    Ok(())
}

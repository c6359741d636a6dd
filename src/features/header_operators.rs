//! Envoy's command operators in the values of headers: what it would refuse is told before it is asked.

use crate::diagnostics::suggestion;

/// What is wrong with a value, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Slip {
    pub what: String,
    pub fix: String,
    /// No Envoy takes it. One that is newer than we are may know more names.
    pub is_certain: bool,
}

/// Those that Envoy 1.36 to 1.40 take without an argument; some of them take one, too.
const PLAIN: &str = "\
    ACCESS_LOG_TYPE BYTES_RECEIVED BYTES_RETRANSMITTED BYTES_SENT CONNECTION_ID \
    CONNECTION_TERMINATION_DETAILS CUSTOM_FLAGS DOWNSTREAM_CX_RTT \
    DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT \
    DOWNSTREAM_DETECTED_CLOSE_TYPE DOWNSTREAM_DIRECT_LOCAL_ADDRESS \
    DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT \
    DOWNSTREAM_DIRECT_LOCAL_PORT DOWNSTREAM_DIRECT_REMOTE_ADDRESS \
    DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT DOWNSTREAM_DIRECT_REMOTE_PORT \
    DOWNSTREAM_HANDSHAKE_DURATION DOWNSTREAM_HEADER_BYTES_RECEIVED DOWNSTREAM_HEADER_BYTES_SENT \
    DOWNSTREAM_LOCAL_ADDRESS DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT \
    DOWNSTREAM_LOCAL_CLOSE_REASON DOWNSTREAM_LOCAL_DNS_SAN DOWNSTREAM_LOCAL_EMAIL_SAN \
    DOWNSTREAM_LOCAL_IP_SAN DOWNSTREAM_LOCAL_OTHERNAME_SAN DOWNSTREAM_LOCAL_PORT DOWNSTREAM_LOCAL_SUBJECT \
    DOWNSTREAM_LOCAL_URI_SAN DOWNSTREAM_PEER_CERT DOWNSTREAM_PEER_CERT_V_END DOWNSTREAM_PEER_CERT_V_START \
    DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1 DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256 \
    DOWNSTREAM_PEER_CHAIN_SERIALS DOWNSTREAM_PEER_DNS_SAN DOWNSTREAM_PEER_EMAIL_SAN \
    DOWNSTREAM_PEER_FINGERPRINT_1 DOWNSTREAM_PEER_FINGERPRINT_256 DOWNSTREAM_PEER_IP_SAN \
    DOWNSTREAM_PEER_ISSUER DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256 DOWNSTREAM_PEER_ISSUER_SERIAL \
    DOWNSTREAM_PEER_OTHERNAME_SAN DOWNSTREAM_PEER_SERIAL DOWNSTREAM_PEER_SUBJECT DOWNSTREAM_PEER_URI_SAN \
    DOWNSTREAM_REMOTE_ADDRESS DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT DOWNSTREAM_REMOTE_PORT \
    DOWNSTREAM_TLS_CIPHER DOWNSTREAM_TLS_GROUP DOWNSTREAM_TLS_SESSION_ID DOWNSTREAM_TLS_VERSION \
    DOWNSTREAM_TRANSPORT_FAILURE_REASON DOWNSTREAM_WIRE_BYTES_RECEIVED DOWNSTREAM_WIRE_BYTES_SENT DURATION \
    EMIT_TIME EMIT_TIME_LOCAL FILTER_CHAIN_NAME GRPC_STATUS GRPC_STATUS_NUMBER HOSTNAME LISTENER_NAME \
    LOCAL_REPLY_BODY PACKETS_RETRANSMITTED PATH PROTOCOL QUERY_PARAMS REQUESTED_SERVER_NAME REQUEST_DURATION \
    REQUEST_HEADERS_BYTES REQUEST_TX_DURATION RESPONSE_CODE RESPONSE_CODE_DETAILS RESPONSE_DURATION \
    RESPONSE_FLAGS RESPONSE_FLAGS_LONG RESPONSE_HEADERS_BYTES RESPONSE_TRAILERS_BYTES RESPONSE_TX_DURATION \
    ROUNDTRIP_DURATION ROUTE_NAME ROUTE_RESOLUTION_COUNT ROUTE_RESOLUTION_TIME_US SPAN_ID START_TIME \
    START_TIME_LOCAL STREAM_ID TLS_JA3_FINGERPRINT TLS_JA4_FINGERPRINT TRACE_ID UNIQUE_ID UPSTREAM_CLUSTER \
    UPSTREAM_CLUSTER_RAW UPSTREAM_CONNECTION_ID UPSTREAM_CONNECTION_IDS_ATTEMPTED \
    UPSTREAM_CONNECTION_POOL_READY_DURATION UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED \
    UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT UPSTREAM_DETECTED_CLOSE_TYPE UPSTREAM_HEADER_BYTES_RECEIVED \
    UPSTREAM_HEADER_BYTES_SENT UPSTREAM_HOST UPSTREAM_HOSTS_ATTEMPTED UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT \
    UPSTREAM_HOST_NAME UPSTREAM_HOST_NAMES_ATTEMPTED UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT \
    UPSTREAM_HOST_NAME_WITHOUT_PORT UPSTREAM_LOCAL_ADDRESS UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT \
    UPSTREAM_LOCAL_CLOSE_REASON UPSTREAM_LOCAL_DNS_SAN UPSTREAM_LOCAL_IP_SAN UPSTREAM_LOCAL_PORT \
    UPSTREAM_LOCAL_URI_SAN UPSTREAM_PEER_CERT UPSTREAM_PEER_CERT_V_END UPSTREAM_PEER_CERT_V_START \
    UPSTREAM_PEER_DNS_SAN UPSTREAM_PEER_IP_SAN UPSTREAM_PEER_ISSUER UPSTREAM_PEER_SUBJECT \
    UPSTREAM_PEER_URI_SAN UPSTREAM_PROTOCOL UPSTREAM_REMOTE_ADDRESS UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID \
    UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT UPSTREAM_REMOTE_PORT UPSTREAM_REQUEST_ATTEMPT_COUNT \
    UPSTREAM_SERVER_NAME UPSTREAM_TLS_CIPHER UPSTREAM_TLS_GROUP UPSTREAM_TLS_SESSION_ID UPSTREAM_TLS_VERSION \
    UPSTREAM_TRANSPORT_FAILURE_REASON UPSTREAM_WIRE_BYTES_RECEIVED UPSTREAM_WIRE_BYTES_SENT \
    VIRTUAL_CLUSTER_NAME";

/// Those that need one.
const WITH_ARGUMENT: &str = "\
    CEL CLUSTER_METADATA COALESCE COMMON_DURATION DYNAMIC_METADATA ENVIRONMENT FILTER_STATE METADATA \
    QUERY_PARAM REQ REQUEST_HEADER RESP RESPONSE_HEADER RESPONSE_TRAILER STREAM_INFO_REQ TRAILER \
    UPSTREAM_FILTER_STATE UPSTREAM_METADATA";

/// As Envoy reads it: `%%`, `%NAME%`, `%NAME(argument)%` and `%NAME(argument):length%`, and no other `%`.
pub(super) fn check(value: &str) -> Result<(), Slip> {
    let mut rest = value;
    while let Some((_, behind)) = rest.split_once('%') {
        if let Some(next) = behind.strip_prefix('%') {
            rest = next;
            continue;
        }
        let operator = Operator::read(behind).ok_or_else(|| Slip {
            what: format!(
                "the \"%\" before {:?} begins none of Envoy's command operators",
                behind.chars().take(16).collect::<String>()
            ),
            fix: match behind.starts_with('{') {
                true => "write \"%%%{\": the document makes \"%%{\" of it, and Envoy \"%{\"",
                false => {
                    "write \"%%\" for a percent sign; an operator is %NAME% or %NAME(argument)%, in capitals"
                }
            }
            .to_owned(),
            is_certain: true,
        })?;
        operator.check()?;
        rest = operator.rest;
    }
    Ok(())
}

struct Operator<'a> {
    name: &'a str,
    has_argument: bool,
    /// Behind its closing `%`.
    rest: &'a str,
}

impl<'a> Operator<'a> {
    /// What stands behind an opening `%`.
    fn read(text: &'a str) -> Option<Self> {
        let is_of_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        let (name, behind) = text.split_at(text.find(|c| !is_of_name(c)).unwrap_or(text.len()));
        if name.is_empty() {
            return None;
        }
        let Some(inside) = behind.strip_prefix('(') else {
            let rest = end(behind)?;
            return Some(Self {
                name,
                has_argument: false,
                rest,
            });
        };
        // The argument ends at the first `)` that an end follows: `START_TIME(%Y-%m)` holds what it likes.
        let rest = inside
            .match_indices(')')
            .find_map(|(at, _)| end(&inside[at + 1..]))?;
        Some(Self {
            name,
            has_argument: true,
            rest,
        })
    }

    fn check(&self) -> Result<(), Slip> {
        let name = self.name;
        let needs_argument = WITH_ARGUMENT.split_ascii_whitespace().any(|known| known == name);
        if needs_argument && !self.has_argument {
            return Err(Slip {
                what: format!("%{name}% needs an argument"),
                fix: format!(
                    "write it as in %{name}(x-name)%; Envoy's documentation of access logs says what it takes"
                ),
                is_certain: true,
            });
        }
        let mut plain = PLAIN.split_ascii_whitespace();
        if needs_argument || plain.any(|known| known == name) {
            return Ok(());
        }
        let known = PLAIN
            .split_ascii_whitespace()
            .chain(WITH_ARGUMENT.split_ascii_whitespace());
        Err(Slip {
            what: format!("%{name}% is none of the command operators of Envoy 1.36 to 1.40"),
            fix: match suggestion(name, known) {
                Some(near) => format!("did you mean %{near}%? A percent sign is written \"%%\""),
                None => format!("write \"%%{name}%%\" if it is meant as it stands"),
            },
            is_certain: false,
        })
    }
}

/// What follows the end of an operator.
fn end(text: &str) -> Option<&str> {
    let text = match text.strip_prefix(':') {
        None => text,
        Some(length) => {
            let behind = length.trim_start_matches(|c: char| c.is_ascii_digit());
            (behind.len() < length.len()).then_some(behind)?
        }
    };
    text.strip_prefix('%')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each was held against Envoy 1.36 and 1.40 (`--mode validate`).
    #[test]
    fn what_envoy_takes_is_taken_and_what_it_refuses_is_refused() {
        for good in [
            "",
            "plain",
            "%%",
            "100%% x",
            "%START_TIME%",
            "%START_TIME(%Y-%m)%",
            "%START_TIME(%)%",
            "%REQ(x):5%",
            "%REQ(x)%%REQ(y)%",
            "%%START_TIME%%",
            "a %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% b",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "%",
            "100%",
            "50% of",
            "%%%",
            "%START_TIME%%",
            "%start_time%",
            "%REQ(x",
            "%REQ(x)",
            "%REQ(x):z%",
            "%REQ%",
            "%NOPE%",
            "a%2Fb",
            "%\u{fc}%",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        let near = check("%DOWNSTREAM_REMOTE_ADRESS%").unwrap_err();
        assert!(
            near.fix.contains("did you mean %DOWNSTREAM_REMOTE_ADDRESS%?"),
            "{near:?}"
        );
    }
}

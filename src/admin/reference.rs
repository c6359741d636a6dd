//! The reference pages, from the same tables as what they describe.

use std::fmt::Write as _;

use super::metrics::{FAMILIES, Kind};
use super::routes::ROUTES;

const MADE: &str = "<!-- Made from the source: UPDATE_REFERENCE=1 cargo test --test cli reference -->";

/// `docs/reference/api.md`.
pub fn api_reference() -> String {
    let mut page = format!(
        "# HTTP API\n\n{MADE}\n\n\
         The agent answers HTTP on a unix socket, mode 0600 (`api {{ socket }}`; `api.sock` in the data directory by\n\
         default). Only the agent's own user and root may connect. `api {{ address }}` opens a loopback port besides, for\n\
         checks and scrapers that cannot use a socket: it serves `/ready` and `/metrics`, and nothing else.\n\n\
         ```sh\ncurl --unix-socket /opt/portreeve/data/api.sock http://agent/v1/status\n```\n\n\
         An error is `{{\"error\": {{\"message\": \"...\", \"fix\": \"...\"}}}}`. Unknown paths and parameters are errors with a\n\
         suggestion. A body may have 64 KiB. Secrets are never shown. `/v1/openapi.json` describes all of this to programs.\n"
    );
    for route in ROUTES {
        let method = route.method.to_ascii_uppercase();
        let _ = write!(page, "\n## {method} {}\n\n{}\n", route.path, route.summary);
        if let (true, Some(short)) = (route.public, route.path.strip_prefix("/v1")) {
            let _ = writeln!(page, "Also as `{short}`, and on the loopback port.");
        }
        if !route.parameters.is_empty() {
            page.push_str("\n| Parameter | | |\n|---|---|---|\n");
            for parameter in route.parameters {
                let required = if parameter.required {
                    "required"
                } else {
                    "optional"
                };
                let _ = writeln!(page, "| `{}` | {required} | {} |", parameter.name, parameter.doc);
            }
        }
        page.push_str("\n| Status | |\n|---|---|\n");
        for (status, meaning) in route.answers {
            let _ = writeln!(page, "| {status} | {meaning} |");
        }
    }
    page
}

/// `docs/reference/metrics.md`.
pub fn metrics_reference() -> String {
    let mut page = format!(
        "# Metrics\n\n{MADE}\n\n\
         `/metrics` and `/v1/metrics` answer in the OpenMetrics text format. Label values are names of gateways,\n\
         certificates and sources, and words of the agent's own, such as codes: there are as many series as documents declare, whatever clients send. Services are\n\
         counted together. Gauges are made from the present state: what is gone leaves no series behind.\n\n\
         | Metric | Type | Labels | Meaning |\n|---|---|---|---|\n"
    );
    for family in FAMILIES {
        let (suffix, kind) = match family.kind {
            Kind::Gauge => ("", "gauge"),
            Kind::Counter => ("_total", "counter"),
            Kind::Histogram => ("", "histogram"),
        };
        let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let _ = writeln!(
            page,
            "| `{}{suffix}` | {kind} | {} | {} |",
            family.name,
            labels.join(", "),
            family.help
        );
    }
    page.push_str(
        "\n## Worth an alert\n\n\
         | When | Because |\n|---|---|\n\
         | `portreeve_ready == 0` for a minute | the agent has nothing to serve, its Envoy does not run, or none of its listeners is open |\n\
         | `portreeve_stale == 1` | the document source has not answered since the agent started |\n\
         | `portreeve_source_up == 0` for five minutes | changes do not arrive; what was known stays in service |\n\
         | `portreeve_documents{phase!=\"in_service\"} > 0` | somebody's change is not in effect |\n\
         | `portreeve_diagnostics{code=\"token-not-accepted\"} > 0`, or `missing-permission`, `no-token`, `request-blocked` | Consul, Vault or Nomad refuse the agent; what was known stays in service |\n\
         | `portreeve_diagnostics{severity=\"error\"} > 0` for five minutes | something waits for somebody to mend it, such as a port that is closed for want of a certificate or an address: `portreeve status` says what |\n\
         | `portreeve_xds_streams == 0` for a minute | no Envoy of that gateway is connected |\n\
         | `portreeve_xds_refused > 0` | an Envoy refuses a configuration |\n\
         | `portreeve_listeners{state!=\"open\",state!=\"waiting\"} > 0` for a minute | a port is closed that a document wants open: `portreeve status` says which and why |\n\
         | `increase(portreeve_xds_refused_clients_total[10m]) > 0` | somebody who wants configuration gets none: an Envoy with a wrong certificate, uid or gateway name, or a stranger; `portreeve status` names the last one |\n\
         | `portreeve_certificate_expiry_timestamp_seconds - time()` below a quarter of the life (72 h: `< 64800`) | a certificate was not renewed in time: those of Vault's PKI are renewed at 63 to 70 % of their life |\n\
         | `portreeve_credential_expiry_timestamp_seconds - time() < 300` | the agent's token, client certificate or login identity is not renewed; give identities that live for minutes a bound of their own |\n\
         | `portreeve_credential_expiry_timestamp_seconds{credential=\"mesh certificate\"} - time() < 10800` | Consul's agent does not renew the gateway's certificate in the mesh: of 72 h it leaves seven at the least |\n\
         | `increase(portreeve_envoy_starts_total[10m]) > 2` | Envoy does not stay up |\n",
    );
    page
}

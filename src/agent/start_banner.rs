//! What the agent prints before its log begins, in the manner of HashiCorp's agents.

use std::io::{self, Write};

/// `==> Starting Portreeve agent...`
pub fn write_starting(out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "==> Starting Portreeve agent...")
}

/// The facts that an operator compares first, with their keys aligned to the right, and the line before the log.
pub fn write_started(out: &mut dyn Write, facts: &[(&str, String)]) -> io::Result<()> {
    writeln!(out, "==> Portreeve agent configuration:\n")?;
    // As wide as in Nomad's banner, or as the longest key.
    let width = facts
        .iter()
        .map(|(key, _)| key.chars().count())
        .max()
        .unwrap_or(0)
        .max(20);
    for (key, value) in facts {
        writeln!(out, "{key:>width$}: {}", super::log_format::escaped(value))?;
    }
    writeln!(
        out,
        "\n==> Portreeve agent started! Log data will stream in below:\n"
    )
}

/// The same facts as one line of the log.
pub fn log_started(facts: &[(&str, String)]) {
    let facts: Vec<String> = facts
        .iter()
        .map(|(key, value)| format!("{key}: {value}"))
        .collect();
    tracing::info!(configuration = facts.join("; "), "Portreeve agent started");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_keys() {
        let mut out = Vec::new();
        write_starting(&mut out).unwrap();
        write_started(
            &mut out,
            &[("Gateways", "edge".to_owned()), ("Log Level", "INFO".to_owned())],
        )
        .unwrap();
        let expected = "\
==> Starting Portreeve agent...
==> Portreeve agent configuration:

            Gateways: edge
           Log Level: INFO

==> Portreeve agent started! Log data will stream in below:

";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}

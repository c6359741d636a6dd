//! Settings may hold tokens, and what is shown of a mistake in them is not to.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

/// In HCL or JSON, whatever else is on the line; also where a sign or a quote was forgotten, which is a mistake that shows
/// the line.
static NAME: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r#"(?i)(?:token|secret_id|password)(?:"?\s*[=:]\s*|[ \t]+)"#).ok());

/// The text with each token's characters blanked. Places in it stay what they were.
pub fn without_tokens(text: &str) -> Cow<'_, str> {
    let Some(name) = NAME.as_ref() else {
        return Cow::Borrowed("");
    };
    let mut shown = String::new();
    let mut done = 0;
    while let Some(found) = name.find_at(text, done) {
        let value = &text[found.end()..];
        let (quote, secret) = secret_of(value);
        shown.push_str(&text[done..found.end() + quote]);
        let blanked = value[quote..quote + secret].bytes();
        shown.extend(blanked.map(|byte| if byte == b'\n' { '\n' } else { '*' }));
        done = found.end() + quote + secret;
    }
    match done {
        0 => Cow::Borrowed(text),
        _ => Cow::Owned(shown + &text[done..]),
    }
}

/// How many bytes stand before what is secret of a value, and how many are. What is not a string as it should be is secret
/// to the end of its line; of a heredoc or a list all that follows.
fn secret_of(value: &str) -> (usize, usize) {
    if value.starts_with("<<") || value.starts_with('[') {
        return (0, value.len());
    }
    let line = value.find('\n').unwrap_or(value.len());
    let Some(inside) = value[..line].strip_prefix('"') else {
        return (0, line);
    };
    let mut escaped = false;
    let end = inside.bytes().position(|byte| {
        let is_end = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        is_end
    });
    let is_over = |after: &str| {
        let after = after.trim_start();
        after.is_empty() || after.starts_with([',', '}', '#', '/'])
    };
    match end {
        Some(end) if is_over(&inside[end + 1..]) => (1, end),
        _ => (1, inside.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_blanked_and_nothing_moves() {
        for (text, shown) in [
            (
                "consul {\n  token = \"s3cr\\\"et\" # é\n  adress = \"x\"\n}\n",
                "consul {\n  token = \"********\" # é\n  adress = \"x\"\n}\n",
            ),
            (
                r#"{"mesh": {"token":"abc", "sidecar": 5}}"#,
                r#"{"mesh": {"token":"***", "sidecar": 5}}"#,
            ),
            ("token = \"never closed", "token = \"************"),
            (
                "consul { token = 8f24-é\n  adress = \"x\"\n}\n",
                "consul { token = *******\n  adress = \"x\"\n}\n",
            ),
            ("password: s3cret }", "password: ********"),
            ("token = <<EOT\nab\nEOT\n", "token = *****\n**\n***\n"),
            (r#"{"token": 12, "x": 1}"#, r#"{"token": ***********"#),
            ("\"token\":\n \"ab\"\n", "\"token\":\n \"**\"\n"),
            ("token \"ab\"\nx", "token \"**\"\nx"),
            ("token ab\nx", "token **\nx"),
            ("acl_token = \"ab\"", "acl_token = \"**\""),
            ("Token = \"ab\"", "Token = \"**\""),
            ("token = \"a\"b\" # c\nx", "token = \"********\nx"),
            ("token = { v = \"ab\" }\nx", "token = ************\nx"),
            ("token = [\n\"ab\"]", "token = *\n*****"),
        ] {
            let blanked = without_tokens(text);
            assert_eq!(blanked, shown);
            assert_eq!(blanked.len(), text.len());
        }
        for text in [
            "token_file = \"/etc/token\"",
            "gateways = [\"token\"]",
            "# a token",
            "token_file = \"/etc/token\"\nnext = 1",
        ] {
            assert_eq!(without_tokens(text), text);
        }
    }
}

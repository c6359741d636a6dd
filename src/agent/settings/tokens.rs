//! Settings may hold tokens, and what is shown of a mistake in them is not to.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// In HCL or JSON, whatever else is on the line.
static TOKEN: LazyLock<Option<Regex>> = LazyLock::new(|| {
    // Also where the quotes were forgotten, which is a mistake that shows the line; of a heredoc all that follows.
    let text = r#"("?\b(?:token|secret_id|password)"?[ \t]*[=:][ \t]*)("(?:[^"\\\n]|\\.)*|<<(?s:.*)|[^\s"{<][^\n]*)"#;
    Regex::new(text).ok()
});

/// The text with each token's characters blanked. Places in it stay what they were.
pub fn without_tokens(text: &str) -> Cow<'_, str> {
    let Some(token) = TOKEN.as_ref() else {
        return Cow::Borrowed("");
    };
    token.replace_all(text, |found: &Captures<'_>| {
        let (quote, secret) = match found[2].strip_prefix('"') {
            Some(secret) => ("\"", secret),
            None => ("", &found[2]),
        };
        let blank = |byte: u8| if byte == b'\n' { '\n' } else { '*' };
        let blanked: String = secret.bytes().map(blank).collect();
        format!("{}{quote}{blanked}", &found[1])
    })
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
        ] {
            let blanked = without_tokens(text);
            assert_eq!(blanked, shown);
            assert_eq!(blanked.len(), text.len());
        }
        for text in [
            "token_file = \"/etc/token\"",
            "gateways = [\"token\"]",
            "# a token",
        ] {
            assert_eq!(without_tokens(text), text);
        }
    }
}

//! Settings may hold tokens, and what is shown of a mistake in them is not to.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// In HCL or JSON, whatever else is on the line.
static TOKEN: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let text = r#"("?\b(?:token|secret_id|password)"?\s*[=:]\s*")((?:[^"\\\n]|\\.)*)"#;
    Regex::new(text).ok()
});

/// The text with each token's characters blanked. Places in it stay what they were.
pub fn without_tokens(text: &str) -> Cow<'_, str> {
    let Some(token) = TOKEN.as_ref() else {
        return Cow::Borrowed("");
    };
    token.replace_all(text, |found: &Captures<'_>| {
        format!("{}{}", &found[1], "*".repeat(found[2].len()))
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

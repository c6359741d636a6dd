//! How many operators a text has: the parser looks at what follows two of them in a row again for each, so a few hundred bytes of
//! operators and brackets in one another would take it for ever.

use super::syntax_hint::{heredoc_length, length_until, string_length};

/// More are refused unread. No document needs one: expressions are not evaluated.
pub(super) const MOST: usize = 8;

/// Those outside of strings, comments and heredocs. What is in doubt counts.
pub(super) fn count(text: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut found, mut at) = (0, 0);
    // The last byte that is no space.
    let mut before = b'=';
    while at < bytes.len() {
        let rest = &bytes[at..];
        let length = match rest {
            [b'#', ..] | [b'/', b'/', ..] => {
                at += length_until(rest, b"\n");
                continue;
            }
            [b'/', b'*', ..] => {
                at += length_until(rest, b"*/");
                continue;
            }
            [b'"', ..] => string_length(rest),
            [b'<', b'<', ..] => heredoc_length(rest),
            [byte, ..] if byte.is_ascii_alphanumeric() || *byte == b'_' => rest
                .iter()
                .position(|byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')))
                .map_or(rest.len(), |end| match byte.is_ascii_digit() {
                    true => 1,
                    false => end,
                }),
            [b'=', b'=', ..] => {
                found += 1;
                2
            }
            [b'-', ..] => {
                // Else it is a sign.
                found += usize::from(!matches!(before, b'=' | b':' | b',' | b'[' | b'('));
                1
            }
            [
                b'%' | b'/' | b'*' | b'+' | b'<' | b'>' | b'&' | b'|' | b'!' | b'?',
                ..,
            ] => {
                found += 1;
                1
            }
            _ => 1,
        };
        let last = bytes[(at + length).min(bytes.len()) - 1];
        if !last.is_ascii_whitespace() {
            before = last;
        }
        at += length;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_operator_is_not_counted() {
        for text in [
            "a-b = -1 # 1 + 2\n",
            "a = [-1, -2] // % %\nb = \"1 + 2 %{ * }\" /* * / */\n",
            "text = <<-EOT\n  a % { b / c } - d\n  EOT\nx-1-y \"l\" {\n}\n",
        ] {
            assert_eq!(count(text), 0, "{text}");
        }
        for (text, operators) in [
            ("a = 1 + 2\n", 1),
            ("a = 0-0-f(1)\n", 2),
            ("a = b ? c : d == e\n", 2),
            ("a = !b && c\n", 3),
            ("a = 1 % /* */ {\n", 1),
        ] {
            assert_eq!(count(text), operators, "{text}");
        }
    }
}

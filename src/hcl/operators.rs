//! Keeps texts from the parser that it would read for ever.
//!
//! Where an operand cannot be read that follows two operators in a row, the parser reads it twice: once for each way to go on. With
//! brackets in one another that doubles on every level, and a few hundred bytes are enough. A document needs no operator, as
//! expressions are not evaluated; so those of a text are counted before it is parsed.
//!
//! What is code and what is text is told as the parser tells it: strings go on over line ends, and what is interpolated in
//! them, or in a heredoc, is code. So this is not what `syntax_hint` looks at, which guesses where a quote was forgotten.
//!
//! A heredoc whose first line is its end is not given to the parser at all: it looks for another end in all that follows, takes
//! that for the right one if it finds it, and else reads what follows once more.

use std::fmt;

/// More are refused unread.
const MOST: usize = 8;

/// A template in a template in a template: the parser's own bound, 64 brackets of any kind, lets these take a megabyte of stack.
const DEEPEST: usize = 8;

/// Why a text is not given to the parser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// The first one that is too many stands here.
    Operators(usize),
    Templates(usize),
    EmptyHeredoc(usize),
}

impl Unread {
    pub fn offset(self) -> usize {
        match self {
            Self::Operators(at) | Self::Templates(at) | Self::EmptyHeredoc(at) => at,
        }
    }
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operators(_) => write!(f, "more than {MOST} operators in a document"),
            Self::Templates(_) => write!(f, "more than {DEEPEST} templates in one another"),
            Self::EmptyHeredoc(_) => f.write_str("the first line of a heredoc is its end"),
        }
    }
}

/// What forbids to read a text.
pub(super) fn forbids(text: &str) -> Option<Unread> {
    let mut reader = Reader::of(text);
    let mut last = Token::Other(b'=');
    let mut found = 0;
    while let Some((at, token)) = reader.next() {
        let is_operator = match token {
            Token::Operator(b'-') => !matches!(last, Token::Other(b'=' | b':' | b',' | b'[' | b'(')),
            Token::Operator(_) => true,
            Token::Operand | Token::EmptyHeredoc | Token::Other(_) => false,
        };
        if token == Token::EmptyHeredoc {
            return Some(Unread::EmptyHeredoc(at));
        }
        found += usize::from(is_operator);
        if found > MOST {
            return Some(Unread::Operators(at));
        }
        // Each is in code, and in the quotes or the heredoc around it.
        if reader.within.len() > 1 + 2 * DEEPEST {
            return Some(Unread::Templates(at));
        }
        last = token;
    }
    None
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    /// An identifier or a number.
    Operand,
    /// A part of one at least; of a minus it is not known whether it is a sign.
    Operator(u8),
    EmptyHeredoc,
    Other(u8),
}

/// What the reader is in.
enum Within<'a> {
    /// With so many braces open. What is interpolated ends with one more that closes.
    Code {
        braces: usize,
    },
    Quotes,
    Heredoc {
        delimiter: &'a str,
    },
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    within: Vec<Within<'a>>,
}

impl<'a> Reader<'a> {
    fn of(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            within: vec![Within::Code { braces: 0 }],
        }
    }

    fn rest(&self) -> &'a [u8] {
        &self.text.as_bytes()[self.at..]
    }

    /// The next token of code, with its place.
    fn next(&mut self) -> Option<(usize, Token)> {
        while self.at < self.text.len() {
            match self.within.last() {
                Some(Within::Quotes) => self.quoted(),
                Some(Within::Heredoc { delimiter }) => self.heredoc(delimiter),
                Some(Within::Code { .. }) | None => {
                    let at = self.at;
                    if let Some(token) = self.code() {
                        return Some((at, token));
                    }
                }
            }
        }
        None
    }

    /// One step; None where it is none of a token.
    fn code(&mut self) -> Option<Token> {
        let rest = self.rest();
        if let Some((delimiter, body)) = self.heredoc_begun() {
            self.within.push(Within::Heredoc { delimiter });
            self.at = self.text.len() - body.len();
            return ends_heredoc(body.as_bytes(), delimiter).map(|_| Token::EmptyHeredoc);
        }
        let (length, token) = match rest {
            [b'#', ..] | [b'/', b'/', ..] => (until(rest, b"\n"), None),
            [b'/', b'*', ..] => (2 + until(&rest[2..], b"*/"), None),
            [b'"', ..] => {
                self.within.push(Within::Quotes);
                (1, Some(Token::Other(b'"')))
            }
            [b'{', ..] => (1, self.brace(true)),
            [b'}', ..] => (1, self.brace(false)),
            [b'=', b'=', ..] => (2, Some(Token::Operator(b'='))),
            [
                byte @ (b'%' | b'/' | b'*' | b'+' | b'-' | b'<' | b'>' | b'&' | b'|' | b'!' | b'?'),
                ..,
            ] => (1, Some(Token::Operator(*byte))),
            [b'0'..=b'9', ..] => (number(rest), Some(Token::Operand)),
            [byte, ..] if is_of_name(*byte) => (name(rest), Some(Token::Operand)),
            [byte, ..] => (1, (!byte.is_ascii_whitespace()).then_some(Token::Other(*byte))),
            [] => (0, None),
        };
        self.at += length;
        token
    }

    fn brace(&mut self, opens: bool) -> Option<Token> {
        let is_nested = self.within.len() > 1;
        if let Some(Within::Code { braces }) = self.within.last_mut() {
            match (opens, *braces) {
                (true, _) => *braces += 1,
                (false, 1..) => *braces -= 1,
                (false, 0) if is_nested => _ = self.within.pop(),
                (false, 0) => {}
            }
        }
        Some(Token::Other(if opens { b'{' } else { b'}' }))
    }

    fn quoted(&mut self) {
        match self.rest() {
            [b'"', ..] => {
                self.within.pop();
                self.at += 1;
            }
            // The character behind it may be longer than a byte, but no byte of it is one that means something here.
            [b'\\', ..] => self.at = (self.at + 2).min(self.text.len()),
            _ => self.literal(),
        }
    }

    fn heredoc(&mut self, delimiter: &str) {
        if self.rest().starts_with(b"\n")
            && let Some(length) = ends_heredoc(&self.rest()[1..], delimiter)
        {
            self.within.pop();
            self.at += 1 + length;
            return;
        }
        self.literal();
    }

    /// One character of text, or the beginning of what is interpolated.
    fn literal(&mut self) {
        self.at += match self.rest() {
            [b'$', b'$', b'{', ..] | [b'%', b'%', b'{', ..] => 3,
            [b'$' | b'%', b'{', ..] => {
                self.within.push(Within::Code { braces: 0 });
                2
            }
            _ => 1,
        };
    }

    /// The delimiter of a heredoc, and all that follows the line that begins it.
    fn heredoc_begun(&self) -> Option<(&'a str, &'a str)> {
        let rest = self.text.get(self.at..)?.strip_prefix("<<")?;
        let rest = rest.strip_prefix('-').unwrap_or(rest);
        let (delimiter, rest) = rest.split_at(name(rest.as_bytes()));
        let is_delimiter =
            matches!(delimiter.as_bytes(), [first, ..] if !matches!(first, b'0'..=b'9' | b'-'));
        let body = rest.strip_prefix('\n').or_else(|| rest.strip_prefix("\r\n"))?;
        is_delimiter.then_some((delimiter, body))
    }
}

/// Up to the end, or all that is left.
fn until(bytes: &[u8], end: &[u8]) -> usize {
    let found = bytes.windows(end.len()).position(|window| window == end);
    found.map_or(bytes.len(), |position| position + end.len())
}

/// How long the end of a heredoc is, where the line is one.
fn ends_heredoc(line: &[u8], delimiter: &str) -> Option<usize> {
    let indentation = line
        .iter()
        .take_while(|byte| matches!(byte, b' ' | b'\t'))
        .count();
    let rest = line[indentation..].strip_prefix(delimiter.as_bytes())?;
    let goes_on = rest.first().is_some_and(|byte| is_of_name(*byte));
    (!goes_on).then_some(indentation + delimiter.len())
}

/// Whatever is no ASCII counts: where it is no letter, the parser goes no further.
fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') || !byte.is_ascii()
}

fn name(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| is_of_name(**byte)).count()
}

fn number(bytes: &[u8]) -> usize {
    let digits = |from: usize| {
        bytes[from.min(bytes.len())..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count()
    };
    let mut length = digits(0);
    if bytes.get(length) == Some(&b'.') && digits(length + 1) > 0 {
        length += 1 + digits(length + 1);
    }
    if let Some(b'e' | b'E') = bytes.get(length) {
        let sign = usize::from(matches!(bytes.get(length + 1), Some(b'+' | b'-')));
        let exponent = digits(length + 1 + sign);
        if exponent > 0 {
            length += 1 + sign + exponent;
        }
    }
    length
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_document_may_hold_is_no_operator() {
        for text in [
            "a-b = -1 # 1 + 2\n",
            "a = [-1, -2] // % %\nb = \"1 + 2 * \\\" / \" /* * / */\n",
            "a = \"1 +\n2 %\n\" \n",
            "text = <<-EOT\n  a % {b / c} - d \"\n  EOT\n",
            "text = <<END-OF-IT\na / b\nEND-OF\n/\n  END-OF-IT\n",
            "list = [<<E\na / b\nE\n, \"/\"]\n",
            "text = \"$${a / b} %%{c / d}\"\n",
            "a = <<E\n$${a / b}\nE\n",
            "x-1-y \"l\" {\n}\nä-ö = 1e-5\n",
        ] {
            assert!(hcl_edit::parser::parse_body(text).is_ok(), "{text}");
            assert_eq!(forbids(&text.repeat(9)), None, "{text}");
        }
    }

    #[test]
    fn every_operator_counts() {
        for text in [
            "1 + 2",
            "0-0-f(1)",
            "b ? c : d",
            "!b",
            "1 % /* */ {",
            "\"${a / b}\"",
            "<<E\n${a / b}\nE\n",
            "\"${\"${0/0}\"}\" / 1",
        ] {
            let text = format!("a = {text}\n");
            assert!(forbids(&text.repeat(9)).is_some(), "{text}");
            assert_eq!(forbids(&text), None, "{text}");
        }
        let text = format!("a = {}0\n", "0 + ".repeat(9));
        assert_eq!(forbids(&text), Some(Unread::Operators(4 + 8 * 4 + 2)));
    }

    #[test]
    fn templates_in_one_another_have_a_bound() {
        for text in ["\"${", "\"%{if <<E\n%{if "] {
            let deep = format!("a = {}", text.repeat(40));
            assert!(matches!(forbids(&deep), Some(Unread::Templates(_))), "{text}");
            let flat = format!("a = {}\n", "\"${b}\" ".repeat(40));
            assert_eq!(forbids(&flat), None);
        }
    }

    #[test]
    fn a_heredoc_whose_first_line_is_its_end_is_not_read() {
        for text in ["<<E\nE\n", "<<-E\r\n \tE", "[<<E\nE, 1]\n", "\"${<<E\nE\n}\"\n"] {
            let refused = forbids(text);
            assert!(matches!(refused, Some(Unread::EmptyHeredoc(_))), "{text}");
        }
        for text in ["<<E\n\nE\n", "<<E\nE1\nE\n", "<<E\n${b}\nE\n", "\"<<E\nE\n\"\n"] {
            let text = format!("a = {text}");
            assert!(hcl_edit::parser::parse_body(&text).is_ok(), "{text}");
            assert_eq!(forbids(&text), None, "{text}");
        }
    }

    proptest! {
        /// Whatever is put into one another: the parser comes to an end, or does not get it.
        #[test]
        fn what_is_not_refused_is_read(
            begins in prop::collection::vec(part(), 0..4),
            nested in prop::collection::vec(part(), 1..7),
        ) {
            let text = format!("a = {}{}", begins.concat(), nested.concat().repeat(30));
            if forbids(&text).is_none() {
                let _ = hcl_edit::parser::parse_body(&text);
            }
        }
    }

    fn part() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "0", "e", "e.0", ".", " ", "\n", "/0", "-0", "*", "==", "?0:", "{", "}", "(", ")", "[", "]",
            "f(", ",", "=", "\"", "<<F\nF\n", "\\\"", "${", "%{if ", "$${", "<<E\n", "\nE\n", "E", "#", "/*",
            "*/", "0/0*", "0-0-",
        ])
    }
}

//! Keeps texts from the parser that it would read for ever, or would overflow the stack with.
//!
//! Where an operand cannot be read that follows two operators in a row, the parser reads it twice: once for each way to go on. With
//! brackets in one another that doubles on every level, and a few hundred bytes are enough. A document needs no operator, as
//! expressions are not evaluated; so those of a text are counted before it is parsed.
//!
//! What is code and what is text is told as the parser tells it: strings go on over line ends. So this is not what `syntax_hint`
//! looks at, which guesses where a quote was forgotten. To follow the parser further is not possible: templates (`"${a}"`)
//! hold code again, and their directives end strings elsewhere; the words in a `for` expression need no space behind them.
//! As these have no meaning in a document either, a text that has one is not parsed. Nor is one with a heredoc whose first line
//! is its end: the parser looks for another end in all that follows, takes that for the right one if it finds it, and else reads what
//! follows once more.

use std::fmt;

/// More are refused unread.
const MOST: usize = 8;

/// The parser compares each key of an object with all before it.
const MOST_KEYS: usize = 4096;

/// No more templates are looked for.
const MOST_TEMPLATES: usize = 100;

/// Why a text is not given to the parser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    pub why: Why,
    /// Where each of them stands; one at least.
    pub places: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The first one that is too many.
    Operators,
    /// The same, behind a string that goes on over the end of its line: the slashes of a path make operators, too.
    ForgottenQuote,
    Keys,
    Expressions,
    EmptyHeredoc,
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.why {
            Why::ForgottenQuote => f.write_str("a quoted text goes on over the end of its line"),
            Why::Operators => write!(f, "more than {MOST} operators in a document"),
            Why::Keys => write!(f, "more than {MOST_KEYS} keys in one object"),
            Why::Expressions => f.write_str("expressions are not evaluated here"),
            Why::EmptyHeredoc => f.write_str("the first line of a heredoc is its end"),
        }
    }
}

/// What forbids to read a text.
pub(super) fn forbids(text: &str) -> Option<Unread> {
    let mut lexer = Lexer {
        text,
        at: 0,
        over_lines: None,
    };
    let mut last = Token::Other(b'=');
    let mut operators = 0;
    // Of each brace that is open: how many keys its object has so far; None of a block.
    let mut braces: Vec<Option<usize>> = Vec::new();
    while let Some((at, token)) = lexer.next() {
        let unread = |why| {
            Some(Unread {
                why,
                places: vec![at],
            })
        };
        match token {
            Token::Text { template: None } | Token::Other(_) | Token::Name(_) | Token::Number => {}
            Token::Text {
                template: Some(first),
            } => {
                return Some(Unread {
                    why: Why::Expressions,
                    places: lexer.templates(first),
                });
            }
            Token::EmptyHeredoc => return unread(Why::EmptyHeredoc),
            Token::Operator(byte) => {
                let is_sign = byte == b'-' && matches!(last, Token::Other(b'=' | b':' | b',' | b'[' | b'('));
                operators += usize::from(!is_sign);
                if operators > MOST {
                    let (why, place) = match lexer.over_lines {
                        Some(quote) => (Why::ForgottenQuote, quote),
                        None => (Why::Operators, at),
                    };
                    return Some(Unread {
                        why,
                        places: vec![place],
                    });
                }
            }
        }
        match token {
            Token::Other(b'{') => {
                let is_block = matches!(last, Token::Name(_) | Token::Text { .. });
                braces.push((!is_block).then_some(0));
            }
            Token::Other(b'}') => _ = braces.pop(),
            Token::Other(b'=' | b':') => {
                if let Some(Some(keys)) = braces.last_mut() {
                    *keys += 1;
                    if *keys > MOST_KEYS {
                        return unread(Why::Keys);
                    }
                }
            }
            Token::Name("for")
                if matches!(last, Token::Other(b'['))
                    || matches!((last, braces.last()), (Token::Other(b'{'), Some(Some(_)))) =>
            {
                return unread(Why::Expressions);
            }
            _ => {}
        }
        last = token;
    }
    None
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Name(&'a str),
    Number,
    /// A string or a heredoc, and where the first template in it begins.
    Text {
        template: Option<usize>,
    },
    /// A part of one at least; of a minus it is not known whether it is a sign.
    Operator(u8),
    EmptyHeredoc,
    Other(u8),
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    /// The first string that does not end on its line.
    over_lines: Option<usize>,
}

impl<'a> Lexer<'a> {
    /// The next token, with its place.
    fn next(&mut self) -> Option<(usize, Token<'a>)> {
        while self.at < self.text.len() {
            let at = self.at;
            if let Some(token) = self.step() {
                return Some((at, token));
            }
        }
        None
    }

    /// None where it is none of a token.
    fn step(&mut self) -> Option<Token<'a>> {
        let rest = &self.text.as_bytes()[self.at..];
        if let Some((delimiter, body)) = self.heredoc_begun() {
            let begun = self.text.len() - body.len();
            self.at = begun;
            return Some(match ends_heredoc(body.as_bytes(), delimiter) {
                Some(_) => Token::EmptyHeredoc,
                None => {
                    let (length, template) = heredoc(body.as_bytes(), delimiter);
                    self.at += length;
                    Token::Text {
                        template: template.map(|template| begun + template),
                    }
                }
            });
        }
        let (length, token) = match rest {
            [b'#', ..] | [b'/', b'/', ..] => (until(rest, b"\n"), None),
            [b'/', b'*', ..] => (2 + until(&rest[2..], b"*/"), None),
            [b'"', ..] => {
                let (length, template) = quoted(rest);
                if self.over_lines.is_none() && rest[..length].contains(&b'\n') {
                    self.over_lines = Some(self.at);
                }
                let template = template.map(|template| self.at + template);
                (length, Some(Token::Text { template }))
            }
            [b'=', b'=', ..] => (2, Some(Token::Operator(b'='))),
            [
                byte @ (b'%' | b'/' | b'*' | b'+' | b'-' | b'<' | b'>' | b'&' | b'|' | b'!' | b'?'),
                ..,
            ] => (1, Some(Token::Operator(*byte))),
            [b'0'..=b'9', ..] => (number(rest), Some(Token::Number)),
            [byte, ..] if is_of_name(*byte) => {
                let length = name(rest);
                (length, self.text.get(self.at..self.at + length).map(Token::Name))
            }
            [byte, ..] => (1, (!byte.is_ascii_whitespace()).then_some(Token::Other(*byte))),
            [] => (0, None),
        };
        self.at += length;
        token
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

    /// The first template and those of the texts that follow, as far as these can be told from code: they are to be shown.
    fn templates(&mut self, first: usize) -> Vec<usize> {
        let mut found = vec![first];
        let mut template = Some(first);
        while found.len() < MOST_TEMPLATES {
            if let Some(begun) = template {
                // A quote in it, as in "${f("a")}", does not end the text around it; so what follows it is looked at anew.
                let line = self.text[begun..].lines().next().unwrap_or_default();
                let Some(end) = line.find('}') else { break };
                self.at = begun + end + 1;
                let Some(text_end) = self.text[self.at..].find(['"', '\n']) else {
                    break;
                };
                self.at += text_end + 1;
            }
            match self.next() {
                None => break,
                Some((_, Token::Text { template: Some(next) })) => {
                    found.push(next);
                    template = Some(next);
                }
                Some(_) => template = None,
            }
        }
        found
    }
}

/// How long a string is, and where the first template in it begins.
fn quoted(bytes: &[u8]) -> (usize, Option<usize>) {
    let mut at = 1;
    while at < bytes.len() {
        match &bytes[at..] {
            [b'"', ..] => return (at + 1, None),
            // The character behind it may be longer than a byte, but no byte of it is one that means something here.
            [b'\\', ..] => at += 2,
            rest => match literal(rest) {
                Some(length) => at += length,
                None => return (bytes.len(), Some(at)),
            },
        }
    }
    (bytes.len(), None)
}

/// The same of what stands in a heredoc, with its end.
fn heredoc(bytes: &[u8], delimiter: &str) -> (usize, Option<usize>) {
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'\n'
            && let Some(length) = ends_heredoc(&bytes[at + 1..], delimiter)
        {
            return (at + 1 + length, None);
        }
        match literal(&bytes[at..]) {
            Some(length) => at += length,
            None => return (bytes.len(), Some(at)),
        }
    }
    (bytes.len(), None)
}

/// The length of one character of text, more or less; None where a template begins.
fn literal(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [b'$', b'$', b'{', ..] | [b'%', b'%', b'{', ..] => Some(3),
        [b'$' | b'%', b'{', ..] => None,
        _ => Some(1),
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
            assert_eq!(refused(&text.repeat(9)), None, "{text}");
        }
    }

    fn refused(text: &str) -> Option<(Why, Vec<usize>)> {
        forbids(text).map(|unread| (unread.why, unread.places))
    }

    #[test]
    fn every_operator_counts() {
        for text in [
            "1 + 2",
            "0-0-f(1)",
            "b ? c : d",
            "!b",
            "1 % /* */ {",
            "<<E\nx\nE\n - 1",
            "\"x\" - 1",
        ] {
            let text = format!("a = {text}\n");
            let why = refused(&text.repeat(9)).map(|(why, _)| why);
            assert_eq!(why, Some(Why::Operators), "{text}");
            assert_eq!(refused(&text), None, "{text}");
        }
        let text = format!("a = {}0\n", "0 + ".repeat(9));
        assert_eq!(refused(&text), Some((Why::Operators, vec![4 + 8 * 4 + 2])));
    }

    /// Their directives end strings elsewhere, and so hide operators from whoever does not read them.
    #[test]
    fn templates_are_refused_each_at_its_place() {
        let hidden = format!("a = \"%{{if a}}\"#${{{}\n", "0-0-(".repeat(40));
        for (text, places) in [
            ("a = \"x ${b}\"\n", vec![7]),
            ("a = \"${f(\"b\")}\" # \"${c}\"\nd = \"%{if e}\"\n", vec![5, 30]),
            ("a = <<E\nä ${b}\nE\nc = \"${d}\"\n", vec![11, 23]),
            ("a = \"${", vec![5]),
            (&hidden, vec![5]),
        ] {
            assert_eq!(refused(text), Some((Why::Expressions, places)), "{text}");
        }
        let many = "a = \"${b}\"\n".repeat(1000);
        assert_eq!(
            refused(&many).map(|(_, places)| places.len()),
            Some(MOST_TEMPLATES)
        );
    }

    /// Its words need no space behind them: `in-0-0-` is no name there.
    #[test]
    fn for_is_refused_where_it_is_none_of_a_name() {
        let hidden = format!("a = {}(", "[for x in-0-0-".repeat(40));
        for text in [
            hidden.as_str(),
            "a = [ /* */ for b in c : b]",
            "a = {\n for b in c : b => b}",
        ] {
            let why = refused(text).map(|(why, _)| why);
            assert_eq!(why, Some(Why::Expressions), "{text}");
        }
        for text in [
            "for = 1\n",
            "a {\n for = 1\n}\n",
            "a = [format]\n",
            "a = { b = 1, for = 2 }\n",
        ] {
            assert!(hcl_edit::parser::parse_body(text).is_ok(), "{text}");
            assert_eq!(refused(text), None, "{text}");
        }
    }

    #[test]
    fn the_keys_of_one_object_have_a_bound() {
        let keys = |count: usize| -> String { (0..count).map(|key| format!("k{key} = 1\n")).collect() };
        assert_eq!(refused(&format!("a = {{\n{}}}\n", keys(MOST_KEYS))), None);
        let more = keys(MOST_KEYS + 1);
        for text in [format!("a = {{\n{more}}}\n"), format!("a = [{{\n{more}}}]\n")] {
            assert_eq!(refused(&text).map(|(why, _)| why), Some(Why::Keys));
        }
        let of_blocks = format!("{more}a {{\n{more}}}\nb \"c\" {{\n{more}}}\n");
        assert_eq!(refused(&of_blocks), None);
    }

    #[test]
    fn a_heredoc_whose_first_line_is_its_end_is_not_read() {
        for text in ["<<E\nE\n", "<<-E\r\n \tE", "[<<E\nE, 1]\n"] {
            let why = refused(text).map(|(why, _)| why);
            assert_eq!(why, Some(Why::EmptyHeredoc), "{text}");
        }
        for text in ["<<E\n\nE\n", "<<E\nE1\nE\n", "\"<<E\nE\n\"\n"] {
            let text = format!("a = {text}");
            assert!(hcl_edit::parser::parse_body(&text).is_ok(), "{text}");
            assert_eq!(refused(&text), None, "{text}");
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
            "0",
            "e",
            "e.0",
            ".",
            " ",
            "\n",
            "/0",
            "-0",
            "*",
            "==",
            "?0:",
            "{",
            "}",
            "(",
            ")",
            "[",
            "]",
            "f(",
            ",",
            "=",
            "\"",
            "<<F\nF\n",
            "\\\"",
            "${",
            "%{if a}",
            "$${",
            "[for a in",
            "{for a in",
            ":",
            "if",
            "in",
            "<<E\n",
            "\nE\n",
            "E",
            "#",
            "/*",
            "*/",
            "0/0*",
            "0-0-",
        ])
    }
}

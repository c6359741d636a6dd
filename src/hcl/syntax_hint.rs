//! What a syntax error most likely is, and where the slip was made: the parser knows only where it could not go on.

use crate::model::Span;

/// What to say of a text that cannot be read.
pub(super) struct Hint {
    /// Where the user should look.
    pub span: Span,
    pub reason: String,
    pub fix: String,
}

const GENERIC: &str = "look for a quote, bracket or brace that is not closed at this place or before it";

/// `offset` is where the parser stopped, `expected` its message.
pub(super) fn hint(text: &str, offset: usize, expected: &str) -> Hint {
    let here = |fix: &str| Hint {
        span: place(text, offset),
        reason: "the text cannot be read from this place on".to_owned(),
        fix: fix.to_owned(),
    };
    if let Some(at) = curly_quote(text, offset) {
        return Hint {
            span: place(text, at),
            ..here("write straight quotes (\"): an editor or a web page made these")
        };
    }
    if expected.contains("escape sequence") {
        return here("in a string a backslash is written twice: \"\\\\d\" is the regular expression \\d");
    }
    if expected.contains("redefined attribute") {
        return Hint {
            reason: "an attribute is set twice in this block".to_owned(),
            ..here("keep one of the two")
        };
    }
    let marks = Brackets::of(text);
    if text.get(offset..).is_some_and(|rest| rest.trim().is_empty())
        && let Some(hint) = never_closed(text, &marks)
    {
        return hint;
    }
    if let Some(hint) = block_on_one_line(text, offset, &marks) {
        return hint;
    }
    let ends_here = expected.contains("newline or eof");
    match text.get(offset..).and_then(|rest| rest.chars().next()) {
        Some('}') if marks.open_at(offset).next().is_none() => here(
            "this \"}\" closes nothing: take it away, or look above for a block that is closed too early",
        ),
        Some('}') if ends_here => {
            here("put the \"}\" on a line of its own: it ends a block of several lines")
        }
        Some(',') if ends_here => here("attributes stand on lines of their own, without commas between them"),
        Some(':') => here("an attribute is set with \"=\": write `name = value`"),
        Some('\n' | '\r') if text[offset..].trim_start().starts_with('{') => {
            here("the \"{\" of a block stands on the line of its name")
        }
        _ => match marks.open_at(offset).last() {
            Some(open) if expected.contains("expected `]`") && open.byte == b'[' => here(&format!(
                "the list that begins in line {} is not closed: add \"]\"",
                line_of(text, open.at)
            )),
            _ => here(GENERIC),
        },
    }
}

/// In the line where the parser stopped, before that place or at it. Within a string they are text like any other.
fn curly_quote(text: &str, offset: usize) -> Option<usize> {
    let start = line_start(text, offset);
    let line = &text[start..];
    let line = &line[..line.find('\n').unwrap_or(line.len())];
    let mut at = 0;
    while let Some(next) = line[at..].chars().next() {
        if start + at > offset {
            return None;
        }
        if "\u{201c}\u{201d}\u{201e}\u{2018}\u{2019}\u{ab}\u{bb}".contains(next) {
            return Some(start + at);
        }
        at += match next {
            '"' => string_length(&line.as_bytes()[at..]),
            '#' => return None,
            _ => next.len_utf8(),
        };
    }
    None
}

/// A character to mark: a line's end cannot be seen, so what stands before it.
fn place(text: &str, offset: usize) -> Span {
    let next = text[offset..].chars().next();
    if next.is_none_or(|next| next == '\n' || next == '\r')
        && let Some(before) = text[..offset]
            .chars()
            .next_back()
            .filter(|before| *before != '\n')
    {
        return Span {
            start: offset - before.len_utf8(),
            end: offset,
        };
    }
    Span {
        start: offset,
        end: offset + next.map_or(0, char::len_utf8),
    }
}

/// The text ends inside of a block.
fn never_closed(text: &str, marks: &Brackets) -> Option<Hint> {
    let open = marks.suspect.or(marks.open_at(text.len()).last())?;
    if open.byte != b'{' {
        return None;
    }
    let start = line_start(text, open.at) + indentation(text, open.at);
    let (line, last) = (line_of(text, open.at), line_of(text, text.trim_end().len()));
    let closer = match marks.suspect.is_some() {
        true => format!(
            "as the lines are indented, the block that begins in line {line} has no \"}}\" of its own: add one"
        ),
        false => format!("add a \"}}\" for the block that begins in line {line}"),
    };
    Some(Hint {
        span: Span {
            start,
            end: open.at + 1,
        },
        reason: format!("the text ends with line {last}, and a block is still open"),
        fix: closer,
    })
}

/// Something stands behind the `{` on its line, where the block goes on.
fn block_on_one_line(text: &str, offset: usize, marks: &Brackets) -> Option<Hint> {
    let open = marks.open_at(offset).last()?;
    let between = &text[open.at + 1..offset];
    let before = text[..open.at].trim_end().chars().next_back();
    let is_object = before.is_none_or(|before| "=[,(:".contains(before));
    if open.byte != b'{' || is_object || between.contains('\n') || between.trim().is_empty() {
        return None;
    }
    let rest = text[offset..].lines().next().unwrap_or_default().trim_start();
    if !(rest.is_empty() || rest.starts_with('#') || rest.starts_with("//")) {
        return Some(Hint {
            span: place(text, offset),
            reason: "the text cannot be read from this place on".to_owned(),
            fix: "a block on one line may hold one attribute, and nothing else: put each attribute and each block \
                  on its own line"
                .to_owned(),
        });
    }
    let start = offset - between.trim_start().len();
    let first = between
        .trim_start()
        .split(['=', ' ', '{'])
        .next()
        .unwrap_or_default();
    let goes_on = marks
        .closed_by(open)
        .is_some_and(|close| indentation(text, close) == indentation(text, open.at));
    Some(Hint {
        span: Span {
            start,
            end: open.at + 1 + between.trim_end().len(),
        },
        reason: "this stands behind the \"{\" of a block that does not end on this line".to_owned(),
        fix: if goes_on {
            format!("begin a new line before `{first}`")
        } else {
            format!("close the block on this line with \" }}\", or begin a new line before `{first}`")
        },
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Open {
    byte: u8,
    at: usize,
    /// Of its line.
    indent: usize,
}

/// Brackets outside of strings, comments and heredocs.
struct Brackets {
    /// Each opening one, and where it is closed.
    pairs: Vec<(Open, Option<usize>)>,
    /// The first block whose `}` stands at another indentation: the one within that is not closed.
    suspect: Option<Open>,
}

impl Brackets {
    fn of(text: &str) -> Self {
        let mut found = Self {
            pairs: Vec::new(),
            suspect: None,
        };
        let mut stack: Vec<usize> = Vec::new();
        // The line that the bracket stands in. All are on one line perhaps: none may look for its beginning by itself.
        let mut line = 0..0;
        let mut indent = 0;
        for (at, byte) in structure(text) {
            if at >= line.end {
                line.start = line_start(text, at);
                line.end = text[at..].find('\n').map_or(text.len(), |end| at + end + 1);
                indent = indentation(text, at);
            }
            match byte {
                b'{' | b'[' | b'(' => {
                    stack.push(found.pairs.len());
                    found.pairs.push((Open { byte, at, indent }, None));
                }
                _ => {
                    let Some(index) = stack.pop() else { continue };
                    let (open, close) = &mut found.pairs[index];
                    *close = Some(at);
                    let own_line = at == line.start + indent;
                    if own_line && open.byte == b'{' && indent < open.indent && found.suspect.is_none() {
                        found.suspect = Some(*open);
                    }
                }
            }
        }
        found
    }

    /// Outermost first.
    fn open_at(&self, offset: usize) -> impl Iterator<Item = Open> {
        let open = self
            .pairs
            .iter()
            .filter(move |(open, close)| open.at < offset && close.is_none_or(|close| close >= offset));
        open.map(|(open, _)| *open)
    }

    fn closed_by(&self, wanted: Open) -> Option<usize> {
        self.pairs.iter().find(|(open, _)| *open == wanted)?.1
    }
}

/// The brackets that mean something, with their places.
fn structure(text: &str) -> Vec<(usize, u8)> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text.as_bytes()[at..];
        at += match rest {
            [b'{' | b'}' | b'[' | b']' | b'(' | b')', ..] => {
                found.push((at, rest[0]));
                1
            }
            [b'#', ..] | [b'/', b'/', ..] => length_until(rest, b"\n"),
            [b'/', b'*', ..] => length_until(rest, b"*/"),
            [b'"', ..] => string_length(rest),
            [b'<', b'<', ..] => heredoc_length(rest),
            _ => 1,
        };
    }
    found
}

/// Up to and with the end, or all that is left.
fn length_until(bytes: &[u8], end: &[u8]) -> usize {
    let found = bytes.windows(end.len()).skip(1).position(|window| window == end);
    found.map_or(bytes.len(), |position| position + 1 + end.len())
}

/// A string ends with its line at the latest.
fn string_length(bytes: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 1,
            b'"' => return at + 1,
            b'\n' => return at,
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

fn heredoc_length(bytes: &[u8]) -> usize {
    let head = bytes[2..].strip_prefix(b"-").unwrap_or(&bytes[2..]);
    let length = head
        .iter()
        .take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_')
        .count();
    let (marker, head) = head.split_at(length);
    let spaces = head
        .iter()
        .take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r'))
        .count();
    if marker.is_empty() || !matches!(head.get(spaces), None | Some(b'\n')) {
        return 2;
    }
    let lines = head[spaces..].split_inclusive(|byte| *byte == b'\n');
    let mut length = bytes.len() - head.len() + spaces;
    for line in lines {
        length += line.len();
        if line.trim_ascii() == marker {
            break;
        }
    }
    length
}

fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |newline| newline + 1)
}

/// Of the line that holds this place.
fn indentation(text: &str, at: usize) -> usize {
    let line = &text[line_start(text, at)..];
    line.len() - line.trim_start_matches([' ', '\t']).len()
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

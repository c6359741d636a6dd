use super::parse::{NotHcl, parse_text};

/// The one way a document is written: two spaces a level, `=` aligned in runs of attributes, comments kept.
///
/// Works on lines, so that comments and blank lines stay where their author put them: the parser is asked only whether
/// the text is HCL at all.
pub fn format(text: &str) -> Result<String, NotHcl> {
    parse_text(text)?;
    let mut lines: Vec<Line> = Vec::new();
    let mut depth = 0usize;
    let mut scanner = Scanner::default();
    let mut blank_pending = false;
    // One CR belongs to the line's end. More of them are of no use, and would be taken off one at a time.
    for raw in text.lines().map(|line| line.trim_end_matches('\r')) {
        if scanner.in_verbatim() {
            lines.push(Line {
                depth: 0,
                text: raw.to_owned(),
                split: None,
                verbatim: true,
            });
            scanner.line(raw);
            continue;
        }
        let trimmed = raw.trim();
        if trimmed.is_empty() {
            blank_pending = !lines.is_empty();
            continue;
        }
        let closes_first = trimmed
            .bytes()
            .take_while(|byte| matches!(byte, b'}' | b']' | b')'))
            .count();
        let opens_before = lines.last().is_some_and(|line| line.opens());
        if blank_pending && closes_first == 0 && !opens_before {
            lines.push(Line::blank());
        }
        blank_pending = false;
        let balance = scanner.line(trimmed);
        let shown_depth = depth.saturating_sub(closes_first);
        lines.push(Line {
            depth: shown_depth,
            text: trimmed.to_owned(),
            split: attribute_split(trimmed),
            verbatim: false,
        });
        depth = depth.saturating_add_signed(balance);
    }
    align(&mut lines);
    let mut formatted = String::with_capacity(text.len() + 64);
    for line in &lines {
        if !line.verbatim && !line.text.is_empty() {
            formatted.push_str(&"  ".repeat(line.depth));
        }
        formatted.push_str(&line.text);
        formatted.push('\n');
    }
    Ok(formatted)
}

struct Line {
    depth: usize,
    text: String,
    /// Byte offsets of the end of the name and the start of the value, for a one-line attribute.
    split: Option<(usize, usize)>,
    verbatim: bool,
}

impl Line {
    fn blank() -> Self {
        Self {
            depth: 0,
            text: String::new(),
            split: None,
            verbatim: true,
        }
    }

    fn opens(&self) -> bool {
        !self.verbatim && self.text.ends_with(['{', '[', '('])
    }
}

/// Follows strings, comments and here-documents from line to line.
#[derive(Default)]
struct Scanner {
    heredoc_end: Option<String>,
    in_block_comment: bool,
}

impl Scanner {
    fn in_verbatim(&self) -> bool {
        self.heredoc_end.is_some() || self.in_block_comment
    }

    /// Returns how many brackets the line opens more than it closes.
    fn line(&mut self, line: &str) -> isize {
        if let Some(end) = &self.heredoc_end {
            if line.trim() == end {
                self.heredoc_end = None;
            }
            return 0;
        }
        let bytes = line.as_bytes();
        let (mut balance, mut index, mut in_string) = (0isize, 0, false);
        while index < bytes.len() {
            let rest = &bytes[index..];
            if self.in_block_comment {
                if rest.starts_with(b"*/") {
                    self.in_block_comment = false;
                    index += 1;
                }
            } else if in_string {
                match bytes[index] {
                    b'\\' => index += 1,
                    b'"' => in_string = false,
                    _ => {}
                }
            } else if rest.starts_with(b"#") || rest.starts_with(b"//") {
                break;
            } else if rest.starts_with(b"/*") {
                self.in_block_comment = true;
                index += 1;
            } else if rest.starts_with(b"<<") {
                let marker = line[index + 2..].trim_start_matches('-').trim();
                if !marker.is_empty() {
                    self.heredoc_end = Some(marker.to_owned());
                }
                break;
            } else {
                match bytes[index] {
                    b'"' => in_string = true,
                    b'{' | b'[' | b'(' => balance += 1,
                    b'}' | b']' | b')' => balance -= 1,
                    _ => {}
                }
            }
            index += 1;
        }
        balance
    }
}

/// `name = value` on one line: where the name ends and the value begins.
fn attribute_split(line: &str) -> Option<(usize, usize)> {
    let name_end = line.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')))?;
    let after = line[name_end..].trim_start();
    let value = after.strip_prefix('=').filter(|value| !value.starts_with('='))?;
    let value_start = line.len() - value.trim_start().len();
    (name_end > 0 && !value.trim().is_empty()).then_some((name_end, value_start))
}

/// Aligns `=` over consecutive one-line attributes of one level, as `terraform fmt` and `nomad fmt` do.
fn align(lines: &mut [Line]) {
    let mut start = 0;
    while start < lines.len() {
        let Some(_) = lines[start].split else {
            start += 1;
            continue;
        };
        let depth = lines[start].depth;
        let run = lines[start..]
            .iter()
            .take_while(|line| line.split.is_some() && line.depth == depth && !line.opens())
            .count();
        let end = start + run.max(1);
        let width = lines[start..end]
            .iter()
            .filter_map(|line| line.split)
            .map(|(name_end, _)| name_end)
            .max()
            .unwrap_or(0);
        for line in &mut lines[start..end] {
            if let Some((name_end, value_start)) = line.split {
                line.text = format!(
                    "{:width$} = {}",
                    &line.text[..name_end],
                    &line.text[value_start..]
                );
            }
        }
        start = end;
    }
}

#[cfg(test)]
mod tests {
    use super::format;

    #[test]
    fn indents_aligns_and_keeps_comments() {
        let text = "http_route \"a\" {\n\n hostnames=[\"x\"] # why\n  gateways   = [\"edge\"]\n\n\n rule \"r\" {\n match { path_prefix = \"/\" }\n}\n\n}\n";
        let formatted = format(text).unwrap();
        assert_eq!(
            formatted,
            "http_route \"a\" {\n  hostnames = [\"x\"] # why\n  gateways  = [\"edge\"]\n\n  rule \"r\" {\n    match { path_prefix = \"/\" }\n  }\n}\n"
        );
        assert_eq!(format(&formatted).unwrap(), formatted, "formatting is stable");
    }

    #[test]
    fn ends_lines_of_comments_and_heredocs_with_a_newline_alone() {
        let text = "/* a\r\r\n b\r\n*/\r\ntext = <<E\r\none\r\r\r\nE\r\n";
        let formatted = format(text).unwrap();
        assert_eq!(formatted, "/* a\n b\n*/\ntext = <<E\none\nE\n");
    }
}

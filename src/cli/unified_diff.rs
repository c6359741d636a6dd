//! Two texts, line by line, as `diff -u` shows them.

use similar::{ChangeTag, TextDiff};

use super::terminal::{Color, Terminal};
use crate::agent::log_format::escaped;

pub fn render(name: &str, old: &str, new: &str, terminal: &Terminal) -> String {
    let mut shown = format!("--- {name}\n+++ {name}\n");
    for hunk in TextDiff::from_lines(old, new)
        .unified_diff()
        .context_radius(3)
        .iter_hunks()
    {
        shown.push_str(&terminal.paint(Color::Cyan, &hunk.header().to_string()));
        shown.push('\n');
        for change in hunk.iter_changes() {
            // Whoever wrote the text is not to move the operator's cursor.
            let parts = change.value().trim_end_matches('\n').split('\t').map(escaped);
            let line = parts.collect::<Vec<_>>().join("\t");
            shown.push_str(&match change.tag() {
                ChangeTag::Delete => terminal.paint(Color::Red, &format!("-{line}")),
                ChangeTag::Insert => terminal.paint(Color::Green, &format!("+{line}")),
                ChangeTag::Equal => format!(" {line}"),
            });
            shown.push('\n');
            if change.missing_newline() {
                shown.push_str("\\ No newline at end of file\n");
            }
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_moves_the_operators_cursor() {
        let mut terminal = Terminal::standard();
        terminal.color = false;
        let shown = render("a", "x\n", "x\n\ty\u{1b}[2J\r\u{202e}z\n", &terminal);
        assert!(shown.contains("+\ty"), "{shown:?}");
        assert!(!shown.contains(['\u{1b}', '\r', '\u{202e}']), "{shown:?}");
    }
}

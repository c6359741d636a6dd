//! Two texts, line by line, as `diff -u` shows them.

use similar::{ChangeTag, TextDiff};

use super::terminal::{Color, Terminal};

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
            let line = change.value().trim_end_matches('\n');
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

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::{Diagnostic, Severity};
use crate::model::Span;

/// Characters that still fit beside the mark on most terminals.
const LABEL: usize = 60;

/// Renders like a compiler: the line, a mark under the place, the reason and the fix.
///
/// `source` is the text the diagnostic's origin points into; without it only the place is named.
pub fn render(diagnostic: &Diagnostic, source: Option<&str>, color: bool) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level
        .primary_title(&diagnostic.message)
        .id(diagnostic.code.as_str());
    // Labels are not wrapped: a long reason reads better below.
    let (label, note) = match &diagnostic.reason {
        Some(reason) if reason.chars().count() <= LABEL => (Some(reason), None),
        reason => (None, reason.as_ref()),
    };
    let path = diagnostic.origin.as_ref().map(ToString::to_string);
    let mut group = match (&diagnostic.origin, source) {
        (Some(origin), Some(source)) if source.get(origin.span.start..origin.span.end).is_some() => {
            let (before, lines) = lines_around(source, origin.span);
            let start = origin.span.start - before.len();
            let end = origin.span.end - before.len();
            let mut annotation = AnnotationKind::Primary.span(start..end);
            if let Some(label) = label {
                annotation = annotation.label(label);
            }
            let snippet = Snippet::source(lines)
                .line_start(1 + before.matches('\n').count())
                .path(origin.document.as_str())
                .annotation(annotation);
            let group = title.element(snippet);
            match note {
                Some(note) => group.element(Level::NOTE.message(note)),
                None => group,
            }
        }
        _ => {
            let mut group = Group::with_title(title);
            if let Some(path) = &path {
                group = group.element(Level::NOTE.message(format!("at {path}")));
            }
            if let Some(reason) = &diagnostic.reason {
                group = group.element(Level::NOTE.message(reason));
            }
            group
        }
    };
    if let Some(object) = &diagnostic.object {
        group = group.element(Level::NOTE.message(format!("in {object}")));
    }
    if let Some(fix) = &diagnostic.fix {
        group = group.element(Level::HELP.message(fix));
    }
    let renderer = if color {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    renderer.render(&[group]).to_string()
}

/// What stands before the lines that a span touches, and these lines. The renderer reads all it is given, for every diagnostic.
fn lines_around(source: &str, span: Span) -> (&str, &str) {
    let start = source[..span.start].rfind('\n').map_or(0, |at| at + 1);
    let end = source[span.end..]
        .find('\n')
        .map_or(source.len(), |at| span.end + at + 1);
    (&source[..start], &source[start..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostics::Code;
    use crate::model::{DocumentId, Origin};

    #[test]
    fn shows_line_reason_and_fix() {
        let source = "http_route \"shop\" {\n  hostname = \"a\"\n}\n";
        let diagnostic = Diagnostic::error(Code::UnknownKey, "unknown attribute \"hostname\"")
            .at(Origin {
                document: DocumentId::File("shop.hcl".into()),
                span: Span { start: 22, end: 30 },
                line: 2,
                column: 3,
            })
            .because("not an attribute of http_route")
            .fix("did you mean \"hostnames\"?")
            .about("http_route", "shop");
        insta::assert_snapshot!(render(&diagnostic, Some(source), false), @r#"
        error[unknown-key]: unknown attribute "hostname"
         --> shop.hcl:2:3
          |
        2 |   hostname = "a"
          |   ^^^^^^^^ not an attribute of http_route
          |
          = note: in http_route "shop"
          = help: did you mean "hostnames"?
        "#);
    }

    #[test]
    fn shows_lines_that_end_like_those_of_windows() {
        let source = "a = 1\r\nb = 2\r\nc = 3";
        for (text, line) in [("b", 2), ("c", 3)] {
            let start = source.find(text).unwrap();
            let diagnostic = Diagnostic::error(Code::UnknownKey, "unknown").at(Origin {
                document: DocumentId::File("shop.hcl".into()),
                span: Span {
                    start,
                    end: start + 1,
                },
                line,
                column: 1,
            });
            let shown = render(&diagnostic, Some(source), false);
            let marked = format!("{line} | {text} = {line}\n");
            assert!(shown.contains(&marked), "{shown:?}");
            assert!(shown.contains(&format!("shop.hcl:{line}:1\n")), "{shown:?}");
        }
    }
}

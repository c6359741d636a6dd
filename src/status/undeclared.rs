//! Gateways that are to be served and that no document declares.

use crate::diagnostics::{Code, Diagnostic};
use crate::pipeline::View;

/// Gateways that the settings name and no document declares: their Envoys have nothing to serve.
pub(super) fn undeclared(view: &View) -> Vec<Diagnostic> {
    let config = &view.snapshot.config;
    if !(config.documents().next().is_some() || view.snapshot.documents_complete()) {
        // Not known yet is not absent.
        return Vec::new();
    }
    let names = view.gateways.iter().map(|gateway| &gateway.name);
    names
        .filter(|name| config.gateway(name).is_none())
        .map(|name| {
            let known: Vec<&str> = config.gateways().map(|gateway| &*gateway.name).collect();
            let near = crate::diagnostics::suggestion(name, known.iter().copied());
            let in_error = config
                .documents()
                .find(|state| state.in_service.is_none() && seems_to_declare(&state.document.text, name));
            let text = match in_error {
                Some(state) => format!(
                    "this agent serves the gateway {name:?}, and the document that seems to declare it is in error: {}",
                    state.document.id
                ),
                None => format!("this agent serves the gateway {name:?}, which no document declares"),
            };
            Diagnostic::warning(Code::UnknownReference, text)
                .about("gateway", name)
                .because("its Envoys have no listener")
                .fix(match (in_error, near) {
                    (Some(_), _) => "mend that document: its own problems say how".to_owned(),
                    (None, Some(near)) => format!("did you mean {near:?}?"),
                    (None, None) => {
                        format!("declare `gateway {name:?} {{ ... }}`, or serve another one (-gateway)")
                    }
                })
        })
        .collect()
}

/// Whether a text that cannot be parsed has `gateway "name"`, as HCL or as JSON, outside of comments.
fn seems_to_declare(text: &str, name: &str) -> bool {
    let tokens = tokens(text);
    let is_word = |at: usize, word: &str| matches!(tokens.get(at), Some(Token::Word(found) | Token::Quoted(found)) if *found == word);
    let is_key = |at: usize, key: &str| is_word(at, key) && tokens.get(at + 1) == Some(&Token::Other(':'));
    (0..tokens.len()).any(|at| {
        let in_hcl = is_word(at, "gateway") && is_word(at + 1, name);
        in_hcl || is_key(at, "gateway") && (at + 2..tokens.len()).any(|later| is_key(later, name))
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Quoted(&'a str),
    Other(char),
}

/// As far as they can be told in a text with mistakes.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with('#') || rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if first == '"' {
            let end = end_of_string(rest);
            tokens.push(Token::Quoted(rest[1..end].trim_end_matches('"')));
            end
        } else if is_of_word(first) {
            let end = rest.find(|other| !is_of_word(other)).unwrap_or(rest.len());
            tokens.push(Token::Word(&rest[..end]));
            end
        } else {
            if !first.is_whitespace() {
                tokens.push(Token::Other(first));
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

fn is_of_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_' || character == '-'
}

/// Behind its closing quote, or at the end of the line, where one that is not closed must end.
fn end_of_string(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            '\n' => return at,
            '"' if !is_escaped => return at + 1,
            _ => is_escaped = character == '\\' && !is_escaped,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declaration_is_seen_through_mistakes() {
        for text in [
            "gateway \"edge\" {\n  listener {",
            "gateway  \t\"edge\"{ prot = 1 }",
            "gateway edge {",
            "# of the shop\nname = \"open\ngateway \"edge\" {",
            "a = \"\\\"\" /* b */ gateway \"edge\"",
            "{ \"gateway\": { \"inner\": {}, \"edge\": { \"listener\": ",
            "{\"gateway\":[{\"edge\":{}}],}",
        ] {
            assert!(seems_to_declare(text, "edge"), "{text}");
        }
        for text in [
            "# gateway \"edge\" is elsewhere\nhttp_route {",
            "// gateway \"edge\"\n/* gateway \"edge\" */ x {",
            "gateway \"edge-2\" {",
            "gateways = [\"edge\"]",
            "note = \"gateway \\\"edge\\\"\" {",
            "{ \"gateways\": [\"edge\"], ",
            "/* gateway \"edge\" {",
            "gateway \"",
            "",
        ] {
            assert!(!seems_to_declare(text, "edge"), "{text}");
        }
    }
}

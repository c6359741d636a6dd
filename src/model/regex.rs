//! Regular expressions that mean the same to Envoy's engine (RE2) and to ours, which `explain` uses.

use regex::Regex;
use regex_syntax::ast::{self, Ast};

/// Compiled size of a user's regular expression, in bytes. Envoy's bootstrap lifts RE2's own bound of 100 instructions
/// (`re2.max_program_size.error_level`), which a path of 100 letters would reach: this one stands in its place.
const COMPILED_BYTES: usize = 256 * 1024;
const CHARACTERS: usize = 1024;
/// Characters in classes that are without case, of one regular expression: all there are, once.
const FOLDED: usize = 0x11_0000;
/// `\pL` has about so many.
const UNICODE_CLASS: usize = 140_000;
/// RE2's bound on `{n,m}`.
const REPEATS: u32 = 1000;

pub fn check_regex(text: &str) -> Result<(), String> {
    let (tree, of_re2) = parsed(text)?;
    if of_re2.folds && of_re2.width > FOLDED {
        return Err(format!(
            "{text:?} is too costly: use smaller character classes, or none without case"
        ));
    }
    if bytes_of(&tree) > COMPILED_BYTES {
        return Err(format!("{text:?} is too costly: use smaller repeat counts"));
    }
    regex_syntax::hir::translate::Translator::new()
        .translate(text, &tree)
        .map(|_| ())
        .map_err(|error| format!("not a regular expression: {}", error.kind()))
}

/// Whether it takes the whole of a text, as Envoy asks. None: it is no regular expression.
pub fn full_match(pattern: &str, text: &str) -> Option<bool> {
    let whole = format!("^(?:{pattern})$");
    // To Envoy `\w` and its like are of ASCII, which makes a far smaller program, too.
    let of_ascii = || {
        let regex = regex::bytes::RegexBuilder::new(&whole).unicode(false).build();
        regex.ok().map(|regex| regex.is_match(text.as_bytes()))
    };
    let of_unicode = || Some(Regex::new(&whole).ok()?.is_match(text));
    Some(text)
        .filter(|text| text.is_ascii())
        .and_then(|_| of_ascii())
        .or_else(of_unicode)
}

fn parsed(text: &str) -> Result<(Ast, Re2), String> {
    if text.chars().count() > CHARACTERS {
        return Err(format!(
            "a regular expression is at most {CHARACTERS} characters long"
        ));
    }
    let tree = ast::parse::Parser::new()
        .parse(text)
        .map_err(|error| format!("not a regular expression: {}", error.kind()))?;
    let of_re2 = ast::visit(&tree, Re2::default())?;
    Ok((tree, of_re2))
}

/// Bytes of the program that it becomes, about, without making it. No more than are made of any.
pub fn program_bytes(text: &str) -> usize {
    parsed(text).map_or(0, |(tree, _)| bytes_of(&tree).min(COMPILED_BYTES))
}

/// What is repeated stands in the program as often.
fn bytes_of(tree: &Ast) -> usize {
    const STATE: usize = 24;
    match tree {
        Ast::Empty(_) | Ast::Flags(_) | Ast::Assertion(_) => STATE,
        Ast::Literal(literal) => STATE * literal.c.len_utf8(),
        // Any character, in UTF-8.
        Ast::Dot(_) => 10 * STATE,
        // Of ASCII, to Envoy.
        Ast::ClassPerl(_) => 4 * STATE,
        Ast::ClassUnicode(_) => 1000 * STATE,
        Ast::ClassBracketed(class) => {
            // All but a few are any character, in UTF-8.
            let others = if class.negated { 10 } else { 0 };
            STATE * (others + items_of(&class.kind))
        }
        Ast::Repetition(repetition) => {
            let times = match &repetition.op.kind {
                ast::RepetitionKind::Range(range) => most(range).max(1),
                _ => 1,
            };
            let each = bytes_of(&repetition.ast).saturating_add(STATE);
            each.saturating_mul(times as usize)
        }
        Ast::Group(group) => bytes_of(&group.ast).saturating_add(2 * STATE),
        Ast::Alternation(parts) => sum(&parts.asts),
        Ast::Concat(parts) => sum(&parts.asts),
    }
}

fn sum(parts: &[Ast]) -> usize {
    parts.iter().map(bytes_of).fold(0, usize::saturating_add)
}

fn items_of(set: &ast::ClassSet) -> usize {
    let of = |item: &ast::ClassSetItem| match item {
        ast::ClassSetItem::Unicode(_) => 1000,
        ast::ClassSetItem::Union(union) => {
            let of_unicode = union
                .items
                .iter()
                .filter(|item| matches!(item, ast::ClassSetItem::Unicode(_)));
            1000 * of_unicode.count() + 2 * union.items.len()
        }
        _ => 1,
    };
    match set {
        ast::ClassSet::Item(item) => of(item),
        // Refused.
        ast::ClassSet::BinaryOp(_) => 0,
    }
}

fn most(range: &ast::RepetitionRange) -> u32 {
    match range {
        ast::RepetitionRange::Exactly(n) | ast::RepetitionRange::AtLeast(n) => *n,
        ast::RepetitionRange::Bounded(_, n) => *n,
    }
}

/// Refuses what RE2 refuses or reads differently.
#[derive(Default)]
struct Re2 {
    /// Somewhere it is without case.
    folds: bool,
    /// Characters that stand in classes: each is looked up, where case does not matter.
    width: usize,
}

impl ast::Visitor for Re2 {
    type Output = Self;
    type Err = String;

    fn finish(self) -> Result<Self, String> {
        Ok(self)
    }

    fn visit_pre(&mut self, tree: &Ast) -> Result<(), String> {
        match tree {
            Ast::Flags(flags) => self.flags(&flags.flags),
            Ast::Group(group) => match &group.kind {
                ast::GroupKind::NonCapturing(flags) => self.flags(flags),
                _ => Ok(()),
            },
            Ast::ClassUnicode(_) => {
                self.width += UNICODE_CLASS;
                Ok(())
            }
            Ast::Repetition(repetition) => match &repetition.op.kind {
                ast::RepetitionKind::Range(range) => {
                    if most(range) > REPEATS {
                        return Err(format!("a repeat count is at most {REPEATS}"));
                    }
                    Ok(())
                }
                _ => Ok(()),
            },
            Ast::Literal(literal) => check_literal(literal),
            Ast::Assertion(assertion) => match assertion.kind {
                ast::AssertionKind::StartLine
                | ast::AssertionKind::EndLine
                | ast::AssertionKind::StartText
                | ast::AssertionKind::EndText
                | ast::AssertionKind::WordBoundary
                | ast::AssertionKind::NotWordBoundary => Ok(()),
                _ => unknown_to_re2("word-start and word-end assertions"),
            },
            _ => Ok(()),
        }
    }

    fn visit_class_set_item_pre(&mut self, item: &ast::ClassSetItem) -> Result<(), String> {
        match item {
            ast::ClassSetItem::Literal(literal) => check_literal(literal),
            ast::ClassSetItem::Range(range) => {
                let width = u32::from(range.end.c).abs_diff(u32::from(range.start.c));
                self.width += width as usize;
                check_literal(&range.start)?;
                check_literal(&range.end)
            }
            ast::ClassSetItem::Unicode(_) => {
                self.width += UNICODE_CLASS;
                Ok(())
            }
            ast::ClassSetItem::Bracketed(_) => unknown_to_re2("a class within a class (write \"\\[\")"),
            _ => Ok(()),
        }
    }

    fn visit_class_set_binary_op_pre(&mut self, _: &ast::ClassSetBinaryOp) -> Result<(), String> {
        unknown_to_re2("set operations in a class (\"&&\", \"--\", \"~~\")")
    }
}

impl Re2 {
    fn flags(&mut self, flags: &ast::Flags) -> Result<(), String> {
        self.folds |= flags.flag_state(ast::Flag::CaseInsensitive) == Some(true);
        check_flags(flags)
    }
}

fn check_flags(flags: &ast::Flags) -> Result<(), String> {
    for item in &flags.items {
        if let ast::FlagsItemKind::Flag(flag) = item.kind
            && !matches!(
                flag,
                ast::Flag::CaseInsensitive
                    | ast::Flag::MultiLine
                    | ast::Flag::DotMatchesNewLine
                    | ast::Flag::SwapGreed
            )
        {
            return unknown_to_re2("flags other than i, m, s and U");
        }
    }
    Ok(())
}

fn check_literal(literal: &ast::Literal) -> Result<(), String> {
    match &literal.kind {
        ast::LiteralKind::HexFixed(kind) | ast::LiteralKind::HexBrace(kind)
            if *kind != ast::HexLiteralKind::X =>
        {
            unknown_to_re2("\\u and \\U (write \"\\x{...}\")")
        }
        _ => Ok(()),
    }
}

fn unknown_to_re2(what: &str) -> Result<(), String> {
    Err(format!("Envoy's regular expressions (RE2) do not know {what}"))
}

#[cfg(test)]
mod tests {
    use super::{COMPILED_BYTES, check_regex, full_match, program_bytes};

    #[test]
    fn what_it_becomes_is_told_by_what_is_repeated() {
        let plain = program_bytes("/orders/[0-9]+");
        assert!((100..1000).contains(&plain), "{plain}");
        // Of ASCII, to Envoy.
        assert!(program_bytes(r"/a/\w+/b/\w+") < 1000);
        let repeated = program_bytes("(/orders/[0-9]+){100}");
        assert!((100 * plain..150 * plain).contains(&repeated), "{repeated}");
        let endless = program_bytes("((((a{1000}){1000}){1000}){1000}){1000}");
        assert_eq!(endless, COMPILED_BYTES);
        assert_eq!(program_bytes("("), 0);
        assert!(check_regex(r"\pL{3}").is_ok());
        assert!(check_regex(r"\pL{100}").is_err());
    }

    #[test]
    fn the_whole_of_a_text_is_asked_about() {
        for (pattern, text, takes) in [
            ("/a|/b", "/a", Some(true)),
            ("/a|/b", "/ab", Some(false)),
            ("/[^/]+", "/ä", Some(true)),
            (r"/\pL", "/a", Some(true)),
            (r"/\w{1000}", "/a", Some(false)),
            ("(", "(", None),
        ] {
            assert_eq!(full_match(pattern, text), takes, "{pattern} {text}");
        }
    }

    #[test]
    fn takes_what_both_engines_read_alike() {
        for good in [
            "/v[0-9]+/.*",
            r"\d+\.\w\b",
            "(?i)abc",
            "(?P<n>a)|(?:b)",
            r"\pL[[:alpha:]]\x{61}\x41",
            "a{1,1000}?",
            r"\A[^/]*\z",
        ] {
            assert_eq!(check_regex(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn refuses_what_envoy_would_refuse_or_misread() {
        for bad in [
            "(",
            "(?=a)",
            r"\1",
            "(?x)a b",
            r"\u0061",
            r"\u{61}",
            "a{1001}",
            "[a&&b]",
            "[a--b]",
            "[a[b]]",
            r"\<a",
            "(?-u:a)",
            "((((a{1,100}){1,100}){1,100}){1,100})",
        ] {
            assert!(check_regex(bad).is_err(), "{bad}");
        }
        assert!(check_regex(&"a".repeat(1025)).is_err());
        // Each of the characters of these classes is looked up, many times over.
        let wide = "[!-\u{10ffff}]".repeat(3);
        assert_eq!(check_regex(&wide), Ok(()));
        assert!(check_regex(&format!("(?i){wide}")).is_err());
        assert!(check_regex(&format!("(?i:a{wide})")).is_err());
        assert_eq!(check_regex("(?i)[^/]+.*[a-z]"), Ok(()));
    }
}

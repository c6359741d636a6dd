//! Regular expressions that mean the same to Envoy's engine (RE2) and to ours, which `explain` uses.

use regex_syntax::ast::{self, Ast};
use regex_syntax::hir::{Class, Hir, HirKind};

/// Compiled size of a user's regular expression, in bytes. Envoy's bootstrap lifts RE2's own bound of 100 instructions
/// (`re2.max_program_size.error_level`), which a path of 100 letters would reach: this one stands in its place.
const COMPILED_BYTES: usize = 256 * 1024;
const CHARACTERS: usize = 1024;
/// RE2's bound on `{n,m}`.
const REPEATS: u32 = 1000;

pub(super) fn check_regex(text: &str) -> Result<(), String> {
    if text.chars().count() > CHARACTERS {
        return Err(format!(
            "a regular expression is at most {CHARACTERS} characters long"
        ));
    }
    let tree = ast::parse::Parser::new()
        .parse(text)
        .map_err(|error| format!("not a regular expression: {}", error.kind()))?;
    ast::visit(&tree, Re2)?;
    regex::RegexBuilder::new(text)
        .size_limit(COMPILED_BYTES)
        .build()
        .map(|_| ())
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => format!("{text:?} is too costly: use smaller repeat counts"),
            other => format!("not a regular expression: {other}"),
        })
}

/// Bytes of the program that it becomes, about, without making it: what is repeated stands in it as often. No more than
/// are made of any.
pub fn program_bytes(text: &str) -> usize {
    regex_syntax::parse(text).map_or(0, |tree| bytes_of(&tree).min(COMPILED_BYTES))
}

fn bytes_of(tree: &Hir) -> usize {
    const STATE: usize = 24;
    match tree.kind() {
        HirKind::Empty | HirKind::Look(_) => STATE,
        HirKind::Literal(text) => STATE * text.0.len(),
        HirKind::Class(Class::Bytes(class)) => STATE * class.ranges().len(),
        HirKind::Class(Class::Unicode(class)) => {
            let ranges = class.iter().map(|range| STATE * range.end().len_utf8());
            ranges.sum()
        }
        HirKind::Repetition(repeated) => {
            let times = repeated.max.unwrap_or(repeated.min.max(1));
            let each = STATE + bytes_of(&repeated.sub);
            each.saturating_mul(usize::try_from(times).unwrap_or(usize::MAX))
        }
        HirKind::Capture(group) => 2 * STATE + bytes_of(&group.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().map(bytes_of).fold(STATE, usize::saturating_add)
        }
    }
}

/// Refuses what RE2 refuses or reads differently.
struct Re2;

impl ast::Visitor for Re2 {
    type Output = ();
    type Err = String;

    fn finish(self) -> Result<(), String> {
        Ok(())
    }

    fn visit_pre(&mut self, tree: &Ast) -> Result<(), String> {
        match tree {
            Ast::Flags(flags) => check_flags(&flags.flags),
            Ast::Group(group) => match &group.kind {
                ast::GroupKind::NonCapturing(flags) => check_flags(flags),
                _ => Ok(()),
            },
            Ast::Repetition(repetition) => match &repetition.op.kind {
                ast::RepetitionKind::Range(range) => {
                    let most = match range {
                        ast::RepetitionRange::Exactly(n) | ast::RepetitionRange::AtLeast(n) => *n,
                        ast::RepetitionRange::Bounded(_, n) => *n,
                    };
                    if most > REPEATS {
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
                check_literal(&range.start)?;
                check_literal(&range.end)
            }
            ast::ClassSetItem::Bracketed(_) => unknown_to_re2("a class within a class (write \"\\[\")"),
            _ => Ok(()),
        }
    }

    fn visit_class_set_binary_op_pre(&mut self, _: &ast::ClassSetBinaryOp) -> Result<(), String> {
        unknown_to_re2("set operations in a class (\"&&\", \"--\", \"~~\")")
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
    use super::{COMPILED_BYTES, check_regex, program_bytes};

    #[test]
    fn what_it_becomes_is_told_by_what_is_repeated() {
        let plain = program_bytes("/orders/[0-9]+");
        assert!((100..1000).contains(&plain), "{plain}");
        let repeated = program_bytes("(/orders/[0-9]+){100}");
        assert!((100 * plain..150 * plain).contains(&repeated), "{repeated}");
        let endless = program_bytes("((((a{1000}){1000}){1000}){1000}){1000}");
        assert_eq!(endless, COMPILED_BYTES);
        assert_eq!(program_bytes("("), 0);
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
    }
}

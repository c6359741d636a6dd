//! Regular expressions that mean the same to Envoy's engine (RE2) and to ours, which `explain` uses.

use regex::Regex;
use regex_syntax::ast::{self, Ast};

/// Compiled size of a user's regular expression, in bytes. Envoy's bootstrap lifts RE2's own bound of 100 instructions
/// (`re2.max_program_size.error_level`), which a path of 100 letters would reach: this one stands in its place.
const COMPILED_BYTES: usize = 256 * 1024;
const CHARACTERS: usize = 1024;
/// Characters in classes that are without case, of one regular expression: some that have all there are.
const FOLDED: usize = 4 * ALL;
const ALL: usize = 0x11_0000;

const CATEGORIES: &[&str] = &[
    "C", "Cc", "Cf", "Co", "L", "Ll", "Lm", "Lo", "Lt", "Lu", "M", "Mc", "Me", "Mn", "N", "Nd", "Nl", "No",
    "P", "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S", "Sc", "Sk", "Sm", "So", "Z", "Zl", "Zp", "Zs",
];
/// Those in use. A rare one is refused here, not by Envoy.
const SCRIPTS: &[&str] = &[
    "Arabic",
    "Armenian",
    "Bengali",
    "Bopomofo",
    "Braille",
    "Cherokee",
    "Common",
    "Coptic",
    "Cyrillic",
    "Devanagari",
    "Ethiopic",
    "Georgian",
    "Greek",
    "Gujarati",
    "Gurmukhi",
    "Han",
    "Hangul",
    "Hebrew",
    "Hiragana",
    "Inherited",
    "Kannada",
    "Katakana",
    "Khmer",
    "Lao",
    "Latin",
    "Malayalam",
    "Mongolian",
    "Myanmar",
    "Oriya",
    "Sinhala",
    "Syriac",
    "Tamil",
    "Telugu",
    "Thaana",
    "Thai",
    "Tibetan",
    "Yi",
];
/// RE2's bound on `{n,m}`.
const REPEATS: u32 = 1000;

pub fn check_regex(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("an empty regular expression matches the empty text alone: Envoy refuses it".to_owned());
    }
    if text.chars().count() > CHARACTERS {
        return Err(format!(
            "a regular expression is at most {CHARACTERS} characters long"
        ));
    }
    let tree = ast::parse::Parser::new()
        .parse(text)
        .map_err(|error| format!("not a regular expression: {}", error.kind()))?;
    let of_re2 = ast::visit(&tree, Re2::new(text))?;
    if !is_repeated_in_measure(&tree, REPEATS) {
        return Err(format!(
            "repeat counts within each other multiply to at most {REPEATS}"
        ));
    }
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

/// Bytes of the program that it becomes, about, without making it. No more than are made of any.
pub fn program_bytes(text: &str) -> usize {
    // What is put together of two is longer than any that is written.
    if text.len() > 16 * CHARACTERS {
        return COMPILED_BYTES;
    }
    let tree = ast::parse::Parser::new().parse(text);
    tree.map_or(0, |tree| bytes_of(&tree).min(COMPILED_BYTES))
}

/// RE2 divides its bound by each count on the way inwards, and nothing may be left over for none.
fn is_repeated_in_measure(tree: &Ast, left: u32) -> bool {
    match tree {
        Ast::Repetition(repetition) => {
            let left = match &repetition.op.kind {
                ast::RepetitionKind::Range(range) => left / most(range).max(1),
                _ => left,
            };
            left > 0 && is_repeated_in_measure(&repetition.ast, left)
        }
        Ast::Group(group) => is_repeated_in_measure(&group.ast, left),
        Ast::Alternation(parts) => parts.asts.iter().all(|part| is_repeated_in_measure(part, left)),
        Ast::Concat(parts) => parts.asts.iter().all(|part| is_repeated_in_measure(part, left)),
        _ => true,
    }
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
        Ast::ClassUnicode(class) => ranges_of(class) * STATE,
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
    match set {
        ast::ClassSet::Item(ast::ClassSetItem::Unicode(class)) => ranges_of(class),
        ast::ClassSet::Item(ast::ClassSetItem::Union(union)) => {
            let of = |item: &ast::ClassSetItem| match item {
                ast::ClassSetItem::Unicode(class) => ranges_of(class),
                _ => 2,
            };
            union.items.iter().map(of).sum()
        }
        // The others of its kind are refused.
        _ => 1,
    }
}

/// A script has a few ranges, a category hundreds.
fn ranges_of(class: &ast::ClassUnicode) -> usize {
    match &class.kind {
        ast::ClassUnicodeKind::Named(name) if name.len() > 2 => 100,
        _ => 1000,
    }
}

fn most(range: &ast::RepetitionRange) -> u32 {
    match range {
        ast::RepetitionRange::Exactly(n) | ast::RepetitionRange::AtLeast(n) => *n,
        ast::RepetitionRange::Bounded(_, n) => *n,
    }
}

/// Refuses what RE2 refuses or reads differently.
struct Re2<'a> {
    text: &'a str,
    /// Somewhere it is without case.
    folds: bool,
    /// Characters that stand in classes: each is looked up, where case does not matter.
    width: usize,
}

impl ast::Visitor for Re2<'_> {
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
                ast::GroupKind::CaptureName { name, .. } => {
                    let is_of_words = |c: char| c.is_ascii_alphanumeric() || c == '_';
                    match name.name.chars().all(is_of_words) {
                        true => Ok(()),
                        false => unknown_to_re2("names of groups but of letters, digits and \"_\""),
                    }
                }
                _ => Ok(()),
            },
            Ast::ClassUnicode(class) => self.of_unicode(class),
            Ast::Repetition(repetition) if matches!(*repetition.ast, Ast::Repetition(_)) => {
                unknown_to_re2("a repetition of a repetition (write \"(?:a*)+\")")
            }
            Ast::Repetition(repetition) => match &repetition.op.kind {
                ast::RepetitionKind::Range(range) => {
                    let span = &repetition.op.span;
                    let written = self.text.get(span.start.offset..span.end.offset);
                    if written.is_some_and(|written| written.contains(char::is_whitespace)) {
                        return unknown_to_re2("spaces in a repeat count");
                    }
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
            ast::ClassSetItem::Unicode(class) => self.of_unicode(class),
            // Of all characters but a few.
            ast::ClassSetItem::Ascii(_) | ast::ClassSetItem::Perl(_) => {
                self.width += ALL;
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

impl<'a> Re2<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            folds: false,
            width: 0,
        }
    }

    /// RE2 has its categories by their short names, and its scripts, written so and no other way.
    fn of_unicode(&mut self, class: &ast::ClassUnicode) -> Result<(), String> {
        self.width += ALL;
        let is_known = match &class.kind {
            ast::ClassUnicodeKind::OneLetter(letter) => "CLMNPSZ".contains(*letter),
            ast::ClassUnicodeKind::Named(name) => {
                CATEGORIES.contains(&name.as_str()) || SCRIPTS.contains(&name.as_str())
            }
            ast::ClassUnicodeKind::NamedValue { .. } => false,
        };
        match is_known {
            true => Ok(()),
            false => unknown_to_re2(
                "this class of Unicode: categories such as \\pL and \\p{Lu}, scripts such as \\p{Greek}",
            ),
        }
    }

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
    use super::{CATEGORIES, COMPILED_BYTES, SCRIPTS, check_regex, full_match, program_bytes};

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
            r"\p{Greek}{1,11}\P{Lu}[\pN_]",
            "(?:a{31}){32}",
            "(?:a{1,}){1000}",
            "(?:a{0}){5}",
            "(?:a*)+?",
            "a{2}?",
        ] {
            assert_eq!(check_regex(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn all_classes_of_unicode_that_are_named_here_are_known() {
        for name in CATEGORIES.iter().chain(SCRIPTS) {
            assert_eq!(check_regex(&format!("\\p{{{name}}}")), Ok(()), "{name}");
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
            "/[^/]++",
            "a**",
            "a{2}{3}",
            "(a{40}){30}",
            "(?:a{2,}){600}",
            "(?:a{32}){32}",
            "a+?*",
            r"\p{Letter}",
            r"\p{greek}",
            r"\pl",
            r"\p{sc=Greek}",
            "(?P<a.b>x)",
            "a{ 2 }",
            "(?-u:a)",
            "((((a{1,100}){1,100}){1,100}){1,100})",
        ] {
            assert!(check_regex(bad).is_err(), "{bad}");
        }
        assert!(check_regex(&"a".repeat(1025)).is_err());
        // Each of the characters of these classes is looked up, many times over.
        let wide = "[!-\u{10ffff}]".repeat(5);
        assert_eq!(check_regex(&wide), Ok(()));
        assert!(check_regex(&format!("(?i){wide}")).is_err());
        assert!(check_regex(&format!("(?i:a{wide})")).is_err());
        assert!(check_regex(&format!("(?i){}", r"[\S]".repeat(5))).is_err());
        assert_eq!(check_regex(r"(?i)[^/]+.*[a-z][\w-]+\pL"), Ok(()));
    }
}

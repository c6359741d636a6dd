use super::*;
use crate::diagnostics::{Code, Diagnostic};
use crate::model::DocumentId;

fn schema() -> BlockSchema {
    let inner = BlockSchema::new("inner", &[], "")
        .attribute("deep", Type::Text, None, "", "")
        .attribute("n", Type::Integer(-10, 10), None, "", "");
    BlockSchema::new("", &[], "").block(
        BlockSchema::new("thing", &["name"], "")
            .attribute("text", Type::Text, None, "", "")
            .attribute("number", Type::Number(-1e9, 1e9), None, "", "")
            .attribute("list", Type::List(&Type::String), None, "", "")
            .attribute("map", Type::Map(&Type::String, &Type::String), None, "", "")
            .block(inner, Occurs::Many),
        Occurs::Many,
    )
}

fn source(text: &str) -> Source {
    Source::new(DocumentId::File("t".into()), text.into())
}

fn read(text: &str) -> Result<Body, Vec<Diagnostic>> {
    parse(&source(text), &schema(), &Limits::default())
}

/// The value of `text` in the first block.
fn text_of(text: &str) -> String {
    let body = read(text).unwrap_or_else(|problems| panic!("{text}: {problems:?}"));
    match &body.blocks[0].attribute_value("text").kind {
        ValueKind::String(value) => value.clone(),
        other => panic!("{other:?}"),
    }
}

impl Block {
    fn attribute_value(&self, name: &str) -> &Value {
        &self.body.attribute(name).unwrap().value
    }
}

/// What stands at a problem's place.
fn marked(text: &str) -> (Code, String, u32, u32) {
    let source = source(text);
    let mut problems = match parse(&source, &schema(), &Limits::default()) {
        Ok(body) => check(&source, &body, &schema()),
        Err(problems) => problems,
    };
    assert_eq!(problems.len(), 1, "{problems:#?}");
    let problem = problems.remove(0);
    let origin = problem.origin.unwrap();
    let marked = text[origin.span.start..origin.span.end].to_owned();
    (problem.code, marked, origin.line, origin.column)
}

#[test]
fn strings_of_both_forms_mean_the_same() {
    for (hcl, json, expected) in [
        (r#""a\/b""#, r#""a\/b""#, None),
        (r#""é""#, r#""\u00e9""#, Some("é")),
        (r#""\u00e9""#, r#""é""#, Some("é")),
        (r#""😀""#, r#""\ud83d\ude00""#, Some("😀")),
        (r#""$${x}""#, r#""$${x}""#, Some("${x}")),
        (r#""%%{x}""#, r#""%%{x}""#, Some("%{x}")),
        (r#""100%""#, r#""100%""#, Some("100%")),
        (r#""$5 $$ %%""#, r#""$5 $$ %%""#, Some("$5 $$ %%")),
        (r#""a\tb\\\"""#, r#""a\tb\\\"""#, Some("a\tb\\\"")),
    ] {
        let json = format!(r#"{{"thing": {{"x": {{"text": {json}}}}}}}"#);
        let expected = expected.unwrap_or("a/b");
        assert_eq!(text_of(&json), expected, "{json}");
        // HCL has no `\/`.
        if !hcl.contains("\\/") {
            let hcl = format!("thing \"x\" {{\n  text = {hcl}\n}}\n");
            assert_eq!(text_of(&hcl), expected, "{hcl}");
        }
    }
}

#[test]
fn here_documents_are_text() {
    assert_eq!(
        text_of("thing \"x\" {\n  text = <<-EOT\n    one\n      two ( [ {\n  EOT\n}\n"),
        "one\n  two ( [ {\n"
    );
    let (code, _, line, _) = marked("thing \"x\" {\n  text = <<EOT\na ${b} c\nEOT\n}\n");
    assert_eq!((code, line), (Code::InvalidValue, 3));
}

#[test]
fn brackets_in_text_are_no_nesting() {
    let comments = "# :( [ {\n".repeat(200);
    let text = format!(
        "{comments}thing \"x\" {{\n  text = \"{}\"\n}}\n",
        "([".repeat(100)
    );
    assert!(read(&text).is_ok());
    let lists = format!(
        "{{\"thing\": {{\"x\": {{\"text\": \"{}\"}}}}}}",
        "([{".repeat(100)
    );
    assert!(read(&lists).is_ok());
}

#[test]
fn deep_nesting_is_refused_in_both_forms() {
    for text in [
        format!("a = {}1{}\n", "[".repeat(5000), "]".repeat(5000)),
        format!("a = {}1\n", "!".repeat(5000)),
        format!("{}{}\n", "a {\n".repeat(5000), "}\n".repeat(5000)),
        format!("{{\"a\": {}1{}}}", "[".repeat(100), "]".repeat(100)),
        format!("{{\"a\": {}1{}}}", "[".repeat(5000), "]".repeat(5000)),
    ] {
        let problems = read(&text).unwrap_err();
        assert_eq!(problems[0].code, Code::TooLarge, "{problems:?}");
    }
}

/// Each would be read for ever.
#[test]
fn operators_and_brackets_in_one_another_are_refused_unread() {
    for nested in [
        "0. 0/0%{e. 0/0%{",
        "0/0%(",
        "e.0/0%[",
        "0-0-f(",
        "0/0%f(e.0/0%f(",
        "0==0!={",
        "0&&0||{",
        "0 ?0/0: {",
    ] {
        let problems = read(&format!("a = {}\n", nested.repeat(40))).unwrap_err();
        assert_eq!(problems[0].code, Code::TooLarge, "{nested}: {problems:?}");
    }
}

#[test]
fn expressions_are_refused_unread_each_at_its_place() {
    let deep = format!("a = \"{}{}\"\n", "${\"".repeat(5000), "\"}".repeat(5000));
    let hidden = format!("a = {}\n", "0/0%\"${e.0/0%\"${".repeat(40));
    let two = "a = \"${b}\"\nc = \"${d(\"e\")}\" # \"${f}\"\n";
    for (text, count) in [
        (deep.as_str(), 1),
        (&hidden, 1),
        (two, 2),
        ("a = [for b in c : b]\n", 1),
    ] {
        let problems = read(text).unwrap_err();
        assert!(problems.len() >= count, "{problems:?}");
        assert!(
            problems.iter().all(|problem| problem.code == Code::InvalidValue),
            "{problems:?}"
        );
    }
    let lines: Vec<u32> = read(two)
        .unwrap_err()
        .iter()
        .filter_map(|problem| Some(problem.origin.as_ref()?.line))
        .collect();
    assert_eq!(lines, [1, 2]);
}

/// Behind it all text is code, with many operators.
#[test]
fn a_forgotten_quote_is_told_of_and_not_what_it_makes_of_the_rest() {
    let text = format!(
        "thing \"x\" {{\n  text = \"a\n{}}}\n",
        "  path = \"/api/v1/b\"\n".repeat(20)
    );
    let problems = read(&text).unwrap_err();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].code, Code::SyntaxError, "{problems:?}");
    assert_eq!(problems[0].origin.as_ref().unwrap().line, 2);
}

#[test]
fn a_place_far_along_a_line_has_its_column_in_characters() {
    for before in [0_u32, 1, 500, 1020, 1021, 1022, 1023, 1024, 3000] {
        let text = format!(
            "# ä\nthing \"x\" {{\n  /* {} */ txt = 1\n}}\n",
            "ä".repeat(before as usize)
        );
        let (_, mark, line, column) = marked(&text);
        assert_eq!((mark.as_str(), line, column), ("txt", 3, before + 10));
    }
}

#[test]
fn problems_point_at_their_place() {
    use Code::*;
    for (text, code, mark, line, column) in [
        ("thing \"x\" {\n  txt = 1\n}\n", UnknownKey, "txt", 2, 3),
        ("thing \"x\" {\n  text = 1\n}\n", InvalidValue, "1", 2, 10),
        ("thing \"x\" {\n  /* ä */ text = 1\n}\n", InvalidValue, "1", 2, 18),
        (
            "thing \"x\" {\n  list = [\"a\", 2]\n}\n",
            InvalidValue,
            "2",
            2,
            16,
        ),
        ("thing \"x\" {\n  number = !5\n}\n", InvalidValue, "!5", 2, 12),
        ("thing {\n}\n", MissingKey, "thing", 1, 1),
        (
            "thing \"x\" {\n  inner { n = 11 }\n}\n",
            InvalidValue,
            "11",
            2,
            15,
        ),
        ("thing \"x\" {\r\n  txt = 1\r\n}\r\n", UnknownKey, "txt", 2, 3),
        (
            "{\"thing\": {\"x\": {\n  \"txt\": 1}}}",
            UnknownKey,
            "\"txt\"",
            2,
            3,
        ),
        (
            "\n {\"thing\": {\"x\": {\n  \"text\": 1}}}",
            InvalidValue,
            "1",
            3,
            11,
        ),
        (
            "{\"thing\": {\"x\": {\n  \"inner\": {\"n\": 11}}}}",
            InvalidValue,
            "11",
            2,
            18,
        ),
        (
            "{\"thing\": {\"x\": {\n \"text\": \"${a}\"}}}",
            InvalidValue,
            "\"${a}\"",
            2,
            10,
        ),
        (
            "{\"thing\": {\"x\": {\n \"text\": \"\\ud83d\"}}}",
            SyntaxError,
            "\"\\ud83d\"",
            2,
            10,
        ),
        (
            "{\"thing\": {\"x\": {\"text\": \"a\",\n \"text\": \"b\"}}}",
            Conflict,
            "\"text\"",
            2,
            2,
        ),
        (
            "{\"thing\": {\"x\": {\"map\": {\"a\": \"1\",\n \"a\": \"2\"}}}}",
            InvalidValue,
            "\"a\"",
            2,
            2,
        ),
        (
            "{\"thing\": {\"x\": {}}, \"thing\":\n {\"x\": {}}}",
            Conflict,
            "\"x\"",
            2,
            3,
        ),
        (
            "{\"thing\": {\"x\": {\"iner\": {}}}}",
            UnknownKey,
            "\"iner\"",
            1,
            18,
        ),
        ("{\"thing\": {\"x\": 5}}", InvalidValue, "5", 1, 17),
        (
            "{\"thing\": {\"x\": {\n  \"text\": tru}}}",
            SyntaxError,
            "",
            2,
            14,
        ),
    ] {
        let found = marked(text);
        assert_eq!(found, (code, mark.to_owned(), line, column), "{text}");
    }
}

#[test]
fn labels_nest_and_lists_repeat_in_json() {
    let body = read(r#"{"thing": [{"a": {}}, {"b": [{}, {"inner": [{"n": 1}, {"n": -2}]}]}]}"#).unwrap();
    let shown: Vec<String> = body
        .blocks
        .iter()
        .map(|block| format!("{} {}", block.label(0), block.body.blocks.len()))
        .collect();
    assert_eq!(shown, ["a 0", "b 0", "b 2"]);
    assert!(matches!(
        body.blocks[2].body.blocks[1].attribute_value("n").kind,
        ValueKind::Integer(-2)
    ));
}

#[test]
fn hosts_and_paths() {
    for (text, expected) in [
        ("WWW.Example.com.", "www.example.com"),
        ("*.Example.com", "*.example.com"),
        ("*", "*"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::0:1", "[2001:db8::1]"),
        ("[::1]", "[::1]"),
        ("a_b.example", "a_b.example"),
    ] {
        assert_eq!(parse_hostname(text).as_deref(), Ok(expected));
    }
    for bad in [
        "",
        ".",
        "a..",
        "a..b",
        "a:80",
        "[::1]:80",
        "*.",
        "*a.com",
        "a.*.com",
        "**",
        "-a",
        "a b",
        "ä.de",
        "127.1",
        "0x7f.0x1",
        "2130706433",
        "[1.2.3.4]",
    ] {
        assert!(parse_hostname(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_duration_longer_than_can_be_counted_is_out_of_range() {
    let ty = Type::Duration(10, 60_000);
    assert!(check_text(&ty, "10s").is_ok());
    // 2^64 milliseconds and 384 more.
    for long in ["61s", "18446744073709552s", "100000000000years"] {
        assert!(check_text(&ty, long).is_err(), "{long}");
    }
}

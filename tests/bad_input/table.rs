use std::collections::BTreeSet;

use super::{cases, elsewhere};

#[test]
fn every_case_is_told_and_harms_only_itself() {
    let mut names = BTreeSet::new();
    for case in cases::all() {
        assert!(names.insert(case.what), "two cases are called {:?}", case.what);
        let shown = case.play();
        let name: String = case
            .what
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_lowercase()
                } else {
                    '_'
                }
            })
            .collect();
        insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!(name, shown);
        });
    }
    // A snapshot without a case.
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad_input/snapshots");
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), names.len());
}

#[test]
fn the_page_is_what_the_cases_show() {
    let mut page = String::from(
        "# Bad input\n\n\
         Written from the tests (`UPDATE_REFERENCE=1 cargo test --test bad_input`). Codes are explained in \
         [diagnostics](reference/diagnostics.md).\n\n\
         ## Documents\n\n\
         Each row is a test. In every case all other documents serve as before.\n\n\
         | Input | Code | What stays in service |\n|---|---|---|\n",
    );
    for case in cases::all() {
        let codes: BTreeSet<&str> = case.codes.iter().map(|code| code.as_str()).collect();
        let codes: Vec<String> = codes.into_iter().map(|code| format!("`{code}`")).collect();
        let codes = if codes.is_empty() {
            "none".to_owned()
        } else {
            codes.join(", ")
        };
        page.push_str(&format!("| {} | {codes} | {} |\n", case.what, case.stays.words()));
    }
    for area in elsewhere::AREAS {
        page.push_str(&format!(
            "\n## {}\n\n| Input | What happens | Shown by |\n|---|---|---|\n",
            area.title
        ));
        for row in area.rows {
            let tests: Vec<String> = row.tests.iter().map(|test| format!("`{test}`")).collect();
            assert!(!tests.is_empty(), "{}: shown by nothing", row.input);
            page.push_str(&format!(
                "| {} | {} | {} |\n",
                row.input,
                row.outcome,
                tests.join(", ")
            ));
        }
    }
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/bad-input.md");
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == page, "docs/bad-input.md: run with UPDATE_REFERENCE=1");
}

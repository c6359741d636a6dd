//! The generated pages are what the schema says today. `UPDATE_REFERENCE=1` writes them.

use portreeve::agent::settings::settings_markdown;
use portreeve::config::{diagnostics_markdown, reference_markdown};

#[test]
fn reference_of_documents() {
    assert_page("docs/reference/documents.md", &reference_markdown());
}

#[test]
fn reference_of_diagnostics() {
    assert_page("docs/reference/diagnostics.md", &diagnostics_markdown());
}

#[test]
fn reference_of_settings() {
    assert_page("docs/reference/settings.md", &settings_markdown());
}

fn assert_page(page: &str, expected: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(&path, expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    for (index, (found, expected)) in found.lines().zip(expected.lines()).enumerate() {
        assert_eq!(
            found,
            expected,
            "{page}:{}: run with UPDATE_REFERENCE=1",
            index + 1
        );
    }
    assert!(found == expected, "{page}: run with UPDATE_REFERENCE=1");
}

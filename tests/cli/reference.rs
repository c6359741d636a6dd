//! The generated reference is what the program says.

use std::path::Path;

/// Compares, or writes under UPDATE_REFERENCE=1.
fn check(name: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs/reference")
        .join(name);
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, made).unwrap();
        return;
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == made,
        "docs/reference/{name} is not what the source says: UPDATE_REFERENCE=1 cargo test --test cli reference"
    );
}

#[test]
fn reference_of_the_command_line() {
    check("cli.md", &portreeve::cli::reference());
}

#[test]
fn reference_of_the_api() {
    check("api.md", &portreeve::admin::api_reference());
}

#[test]
fn reference_of_the_metrics() {
    check("metrics.md", &portreeve::admin::metrics_reference());
}

use std::sync::LazyLock;

use portreeve::fuzz::{Target, targets};

pub fn target() -> &'static Target {
    static CHOSEN: LazyLock<&'static Target> = LazyLock::new(|| {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        targets().find(|target| target.name == name).unwrap_or_else(|| {
            let names: Vec<&str> = targets().map(|target| target.name).collect();
            eprintln!("FUZZ_TARGET={name:?} is no target\nknown: {}", names.join(" "));
            std::process::exit(2)
        })
    });
    *CHOSEN
}

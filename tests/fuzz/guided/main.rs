//! All targets of `portreeve::fuzz` in one libFuzzer program; `FUZZ_TARGET` says which. `make fuzz` builds and runs it, with
//! what libFuzzer needs to see which code an input reaches; built in any other way it only says so.
#![cfg_attr(fuzzing, no_main)]
#![allow(clippy::print_stderr)]

#[cfg(fuzzing)]
mod chosen;

// Makes two functions that libFuzzer's C++ calls by name. `no_mangle` counts as unsafe code, which the crate forbids; the lint
// does not look into macros of other crates, and there is nothing unsafe besides.
#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(init: { chosen::target(); }, |input: &[u8]| (chosen::target().run)(input));

#[cfg(not(fuzzing))]
fn main() {
    eprintln!(
        "Nothing is fuzzed by this build: `make fuzz` makes another one. `make test` replays what it keeps."
    );
}

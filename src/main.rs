//! The `portreeve` program.

use std::process::ExitCode;

/// A quarter of a change's time is memory asked for and given back: docs/adr/0012-jemalloc.md.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // First thing: everything that speaks TLS takes the process-wide provider. It can only be there already if this
    // runs twice, so a refusal means nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    portreeve::cli::install_panic_hook();
    portreeve::cli::run(std::env::args_os())
}

//! What a user sees of a fault of ours.

use std::io::Write;
use std::panic;

/// Reports a panic in the log, if there is one, and on standard error. Never its values: they may hold secrets.
pub fn install_panic_hook() {
    panic::set_hook(Box::new(|info| {
        let message = info
            .payload()
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| info.payload().downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        tracing::error!(%place, %thread, message, "internal fault");
        let report = format!(
            "portreeve: internal fault in thread {thread:?} at {place}: {message}\n\
             portreeve: this is a bug; please report it with the lines above and `portreeve version`\n"
        );
        // Without a standard error there is nobody to tell.
        let _ = std::io::stderr().write_all(report.as_bytes());
    }));
}

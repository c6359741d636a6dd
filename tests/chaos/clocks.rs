//! The agent's clock jumps: an hour on, an hour back, a day on. Envoy and Consul keep theirs.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::Method;

use crate::course::{Course, PLAIN_RULE};
use crate::support::line::Line;
use crate::support::program;
use crate::support::stack::Options;

/// Debian's libfaketime, and where other systems have it.
const LIBRARIES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
];

#[tokio::test(flavor = "multi_thread")]
async fn clock_jumps() {
    let Some(library) = LIBRARIES.iter().map(PathBuf::from).find(|path| path.exists()) else {
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        println!("clock_jumps: not played: there is no libfaketime (Debian: apt-get install faketime)");
        assert!(!ci, "CI must play this");
        return;
    };
    let directory = crate::support::scratch_directory("clock");
    let clock = directory.path().join("clock");
    set(&clock, "+0s");
    // What the agent starts is not to have it: an Envoy with this library never gets to its own first line.
    let envoy = directory.path().join("envoy");
    let script = format!(
        "#!/bin/sh\nunset LD_PRELOAD\nexec {} \"$@\"\n",
        program("envoy").display()
    );
    std::fs::write(&envoy, script).unwrap();
    std::fs::set_permissions(&envoy, std::fs::Permissions::from_mode(0o755)).unwrap();
    let options = Options {
        vault: true,
        vault_line: Some(Line::start().await),
        leave_envoy: true,
        envoy: Some(envoy),
        ..Options::default()
    };
    let mut course = Course::begin_with("clock_jumps", options).await;
    // Its Envoy was started without: only the agent that takes it over has the other clock.
    course.stack.agent.terminate();
    let env = &mut course.stack.agent.process.launch_mut().env;
    env.push(("LD_PRELOAD".into(), library.into()));
    env.push(("FAKETIME_TIMESTAMP_FILE".into(), clock.clone().into()));
    env.push(("FAKETIME_NO_CACHE".into(), "1".into()));
    env.push(("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into()));
    env.push(("DONT_FAKE_MONOTONIC".into(), "1".into()));
    course.agent_returns().await;
    // It lives for 25 hours: of those an hour is left when the clock is a day on.
    course.ask_for_another_certificate().await;
    course.certificate_arrives().await;
    for (jump, seconds) in [("+1h", 3600), ("-1h", -3600), ("+1d", 86_400), ("+0s", 0)] {
        set(&clock, jump);
        course.lasts(300).await;
        course.change(PLAIN_RULE).await;
        course.recovers().await;
        // When it published the change, by its own clock. A fault that was not played proves nothing.
        let ahead = published_at(&course).await - since_epoch(SystemTime::now());
        assert!(
            (ahead - seconds).abs() < 900,
            "{jump}: the agent's clock is {ahead} s ahead of ours"
        );
        if seconds == 86_400 {
            course.is_told(&["certificate-expiry", "www"]).await;
        }
    }
    course.end().await;
}

fn since_epoch(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

async fn published_at(course: &Course) -> i64 {
    let status = course.stack.agent.api(Method::GET, "/v1/status", "").await;
    let status = status.unwrap().json();
    let published = status["gateways"][0]["published_at"].as_str();
    let published = published.unwrap_or_else(|| panic!("no time of publication: {status}"));
    since_epoch(humantime::parse_rfc3339(published).unwrap())
}

fn set(clock: &Path, jump: &str) {
    // Put in place whole: it is read at every look at the clock.
    let next = clock.with_extension("next");
    std::fs::write(&next, format!("{jump}\n")).unwrap();
    std::fs::rename(&next, clock).unwrap();
}

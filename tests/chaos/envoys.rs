//! Envoy is replaced on purpose, and dies.

use std::time::Duration;

use hyper::Method;

use crate::course::{Course, PLAIN_RULE};
use crate::support::wait_for;

#[tokio::test(flavor = "multi_thread")]
async fn envoy_restarted() {
    let mut course = Course::begin("envoy_restarted").await;
    for _ in 0..course.rounds(1) {
        let before = course.stack.envoy_pid();
        // Refused (409) while the one before last still drains.
        wait_for("a planned restart", Duration::from_secs(30), async || {
            course
                .stack
                .agent
                .api(Method::POST, "/v1/envoy/restart", "")
                .await?
                .ok()
        })
        .await;
        assert_ne!(course.stack.envoy_pid(), before);
        course.change(PLAIN_RULE).await;
        course.recovers().await;
    }
    course.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_killed() {
    let mut course = Course::begin("envoy_killed").await;
    course.kill_envoy().await;
    course.recovers().await;
    course.end().await;
}

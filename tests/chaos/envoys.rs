//! Envoy is replaced on purpose, and dies.

use crate::course::{Course, PLAIN_RULE};

#[tokio::test(flavor = "multi_thread")]
async fn envoy_restarted() {
    let mut course = Course::begin("envoy_restarted").await;
    for _ in 0..course.rounds(1) {
        course.restart_envoy().await;
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

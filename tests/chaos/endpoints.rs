//! Instances come and go, one by one and all at once.

use std::time::{Duration, Instant};

use crate::course::{Course, PATIENCE};
use crate::loads::DRAIN;
use crate::support::backend::Backend;
use crate::support::wait_for;

/// One instance among ten that still had its share would get eight requests within it, at the lowest rate.
const QUIET: Duration = Duration::from_secs(1);

/// So many answers of the new ones come meanwhile: whoever waits for quiet is not to find a machine that stands still.
const ENOUGH: u64 = 5;

/// As deploy tools do: the new one passes, the old one is deregistered, and ends when it has drained.
#[tokio::test(flavor = "multi_thread")]
async fn endpoints_rolled() {
    let mut course = Course::begin("endpoints_rolled").await;
    let mut before = Backend::start("rolled-0").await;
    course.stack.register("orders", &before).await;
    for round in 1..=course.rounds(3) {
        let next = Backend::start(&format!("rolled-{round}")).await;
        let since = Instant::now();
        course.stack.register("orders", &next).await;
        gives_way(&mut course, since, &mut before, next).await;
    }
    course.recovers().await;
    course.end().await;
    before.stop().await;
}

/// All instances of one version give way to all of the next, which were there beside them for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn deployments_replaced() {
    let mut course = Course::begin("deployments_replaced").await;
    let mut old: Vec<Backend> = Vec::new();
    for round in 0..course.rounds(2) {
        let mut new = Vec::new();
        let since = Instant::now();
        for number in 0..4 {
            let backend = Backend::start(&format!("v{round}-{number}")).await;
            course.stack.register("orders", &backend).await;
            new.push(backend);
        }
        let leaving: Vec<&Backend> = match round {
            0 => vec![&course.one],
            _ => old.iter().collect(),
        };
        for backend in &leaving {
            course.stack.deregister("orders", backend).await;
        }
        let coming: Vec<&Backend> = new.iter().collect();
        let converge = take_turns(&course, since, &coming, &leaving).await;
        course.converged(converge);
        for mut backend in std::mem::replace(&mut old, new) {
            backend.stop().await;
        }
    }
    course.recovers().await;
    course.end().await;
    drop(old);
}

/// The next one is there, since then: the one before goes, and ends when it has drained.
pub async fn gives_way(course: &mut Course, since: Instant, before: &mut Backend, next: Backend) {
    course.stack.deregister("orders", before).await;
    let converge = take_turns(course, since, &[&next], &[before]).await;
    course.converged(converge);
    std::mem::replace(before, next).stop().await;
}

/// Waits until each of the new instances has answered a request and the old ones get none any more, and for what these still have.
/// Returns how long the first two took.
async fn take_turns(course: &Course, since: Instant, new: &[&Backend], old: &[&Backend]) -> Duration {
    for backend in new {
        wait_for(&format!("an answer of {}", backend.name), PATIENCE, async || {
            anyhow::ensure!(course.answers_of(&backend.name) > 0, "none yet");
            Ok(())
        })
        .await;
    }
    let arrived = since.elapsed();
    let got = || -> u64 { old.iter().map(|backend| backend.requests()).sum() };
    let answers = || -> u64 { new.iter().map(|backend| course.answers_of(&backend.name)).sum() };
    let (mut before, mut last, mut answered) = (got(), Duration::ZERO, answers());
    // Not where nobody sends or answers for a while.
    while since.elapsed() < last.max(arrived) + QUIET || answers() < answered + ENOUGH {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = got();
        if now != before {
            (before, last, answered) = (now, since.elapsed(), answers());
        }
        assert!(last < PATIENCE, "instances that are gone still get requests");
    }
    tokio::time::sleep(DRAIN - QUIET).await;
    assert_eq!(got(), before, "instances that are gone get requests again");
    arrived.max(last)
}

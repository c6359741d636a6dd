//! Instances come and go, one by one and all at once.

use crate::course::Course;
use crate::loads::DRAIN;
use crate::support::backend::Backend;

/// As deploy tools do: the new one passes, the old one is deregistered, and ends when it has drained.
#[tokio::test(flavor = "multi_thread")]
async fn endpoints_rolled() {
    let mut course = Course::begin("endpoints_rolled").await;
    let mut before = Backend::start("rolled-0").await;
    course.stack.register("orders", &before).await;
    for round in 1..=course.rounds(3) {
        let next = Backend::start(&format!("rolled-{round}")).await;
        course.stack.register("orders", &next).await;
        course.stack.deregister("orders", &before).await;
        tokio::time::sleep(DRAIN).await;
        before.stop().await;
        before = next;
    }
    course.recovers().await;
    course.end().await;
    before.stop().await;
}

/// All instances of one version give way to all of the next, which were there beside them for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn deployments_replaced() {
    let mut course = Course::begin("deployments_replaced").await;
    let mut old = Vec::new();
    for round in 0..course.rounds(2) {
        let mut new = Vec::new();
        for number in 0..4 {
            let backend = Backend::start(&format!("v{round}-{number}")).await;
            course.stack.register("orders", &backend).await;
            new.push(backend);
        }
        if round == 0 {
            course.stack.deregister("orders", &course.one).await;
        }
        for backend in &old {
            course.stack.deregister("orders", backend).await;
        }
        tokio::time::sleep(DRAIN).await;
        for mut backend in std::mem::replace(&mut old, new) {
            backend.stop().await;
        }
    }
    course.recovers().await;
    course.end().await;
    drop(old);
}

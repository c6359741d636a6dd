//! Several things at once.

use std::time::{Duration, Instant};

use crate::course::{Course, PLAIN_RULE};
use crate::endpoints::take_turns;
use crate::support::backend::Backend;
use crate::support::line::Trouble;

/// Routes are edited and instances rolled, while the line to Consul (over TLS) fails, the agent is killed and Consul restarted.
#[tokio::test(flavor = "multi_thread")]
async fn several_at_once() {
    let mut course = Course::begin_https("several_at_once").await;
    let mut before = Backend::start("several-0").await;
    course.stack.register("orders", &before).await;
    for round in 1..=course.rounds(1) {
        for _ in 0..5 {
            course.change(PLAIN_RULE).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let next = Backend::start(&format!("several-{round}")).await;
        course.stack.register("orders", &next).await;
        course.trouble(Trouble::Status(500));
        course.change(PLAIN_RULE).await;
        course.stack.agent.kill();
        course.stack.consul.kill();
        course.lasts(500).await;
        course.trouble(Trouble::None);
        course.stack.consul.restart().await;
        course.agent_returns().await;
        course.change(PLAIN_RULE).await;
        course.recovers().await;
        // Known to be seen: only now may the old one go.
        let since = Instant::now();
        course.stack.deregister("orders", &before).await;
        let converge = take_turns(&course, since, &[&next], &[&before]).await;
        course.converged(converge);
        before.stop().await;
        before = next;
    }
    course.end().await;
    before.stop().await;
}

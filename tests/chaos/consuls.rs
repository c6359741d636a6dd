//! Consul goes away, comes back, and answers late, wrongly or not at all. A change is written meanwhile, past the bad line. What
//! connections have a part in is played twice: over HTTP/1, where each poll has its own, and over TLS, where polls share few.

use std::time::Duration;

use crate::course::{Course, PLAIN_RULE};
use crate::support::line::Trouble;
use crate::support::stack::{Options, SOON};
use crate::support::wait_for;

#[tokio::test(flavor = "multi_thread")]
async fn consul_restarted() {
    restarted(Course::begin("consul_restarted").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_restarted_https() {
    restarted(Course::begin_https("consul_restarted_https").await).await;
}

async fn restarted(mut course: Course) {
    course.stack.consul.kill();
    course.lasts(1500).await;
    course.is_told(&["source-problem"]).await;
    course.stack.consul.restart().await;
    course.change(PLAIN_RULE).await;
    course.recovers().await;
    course.end().await;
}

/// Three servers, and an agent beside Portreeve: the leader dies, and the others elect another.
#[tokio::test(flavor = "multi_thread")]
async fn consul_leader_lost() {
    let mut course = Course::begin_with("consul_leader_lost", clustered()).await;
    let servers = &mut course.stack.consul_servers;
    let leader = wait_for("a leader", SOON * 3, async || {
        for (at, server) in servers.iter().enumerate() {
            if server.is_leader().await {
                return Ok(at);
            }
        }
        anyhow::bail!("none yet")
    })
    .await;
    servers[leader].kill();
    wait_for("another leader", SOON * 3, async || {
        for (at, server) in servers.iter().enumerate() {
            if at != leader && server.is_leader().await {
                return Ok(());
            }
        }
        anyhow::bail!("none yet")
    })
    .await;
    course.change(PLAIN_RULE).await;
    course.recovers().await;
    course.stack.consul_servers[leader].process.start_again();
    course.lasts(500).await;
    course.change(PLAIN_RULE).await;
    course.recovers().await;
    course.end().await;
}

/// The agent beside Portreeve, not the servers.
#[tokio::test(flavor = "multi_thread")]
async fn consul_agent_restarted() {
    let mut course = Course::begin_with("consul_agent_restarted", clustered()).await;
    for _ in 0..course.rounds(1) {
        let before = course.log_length();
        course.stack.consul.kill();
        course.lasts(700).await;
        course.is_told_since(before, &["source-problem"]).await;
        course.stack.consul.restart().await;
        course.change(PLAIN_RULE).await;
        course.recovers().await;
    }
    course.end().await;
}

fn clustered() -> Options {
    Options {
        consul_cluster: true,
        ..Options::default()
    }
}

/// One fault of the line, with a change that has to wait for its end. One line of the log has all of `told`, if there is any.
async fn bad_line(mut course: Course, trouble: Trouble, lasts: u64, told: &[&str]) {
    course.trouble(trouble);
    course.lasts(lasts / 2).await;
    course.change(PLAIN_RULE).await;
    course.lasts(lasts / 2).await;
    if !told.is_empty() {
        course.is_told(told).await;
    }
    course.trouble(Trouble::None);
    course.recovers().await;
    course.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_answers_500() {
    let told = ["source-problem", "with 500"];
    let course = Course::begin("consul_answers_500").await;
    bad_line(course, Trouble::Status(500), 3000, &told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_answers_429() {
    let told = ["source-problem", "with 429"];
    let course = Course::begin("consul_answers_429").await;
    bad_line(course, Trouble::Status(429), 3000, &told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_answers_403() {
    // The agent has none here, and is told that one is wanted.
    let told = ["no-token", "with 403"];
    let course = Course::begin("consul_answers_403").await;
    bad_line(course, Trouble::Status(403), 3000, &told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_silent() {
    // Nothing to tell yet: a poll that has nothing to say looks alike.
    let course = Course::begin("consul_silent").await;
    bad_line(course, Trouble::Silent, 3000, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_silent_https() {
    let mut course = Course::begin_https("consul_silent_https").await;
    if crate::summary::is_long() {
        // So long that connections are given up for want of an answer to their pings, and new ones tried: what is left of those is
        // not to be waited for either.
        let start = course.log_length();
        course.trouble(Trouble::Silent);
        course.change(PLAIN_RULE).await;
        course.silence_is_told_since(start, &["source-problem"]).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        course.trouble(Trouble::None);
        course.recovers().await;
    }
    bad_line(course, Trouble::Silent, 3000, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_slow() {
    let course = Course::begin("consul_slow").await;
    bad_line(course, Trouble::Late(Duration::from_secs(5)), 6000, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_slow_https() {
    let course = Course::begin_https("consul_slow_https").await;
    bad_line(course, Trouble::Late(Duration::from_secs(5)), 6000, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_polls_cut() {
    polls_cut(Course::begin("consul_polls_cut").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_polls_cut_https() {
    polls_cut(Course::begin_https("consul_polls_cut_https").await).await;
}

/// What was found out meanwhile is served meanwhile: the change does not wait for the end.
async fn polls_cut(mut course: Course) {
    // Beyond a second it is a cut, and no failure.
    let after = if crate::summary::is_long() { 30_000 } else { 1_200 };
    course.trouble(Trouble::Cut(Duration::from_millis(after)));
    for _ in 0..3 {
        course.lasts(1300).await;
        course.change(PLAIN_RULE).await;
        course.recovers().await;
    }
    if crate::summary::is_long() {
        tokio::time::sleep(Duration::from_millis(after)).await;
        course.change(PLAIN_RULE).await;
        course.recovers().await;
    }
    course.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_index_goes_back() {
    index_goes_back(Course::begin("consul_index_goes_back").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consul_index_goes_back_https() {
    index_goes_back(Course::begin_https("consul_index_goes_back_https").await).await;
}

async fn index_goes_back(mut course: Course) {
    course.stack.consul.grow_old().await;
    course.is_served().await;
    course.trouble(Trouble::IndexGoesBack(90));
    course.lasts(500).await;
    course.change(PLAIN_RULE).await;
    course.recovers().await;
    course.lasts(500).await;
    course.change(PLAIN_RULE).await;
    course.recovers().await;
    course.end().await;
}

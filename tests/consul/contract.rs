//! The watches against a scripted server: every clause of the blocking-query contract that can hurt.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use imbl::OrdMap;
use portreeve::model::{DocumentsUpdate, ProblemKind, Redacted, ServiceQuery};
use portreeve::sources::SourceHealth;
use portreeve::sources::agent_api::{ApiAddress, Product};
use portreeve::sources::consul::{ConsulClient, ConsulSettings, DocumentsWatch, ServiceWatcher, WatchTiming};

use crate::answering::Answer;
use crate::contract_server::{ContractServer, Step};
use crate::server::{Running, quick};

fn client(server: &ContractServer) -> ConsulClient {
    let address = ApiAddress::parse(Product::Consul, &server.address, false).unwrap();
    ConsulClient::new(&ConsulSettings {
        address,
        token: Some(Redacted::new("played".to_owned())),
        ..ConsulSettings::default()
    })
    .unwrap()
}

fn watch(server: &ContractServer, timing: WatchTiming) -> (Running, SourceHealth) {
    let (mut running, sender) = Running::new();
    let watch = DocumentsWatch::new(client(server), "p/", sender).with_timing(timing);
    let health = watch.health();
    running.tasks.spawn(watch.run(running.cancel.clone()));
    (running, health)
}

fn body(documents: &[(&str, &str, u64)]) -> String {
    let row = |(key, text, index): &(&str, &str, u64)| {
        let value = BASE64.encode(text);
        format!(r#"{{"Key":"p/{key}","Value":"{value}","CreateIndex":1,"ModifyIndex":{index}}}"#)
    };
    format!("[{}]", documents.iter().map(row).collect::<Vec<_>>().join(","))
}

fn ok(index: &'static str, documents: &[(&str, &str, u64)]) -> Step {
    Step::Answer(200, Some(index), body(documents))
}

fn texts(update: &DocumentsUpdate) -> Vec<&str> {
    update.changed.iter().map(|document| &*document.text).collect()
}

/// The index that each listing asked for; 0 for none.
fn indexes(server: &ContractServer) -> Vec<u64> {
    let index = |asked: &String| {
        let after = asked.split("index=").nth(1)?;
        after.split('&').next()?.parse().ok()
    };
    server
        .listings()
        .iter()
        .map(|asked| index(asked).unwrap_or(0))
        .collect()
}

#[tokio::test]
async fn an_index_that_falls_is_forgotten_and_texts_are_compared_whole() {
    let server = ContractServer::start([ok("900", &[("a", "1", 5)]), ok("12", &[("a", "2", 5)])]).await;
    let (mut running, _) = watch(&server, quick());
    assert_eq!(texts(&running.documents().await), ["1"]);
    // The same ModifyIndex, another text: a server that lost its past.
    assert_eq!(texts(&running.documents().await), ["2"]);
    server.add(ok("13", &[("a", "2", 5)]));
    server.add(ok("14", &[("a", "3", 14)]));
    assert_eq!(texts(&running.documents().await), ["3"]);
    assert_eq!(indexes(&server)[..4], [0, 900, 0, 13]);
}

#[tokio::test]
async fn no_index_and_index_zero_are_polled_with_pauses() {
    for index in [None, Some("0"), Some("nonsense")] {
        let server =
            ContractServer::start((0..100).map(|_| Step::Answer(200, index, body(&[("a", "1", 5)])))).await;
        let (mut running, _) = watch(&server, quick());
        running.documents().await;
        // On a busy machine it may take more than a second for as many.
        let begun = std::time::Instant::now();
        running.quiet_for(1000).await;
        while indexes(&server).len() < 3 {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "{index:?} is not polled"
            );
            running.quiet_for(100).await;
        }
        let asked = indexes(&server);
        let most = 12 * begun.elapsed().as_secs() as usize;
        assert!(asked.len() <= most, "{index:?}: {}", asked.len());
        assert!(asked.iter().all(|index| *index == 0));
    }
}

#[tokio::test]
async fn waking_is_not_changing_and_a_hot_prefix_is_paced() {
    let indexes: Vec<&'static str> = (10..200).map(|index: u64| &*index.to_string().leak()).collect();
    let server = ContractServer::start(indexes.into_iter().map(|index| ok(index, &[("a", "1", 5)]))).await;
    let (mut running, health) = watch(&server, quick());
    running.documents().await;
    running.quiet_for(1500).await;
    let asked = server.listings().len();
    assert!((4..=14).contains(&asked), "4 at once, then 4 a second: {asked}");
    assert!(health.reading().wakeups_total >= 4);
}

/// Answers that each bring another text.
async fn changing(count: u64) -> ContractServer {
    let steps = (10..10 + count).map(|index| {
        let index: &'static str = index.to_string().leak();
        ok(index, &[("a", index, index.parse().unwrap())])
    });
    ContractServer::start(steps).await
}

#[tokio::test]
async fn a_burst_of_news_is_taken_without_a_pause() {
    let server = changing(40).await;
    let (mut running, _) = watch(&server, quick());
    let started = tokio::time::Instant::now();
    let mut last = String::new();
    while last != "49" {
        last = texts(&running.documents().await)[0].to_owned();
    }
    // At the pace of answers without news it would be 9 s.
    let took = started.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test]
async fn news_without_end_is_paced() {
    let server = changing(5000).await;
    let (mut running, _) = watch(&server, quick());
    let until = tokio::time::Instant::now() + Duration::from_millis(2500);
    let mut taken = 0;
    while tokio::time::timeout_at(until, running.documents()).await.is_ok() {
        taken += 1;
    }
    assert!((5..=90).contains(&taken), "50 at once, then 10 a second: {taken}");
}

#[tokio::test]
async fn a_cut_poll_is_benign_and_habitual_cuts_shorten_the_wait() {
    let timing = WatchTiming {
        benign_cut: Duration::from_millis(500),
        habitual_cut: Duration::from_secs(1),
        ..quick()
    };
    let unchanged = || ok("7", &[("a", "1", 5)]);
    // Two in a row at one age make a habit: on a busy machine that may be later ones than the first two. A short poll follows each,
    // and runs out.
    let cuts = (0..12).flat_map(|_| [Step::CutAfter(1500), unchanged()]);
    let server = ContractServer::start([unchanged()].into_iter().chain(cuts)).await;
    let (mut running, _) = watch(&server, timing);
    running.documents().await;
    let wait_of = |asked: &String| -> u64 {
        let (_, wait) = asked.split_once("wait=").unwrap();
        wait.trim_end_matches("ms").parse().unwrap()
    };
    // Four times the 200 ms after a failure, give or take a half.
    let is_brief = |asked: &String| (400..=1200).contains(&wait_of(asked));
    let is_usual = |asked: &String| wait_of(asked) == 300_000 || is_brief(asked);
    let begun = std::time::Instant::now();
    while server.listings().iter().skip(1).all(is_usual) {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "{:?}",
            server.listings()
        );
        running.quiet_for(100).await;
    }
    let asked = server.listings();
    assert!(indexes(&server)[1..].iter().all(|index| *index == 7), "{asked:?}");
    for (at, brief) in [(1, false), (2, true), (3, false), (4, true)] {
        assert_eq!(is_brief(&asked[at]), brief, "{at}: {asked:?}");
    }
    let shorter = asked.iter().skip(1).find(|asked| !is_usual(asked)).unwrap();
    let wait = wait_of(shorter);
    assert!((1250..1500).contains(&wait), "{wait}");
    server.add(ok("8", &[("a", "2", 8)]));
    assert_eq!(texts(&running.documents().await), ["2"]);
}

/// Who answers after a cut has lost its past: it says so as soon as the short poll runs out.
#[tokio::test]
async fn a_past_that_is_lost_behind_a_cut_is_noticed_by_the_next_poll() {
    let timing = WatchTiming {
        benign_cut: Duration::from_millis(500),
        ..quick()
    };
    let wiped = || Step::Answer(404, Some("12"), String::new());
    let steps = [
        ok("900", &[("a", "1", 5)]),
        Step::CutAfter(1000),
        wiped(),
        wiped(),
        wiped(),
    ];
    let server = ContractServer::start(steps).await;
    let (mut running, _) = watch(&server, timing);
    assert_eq!(texts(&running.documents().await), ["1"]);
    let told = running.documents().await;
    assert!(told.changed.is_empty() && told.removed.is_empty(), "{told:?}");
    let problem = told.problem.unwrap();
    assert!(problem.message.contains("lost its state"), "{problem}");
    let asked = server.listings();
    assert!(asked[2].contains("index=900"), "{asked:?}");
    let (_, wait) = asked[2].split_once("wait=").unwrap();
    let wait: u64 = wait.trim_end_matches("ms").parse().unwrap();
    assert!((400..=1200).contains(&wait), "{asked:?}");
}

#[tokio::test]
async fn refusals_keep_what_is_known_and_end_with_the_next_answer() {
    for (status, text, kind) in [
        (403, "Permission denied", ProblemKind::MissingPermission),
        (403, "ACL not found", ProblemKind::TokenNotAccepted),
        (401, "", ProblemKind::Forbidden),
        (429, "", ProblemKind::Unavailable),
        (500, "No cluster leader", ProblemKind::Unavailable),
        (503, "", ProblemKind::Unavailable),
        (301, "", ProblemKind::Refused),
    ] {
        let refusal = || match status {
            429 => Step::Kept(Answer::kept("rate-limited")),
            _ => Step::Answer(status, Some("1"), text.to_owned()),
        };
        let server = ContractServer::start([ok("7", &[("a", "1", 5)]), refusal(), refusal()]).await;
        let (mut running, health) = watch(&server, quick());
        running.documents().await;
        let told = running.documents().await;
        assert!(
            told.changed.is_empty() && told.removed.is_empty() && told.complete,
            "{status}"
        );
        let problem = told.problem.unwrap();
        assert_eq!(problem.kind, kind, "{status}");
        if status == 429 {
            assert!(problem.message.contains("rate limit exceeded"), "{problem}");
        }
        assert!(!health.reading().ok && health.reading().last_success.is_some());
        running.quiet_for(300).await;
        if status == 301 {
            continue; // A request that is wrong in itself is not repeated soon.
        }
        server.add(ok("7", &[("a", "1", 5)]));
        let well = running.documents().await;
        assert!(well.changed.is_empty() && well.problem.is_none(), "{status}");
        assert!(indexes(&server)[1..].iter().all(|index| *index == 7), "{status}");
    }
}

#[tokio::test]
async fn garbage_half_answers_and_floods_change_nothing() {
    let html = Step::Answer(200, Some("8"), "<html>proxy error</html>".to_owned());
    let half = Step::CutInBody(9, body(&[("a", "half", 9)]));
    let server = ContractServer::start([ok("7", &[("a", "1", 5)]), html, half]).await;
    let (mut running, _) = watch(&server, quick());
    running.documents().await;
    let told = running.documents().await;
    assert!(told.changed.is_empty() && told.removed.is_empty());
    assert_eq!(told.problem.as_ref().unwrap().kind, ProblemKind::Invalid);
    server.add(Step::Answer(
        200,
        Some("10"),
        format!("[{}", " ".repeat(65 * 1024 * 1024)),
    ));
    let told = loop {
        let update = running.documents().await;
        assert!(update.changed.is_empty() && update.removed.is_empty());
        let problem = update.problem.expect("no success yet");
        if problem.kind == ProblemKind::Limit {
            break problem;
        }
    };
    assert!(told.message.contains("more than 67108864 bytes"), "{told}");
    server.add(ok("11", &[("a", "2", 11)]));
    assert_eq!(texts(&running.documents().await), ["2"]);
    assert!(indexes(&server)[1..].iter().all(|index| *index == 7));
}

#[tokio::test]
async fn a_slow_answer_is_waited_for() {
    let server = ContractServer::start([Step::Hold(1500), ok("7", &[("a", "1", 5)])]).await;
    let (mut running, _) = watch(&server, quick());
    assert_eq!(texts(&running.documents().await), ["1"]);
}

#[tokio::test]
async fn a_server_that_resets_connections_is_told_once() {
    let server = ContractServer::start(
        [ok("7", &[("a", "1", 5)])]
            .into_iter()
            .chain((0..6).map(|_| Step::CutAfter(0))),
    )
    .await;
    let (mut running, _) = watch(&server, quick());
    running.documents().await;
    let problem = running.documents().await.problem.unwrap();
    assert_eq!(problem.kind, ProblemKind::Unavailable);
    assert!(problem.fix.unwrap().contains("http_max_conns_per_client"));
    running.quiet_for(800).await;
}

#[tokio::test]
async fn results_that_acls_filtered_do_not_empty_a_service() {
    let entry = |node: &str| {
        format!(
            r#"{{"Node":{{"Node":"{node}","Address":"10.0.0.1"}},"Service":{{"ID":"web-1","Port":8080}},"Checks":null}}"#
        )
    };
    let one = || Step::Kept(Answer::kept("health-service-filtered"));
    let none = || Step::Kept(Answer::kept("health-service-filtered-to-nothing"));
    let both = Step::Answer(200, Some("7"), format!("[{},{}]", entry("a"), entry("b")));
    // Twice each: the answer that is hidden, and the next one that still is.
    let server = ContractServer::start([both, one(), one(), none(), none()]).await;
    let (mut running, sender) = Running::new();
    let (watcher, task) = ServiceWatcher::new(client(&server), sender);
    running
        .tasks
        .spawn(task.with_timing(quick()).run(running.cancel.clone()));
    watcher.set_interests(OrdMap::unit(ServiceQuery::named("web"), 0));
    assert_eq!(running.service().await.result.unwrap().len(), 2);
    let problem = running.service().await.result.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::MissingPermission);
    running.quiet_for(700).await;
    for _ in 0..2 {
        server.add(Step::Answer(200, Some("10"), format!("[{}]", entry("a"))));
    }
    assert_eq!(
        running.service().await.result.unwrap().len(),
        1,
        "unfiltered: the other one is gone"
    );
}

/// An answer may be from before the rights came, and what is asked to see whether it can be believed from after.
#[tokio::test]
async fn an_end_of_all_instances_is_believed_when_it_is_seen_twice() {
    let answer = |index: &'static str, body: &str| Step::Answer(200, Some(index), body.to_owned());
    let one = r#"[{"Node":{"Node":"a","Address":"10.0.0.1"},"Service":{"ID":"w","Port":1},"Checks":null}]"#;
    // The first answer was not waited for, the second was.
    let server = ContractServer::start([
        answer("7", "[]"),
        answer("8", one),
        answer("9", "[]"),
        answer("9", one),
    ])
    .await;
    let (mut running, sender) = Running::new();
    let (watcher, task) = ServiceWatcher::new(client(&server), sender);
    running
        .tasks
        .spawn(task.with_timing(quick()).run(running.cancel.clone()));
    watcher.set_interests(OrdMap::unit(ServiceQuery::named("web"), 0));
    assert_eq!(running.service().await.result.unwrap().len(), 1);
    running.quiet_for(700).await;
    for _ in 0..2 {
        server.add(answer("10", "[]"));
    }
    assert_eq!(running.service().await.result.unwrap().len(), 0);
}

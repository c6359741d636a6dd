//! Nomad's event stream as a hint: services without a connection of their own are followed at once while it works, and at
//! their turn whatever it does. Where a turn takes an hour, nothing but a hint can have brought the news.

use std::collections::BTreeSet;
use std::time::Duration;

use portreeve::model::{Lookup, Narrowing, ProblemKind, ServiceQuery};
use portreeve::sources::agent_api::{ApiAddress, Product};
use portreeve::sources::consul::{ServiceWatcher, WatchTiming};
use portreeve::sources::nomad::{NomadClient, NomadSettings};

use crate::nomad::{EventStream, NomadContract};
use crate::server::{Running, quick};

const TURN_THAT_NEVER_COMES: Duration = Duration::from_secs(3600);

pub fn named(name: &str, namespace: Option<&str>) -> ServiceQuery {
    let narrowing = Narrowing {
        namespace: namespace.map(Into::into),
        ..Narrowing::default()
    };
    ServiceQuery::new(Lookup::Nomad, name.into(), narrowing)
}

pub fn watch(nomad: &NomadContract, places: usize, turn: Duration) -> (Running, ServiceWatcher) {
    watch_at(nomad, places, turn, quick())
}

fn watch_at(
    nomad: &NomadContract,
    places: usize,
    turn: Duration,
    timing: WatchTiming,
) -> (Running, ServiceWatcher) {
    let (mut running, sender) = Running::new();
    let settings = NomadSettings::from_env(|name| (name == "NOMAD_TOKEN").then(|| "t".to_owned())).unwrap();
    let address = format!("unix://{}", nomad.socket.display());
    let client = NomadClient::new(&NomadSettings {
        address: ApiAddress::parse(Product::Nomad, &address, false).unwrap(),
        ..settings
    })
    .unwrap();
    let (watcher, task) = ServiceWatcher::of_nomad(client, sender);
    let task = task.with_timing(timing).with_connections(places, turn);
    running.tasks.spawn(task.run(running.cancel.clone()));
    (running, watcher)
}

pub fn want(watcher: &ServiceWatcher, queries: &[ServiceQuery]) {
    watcher.set_interests(queries.iter().cloned().map(|query| (query, 0u64)).collect());
}

impl Running {
    async fn until_there_are(&mut self, count: usize, of: &ServiceQuery) {
        loop {
            let update = self.service().await;
            if &update.query == of && update.result.is_ok_and(|list| list.len() == count) {
                return;
            }
        }
    }
}

/// What was asked for, once it is more than `before`.
async fn more_streams(nomad: &NomadContract, before: usize) -> Vec<String> {
    let asked = async {
        loop {
            let asked = nomad.event_streams();
            if asked.len() > before {
                return asked;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), asked)
        .await
        .expect("a stream is asked for")
}

#[tokio::test]
async fn a_service_without_a_connection_is_followed_by_hints() {
    let nomad = NomadContract::start("t").await;
    let queries = [named("orders", None), named("carts", None)];
    for query in &queries {
        nomad.register("default", &query.name, 1);
    }
    let (mut running, watcher) = watch(&nomad, 1, TURN_THAT_NEVER_COMES);
    want(&watcher, &queries[..1]);
    running.until_there_are(1, &queries[0]).await;
    assert!(nomad.event_streams().is_empty(), "everybody has a place");

    want(&watcher, &queries);
    let (mut seen, mut limited) = (BTreeSet::new(), BTreeSet::new());
    while seen.is_empty() || limited.is_empty() {
        let update = running.service().await;
        match update.result {
            Ok(_) => seen.insert(update.query),
            Err(problem) => {
                assert_eq!(problem.kind, ProblemKind::Limit, "{problem}");
                limited.insert(update.query)
            }
        };
    }
    assert_eq!(limited, BTreeSet::from([queries[1].clone()]));
    nomad.register("default", "carts", 2);
    running.until_there_are(2, &queries[1]).await;
    nomad.deregister("default", "carts", 1);
    nomad.deregister("default", "carts", 2);
    running.until_there_are(0, &queries[1]).await;
    // The stream named it, and what it is was read.
    let asked = nomad.event_streams();
    assert_eq!(asked, ["namespace=default&topic=Service%3A*"]);
    // The one with a place goes on as before.
    nomad.register("default", "orders", 2);
    running.until_there_are(2, &queries[0]).await;
}

#[tokio::test]
async fn it_is_asked_for_the_namespaces_that_are_wanted() {
    let nomad = NomadContract::start("t").await;
    let (mut running, watcher) = watch(&nomad, 0, TURN_THAT_NEVER_COMES);
    let (shop, everywhere) = (named("orders", Some("shop")), named("orders", Some("*")));
    want(&watcher, std::slice::from_ref(&shop));
    running.until_there_are(0, &shop).await;
    let asked = more_streams(&nomad, 0).await;
    assert_eq!(asked, ["namespace=shop&topic=Service%3A*"]);
    want(&watcher, &[shop.clone(), everywhere.clone()]);
    running.until_there_are(0, &everywhere).await;
    let asked = more_streams(&nomad, 1).await;
    assert_eq!(asked[1..], ["namespace=*&topic=Service%3A*"]);

    nomad.register("elsewhere", "orders", 1);
    running.until_there_are(1, &everywhere).await;
    nomad.register("shop", "orders", 2);
    let mut both = BTreeSet::new();
    while both.len() < 2 {
        let update = running.service().await;
        if let Ok(list) = update.result
            && list.iter().any(|instance| instance.port == 2)
        {
            both.insert(update.query);
        }
    }
}

const USELESS: [EventStream; 5] = [
    EventStream::Refused,
    EventStream::RefusedWith403,
    EventStream::Unknown,
    EventStream::Page,
    EventStream::Cut,
];

#[tokio::test]
async fn turns_go_on_whatever_becomes_of_the_stream() {
    for stream in USELESS {
        let nomad = NomadContract::start("t").await;
        nomad.set_event_stream(stream);
        let orders = named("orders", None);
        let (mut running, watcher) = watch(&nomad, 0, Duration::from_millis(300));
        want(&watcher, std::slice::from_ref(&orders));
        running.until_there_are(0, &orders).await;
        more_streams(&nomad, 1).await;
        nomad.register("default", "orders", 1);
        running.until_there_are(1, &orders).await;
        nomad.deregister("default", "orders", 1);
        running.until_there_are(0, &orders).await;
    }
}

#[tokio::test]
async fn a_stream_that_comes_back_says_what_was_missed() {
    for stream in USELESS {
        let nomad = NomadContract::start("t").await;
        let orders = named("orders", None);
        let (mut running, watcher) = watch(&nomad, 0, TURN_THAT_NEVER_COMES);
        want(&watcher, std::slice::from_ref(&orders));
        running.until_there_are(0, &orders).await;
        more_streams(&nomad, 0).await;
        nomad.register("default", "orders", 1);
        running.until_there_are(1, &orders).await;

        nomad.set_event_stream(stream);
        let asked = more_streams(&nomad, 2).await;
        assert!(asked[1].contains("index="), "from where it ended: {asked:?}");
        nomad.register("default", "orders", 2);
        nomad.set_event_stream(EventStream::Works);
        running.until_there_are(2, &orders).await;
    }
}

#[tokio::test]
async fn a_silent_stream_is_given_up() {
    let nomad = NomadContract::start("t").await;
    nomad.set_event_stream(EventStream::Silent);
    let orders = named("orders", None);
    let timing = WatchTiming {
        stream_silence: Duration::from_secs(1),
        ..quick()
    };
    let (mut running, watcher) = watch_at(&nomad, 0, TURN_THAT_NEVER_COMES, timing);
    want(&watcher, std::slice::from_ref(&orders));
    running.until_there_are(0, &orders).await;
    more_streams(&nomad, 0).await;
    nomad.register("default", "orders", 1);
    nomad.set_event_stream(EventStream::Works);
    // The silent one stays as it is; another one tells.
    running.until_there_are(1, &orders).await;
}

#[tokio::test]
async fn a_line_beyond_its_bound_makes_everybody_look() {
    let nomad = NomadContract::start("t").await;
    nomad.set_event_stream(EventStream::LongLines);
    let orders = named("orders", None);
    let (mut running, watcher) = watch(&nomad, 0, TURN_THAT_NEVER_COMES);
    want(&watcher, std::slice::from_ref(&orders));
    running.until_there_are(0, &orders).await;
    nomad.register("default", "orders", 1);
    running.until_there_are(1, &orders).await;
}

//! The list of services that ask to be exposed, on a real Consul: what ends, and what the token may not see any more.

use std::sync::Arc;
use std::time::Duration;

use portreeve::model::{Document, DocumentId, ExposedUpdate, Observation, OptIn, Problem, ProblemKind};
use portreeve::sources::consul::{ConsulClient, ExposedWatch};
use serde_json::json;

use crate::server::{Running, Server, quick};

/// Allowed by default; `hidden` are not.
fn rules(hidden: &[&str]) -> String {
    let mut rules =
        "service_prefix \"\" { policy = \"read\" } node_prefix \"\" { policy = \"read\" }".to_owned();
    for name in hidden {
        rules.push_str(&format!(" service \"{name}\" {{ policy = \"deny\" }}"));
    }
    rules
}

fn watch(client: ConsulClient, known: &[&str]) -> Running {
    let (mut running, sender) = Running::new();
    let opt_in = OptIn {
        prefix: "portreeve".into(),
        metadata_of: Vec::new(),
    };
    let known: Vec<Document> = known
        .iter()
        .map(|name| Document {
            id: DocumentId::of_service(name),
            text: "".into(),
            order: 1,
            version: 1,
        })
        .collect();
    let watch = ExposedWatch::new(client, opt_in, sender)
        .with_known(&known)
        .with_timing(quick());
    running.tasks.spawn(watch.run(running.cancel.clone()));
    running
}

async fn register(server: &Server, names: &[&str]) {
    for name in names {
        server
            .put(
                "agent/service/register",
                json!({ "Name": name, "Port": 80, "Tags": ["portreeve"] }),
            )
            .await;
    }
}

impl Running {
    async fn exposed(&mut self) -> ExposedUpdate {
        match self.next().await {
            Observation::Exposed(update) => update,
            other => panic!("{other:?}"),
        }
    }

    /// Until no news and no problem come for a while: all that was added, all that was removed, the last problem.
    async fn settled(&mut self) -> (Vec<Arc<str>>, Vec<Arc<str>>, Option<Problem>) {
        let first = self.exposed().await;
        let (mut added, mut removed, mut problem) = (first.added, first.removed, first.problem);
        let quiet = Duration::from_millis(1500);
        while let Ok(heard) = tokio::time::timeout(quiet, self.observations.recv()).await {
            let Some(Observation::Exposed(update)) = heard else {
                panic!("{heard:?}")
            };
            added.extend(update.added);
            removed.extend(update.removed);
            problem = update.problem;
        }
        added.sort();
        removed.sort();
        (added, removed, problem)
    }
}

fn names(names: &[&str]) -> Vec<Arc<str>> {
    names.iter().map(|name| (*name).into()).collect()
}

#[tokio::test]
async fn a_service_that_is_hidden_keeps_no_other() {
    let server = Server::start_with_acls().await;
    server.policy("watch", &rules(&[])).await;
    let (_, token) = server.token("watch").await;
    register(&server, &["a", "b", "c"]).await;
    let mut running = watch(server.client(Some(&token)), &[]);
    let (added, _, problem) = running.settled().await;
    assert_eq!((added, problem), (names(&["a", "b", "c"]), None));

    // One is hidden while another ends and a third comes.
    server.policy("watch", &rules(&["b"])).await;
    server.put("agent/service/deregister/a", "").await;
    register(&server, &["d"]).await;
    let (added, removed, problem) = running.settled().await;
    assert_eq!((added, removed), (names(&["d"]), names(&["a"])));
    let problem = problem.expect("told");
    let said = "the service \"b\" vanished from the catalog because the token may no longer read it; its routes are kept";
    assert!(problem.message.starts_with(said), "{problem:?}");
    assert_eq!(problem.kind, ProblemKind::MissingPermission);

    // It may be seen again: no news but that the trouble is over.
    server.policy("watch", &rules(&[])).await;
    let (added, removed, problem) = running.settled().await;
    assert_eq!((added, removed, problem), (Vec::new(), Vec::new(), None));

    // It ends while it is hidden, which shows when it is not.
    server.policy("watch", &rules(&["b"])).await;
    server.put("agent/service/deregister/b", "").await;
    let (_, removed, problem) = running.settled().await;
    assert!(removed.is_empty() && problem.is_some(), "{removed:?} {problem:?}");
    server.policy("watch", &rules(&[])).await;
    let (_, removed, problem) = running.settled().await;
    assert_eq!((removed, problem), (names(&["b"]), None));
}

#[tokio::test]
async fn what_the_disk_knew_and_the_token_may_not_see_keeps_no_other_either() {
    let server = Server::start_with_acls().await;
    server.policy("watch", &rules(&["b", "e"])).await;
    let (_, token) = server.token("watch").await;
    register(&server, &["b", "c", "d"]).await;
    let mut running = watch(server.client(Some(&token)), &["a", "b", "c", "e"]);
    let (added, removed, problem) = running.settled().await;
    assert_eq!((added, removed), (names(&["b", "c", "d", "e"]), names(&["a"])));
    let message = problem.expect("told").message;
    assert!(
        message.contains("\"b\" vanished") && message.contains(", nor 1 others; their routes are kept"),
        "{message}"
    );
}

#[tokio::test]
async fn many_that_end_together_are_gone_together() {
    let server = Server::start_with_acls().await;
    server.policy("watch", &rules(&[])).await;
    let (_, token) = server.token("watch").await;
    register(&server, &["stays"]).await;
    let known: Vec<String> = (0..200).map(|number| format!("s{number}")).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let mut running = watch(server.client(Some(&token)), &known);
    let update = running.exposed().await;
    assert_eq!(update.added, names(&["stays"]));
    assert_eq!(update.removed.len(), 200, "{:?}", update.removed);
}

/// A slip in the tag that asks exposes nothing, and whoever made it hears of it.
#[tokio::test]
async fn a_tag_that_nearly_asks_is_told_of() {
    let server = Server::start_with_acls().await;
    server.policy("watch", &rules(&[])).await;
    let (_, token) = server.token("watch").await;
    let register = async |name: &str, tag: &str| {
        let service = json!({ "Name": name, "Port": 80, "Tags": [tag] });
        server.put("agent/service/register", service).await;
    };
    register("off", "portreeve.enable=false").await;
    register("slip", "portreeve.enable=yes").await;
    register("works", "portreeve.enable=true").await;
    let mut running = watch(server.client(Some(&token)), &[]);
    let (added, _, problem) = running.settled().await;
    assert_eq!(added, names(&["works"]));
    let problem = problem.unwrap();
    assert_eq!(
        &*problem.message,
        "the service \"slip\" seems to ask to be exposed, and does not: by its tag \"portreeve.enable=yes\" nothing is exposed"
    );
    assert!(problem.fix.unwrap().contains("tag it portreeve.enable=true"));
}

//! The pipeline behind the discovery server: sources and Envoys are the test's own.

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use portreeve::config::{DocumentState, Permissions};
use portreeve::envoy::bootstrap::RUNTIME_LAYER;
use portreeve::hcl;
use portreeve::model::{
    CertificateMaterial, CertificateQuery, CertificateUpdate, Document, DocumentId, DocumentsUpdate,
    Interests, Observation, Redacted,
};
use portreeve::pipeline::{GatewaySettings, KeyWishes, Outputs, Pipeline, PipelineSettings, Restored, View};
use portreeve::translate::Settings;
use portreeve::xds::{Event, Gateways, Limits, Server};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::harness::{Client, PATIENCE, Served, ask, connect, names, node};

use portreeve::envoy::ResourceKind::{Cluster, Listener, Runtime, ScopedRoute};

pub const GATEWAY: &str = "gateway \"edge\" {\n  listener \"web\" {\n    port = 80\n  }\n}\n";

pub struct Agent {
    pub served: Served,
    pub observations: mpsc::Sender<Observation>,
    /// Towards the pipeline: the test decides which of the server's events it hears of.
    pub events: mpsc::Sender<Event>,
    _commands: mpsc::Sender<portreeve::pipeline::Command>,
    pub view: watch::Receiver<Arc<View>>,
    pub interests: watch::Receiver<Arc<Interests>>,
    pub wanted: KeyWishes,
    _folder: tempfile::TempDir,
}

impl Agent {
    pub async fn start() -> Self {
        Self::start_from(Restored::default()).await
    }

    pub async fn start_from(restored: Restored) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (server, events_of_server) = Server::new(Gateways::default(), Limits::default(), 4096);
        let settings = PipelineSettings {
            gateways: vec![GatewaySettings {
                name: "edge".into(),
                compile: Settings {
                    bind_address: "127.0.0.1".parse().unwrap(),
                    hold_pending: true,
                    same_node: Default::default(),
                },
            }],
            permissions: Permissions::default(),
            limits: hcl::Limits::default(),
            document_sources: BTreeSet::from(["test".into()]),
            ownerless: Vec::new(),
        };
        let (pipeline, outputs) = Pipeline::new(settings, restored, None, server.streams().clone());
        let Outputs {
            view,
            interests,
            wanted,
            resources,
        } = outputs;
        let edge = resources["edge"].clone();
        let served = Served::start_server(folder.path(), server, events_of_server, edge).await;
        let (observations, observed) = mpsc::channel(64);
        let (events, heard) = mpsc::channel(64);
        let (commands, queue) = mpsc::channel(1);
        let stop: CancellationToken = served.stop.clone();
        tokio::spawn(pipeline.run(observed, heard, queue, stop));
        Self {
            served,
            observations,
            events,
            _commands: commands,
            view,
            interests,
            wanted,
            _folder: folder,
        }
    }

    pub async fn put(&self, documents: &[(&str, &str)]) {
        let changed = documents
            .iter()
            .map(|(name, text)| Document {
                id: id(name),
                text: (*text).into(),
                order: 0,
                version: 0,
            })
            .collect();
        let update = DocumentsUpdate {
            source: "test".into(),
            changed,
            complete: true,
            ..DocumentsUpdate::default()
        };
        self.observations
            .send(Observation::Documents(update))
            .await
            .unwrap();
    }

    /// What the source of this document's certificate brings.
    pub async fn certify(&self, query: &CertificateQuery, names: &[&str], private_key: Option<&str>) {
        let material = CertificateMaterial {
            chain: "chain".into(),
            private_key: private_key.map(|key| Arc::new(Redacted::new(key.to_owned()))),
            serial: "1".into(),
            names: names.iter().map(|name| (*name).into()).collect(),
            not_before: 0,
            not_after: 4_000_000_000,
            crl: None,
        };
        let update = CertificateUpdate {
            query: query.clone(),
            result: Ok(Arc::new(material)),
        };
        self.observations
            .send(Observation::Certificate(update))
            .await
            .unwrap();
    }

    pub async fn lose_events(&mut self) {
        let mut lost = 0;
        while self.served.events.try_recv().is_ok() {
            lost += 1;
        }
        assert!(lost > 0, "there was nothing to lose");
        self.events.send(Event::Lagged { lost }).await.unwrap();
    }

    /// From here on the pipeline hears of everything by itself.
    pub fn hear(&mut self) {
        let mut heard = std::mem::replace(&mut self.served.events, mpsc::channel(1).1);
        let events = self.events.clone();
        tokio::spawn(async move {
            while let Some(event) = heard.recv().await {
                if events.send(event).await.is_err() {
                    return;
                }
            }
        });
    }

    pub async fn view_where(&mut self, what: &str, is_wanted: impl Fn(&View) -> bool) -> Arc<View> {
        let wait = self.view.wait_for(|view| is_wanted(view));
        let view = tokio::time::timeout(PATIENCE, wait).await;
        view.unwrap_or_else(|_| panic!("never seen: {what}"))
            .unwrap()
            .clone()
    }

    pub async fn document_where(
        &mut self,
        name: &str,
        is_wanted: impl Fn(&DocumentState) -> bool,
    ) -> Arc<DocumentState> {
        let id = id(name);
        let wait = self.view.wait_for(|view| {
            view.snapshot
                .config
                .document(&id)
                .is_some_and(|state| is_wanted(state))
        });
        let view = tokio::time::timeout(PATIENCE, wait).await;
        let view = view.map(|view| view.unwrap().clone());
        let view = view.unwrap_or_else(|_| {
            panic!(
                "{name} never was as wanted: {:#?}",
                self.view.borrow().diagnostics()
            )
        });
        view.snapshot.config.document(&id).unwrap().clone()
    }
}

pub fn id(name: &str) -> DocumentId {
    DocumentId::File(name.into())
}

pub fn route(gateway: &str, status: u16) -> String {
    format!(
        "http_route \"{gateway}\" {{\n  gateways  = [\"{gateway}\"]\n  hostnames = [\"a.example.com\"]\n\n  rule \"all\" {{\n    \
         direct_response {{\n      status = {status}\n    }}\n  }}\n}}\n"
    )
}

/// Answers until a response has one of these names, which it returns unanswered.
pub async fn answer_until(client: &mut Client, name: &str) -> DeltaDiscoveryResponse {
    loop {
        let response = client.next().await.unwrap();
        if names(&response).contains(&name) {
            return response;
        }
        client.answer(&response, None).await;
    }
}

/// One that knows of no listener yet: it asks for no routes before one runs.
pub async fn starting_envoy(agent: &Agent) -> Client {
    let client = Client::open(
        connect(&agent.served.socket).await,
        node("edge"),
        ask(Cluster, &[]),
    )
    .await
    .unwrap();
    client.ask(Runtime, &[RUNTIME_LAYER]).await;
    client.ask(Listener, &[]).await;
    client
}

pub async fn envoy(agent: &Agent) -> Client {
    let client = starting_envoy(agent).await;
    client.ask(ScopedRoute, &[]).await;
    client
}

/// An Envoy that acknowledged everything; what `shop` says is confirmed, though each event of it was lost.
pub async fn settled_envoy(agent: &mut Agent) -> Client {
    let mut client = envoy(agent).await;
    let response = answer_until(&mut client, "web/a.example.com").await;
    client.answer(&response, None).await;
    agent
        .served
        .view_where("everything acknowledged", |view| {
            view.acked.len() == 3 && view.is_settled()
        })
        .await;
    agent.lose_events().await;
    agent
        .document_where("shop", |state| state.confirmed.is_some())
        .await;
    client
}

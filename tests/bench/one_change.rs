//! One change among many, through the whole pipeline on one thread: what callgrind counts and `translate` times.

use std::collections::BTreeSet;
use std::sync::Arc;

use portreeve::config::Permissions;
use portreeve::hcl::Limits;
use portreeve::model::Observation;
use portreeve::pipeline::{Command, GatewaySettings, Outputs, Pipeline, PipelineSettings, Restored};
use portreeve::snapshot::Snapshot;
use portreeve::translate::Compiler;
use portreeve::xds::{Event, Streams};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::synthetic::{SOURCE, Size, answer, document, documents, route, service_name, settings};

/// An edited route, an endpoint that moved, and a new route to a new service.
pub const KINDS: [&str; 3] = ["route", "endpoint", "new"];

pub fn pipeline_settings() -> PipelineSettings {
    PipelineSettings {
        gateways: vec![GatewaySettings {
            name: "edge".into(),
            compile: settings(),
        }],
        permissions: Permissions::default(),
        limits: Limits::default(),
        document_sources: BTreeSet::from([SOURCE.into()]),
        ownerless: Vec::new(),
    }
}

/// A pipeline that holds so many hosts and services.
pub struct World {
    kind: &'static str,
    size: Size,
    runtime: Runtime,
    observations: mpsc::Sender<Observation>,
    commands: mpsc::Sender<Command>,
    _events: mpsc::Sender<Event>,
    outputs: Outputs,
    edition: usize,
}

impl World {
    pub fn new(kind: &'static str, objects: usize) -> World {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let (observations, receiver) = mpsc::channel(4096);
        let (events, event_receiver) = mpsc::channel(16);
        let (commands, command_receiver) = mpsc::channel(16);
        let _inside = runtime.enter();
        let (pipeline, outputs) =
            Pipeline::new(pipeline_settings(), Restored::default(), None, Streams::default());
        runtime.spawn(pipeline.run(
            receiver,
            event_receiver,
            command_receiver,
            CancellationToken::new(),
        ));
        drop(_inside);
        let size = Size::of_services(objects, 2);
        let mut world = World {
            kind,
            size,
            runtime,
            observations,
            commands,
            _events: events,
            outputs,
            edition: 0,
        };
        world.apply(documents(size.documents()));
        for answer in size.answers() {
            world.send(answer);
        }
        world.flush();
        let set = world.outputs.resources["edge"]
            .borrow()
            .clone()
            .expect("a publication");
        assert!(set.len() > 3 * objects, "only {} resources", set.len());
        world
    }

    fn send(&mut self, observation: Observation) {
        let sender = self.observations.clone();
        self.runtime
            .block_on(async move { sender.send(observation).await.expect("a pipeline") });
    }

    fn flush(&mut self) {
        let (done, wait) = oneshot::channel();
        let commands = self.commands.clone();
        self.runtime.block_on(async move {
            commands
                .send(Command::Permit(Box::default(), done))
                .await
                .expect("a pipeline");
            wait.await.expect("a pipeline");
        });
    }

    fn apply(&mut self, observation: Observation) {
        self.send(observation);
        self.flush();
    }

    fn change(&mut self) {
        self.edition += 1;
        let (edition, size) = (self.edition, self.size);
        let at = edition * 7919 % size.hosts;
        match self.kind {
            "route" => self.apply(documents(vec![size.route(at, edition)])),
            "endpoint" => self.apply(answer(&service_name(at), size.instances, edition)),
            _ => {
                let service = format!("new{edition}");
                let text = route(&service, &format!("{service}.example.com"), 1, &service, 0);
                self.apply(documents(vec![document(&service, &text)]));
                self.apply(answer(&service, size.instances, 0));
            }
        }
    }
}

/// Callgrind collects in this function only.
#[inline(never)]
pub fn measured(world: &mut World, times: usize) {
    for _ in 0..times {
        world.change();
    }
}

/// Callgrind collects in this function only: translate alone.
#[inline(never)]
fn measured_translate(compiler: &mut Compiler, snapshot: &mut Snapshot, size: Size, times: usize) {
    for edition in 1..=times {
        let at = edition * 7919 % size.hosts;
        let changes = snapshot.apply(documents(vec![size.route(at, edition)]));
        compiler.update(snapshot, &changes);
    }
}

pub fn run(kind: &str, objects: usize, times: usize) {
    if kind == "translate" {
        let size = Size::of_services(objects, 2);
        let mut snapshot = size.snapshot();
        let mut compiler = Compiler::compile("edge", settings(), &snapshot);
        let published: Arc<_> = Arc::new(compiler.resources().clone());
        measured_translate(&mut compiler, &mut snapshot, size, times);
        drop(published);
        return;
    }
    let kind = KINDS
        .into_iter()
        .find(|known| *known == kind)
        .expect("translate, route, endpoint or new");
    measured(&mut World::new(kind, objects), times);
}

//! One change among many, through the whole pipeline on one thread: what callgrind counts and `translate` times.

use std::collections::BTreeSet;
use std::ops::Range;

use portreeve::config::Permissions;
use portreeve::hcl::Limits;
use portreeve::model::{CertificateQuery, Observation};
use portreeve::pipeline::{Command, GatewaySettings, Outputs, Pipeline, PipelineSettings, Restored};
use portreeve::snapshot::Snapshot;
use portreeve::translate::Compiler;
use portreeve::xds::{Event, Streams};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::synthetic::{
    SOURCE, Size, answer, certificate, certificate_documents, document, documents, route, service_name,
    settings,
};

/// What changes, as the rows name it: an edited route, an endpoint that moved, a new route to a new service, and a
/// rotated certificate.
pub const KINDS: [Kind; 4] = [Kind::Route, Kind::Endpoint, Kind::New, Kind::Certificate];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Route,
    Endpoint,
    New,
    Certificate,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Route => "route",
            Kind::Endpoint => "endpoint",
            Kind::New => "new",
            Kind::Certificate => "certificate",
        }
    }
}

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

/// A pipeline that holds so many hosts and services, or so many certificates of one listener.
pub struct World {
    size: Size,
    runtime: Runtime,
    observations: mpsc::Sender<Observation>,
    commands: mpsc::Sender<Command>,
    _events: mpsc::Sender<Event>,
    outputs: Outputs,
    certificates: Vec<CertificateQuery>,
    edition: usize,
}

impl World {
    pub fn of_services(objects: usize) -> World {
        let size = Size::of_services(objects, 2);
        let mut world = World::empty(size);
        world.apply(documents(size.documents()));
        for answer in size.answers() {
            world.send(answer);
        }
        world.flush();
        world.holds(3 * objects);
        world
    }

    pub fn of_certificates(objects: usize) -> World {
        let mut world = World::empty(Size::of_services(1, 2));
        world.apply(documents(certificate_documents(objects)));
        world.certificates = world
            .outputs
            .interests
            .borrow()
            .certificates
            .keys()
            .cloned()
            .collect();
        let size = world.size;
        for answer in size.answers() {
            world.send(answer);
        }
        for number in 0..world.certificates.len() {
            world.send(certificate(&world.certificates[number], 0));
        }
        world.flush();
        world.holds(objects);
        world
    }

    fn empty(size: Size) -> World {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let (observations, receiver) = mpsc::channel(4096);
        let (events, event_receiver) = mpsc::channel(16);
        let (commands, command_receiver) = mpsc::channel(16);
        let inside = runtime.enter();
        let (pipeline, outputs) =
            Pipeline::new(pipeline_settings(), Restored::default(), None, Streams::default());
        runtime.spawn(pipeline.run(
            receiver,
            event_receiver,
            command_receiver,
            CancellationToken::new(),
        ));
        drop(inside);
        World {
            size,
            runtime,
            observations,
            commands,
            _events: events,
            outputs,
            certificates: Vec::new(),
            edition: 0,
        }
    }

    fn holds(&self, least: usize) {
        let published = self.outputs.resources["edge"].borrow().clone();
        let set = published.expect("a publication");
        assert!(set.len() > least, "only {} resources", set.len());
    }

    pub fn snapshot(&self) -> Snapshot {
        self.outputs.view.borrow().snapshot.clone()
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

    fn change(&mut self, kind: Kind) {
        self.edition += 1;
        let (edition, size) = (self.edition, self.size);
        let at = edition * 7919 % size.hosts;
        match kind {
            Kind::Route => self.apply(documents(vec![size.route(at, edition)])),
            Kind::Endpoint => self.apply(answer(&service_name(at), size.instances, edition)),
            Kind::New => {
                let service = format!("new{edition}");
                let text = route(&service, &format!("{service}.example.com"), 1, &service, 0);
                self.apply(documents(vec![document(&service, &text)]));
                self.apply(answer(&service, size.instances, 0));
            }
            Kind::Certificate => {
                let at = edition * 7919 % self.certificates.len();
                self.apply(certificate(&self.certificates[at], edition));
            }
        }
    }
}

/// Callgrind collects in this function only, and in the next one.
#[inline(never)]
pub fn measured_change(world: &mut World, kind: Kind, times: usize) {
    for _ in 0..times {
        world.change(kind);
    }
}

/// Translate alone.
#[inline(never)]
fn measured_translate(compiler: &mut Compiler, snapshot: &mut Snapshot, size: Size, editions: Range<usize>) {
    for edition in editions {
        translate(compiler, snapshot, size, edition);
    }
}

fn translate(compiler: &mut Compiler, snapshot: &mut Snapshot, size: Size, edition: usize) {
    let at = edition * 7919 % size.hosts;
    let changes = snapshot.apply(documents(vec![size.route(at, edition)]));
    compiler.update(snapshot, &changes);
}

/// Changes before those that count: the allocator sorts what building the world left behind.
const WARM_UP: usize = 20;

/// Every kind of change, so many times each; says in which order.
pub fn run(objects: usize, times: usize) {
    let mut world = World::of_services(objects);
    count_translate(world.size, world.snapshot(), times);
    for kind in [Kind::Route, Kind::Endpoint, Kind::New] {
        count(&mut world, kind, times);
    }
    drop(world);
    count(&mut World::of_certificates(objects), Kind::Certificate, times);
}

/// Translate alone, without the pipeline's world: among a hundred thousand, callgrind would take an hour to build that.
pub fn run_translate(objects: usize, times: usize) {
    let size = Size::of_services(objects, 2);
    count_translate(size, size.snapshot(), times);
}

fn count_translate(size: Size, mut snapshot: Snapshot, times: usize) {
    let mut compiler = Compiler::compile("edge", settings(), &snapshot);
    let _published = compiler.resources().clone();
    for edition in 1..=WARM_UP {
        translate(&mut compiler, &mut snapshot, size, edition);
    }
    println!("translate_one");
    let editions = WARM_UP + 1..WARM_UP + 1 + times;
    measured_translate(&mut compiler, &mut snapshot, size, editions);
}

fn count(world: &mut World, kind: Kind, times: usize) {
    for _ in 0..WARM_UP {
        world.change(kind);
    }
    println!("pipeline_{}", kind.as_str());
    measured_change(world, kind, times);
}

//! What all gateways are measured on: a Consul with services of ten instances or with many routes to one service, a backend
//! that is always there, and a second one that comes and goes. Our own agent runs there, and stands still while others work.

use std::time::{Duration, Instant};

use base64::Engine as _;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use super::Given;
use super::proxy::{Entries, Peer, Proxy, Target, first_answer};
use crate::clock::quantile;
use crate::live::{Live, NODE, transact, until_quiet};
use crate::report::Report;
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::consul::service;
use crate::synthetic::{route, service_name};

const INSTANCES: usize = 10;
/// The service whose instances change, as every gateway knows it.
pub const SERVICE: &str = "bench";
pub const HOST: &str = "bench.example.com";
/// After it, a change counts as never seen.
pub const LIMIT: Duration = Duration::from_secs(60);

pub struct Scene {
    pub live: Live,
    pub services: usize,
    old: Backend,
    new: Backend,
}

/// Medians of a round, in milliseconds.
#[derive(Clone, Copy)]
pub struct Endpoints {
    pub add: f64,
    pub remove: f64,
}

impl Scene {
    /// So many services, each with a host of its own.
    pub async fn of_services(services: usize, peers: &[Given]) -> Scene {
        let scene = Scene::empty(services).await;
        transact(&scene.live.consul, instances(services)).await;
        let names = (0..services).map(service_name);
        let hosts: Vec<_> = names.map(|name| (host(&name), name)).collect();
        scene.lay(&hosts, peers, |peer| !peer.reads_services).await;
        scene
    }

    /// So many hosts of one service.
    pub async fn of_routes(hosts: usize, peers: &[Given]) -> Scene {
        let scene = Scene::empty(0).await;
        let hosts = (0..hosts).map(|at| (host(&format!("h{at}")), SERVICE.to_owned()));
        let hosts: Vec<_> = hosts.collect();
        scene.lay(&hosts, peers, |_| true).await;
        scene
    }

    async fn empty(services: usize) -> Scene {
        let live = Live::start().await;
        let (old, new) = (Backend::start("old").await, Backend::start("new").await);
        live.consul.register(&instance("old", old.port)).await;
        Scene {
            live,
            services,
            old,
            new,
        }
    }

    /// Writes hosts and their services down for our agent, and for those peers that must be told.
    async fn lay(&self, hosts: &[(String, String)], peers: &[Given], must_be_told: fn(&Peer) -> bool) {
        let documents = hosts
            .iter()
            .map(|(host, service)| (host.clone(), route(host, host, 1, service, 0)));
        self.live.put_all(documents).await;
        self.live.put(HOST, &route(HOST, HOST, 1, SERVICE, 0)).await;
        for (peer, _) in peers {
            let mut entries = Entries::new();
            if must_be_told(peer) {
                for (host, service) in hosts {
                    entries.extend((peer.route)(&self.target(host, service)));
                }
            }
            if !peer.reads_services {
                entries.extend((peer.route)(&self.target(HOST, SERVICE)));
            }
            self.write(entries).await;
        }
        self.live.until_status(HOST, 200).await;
        self.live.until_quiet().await;
    }

    fn target<'a>(&self, host: &'a str, service: &'a str) -> Target<'a> {
        Target {
            host,
            service,
            port: self.old.port,
        }
    }

    /// Into Consul's KV, at once where there are few.
    pub async fn write(&self, entries: Entries) {
        let operations = entries.into_iter().map(|(key, value)| {
            let value = base64::engine::general_purpose::STANDARD.encode(value);
            json!({ "KV": { "Verb": "set", "Key": key, "Value": value } })
        });
        transact(&self.live.consul, operations.collect()).await;
    }

    /// Our own agent, which must follow every change.
    pub async fn ours(&self, samples: usize) -> Endpoints {
        self.live.until_quiet().await;
        let pid = self.live.agent.process.pid();
        let measured = self.endpoints(&self.live.client, pid, samples).await;
        measured.unwrap_or_else(|why| panic!("our own agent: {why}"))
    }

    /// Instances that come and go, seen from a gateway's client. Each comes to a gateway that is at rest.
    pub async fn endpoints(&self, client: &Client, pid: u32, samples: usize) -> Result<Endpoints, String> {
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for sample in 0..samples {
            let started = self.add().await;
            added.push(first_of_new(client).await? - started);
            self.rest(pid, 2 * sample).await;
            let started = self.remove().await;
            removed.push(last_of_new(client).await? - started);
            self.rest(pid, 2 * sample + 1).await;
        }
        Ok(Endpoints {
            add: quantile(&added, 0.5),
            remove: quantile(&removed, 0.5),
        })
    }

    /// New hosts, as documents of ours.
    pub async fn our_routes(&self, round: usize, samples: usize) -> f64 {
        self.live.until_quiet().await;
        let mut times = Vec::new();
        for sample in 0..samples {
            let host = host(&format!("ours{round}-{sample}"));
            let text = route(&host, &host, 1, SERVICE, 0);
            let started = Instant::now();
            self.live.put(&host, &text).await;
            let served = first_answer(&self.live.client, &host).await;
            times.push(served.expect("our own agent serves it") - started);
            self.rest(self.live.agent.process.pid(), sample).await;
        }
        quantile(&times, 0.5)
    }

    pub async fn routes(
        &self,
        peer: &Peer,
        proxy: &Proxy,
        round: usize,
        samples: usize,
    ) -> Result<f64, String> {
        let mut times = Vec::new();
        for sample in 0..samples {
            let host = host(&format!("{}{round}-{sample}", peer.name));
            let entries = (peer.route)(&self.target(&host, SERVICE));
            let started = Instant::now();
            self.write(entries).await;
            let served = first_answer(&proxy.client, &host).await;
            let served = served.ok_or_else(|| format!("it did not serve a new host within {LIMIT:?}"))?;
            times.push(served - started);
            self.rest(proxy.pid(), sample).await;
        }
        Ok(quantile(&times, 0.5))
    }

    /// Our agent sleeps while others work: what it would do about the same change is no part of their time.
    pub fn still(&self, still: bool) {
        let signal = if still { Signal::STOP } else { Signal::CONT };
        let pid = Pid::from_raw(self.live.agent.process.pid() as i32).expect("a process id");
        rustix::process::kill_process(pid, signal).expect("our agent runs");
    }

    /// A change that comes while the last one is still worked on is another measurement: some peers drop it.
    pub async fn rest(&self, pid: u32, sample: usize) {
        until_quiet(pid).await;
        self.live.rest(sample).await;
    }

    /// Registers the instance at [`Scene::new_port`].
    pub async fn add(&self) -> Instant {
        let definition = instance("new", self.new.port);
        let started = Instant::now();
        self.live.consul.register(&definition).await;
        started
    }

    pub async fn remove(&self) -> Instant {
        let started = Instant::now();
        self.live.consul.deregister("new").await;
        started
    }

    pub fn new_port(&self) -> u16 {
        self.new.port
    }
}

pub fn add_rows(report: &mut Report, peer: &'static str, label: &str, theirs: Endpoints, ours: Endpoints) {
    for (metric, theirs, ours) in [
        ("endpoint_add_p50_ms", theirs.add, ours.add),
        ("endpoint_remove_p50_ms", theirs.remove, ours.remove),
    ] {
        report.add_peer(peer, &format!("{metric}{label}"), "ms", theirs, ours);
    }
}

fn host(name: &str) -> String {
    format!("{name}.example.com")
}

/// As every peer needs it: fabio takes routes from tags and wants a check, Consul's gateway wants an instance that is in
/// the mesh.
fn instance(id: &str, port: u16) -> Value {
    let mut definition = service(SERVICE, id, port);
    definition["Tags"] = json!([tag(SERVICE)]);
    definition["Connect"] = json!({ "Native": true });
    definition
}

/// The same of the services that nobody asks, on a node that Consul's agent does not look after.
fn instances(services: usize) -> Vec<Value> {
    let both = (0..services * INSTANCES).flat_map(|at| {
        let (name, number) = (service_name(at / INSTANCES), at % INSTANCES);
        let id = format!("{name}-{number}");
        let service = json!({
            "ID": id, "Service": name, "Address": format!("127.0.1.{}", number + 1), "Port": 9,
            "Tags": [tag(&name)], "Connect": { "Native": true },
        });
        let check = json!({
            "Node": NODE, "CheckID": format!("service:{id}"), "Name": "up", "Status": "passing",
            "ServiceID": id, "ServiceName": name, "ServiceTags": [tag(&name)],
        });
        [
            json!({ "Service": { "Verb": "set", "Node": NODE, "Service": service } }),
            json!({ "Check": { "Verb": "set", "Check": check } }),
        ]
    });
    both.collect()
}

fn tag(service: &str) -> String {
    format!("urlprefix-{}/", host(service))
}

async fn first_of_new(client: &Client) -> Result<Instant, String> {
    let (request, started) = (Request::get(HOST, "/"), Instant::now());
    while started.elapsed() < LIMIT {
        if is_new(client, &request).await {
            return Ok(Instant::now());
        }
    }
    Err(format!("it did not serve a new instance within {LIMIT:?}"))
}

/// Two instances take turns: two answers of the old one in a row, and then more of them, show the end of the new one.
async fn last_of_new(client: &Client) -> Result<Instant, String> {
    let (request, started) = (Request::get(HOST, "/"), Instant::now());
    let mut run = Vec::new();
    while started.elapsed() < LIMIT {
        if is_new(client, &request).await {
            run.clear();
        } else {
            run.push(Instant::now());
        }
        if run.len() == 8 {
            return Ok(run[1]);
        }
    }
    Err(format!("it still served a removed instance after {LIMIT:?}"))
}

async fn is_new(client: &Client, request: &Request) -> bool {
    let reply = client.send(request).await;
    reply.is_ok_and(|reply| reply.header("x-backend") == Some("new"))
}

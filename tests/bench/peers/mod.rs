//! Other gateways beside ours: in the same round, on the same Consul, with the same services and backends, one at a time.
//!
//! A peer that carries requests is a file here and a line in [`PROXIES`]. None is part of this project: each is the program
//! that a variable of the environment names, and one that is not given is said to be absent. Consul's own ingress gateway is
//! always there.

mod consul;
mod fabio;
mod gcp;
mod gloo;
mod proxy;
mod scene;
mod traefik;

use std::path::PathBuf;

use proxy::Peer;
use scene::Scene;

use crate::Plan;
use crate::report::Report;

const PROXIES: [Peer; 3] = [traefik::PEER, fabio::PEER, gloo::PEER];

/// Consul's ingress gateway alone, with few services: part of every run.
pub fn consul_alone(plan: &Plan, report: &mut Report) {
    let samples = if plan.quick { 5 } else { 20 };
    crate::runtime().block_on(async {
        let scene = Scene::of_services(100, &[]).await;
        for _ in 0..plan.rounds {
            let ours = scene.ours(samples).await;
            consul::measure(&scene, samples, ours, "_100", report).await;
        }
    });
}

/// All of them. It takes long.
pub fn run(plan: &Plan, report: &mut Report) {
    let proxies = given(report);
    crate::runtime().block_on(async {
        gcp::run(plan, report).await;
        endpoints(plan, report, &proxies).await;
        routes(plan, report, &proxies).await;
    });
}

type Given = (&'static Peer, PathBuf);

fn given(report: &mut Report) -> Vec<Given> {
    let mut given = Vec::new();
    for peer in &PROXIES {
        match proxy::program(peer.variable) {
            Ok(program) => given.push((peer, program)),
            Err(why) => report.absent(peer.name, &why),
        }
    }
    given
}

async fn endpoints(plan: &Plan, report: &mut Report, proxies: &[Given]) {
    let (services, samples) = if plan.quick { (100, 5) } else { (1_000, 20) };
    let scene = Scene::of_services(services, proxies).await;
    for _ in 0..plan.rounds {
        let ours = scene.ours(samples).await;
        consul::measure(&scene, samples, ours, "", report).await;
        for (peer, program) in proxies {
            scene.still(true);
            let measured = match peer.start(program, &scene).await {
                Ok(proxy) => scene.endpoints(&proxy.client, proxy.pid(), samples).await,
                Err(why) => Err(why),
            };
            scene.still(false);
            match measured {
                Ok(theirs) => scene::add_rows(report, peer.name, "", theirs, ours),
                Err(why) => report.peer_failed(peer.name, "endpoint rows", &why),
            }
        }
    }
}

async fn routes(plan: &Plan, report: &mut Report, proxies: &[Given]) {
    let sizes: &[(usize, &str)] = if plan.quick {
        &[(100, "100")]
    } else {
        &[(100, "100"), (1_000, "1k")]
    };
    for &(hosts, label) in sizes {
        routes_among(hosts, label, plan, report, proxies).await;
    }
}

async fn routes_among(hosts: usize, label: &str, plan: &Plan, report: &mut Report, proxies: &[Given]) {
    let samples = if plan.quick { 5 } else { 20 };
    let metric = format!("route_add_p50_ms_{label}");
    let scene = Scene::of_routes(hosts, proxies).await;
    for round in 0..plan.rounds {
        let ours = scene.our_routes(round, samples).await;
        for (peer, program) in proxies {
            scene.still(true);
            let measured = match peer.start(program, &scene).await {
                Ok(proxy) => scene.routes(peer, &proxy, round, samples).await,
                Err(why) => Err(why),
            };
            scene.still(false);
            match measured {
                Ok(theirs) => report.add_peer(peer.name, &metric, "ms", theirs, ours),
                Err(why) => report.peer_failed(peer.name, &metric, &why),
            }
        }
    }
}

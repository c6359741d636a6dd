//! A peer that carries requests itself: how it is started, and how a host is told to it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::scene::{HOST, LIMIT, Scene};
use crate::live::{PATIENCE, until_quiet};
use crate::support::client::{Client, Request};
use crate::support::ports::free_port;
use crate::support::process::{Launch, Process};
use crate::support::scratch_directory;

/// Keys and values of Consul's KV.
pub type Entries = Vec<(String, String)>;

pub struct Peer {
    pub name: &'static str,
    /// The variable of the environment that names its program.
    pub variable: &'static str,
    /// It listens on the place's port; the first launch is the peer's own program.
    pub launches: fn(&Path, &Place) -> Vec<Launch>,
    /// What it must find in Consul's KV before it starts.
    pub base: fn(&Place) -> Entries,
    pub route: fn(&Target) -> Entries,
    /// What it is told about a service stands in the service's tags, or follows from its name.
    pub reads_services: bool,
}

/// Where a peer runs.
pub struct Place<'a> {
    pub directory: &'a Path,
    /// `host:port`
    pub consul: String,
    /// Where requests come in.
    pub port: u16,
}

/// A host, and where its requests go.
pub struct Target<'a> {
    pub host: &'a str,
    pub service: &'a str,
    /// Of the service's instance on 127.0.0.1.
    pub port: u16,
}

/// Its programs end when it is dropped.
pub struct Proxy {
    pub client: Client,
    processes: Vec<Process>,
    _directory: TempDir,
}

impl Peer {
    /// Returns once it serves the scene's host.
    pub async fn start(&self, program: &Path, scene: &Scene) -> Result<Proxy, String> {
        let directory = scratch_directory(self.name);
        let place = Place {
            directory: directory.path(),
            consul: scene.live.consul.address(),
            port: free_port(),
        };
        scene.write((self.base)(&place)).await;
        let launches = (self.launches)(program, &place);
        let mut proxy = Proxy {
            client: Client::http(place.port).keep_alive(),
            processes: launches.into_iter().map(Launch::start).collect(),
            _directory: directory,
        };
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if !proxy.processes[0].is_running() {
                return Err(format!("it ended early: {}", proxy.processes[0].log()));
            }
            if serves(&proxy.client, HOST).await {
                until_quiet(proxy.pid()).await;
                return Ok(proxy);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(format!("it did not serve within {PATIENCE:?}"))
    }
}

impl Proxy {
    /// Of the peer's own program.
    pub fn pid(&self) -> u32 {
        self.processes[0].pid()
    }
}

/// The program that a variable names, or why there is none.
pub fn program(variable: &str) -> Result<PathBuf, String> {
    let Some(path) = std::env::var_os(variable).map(PathBuf::from) else {
        return Err(format!("{variable} is not set"));
    };
    match path.is_file() {
        true => Ok(path),
        false => Err(format!("{variable} names no file: {}", path.display())),
    }
}

async fn serves(client: &Client, host: &str) -> bool {
    let reply = client.send(&Request::get(host, "/")).await;
    reply.is_ok_and(|reply| reply.status == 200)
}

/// When a host is answered, if it is in time.
pub async fn first_answer(client: &Client, host: &str) -> Option<Instant> {
    let started = Instant::now();
    while started.elapsed() < LIMIT {
        if serves(client, host).await {
            return Some(Instant::now());
        }
    }
    None
}

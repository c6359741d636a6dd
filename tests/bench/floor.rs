//! The least that a change can take: Consul's wake of a bare watcher, and Envoy's flip after a canned push.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portreeve::envoy::{Resource, ResourceSet};
use portreeve::xds::{Event, GatewayAccess, Gateways, Limits, Server, UnixSettings};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::canned::{eds_cluster, endpoints, rds_listener, routes, scope, scoped_listener};
use crate::support::client::{Client, Request};
use crate::support::consul::Consul;
use crate::support::envoy::Envoy;
use crate::support::http::api_client;
use crate::support::ports::free_port;
use crate::support::scratch_directory;

/// A blocking query held by nothing but reqwest.
pub struct Watcher {
    client: reqwest::Client,
    url: String,
}

impl Watcher {
    pub fn of_service(consul: &Consul, name: &str) -> Watcher {
        Watcher {
            client: api_client(),
            url: format!("http://{}/v1/health/service/{name}?passing", consul.address()),
        }
    }

    pub fn of_key(consul: &Consul, prefix: &str) -> Watcher {
        Watcher {
            client: api_client(),
            url: format!("http://{}/v1/kv/{prefix}?recurse", consul.address()),
        }
    }

    /// From before the write to the whole answer of the query that it wakes.
    pub async fn wake(&self, write: impl Future<Output = ()>) -> Duration {
        let first = self.read(None).await;
        let waiting = tokio::spawn({
            let watcher = Watcher {
                client: self.client.clone(),
                url: self.url.clone(),
            };
            async move {
                let mut index = first;
                // A wake without news is no wake.
                while index == first {
                    index = watcher.read(Some(first)).await;
                }
                Instant::now()
            }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        let started = Instant::now();
        write.await;
        waiting.await.expect("a watcher") - started
    }

    async fn read(&self, index: Option<u64>) -> u64 {
        let url = match index {
            Some(index) => format!("{}&index={index}&wait=10s", self.url),
            None => self.url.clone(),
        };
        let response = self.client.get(url).send().await.expect("an answer of Consul");
        let index = response
            .headers()
            .get("x-consul-index")
            .and_then(|index| index.to_str().ok()?.parse().ok());
        response.bytes().await.expect("a body");
        index.unwrap_or(1)
    }
}

/// An Envoy of its own on a server that is handed finished resources.
pub struct Canned {
    set: ResourceSet,
    publish: watch::Sender<Option<Arc<ResourceSet>>>,
    client: Client,
    _events: mpsc::Receiver<Event>,
    stop: CancellationToken,
    _envoy: Envoy,
    _directory: TempDir,
}

impl Canned {
    /// `edge` is a listener with one route table, or with routes by host.
    async fn start(scoped: bool, backend: u16) -> Canned {
        let directory = scratch_directory("floor");
        let socket = directory.path().join("ads.sock");
        let port = free_port();
        let mut set = ResourceSet::default();
        set.insert(eds_cluster("app", Duration::from_secs(1)));
        set.insert(endpoints("app", backend));
        if scoped {
            set.insert(scoped_listener("edge", port));
            set.insert(scope("first.example.com", "app"));
        } else {
            set.insert(rds_listener("edge", port));
            set.insert(routes("edge", "app"));
        }
        let (publish, resources) = watch::channel(Some(Arc::new(set.clone())));
        let gateways = Gateways::default();
        gateways.insert("edge", resources);
        let (server, events) = Server::new(gateways, Limits::default(), 4096);
        let settings = UnixSettings {
            path: socket.clone(),
            uids: BTreeMap::new(),
            gateways: GatewayAccess::All,
        };
        let listener = settings.bind().await.expect("a socket");
        let stop = CancellationToken::new();
        tokio::spawn({
            let stop = stop.clone();
            async move { server.serve(listener, stop).await }
        });
        let mut envoy = Envoy::start(&bootstrap(&socket));
        envoy.wait_ready().await;
        let client = Client::http(port).keep_alive();
        Canned {
            set,
            publish,
            client,
            _events: events,
            stop,
            _envoy: envoy,
            _directory: directory,
        }
    }

    fn push(&mut self, resource: Arc<Resource>) {
        self.set.insert(resource);
        self.publish.send_replace(Some(Arc::new(self.set.clone())));
    }

    /// Endpoint flips, forth and back.
    pub async fn endpoint_flips(ports: [(&str, u16); 2], count: usize) -> Vec<Duration> {
        let mut canned = Canned::start(false, ports[0].1).await;
        let request = Request::get("any.example.com", "/");
        canned
            .until(&request, |status, backend| {
                status == 200 && backend == Some(ports[0].0)
            })
            .await;
        let mut times = Vec::new();
        for flip in 1..=count {
            let (name, port) = ports[flip % 2];
            tokio::time::sleep(Duration::from_millis(20)).await;
            let started = Instant::now();
            canned.push(endpoints("app", port));
            canned.until(&request, |_, backend| backend == Some(name)).await;
            times.push(started.elapsed());
        }
        times
    }

    /// New hosts.
    pub async fn route_flips(backend: u16, count: usize) -> Vec<Duration> {
        let mut canned = Canned::start(true, backend).await;
        canned
            .until(&Request::get("first.example.com", "/"), |status, _| status == 200)
            .await;
        let mut times = Vec::new();
        for flip in 0..count {
            let host = format!("n{flip}.example.com");
            tokio::time::sleep(Duration::from_millis(20)).await;
            let started = Instant::now();
            canned.push(scope(&host, "app"));
            canned
                .until(&Request::get(&host, "/"), |status, _| status == 200)
                .await;
            times.push(started.elapsed());
        }
        times
    }

    async fn until(&self, request: &Request, wanted: impl Fn(u16, Option<&str>) -> bool) {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(30) {
            if let Ok(reply) = self.client.send(request).await
                && wanted(reply.status, reply.header("x-backend"))
            {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("the canned push is not served");
    }
}

impl Drop for Canned {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn bootstrap(socket: &std::path::Path) -> serde_json::Value {
    json!({
        "node": { "id": "floor", "cluster": "edge" },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "portreeve" } }],
            },
            "cds_config": { "ads": {}, "resource_api_version": "V3" },
            "lds_config": { "ads": {}, "resource_api_version": "V3" },
        },
        "static_resources": { "clusters": [{
            "name": "portreeve",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            } },
            "load_assignment": { "cluster_name": "portreeve", "endpoints": [{ "lb_endpoints": [
                { "endpoint": { "address": { "pipe": { "path": socket } } } },
            ] }] },
        }] },
    })
}

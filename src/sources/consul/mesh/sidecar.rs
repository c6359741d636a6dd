//! What the gateway's own sidecar dials for it: the upstreams of its registration at the local agent, as instances with the
//! addresses where it listens.
//!
//! The agent's answer has no index; it is looked at in turns. Whether the sidecar runs, Envoy finds out. What Consul's own
//! checks of it say is told beside, so that somebody knows why, and changes no endpoint: they look at the port where the
//! sidecar takes connections for the gateway, not at those where it dials, and they are late.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::mpsc;

use super::chain_answer::null_is_default;
use crate::model::{
    Health, Instance, Observation, Problem, ProblemKind, ServiceQuery, ServiceUpdate, Weights,
};
use crate::sources::agent_api::blocking_query::{Closed, Context, Verdict, Watched};
use crate::sources::agent_api::budget::{Claim, Pass};
use crate::sources::agent_api::call::Call;
use crate::sources::agent_api::service_watcher::ServiceSource;
use crate::sources::agent_api::{ApiClient, ServiceWatcher, ServiceWatcherTask, WatchTiming};
use crate::sources::consul::ConsulError;
use crate::sources::consul::client::{Answer, ConsulClient};

/// The sidecar of this id, as a [`ServiceWatcher`] watches it.
struct Sidecar {
    client: ConsulClient,
    id: Arc<str>,
    observations: mpsc::Sender<Observation>,
}

impl ServiceWatcher {
    pub fn of_sidecar(
        client: ConsulClient,
        id: Arc<str>,
        observations: mpsc::Sender<Observation>,
    ) -> (Self, ServiceWatcherTask) {
        Self::of(Sidecar {
            client,
            id,
            observations,
        })
    }
}

impl ServiceSource for Sidecar {
    type Watch = SidecarWatch;

    fn client(&self) -> ApiClient {
        self.client.api()
    }

    fn connections(&self) -> usize {
        CONNECTIONS
    }

    fn timing(&self) -> WatchTiming {
        WatchTiming {
            poll_interval: LOOK,
            // A sidecar that is not registered yet is no grave matter, and it costs our own machine's agent little.
            refused: LOOK,
            ..WatchTiming::towards(&self.client.settings().address)
        }
    }

    fn watch(&self, query: ServiceQuery, claim: Claim, _connections: usize) -> SidecarWatch {
        SidecarWatch {
            id: self.id.clone(),
            query,
            claim,
            observations: self.observations.clone(),
            client: self.client.clone(),
            known: None,
            told: None,
            failing: None,
        }
    }
}

/// One upstream of the sidecar.
struct SidecarWatch {
    client: ConsulClient,
    id: Arc<str>,
    query: ServiceQuery,
    claim: Claim,
    observations: mpsc::Sender<Observation>,
    known: Option<Arc<[Instance]>>,
    told: Option<Problem>,
    /// The id of the check that was told. Its output may be another one at each look.
    failing: Option<String>,
}

impl SidecarWatch {
    async fn send(&self, result: Result<Arc<[Instance]>, Problem>) -> Result<(), Closed> {
        let query = self.query.clone();
        let update = Observation::Service(ServiceUpdate { query, result });
        self.observations.send(update).await.map_err(|_| Closed)
    }

    async fn hand_on(&mut self, instances: Arc<[Instance]>) -> Result<(), Closed> {
        self.known = Some(instances.clone());
        self.told = None;
        self.failing = None;
        self.send(Ok(instances)).await
    }

    fn with_fix(&self, problem: Problem) -> Problem {
        match problem.kind {
            ProblemKind::NotFound => problem.with_fix(format!(
                "register the gateway's sidecar {:?} at this machine's Consul agent, or name it in `mesh {{ sidecar = ... }}`",
                self.id
            )),
            _ => problem,
        }
    }

    /// The first check of the sidecar that fails.
    async fn failing_check(&self) -> Result<Option<Check>, ConsulError> {
        if self.known.as_ref().is_none_or(|dialed| dialed.is_empty()) {
            // Of a sidecar that dials nobody for us there is something else to say.
            return Ok(None);
        }
        let call = Call::get("agent/checks")
            .query("filter", format!("ServiceID == {:?}", self.id))
            .max_body(REGISTRATION_BYTES);
        let answer = self.client.api().probe(call).await?;
        let checks: BTreeMap<String, Check> = answer.json()?;
        let mut checks = checks.into_values();
        // An agent before 1.5 knows no filters.
        Ok(checks.find(|check| check.service_id == *self.id && check.fails()))
    }

    fn problem_of(&self, check: &Check) -> Problem {
        let Self { client, id, .. } = self;
        let output: String = check.output.trim().chars().take(OUTPUT_SHOWN).collect();
        let message = format!(
            "the gateway's sidecar {id:?} does not pass the check {:?} of Consul's agent at {}: {output:?}",
            check.name,
            client.address()
        );
        let fix = match id.strip_suffix("-sidecar-proxy") {
            Some(service) => {
                format!("start it beside the gateway: `consul connect envoy -sidecar-for {service}`")
            }
            None => "start it beside the gateway".to_owned(),
        };
        Problem::new(ProblemKind::Unavailable, message).with_fix(fix)
    }
}

impl Watched for SidecarWatch {
    fn call(&self) -> Call {
        Call::get("agent/service")
            .segment(&self.id)
            .max_body(REGISTRATION_BYTES)
            .needs(format!("service {:?} {{ policy = \"read\" }}", self.id))
    }

    async fn admit(&mut self, first: bool) -> Pass {
        self.claim.admit(first).await
    }

    async fn take(&mut self, answer: Answer, _: Context) -> Result<Verdict, ConsulError> {
        let instances =
            listeners_for(&answer.body, &self.id, &self.query).map_err(|error| answer.unreadable(error))?;
        let mut news = self.known.as_deref() != Some(&*instances);
        if news && self.hand_on(instances.into()).await.is_err() {
            return Ok(Verdict::Closed);
        }
        let told = match self.failing_check().await {
            Ok(Some(check)) if self.failing.as_ref() == Some(&check.check_id) => Ok(()),
            Ok(Some(check)) => {
                news = true;
                let problem = self.problem_of(&check);
                self.told = Some(problem.clone());
                self.failing = Some(check.check_id);
                self.send(Err(problem)).await
            }
            // An agent that does not say is no news.
            Err(_) if self.failing.is_some() => Ok(()),
            _ if self.told.is_none() => Ok(()),
            _ => {
                news = true;
                let instances = self.known.clone().unwrap_or_default();
                self.hand_on(instances).await
            }
        };
        Ok(match told {
            Ok(()) => Verdict::Taken { news },
            Err(Closed) => Verdict::Closed,
        })
    }

    async fn tell(&mut self, problem: Problem) -> Result<(), Closed> {
        let problem = self.with_fix(problem);
        if self.told.as_ref() == Some(&problem) {
            return Ok(());
        }
        self.told = Some(problem.clone());
        self.failing = None;
        self.send(Err(problem)).await
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Check {
    #[serde(rename = "CheckID")]
    check_id: String,
    #[serde(rename = "ServiceID")]
    service_id: String,
    name: String,
    status: String,
    output: String,
    #[serde(rename = "Type")]
    kind: String,
}

impl Check {
    pub(super) fn fails(&self) -> bool {
        // Without an output it was not made yet; an alias repeats the checks of the gateway's own service.
        self.status == "critical" && !self.output.is_empty() && self.kind != "alias"
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Registration {
    #[serde(default, deserialize_with = "null_is_default")]
    proxy: Proxy,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Proxy {
    #[serde(deserialize_with = "null_is_default")]
    upstreams: Vec<Upstream>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Upstream {
    destination_type: String,
    destination_name: String,
    destination_namespace: String,
    destination_partition: String,
    destination_peer: String,
    datacenter: String,
    local_bind_address: String,
    local_bind_port: u16,
    /// A named port (Consul Enterprise 2.0 and newer).
    destination_port: serde_json::Value,
}

impl Upstream {
    fn is_for(&self, query: &ServiceQuery) -> bool {
        // What is left out in either place is the default.
        let same = |registered: &str, asked: &Option<Arc<str>>| match asked {
            Some(asked) => registered == &**asked,
            None => matches!(registered, "" | "default"),
        };
        let asked = query.narrowing();
        matches!(&*self.destination_type, "" | "service")
            && self.destination_name == *query.name
            // Who asks for no port is not answered by another than the default one.
            && (self.destination_port.is_null() || self.destination_port == "")
            && same(&self.destination_namespace, &asked.namespace)
            && same(&self.destination_partition, &asked.partition)
            && self.destination_peer == asked.peer.as_deref().unwrap_or_default()
            && self.datacenter == asked.datacenter.as_deref().unwrap_or_default()
    }

    /// Where a neighbour on this machine reaches it.
    fn address(&self) -> Arc<str> {
        match self.local_bind_address.parse::<IpAddr>() {
            _ if self.local_bind_address.is_empty() => "127.0.0.1".into(),
            Ok(IpAddr::V4(any)) if any.is_unspecified() => "127.0.0.1".into(),
            Ok(IpAddr::V6(any)) if any.is_unspecified() => "::1".into(),
            _ => self.local_bind_address.as_str().into(),
        }
    }
}

pub(super) fn listeners_for(
    body: &[u8],
    id: &Arc<str>,
    query: &ServiceQuery,
) -> Result<Vec<Instance>, serde_json::Error> {
    let registration: Registration = serde_json::from_slice(body)?;
    let upstreams = registration.proxy.upstreams.iter();
    let mut listeners: Vec<Instance> = upstreams
        .filter(|upstream| upstream.is_for(query))
        .map(|upstream| Instance {
            node: "this machine".into(),
            id: id.clone(),
            destination: None,
            address: upstream.address(),
            port: upstream.local_bind_port,
            ports: Default::default(),
            tells_ports_apart: false,
            health: Health::Passing,
            weights: Weights::default(),
            tags: Default::default(),
            meta: Default::default(),
            created: 0,
        })
        .collect();
    listeners.sort();
    listeners.dedup();
    Ok(listeners)
}

/// Between looks at the registration.
const LOOK: Duration = Duration::from_secs(5);

/// No poll waits: a connection is held for a moment.
const CONNECTIONS: usize = 8;

const REGISTRATION_BYTES: usize = 1024 * 1024;

/// Characters of a check's output.
const OUTPUT_SHOWN: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Lookup, Narrowing};

    /// As 1.8.7 answers, with what newer ones add.
    const REGISTRATION: &str = r#"{"Kind":"connect-proxy","ID":"edge-gw-sidecar-proxy","Service":"edge-gw-sidecar-proxy","Port":21000,
      "ContentHash":"1b3b0b95c2b70784","Proxy":{"DestinationServiceName":"edge-gw","DestinationServiceID":"edge-gw","Upstreams":[
        {"DestinationType":"service","DestinationName":"web","LocalBindPort":9191,"MeshGateway":{}},
        {"DestinationType":"service","DestinationName":"web","DestinationPort":"admin","LocalBindPort":9195,"MeshGateway":{}},
        {"DestinationType":"service","DestinationName":"web","DestinationPort":"","Datacenter":"dc2","LocalBindAddress":"0.0.0.0","LocalBindPort":9192,"MeshGateway":{}},
        {"DestinationType":"service","DestinationName":"web","DestinationNamespace":"default","DestinationPartition":"default","DestinationPeer":"west","LocalBindAddress":"127.0.0.2","LocalBindPort":9193,"MeshGateway":{}},
        {"DestinationType":"prepared_query","DestinationName":"web","LocalBindPort":9194,"MeshGateway":{}}]}}"#;

    fn dialed(service: &str, narrowing: Narrowing) -> Vec<String> {
        let query = ServiceQuery::new(Lookup::Sidecar, service.into(), narrowing);
        let found = listeners_for(REGISTRATION.as_bytes(), &"x".into(), &query).unwrap();
        found
            .iter()
            .map(|listener| format!("{}:{}", listener.address, listener.port))
            .collect()
    }

    #[test]
    fn each_destination_has_its_own_listener() {
        let none = Narrowing::default;
        let datacenter = |name: &str| Narrowing {
            datacenter: Some(name.into()),
            ..none()
        };
        let peer = |name: &str| Narrowing {
            peer: Some(name.into()),
            ..none()
        };
        let namespace = |name: &str| Narrowing {
            namespace: Some(name.into()),
            ..none()
        };
        assert_eq!(dialed("web", none()), ["127.0.0.1:9191"]);
        assert_eq!(dialed("web", datacenter("dc2")), ["127.0.0.1:9192"]);
        assert_eq!(dialed("web", peer("west")), ["127.0.0.2:9193"]);
        assert_eq!(dialed("web", peer("east")), [""; 0]);
        assert_eq!(dialed("web", namespace("shop")), [""; 0]);
        assert_eq!(dialed("api", none()), [""; 0]);
    }

    /// As 1.8.7 answers.
    #[test]
    fn a_check_that_was_made_and_is_the_sidecar_s_own_counts() {
        let check = |status: &str, output: &str, kind: &str| {
            let body = format!(
                r#"{{"Node":"vm","CheckID":"service:edge-gw-sidecar-proxy:1","Name":"Connect Sidecar Listening","Status":"{status}",
                "Notes":"","Output":"{output}","ServiceID":"edge-gw-sidecar-proxy","ServiceName":"edge-gw-sidecar-proxy","ServiceTags":[],
                "Type":"{kind}","Definition":{{}},"CreateIndex":0,"ModifyIndex":0}}"#
            );
            serde_json::from_str::<Check>(&body).unwrap().fails()
        };
        assert!(check(
            "critical",
            "dial tcp 127.0.0.1:21000: connect: connection refused",
            "tcp"
        ));
        assert!(check("critical", "Maintenance mode is enabled", ""));
        assert!(!check("critical", "", "tcp"), "not made yet");
        assert!(!check("critical", "Service edge-gw is failing.", "alias"));
        assert!(!check("warning", "slow", "tcp"));
        assert!(!check("passing", "TCP connect 127.0.0.1:21000: Success", "tcp"));
    }

    #[test]
    fn a_service_that_is_no_proxy_dials_nobody() {
        let query = ServiceQuery::named("web");
        for body in [r#"{"Proxy":null}"#, "{}", r#"{"Proxy":{"Upstreams":null}}"#] {
            assert_eq!(listeners_for(body.as_bytes(), &"x".into(), &query).unwrap(), []);
        }
        assert!(listeners_for(b"null", &"x".into(), &query).is_err());
    }
}

//! A whole gateway: Consul, OpenBao, backends, and an agent that keeps an Envoy.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use serde_json::json;

use super::acl::AclToken;
use super::agent::{Agent, AgentLaunch, SmallDisk};
use super::backend::Backend;
use super::client::{Client, Reply, Request};
use super::consul::{Consul, service};
use super::envoy::EnvoyAdmin;
use super::line::Line;
use super::network::FarNetwork;
use super::ports::free_port;
use super::vault::Vault;
use super::{START_LIMIT, program, wait_for};

/// How soon a change must be seen. Generous against a busy machine; the benchmarks measure the real figure.
pub const SOON: Duration = Duration::from_secs(10);

pub struct Stack {
    pub agent: Agent,
    pub consul: Consul,
    /// Where Consul is a client agent.
    pub consul_servers: Vec<Consul>,
    pub vault: Option<Vault>,
    /// Other nodes of its cluster; the agent talks to the first of them.
    pub standbys: Vec<Vault>,
    pub http: u16,
    pub https: u16,
    /// The agent's data directory, as it is seen from here.
    pub data: PathBuf,
    own_data: PathBuf,
    /// The agent's own, where Consul has ACLs.
    pub consul_token: Option<AclToken>,
}

#[derive(Clone, Default)]
pub struct Options {
    pub vault: bool,
    pub state_of_the_world: bool,
    /// Consul denies by default, and the agent's token has this policy alone. Its name is [`POLICY`].
    pub consul_policy: Option<String>,
    /// In place of a token: an auth method, and the file with the identity. The policy is there, and nobody has it.
    pub consul_login: Option<(String, PathBuf)>,
    /// What the agent's `consul` block holds, in place of Consul's address.
    pub consul_block: Option<String>,
    /// The login keeps its token beside the identity.
    pub keeps_consul_token: bool,
    /// Consul is a client agent of three servers.
    pub consul_cluster: bool,
    /// Consul is in another network, and the agent reaches it there by itself, whatever the line.
    pub consul_network: Option<Arc<FarNetwork>>,
    /// The agent reaches Consul through this one.
    pub line: Option<Arc<Line>>,
    /// And Vault through this one.
    pub vault_line: Option<Arc<Line>>,
    /// Laid over Consul's configuration.
    pub consul_settings: Option<serde_json::Value>,
    /// The gateway is `edge-gw` in the mesh, with a token of its own that has this policy alone.
    pub mesh_policy: Option<String>,
    /// The agent logs in to Vault by AppRole and gets these policies (name, rules) alone.
    pub vault_policies: Vec<(&'static str, String)>,
    /// How the agent logs in to Vault, in place of the root token. The method need not be there yet.
    pub vault_login: Option<String>,
    /// How many nodes join Vault's cluster.
    pub vault_standbys: usize,
    /// Another Envoy program than the usual one.
    pub envoy: Option<PathBuf>,
    /// The agent starts no Envoy.
    pub no_envoy: bool,
    /// More arguments of the agent.
    pub arguments: Vec<&'static str>,
    /// An agent that ends leaves its Envoy running.
    pub leave_envoy: bool,
    /// What a file of the agent's may hold, in KiB.
    pub file_size_limit: Option<u32>,
    /// Its data directory is a file system of its own, that nobody else sees (takes CAP_SYS_ADMIN).
    pub small_disk: Option<SmallDisk>,
    /// In place of 2 s.
    pub drain_time: Option<&'static str>,
    /// More settings of its `envoy` block.
    pub envoy_settings: &'static str,
    /// What the `kv_documents` block holds, in place of leave to name loopback addresses.
    pub kv_documents: Option<String>,
    /// More settings.
    pub more: String,
}

/// The name of the agent's policy in Consul.
pub const POLICY: &str = "portreeve";

impl Stack {
    pub async fn start(options: Options) -> Stack {
        let (consul, consul_token) = start_consul(&options).await;
        let (consul, consul_servers) = match options.consul_cluster {
            true => Consul::start_cluster().await,
            false => (consul, Vec::new()),
        };
        let vault = if options.vault {
            Some(start_vault(options.vault_standbys > 0).await)
        } else {
            None
        };
        let mut standbys = Vec::new();
        for number in 0..options.vault_standbys {
            let leader = vault.as_ref().expect("a Vault");
            standbys.push(leader.join(&format!("vault-{}", number + 2)).await);
        }
        let launch = Agent::prepare();
        if let Some(line) = &options.line {
            line.lead_to(consul.port);
        }
        let mut settings = settings(&launch, &consul, &options);
        if let Some((method, identity)) = &options.consul_login {
            let sink = match options.keeps_consul_token {
                true => format!("token_sink_file = {:?}", identity.with_file_name("token")),
                false => String::new(),
            };
            let login = format!(
                "login {{\n    method = {method:?}\n    bearer_token_file = {identity:?}\n    {sink}\n  }}"
            );
            settings = settings.replace("consul {", &format!("consul {{\n  {login}"));
        } else if let Some(token) = &consul_token {
            let file = launch.file("consul-token", &token.secret);
            settings = settings.replace("consul {", &format!("consul {{\n  token_file = {file:?}"));
        }
        if let Some(rules) = &options.mesh_policy {
            let token = consul.create_token("mesh", rules).await;
            let file = launch.file("mesh-token", &token.secret);
            settings.push_str(&format!(
                "\nmesh {{\n  service    = \"edge-gw\"\n  token_file = {file:?}\n}}\n"
            ));
        }
        if let Some(vault) = &vault {
            let asked = match &options.vault_line {
                Some(line) => {
                    line.lead_to(vault.port);
                    format!("http://{}", line.address())
                }
                None => standbys.first().unwrap_or(vault).address(),
            };
            settings.push_str(&vault_block(&launch, vault, &asked, &options).await);
        }
        settings.push_str(&options.more);
        let settings = launch.file("portreeve.hcl", &settings);
        let launch = match options.file_size_limit {
            Some(limit) => launch.file_size_limit(limit),
            None => launch,
        };
        let own_data = launch.directory().join("data");
        let launch = launch
            .arg("agent")
            .arg("-config")
            .arg(&settings)
            .args(&options.arguments);
        let (agent, data) = match options.small_disk {
            None => (launch.start(), own_data.clone()),
            Some(disk) => {
                let agent = launch.on_disk(&own_data, disk).start();
                let root = PathBuf::from(format!("/proc/{}/root", agent.process.pid()));
                let seen_from_here = own_data.strip_prefix("/").expect("an absolute path");
                let data = root.join(seen_from_here);
                (agent, data)
            }
        };
        Stack {
            data,
            own_data,
            http: free_port(),
            https: free_port(),
            agent,
            consul,
            consul_servers,
            vault,
            standbys,
            consul_token,
        }
    }

    /// The usual start of a test: a gateway, and one route to one instance of `orders`. Returns the instance, and a
    /// request that it answers.
    pub async fn shop(&self) -> (Backend, Request) {
        let backend = Backend::start("one").await;
        self.register("orders", &backend).await;
        self.put("gateway", GATEWAY).await;
        self.put("shop", &route("shop", "shop.example.com", "orders"))
            .await;
        let request = Request::get("shop.example.com", "/");
        self.until(&request, "the route", |reply| reply.status == 200)
            .await;
        (backend, request)
    }

    /// A client that trusts the authority of this stack's Vault.
    pub async fn https_client(&self) -> Client {
        let vault = self.vault.as_ref().expect("a Vault");
        let root = vault.read("pki_int/cert/ca").await;
        let root = root["data"]["certificate"].as_str().expect("a root").to_owned();
        Client::https(self.https, &root)
    }

    /// Puts a document with `$HTTP` and `$HTTPS` replaced by this stack's ports.
    pub async fn put(&self, name: &str, text: &str) {
        let text = text
            .replace("$HTTPS", &self.https.to_string())
            .replace("$HTTP", &self.http.to_string());
        self.consul.put(&format!("portreeve/config/{name}"), text).await;
    }

    pub async fn delete(&self, name: &str) {
        self.consul.delete(&format!("portreeve/config/{name}")).await;
    }

    /// Registers a backend as an instance that passes, and waits until the catalog has it. Consul's agent may take half a minute to
    /// tell its servers, where it looks everything through since it met a leader: that is no time of ours.
    pub async fn register(&self, name: &str, backend: &Backend) {
        let id = id(name, backend);
        self.consul.register(&service(name, &id, backend.port)).await;
        self.consul.set_check(&format!("service:{id}"), "passing").await;
        wait_for(&format!("{id} in the catalog"), START_LIMIT, async || {
            let path = format!("/v1/health/service/{name}?passing");
            let instances = self.consul.call(Method::GET, &path, "").await?.ok()?.json();
            let ids = instances.as_array().into_iter().flatten();
            anyhow::ensure!(ids.map(|one| &one["Service"]["ID"]).any(|one| *one == id));
            Ok(())
        })
        .await;
    }

    pub async fn deregister(&self, name: &str, backend: &Backend) {
        self.consul.deregister(&id(name, backend)).await;
    }

    /// The agent's data directory by its own name for it.
    pub fn data_directory(&self) -> &Path {
        &self.own_data
    }

    pub fn client(&self) -> Client {
        Client::http(self.http)
    }

    pub fn envoy(&self) -> EnvoyAdmin {
        EnvoyAdmin {
            socket: self.data.join("envoy/edge/admin.sock"),
        }
    }

    /// The pid of the supervised Envoy, from its record.
    pub fn envoy_pid(&self) -> i32 {
        pid_of_envoy(&self.data)
    }

    /// Polls until a request is answered as expected.
    pub async fn until(&self, request: &Request, what: &str, expected: impl Fn(&Reply) -> bool) -> Reply {
        until(&self.client(), request, what, expected).await
    }
}

/// Of an agent with this data directory: the pid of the Envoy of its gateway `edge`, from its record.
pub fn pid_of_envoy(data: &Path) -> i32 {
    let text = std::fs::read_to_string(data.join("envoy/edge/envoy-state.json")).expect("Envoy's record");
    let record: serde_json::Value = serde_json::from_str(&text).expect("a record");
    find_pid(&record).unwrap_or_else(|| panic!("no pid in {text}"))
}

/// SIGKILL.
pub fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("a process to kill");
}

/// The same; returns once it is no more. Until then its ports take connections that nobody will answer.
pub async fn kill_and_wait(pid: i32) {
    kill(pid);
    wait_for("the killed process to end", SOON, async || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The state, and the number of threads: the first one may have ended before the others.
        let mut fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
        let (state, threads) = (fields.next().unwrap_or_default(), fields.nth(16));
        let is_over = "ZX".contains(state) && threads.is_none_or(|threads| threads == "1" || threads == "0");
        anyhow::ensure!(is_over, "{stat}");
        Ok(())
    })
    .await;
}

pub async fn until(
    client: &Client,
    request: &Request,
    what: &str,
    expected: impl Fn(&Reply) -> bool,
) -> Reply {
    // A request that hangs is asked again, not waited for until the end of all patience.
    let client = client.clone().timeout(SOON / 4);
    wait_for(what, SOON, async || {
        let reply = client
            .send(request)
            .await
            .map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        anyhow::ensure!(
            expected(&reply),
            "{} {:?} {}",
            reply.status,
            reply.headers,
            reply.text()
        );
        Ok(reply)
    })
    .await
}

pub fn id(name: &str, backend: &Backend) -> String {
    format!("{name}-{}", backend.port)
}

fn find_pid(value: &serde_json::Value) -> Option<i32> {
    match value {
        serde_json::Value::Object(map) => map
            .get("pid")
            .and_then(|pid| pid.as_i64())
            .map(|pid| pid as i32)
            .or_else(|| map.values().find_map(find_pid)),
        _ => None,
    }
}

async fn start_consul(options: &Options) -> (Consul, Option<AclToken>) {
    let settings = options.consul_settings.clone().unwrap_or_else(|| json!({}));
    if let Some(network) = &options.consul_network {
        return (Consul::start_in(network, settings).await, None);
    }
    match options.consul_policy.as_deref() {
        None => (Consul::start_with(false, settings).await, None),
        Some(rules) => {
            let consul = Consul::start_with(true, settings).await;
            let token = consul.create_token(POLICY, rules).await;
            (consul, Some(token))
        }
    }
}

async fn start_vault(with_standbys: bool) -> Vault {
    let vault = match with_standbys {
        true => Vault::start_to_be_joined().await,
        false => Vault::start().await,
    };
    vault.enable_pki("pki_int", "example.com").await;
    vault.enable_kv("secret", 2).await;
    vault
}

fn settings(launch: &AgentLaunch, consul: &Consul, options: &Options) -> String {
    format!(
        r#"
gateways  = ["edge"]
node_name = "node-1"
bind_addr = "127.0.0.1"
data_dir  = "{data}"

consul {{
  {consul}
}}

kv_documents {{
  {kv_documents}
}}

envoy {{
  supervise       = {supervise}
  binary          = "{envoy}"
  concurrency     = 1
  drain_time      = "{drain_time}"
  variant         = "{variant}"
  {leave_envoy}
  {envoy_settings}
}}

api {{
  socket = "{api}"
}}
"#,
        data = launch.directory().join("data").display(),
        consul = options.consul_block.clone().unwrap_or_else(|| {
            let line = options.line.as_ref().filter(|_| options.consul_network.is_none());
            let address = line.map_or_else(|| consul.address(), |line| line.url());
            let authority = line.and_then(|line| line.authority());
            let authority = authority.map(|pem| launch.file("consul-ca.pem", pem));
            let ca_file = authority.map(|file| format!("\n  ca_file = {file:?}"));
            format!("address = {address:?}{}", ca_file.unwrap_or_default())
        }),
        kv_documents = options.kv_documents.as_deref().unwrap_or("allow_loopback = true"),
        supervise = !options.no_envoy,
        leave_envoy = if options.leave_envoy {
            "stop_with_agent = false"
        } else {
            ""
        },
        envoy_settings = options.envoy_settings,
        drain_time = options.drain_time.unwrap_or("2s"),
        envoy = options
            .envoy
            .clone()
            .unwrap_or_else(|| program("envoy"))
            .display(),
        variant = if options.state_of_the_world {
            "sotw"
        } else {
            "delta"
        },
        api = launch.api().display(),
    )
}

async fn vault_block(launch: &AgentLaunch, vault: &Vault, asked: &str, options: &Options) -> String {
    let login = if let Some(login) = &options.vault_login {
        login.clone()
    } else if options.vault_policies.is_empty() {
        let token = launch.file("vault-token", &vault.root_token);
        format!("token_file = {token:?}")
    } else {
        vault.enable_auth("approle", "approle").await;
        for (name, rules) in &options.vault_policies {
            vault.policy(name, rules).await;
        }
        let names: Vec<&str> = options.vault_policies.iter().map(|(name, _)| *name).collect();
        let (role, secret) = vault.approle("portreeve", &names, "1h").await;
        let only = json!({ "token_no_default_policy": true });
        vault.write("auth/approle/role/portreeve", only).await;
        let secret = launch.file("secret-id", &secret);
        format!("approle {{\n    role_id        = {role:?}\n    secret_id_file = {secret:?}\n  }}")
    };
    format!("\nvault {{\n  address       = \"{asked}\"\n  poll_interval = \"1s\"\n\n  {login}\n}}\n",)
}

pub const GATEWAY: &str = r#"
gateway "edge" {
  listener "web" {
    port = $HTTP
  }
}
"#;

/// A gateway with https (a certificate from Vault's PKI) and http, and one host whose rule does this.
pub fn secure(rule: &str) -> String {
    format!(
        r#"
gateway "edge" {{
  listener "secure" {{
    port     = $HTTPS
    protocol = "https"
    tls {{ certificates = ["www"] }}
  }}

  listener "web" {{
    port = $HTTP
  }}
}}

certificate "www" {{
  vault_pki {{
    mount       = "pki_int"
    role        = "edge"
    common_name = "www.example.com"
  }}
}}

http_route "www" {{
  gateways  = ["edge"]
  hostnames = ["www.example.com"]

  rule "all" {{
    {rule}
  }}
}}
"#
    )
}

/// A route of one host to one Consul service.
pub fn route(name: &str, host: &str, service: &str) -> String {
    format!(
        r#"
http_route "{name}" {{
  gateways  = ["edge"]
  hostnames = ["{host}"]

  rule "all" {{
    backend "consul" "{service}" {{}}
  }}
}}
"#
    )
}
